"""The memory in front of the cascades."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import isinf
from typing import TYPE_CHECKING

from nearfar.config import Settings
from nearfar.store import Store

from .embedders import found_embedder

if TYPE_CHECKING:
    from nearfar.retrieval.library import Library
    from nearfar.retrieval.memory import SqliteMemory
    from nearfar.retrieval.postgres import PostgresMemory
    from nearfar.router.recall import Recall


def open_memory(settings: Settings, store: Store) -> SqliteMemory | PostgresMemory:
    """The answers given before, where the config keeps them.

    Raises:
        ConfigError: its embedder, or nearfar[postgres], is not here.
        DataError: its policy or its database cannot be used.
    """
    from nearfar.retrieval.matching import MatchPolicy

    memory = settings.memory
    embedder = found_embedder(settings, memory.embedder)
    policy = None if memory.policy is None else MatchPolicy.load(memory.policy)
    ttl_s = None if isinf(memory.ttl_s) else memory.ttl_s
    if settings.memory_url is not None:
        from nearfar.retrieval.postgres import PostgresMemory

        url = settings.memory_url.get_secret_value()
        return PostgresMemory(url, embedder, policy=policy, ttl_s=ttl_s, max_memos=memory.max_memos)
    from nearfar.retrieval.memory import SqliteMemory

    return SqliteMemory(store, embedder, policy=policy, ttl_s=ttl_s, max_memos=memory.max_memos)


def open_recall(
    settings: Settings, memory: SqliteMemory | PostgresMemory | None, library: Library | None = None
) -> Recall | None:
    """What puts the memory in front of the cascades; None where there is none."""
    if memory is None:
        return None
    from nearfar.router.recall import Recall

    if library is None:
        return Recall(memory, per_user=settings.memory.per_user)
    from nearfar.retrieval.verified import VerifiedMemory

    return Recall(VerifiedMemory(memory, partial(_versions, library)), per_user=settings.memory.per_user)


def _versions(library: Library, sources: Iterable[str]) -> dict[str, str]:
    """The present versions of sources named COLLECTION:SOURCE."""
    by_collection: dict[str, list[str]] = {}
    for name in sources:
        collection, _, source = name.partition(":")
        by_collection.setdefault(collection, []).append(source)
    return {
        f"{collection}:{source}": version
        for collection, named in by_collection.items()
        for source, version in library.versions(collection, named).items()
    }
