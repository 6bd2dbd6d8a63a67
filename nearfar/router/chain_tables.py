"""From a table of what several models made of the same queries to a chain's thresholds, and to a policy of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from nearfar import __version__
from nearfar.errors import ConfigError, DataError

from .chains import ChainFit, ChainTier, chain_policy
from .labels import read_rows, to_number
from .paired import COLUMNS, check_columns, keep_row
from .policies import DataFingerprint, Policy, Reference, TierPolicy
from .promises import rising_curve

_Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ChainTable:
    """The queries that every model of a chain has answered, in the table's order."""

    tiers: tuple[ChainTier, ...]  # cheapest first; their scores are the signals
    signals: tuple[str, ...]  # of each tier but the last
    num_left_out: int  # queries that some model has not answered
    has_costs: bool  # False: the cost of an answer is 1, and a chain's the number of its calls
    sha256: str  # of all the above

    @property
    def n(self) -> int:
        """How many queries."""
        return len(self.tiers[0].outcomes)


def load_chain(path: str | Path, links: Sequence[str], *, columns: Mapping[str, str] | None = None) -> ChainTable:
    """The chain's outcomes, costs and signals in a table of one row per query and model.

    Args:
        path: JSONL, CSV (both also gzipped) or parquet, with `query_id`, `model`, `correct`, the signals' columns, and
            perhaps `dataset` (ids are unique within it) and `cost`.
        links: cheapest first, each MODEL=SIGNAL by the value in `model` and the column, the last a model alone.
        columns: our name to the table's, where they differ.

    Raises:
        ConfigError: no such file, a key of `columns` that is none of `paired.COLUMNS`, or links that make no chain.
        DataError: a column, a model or a signal is missing, an id comes twice, or a number is none.
    """
    path = Path(path)
    if unknown := sorted(set(columns or {}) - set(COLUMNS)):
        raise ConfigError(f"No column {unknown[0]!r} to rename; there are {', '.join(map(repr, COLUMNS))}.")
    models, signals = _links(links)
    names = {name: (columns or {}).get(name, name) for name in COLUMNS}
    rows = _rows(path, models, signals, names)
    shared = [key for key in rows[models[0]] if all(key in rows[model] for model in models)]
    everything = set[_Key]().union(*rows.values())
    if not shared:
        raise DataError(f"{str(path)!r} has no query that all of {', '.join(map(repr, models))} answered.")

    def numbers(model: str, column: str) -> list[float | None]:
        return [_number(rows[model][key], column, key, path) for key in shared]

    def all_of(model: str, column: str) -> list[float]:
        found = numbers(model, column)
        for key, value in zip(shared, found, strict=True):
            if value is None or not isfinite(value):
                raise DataError(
                    f"{str(path)!r}: {column!r} of {model!r} is {rows[model][key].get(column)!r} on query {key[1]!r}, "
                    "not a usable number. Leave the query out.",
                    path=str(path),
                )
        return [value for value in found if value is not None]

    costs = {model: numbers(model, names["cost"]) for model in models}
    has_costs = all(cost is not None and isfinite(cost) for found in costs.values() for cost in found)
    tiers = tuple(
        ChainTier(
            model,
            all_of(model, names["correct"]),
            [cost or 0.0 for cost in costs[model]] if has_costs else [1.0] * len(shared),
            all_of(model, signal) if signal else None,
        )
        for model, signal in zip(models, [*signals, None], strict=True)
    )
    told = [[tier.name, tier.outcomes, tier.costs, tier.scores] for tier in tiers]
    digest = hashlib.sha256(msgspec.json.encode([signals, shared, told])).hexdigest()
    return ChainTable(tiers, tuple(signals), len(everything) - len(shared), has_costs, digest)


def chain_table_policy(table: ChainTable, fit: ChainFit, *, name: str = "chain", version: int = 1) -> Policy:
    """A policy whose tiers accept exactly the answers that the fit's thresholds on the raw signals accept.

    Args:
        table: what the chain was fitted to.
        fit: of `ChainFitter`, on the table's tiers.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: the fit found no setting, a signal does not rise with correctness, or scores of 1 in floating point
            hide differences.
    """
    if fit.setting is None:
        raise DataError("No setting of the chain is good enough; label more queries, or allow more errors.")
    tiers, thresholds, bounds = {}, [], []
    for tier, signal, threshold, bound in zip(
        table.tiers[:-1], table.signals, fit.setting.thresholds, fit.setting.abstain_below, strict=True
    ):
        values = list(tier.scores or ())
        scorer, on_curve = rising_curve(signal, values, tier.outcomes, [threshold, bound])
        thresholds.append(on_curve[0])
        bounds.append(on_curve[1])
        tiers[tier.name] = TierPolicy(
            model=tier.name,
            scorer=scorer,
            threshold=None,
            data=DataFingerprint(table.sha256, table.n, sum(tier.outcomes) / table.n),
            reference=Reference.of(signal, values),
        )
    unset = Policy(name=name, version=version, created_at=datetime.now(UTC), nearfar_version=__version__, tiers=tiers)
    scored = replace(fit, setting=replace(fit.setting, thresholds=tuple(thresholds), abstain_below=tuple(bounds)))
    return chain_policy(unset, list(tiers), scored)


def _links(links: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(links) < 2:
        raise ConfigError("A chain has two links or more: --chain small=mean_logprob --chain large.")
    models, signals = [], []
    for number, link in enumerate(links, start=1):
        if number == len(links):
            models.append(link)
            break
        model, _, signal = link.rpartition("=")
        if not (model and signal):
            raise ConfigError(
                f"--chain {link!r} is not the last link and names no signal; say {link.strip('=')}=COLUMN, such as "
                f"{link.strip('=')}=mean_logprob."
            )
        models.append(model)
        signals.append(signal)
    if twice := next((model for model in models if models.count(model) > 1), None):
        raise ConfigError(f"--chain names {twice!r} twice.")
    return models, signals


def _rows(
    path: Path, models: Sequence[str], signals: Sequence[str], names: Mapping[str, str]
) -> dict[str, dict[_Key, Mapping[str, Any]]]:
    rows: dict[str, dict[_Key, Mapping[str, Any]]] = {model: {} for model in models}
    seen: set[str] = set()
    for number, row in enumerate(read_rows(path, columns={*names.values(), *signals}), start=1):
        if number == 1:
            for signal in signals:
                check_columns(row, names, signal, path)
        model = str(row.get(names["model"]))
        seen.add(model)
        if model in rows:
            keep_row(rows[model], row, model, names, path)
    if lacking := next((model for model, found in rows.items() if not found), None):
        has = ", ".join(map(repr, sorted(seen)[:20])) or "none"
        raise DataError(f"{str(path)!r} has no rows of {lacking!r}; its models are {has}.", path=str(path))
    return rows


def _number(row: Mapping[str, Any], column: str, key: _Key, path: Path) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        return to_number(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise DataError(
            f"{str(path)!r}, query {key[1]!r}: {column!r} is {value!r}, not a number.", path=str(path)
        ) from exc
