"""Money: reserved before a call at the most that it may cost, settled after it at what it did cost."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias, assert_never

from nearfar.errors import BudgetExceeded, ConfigError, DataError, NearfarError, UpstreamError
from nearfar.store import Schema, Store
from nearfar.types import FREE, Answer, ChatModel, Query, StreamEnd, StreamEvent

from .owners import Owner, can_own, is_gone
from .wrapper import Wrapper

BUDGETS = Schema(
    "budgets",
    (
        """
        CREATE TABLE budget_spent (
            budget TEXT NOT NULL,
            period TEXT NOT NULL,
            nano_usd INTEGER NOT NULL,
            PRIMARY KEY (budget, period)
        ) WITHOUT ROWID;
        CREATE TABLE budget_reservations (
            id TEXT PRIMARY KEY,
            budget TEXT NOT NULL,
            period TEXT NOT NULL,
            nano_usd INTEGER NOT NULL,
            created_at REAL NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX budget_reservations_by_budget ON budget_reservations (budget, period, nano_usd)
        """,
        "ALTER TABLE budget_reservations ADD COLUMN owner TEXT",
    ),
)

Period: TypeAlias = Literal["total", "day", "month"]
#: What becomes of the reservations of a killed process, whose calls may have been charged for or not.
KilledCalls: TypeAlias = Literal["spent", "returned"]

#: How old a reservation is that nobody owns (it was made by an earlier nearfar, or where there are no locks) once its
#: call must have ended: no answer may take so long.
_UNOWNED_S = 86_400.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money held for one call."""

    id: str
    period: str  # "2026-11-21", "2026-11", or "total"
    nano_usd: int


class Budget:
    """An amount that is never exceeded, by any number of tasks and processes that share the store.

    What is reserved counts as spent until it is settled. A reservation that a killed process has left ends with the
    first look that is taken after it: as spent, because nobody knows what its call has cost, or given back where the
    owner would rather have the money. Amounts are whole nano-dollars, reservations and settlements rounded up, the
    limit down.

    Args:
        store: has the schema `BUDGETS`.
        name: budgets of one name in one store are one budget.
        limit_usd: the most that may be spent in a period.
        period: when it starts anew: never, every day or every month, in UTC.
        killed_calls: whether what killed processes had reserved is spent, or returned. With "returned" more than the
            limit may have been charged: by what the calls under way cost whenever a process is killed.
        clock: Unix time, in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        limit_usd: float,
        period: Period = "total",
        killed_calls: KilledCalls = "spent",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not (math.isfinite(limit_usd) and limit_usd >= 0):
            raise ConfigError(f"limit_usd of the budget {name!r} must be a number of dollars ≥ 0, not {limit_usd!r}.")
        self.name = name
        self.limit_usd = limit_usd
        self._limit = math.floor(round(limit_usd * 1e9, 3))
        self._period = period
        self._killed_calls = killed_calls
        self._store = store
        self._clock = clock
        self._owners = store.path.with_name(f"{store.path.name}.owners")
        self._owner: Owner | None = None  # once something was reserved
        self._has_looked = False  # for what killed processes have left

    async def reserve(self, usd: float) -> Reservation:
        """Holds `usd` for a call.

        Raises:
            BudgetExceeded: less than that is left; nothing is held.
            DataError: the store cannot be written.
        """
        held = Reservation(uuid.uuid4().hex, self._current_period(), _nano(usd))
        row = (held.id, self.name, held.period, held.nano_usd, self._clock(), self._owner_name())

        def hold(connection: sqlite3.Connection) -> int | None:
            """What is left too little; None: it was enough."""
            if not self._has_looked:
                self._end_left_behind(connection)
            left = self._limit - _used(connection, self.name, held.period)
            if held.nano_usd > left and self._end_left_behind(connection):
                left = self._limit - _used(connection, self.name, held.period)
            if held.nano_usd > left:
                return left
            connection.execute("INSERT INTO budget_reservations VALUES (?, ?, ?, ?, ?, ?)", row)
            return None

        try:
            left = await self._store.write(hold)
        except asyncio.CancelledError:
            self._store.submit(lambda connection: _close(connection, self.name, held, 0))  # nothing was sent
            raise
        if left is not None:
            raise BudgetExceeded(
                f"The budget {self.name!r} has ${max(0, left) / 1e9:.6g} of ${self.limit_usd:g} left"
                f"{self._until()}, and this call may cost ${usd:.6g}. Raise its limit_usd, or lower max_tokens."
            )
        return held

    async def settle(self, reservation: Reservation, usd: float) -> None:
        """Replaces the reservation by what the call has cost; 0 gives it back. A second time does nothing.

        Raises:
            DataError: the store cannot be written; the reservation stays.
        """
        await self._store.write(lambda connection: _close(connection, self.name, reservation, _nano(usd)))

    def forfeit(self, reservation: Reservation) -> None:
        """Counts the whole reservation as spent, where nobody knows what the call has cost; does not wait."""
        self._store.submit(lambda connection: _close(connection, self.name, reservation, reservation.nano_usd))

    async def spent(self) -> float:
        """US dollars spent and reserved in the current period."""
        period = self._current_period()
        return await self._store.read(lambda connection: _used(connection, self.name, period)) / 1e9

    def _owner_name(self) -> str | None:
        if self._owner is None and can_own():
            try:
                self._owner = Owner(self._owners)
            except OSError as exc:
                raise DataError(
                    f"Cannot write {str(self._owners)!r}: {exc.strerror}. Check that the folder may be written.",
                    path=str(self._owners),
                ) from exc
        return None if self._owner is None else self._owner.name

    def _end_left_behind(self, connection: sqlite3.Connection) -> bool:
        """Ends the reservations whose process has ended; whether there were any."""
        self._has_looked = True
        rows = connection.execute(
            "SELECT id, period, nano_usd, created_at, owner FROM budget_reservations WHERE budget = ?", (self.name,)
        ).fetchall()
        owners = {owner for *_, owner in rows if owner is not None}
        gone = {owner for owner in owners if can_own() and is_gone(self._owners, owner)}
        oldest = self._clock() - _UNOWNED_S
        left = [
            Reservation(id_, period, nano_usd)
            for id_, period, nano_usd, created_at, owner in rows
            if owner in gone or (owner is None and created_at < oldest)
        ]
        for each in left:
            _close(connection, self.name, each, each.nano_usd if self._killed_calls == "spent" else 0)
        if left:
            usd = sum(each.nano_usd for each in left) / 1e9
            fate = "counts as spent" if self._killed_calls == "spent" else "is given back"
            _log.warning("$%.6g of the budget %r, reserved by killed processes, %s", usd, self.name, fate)
        return bool(left)

    def _current_period(self) -> str:
        now = datetime.fromtimestamp(self._clock(), UTC)
        match self._period:
            case "total":
                return "total"
            case "day":
                return f"{now:%Y-%m-%d}"
            case "month":
                return f"{now:%Y-%m}"
        assert_never(self._period)

    def _until(self) -> str:
        return "" if self._period == "total" else f" for this {self._period} (UTC)"


class Budgeted(Wrapper):
    """Asks the model only for what the budget can pay in the worst case.

    The reservation is the price of the prompt and of the longest answer. A whole answer settles at its cost; one
    whose cost is unknown, a cancelled one, a stream closed early and a failed call that may have cost something
    settle at the reservation; any other failure gives it back. A free model reserves nothing.
    """

    def __init__(self, inner: ChatModel, budget: Budget) -> None:
        super().__init__(inner)
        self._budget = budget

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            BudgetExceeded: it could cost more than is left, or nobody knows how much; nothing was sent.
        """
        held = await self._reserve(query)
        try:
            answer = await self.inner.complete(query)
            await self._settle(held, answer)
        except BaseException as exc:
            await self._give_up(held, exc)
            raise
        return answer

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece.

        Raises:
            BudgetExceeded: it could cost more than is left, or nobody knows how much; nothing was sent.
        """
        held = await self._reserve(query)
        try:
            async with aclosing(self.inner.stream(query)) as events:
                async for event in events:
                    if isinstance(event, StreamEnd):
                        await self._settle(held, event.answer)
                    yield event
        except BaseException as exc:
            await self._give_up(held, exc)
            raise

    async def _reserve(self, query: Query) -> Reservation | None:
        """The most that the answer may cost, held; None: it is free."""
        card = self.card
        if card.price == FREE:
            return None
        bound_usd = card.cost_bound_usd(query)
        if bound_usd is not None:
            return await self._budget.reserve(bound_usd)
        if card.price is None:
            raise BudgetExceeded(f"The price of {card.name!r} is unknown and there is a budget. Set its price.")
        raise BudgetExceeded(
            f"The longest answer of {card.name!r} is unknown and there is a budget. Set its max_output_tokens, or "
            "max_tokens on the query."
        )

    async def _settle(self, held: Reservation | None, answer: Answer) -> None:
        if held is None:
            return
        try:
            if answer.cost_usd is None:
                self._budget.forfeit(held)
            else:
                await self._budget.settle(held, answer.cost_usd)
        except DataError as exc:
            # The answer is paid for, and the reservation goes on counting as spent: nothing is lost by giving it.
            _log.warning("the cost of an answer of %r stays at its reservation: %s", self.card.name, exc)

    async def _give_up(self, held: Reservation | None, exc: BaseException) -> None:
        """After a call without a whole answer. Does nothing to what is settled already."""
        if held is None:
            return
        is_unpaid = isinstance(exc, NearfarError) and not (isinstance(exc, UpstreamError) and exc.may_have_cost)
        try:
            if is_unpaid:
                await self._budget.settle(held, 0)
            else:
                self._budget.forfeit(held)
        except DataError as error:
            _log.warning("the cost of a failed call of %r stays at its reservation: %s", self.card.name, error)


def _used(connection: sqlite3.Connection, budget: str, period: str) -> int:
    """Nano-dollars spent and reserved."""
    (total,) = connection.execute(
        "SELECT (SELECT coalesce(sum(nano_usd), 0) FROM budget_spent WHERE budget = :budget AND period = :period)"
        " + (SELECT coalesce(sum(nano_usd), 0) FROM budget_reservations WHERE budget = :budget AND period = :period)",
        {"budget": budget, "period": period},
    ).fetchone()
    return int(total)


def _close(connection: sqlite3.Connection, budget: str, reservation: Reservation, nano_usd: int) -> None:
    """Replaces a reservation by what was spent; nothing happens where it is not open."""
    closed = connection.execute("DELETE FROM budget_reservations WHERE id = ?", (reservation.id,)).rowcount
    if closed:
        connection.execute(
            "INSERT INTO budget_spent VALUES (?, ?, ?)"
            " ON CONFLICT (budget, period) DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd",
            (budget, reservation.period, nano_usd),
        )


def _nano(usd: float) -> int:
    """Whole nano-dollars, rounded up; the noise of a float's last digits is not."""
    if not (math.isfinite(usd) and usd >= 0):
        raise ValueError(f"an amount must be a number of dollars ≥ 0, not {usd!r}")
    return math.ceil(round(usd * 1e9, 3))
