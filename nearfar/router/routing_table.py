"""Outcome tables as routers are fitted and measured on: per query, what a weak and a strong model made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from nearfar.errors import ConfigError, DataError
from nearfar.types import Signals

from .answer_text import ANSWER_TEXT_SIGNALS, answer_text_signals
from .labels import read_rows, to_number

#: Stands for the signals of the weak answer's own text, which are read off the column `response`.
ANSWER_TEXT = "answer_text"

#: Columns whose names begin so are a model's own word on how sure it was of its answer.
_CONFIDENCE = "confidence"

#: A signal of the text that is the same for more of the answers than this is left out.
_MOST_ALIKE = 0.95

_Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RoutedQuery:
    """A query, and what both models made of it: means over its repeated rows.

    Attributes:
        dataset: as the table has it; "" where it has none.
        query_id: as the table has it; unique within the dataset.
        text: the question; "" where the table has none.
        weak: quality of the weak model's answer.
        strong: quality of the strong model's.
        weak_cost: of the weak model's answer, in the table's unit; None: the table does not say.
        strong_cost: of the strong model's.
        signals: read off the weak model's answer; those that are missing or no finite number are absent.
    """

    dataset: str
    query_id: str
    text: str
    weak: float
    strong: float
    weak_cost: float | None = None
    strong_cost: float | None = None
    signals: Signals = field(default_factory=dict)


@dataclass(slots=True)
class _Mean:
    """Running means of the cells of repeated rows."""

    totals: dict[str, float]
    counts: dict[str, int]

    def add(self, name: str, value: float | None) -> None:
        if value is not None:
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def get(self, name: str) -> float | None:
        count = self.counts.get(name)
        return self.totals[name] / count if count else None


def load_routed(
    path: str | Path,
    *,
    weak: str,
    strong: str,
    value: str = "correct",
    dataset: str | None = None,
    signals: Sequence[str] = (),
) -> list[RoutedQuery]:
    """The queries of a table that both models answered, in the table's order.

    Rows that repeat a query and a model (duplicates, the turns of a conversation) are averaged.

    Args:
        path: JSONL, CSV (both also gzipped) or parquet, one row per query and model, with `query_id`, `model`, the
            column `value`, and perhaps `query` (the text), `dataset` and `cost`.
        weak: the cheaper model's name in `model`.
        strong: the other's.
        value: the column that says how good an answer was.
        dataset: only rows with this `dataset`; None: all.
        signals: columns of the weak model's rows to take as signals; `ANSWER_TEXT` stands for those of its `response`,
            see `answer_text`.

    Raises:
        ConfigError: no such file, or both models are the same.
        DataError: a column, model or dataset is missing, a cell is no number, or no query has both models.
    """
    path = Path(path)
    if weak == strong:
        raise ConfigError(f"--weak and --strong are both {weak!r}. Name two models.")
    columns = ["response" if name == ANSWER_TEXT else name for name in signals]
    reads_answer = ANSWER_TEXT in signals
    names = [each for name in signals for each in (ANSWER_TEXT_SIGNALS if name == ANSWER_TEXT else (name,))]
    needed = {"dataset", "query_id", "query", "model", "cost", value, *columns}
    means: dict[str, dict[_Key, _Mean]] = {weak: {}, strong: {}}
    texts: dict[_Key, str] = {}
    seen_datasets: set[str] = set()
    number = 0
    for number, row in enumerate(read_rows(path, models=means, columns=needed), start=1):
        if number == 1:
            _require_columns(row, ("query_id", "model", value, *columns, *(("query",) if reads_answer else ())), path)
        where = str(row.get("dataset") or "")
        if dataset is not None and where != dataset:
            seen_datasets.add(where)
            continue
        model = row["model"]
        key = (where, str(row["query_id"]))
        mean = means[model].setdefault(key, _Mean({}, {}))
        mean.add(value, _number(row, value, key, path))
        mean.add("cost", _number(row, "cost", key, path))
        if model == weak:
            texts.setdefault(key, row.get("query") or "")
            for name in signals:
                if name != ANSWER_TEXT:
                    mean.add(name, _number(row, name, key, path))
            if reads_answer:
                for name, told in answer_text_signals(row.get("query") or "", str(row.get("response") or "")).items():
                    mean.add(name, told)
    _require_models(means, path, number, dataset, seen_datasets)
    found = []
    for key, own in means[weak].items():
        other = means[strong].get(key)
        low, high = own.get(value), other.get(value) if other else None
        if other is None or low is None or high is None:
            continue
        read = {name: own.get(name) for name in names}
        found.append(
            RoutedQuery(
                *key,
                texts[key],
                low,
                high,
                own.get("cost"),
                other.get("cost"),
                {name: cell for name, cell in read.items() if cell is not None},
            )
        )
    if not found:
        raise DataError(f"{str(path)!r} has no query with a {value!r} of both {weak!r} and {strong!r}.", path=str(path))
    return found


def load_others(path: str | Path, *, value: str = "correct") -> list[RoutedQuery]:
    """What a table's models make of its queries, in two: the less accurate half as `weak`, the other as `strong`.

    A middle model counts in both halves, and so does an only one. Queries that a half has no answer to are left out.

    Args:
        path: as for `load_routed`, with `query`.
        value: the column that says how good an answer was.

    Raises:
        ConfigError: no such file.
        DataError: a column is missing, a cell is no number, or no query has a text and both halves.
    """
    path = Path(path)
    means: dict[str, dict[_Key, _Mean]] = {}
    texts: dict[_Key, str] = {}
    for number, row in enumerate(read_rows(path, columns={"dataset", "query_id", "query", "model", value}), start=1):
        if number == 1:
            _require_columns(row, ("query_id", "query", "model", value), path)
        key = (str(row.get("dataset") or ""), str(row["query_id"]))
        if row["query"]:
            texts.setdefault(key, row["query"])
            means.setdefault(str(row["model"]), {}).setdefault(key, _Mean({}, {})).add(
                value, _number(row, value, key, path)
            )
    known = {
        model: {key: cell for key, mean in each.items() if (cell := mean.get(value)) is not None}
        for model, each in means.items()
    }
    order = sorted(filter(known.get, known), key=lambda model: (fmean(known[model].values()), model))
    half = (len(order) + 1) // 2
    found = []
    for key, text in texts.items():
        weak = [known[model][key] for model in order[:half] if key in known[model]]
        strong = [known[model][key] for model in order[len(order) - half :] if key in known[model]]
        if weak and strong:
            found.append(RoutedQuery(*key, text, fmean(weak), fmean(strong)))
    if not found:
        raise DataError(f"{str(path)!r} has no query with a text and a {value!r}.", path=str(path))
    return found


def confidence_columns(path: str | Path, model: str) -> tuple[str, ...]:
    """The columns called `confidence…` that have different finite numbers in a model's rows, in the table's order.

    Raises:
        ConfigError: no such file.
        DataError: it cannot be read.
    """
    path = Path(path)
    names = [name for name in next(iter(read_rows(path)), {}) if name and name.startswith(_CONFIDENCE)]
    seen: dict[str, set[float]] = {name: set() for name in names}
    for row in read_rows(path, models={model}, columns={"model", *names}) if names else ():
        for name in names:
            with suppress(TypeError, ValueError, OverflowError):
                seen[name].add(to_number(row.get(name)))
    return tuple(name for name, found in seen.items() if sum(map(isfinite, found)) > 1)


def signal_names(columns: Sequence[str], rows: Sequence[RoutedQuery]) -> tuple[str, ...]:
    """The names under which `load_routed` gives the signals of these columns.

    Of those that `ANSWER_TEXT` stands for, the ones that differ among the rows: what nearly all answers share tells
    nothing of them.
    """
    found: list[str] = []
    for name in columns:
        found += [each for each in ANSWER_TEXT_SIGNALS if _differs(each, rows)] if name == ANSWER_TEXT else [name]
    return tuple(found)


def _differs(signal: str, rows: Sequence[RoutedQuery]) -> bool:
    counts = Counter(row.signals.get(signal) for row in rows)
    return bool(counts) and max(counts.values()) <= _MOST_ALIKE * len(rows)


def _require_columns(row: Mapping[str, Any], names: Sequence[str], path: Path) -> None:
    for name in names:
        if name not in row:
            has = ", ".join(map(repr, filter(None, row)))
            raise DataError(
                f"{str(path)!r} has no column {name!r}; of those that matter here it has {has}.", path=str(path)
            )


def _require_models(
    means: Mapping[str, Mapping[_Key, _Mean]], path: Path, num_rows: int, dataset: str | None, others: set[str]
) -> None:
    if num_rows and dataset is not None and not any(means.values()):
        has = ", ".join(map(repr, sorted(others)[:20]))
        raise DataError(f"{str(path)!r} has no rows with the dataset {dataset!r}; it has {has}.", path=str(path))
    for model, rows in means.items():
        if rows:
            continue
        models = {str(row["model"]) for row in read_rows(path, columns=("model",)) if row.get("model") is not None}
        has = ", ".join(map(repr, sorted(models)[:20])) or "no column 'model'"
        raise DataError(f"{str(path)!r} has no rows of {model!r}; it has {has}.", path=str(path))


def _number(row: Mapping[str, Any], name: str, key: _Key, path: Path) -> float | None:
    """The cell as a finite number; None where it is empty or not finite."""
    cell = row.get(name)
    if cell is None or cell == "":
        return None
    try:
        number = to_number(cell)
    except (TypeError, ValueError, OverflowError) as exc:
        raise DataError(
            f"{str(path)!r}, query {key[1]!r}: {name!r} is {cell!r}, not a number.", path=str(path)
        ) from exc
    return number if isfinite(number) else None
