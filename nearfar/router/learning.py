"""What is learned from outcomes while nearfar is used, kept in the store and safe for several processes.

Bandits and monitors live in one table, a row each. A change reads the row, takes the news in and writes it back inside
one transaction, so that no process overwrites another's; what a process decides by is its own copy, looked up anew
after its own changes and, at most every second, for those of others.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, pi
from typing import Protocol

import msgspec

from nearfar.errors import DataError
from nearfar.store import Schema, Store
from nearfar.types import Decision, Signals

from .bandit import Choice, ThompsonBandit
from .monitor import Alarm, ErrorMonitor, ShiftMonitor

LEARNING = Schema(
    "learning",
    (
        """
        CREATE TABLE learned (
            name TEXT PRIMARY KEY,
            version INTEGER NOT NULL,
            state BLOB NOT NULL,
            updated_at REAL NOT NULL
        ) WITHOUT ROWID;
        """,
    ),
)

_logger = logging.getLogger(__name__)

#: How old a process's copy may be before it looks for changes of other processes.
_LOOK_AFTER_S = 1.0

#: Signals that wait to be written together; a crash loses no more than these, which costs the shift test some power.
_SIGNALS_PER_WRITE = 32

#: After so many signals the shift test begins anew on the labelled ones, so that it stays small and late shifts show.
_SIGNALS_PER_EPOCH = 10_000


class Learner(Protocol):
    """One row of what is learned: how its state is read and changed."""

    name: str  # of the row
    version: int  # of the copy in this process; 0: nothing was read yet

    def take(self, state: bytes | None) -> None:
        """Makes the stored state this process's copy; None: nothing is stored yet."""
        ...

    def hear(self, connection: sqlite3.Connection, decision: Decision, outcome: float, previous: float | None) -> None:
        """Takes a decision's outcome in, inside the transaction that writes it; `previous` is what it was before."""
        ...


def _read(connection: sqlite3.Connection, name: str) -> tuple[int, bytes | None]:
    row = connection.execute("SELECT version, state FROM learned WHERE name = ?", (name,)).fetchone()
    return (0, None) if row is None else (row[0], row[1])


def _write(connection: sqlite3.Connection, name: str, version: int, state: bytes) -> None:
    connection.execute(
        "INSERT INTO learned (name, version, state, updated_at) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
        " version = excluded.version, state = excluded.state, updated_at = excluded.updated_at",
        (name, version, state, time.time()),
    )


class LiveBandit:
    """A bandit that chooses among a cascade's tiers and learns from the outcomes of its choices.

    Args:
        cascade: the cascade's name.
        fresh: a bandit that has seen nothing; its arms are the tiers.

    Attributes:
        label: its name and what it reads, as decisions cite it; one with other arms or features is another bandit.
    """

    def __init__(self, cascade: str, fresh: ThompsonBandit) -> None:
        shape = msgspec.json.encode([sorted(fresh.beliefs), fresh.features])
        self.label = f"bandit {cascade}#{hashlib.sha256(shape).hexdigest()[:8]}"
        self.name = self.label
        self.version = 0
        self._fresh = fresh
        self._bandit = fresh

    @property
    def features(self) -> tuple[str, ...]:
        """The query's signals that it reads."""
        return self._fresh.features

    @property
    def num_outcomes(self) -> Mapping[str, int]:
        """Outcomes seen, by tier."""
        return {tier: belief.n for tier, belief in self._bandit.beliefs.items()}

    def choose(
        self, signals: Signals, costs: Mapping[str, float], *, among: Collection[str], draw: random.Random
    ) -> Choice:
        """A tier, with the probabilities of all that may take the query; see `ThompsonBandit.choose`."""
        return self._bandit.choose(signals, costs, draw=draw, among=among)

    def take(self, state: bytes | None) -> None:
        """Makes the stored state this process's copy; budget, floor and rule are the config's."""
        if state is not None:
            self._bandit = self._configured(ThompsonBandit.from_json(state))

    def hear(self, connection: sqlite3.Connection, decision: Decision, outcome: float, previous: float | None) -> None:
        """Learns the reward of its own choices; a changed outcome changes the reward that was learned."""
        routing = decision.routing
        if routing is None or routing.by != self.label:
            return
        version, state = _read(connection, self.name)
        bandit = self._configured(ThompsonBandit.from_json(state) if state else self._copy())
        if previous is None:
            bandit.learn(routing.signals, routing.tier, outcome, decision.cost_usd or 0.0)
        else:
            bandit.revise(routing.signals, routing.tier, outcome - previous)
        _write(connection, self.name, version + 1, bandit.to_json())

    def _copy(self) -> ThompsonBandit:
        return ThompsonBandit.from_json(self._fresh.to_json())

    def _configured(self, bandit: ThompsonBandit) -> ThompsonBandit:
        fresh = self._fresh
        bandit.budget, bandit.floor, bandit.rule = fresh.budget, fresh.floor, fresh.rule
        bandit.learning_rate, bandit.noise = fresh.learning_rate, fresh.noise
        if fresh.budget is None:
            bandit.price = 0.0
        return bandit


class _Watched(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A monitor's state."""

    errors: ErrorMonitor | None
    shift: ShiftMonitor | None
    epoch: int = 1  # of the shift test


class LiveMonitor:
    """Watches what a policy promises of one tier, on outcomes and signals as they come.

    Args:
        cascade: the cascade's name.
        tier: the tier's.
        policy: name@version; another version is watched anew, and an alarm ends with the policy that it was about.
        alpha: the promised share of wrong answers among the accepted; None: outcomes are not tested.
        signal: whose distribution is tested; None: none is.
        reference: that signal of the labelled answers.
        false_alarm_rate: the probability that any alarm is ever raised with nothing wrong.
    """

    def __init__(
        self,
        cascade: str,
        tier: str,
        policy: str,
        *,
        alpha: float | None,
        signal: str | None = None,
        reference: Sequence[float] = (),
        false_alarm_rate: float = 0.05,
    ) -> None:
        self.name = f"monitor {cascade}/{tier} {policy}"
        self.version = 0
        self.cascade = cascade
        self.tier = tier
        self.policy = policy
        self.signal = signal if reference else None
        self._reference = tuple(reference)
        self._rate = false_alarm_rate / (1 if alpha is None or self.signal is None else 2)
        self._alpha = alpha
        self._state = self._fresh()
        self._pending: list[float] = []
        self._was_told = False

    @property
    def alarm(self) -> Alarm | None:
        """The alarm, once raised; None: none so far."""
        state = self._state
        return (state.errors and state.errors.alarm) or (state.shift and state.shift.alarm) or None

    @property
    def num_outcomes(self) -> int:
        """Outcomes tested so far."""
        return self._state.errors.n if self._state.errors else 0

    @property
    def num_signals(self) -> int:
        """Signals tested in this epoch."""
        return self._state.shift.n if self._state.shift else 0

    @property
    def has_pending(self) -> bool:
        """Whether signals wait to be written."""
        return bool(self._pending)

    def see(self, signals: Signals) -> bool:
        """Notes an answer's signal for the shift test; True: enough wait to be written."""
        value = None if self.signal is None else signals.get(self.signal)
        if value is not None and isfinite(value):
            self._pending.append(value)
        return len(self._pending) >= _SIGNALS_PER_WRITE

    def write_pending(self, connection: sqlite3.Connection) -> None:
        """Tests the signals that wait, inside a transaction."""
        waiting, self._pending = self._pending, []
        if not waiting:
            return
        version, state = self._stored(connection)
        for value in waiting:
            if state.shift is None:
                return
            if state.shift.n >= _SIGNALS_PER_EPOCH and state.shift.alarm is None:
                state.epoch += 1
                state.shift = self._shift(state.epoch)
            assert state.shift is not None
            state.shift.observe(value)
        _write(connection, self.name, version + 1, msgspec.msgpack.encode(state))

    def take(self, state: bytes | None) -> None:
        """Makes the stored state this process's copy, and says so when it has an alarm."""
        if state is not None:
            self._state = self._decoded(state)
        alarm = self.alarm
        if alarm is not None and not self._was_told:
            self._was_told = True
            _logger.warning(
                "alarm (%s) on tier %r of cascade %r, policy %s: %s",
                alarm.kind,
                self.tier,
                self.cascade,
                self.policy,
                alarm.message,
            )

    def hear(self, connection: sqlite3.Connection, decision: Decision, outcome: float, previous: float | None) -> None:
        """Tests the outcome of an answer that the tier's threshold accepted; the first outcome of each counts."""
        if (
            self._alpha is None
            or previous is not None
            or decision.reason != "confident"
            or decision.target != self.cascade
            or decision.tier != self.tier
            or decision.policy != self.policy
        ):
            return
        version, state = self._stored(connection)
        if state.errors is not None:
            state.errors.observe(outcome)
            _write(connection, self.name, version + 1, msgspec.msgpack.encode(state))

    def _stored(self, connection: sqlite3.Connection) -> tuple[int, _Watched]:
        version, state = _read(connection, self.name)
        return version, self._fresh() if state is None else self._decoded(state)

    def _decoded(self, state: bytes) -> _Watched:
        try:
            return msgspec.msgpack.decode(state, type=_Watched)
        except (msgspec.DecodeError, DataError) as exc:
            raise DataError(f"What was kept of {self.name!r} cannot be read: {exc}. Fit the policy anew.") from exc

    def _fresh(self) -> _Watched:
        errors = None if self._alpha is None else ErrorMonitor(alpha=self._alpha, false_alarm_rate=self._rate)
        return _Watched(errors=errors, shift=self._shift(1))

    def _shift(self, epoch: int) -> ShiftMonitor | None:
        """A new test; the rates of all epochs add up to the stated one."""
        if self.signal is None:
            return None
        rate = self._rate * 6 / (pi * epoch) ** 2
        return ShiftMonitor(seen=list(self._reference), false_alarm_rate=rate, seed=epoch)


@dataclass(frozen=True, slots=True)
class Watch:
    """A monitor at work on a tier, as the cascade's guard.

    Attributes:
        monitor: tests what the tier does.
        learning: keeps the monitor.
        defers: after an alarm none of the tier's answers is accepted: the safe policy. Otherwise it only tells.
    """

    monitor: LiveMonitor
    learning: Learning
    defers: bool = True

    def see(self, signals: Signals) -> None:
        """Notes the signals of one of the tier's answers."""
        self.learning.look()
        self.learning.see(self.monitor, signals)

    def objection(self) -> str | None:
        """The alarm, in words, where it closes the tier."""
        alarm = self.monitor.alarm if self.defers else None
        return None if alarm is None else f"alarm ({alarm.kind}): {alarm.message}"


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm, and whose it is."""

    cascade: str
    tier: str
    policy: str
    alarm: Alarm


class Learning:
    """Every learner of one nearfar, in the store that its decisions are in.

    Args:
        store: opened with `LEARNING` among its schemas.
        learners: bandits and monitors.
    """

    def __init__(self, store: Store, learners: Sequence[Learner]) -> None:
        self._store = store
        self._learners = {learner.name: learner for learner in learners}
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    @property
    def monitors(self) -> list[LiveMonitor]:
        """The monitors among them."""
        return [each for each in self._learners.values() if isinstance(each, LiveMonitor)]

    @property
    def bandits(self) -> list[LiveBandit]:
        """The bandits among them."""
        return [each for each in self._learners.values() if isinstance(each, LiveBandit)]

    @property
    def alarms(self) -> list[Raised]:
        """Every alarm that this process knows of."""
        return [
            Raised(each.cascade, each.tier, each.policy, each.alarm) for each in self.monitors if each.alarm is not None
        ]

    def hear(self, connection: sqlite3.Connection, decision: Decision, outcome: float, previous: float | None) -> None:
        """Takes a decision's outcome in, inside the transaction that writes it.

        A learner whose state cannot be read is reported and learns nothing; the outcome is kept all the same.
        """
        for learner in self._learners.values():
            try:
                learner.hear(connection, decision, outcome, previous)
            except DataError as exc:
                _logger.error("nothing was learned from an outcome: %s", exc)

    def see(self, monitor: LiveMonitor, signals: Signals) -> None:
        """Notes an answer's signals; they are written with the next group."""
        if monitor.see(signals):
            self._store.submit(monitor.write_pending)

    def load(self) -> None:
        """Looks up everything, blocking: before any query.

        Raises:
            DataError: the store cannot be read.
        """
        self._looked_at = time.monotonic()
        self._store.read_now(self.refresh_from)

    async def refresh(self) -> None:
        """Looks up what has changed in the store.

        Raises:
            DataError: the store cannot be read.
        """
        self._looked_at = time.monotonic()
        await self._store.read(self.refresh_from)

    def refresh_from(self, connection: sqlite3.Connection) -> None:
        """Looks up what has changed, on a connection that is open already."""
        versions = dict(connection.execute("SELECT name, version FROM learned"))
        for name, learner in self._learners.items():
            if versions.get(name, 0) != learner.version:
                learner.version, state = _read(connection, name)
                try:
                    learner.take(state)
                except DataError as exc:  # once per version, not at every look
                    _logger.error("what was learned is not used: %s", exc)

    def look(self) -> None:
        """Has the copies refreshed in the background if they are older than a second; needs an event loop that runs."""
        if not self._learners or time.monotonic() - self._looked_at < _LOOK_AFTER_S:
            return
        if self._looking is None or self._looking.done():
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # a plan asked for without one
                return
            self._looked_at = time.monotonic()
            self._looking = loop.create_task(self._look())

    async def _look(self) -> None:
        try:
            await self.refresh()
        except DataError as exc:
            _logger.error("what other processes learned could not be read: %s", exc)

    async def aclose(self) -> None:
        """Has the signals that wait written, and stops looking. Twice is fine."""
        if self._looking is not None:
            self._looking.cancel()
        for monitor in self.monitors:
            if monitor.has_pending:
                self._store.submit(monitor.write_pending)
