"""Scorers: from signals to the probability that an answer is good enough, in plain Python, and their JSON form.

Knows nothing about how they are fitted; `calibration` does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import exp, isfinite, log, log1p
from typing import Literal, TypeAlias

import msgspec

from nearfar.errors import DataError
from nearfar.types import Signals


class MeanProbability(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="mean_probability", tag_field="kind"
):
    """The geometric mean of the answer's token probabilities, exp(mean_logprob): the default where nothing was fitted.

    It ranks answers and promises nothing: a score of 0.8 does not mean that 80 % of such answers are right.

    Source: "Chow-Average" in Gupta et al. 2024, arXiv:2404.10136, section 3.
    """

    @property
    def is_calibrated(self) -> bool:
        """Never: no outcome was seen."""
        return False

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return ("mean_logprob",)

    def score(self, signals: Signals) -> float | None:
        """The mean probability in [0, 1]; None where the answer has no log-probabilities."""
        mean_logprob = signals.get("mean_logprob")
        if mean_logprob is None or mean_logprob != mean_logprob:
            return None
        return exp(min(mean_logprob, 0.0))


class StatedProbability(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stated_probability", tag_field="kind"
):
    """A signal that is a probability as it comes: a classifier's confidence, agreement among samples, P(True).

    It ranks answers and promises nothing, as `MeanProbability`.

    Attributes:
        signal: its name.
    """

    signal: str

    @property
    def is_calibrated(self) -> bool:
        """Never: no outcome was seen."""
        return False

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return (self.signal,)

    def score(self, signals: Signals) -> float | None:
        """The signal, held to [0, 1]; None where it is missing or not finite."""
        value = signals.get(self.signal)
        if value is None or not isfinite(value):
            return None
        return min(1.0, max(0.0, value))


class LogisticScorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="logistic", tag_field="kind"):
    """Logistic regression over standardised signals.

    Attributes:
        features: names of the signals.
        coefficients: one per feature, for the feature in units of its scale.
        intercept: log-odds of a correct answer where every feature is at its mean.
        means: one per feature, taken off before scaling.
        scales: one per feature, above zero.

    Raises:
        ValueError: lengths differ, a number is not finite, or a scale is not above zero.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", with several inputs.
    """

    features: tuple[str, ...]
    coefficients: tuple[float, ...]
    intercept: float
    means: tuple[float, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        num_features = len(self.features)
        if not num_features or len(set(self.features)) != num_features:
            raise ValueError(f"features must be distinct names, at least one, not {self.features!r}")
        for name in ("coefficients", "means", "scales"):
            numbers: tuple[float, ...] = getattr(self, name)
            if len(numbers) != num_features:
                raise ValueError(f"{name} must be {num_features} numbers, as many as features, not {len(numbers)}")
            _require_finite(name, numbers)
        _require_finite("intercept", (self.intercept,))
        if min(self.scales) <= 0:
            raise ValueError("scales must be above zero")

    @property
    def is_calibrated(self) -> bool:
        """Always: it was fitted to outcomes."""
        return True

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return self.features

    def score(self, signals: Signals) -> float | None:
        """The probability in [0, 1]; None where a signal is missing or not finite."""
        log_odds = self.intercept
        for name, coefficient, mean, scale in zip(
            self.features, self.coefficients, self.means, self.scales, strict=True
        ):
            value = signals.get(name)
            if value is None or not isfinite(value):
                return None
            log_odds += coefficient * ((value - mean) / scale)
        return _sigmoid(log_odds)


class IsotonicScorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="isotonic", tag_field="kind"):
    """A monotone curve over one signal: linear between its points, flat beyond them.

    Attributes:
        signal: name of the signal.
        xs: values of the signal, strictly increasing.
        ys: scores at `xs` in [0, 1], never decreasing or never increasing.

    Raises:
        ValueError: lengths differ, a number is not finite or out of range, or the curve is not monotone.

    Source: Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".
    """

    signal: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.xs or len(self.xs) != len(self.ys):
            raise ValueError(f"xs and ys must be as many, at least one, not {len(self.xs)} and {len(self.ys)}")
        _require_finite("xs", self.xs)
        _require_finite("ys", self.ys)
        if any(low >= high for low, high in pairwise(self.xs)):
            raise ValueError("xs must increase strictly")
        if not all(0 <= y <= 1 for y in self.ys):
            raise ValueError("ys must be in [0, 1]")
        steps = [high - low for low, high in pairwise(self.ys)]
        if any(step < 0 for step in steps) and any(step > 0 for step in steps):
            raise ValueError("ys must never decrease, or never increase")

    @property
    def is_calibrated(self) -> bool:
        """Always: it was fitted to outcomes."""
        return True

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return (self.signal,)

    def score(self, signals: Signals) -> float | None:
        """The curve's value in [0, 1]; None where the signal is missing or not finite."""
        x = signals.get(self.signal)
        if x is None or not isfinite(x):
            return None
        if x <= self.xs[0]:
            return self.ys[0]
        if x >= self.xs[-1]:
            return self.ys[-1]
        right = bisect_left(self.xs, x)
        (x0, y0), (x1, y1) = (self.xs[right - 1], self.ys[right - 1]), (self.xs[right], self.ys[right])
        share = (x - x0) / (x1 - x0) if isfinite(x1 - x0) else 0.5
        low, high = (y0, y1) if y0 <= y1 else (y1, y0)
        return min(high, max(low, y0 + share * (y1 - y0)))


#: How a signal states a probability.
Scale: TypeAlias = Literal["probability", "log_probability"]


class TemperatureScorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="temperature", tag_field="kind"):
    """A stated probability made less, or more, extreme: its log-odds over a temperature.

    Attributes:
        signal: name of the signal.
        scale: how it states the probability.
        temperature: above zero; 1 changes nothing, more is less sure.

    Raises:
        ValueError: the temperature is not above zero or not finite.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2, for one probability.
    """

    signal: str
    scale: Scale
    temperature: float

    def __post_init__(self) -> None:
        _require_finite("temperature", (self.temperature,))
        if self.temperature <= 0:
            raise ValueError("temperature must be above zero")

    @property
    def is_calibrated(self) -> bool:
        """Always: it was fitted to outcomes."""
        return True

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return (self.signal,)

    def score(self, signals: Signals) -> float | None:
        """The probability in [0, 1]; None where the signal is missing or states none."""
        logs = stated(signals.get(self.signal), self.scale)
        return None if logs is None else _sigmoid((logs[0] - logs[1]) / self.temperature)


class BetaScorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="beta", tag_field="kind"):
    """A stated probability p on a curve with its own slope at either end: a·ln p − b·ln(1 − p) + c, as log-odds.

    Attributes:
        signal: name of the signal.
        scale: how it states the probability.
        a: at least zero; the slope towards 0.
        b: at least zero; the slope towards 1.
        c: log-odds where both logarithms are 0.

    Raises:
        ValueError: a number is not finite, or a slope is below zero.

    Source: Kull, Silva Filho and Flach 2017, "Beta calibration", AISTATS.
    """

    signal: str
    scale: Scale
    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        _require_finite("a, b and c", (self.a, self.b, self.c))
        if min(self.a, self.b) < 0:
            raise ValueError("a and b must be at least zero")

    @property
    def is_calibrated(self) -> bool:
        """Always: it was fitted to outcomes."""
        return True

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return (self.signal,)

    def score(self, signals: Signals) -> float | None:
        """The probability in [0, 1]; None where the signal is missing or states none."""
        logs = stated(signals.get(self.signal), self.scale)
        return None if logs is None else _sigmoid(self.a * logs[0] - self.b * logs[1] + self.c)


class Tree(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A decision tree as columns, the root first.

    Attributes:
        feature: index of the feature that a node asks for; -1: a leaf.
        threshold: to the left where the feature ≤ this.
        left: index of the left child.
        right: index of the right child.
        value: log-odds that a leaf adds.

    Raises:
        ValueError: columns of different lengths, a child before its parent, or a number that is not finite.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def __post_init__(self) -> None:
        n = len(self.feature)
        if not n or any(len(column) != n for column in (self.threshold, self.left, self.right, self.value)):
            raise ValueError("a tree's columns must be as long as each other, and not empty")
        _require_finite("values", self.value)
        _require_finite("thresholds", self.threshold)
        for i, feature in enumerate(self.feature):
            if feature >= 0 and not (i < self.left[i] < n and i < self.right[i] < n):
                raise ValueError("a tree's children must come after their parent")

    def add(self, row: Sequence[float]) -> float:
        """The log-odds of the leaf that the row falls into."""
        node = 0
        while (feature := self.feature[node]) >= 0:
            node = self.left[node] if row[feature] <= self.threshold[node] else self.right[node]
        return self.value[node]


class BoostedScorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="boosted", tag_field="kind"):
    """Gradient-boosted trees over signals.

    Attributes:
        features: names of the signals.
        intercept: log-odds before any tree.
        trees: each adds log-odds.

    Raises:
        ValueError: names that are not distinct, or a tree that asks for another feature.

    Source: Friedman 2001, "Greedy function approximation: a gradient boosting machine".
    """

    features: tuple[str, ...]
    intercept: float
    trees: tuple[Tree, ...]

    def __post_init__(self) -> None:
        if not self.features or len(set(self.features)) != len(self.features):
            raise ValueError(f"features must be distinct names, at least one, not {self.features!r}")
        _require_finite("intercept", (self.intercept,))
        if any(max(tree.feature) >= len(self.features) for tree in self.trees):
            raise ValueError("a tree asks for a feature that is not there")

    @property
    def is_calibrated(self) -> bool:
        """Always: it was fitted to outcomes."""
        return True

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return self.features

    def score(self, signals: Signals) -> float | None:
        """The probability in [0, 1]; None where a signal is missing or not finite."""
        row = []
        for name in self.features:
            value = signals.get(name)
            if value is None or not isfinite(value):
                return None
            row.append(value)
        return _sigmoid(self.intercept + sum(tree.add(row) for tree in self.trees))


class GroupedScorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="grouped", tag_field="kind"):
    """Another scorer's log-odds, shifted by group; a group without a shift of its own has none.

    Attributes:
        base: scores without regard to the group.
        group: name of the signal that numbers the groups.
        shifts: by the group's number, as text; log-odds, shrunk towards 0.

    Raises:
        ValueError: a shift is not finite.

    Source: Gelman and Hill 2007, "Data analysis using regression and multilevel models", chapter 12.
    """

    base: LogisticScorer | IsotonicScorer | TemperatureScorer | BetaScorer | BoostedScorer
    group: str
    shifts: Mapping[str, float]

    def __post_init__(self) -> None:
        _require_finite("shifts", tuple(self.shifts.values()))

    @property
    def is_calibrated(self) -> bool:
        """Always: it was fitted to outcomes."""
        return True

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads."""
        return (*self.base.signals, self.group)

    def score(self, signals: Signals) -> float | None:
        """The probability in [0, 1]; None where the base has none or the group is missing."""
        score, group = self.base.score(signals), signals.get(self.group)
        if score is None or group is None:
            return None
        return _sigmoid(log_odds(score) + self.shifts.get(group_key(group), 0.0))


#: Every scorer that a policy file may hold, told apart by its `kind`.
AnyScorer: TypeAlias = (
    MeanProbability
    | StatedProbability
    | LogisticScorer
    | IsotonicScorer
    | TemperatureScorer
    | BetaScorer
    | BoostedScorer
    | GroupedScorer
)

#: Stated probabilities are held this far from 0 and 1, where their log-odds would be infinite.
_EDGE = 1e-9

_decoder: msgspec.json.Decoder[AnyScorer] = msgspec.json.Decoder(AnyScorer)


def to_json(scorer: AnyScorer) -> bytes:
    """The scorer as one JSON object with its `kind`."""
    return msgspec.json.encode(scorer)


def from_json(data: bytes | str) -> AnyScorer:
    """The scorer that `to_json` wrote.

    Raises:
        DataError: not JSON, of an unknown kind, with unknown keys, or with numbers that no fit gives.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise DataError(f"Not a scorer: {exc}. Fit it anew: nearfar calibrate.") from exc


def stated(value: float | None, scale: Scale) -> tuple[float, float] | None:
    """The logarithms of a stated probability and of its complement; None where nothing is stated."""
    if value is None or not isfinite(value):
        return None
    if scale == "log_probability":
        if value > 1e-9:
            return None
        value = exp(value)
    if not 0 <= value <= 1:
        return None
    value = min(max(value, _EDGE), 1 - _EDGE)
    return log(value), log1p(-value)


def log_odds(score: float) -> float:
    """Of a probability, held off 0 and 1."""
    score = min(max(score, _EDGE), 1 - _EDGE)
    return log(score) - log1p(-score)


def group_key(group: float) -> str:
    """A group's number as the policy file writes it."""
    return f"{group:g}"


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + exp(-x))
    odds = exp(x)
    return odds / (1.0 + odds)


def _require_finite(name: str, numbers: Sequence[float]) -> None:
    if not all(map(isfinite, numbers)):
        raise ValueError(f"{name} must be finite")
