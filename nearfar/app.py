"""`Nearfar`, the object that users hold: a router built from the config, async and blocking."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from nearfar.config import Settings
from nearfar.router.outcomes import Outcome
from nearfar.router.planning import Plan
from nearfar.types import Answer, Message, Query, StreamEvent
from nearfar.wiring import Wired, build


class Nearfar:
    """Answers queries with the models and cascades of a config.

    Use it as an async context manager with `answer` and `stream`, or as a plain one with `answer_sync`; one object
    serves one of the two at a time.
    """

    def __init__(self, wired: Wired) -> None:
        self._wired = wired
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None  # an event loop in a thread, for the blocking calls

    @classmethod
    def from_config(cls, path: str | Path | None = None) -> Self:
        """Nearfar as the config says.

        Args:
            path: a TOML file; None: `$NEARFAR_CONFIG`, `nearfar.toml` here, the user's own, or what is found.

        Raises:
            ConfigError: the config is wrong.
        """
        return cls(build(Settings.load(path)))

    async def answer(self, query: Query | str | Sequence[Message]) -> Answer:
        """The answer, with its decision.

        Raises:
            RequestError: the query itself is not acceptable.
            UpstreamError: every model that was asked failed.
        """
        return await self._wired.router.answer(_as_query(query))

    def stream(self, query: Query | str | Sequence[Message]) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece; see `Router.stream`."""
        return self._wired.router.stream(_as_query(query))

    async def tell(self, decision_id: str, value: float, *, source: str = "user") -> Outcome:
        """Says how good an answer turned out to be, by the id of its decision; bandits and monitors hear of it.

        Raises:
            RequestError: no such decision, one that gave no answer, or a value that is not in [0, 1].
        """
        return await self._wired.router.tell(decision_id, value, source=source)

    def plan(self, query: Query | str | Sequence[Message]) -> Plan:
        """Which tiers would be tried, and why the others would not; no call is made."""
        return self._wired.router.plan(_as_query(query))

    def answer_sync(self, query: Query | str | Sequence[Message]) -> Answer:
        """Blocking twin of `answer`, for scripts and notebooks; works where an event loop already runs, too."""
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal())
        return self._portal.call(self.answer, query)

    def tell_sync(self, decision_id: str, value: float, *, source: str = "user") -> Outcome:
        """Blocking twin of `tell`."""
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal())
        return self._portal.call(partial(self.tell, decision_id, value, source=source))

    async def aclose(self) -> None:
        """Closes models and store. Twice is fine."""
        await self._wired.aclose()

    def close(self) -> None:
        """Blocking twin of `aclose`."""
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal())
        self._portal.call(self.aclose)
        self._portal = None
        self._stack.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_query(query: Query | str | Sequence[Message]) -> Query:
    if isinstance(query, Query):
        return query
    return Query(query if isinstance(query, str) else tuple(query))
