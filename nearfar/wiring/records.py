"""The store, and the decision log and the budget in it."""

from __future__ import annotations

from nearfar.config import Settings
from nearfar.models.budget import BUDGETS, Budget
from nearfar.models.cache import CACHE
from nearfar.retrieval.error_store import ERROR_CASES
from nearfar.retrieval.memory import MEMORY
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.learning import LEARNING
from nearfar.store import Store


def open_store(settings: Settings) -> Store:
    """The store that the settings name, with every table."""
    return Store(settings.store_path, [DECISIONS, CACHE, BUDGETS, LEARNING, MEMORY, ERROR_CASES])


def open_log(settings: Settings, store: Store) -> SqliteDecisionLog:
    """The decision log in the store."""
    return SqliteDecisionLog(store, text=settings.decisions.text, retention_days=settings.decisions.retention_days)


def open_budget(settings: Settings, store: Store) -> Budget | None:
    """The budget of all far calls together; None: there is no limit."""
    told = settings.budget
    if told.limit_usd is None:
        return None
    return Budget(store, name="all", limit_usd=told.limit_usd, period=told.period, killed_calls=told.killed_calls)
