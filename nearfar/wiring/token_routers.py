"""The routers of functional tokens that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nearfar.config.token_routers import TokenRouterSettings
from nearfar.router.cascade import Cascade, Tier
from nearfar.types import ChatModel

if TYPE_CHECKING:
    from nearfar.router.functional_tokens.chooser import FunctionalTokens
    from nearfar.router.functional_tokens.graph import WorkerGraph


def token_cascade(name: str, settings: TokenRouterSettings, models: Mapping[str, ChatModel]) -> Cascade:
    from nearfar.router.functional_tokens.guide import TokenGuide

    tokens = token_router(name, settings, models[settings.model])
    return Cascade(
        tuple(
            Tier(models[told.model], name=worker, deadline_s=told.deadline_s)
            for worker, told in settings.workers.items()
        ),
        name,
        policy=tokens.policy.label if tokens.policy else "uncalibrated",
        guide=TokenGuide(tokens, rewrites=settings.rewrite, max_hops=settings.max_hops, explore=settings.explore),
    )


def token_router(name: str, settings: TokenRouterSettings, model: ChatModel) -> FunctionalTokens:
    """The router of functional tokens that `model` chooses for.

    Raises:
        ConfigError: its workers make no graph, its policy is for others, or the model gives no log-probabilities.
        DataError: its policy cannot be read.
    """
    from nearfar.router.functional_tokens.chooser import FunctionalTokens
    from nearfar.router.functional_tokens.policy import TokenPolicy

    return FunctionalTokens(
        model,
        worker_graph(settings),
        name=name,
        style=settings.style,
        policy=TokenPolicy.load(settings.policy) if settings.policy else None,
        abstain_below=settings.abstain_below,
    )


def worker_graph(settings: TokenRouterSettings) -> WorkerGraph:
    """The router's workers, with a letter each where they have no label of their own.

    Raises:
        ConfigError: they make no graph.
    """
    from nearfar.router.functional_tokens.graph import Worker, WorkerGraph, free_labels

    given = [worker.label for worker in settings.workers.values() if worker.label is not None]
    free = iter(free_labels(given, len(settings.workers) - len(given)))
    workers = [
        Worker(name, told.description, next(free) if told.label is None else told.label, told.next)
        for name, told in settings.workers.items()
    ]
    return WorkerGraph(workers, settings.general)
