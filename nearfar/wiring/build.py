"""Everything that the settings describe, built and put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.config import Settings
from nearfar.router.cascade import Cascade
from nearfar.router.decision_log import SqliteDecisionLog
from nearfar.router.learning import Learning
from nearfar.router.outcomes import OutcomeLog
from nearfar.router.router import Router
from nearfar.store import Store
from nearfar.types import ChatModel

from .cascades import build_cascade
from .documents import Documents, grounded, open_library
from .learning import open_learning
from .memory import open_memory, open_recall
from .models import build_models
from .records import open_budget, open_log, open_store
from .token_routers import token_cascade

if TYPE_CHECKING:
    from nearfar.models.budget import Budget
    from nearfar.retrieval.library import Library
    from nearfar.retrieval.memory import SqliteMemory
    from nearfar.retrieval.postgres import PostgresMemory


@dataclass(frozen=True, slots=True)
class Wired:
    """What `build` made; close it when done."""

    settings: Settings
    store: Store
    log: SqliteDecisionLog
    models: Mapping[str, ChatModel]
    cascades: Mapping[str, Cascade]
    router: Router
    budget: Budget | None  # None: no limit was set
    learning: Learning
    outcomes: OutcomeLog
    library: Library | None = None  # what models answer from; None: none does
    memory: SqliteMemory | PostgresMemory | None = None  # in front of the cascades; None: there is none
    documents: Library | Documents | None = None  # what queries are answered from

    async def aclose(self) -> None:
        """Closes the models, then the store. Twice is fine."""
        await self.router.aclose()
        if self.library is not None:
            self.library.close()
        if self.documents is not None:
            self.documents.close()
        if self.memory is not None:
            self.memory.close()
        self.store.close()


def build(settings: Settings) -> Wired:
    """The router, its models, and the log that it writes to.

    Raises:
        ConfigError: a file that a setting names is missing, or a policy does not fit its cascade.
        DataError: the store, a table or a policy cannot be used.
    """
    store = open_store(settings)
    try:
        log = open_log(settings, store)
        budget = open_budget(settings, store)
        library = open_library(settings) if any(model.docs for model in settings.models.values()) else None
        models = {
            model.card.name: grounded(model, told, library) for told, model in build_models(settings, store, budget)
        }
        learning = open_learning(settings, store)
        cascades = {
            name: build_cascade(name, cascade, settings, models, learning, store)
            for name, cascade in settings.cascades.items()
        }
        cascades |= {name: token_cascade(name, router, models) for name, router in settings.routers.items()}
        outcomes = OutcomeLog(store, log, learning)
        memory = open_memory(settings, store) if settings.memory.enabled else None
        recall = open_recall(settings, memory, library)
        documents = library or Documents(settings)
        router = Router(
            cascades,
            models,
            log=log,
            outcomes=outcomes,
            learning=learning,
            recall=recall,
            library=documents,
        )
        return Wired(
            settings, store, log, models, cascades, router, budget, learning, outcomes, library, memory, documents
        )
    except BaseException:
        store.close()
        raise
