"""Ridge regression with a Gaussian kernel over a query's form: what alike queries came to counts most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from .dense import Features
from .fitting import require_sklearn
from .queries import RoutingQuery

#: More queries than this are drawn from: the fit takes their square in memory, and a prediction looks at each of them.
_MOST_QUERIES = 8000


class FormKernel:
    """Several numbers of a query, such as the qualities of models, by those of queries of a like form.

    Learned from MMLU's other questions, it adds to a cascade what linear weights on the same form do not
    (benchmarks/routing_attempts.py).

    Args:
        width: the kernel is exp(-width * d²), d the distance of two forms (a standard deviation counts 0.1).
        penalty: of the squared norm; from 0.5 to 4 all are as good in that place, and so are widths from 0.5 to 1.

    Source: Saunders et al. 1998, "Ridge regression learning algorithm in dual variables".
    """

    def __init__(self, *, width: float = 0.5, penalty: float = 1.5) -> None:
        self.width = width
        self.penalty = penalty
        self._features = Features(None)
        self._known: Any = None  # (queries, features), float32
        self._squares: Any = None  # their squared lengths
        self._weights: Any = None  # (queries, numbers), float32
        self._intercepts: Any = None

    def fit(self, queries: Sequence[RoutingQuery], targets: Any) -> Self:
        """Learns from queries and their numbers, shape (queries, numbers)."""
        require_sklearn()
        import numpy as np
        from scipy.linalg import cho_factor, cho_solve

        known, wanted = self._features.fit(queries).astype(np.float32), np.asarray(targets, np.float64)
        if len(known) > _MOST_QUERIES:
            drawn = np.sort(np.random.default_rng(0).choice(len(known), _MOST_QUERIES, replace=False))
            known, wanted = known[drawn], wanted[drawn]
        self._know(known)
        self._intercepts = wanted.mean(axis=0)
        kernel = self._kernel(known)
        kernel[np.diag_indices_from(kernel)] += self.penalty
        factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
        self._weights = cho_solve(factor, (wanted - self._intercepts).astype(np.float32), check_finite=False)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> Any:
        """Shape (queries, numbers)."""
        import numpy as np

        asked = self._features.transform(queries).astype(np.float32)
        return self._kernel(asked) @ self._weights + self._intercepts

    def _know(self, known: Any) -> None:
        self._known, self._squares = known, (known**2).sum(axis=1)

    def _kernel(self, asked: Any) -> Any:
        import numpy as np

        squares = (asked**2).sum(axis=1)[:, None] + self._squares
        squares -= 2 * (asked @ self._known.T)
        return np.exp(-self.width * np.maximum(squares, 0, out=squares), out=squares)

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "width": self.width,
            "penalty": self.penalty,
            "features": self._features.state(),
            "known": self._known,
            "weights": self._weights,
            "intercepts": self._intercepts,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The regression that `state` describes."""
        kernel = cls(width=state["width"], penalty=state["penalty"])
        kernel._features = Features.from_state(state["features"], None)
        kernel._know(state["known"])
        kernel._weights, kernel._intercepts = state["weights"], state["intercepts"]
        return kernel
