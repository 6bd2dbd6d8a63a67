"""Several servers within a memory budget: loaded when they are asked for, the least recently used evicted for it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nearfar.errors import ConfigError, ModelLoadError, NearfarError, UpstreamTimeout

from .engine import Address, Engine
from .records import Records
from .spec import GIB

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Place:
    """One engine's place in the budget."""

    engine: Engine
    need_bytes: int = 0
    is_resident: bool = False
    is_leaving: bool = False  # it takes no further requests; those it has go on
    leases: int = 0
    last_used: float = 0.0
    loading: asyncio.Task[None] | None = None
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_up(self) -> bool:
        """Whether it holds memory: neither evicted, nor stopped by somebody, nor given up."""
        return self.is_resident and self.engine.state not in ("failed", "stopped")


class Fleet:
    """Engines that share a memory budget.

    A request holds a lease on its engine until its answer is there. An engine that has to make room gets no new
    leases, ends the ones it has, and is stopped (or put to sleep, where its spec says so); requests for it that come
    meanwhile wait for its next turn, first come first served, so that none is lost and none starves.

    Args:
        engines: by name.
        budget_bytes: for all of them together, and for those of this user's other processes; None: no limit.
        records: where other processes note theirs.
    """

    def __init__(self, engines: Iterable[Engine], *, records: Records, budget_bytes: int | None = None) -> None:
        self._places = {engine.spec.name: _Place(engine) for engine in engines}
        self._records = records
        self._budget_bytes = budget_bytes
        self._turn = asyncio.Lock()
        self._is_closed = False
        self.evictions: list[str] = []

    @property
    def engines(self) -> Mapping[str, Engine]:
        """By name."""
        return {name: place.engine for name, place in self._places.items()}

    @property
    def resident(self) -> list[str]:
        """The engines that are in memory, the least recently used first."""
        places = sorted(self._places.items(), key=lambda each: each[1].last_used)
        return [name for name, place in places if place.is_up]

    @asynccontextmanager
    async def lease(self, name: str, *, limit_s: float | None = None) -> AsyncIterator[Address]:
        """The engine's address, for as long as the block lasts; loads it, and makes room, where it has to.

        Raises:
            ModelLoadError: it cannot be loaded.
            UpstreamTimeout: that takes longer than `limit_s`.
        """
        place = self._places[name]
        try:
            async with asyncio.timeout(limit_s):
                await self._enter(name, place)
                try:
                    address = await place.engine.ready()
                except BaseException:
                    self._leave(place)
                    raise
        except TimeoutError:
            raise UpstreamTimeout(
                f"{name!r} was not loaded in {limit_s:g} s. Give a longer deadline, or load it first: nearfar engine "
                f"up {name}",
                model=name,
                was_sent=False,
            ) from None
        try:
            yield address
        finally:
            self._leave(place)

    async def aclose(self, name: str | None = None) -> None:
        """Stops the engine of that name, or all, and everything that this process began. Twice is fine."""
        names = [name] if name is not None else list(self._places)
        for each in names:
            place = self._places[each]
            if place.loading is not None:
                place.loading.cancel()
                await asyncio.gather(place.loading, return_exceptions=True)
            place.is_resident = False
        await asyncio.gather(*(self._places[each].engine.stop() for each in names))

    # --- the budget --------------------------------------------------------------------------------------------------

    async def _enter(self, name: str, place: _Place) -> None:
        """Takes a lease; returns once the engine is in memory or on its way there."""
        while not place.is_up or place.is_leaving:
            place.engine.refuse_if_given_up()
            if place.loading is None or place.loading.done():
                place.loading = asyncio.create_task(self._load(name, place), name=f"load {name}")
            await asyncio.shield(place.loading)
        place.leases += 1
        place.idle.clear()
        place.last_used = time.monotonic()

    def _leave(self, place: _Place) -> None:
        place.leases -= 1
        place.last_used = time.monotonic()
        if place.leases == 0:
            place.idle.set()

    async def _load(self, name: str, place: _Place) -> None:
        async with self._turn:
            if place.is_up:
                return
            try:
                place.need_bytes = await place.engine.need_bytes()
                if not self._is_up_elsewhere(name):
                    await self._make_room(name, place)
                if place.engine.state == "asleep":
                    await place.engine.wake()
            except ConfigError as exc:
                raise ModelLoadError(str(exc), model=name, was_sent=False) from exc
            place.engine.begin()
            place.is_resident = True
            place.last_used = time.monotonic()

    async def _make_room(self, name: str, place: _Place) -> None:
        budget = self._budget_bytes
        if budget is None:
            return
        others = self._others()
        if place.need_bytes + sum(others.values()) > budget:
            held = f", and {', '.join(others)} of other processes hold {_gib(sum(others.values()))}" if others else ""
            fix = f"Stop one: nearfar engine stop {next(iter(others))}" if others else "Raise engines.memory_gib"
            raise ConfigError(
                f"[models.{name}] needs {_gib(place.need_bytes)} and engines.memory_gib allows {_gib(budget)}{held}. "
                f"{fix}."
            )
        while place.need_bytes + sum(self._others().values()) + self._held() > budget:
            victim = min((each for each in self._places.values() if each.is_resident), key=lambda each: each.last_used)
            await self._evict(victim)

    async def _evict(self, victim: _Place) -> None:
        """Ends the engine's requests, then the engine."""
        name = victim.engine.spec.name
        victim.is_leaving = True
        try:
            while victim.leases:
                victim.idle.clear()
                await victim.idle.wait()
            _logger.info("engine %s: evicted, %s back", name, _gib(victim.need_bytes))
            self.evictions.append(name)
            if victim.engine.spec.sleeps and victim.engine.state == "ready":
                await victim.engine.sleep()
            else:
                await victim.engine.stop()
            victim.is_resident = False
        except NearfarError:
            await victim.engine.stop()
            victim.is_resident = False
        finally:
            victim.is_leaving = False

    def _held(self) -> int:
        """Bytes of the budget that engines of this process hold."""
        others = self._others()
        return sum(place.need_bytes for name, place in self._places.items() if place.is_up and name not in others)

    def _others(self) -> dict[str, int]:
        """What engines that other processes look after, or left behind, hold by name."""
        records = (each for each in self._records.all() if each.owner != os.getpid() and each.is_running())
        return {each.name: each.memory_bytes for each in records}

    def _is_up_elsewhere(self, name: str) -> bool:
        """Whether the engine's memory is held already: another process runs it, or left it running."""
        record = self._records.read(name)
        return record is not None and record.is_running()


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
