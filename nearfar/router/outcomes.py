"""Outcomes of decisions: how good the answer turned out to be, told later, by a person, a test or a judge."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import isfinite

from nearfar.errors import RequestError, UnknownDecision
from nearfar.store import Store
from nearfar.types import Decision

from .decision_log import SqliteDecisionLog
from .learning import Learning

#: Words that stand for an outcome.
WORDS = {"right": 1.0, "good": 1.0, "true": 1.0, "yes": 1.0, "wrong": 0.0, "bad": 0.0, "false": 0.0, "no": 0.0}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good a decision's answer was, as one source has it."""

    decision_id: str
    value: float  # in [0, 1]
    source: str
    created_at: float  # Unix time in seconds


class OutcomeLog:
    """Outcomes in the decision log's store; they go when their decision goes.

    Args:
        store: opened with `DECISIONS` among its schemas.
        decisions: the log in that store.
        learning: bandits and monitors, which hear of each outcome in the transaction that writes it; None: none.
    """

    def __init__(self, store: Store, decisions: SqliteDecisionLog, learning: Learning | None = None) -> None:
        self._store = store
        self._decisions = decisions
        self._learning = learning

    async def record(self, id_or_prefix: str, value: float, *, source: str = "user") -> Outcome:
        """Attaches an outcome to a decision; a second one from the same source takes the first one's place.

        Raises:
            RequestError: no such decision, several whose id begins so, one that gave no answer, or a value that is not
                in [0, 1].
            DataError: the store cannot be written.
        """
        if not (isfinite(value) and 0 <= value <= 1):
            raise RequestError(f"The outcome is {value!r}; outcomes are in [0, 1].", param="value")
        decision = await self._decisions.get(id_or_prefix)
        if decision is None:
            raise UnknownDecision(f"There is no decision {id_or_prefix!r}. List them: nearfar decisions.", param="id")
        if decision.tier is None:
            raise RequestError(
                f"The decision {decision.id!r} ended {decision.status}: it gave no answer that could be good or bad.",
                param="id",
            )
        outcome = Outcome(decision.id, value, source, time.time())

        def write(connection: sqlite3.Connection) -> None:
            previous = None if self._learning is None else _mean(connection, outcome.decision_id)
            connection.execute(
                "INSERT INTO outcomes (decision_id, source, value, created_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (decision_id, source)"
                " DO UPDATE SET value = excluded.value, created_at = excluded.created_at",
                (outcome.decision_id, outcome.source, outcome.value, outcome.created_at),
            )
            if self._learning is not None:
                mean = _mean(connection, outcome.decision_id)
                assert mean is not None  # it has just been written
                self._learning.hear(connection, decision, mean, previous)

        await self._store.write(write)
        if self._learning is not None:
            await self._learning.refresh()
        return outcome

    async def of(self, decision_id: str) -> list[Outcome]:
        """The decision's outcomes, newest first."""

        def look_up(connection: sqlite3.Connection) -> list[tuple[str, float, str, float]]:
            return connection.execute(
                "SELECT decision_id, value, source, created_at FROM outcomes WHERE decision_id = ?"
                " ORDER BY created_at DESC, source",
                (decision_id,),
            ).fetchall()

        return [Outcome(*row) for row in await self._store.read(look_up)]

    async def judged(self) -> AsyncIterator[tuple[Decision, float | None]]:
        """Every decision, oldest first, with the mean of its outcomes; None: nobody has judged it."""

        def look_up(connection: sqlite3.Connection) -> list[tuple[str, float]]:
            return connection.execute("SELECT decision_id, avg(value) FROM outcomes GROUP BY decision_id").fetchall()

        known = dict(await self._store.read(look_up))
        async for _, decision in self._decisions.iterate():
            yield decision, known.get(decision.id)


def _mean(connection: sqlite3.Connection, decision_id: str) -> float | None:
    """Of the decision's outcomes; None: it has none."""
    (mean,) = connection.execute("SELECT avg(value) FROM outcomes WHERE decision_id = ?", (decision_id,)).fetchone()
    return None if mean is None else float(mean)
