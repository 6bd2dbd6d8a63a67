"""How good rankings are: discounted gain, recall and reciprocal rank per query, and their means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, log2


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over queries and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def ndcg(ranked: Sequence[str], relevant: Mapping[str, float], k: int = 10) -> float:
    """Discounted gain of the first k places over the best that there is, in [0, 1].

    Args:
        ranked: ids, best first.
        relevant: the gain of each relevant id; others gain nothing.
        k: places that count.

    Source: Järvelin and Kekäläinen 2002, with linear gain as trec_eval's `ndcg_cut`.
    """
    ideal = fsum(gain / log2(place + 2) for place, gain in enumerate(sorted(relevant.values(), reverse=True)[:k]))
    found = fsum(relevant.get(name, 0.0) / log2(place + 2) for place, name in enumerate(ranked[:k]))
    return found / ideal if ideal > 0 else 0.0


def recall(ranked: Sequence[str], relevant: Mapping[str, float], k: int) -> float:
    """The share of the relevant ids among the first k, in [0, 1]; 0 where nothing is relevant."""
    wanted = {name for name, gain in relevant.items() if gain > 0}
    return len(wanted.intersection(ranked[:k])) / len(wanted) if wanted else 0.0


def reciprocal_rank(ranked: Sequence[str], relevant: Mapping[str, float], k: int = 10) -> float:
    """One over the place of the first relevant id; 0 where none is among the first k."""
    places = (place for place, name in enumerate(ranked[:k], 1) if relevant.get(name, 0) > 0)
    return 1 / next(places, float("inf"))


#: The figures of every report, by name.
FIGURES = ("ndcg@10", "recall@1", "recall@3", "recall@5", "recall@10", "recall@100", "mrr@10")


def figures(ranked: Sequence[str], relevant: Mapping[str, float]) -> dict[str, float]:
    """One query's figures, by the names in `FIGURES`."""
    return {
        "ndcg@10": ndcg(ranked, relevant),
        **{f"recall@{k}": recall(ranked, relevant, k) for k in (1, 3, 5, 10, 100)},
        "mrr@10": reciprocal_rank(ranked, relevant),
    }


def mean(values: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Mean:
    """The mean and its percentile-bootstrap interval over queries (Efron and Tibshirani 1993, chapter 13).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("There is no mean of no values.")
    import numpy as np

    draw = np.random.default_rng(seed)
    array = np.asarray(values, float)
    means = [float(array[draw.integers(len(array), size=len(array))].mean()) for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(float(array.mean()), float(low), float(high))
