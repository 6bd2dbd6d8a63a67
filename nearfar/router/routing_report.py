"""A router or a signal measured on an outcome table, beside random, length, TF-IDF ridge and the oracle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path

from nearfar.errors import DataError

from .evaluation import CurvePoint, Interval, quality_at
from .labels import read_rows
from .predictive import PredictiveRouter, RoutingExample, make
from .predictive.blend import out_of_fold
from .predictive.fitting import MIN_EXAMPLES
from .predictive.queries import question_key
from .routing_evaluation import (
    CostPoint,
    RoutingMetrics,
    aiq,
    apgr_difference,
    bootstrap_metrics,
    cost_at_quality,
    cost_curve,
    oracle_scores,
    routing_curve,
    routing_metrics,
)
from .routing_table import RoutedQuery, load_others, load_routed

NUM_FOLDS = 5

#: Points of a curve that a report keeps, evenly spaced in the share of strong calls.
_CURVE_STEPS = 100

#: Shares of the strong model's quality at which a report gives the cost.
_MATCHED = (0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class MatchedCost:
    """What a given quality costs."""

    share: float  # of the strong model's quality
    quality: float
    cost: float  # mean per query, in the report's unit; nan where it is not reached
    saved: float  # share of always-strong's cost that it spares; below 0 where it costs more


@dataclass(frozen=True, slots=True)
class Figures:
    """One score, measured."""

    name: str
    metrics: RoutingMetrics
    intervals: dict[str, Interval]  # 95 % bootstrap
    aiq: float
    matched: tuple[MatchedCost, ...]
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """APGR of the score less a baseline's, on the same resamples."""

    to: str
    apgr: float
    interval: Interval  # 95 %


@dataclass(frozen=True, slots=True)
class RoutingReport:
    """What `nearfar evaluate` says."""

    table: str
    weak: str
    strong: str
    n: int
    weak_quality: float
    strong_quality: float
    how: str  # how the scores came about, in words
    costs: str  # where the costs come from, in words
    figures: Figures
    baselines: tuple[Figures, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A table's queries and a score for each; higher means that the strong model should answer."""

    rows: Sequence[RoutedQuery]
    scores: Sequence[float]
    name: str
    how: str
    is_cascade: bool  # the near model is asked before the choice, and paid
    notes: tuple[str, ...] = ()
    taught_by: Sequence[RoutingExample] | None = None  # what a baseline is fitted on too; None: out of fold


def score_by_signal(rows: Sequence[RoutedQuery], signal: str) -> Scored:
    """A signal of the near answer as it is: the least sure first, those without one before all.

    Raises:
        DataError: no row has the signal, or all have the same.
    """
    found = [row.signals.get(signal, nan) for row in rows]
    known = {value for value in found if value == value}
    if not known:
        raise DataError(f"No query has the signal {signal!r} as a finite number.")
    if len(known) == 1:
        raise DataError(f"The signal {signal!r} is {known.pop():g} on every query and tells nothing.")
    missing = sum(value != value for value in found)
    notes = (
        (f"{missing} of {len(rows)} queries have no {signal!r} and go to the strong model first.",) if missing else ()
    )
    return Scored(rows, [-value for value in found], signal, "the signal as it is", is_cascade=True, notes=notes)


def score_by_router(
    rows: Sequence[RoutedQuery],
    router: PredictiveRouter,
    *,
    train: Sequence[RoutedQuery] | None = None,
) -> Scored:
    """A router's scores, on queries that it was not fitted on.

    Args:
        rows: the queries to score.
        router: fitted anew.
        train: what it is fitted on, less the questions that are also in `rows`; None: on the other four of five folds
            of `rows`, grouped by question.

    Raises:
        DataError: a query has no text, or there are too few labelled queries.
    """
    examples = as_examples(rows)
    if train is None:
        scores = out_of_fold(router, examples, NUM_FOLDS)
        how = f"out of fold: {NUM_FOLDS} folds, grouped by question"
        return Scored(rows, scores, router.kind, how, is_cascade=router.reads_signals)
    tested = {question_key(example.text) for example in examples}
    kept = [example for example in as_examples(train) if question_key(example.text) not in tested]
    dropped = len(train) - len(kept)
    if dropped and len(kept) < MIN_EXAMPLES:
        raise DataError(
            f"{dropped} of the {len(train)} training queries are also in the table to be scored, and {len(kept)} are "
            "too few to fit a router. Train on other queries, or leave --train out for cross-validation."
        )
    scores = router.fit(kept).predict(examples)
    notes = (f"{dropped} training queries are also in the table and were left out.",) if dropped else ()
    how = f"fitted on {len(kept)} other queries"
    return Scored(rows, scores, router.kind, how, is_cascade=router.reads_signals, notes=notes, taught_by=kept)


def as_examples(rows: Sequence[RoutedQuery]) -> list[RoutingExample]:
    """Rows as routers take them.

    Raises:
        DataError: a row has no text.
    """
    for row in rows:
        if not row.text:
            raise DataError(
                f"Query {row.query_id!r} has no text in the column 'query', and a router reads texts. Add it, or name "
                "a table that has it: --questions TABLE"
            )
    return [RoutingExample(row.text, row.signals, row.weak, row.strong) for row in rows]


def report(
    scored: Scored, *, table: str, weak: str, strong: str, resamples: int = 300, with_baselines: bool = True
) -> RoutingReport:
    """The scores measured.

    Args:
        scored: the scores.
        table: the table's name.
        weak: the weak model's name.
        strong: the strong model's.
        resamples: of the bootstrap.
        with_baselines: random and oracle always cost little; length and TF-IDF ridge, fitted as the router was, need
            texts.
    """
    rows, notes = scored.rows, list(scored.notes)
    qualities = [row.weak for row in rows], [row.strong for row in rows]
    weak_costs, strong_costs, costs = _costs(rows)
    draw = random.Random(0)  # noqa: S311 - a baseline, not a secret
    others: dict[str, Sequence[float]] = {"random": [draw.random() for _ in rows]}
    if with_baselines and all(row.text for row in rows):
        others["length"] = [float(len(row.text)) for row in rows]
        try:
            examples, plain = as_examples(rows), make("tfidf-ridge")
            others["tfidf-ridge"] = (
                out_of_fold(plain, examples, NUM_FOLDS)
                if scored.taught_by is None
                else plain.fit(scored.taught_by).predict(examples)
            )
        except DataError as exc:
            notes.append(f"No TF-IDF baseline: {exc}")
    elif with_baselines:
        notes.append("No length and TF-IDF baselines: the table has no texts.")
    others["oracle"] = oracle_scores(*qualities)

    def measured(name: str, scores: Sequence[float], *, is_cascade: bool) -> Figures:
        points = cost_curve(scores, *qualities, weak_costs, strong_costs, is_cascade=is_cascade)
        curve = routing_curve(scores, *qualities)
        return Figures(
            name,
            routing_metrics(scores, *qualities),
            bootstrap_metrics(scores, *qualities, resamples=resamples),
            aiq(points),
            _matched(points, curve[-1].quality, sum(strong_costs) / len(rows)),
            tuple(CurvePoint(i / _CURVE_STEPS, quality_at(curve, i / _CURVE_STEPS)) for i in range(_CURVE_STEPS + 1)),
        )

    differences = []
    for name, scores in others.items():
        if name not in ("oracle", scored.name):
            difference, interval = apgr_difference(scored.scores, scores, *qualities, resamples=resamples)
            differences.append(Difference(name, difference, interval))
    n = len(rows)
    return RoutingReport(
        table,
        weak,
        strong,
        n,
        sum(qualities[0]) / n,
        sum(qualities[1]) / n,
        scored.how,
        costs,
        measured(scored.name, scored.scores, is_cascade=scored.is_cascade),
        tuple(measured(name, scores, is_cascade=False) for name, scores in others.items()),
        tuple(differences),
        tuple(notes),
    )


def load_with_texts(
    path: str | Path,
    *,
    weak: str,
    strong: str,
    value: str,
    dataset: str | None,
    signals: Sequence[str],
    questions: str | Path | None,
) -> list[RoutedQuery]:
    """`load_routed`, with texts from a second table of `query_id` and `query` where one is named."""
    rows = load_routed(path, weak=weak, strong=strong, value=value, dataset=dataset, signals=signals)
    if questions is None:
        return rows
    texts = {
        str(row.get("query_id")): str(row.get("query") or "")
        for row in read_rows(Path(questions), columns=("query_id", "query"))
    }
    return [replace(row, text=texts.get(row.query_id, row.text)) for row in rows]


def load_also(paths: Sequence[Path], rows: Sequence[RoutedQuery], *, value: str) -> list[list[RoutingExample]]:
    """Other tables as `make` takes them, see `load_others`, without the questions of `rows`, which are measured."""
    measured = {question_key(row.text) for row in rows}
    tables = [as_examples(load_others(path, value=value)) for path in paths]
    return [[each for each in table if question_key(each.text) not in measured] for table in tables]


def _costs(rows: Sequence[RoutedQuery]) -> tuple[list[float], list[float], str]:
    known = [(row.weak_cost, row.strong_cost) for row in rows]
    if any(None in pair for pair in known) or not any(strong for _, strong in known):
        return [0.0] * len(rows), [1.0] * len(rows), "in calls of the strong model; the weak one counts as free"
    return [weak or 0.0 for weak, _ in known], [strong or 0.0 for _, strong in known], "the table's column 'cost'"


def _matched(points: Sequence[CostPoint], strong_quality: float, strong_cost: float) -> tuple[MatchedCost, ...]:
    found = []
    for share in _MATCHED:
        quality = share * strong_quality
        cost = cost_at_quality(points, quality)
        found.append(MatchedCost(share, quality, cost, 1 - cost / strong_cost if strong_cost else nan))
    return tuple(found)
