"""Recorded answers to evaluation items, and how they are scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nearfar.errors import DataError
from nearfar.retrieval.metrics import Mean, mean
from nearfar.types import Signals

from .benchmarks import CallItem, QuestionItem
from .bfcl import AST_CATEGORIES, CATEGORIES, BfclItem, Reading, Verdict, judge
from .bfcl_checker import Fault
from .call_metrics import answer_f1, call_figures, exact_match
from .call_text import Call, calls_from_json, find_calls
from .source_calls import UnreadableCall


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an agent answered to an item."""

    value: Any  # the calls as JSON values, or what it wrote
    text: str | None = None  # its words
    tokens: int | None = None
    model_calls: int | None = None
    signals: Signals = field(default_factory=dict)  # how sure the roles were: plan_score, plan_relevance, caller_score


def read_answers(rows: Iterable[Mapping[str, Any]]) -> dict[str, Recorded]:
    """Recorded answers by item id.

    A row has `id`, and `calls` (JSON values) or `answer`, `result` (the leaderboard's own key), `text` or `prediction`;
    `tokens` and `model_calls` where they were counted. The last row of an id counts.

    Raises:
        DataError: a row has no id, or nothing that is an answer.
    """
    found: dict[str, Recorded] = {}
    for row in rows:
        name = row.get("id")
        words = next((row[key] for key in ("answer", "text", "prediction", "result") if key in row), None)
        value = next((row[key] for key in ("calls", "result", "answer", "text", "prediction") if key in row), _NOTHING)
        if name is None or value is _NOTHING:
            raise DataError(f"An answer needs id and calls, answer, result or text; this has {sorted(row)!r}.")
        found[str(name)] = Recorded(
            value, words if isinstance(words, str) else None, _count(row.get("tokens")), _count(row.get("model_calls"))
        )
    return found


_NOTHING = object()


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured.

    Attributes:
        benchmark: bfcl, toolalpaca, apibank or multihop.
        n: items.
        missing: items without an answer; they count as wrong.
        figures: over all items, by name.
        groups: by category, split, level or data set: how many items, and the figures.
        items: one object an item.
    """

    benchmark: str
    n: int
    missing: int
    figures: Mapping[str, Mean]
    groups: Mapping[str, tuple[int, Mapping[str, Mean]]]
    items: Sequence[Mapping[str, Any]]


def score_bfcl(
    items: Sequence[BfclItem], answers: Mapping[str, Recorded], *, reading: Reading = "strict", resamples: int = 1000
) -> Report:
    """Accuracy by category; `macro_ast` is the mean over the categories whose calls are compared with gold ones."""
    verdicts = [
        judge(item, answers[item.id].value, reading=reading)
        if item.id in answers
        else Verdict(item.id, item.category, Fault("no_answer", "there is no answer"))
        for item in items
    ]
    by_category = {
        category: found
        for category in CATEGORIES
        if (found := [float(verdict.is_correct) for verdict in verdicts if verdict.category == category])
    }
    figures = {"accuracy": _mean([float(verdict.is_correct) for verdict in verdicts], resamples)}
    compared = [found for category, found in by_category.items() if category in AST_CATEGORIES]
    if compared:
        figures["macro_ast"] = macro(compared, resamples=resamples)
    return Report(
        "bfcl",
        len(items),
        sum(item.id not in answers for item in items),
        figures,
        {category: (len(found), {"accuracy": _mean(found, resamples)}) for category, found in by_category.items()},
        [
            {
                "id": verdict.item_id,
                "category": verdict.category,
                "correct": verdict.is_correct,
                "fault": verdict.fault.kind if verdict.fault else None,
                "why": verdict.fault.text if verdict.fault else None,
            }
            for verdict in verdicts
        ],
    )


def macro(groups: Sequence[Sequence[float]], *, resamples: int = 1000, seed: int = 0) -> Mean:
    """The mean of the groups' means, with an interval from resampling inside of each group.

    Raises:
        ValueError: there is no group, or an empty one.
    """
    if not groups or not all(groups):
        raise ValueError("There is no mean of no values.")
    import numpy as np

    draw = np.random.default_rng(seed)
    arrays = [np.asarray(group, float) for group in groups]
    means = [
        float(np.mean([array[draw.integers(len(array), size=len(array))].mean() for array in arrays]))
        for _ in range(resamples)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(float(np.mean([array.mean() for array in arrays])), float(low), float(high))


def score_calls(
    benchmark: str, items: Sequence[CallItem], answers: Mapping[str, Recorded], *, resamples: int = 1000
) -> Report:
    """α-UMi's metrics; `call_accuracy` is the share of items with gold's calls, all of them and no more."""
    rows = []
    for item in items:
        recorded = answers.get(item.id)
        known = [tool.name for tool in item.tools]
        calls = _calls_of(recorded, known)
        figures = call_figures(
            calls,
            item.gold,
            known=known,
            answer=recorded.text if recorded else None,
            gold_answer=item.gold_answer,
        )
        shown = asdict(figures)
        shown["call_accuracy"] = shown.pop("all_right")
        if recorded is None:
            shown |= {"plan_accuracy": 0.0, "action_em": 0.0, "argument_f1": 0.0, "call_accuracy": 0.0}
        rows.append({"id": item.id, "group": item.group, **shown})
    return _report(benchmark, rows, answers, resamples)


def _calls_of(recorded: Recorded | None, known: Sequence[str]) -> list[Call]:
    if recorded is None or not recorded.value:
        return []
    if isinstance(recorded.value, str):
        return find_calls(recorded.value, known)
    try:
        return calls_from_json(recorded.value)
    except UnreadableCall:
        return []


def score_questions(items: Sequence[QuestionItem], answers: Mapping[str, Recorded], *, resamples: int = 1000) -> Report:
    """Exact match and F1, and tokens and model calls where they were counted."""
    rows: list[dict[str, Any]] = []
    for item in items:
        recorded = answers.get(item.id)
        said = recorded.text if recorded and recorded.text is not None else ""
        rows.append(
            {
                "id": item.id,
                "group": item.group,
                "em": exact_match(said, item.golds) if recorded else 0.0,
                "f1": answer_f1(said, item.golds) if recorded else 0.0,
                "tokens": recorded.tokens if recorded else None,
                "model_calls": recorded.model_calls if recorded else None,
            }
        )
    return _report("multihop", rows, answers, resamples)


def _report(
    benchmark: str, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Recorded], resamples: int
) -> Report:
    groups = dict.fromkeys(str(row["group"]) for row in rows)
    return Report(
        benchmark,
        len(rows),
        sum(row["id"] not in answers for row in rows),
        _figures(rows, resamples),
        {
            group: (len(found), _figures(found, resamples))
            for group in groups
            for found in [[row for row in rows if row["group"] == group]]
        },
        rows,
    )


def _figures(rows: Sequence[Mapping[str, Any]], resamples: int) -> dict[str, Mean]:
    """The mean of each figure over the rows that have it."""
    names = [name for name in (rows[0] if rows else ()) if name not in ("id", "group")]
    columns = {name: [float(row[name]) for row in rows if row[name] is not None] for name in names}
    return {name: _mean(values, resamples) for name, values in columns.items() if values}


def _mean(values: Sequence[float], resamples: int) -> Mean:
    return mean(values, resamples=resamples)
