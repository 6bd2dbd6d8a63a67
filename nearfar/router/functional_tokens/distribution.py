"""How likely each label is, read off one token; a label that a server does not show is unknown, not impossible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log

from nearfar.types import TokenLogprob

#: Log-probabilities below this are a server's way to write "masked" or minus infinity (vLLM sends -9999).
_IMPOSSIBLE = -1000.0


@dataclass(frozen=True, slots=True)
class LabelLogprobs:
    """The log-probabilities of the labels that a server showed, in nats, and the most that the others can have."""

    known: Mapping[str, float]
    unknown: tuple[str, ...] = ()
    ceiling: float = 0.0  # of each unknown label


@dataclass(frozen=True, slots=True)
class LabelCalibration:
    """Corrects labels' log-probabilities: `scale` times the log-probability, plus the label's `bias`.

    A label without a bias has 0. Source: vector scaling with one scale, Guo et al. 2017, arXiv:1706.04599, section 4.2;
    with scale 1 and bias -log p of content-free input it is contextual calibration, Zhao et al. 2021, arXiv:2102.09690.
    """

    scale: float = 1.0
    bias: Mapping[str, float] = field(default_factory=dict)

    def corrected(self, label: str, logprob: float) -> float:
        """An unnormalised log-probability."""
        return self.scale * logprob + self.bias.get(label, 0.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Probabilities over all labels, which sum to 1 where every label is known.

    Where some are unknown, `probabilities` are the least that the known ones have, as if each unknown one had all that
    it can have, which `at_most` says in the same measure: the two together sum to 1.
    """

    probabilities: Mapping[str, float]
    at_most: Mapping[str, float] = field(default_factory=dict)

    @property
    def best(self) -> str | None:
        """The likeliest known label; None: none is known."""
        return max(self.probabilities, key=lambda label: self.probabilities[label], default=None)

    @property
    def doubt(self) -> str | None:
        """An unknown label that may be likelier than the best one; None: there is none."""
        best = self.best
        if best is None:
            return next(iter(self.at_most), None)
        rival = max(self.at_most, key=lambda label: self.at_most[label], default=None)
        return rival if rival is not None and self.at_most[rival] >= self.probabilities[best] else None

    def among(self, labels: Sequence[str]) -> Distribution:
        """The distribution given that it is one of `labels`."""
        known = {label: p for label, p in self.probabilities.items() if label in labels}
        rest = {label: p for label, p in self.at_most.items() if label in labels}
        total = sum(known.values()) + sum(rest.values())
        if total <= 0:
            return Distribution(known, rest)
        return Distribution({a: p / total for a, p in known.items()}, {a: p / total for a, p in rest.items()})


def read(token: TokenLogprob, labels: Sequence[str]) -> LabelLogprobs:
    """What `token`, the first of an answer, and its alternatives say of `labels`.

    An alternative that a server does not show is at most as likely as the least likely one that it does, and all that
    are not shown share what the shown ones leave.
    """
    shown = {text: logprob for text, logprob in (*token.top, (token.token, token.logprob)) if logprob > _IMPOSSIBLE}
    known = {label: shown[label] for label in labels if label in shown}
    unknown = tuple(label for label in labels if label not in shown)
    if not unknown:
        return LabelLogprobs(known)
    left = max(1.0 - sum(map(exp, shown.values())), 1e-12)
    least = min((logprob for _, logprob in token.top if logprob > _IMPOSSIBLE), default=0.0)
    return LabelLogprobs(known, unknown, min(least, log(left)))


def distribution(found: LabelLogprobs, calibration: LabelCalibration | None = None) -> Distribution:
    """The labels' corrected probabilities, over all labels and renormalised."""
    correct = calibration or LabelCalibration()
    known = {label: correct.corrected(label, logprob) for label, logprob in found.known.items()}
    bounds = {label: correct.corrected(label, found.ceiling) for label in found.unknown}
    if not known:
        return Distribution({}, dict.fromkeys(bounds, 1.0 / max(1, len(bounds))))
    highest = max(*known.values(), *bounds.values()) if bounds else max(known.values())
    weights = {label: exp(value - highest) for label, value in known.items()}
    most = {label: exp(value - highest) for label, value in bounds.items()}
    total = sum(weights.values()) + sum(most.values())
    return Distribution(
        {label: weight / total for label, weight in weights.items()},
        {label: weight / total for label, weight in most.items()},
    )


def contextual(content_free: Sequence[LabelLogprobs], labels: Sequence[str]) -> LabelCalibration:
    """Takes away what the model prefers before it has read anything.

    Args:
        content_free: what it says of inputs without content; at least one.
        labels: all of them. One that the server does not show is counted with the most that it can have.

    Source: Zhao et al. 2021, arXiv:2102.09690, section 5: the mean of several inputs, W = diag(p)^-1, b = 0.
    """
    means = dict.fromkeys(labels, 0.0)
    for found in content_free:
        each = distribution(found)
        for label in labels:
            means[label] += (each.probabilities.get(label) or each.at_most.get(label, 0.0)) / len(content_free)
    least = 1e-9  # of a probability that single precision has lost
    return LabelCalibration(1.0, {label: -log(max(mean, least)) for label, mean in means.items()})
