"""Diverse hits: each new one counts for what it says beyond those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nearfar.types import Embedder, Hit

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


def diverse(hits: Sequence[Hit], embedder: Embedder, *, k: int, relevance: float = 0.7) -> list[Hit]:
    """The k hits that are relevant and unlike each other, by maximal marginal relevance.

    Args:
        hits: best first; their scores are put into [0, 1] by the least and the greatest.
        embedder: says how alike two hits are.
        k: at most so many.
        relevance: 1 keeps the order, 0 looks at unlikeness alone; 0.7 as in the original.

    Raises:
        ValueError: relevance is not in [0, 1].

    Source: Carbonell and Goldstein 1998.
    """
    if not 0 <= relevance <= 1:
        raise ValueError(f"relevance is {relevance!r}; it is a share in [0, 1].")
    import numpy as np

    if not hits or k < 1:
        return []
    vectors: NDArray[float32] = embedder.embed([hit.chunk.text for hit in hits])
    scores = np.array([hit.score for hit in hits])
    spread = scores.max() - scores.min()
    worth = (scores - scores.min()) / spread if spread > 0 else np.ones(len(hits))
    likeness = np.zeros(len(hits))
    left = np.ones(len(hits), bool)
    found: list[Hit] = []
    for _ in range(min(k, len(hits))):
        gains = np.where(left, relevance * worth - (1 - relevance) * likeness, -np.inf)
        best = int(gains.argmax())
        found.append(hits[best])
        left[best] = False
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return found
