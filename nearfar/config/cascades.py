"""The cascades of the config: tiers in order, and what chooses and judges among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt

from .models import ModelSettings, model_names, placement
from .source import Section, Source, listed

#: The cascade that a query names when it names nothing.
AUTO = "auto"

#: Signals that a tier reads only where they are asked for: the first four take calls; docs/routing.md has the price.
SignalName: TypeAlias = Literal[
    "self_consistency",
    "semantic_entropy",
    "p_true",
    "self_check",
    "stated_confidence",
    "span",
    "choices",
    "answer_text",
    "query",
    "similar_queries",
    "predicted_gain",
]

#: Those of them that take calls.
PAID_SIGNALS = frozenset({"self_consistency", "semantic_entropy", "p_true", "self_check", "stated_confidence"})

EmbedderName: TypeAlias = Literal["static", "minilm"]


class TierSettings(Section):
    """One step of a cascade; a bare string in the file is its model."""

    model: str
    name: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    draft: bool = False  # hand the best answer so far on to this tier
    deadline_s: PositiveFloat | None = None
    signals: tuple[SignalName, ...] = ()  # beyond those that every answer carries
    samples: int = Field(default=5, ge=2, le=100)  # for self_consistency and semantic_entropy
    sample_temperature: float = Field(default=0.7, gt=0, le=2)
    same_by: Literal["answer", "embedding", "entailment"] = "answer"  # which samples say the same
    judge: str | None = None  # the model that judges entailment; None: the tier's own
    abstain_below: float | None = Field(default=None, ge=0, le=1)  # a score below which no further tier is asked
    error_cases: Path | Literal["told"] | None = None  # past mistakes to show this tier: JSONL, or what was told
    num_error_cases: PositiveInt = 5  # how many of them, the likest


class RouterSettings(Section):
    """A fitted router that picks the tier to begin at."""

    file: Path  # made by `nearfar evaluate --save`
    threshold: float  # expected gain from which the strong tier is chosen
    weak: str | None = None  # the tier whose model it was fitted on as the weak one; None: the first
    strong: str | None = None  # None: the last
    use: Literal["order", "skip", "pick"] = "order"
    explore: float = Field(0.0, ge=0, le=1)  # share of queries left to a coin, so that the log can judge other routers


class BanditSettings(Section):
    """A bandit that picks the tier to begin at and learns from outcomes."""

    rule: Literal["thompson", "linucb"] = "thompson"
    features: tuple[str, ...] = ("query_length", "query_numbers", "query_symbols")
    budget_usd: PositiveFloat | None = None  # mean cost per query to keep to; None: cost does not matter
    floor: float = Field(0.05, gt=0, lt=0.5)  # the least probability of each tier
    use: Literal["order", "skip", "pick"] = "order"


class MonitorSettings(Section):
    """Watches what the policy promises, on outcomes and signals as they come."""

    alpha: float | None = Field(default=None, gt=0, lt=1)  # wrong among the accepted; None: as the policy promises
    false_alarm_rate: float = Field(0.05, gt=0, lt=1)
    on_alarm: Literal["defer", "tell"] = "defer"  # defer: the tier's answers are accepted no more


class CascadeSettings(Section):
    """Tiers in order."""

    tiers: tuple[TierSettings, ...] = Field(min_length=1)
    commit: Literal["answer", "prefix"] = "answer"
    prefix_tokens: PositiveInt = 16
    policy: Path | None = None  # made by `nearfar calibrate`
    policies: tuple[Path, ...] = ()  # more of them, for queries that name one as their quality
    router: RouterSettings | None = None
    bandit: BanditSettings | None = None
    monitor: MonitorSettings | None = None
    labelled_queries: Path | None = None  # for the signal similar_queries: `query`, and `correct` where known
    embedder: EmbedderName = "static"  # for similar_queries, same_by = "embedding" and routers that embed


def read_cascades(
    source: Source, tables: Mapping[str, Any], models: Mapping[str, ModelSettings], routers: Collection[str]
) -> dict[str, CascadeSettings]:
    """The cascades of [cascades]; where none is called auto, one of all models, the near ones first.

    Args:
        source: what the tables were read from.
        tables: by name.
        models: that tiers may name.
        routers: names that are taken.

    Raises:
        ConfigError: a table is wrong, or two things have one name.
    """
    cascades: dict[str, CascadeSettings] = {}
    known = model_names(models)
    for name, where, table in source.named("cascades", tables):
        for others, kind in ((models, "model"), (routers, "router")):
            if name in others:
                raise source.error(f"{name!r} is both a {kind} and a cascade; rename one", name)
        cascade = cascades[name] = source.validate(CascadeSettings, _values(source, where, table, known), where)
        _check_tiers(source, where, cascade, known)
        _check_signals(source, where, cascade, known)
        _check_choice(source, where, cascade)
        if cascade.commit == "answer" and "prefix_tokens" in table:
            raise source.error(f'{where} sets prefix_tokens, which needs commit = "prefix"', "prefix_tokens")
    if AUTO not in cascades and AUTO not in routers:
        if AUTO in models:
            raise source.error(f"A model may not be called {AUTO!r}, the name of the default cascade; rename it", AUTO)
        near_first = sorted(models, key=lambda name: placement(models[name]) == "far")  # stable: the file's order
        cascades[AUTO] = CascadeSettings(tiers=tuple(TierSettings(model=name) for name in near_first))
    return cascades


def _values(source: Source, where: str, table: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The table with its short forms written out, its paths resolved and its keys known."""
    source.check_keys(where, table, CascadeSettings)
    values = source.with_paths(table, "policy", "labelled_queries")
    tiers = table.get("tiers")
    if not isinstance(tiers, list) or not tiers:
        raise source.error(f"{where}.tiers must be a list of models, such as [{listed(known)}]", "tiers")
    values["tiers"] = [{"model": tier} if isinstance(tier, str) else tier for tier in tiers]
    for i, tier in enumerate(values["tiers"]):
        if not isinstance(tier, dict):
            raise source.error(f"{where}.tiers[{i}] must be a model's name or a table, not {tier!r}", "tiers")
        source.check_keys(f"{where}.tiers[{i}]", tier, TierSettings)
        if tier.get("error_cases") != "told":
            values["tiers"][i] = source.with_paths(tier, "error_cases")
    if isinstance(values.get("policies"), list):
        values["policies"] = [source.resolve(str(path)) for path in values["policies"]]
    for key, cls in (("router", RouterSettings), ("bandit", BanditSettings), ("monitor", MonitorSettings)):
        if isinstance(values.get(key), dict):
            source.check_keys(f"{where}.{key}", values[key], cls)
    if isinstance(values.get("router"), dict):
        values["router"] = source.with_paths(values["router"], "file")
    return values


def _check_tiers(source: Source, where: str, cascade: CascadeSettings, known: Sequence[str]) -> None:
    """What the tiers must be beside each other."""
    seen: set[str] = set()
    for tier in cascade.tiers:
        source.check_model(where, tier.model, known)
        name = tier.name or tier.model
        if name in seen:
            raise source.error(f"{where} has two tiers named {name!r}; keep one, or give one another name", "tiers")
        seen.add(name)
        if cascade.policy and tier.threshold is not None:
            raise source.error(
                f"{where} has a policy and a threshold on {name!r}; the policy sets it: keep one", "tiers"
            )
    if cascade.tiers[0].draft:
        raise source.error(f"{where}: the first tier has no earlier draft; remove draft = true", "draft")


def _check_signals(source: Source, where: str, cascade: CascadeSettings, known: Sequence[str]) -> None:
    """What the tiers' signals need besides their names."""
    for tier in cascade.tiers:
        name = tier.name or tier.model
        if tier.judge is not None and tier.judge not in known:
            raise source.error(
                f"{where}: the judge {tier.judge!r} of tier {name!r} is no model; the models are {listed(known)}",
                "judge",
            )
        if tier.judge is not None and tier.same_by != "entailment":
            raise source.error(f'{where}: tier {name!r} has a judge, which needs same_by = "entailment"', "judge")
        if cascade.commit == "prefix" and PAID_SIGNALS & set(tier.signals) and tier is not cascade.tiers[-1]:
            raise source.error(
                f'{where}: commit = "prefix" judges the first tokens, and the signals of tier {name!r} need the '
                "whole answer; keep one",
                "commit",
            )
        if "similar_queries" in tier.signals and cascade.labelled_queries is None:
            raise source.error(f"{where}: similar_queries needs labelled_queries, a file of them", "signals")
        if "predicted_gain" in tier.signals and cascade.router is None:
            raise source.error(f"{where}: predicted_gain needs router, a table with its file", "signals")


def _check_choice(source: Source, where: str, cascade: CascadeSettings) -> None:
    """What a router or a bandit needs to choose among."""
    names = [tier.name or tier.model for tier in cascade.tiers]
    if (cascade.router or cascade.bandit) and len(names) < 2:
        raise source.error(f"{where} has one tier, so that there is nothing to choose; add one", "tiers")
    if cascade.router and cascade.bandit:
        raise source.error(f"{where} has a router and a bandit; keep one to choose the tier", "bandit")
    for role in ("weak", "strong") if cascade.router else ():
        named = getattr(cascade.router, role)
        if named is not None and named not in names:
            raise source.error(f"{where}.router.{role} is {named!r}, no tier; the tiers are {listed(names)}", role)
