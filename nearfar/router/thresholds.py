"""Thresholds: where a tier stops accepting its answers, fitted to scores and outcomes.

None of these carries a guarantee; one that does is a `ThresholdFitter` as well and takes their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from nearfar.errors import ConfigError
from nearfar.types import Threshold


@dataclass(frozen=True, slots=True)
class PlugInThreshold:
    """The lowest threshold whose accepted share is as accurate as asked, on the data that it was fitted on.

    It carries no guarantee: on new queries the accuracy may be lower, and with few labels it will be, because the best
    of many thresholds is chosen.
    """

    min_accuracy: float  # in [0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.min_accuracy <= 1:
            raise ConfigError(f"min_accuracy must be in [0, 1], not {self.min_accuracy!r}.")

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
        """The threshold; its value is None where no accepted share is as accurate as asked."""
        found = None
        for value, accepted, right in _cuts(scores, outcomes):
            if right / accepted >= self.min_accuracy - 1e-12:
                found = value
        return _measured(found, scores, outcomes)


@dataclass(frozen=True, slots=True)
class BestQualityThreshold:
    """The threshold whose cascade answers best, given what the next tier would have answered.

    Args:
        far_outcomes: outcomes of the next tier on the same queries, in [0, 1].
        deferral_cost: what a deferral must gain to be worth it, in units of quality; 0 asks for quality alone.

    It carries no guarantee. Ties go to the lower threshold: fewer deferrals.

    Source: the plug-in form of the optimal deferral rule of Jitkrittum et al. 2023, arXiv:2307.02764, section 3.
    """

    far_outcomes: Sequence[float]
    deferral_cost: float = 0.0

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
        """The threshold; its value is None where deferring everything is best."""
        gains = [near - (far - self.deferral_cost) for near, far in zip(outcomes, self.far_outcomes, strict=True)]
        found, best = None, 0.0
        for value, _, gain in _cuts(scores, gains):
            if gain >= best - 1e-12:
                found, best = value, max(best, gain)
        return _measured(found, scores, outcomes)


@dataclass(frozen=True, slots=True)
class FixedThreshold:
    """A threshold that was chosen beforehand, measured on the data.

    One half is Chow's rule where a wrong answer and a needless deferral are equally bad: Chow 1970, "On optimum
    recognition error and reject tradeoff".
    """

    value: float = 0.5  # in [0, 1]

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
        """The same threshold, with the share that it accepts."""
        return _measured(self.value, scores, outcomes)


def _cuts(scores: Sequence[float], values: Sequence[float]) -> Iterator[tuple[float, int, float]]:
    """Every threshold that matters, highest first, with how many it accepts and the sum of their values."""
    accepted, total = 0, 0.0
    ordered = sorted(zip(scores, values, strict=True), key=lambda pair: pair[0], reverse=True)
    for score, group in groupby(ordered, key=lambda pair: pair[0]):
        for _, value in group:
            accepted += 1
            total += value
        yield score, accepted, total


def _measured(value: float | None, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
    accepted = [
        outcome for score, outcome in zip(scores, outcomes, strict=True) if value is not None and score >= value
    ]
    return Threshold(
        value, len(scores), len(accepted) / len(scores), sum(accepted) / len(accepted) if accepted else None
    )
