"""Answers given before, kept in SQLite and given again to the very same query."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace

import msgspec

from nearfar.errors import ConfigError, DataError
from nearfar.store import Schema, Store
from nearfar.types import (
    Answer,
    ChatModel,
    Query,
    ReasoningDelta,
    StreamEnd,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
)

from .wrapper import Wrapper

CACHE = Schema(
    "cache",
    (
        """
        CREATE TABLE cached_answers (
            key BLOB PRIMARY KEY,
            model TEXT NOT NULL,
            created_at REAL NOT NULL,
            answer BLOB NOT NULL
        );
        CREATE INDEX cached_answers_by_age ON cached_answers (created_at)
        """,
    ),
)

_log = logging.getLogger(__name__)
_canonical = msgspec.json.Encoder(order="deterministic").encode
_pack = msgspec.msgpack.Encoder().encode  # JSON has no infinite log-probabilities
_unpack = msgspec.msgpack.Decoder(Answer).decode

#: Purges come once in so many answers kept, so that counting rows costs nothing.
_PURGE_EVERY = 100


class Cached(Wrapper):
    """Gives the kept answer where the same model was asked the same thing, at no cost and marked `is_cached`.

    The same thing: messages, tools, response format and every decoding option, to the letter. A query that asks for
    a random sample (temperature above 0, no seed) is passed on unless `keeps_samples`; one that leaves the temperature
    to the model is kept. Only whole answers are kept, never an error or a filtered one. The same query asked again
    while it is being answered waits for that answer, except in streams. A store that fails costs the cache, not the
    answer: it is logged and the model is asked.

    Args:
        inner: the model.
        store: has the schema `CACHE`; any number of models and processes may share it.
        ttl_s: seconds for which an answer is kept; None: until `max_entries` pushes it out.
        identity: what tells this model from another of the same name (its URL, its weights); part of the key.
        keeps_samples: keep answers to queries that ask for a random sample too.
        max_entries: answers in the store, of all models; beyond it the oldest go.
        clock: Unix time, in seconds.
    """

    def __init__(
        self,
        inner: ChatModel,
        store: Store,
        ttl_s: float | None = None,
        *,
        identity: str = "",
        keeps_samples: bool = False,
        max_entries: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(inner)
        if (ttl_s is not None and not ttl_s > 0) or max_entries < 1:
            raise ConfigError(
                f"The cache of {inner.card.name!r} needs a ttl above 0 s and room for 1 answer, not {ttl_s!r} and "
                f"{max_entries!r}. Set cache_ttl_s."
            )
        self._store = store
        self._ttl_s = ttl_s
        self._identity = identity
        self._keeps_samples = keeps_samples
        self._max_entries = max_entries
        self._clock = clock
        self._flights: dict[bytes, asyncio.Future[Answer | None]] = {}
        self._until_purge = 0

    async def complete(self, query: Query) -> Answer:
        """The kept answer, or the inner model's."""
        if not self._may_keep(query):
            return await self.inner.complete(query)
        start = time.perf_counter()
        key = self._key(query)
        if hit := await self._kept(key):
            return _again(hit, time.perf_counter() - start)
        if flight := self._flights.get(key):
            await asyncio.wait([flight])
            if answer := flight.result():
                return _again(answer, time.perf_counter() - start)
            return await self.inner.complete(query)  # that one failed; one more in line could fail as slowly
        return await self._lead(key, query)

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The kept answer in one piece of each kind, or the inner model's as it comes."""
        start = time.perf_counter()
        is_kept = self._may_keep(query)
        key = self._key(query) if is_kept else b""
        if is_kept and (hit := await self._kept(key)):
            for event in _events(_again(hit, time.perf_counter() - start)):
                yield event
            return
        async with aclosing(self.inner.stream(query)) as events:
            async for event in events:
                if is_kept and isinstance(event, StreamEnd):
                    await self._keep(key, event.answer)
                yield event

    async def _lead(self, key: bytes, query: Query) -> Answer:
        """Asks the model, for this call and for all that wait for the same."""
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        answer = None
        try:
            answer = await self.inner.complete(query)
            await self._keep(key, answer)
        finally:
            del self._flights[key]
            flight.set_result(answer if answer is not None and _is_whole(answer) else None)
        return answer

    def _may_keep(self, query: Query) -> bool:
        sampling = query.sampling
        return self._keeps_samples or not sampling.temperature or sampling.seed is not None

    def _key(self, query: Query) -> bytes:
        """Everything that the answer depends on, hashed."""
        asked = (
            "1",
            self.card.name,
            self._identity,
            query.messages,
            query.tools,
            query.tool_choice,
            query.parallel_tool_calls,
            query.response_format,
            query.sampling,
        )
        return hashlib.sha256(_canonical(asked)).digest()

    async def _kept(self, key: bytes) -> Answer | None:
        oldest = float("-inf") if self._ttl_s is None else self._clock() - self._ttl_s

        def look(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(
                "SELECT answer FROM cached_answers WHERE key = ? AND created_at > ?", (key, oldest)
            ).fetchone()
            return row[0] if row else None

        try:
            found = await self._store.read(look)
        except DataError as exc:
            _log.warning("the cache could not be read, so %r is asked: %s", self.card.name, exc)
            return None
        try:
            return _unpack(found) if found else None
        except msgspec.DecodeError:  # written by another version
            return None

    async def _keep(self, key: bytes, answer: Answer) -> None:
        if not _is_whole(answer):
            return
        row = (key, self.card.name, self._clock(), _pack(answer))
        self._until_purge -= 1
        is_purge = self._until_purge < 0
        if is_purge:
            self._until_purge = _PURGE_EVERY

        def put(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO cached_answers VALUES (?, ?, ?, ?)", row)
            if is_purge:
                self._purge(connection)

        try:
            await self._store.write(put)
        except DataError as exc:
            _log.warning("an answer of %r could not be kept: %s", self.card.name, exc)

    def _purge(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "DELETE FROM cached_answers WHERE key IN "
            "(SELECT key FROM cached_answers ORDER BY created_at DESC LIMIT -1 OFFSET ?)",
            (self._max_entries,),
        )


def _is_whole(answer: Answer) -> bool:
    return answer.finish_reason in ("stop", "length", "tool_calls") and answer.refusal is None


def _again(answer: Answer, latency_s: float) -> Answer:
    """The answer as it is given the second time."""
    return replace(answer, cost_usd=0.0, is_cost_estimated=False, latency_s=latency_s, is_cached=True)


def _events(answer: Answer) -> Iterator[StreamEvent]:
    """A stream that gives `answer`."""
    if answer.reasoning:
        yield ReasoningDelta(answer.reasoning)
    if answer.text or answer.logprobs:
        yield TextDelta(answer.text, answer.logprobs or ())
    for i, call in enumerate(answer.tool_calls):
        yield ToolCallDelta(i, call.arguments, call.id, call.name)
    yield StreamEnd(answer)
