"""Watching a promise while it is used: alarms on too many wrong answers and on signals that have changed.

Both tests may be looked at after every answer, for as long as one likes: with nothing wrong, the probability that a
monitor *ever* raises an alarm is at most the stated rate. Evidence is the wealth of bets that win only if something is
wrong (Ville's inequality). After an alarm, `Guarded` scores nothing any more, so that its tier defers: the safe policy.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import msgspec

from nearfar.errors import ConfigError, DataError
from nearfar.types import Scorer, Signals

#: New bets are opened every so many outcomes, so that a late change is not hidden by a long good past.
_OPEN_EVERY = 50

#: The most open bets; the poorest is closed, which only forgoes evidence.
_MOST_OPEN = 40

#: The error rates that the bets are sized for, above the promised one.
_EXCESSES = (0.03, 0.07, 0.15)

_MASK = (1 << 64) - 1

#: How readily the shift test changes its bet, as in Vovk et al. 2021.
_JUMP = 0.01


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why a monitor has lost trust."""

    kind: Literal["errors", "shift"]
    after: int  # observations of that kind when it was raised
    false_alarm_rate: float  # at most this share of monitors ever raises it with nothing wrong
    message: str


class ErrorMonitor(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Tests "accepted answers are wrong at most `alpha` of the time" on outcomes as they arrive.

    The outcomes must be those of accepted answers, and which of them arrive must not depend on whether they are right.

    Attributes:
        alpha: the promised error.
        false_alarm_rate: the probability of ever raising an alarm while the promise holds.
        n: outcomes seen.
        wrong: the sum of their errors.
        bets: wealth by open bet and size.
        num_opened: bets opened so far.

    Source: Waudby-Smith and Ramdas 2023, arXiv:2010.09686 (betting); Shin, Ramdas and Rinaldo 2022, "E-detectors",
        arXiv:2203.03532 (bets opened over time; here weighted by 1 / (j (j + 1)), so that they are one e-process).
    """

    alpha: float
    false_alarm_rate: float = 0.025
    n: int = 0
    wrong: float = 0.0
    bets: list[list[float]] = []
    num_opened: int = 0
    raised_after: int | None = None

    def __post_init__(self) -> None:
        for name, level in (("alpha", self.alpha), ("false_alarm_rate", self.false_alarm_rate)):
            if not 0 < level < 1:
                raise ConfigError(f"{name} must be between 0 and 1, not {level!r}.")

    @property
    def evidence(self) -> float:
        """How many times over the bets have multiplied what was staked; alarm at 1 / false_alarm_rate."""
        return sum(map(sum, self.bets)) + 1 / (self.num_opened + 1)

    @property
    def alarm(self) -> Alarm | None:
        """The alarm, once raised; it stays."""
        if self.raised_after is None:
            return None
        return Alarm(
            "errors",
            self.raised_after,
            self.false_alarm_rate,
            f"accepted answers are wrong more than {self.alpha:.4g} of the time: {self.wrong:g} of {self.n:,} so far, "
            "and more of late. Label anew: nearfar calibrate.",
        )

    def observe(self, outcome: float) -> Alarm | None:
        """Takes in the outcome, in [0, 1], of one accepted answer.

        Raises:
            DataError: the outcome is out of range.
        """
        if not 0 <= outcome <= 1:
            raise DataError(f"The outcome is {outcome!r}; outcomes are in [0, 1].")
        error = 1.0 - outcome
        if self.raised_after is not None:
            self.n, self.wrong = self.n + 1, self.wrong + error
            return self.alarm
        if self.n % _OPEN_EVERY == 0:
            self._open()
        self.n += 1
        self.wrong += error
        factors = [1.0 + stake * (error - self.alpha) for stake in self._stakes()]
        for bet in self.bets:
            for i, factor in enumerate(factors):
                bet[i] *= factor
        if self.evidence >= 1 / self.false_alarm_rate:
            self.raised_after = self.n
        return self.alarm

    def _open(self) -> None:
        self.num_opened += 1
        share = 1 / (self.num_opened * (self.num_opened + 1)) / len(_EXCESSES)
        self.bets.append([share] * len(_EXCESSES))
        if len(self.bets) > _MOST_OPEN:
            self.bets.remove(min(self.bets, key=sum))

    def _stakes(self) -> list[float]:
        """Per size, the stake that grows fastest if the error rate is that much above alpha."""
        spread = self.alpha * (1 - self.alpha)
        return [min((1 - self.alpha) * 0.9, excess) / spread for excess in _EXCESSES]


class ShiftMonitor(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Tests "signals come from where the labelled ones came from" on every query, without outcomes.

    Each signal's rank among all before it is uniform as long as nothing changes; bets are placed on ranks that lean to
    one side, and on ranks that crowd at both ends.

    Attributes:
        seen: the labelled signals and those since, sorted.
        false_alarm_rate: the probability of ever raising an alarm while nothing changes.
        n: signals since the labels.
        sides: wealth by bet on the side, and on the ends: down, none, up.
        seed: of the numbers that part ties.

    Source: Vovk et al. 2021, "Retrain or not retrain: conformal test martingales for change-point detection",
        arXiv:2102.10439 (simple jumper).
    """

    seen: list[float]
    false_alarm_rate: float = 0.025
    n: int = 0
    sides: list[list[float]] = []
    seed: int = 0
    raised_after: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 1:
            raise ConfigError(f"false_alarm_rate must be between 0 and 1, not {self.false_alarm_rate!r}.")
        if not self.seen or not all(map(isfinite, self.seen)):
            raise DataError("The shift monitor needs the labelled answers' signals, all of them numbers.")
        self.seen.sort()
        if not self.sides:
            self.sides = [[1 / 6] * 3, [1 / 6] * 3]

    @property
    def evidence(self) -> float:
        """How many times over the bets have multiplied what was staked; alarm at 1 / false_alarm_rate."""
        return sum(map(sum, self.sides))

    @property
    def alarm(self) -> Alarm | None:
        """The alarm, once raised; it stays."""
        if self.raised_after is None:
            return None
        return Alarm(
            "shift",
            self.raised_after,
            self.false_alarm_rate,
            "the signals are no longer distributed as the labelled ones, for which alone the promise was made. Label "
            "anew: nearfar calibrate.",
        )

    def observe(self, signal: float) -> Alarm | None:
        """Takes in the signal of one near answer, accepted or not.

        Raises:
            DataError: it is not a number.
        """
        if not isfinite(signal):
            raise DataError(f"The signal is {signal!r}, not a number.")
        if self.raised_after is not None:
            self.n += 1
            return self.alarm
        below, upto = bisect_left(self.seen, signal), bisect_right(self.seen, signal)
        part = _uniform(self.seed, self.n)
        rank = (below + part * (upto - below + 1)) / (len(self.seen) + 1)
        insort(self.seen, signal)
        self.n += 1
        for wealth, position in zip(self.sides, (rank, abs(2 * rank - 1)), strict=True):
            total = sum(wealth)
            for i, lean in enumerate((-1.0, 0.0, 1.0)):
                staked = (1 - _JUMP) * wealth[i] + _JUMP * total / 3
                wealth[i] = staked * (1 + lean * (position - 0.5))
        if self.evidence >= 1 / self.false_alarm_rate:
            self.raised_after = self.n
        return self.alarm


class Monitor:
    """Both tests on one tier, with the stated rate split between them.

    Args:
        alpha: the promised error among accepted answers.
        signals: of the labelled answers, for the shift test; None: only outcomes are tested.
        false_alarm_rate: the probability that either is ever raised with nothing wrong.
    """

    def __init__(self, alpha: float, *, signals: Sequence[float] | None = None, false_alarm_rate: float = 0.05) -> None:
        share = false_alarm_rate / (1 if signals is None else 2)
        self.errors = ErrorMonitor(alpha=alpha, false_alarm_rate=share)
        self.shift = None if signals is None else ShiftMonitor(seen=list(signals), false_alarm_rate=share)

    @property
    def alarm(self) -> Alarm | None:
        """The first alarm that was raised; None: none so far."""
        return self.errors.alarm or (self.shift.alarm if self.shift else None)

    def observe_signal(self, signal: float) -> Alarm | None:
        """Takes in the signal of one near answer; see `ShiftMonitor`."""
        if self.shift is not None:
            self.shift.observe(signal)
        return self.alarm

    def observe_outcome(self, outcome: float) -> Alarm | None:
        """Takes in the outcome of one accepted answer; see `ErrorMonitor`."""
        self.errors.observe(outcome)
        return self.alarm


@dataclass(frozen=True, slots=True)
class Guarded:
    """A scorer that scores nothing once its monitor has raised an alarm, so that every answer of its tier defers."""

    scorer: Scorer
    monitor: Monitor

    @property
    def is_calibrated(self) -> bool:
        """As the scorer's, until the alarm."""
        return self.scorer.is_calibrated and self.monitor.alarm is None

    def score(self, signals: Signals) -> float | None:
        """The scorer's score; None after an alarm."""
        return None if self.monitor.alarm is not None else self.scorer.score(signals)


def _uniform(seed: int, n: int) -> float:
    """The n-th number of a stream, in [0, 1); it parts ties and is no secret.

    Source: splitmix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    z = (seed * 0xD1342543DE82EF95 + (n + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
