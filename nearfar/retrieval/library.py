"""The collections that there are, opened when somebody asks, and queries with passages put before them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nearfar.errors import DataError, RequestError
from nearfar.types import Filter, Hit, Query, Retriever, Signals

from .citations import Checked, check
from .collection import Collection
from .grounding import MIN_COVERAGE, PASSAGE_TOKENS, grounded_messages, retrieval_signals, shown_passages
from .places import hit_json

if TYPE_CHECKING:
    from .compression import Compressor


@dataclass(frozen=True, slots=True)
class Attached:
    """A query with the passages that it is to be answered from."""

    query: Query  # as it goes to a model
    question: str
    hits: tuple[Hit, ...]  # of which something is shown, in the order of the numbers
    signals: Signals

    @property
    def has_evidence(self) -> bool:
        """Whether the passages speak of what was asked; see `grounding.retrieval_signals`."""
        return self.signals["retrieval_coverage"] >= MIN_COVERAGE

    def checked(self, text: str) -> Checked:
        """An answer to the query with its citations checked against the passages."""
        return check(text, [hit.chunk for hit in self.hits], question=self.question)


@dataclass(frozen=True, slots=True)
class _Named:
    """A collection that is looked up when it is searched."""

    library: Library
    name: str

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """See `Collection.search`."""
        return self.library.collection(self.name).search(query, k=k, filter=filter)


class Library:
    """Collections by name, each opened once.

    Args:
        open_collection: opens the collection of a name.
        passages: how many a query gets where it does not say.
        passage_tokens: tokens that they may have together, estimated.
        compressor: keeps of the passages what the question needs; None: the first that fit.
    """

    def __init__(
        self,
        open_collection: Callable[[str], Collection],
        *,
        passages: int,
        passage_tokens: int = PASSAGE_TOKENS,
        compressor: Compressor | None = None,
    ) -> None:
        self._open = open_collection
        self._passages = passages
        self._passage_tokens = passage_tokens
        self._compressor = compressor
        self._collections: dict[str, Collection] = {}
        self._lock = threading.Lock()

    def collection(self, name: str) -> Collection:
        """The collection of this name.

        Raises:
            RequestError: there is none.
            DataError: it cannot be used.
            ConfigError: its embedder is not here.
        """
        with self._lock:
            if name not in self._collections:
                self._collections[name] = self._open(name)
            return self._collections[name]

    def check_privacy(self, name: str, query: Query) -> None:
        """Refuses a query that would leave this machine by being searched for, and may not.

        Raises:
            RequestError: its privacy is "near", and the collection's embedder is far.
        """
        if query.privacy == "near" and self.collection(name).is_far:
            raise RequestError(
                f"The query may not leave this machine, and the collection {name!r} is searched with a far embedder. "
                f"Give it a near one: nearfar index {name} --reembed --embedder static",
                param="privacy",
            )

    def versions(self, name: str, sources: Iterable[str]) -> dict[str, str]:
        """The present versions of those of the collection's documents that there are; none where it is gone."""
        try:
            return self.collection(name).versions(sources)
        except (RequestError, DataError):
            return {}

    def retriever(self, name: str) -> Retriever:
        """Searches the collection of this name, which is opened by the first search."""
        return _Named(self, name)

    async def search(self, name: str, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The passages of the collection that bear on the query, best first; see `Collection.search`."""
        return await asyncio.to_thread(lambda: self.collection(name).search(query, k=k, filter=filter))

    async def attach(
        self,
        query: Query,
        name: str,
        *,
        k: int | None = None,
        filter: Filter | None = None,  # noqa: A002
    ) -> Attached:
        """The query with numbered passages before its last user message, which is what is searched for.

        Raises:
            RequestError: there is no such collection, the query has no text to search for, or it may not leave this
                machine and the collection's embedder is far.
        """
        await asyncio.to_thread(self.check_privacy, name, query)
        question = query.text
        if not question.strip() or not any(message.role == "user" for message in query.messages):
            raise RequestError("The query has no question to search for; give some text.", param="messages")
        found = await self.search(name, question, k=k or self._passages, filter=filter)
        hits, shown = await asyncio.to_thread(shown_passages, question, found, self._passage_tokens, self._compressor)
        # With the passages in it, a question looks like every other about them: no memory may compare it.
        asked = replace(query, prompt=grounded_messages(query, shown), uses_memory=False)
        return Attached(asked, question, hits, retrieval_signals(question, hits))

    async def ground(self, query: Query) -> tuple[Query, list[dict[str, Any]]]:
        """The query with the passages of the collection that it names, and the passages as plain JSON values.

        Raises:
            RequestError: it names none; or as `attach`.
        """
        if query.docs is None:
            raise RequestError("The query names no collection.", param="docs")
        attached = await self.attach(query, query.docs, k=query.passages)
        shown = [{"number": number, **hit_json(hit)} for number, hit in enumerate(attached.hits, 1)]
        return replace(attached.query, docs=None, passages=None), shown

    def close(self) -> None:
        """Closes what was opened. Twice is fine."""
        with self._lock:
            while self._collections:
                self._collections.popitem()[1].close()
