"""Tools as labels: one sigmoid per tool over a request's vector, learned from past uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from nearfar.errors import DataError
from nearfar.types import Chunk, Embedder, Hit

from .tools import ToolUse

if TYPE_CHECKING:
    from numpy import float32, float64
    from numpy.typing import NDArray

#: Passes over the examples, examples a step, step length: MetaTool's training queries tell no more after this.
_EPOCHS, _BATCH, _STEP = 30, 128, 0.05

#: The pull of the weights to zero.
_DECAY = 1e-5


class ToolClassifier:
    """The probability of every tool that was ever used, each for itself, so that a request may need several or none.

    It is the multi-label classifier of arXiv:2409.02141 with a frozen encoder. It knows no tool without examples and
    is fitted anew where tools change: `ToolIndex` finds as much and needs neither; see decision 17.

    Args:
        names: the tools, in the columns' order.
        weights: shape (dim + 1, tools), the last row the constants.
        embedder: of requests.
    """

    def __init__(self, names: Sequence[str], weights: NDArray[float32], embedder: Embedder) -> None:
        self.names = tuple(names)
        self._weights = weights
        self._embedder = embedder

    @classmethod
    def fit(cls, uses: Sequence[ToolUse], embedder: Embedder, *, seed: int = 0) -> Self:
        """The classifier of the least binary cross-entropy, by Adam (Kingma and Ba 2015).

        Raises:
            DataError: there are no uses.
        """
        import numpy as np

        if not uses:
            raise DataError("No requests to learn tools from; give some that say which tools they needed.")
        names = sorted({name for use in uses for name in use.tools})
        column = {name: place for place, name in enumerate(names)}
        vectors = embedder.embed([use.text for use in uses])
        rows = np.concatenate([vectors, np.ones((len(uses), 1), np.float32)], axis=1)
        wanted = np.zeros((len(uses), len(names)), np.float32)
        for place, use in enumerate(uses):
            wanted[place, [column[name] for name in use.tools]] = 1
        draw = np.random.default_rng(seed)
        weights: NDArray[float32] = np.zeros((rows.shape[1], len(names)), np.float32)
        mean: NDArray[float64] = np.zeros(weights.shape)
        spread: NDArray[float64] = np.zeros(weights.shape)
        step = 0
        for epoch in range(_EPOCHS):
            length = _STEP * (1 - epoch / _EPOCHS)
            order = draw.permutation(len(uses))
            for start in range(0, len(order), _BATCH):
                batch = order[start : start + _BATCH]
                shares = 1 / (1 + np.exp(-np.clip(rows[batch] @ weights, -30, 30)))
                slope = rows[batch].T @ (shares - wanted[batch]) / len(batch) + _DECAY * weights
                step += 1
                mean = 0.9 * mean + 0.1 * slope
                spread = 0.999 * spread + 0.001 * slope * slope
                moved = (mean / (1 - 0.9**step)) / (np.sqrt(spread / (1 - 0.999**step)) + 1e-8)
                weights = (weights - length * moved).astype(np.float32)
        return cls(names, weights, embedder)

    def probabilities(self, query: str) -> dict[str, float]:
        """Every known tool's, each in [0, 1]."""
        import numpy as np

        row = np.append(self._embedder.embed_queries([query])[0], np.float32(1))
        shares = 1 / (1 + np.exp(-np.clip(row @ self._weights, -30, 30)))
        return dict(zip(self.names, shares.tolist(), strict=True))

    def search(self, query: str, *, k: int = 5) -> list[Hit]:
        """The k likeliest tools, likeliest first."""
        said = self.probabilities(query)
        best = sorted(said, key=lambda name: -said[name])[:k]
        return [Hit(Chunk(name, name, id=name), said[name], {"label": said[name]}) for name in best]
