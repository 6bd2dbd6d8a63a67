"""The routers of functional tokens in the config: who chooses, and the workers to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from .models import ModelSettings, model_names
from .source import Section, Source, did_you_mean, listed


class WorkerSettings(Section):
    """Somebody whom a router of functional tokens may choose."""

    model: str
    description: str = Field(min_length=1)  # what it is good at, as the choosing model is told
    label: str | None = None  # one token of the choosing model's tokenizer; None: a letter
    next: tuple[str, ...] = ()  # workers that may go on with its answer
    deadline_s: PositiveFloat | None = None


class TokenRouterSettings(Section):
    """A near model names the worker of each query by a token; a target like a cascade."""

    model: str  # who chooses
    workers: dict[str, WorkerSettings] = Field(min_length=2)
    general: str  # the worker that takes what nobody is chosen for with enough certainty
    style: Literal["described", "trained"] = "described"  # trained: for a model with an adapter for these workers
    policy: Path | None = None  # made by `nearfar train`
    abstain_below: float = Field(0.0, ge=0, le=1)  # the likeliest worker's probability
    rewrite: bool = False  # ask the chosen worker in the words of its trade
    max_hops: int = Field(1, ge=0, le=10)  # handovers along `next`
    explore: float = Field(0.0, ge=0, le=1)  # share of queries whose worker is drawn, so that the log can judge others


def read_token_routers(
    source: Source, tables: Mapping[str, Any], models: Mapping[str, ModelSettings]
) -> dict[str, TokenRouterSettings]:
    """The routers of [routers].

    Raises:
        ConfigError: a table is wrong, or a model has a router's name.
    """
    routers: dict[str, TokenRouterSettings] = {}
    known = model_names(models)
    for name, where, table in source.named("routers", tables):
        if name in models:
            raise source.error(f"{name!r} is both a model and a router; rename one", name)
        source.check_keys(where, table, TokenRouterSettings)
        source.check_table(f"{where}.workers", table.get("workers", {}), "workers")
        for worker, told in table.get("workers", {}).items():
            source.check_table(f"{where}.workers.{worker}", told, worker)
            source.check_keys(f"{where}.workers.{worker}", told, WorkerSettings)
        router = source.validate(TokenRouterSettings, source.with_paths(table, "policy"), where)
        source.check_model(where, router.model, known)
        for worker, settings in router.workers.items():
            source.check_model(f"{where}.workers.{worker}", settings.model, known)
        if router.general not in router.workers:
            raise source.error(
                f"{where}.general is {router.general!r}, which is no worker"
                f"{did_you_mean(router.general, router.workers)}; the workers are {listed(router.workers)}",
                "general",
            )
        routers[name] = router
    return routers
