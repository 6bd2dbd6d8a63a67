"""How much several answers to one question differ in what they say: groups of equal meaning, and their entropy.

Pure arithmetic on groups and probabilities; how answers are found to mean the same is for `equivalence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log


def discrete_entropy(groups: Sequence[int]) -> float:
    """Entropy in nats of the shares of the answers that each group has; needs no log-probabilities.

    Args:
        groups: the group of each answer, at least one.

    Source: Farquhar et al. 2024, "Detecting hallucinations in large language models using semantic entropy", Nature
        630, "discrete semantic entropy".
    """
    return entropy([groups.count(group) / len(groups) for group in set(groups)])


def semantic_entropy(groups: Sequence[int], mean_logprobs: Sequence[float]) -> float:
    """Entropy in nats of the groups' probabilities, each the sum of its answers', normalised over all of them.

    An answer's probability is length-normalised: the geometric mean of its tokens' probabilities.

    Args:
        groups: the group of each answer, at least one.
        mean_logprobs: mean token log-probability of each answer, natural logarithm.

    Source: Kuhn, Gal and Farquhar 2023, arXiv:2302.09664, section 3; normalised over the groups as in Farquhar et al.
        2024, Nature 630, "Methods".
    """
    highest = max(mean_logprobs)
    mass: dict[int, float] = {}
    for group, logprob in zip(groups, mean_logprobs, strict=True):
        mass[group] = mass.get(group, 0.0) + exp(logprob - highest)
    total = sum(mass.values())
    return entropy([share / total for share in mass.values()])


def entropy(shares: Sequence[float]) -> float:
    """Shannon entropy in nats of shares that add up to 1."""
    return max(0.0, -sum(share * log(share) for share in shares if share > 0))


def sample_signals(groups: Sequence[int], mean_logprobs: Sequence[float] | None) -> dict[str, float]:
    """Signals of an answer and of the samples drawn beside it.

    - `self_consistency`: share of the samples that say what the answer says, in [0, 1].
    - `sample_agreement`: share of the most frequent meaning among the samples, in (0, 1].
    - `num_meanings`: how many different things the samples say.
    - `discrete_semantic_entropy`, `semantic_entropy`: see the functions; nats, 0 where all samples agree. The second
      is absent without log-probabilities.

    Args:
        groups: the group of the answer, then of each sample, at least one.
        mean_logprobs: of the samples, in their order; None: not known.

    Source of the first: Wang et al. 2023, "Self-consistency improves chain of thought reasoning in language models",
        arXiv:2203.11171.
    """
    own, samples = groups[0], list(groups[1:])
    signals = {
        "self_consistency": samples.count(own) / len(samples),
        "sample_agreement": max(samples.count(group) for group in set(samples)) / len(samples),
        "num_meanings": float(len(set(samples))),
        "discrete_semantic_entropy": discrete_entropy(samples),
    }
    if mean_logprobs is not None:
        signals["semantic_entropy"] = semantic_entropy(samples, mean_logprobs)
    return signals


#: Names of what `sample_signals` gives.
SAMPLE_SIGNALS = (
    "self_consistency",
    "sample_agreement",
    "num_meanings",
    "discrete_semantic_entropy",
    "semantic_entropy",
)
