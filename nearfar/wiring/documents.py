"""Collections of documents, and what answers from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.config import Settings
from nearfar.config.models import ModelSettings
from nearfar.config.retrieval import OpenAIEmbedderSettings
from nearfar.errors import RequestError
from nearfar.types import ChatModel, Query

from .embedders import build_embedder

if TYPE_CHECKING:
    from nearfar.retrieval.collection import Collection
    from nearfar.retrieval.library import Library
    from nearfar.retrieval.writing import CollectionWriter


def collection_folder(settings: Settings, name: str) -> Path:
    """Where the collection of this name is, or would be.

    Raises:
        RequestError: it is no name for a collection.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RequestError(f"{name!r} is no name for a collection; use letters, digits and . _ -", param="docs")
    return settings.collections_path / name


def collection_names(settings: Settings) -> list[str]:
    """The collections that there are."""
    return sorted(file.parent.name for file in settings.collections_path.glob("*/collection.db"))


def open_collection(settings: Settings, name: str) -> Collection:
    """The collection, to be searched with the embedder that it was made with; close it when done.

    Raises:
        RequestError: there is none of this name.
        DataError: it cannot be used.
        ConfigError: its embedder is not in the config, or nearfar[retrieval] is not installed.
    """
    from nearfar.retrieval.collection import Collection, read_facts

    folder = collection_folder(settings, name)
    names = collection_names(settings)
    if name not in names:
        known = f"there are {', '.join(map(repr, names))}" if names else "there is none yet"
        raise RequestError(f"No collection {name!r}; {known}. Make it: nearfar index {name} PATH", param="docs")
    key = read_facts(folder).get("embedder_key", "none")
    embedder = settings.embedders.get(key)
    is_far = isinstance(embedder, OpenAIEmbedderSettings) and embedder.placement == "far"
    return Collection(folder, build_embedder(settings, key), is_far=is_far)


def open_collection_writer(
    settings: Settings, name: str, *, embedder: str | None = None, creates: bool = True, reembeds: bool = False
) -> CollectionWriter:
    """The collection's only writer; close it when done.

    Args:
        settings: say where collections are.
        name: the collection's.
        embedder: its name; None: the one that the collection was made with, or the config's for a new one.
        creates: make the collection where there is none.
        reembeds: put the embedder in the place of the one that the collection was made with.

    Raises:
        RequestError: it is no name for a collection.
        DataError: somebody else is writing, or the collection was made with another embedder.
        ConfigError: the embedder is not there, or nearfar[retrieval] is not installed.
    """
    from nearfar.retrieval.collection import read_facts
    from nearfar.retrieval.writing import CollectionWriter

    folder = collection_folder(settings, name)
    facts = read_facts(folder) if name in collection_names(settings) else {}
    if embedder is None:  # a collection without facts was begun, and its embedder could not be reached
        embedder = facts.get("embedder_key", "none") if "made" in facts else settings.retrieval.embedder
    return CollectionWriter(
        folder, build_embedder(settings, embedder), creates=creates, reembeds=reembeds, embedder_key=embedder
    )


def open_library(settings: Settings) -> Library:
    """The collections that there are; none is opened before somebody asks for it."""
    from nearfar.retrieval.library import Library

    wanted = settings.retrieval
    return Library(partial(open_collection, settings), passages=wanted.passages, **compressed(wanted.passage_tokens))


class Documents:
    """The library, imported and opened when the first query names a collection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._library: Library | None = None

    async def ground(self, query: Query) -> tuple[Query, Sequence[Mapping[str, Any]]]:
        """See `Library.ground`."""
        if self._library is None:
            self._library = open_library(self._settings)
        return await self._library.ground(query)

    def close(self) -> None:
        """Closes what was opened. Twice is fine."""
        if self._library is not None:
            self._library.close()


def grounded(model: ChatModel, settings: ModelSettings, library: Library | None) -> ChatModel:
    """The model, answering from the collection that its settings name."""
    if settings.docs is None or library is None:
        return model
    from nearfar.retrieval.grounded_model import GroundedModel
    from nearfar.retrieval.grounding import Grounding

    name = settings.docs
    return GroundedModel(
        Grounding(library.retriever(name), model, **compressed(settings.passage_tokens)),
        versions=lambda sources: {f"{name}:{s}": version for s, version in library.versions(name, sources).items()},
        check=partial(library.check_privacy, name),
    )


def compressed(tokens: int | None) -> dict[str, Any]:
    """How passages get into so many tokens; None: as they are, the first that fit."""
    if tokens is None:
        return {}
    from nearfar.retrieval.compression import Compressor
    from nearfar.retrieval.embedders import find_embedder

    return {"passage_tokens": tokens, "compressor": Compressor(find_embedder("static"))}
