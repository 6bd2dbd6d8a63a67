"""Outcome tables in long form: what a near and a far model made of the same queries, and the near answer's signal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from nearfar.errors import ConfigError, DataError

from .labels import read_rows, to_number

Missing: TypeAlias = Literal["refuse", "defer"]

#: Columns of a table in long form, by our names.
COLUMNS = ("dataset", "query_id", "model", "correct", "cost")

_Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PairedOutcomes:
    """Queries that the near model answered, in the table's order, and what the far one made of them."""

    near: str
    far: str
    signal: str
    signals: tuple[float, ...]  # -inf where there is none and the query is to be deferred
    near_outcomes: tuple[float, ...]  # in [0, 1]
    far_outcomes: tuple[float, ...] | None  # None: the far model lacks some of the queries
    near_costs: tuple[float, ...] | None  # None: the table has none
    far_costs: tuple[float, ...] | None
    sha256: str  # of all the above

    @property
    def n(self) -> int:
        """How many queries."""
        return len(self.signals)


def load_paired(
    path: str | Path,
    *,
    near: str,
    far: str,
    signal: str,
    columns: Mapping[str, str] | None = None,
    missing: Missing = "refuse",
) -> PairedOutcomes:
    """The two models' outcomes in a table of one row per query and model.

    Args:
        path: JSONL, CSV (both also gzipped) or parquet, with `query_id`, `model`, `correct`, the signal's column, and
            perhaps `dataset` (ids are unique within it) and `cost`.
        near: the near model's value in `model`.
        far: the far model's.
        signal: the column of the near answer's signal; higher is surer.
        columns: our name to the table's, where they differ.
        missing: a near answer without a signal is refused, or kept as one that always defers.

    Raises:
        ConfigError: no such file, or a key of `columns` that is none of `COLUMNS`.
        DataError: a column, a model or a signal is missing, an id comes twice, or a number is none.
    """
    path = Path(path)
    if unknown := sorted(set(columns or {}) - set(COLUMNS)):
        raise ConfigError(f"No column {unknown[0]!r} to rename; there are {', '.join(map(repr, COLUMNS))}.")
    if near == far:
        raise ConfigError(f"--near and --far are both {near!r}; name two models.")
    names = {name: (columns or {}).get(name, name) for name in COLUMNS}
    rows: dict[str, dict[_Key, Mapping[str, Any]]] = {near: {}, far: {}}
    needed = {*names.values(), signal}
    is_usual = names["model"] == "model"
    for number, row in enumerate(read_rows(path, models=rows if is_usual else None, columns=needed), start=1):
        if number == 1:
            check_columns(row, names, signal, path)
        if (model := row.get(names["model"])) in rows:
            keep_row(rows[model], row, model, names, path)
    for model, found in rows.items():
        if not found:
            raise _lacks(model, names, signal, path)
    return _paired(rows[near], rows[far], names, near, far, signal, missing, path)


def _lacks(model: str, names: Mapping[str, str], signal: str, path: Path) -> DataError:
    models: set[str] = set()
    for number, row in enumerate(read_rows(path, columns={*names.values(), signal}), start=1):
        if number == 1:
            check_columns(row, names, signal, path)
        models.add(str(row.get(names["model"])))
    has = ", ".join(map(repr, sorted(models)[:20])) or "none"
    return DataError(f"{str(path)!r} has no rows of {model!r}; its models are {has}.", path=str(path))


def keep_row(
    found: dict[tuple[str, str], Mapping[str, Any]],
    row: Mapping[str, Any],
    model: str,
    names: Mapping[str, str],
    path: Path,
) -> None:
    """Adds a row to those of its model, by data set and query.

    Raises:
        DataError: the query is there already.
    """
    key = (str(row.get(names["dataset"], "")), str(row.get(names["query_id"])))
    if key in found:
        raise DataError(
            f"{str(path)!r}: {model!r} has query {key[1]!r} a second time, and answers counted twice would feign "
            "certainty. Keep one row per query and model.",
            path=str(path),
        )
    found[key] = row


def check_columns(row: Mapping[str, Any], names: Mapping[str, str], signal: str, path: Path) -> None:
    """Refuses a row without an id, a model, an outcome or the signal.

    Raises:
        DataError: naming the column, and those that there are.
    """
    for name in ("query_id", "model", "correct"):
        if names[name] not in row:
            raise DataError(
                f"{str(path)!r} has no column {names[name]!r}; it has {', '.join(map(repr, row))}. Rename it, or say "
                f"--column {name}=THEIRS.",
                path=str(path),
            )
    if signal not in row:
        raise DataError(
            f"{str(path)!r} has no column {signal!r} for the signal; it has {', '.join(map(repr, row))}.",
            path=str(path),
        )


def _paired(
    near_rows: Mapping[_Key, Mapping[str, Any]],
    far_rows: Mapping[_Key, Mapping[str, Any]],
    names: Mapping[str, str],
    near: str,
    far: str,
    signal: str,
    missing: Missing,
    path: Path,
) -> PairedOutcomes:
    def number(row: Mapping[str, Any], column: str, key: _Key) -> float | None:
        value = row.get(column)
        if value is None or value == "":
            return None
        try:
            return to_number(value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise DataError(
                f"{str(path)!r}, query {key[1]!r}: {column!r} is {value!r}, not a number.", path=str(path)
            ) from exc

    def outcome(row: Mapping[str, Any], key: _Key) -> float:
        value = number(row, names["correct"], key)
        if value is None or not 0 <= value <= 1:
            raise DataError(
                f"{str(path)!r}, query {key[1]!r}: {names['correct']!r} is {row.get(names['correct'])!r}; outcomes are "
                "in [0, 1].",
                path=str(path),
            )
        return value

    def costs(rows: Mapping[_Key, Mapping[str, Any]]) -> tuple[float, ...] | None:
        found = [number(rows[key], names["cost"], key) if key in rows else None for key in near_rows]
        return None if any(cost is None for cost in found) else tuple(cost for cost in found if cost is not None)

    signals = []
    for key, row in near_rows.items():
        value = number(row, signal, key)
        if value is None or not isfinite(value):
            if missing == "refuse":
                raise DataError(
                    f"{str(path)!r}: the signal {signal!r} of {near!r} is {row.get(signal)!r} on query {key[1]!r}, not "
                    "a usable number. Leave such rows out, or say --missing defer: they are then never accepted.",
                    path=str(path),
                )
            value = -inf
        signals.append(value)
    near_outcomes = tuple(outcome(row, key) for key, row in near_rows.items())
    has_far = all(key in far_rows for key in near_rows)
    far_outcomes = tuple(outcome(far_rows[key], key) for key in near_rows) if has_far else None
    near_costs, far_costs = costs(near_rows), costs(far_rows)
    digest = hashlib.sha256(
        msgspec.json.encode([near, far, signal, list(near_rows), signals, near_outcomes, far_outcomes])
    ).hexdigest()
    return PairedOutcomes(near, far, signal, tuple(signals), near_outcomes, far_outcomes, near_costs, far_costs, digest)
