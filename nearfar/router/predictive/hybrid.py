"""A cascade's judge: the near answer's signals joined with what the query's text says about either model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite
from typing import Any, Self

from nearfar.errors import DataError
from nearfar.types import Embedder

from .blend import out_of_fold
from .dense import GainRidge
from .fitting import gains, require_sklearn
from .ngrams import NgramRidge
from .protocol import PredictiveRouter
from .queries import RoutingExample, RoutingQuery

#: Folds inside the training data in which the text's predictions are made.
_NUM_INNER_FOLDS = 4

#: Points of the map from a signal to its rank.
_NUM_KNOTS = 65


class Hybrid:
    """Expected gain from the near answer's signals, four predictions from the text, and their products.

    Where the near answer is unsure, what counts is whether the strong model would do better, which the text tells;
    where it is sure, the text counts little: hence the products. A signal is read as its rank among the training
    answers, so that its units do not matter. The predictions are the qualities of the weak and of the strong model,
    each by `NgramRidge` and by `GainRidge`, out of fold in training.

    Args:
        signals: names of the near answer's signals; a query may lack some of them.
        embedder: of the text, for `GainRidge`; None: it reads the text's form alone.
        penalty: of the squared weights, for features of unit variance; from 30 to 300 all are as good on
            `mmlu_llama3_cascade` (benchmarks/routing.py).
    """

    kind = "hybrid"
    reads_signals = True

    def __init__(self, signals: Sequence[str], embedder: Embedder | None = None, *, penalty: float = 100.0) -> None:
        self.signals = tuple(signals)
        self.is_embedding_based = embedder is not None
        self.penalty = penalty
        self._embedder = embedder
        self._texts: list[PredictiveRouter] = []
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
        # The quality of one model is its gain over a model that is always wrong.
        weak = [RoutingExample(each.text, strong=each.weak) for each in examples]
        strong = [RoutingExample(each.text, strong=each.strong) for each in examples]
        self._texts, predicted = [], []
        for alone in (weak, strong):
            if len({each.strong for each in alone}) == 1:  # always right, or never: the text tells nothing
                continue
            routers: list[PredictiveRouter] = [NgramRidge(), GainRidge(self._embedder)]
            for router in routers:
                predicted.append(out_of_fold(router, alone, _NUM_INNER_FOLDS, seed=1))
                self._texts.append(router.fit(alone))
        raw = self._raw(examples, predicted)
        self._means, scales = raw.mean(axis=0), raw.std(axis=0)
        scales[scales < 1e-9] = 1.0
        self._scales = scales
        ridge = Ridge(alpha=self.penalty).fit((raw - self._means) / scales, targets)
        self._weights, self._intercept = ridge.coef_, float(ridge.intercept_)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        raw = self._raw(queries, [router.predict(queries) for router in self._texts])
        found: list[float] = (((raw - self._means) / self._scales) @ self._weights + self._intercept).tolist()
        return found

    def _raw(self, queries: Sequence[RoutingQuery], predicted: Sequence[Sequence[float]]) -> Any:
        import numpy as np

        texts = [np.array(column) for column in predicted]
        columns: list[Any] = [*texts]
        ranks = []
        levels = np.linspace(-1, 1, _NUM_KNOTS)
        for name, knots in zip(self.signals, self._knots, strict=True):
            read = np.array([query.signals.get(name, np.nan) for query in queries], np.float64)
            missing = ~np.isfinite(read)
            rank = np.where(missing, 0.0, np.interp(np.where(missing, 0.0, read), knots, levels))
            ranks.append(rank)
            columns += [rank, rank**2, rank**3, missing.astype(np.float64), *(rank * text for text in texts)]
        columns += [one * other for one, other in combinations(ranks, 2)]
        return np.stack(columns, axis=1)

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "signals": list(self.signals),
            "embeds": self.is_embedding_based,
            "penalty": self.penalty,
            "texts": [router.state() for router in self._texts],
            "knots": self._knots,
            "means": self._means,
            "scales": self._scales,
            "weights": self._weights,
            "intercept": self._intercept,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder | None) -> Self:
        """The router that `state` describes."""
        router = cls(state["signals"], embedder, penalty=state["penalty"])
        for words, form in zip(state["texts"][::2], state["texts"][1::2], strict=True):
            router._texts += [NgramRidge.from_state(words), GainRidge.from_state(form, embedder)]
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
