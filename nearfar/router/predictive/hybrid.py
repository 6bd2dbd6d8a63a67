"""A cascade's judge: the near answer's signals joined with what the query's text says about either model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Self

from nearfar.errors import DataError

from .blend import out_of_fold
from .fitting import gains, require_sklearn
from .ngrams import NgramRidge
from .queries import RoutingExample, RoutingQuery

#: Folds inside the training data in which the text's predictions are made.
_NUM_INNER_FOLDS = 4

#: Points of the map from a signal to its rank.
_NUM_KNOTS = 65


class Hybrid:
    """Expected gain from the near answer's signals, two predictions from the text, and their products.

    Where the near answer is unsure, what counts is whether the strong model would do better, which the text tells;
    where it is sure, the text counts little: hence the products. A signal is read as its rank among the training
    answers, so that its units do not matter. The predictions are the qualities of the weak and of the strong model,
    each by `NgramRidge`, out of fold in training.

    Args:
        signals: names of the near answer's signals; a query may lack some of them.
        penalty: of the squared weights, for features of unit variance.
    """

    kind = "hybrid"
    reads_signals = True
    is_embedding_based = False

    def __init__(self, signals: Sequence[str], *, penalty: float = 100.0) -> None:
        self.signals = tuple(signals)
        self.penalty = penalty
        self._weak = NgramRidge()
        self._strong = NgramRidge()
        self._knots: Any = None  # (signals, knots), rising
        self._means: Any = None
        self._scales: Any = None
        self._weights: Any = None
        self._intercept = 0.0

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        require_sklearn()
        import numpy as np
        from sklearn.linear_model import Ridge

        targets = gains(examples)
        self._knots = np.array([_knots(name, examples) for name in self.signals])
        predicted = []
        for router, of_strong in ((self._weak, False), (self._strong, True)):
            # The quality of one model is the gain over a model that is always wrong.
            alone = [
                RoutingExample(each.text, weak=0.0, strong=each.strong if of_strong else each.weak) for each in examples
            ]
            if len({each.strong for each in alone}) == 1:  # always right, or never: the text tells nothing
                predicted.append([0.0] * len(alone))
                continue
            predicted.append(out_of_fold(router, alone, _NUM_INNER_FOLDS, seed=1))
            router.fit(alone)
        raw = self._raw(examples, *predicted)
        self._means, scales = raw.mean(axis=0), raw.std(axis=0)
        scales[scales < 1e-9] = 1.0
        self._scales = scales
        ridge = Ridge(alpha=self.penalty).fit((raw - self._means) / scales, targets)
        self._weights, self._intercept = ridge.coef_, float(ridge.intercept_)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        raw = self._raw(queries, self._weak.predict(queries), self._strong.predict(queries))
        found: list[float] = (((raw - self._means) / self._scales) @ self._weights + self._intercept).tolist()
        return found

    def _raw(self, queries: Sequence[RoutingQuery], weak: Sequence[float], strong: Sequence[float]) -> Any:
        import numpy as np

        columns: list[Any] = [np.array(weak), np.array(strong)]
        levels = np.linspace(-1, 1, _NUM_KNOTS)
        for name, knots in zip(self.signals, self._knots, strict=True):
            read = np.array([query.signals.get(name, np.nan) for query in queries], np.float64)
            missing = ~np.isfinite(read)
            rank = np.where(missing, 0.0, np.interp(np.where(missing, 0.0, read), knots, levels))
            columns += [rank, rank**2, rank**3, missing.astype(np.float64), rank * columns[0], rank * columns[1]]
        return np.stack(columns, axis=1)

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "signals": list(self.signals),
            "penalty": self.penalty,
            "weak": self._weak.state(),
            "strong": self._strong.state(),
            "knots": self._knots,
            "means": self._means,
            "scales": self._scales,
            "weights": self._weights,
            "intercept": self._intercept,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The router that `state` describes."""
        router = cls(state["signals"], penalty=state["penalty"])
        router._weak, router._strong = NgramRidge.from_state(state["weak"]), NgramRidge.from_state(state["strong"])
        router._knots, router._means, router._scales = state["knots"], state["means"], state["scales"]
        router._weights, router._intercept = state["weights"], state["intercept"]
        return router


def _knots(name: str, examples: Sequence[RoutingExample]) -> Any:
    """Quantiles of a signal, made to rise strictly.

    Raises:
        DataError: no example has the signal, or all have the same.
    """
    import numpy as np

    read = [value for value in (each.signals.get(name) for each in examples) if value is not None and isfinite(value)]
    if not read:
        raise DataError(f"No labelled query has the signal {name!r} as a finite number. Leave it out.")
    if min(read) == max(read):
        raise DataError(f"The signal {name!r} is {read[0]:g} on every labelled query and tells nothing. Leave it out.")
    knots = np.quantile(np.array(read), np.linspace(0, 1, _NUM_KNOTS))
    return np.maximum.accumulate(knots + np.arange(_NUM_KNOTS) * 1e-12 * max(1.0, float(np.abs(knots).max())))
