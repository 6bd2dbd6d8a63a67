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
from .fitting import MIN_EXAMPLES, gains, require_sklearn
from .ngrams import NgramRidge
from .protocol import PredictiveRouter
from .queries import RoutingExample, RoutingQuery, question_key

#: Folds inside the training data in which the text's predictions are made.
_NUM_INNER_FOLDS = 4

#: Points of the map from a signal to its rank.
_NUM_KNOTS = 65


class Hybrid:
    """Expected gain from the near answer's signals, what the text says of either model, and their products.

    Where the near answer is unsure, what counts is whether the strong model would do better, which the text tells;
    where it is sure, the text counts little: hence the products. A signal is read as its rank among the training
    answers, so that its units do not matter. The text's predictions are the qualities of the weak and of the strong
    model, each by `NgramRidge` and by `GainRidge`, out of fold in training, and likewise those of `also`'s models.

    Args:
        signals: names of the near answer's signals; a query may lack some of them.
        embedder: of the text, for `GainRidge`; None: it reads the text's form alone.
        also: tables of other models' qualities on other queries, which tell what is hard; a question that the
            labelled queries have too is left out.
        penalty: of the squared weights, for features of unit variance; from 30 to 300 all are as good on
            `mmlu_llama3_cascade` (benchmarks/routing.py).
    """

    kind = "hybrid"
    reads_signals = True

    def __init__(
        self,
        signals: Sequence[str],
        embedder: Embedder | None = None,
        *,
        also: Sequence[Sequence[RoutingExample]] = (),
        penalty: float = 100.0,
    ) -> None:
        self.signals = tuple(signals)
        self.also = tuple(also)
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
        self._texts, predicted = [], []
        for alone in _qualities(examples):
            for router in self._pair():
                predicted.append(out_of_fold(router, alone, _NUM_INNER_FOLDS, seed=1))
                self._texts.append(router.fit(alone))
        asked = {question_key(each.text) for each in examples}
        for table in self.also:
            others = [each for each in table if question_key(each.text) not in asked]
            if len(others) < MIN_EXAMPLES:
                raise DataError(
                    f"{len(others)} queries of another table are left without the labelled questions, and "
                    f"{MIN_EXAMPLES} are needed. Leave that table out."
                )
            for alone in _qualities(others):
                for router in self._pair():
                    self._texts.append(router.fit(alone))
                    predicted.append(router.predict(examples))
        raw = self._raw(examples, predicted)
        self._means, scales = raw.mean(axis=0), raw.std(axis=0)
        scales[scales < 1e-9] = 1.0
        self._scales = scales
        ridge = Ridge(alpha=self.penalty).fit((raw - self._means) / scales, targets)
        self._weights, self._intercept = ridge.coef_, float(ridge.intercept_)
        return self

    def _pair(self) -> tuple[PredictiveRouter, PredictiveRouter]:
        return NgramRidge(), GainRidge(self._embedder)

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
        """The router that `state` describes; to fit it anew it lacks `also`."""
        router = cls(state["signals"], embedder, penalty=state["penalty"])
        for words, form in zip(state["texts"][::2], state["texts"][1::2], strict=True):
            router._texts += [NgramRidge.from_state(words), GainRidge.from_state(form, embedder)]
        router._knots, router._means, router._scales = state["knots"], state["means"], state["scales"]
        router._weights, router._intercept = state["weights"], state["intercept"]
        return router


def _qualities(examples: Sequence[RoutingExample]) -> list[list[RoutingExample]]:
    """The quality of either model as its gain over one that is always wrong, of those whose quality varies.

    A model that is always right, or never, leaves nothing for the text to tell; two that never differ are one.
    """
    weak = [RoutingExample(each.text, strong=each.weak) for each in examples]
    strong = [RoutingExample(each.text, strong=each.strong) for each in examples]
    found = [weak, strong] if any(each.gain for each in examples) else [strong]
    return [alone for alone in found if len({each.strong for each in alone}) > 1]


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
