"""A cascade's judge: the near answer's signals joined with what the query's text says about either model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite
from typing import Any, Self

from nearfar.errors import DataError
from nearfar.types import Embedder

from .blend import out_of_fold
from .dense import Features
from .fitting import MIN_EXAMPLES, gains, require_sklearn
from .kernel import FormKernel
from .ngrams import NgramRidge
from .queries import RoutingExample, RoutingQuery, question_key

#: Folds inside the training data in which the words' predictions are made.
_NUM_INNER_FOLDS = 4

#: Points of the map from a signal to its rank.
_NUM_KNOTS = 65

#: What the text's parts count beside a signal's term of standard deviation 1: form and embedding as `Features` has
#: them; predictions by words, and those learned from other tables, per standard deviation.
_TEXT_WEIGHT, _WORDS_WEIGHT, _ALSO_WEIGHT = 0.7, 0.2, 0.2


class Hybrid:
    """Expected gain from the near answer's signals and from the text, whose weights move with the signals.

    Where the near answer is unsure, what counts is whether the strong model would do better, which the text tells;
    where it is sure, the text counts little: hence ridge regression on both and on their products. A signal is read as
    its rank among the training answers, so that its units do not matter. Of the text it takes the form, the embedding
    where there is an embedder, what the words say of either model's quality (`NgramRidge`, out of fold in training),
    and what words and form (`FormKernel`) say of the qualities of `also`'s models.

    Args:
        signals: names of the near answer's signals; a query may lack some of them.
        embedder: of the text; None: it is not embedded.
        also: tables of other models' qualities on other queries, which tell what is hard; a question that the
            labelled queries have too is left out.
        penalty: of the squared weights; 20 and 40 are as good on `mmlu_llama3_cascade`, in three draws of folds that
            are not the published one (benchmarks/routing_attempts.py).

    Source: Hastie and Tibshirani 1993, "Varying-coefficient models".
    """

    kind = "hybrid"
    reads_signals = True

    def __init__(
        self,
        signals: Sequence[str],
        embedder: Embedder | None = None,
        *,
        also: Sequence[Sequence[RoutingExample]] = (),
        penalty: float = 40.0,
    ) -> None:
        self.signals = tuple(signals)
        self.also = tuple(also)
        self.is_embedding_based = embedder is not None
        self.penalty = penalty
        self._text = Features(embedder)
        self._words: list[NgramRidge] = []
        self._others: list[_Others] = []
        self._knots: Any = None  # (signals, knots), rising
        self._terms_scale: Any = None  # (2, terms of the signals): means, what counts 1
        self._text_scale: Any = None  # (2, numbers of the text)
        self._weights: Any = None
        self._intercept = 0.0

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        require_sklearn()
        import numpy as np
        from sklearn.linear_model import Ridge

        targets = gains(examples)
        self._knots = np.array([_knots(name, examples) for name in self.signals])
        asked = {question_key(each.text) for each in examples}
        self._others = [
            _Others().fit([each for each in table if question_key(each.text) not in asked]) for table in self.also
        ]
        qualities = _qualities(examples)
        words = np.array([out_of_fold(NgramRidge(), alone, _NUM_INNER_FOLDS, seed=1) for alone in qualities]).T
        self._words = [NgramRidge().fit(alone) for alone in qualities]
        blocks = [self._text.fit(examples), words, *(each.predict(examples) for each in self._others)]
        weights = [_TEXT_WEIGHT, _WORDS_WEIGHT, *(_ALSO_WEIGHT for _ in self._others)]
        # Form and embedding have their scale; a prediction counts by its standard deviation.
        spreads = [np.ones(blocks[0].shape[1]), *(_spread(block) for block in blocks[1:])]
        text, (ranks, terms) = np.hstack(blocks), self._read(examples)
        scales = np.concatenate([spread / weight for spread, weight in zip(spreads, weights, strict=True)])
        self._text_scale = np.stack([text.mean(axis=0), scales])
        self._terms_scale = np.stack([terms.mean(axis=0), _spread(terms)])
        ridge = Ridge(alpha=self.penalty).fit(self._columns(text, ranks, terms), targets)
        self._weights, self._intercept = ridge.coef_, float(ridge.intercept_)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        import numpy as np

        words = np.array([router.predict(queries) for router in self._words]).T
        text = np.hstack([self._text.transform(queries), words, *(each.predict(queries) for each in self._others)])
        found: list[float] = (self._columns(text, *self._read(queries)) @ self._weights + self._intercept).tolist()
        return found

    def _read(self, queries: Sequence[RoutingQuery]) -> tuple[Any, Any]:
        """The signals' ranks in [-1, 1], 0 where one is missing, and the terms made of them."""
        import numpy as np

        ranks, terms = [], []
        levels = np.linspace(-1, 1, _NUM_KNOTS)
        for name, knots in zip(self.signals, self._knots, strict=True):
            read = np.array([query.signals.get(name, np.nan) for query in queries], np.float64)
            missing = ~np.isfinite(read)
            rank = np.where(missing, 0.0, np.interp(np.where(missing, 0.0, read), knots, levels))
            ranks.append(rank)
            terms += [rank, rank**2, rank**3, missing.astype(np.float64)]
        terms += [one * other for one, other in combinations(ranks, 2)]
        return np.stack(ranks, axis=1), np.stack(terms, axis=1)

    def _columns(self, text: Any, ranks: Any, terms: Any) -> Any:
        import numpy as np

        text = (text - self._text_scale[0]) / self._text_scale[1]
        terms = (terms - self._terms_scale[0]) / self._terms_scale[1]
        return np.hstack([terms, text, *(rank[:, None] * text for rank in ranks.T)])

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "signals": list(self.signals),
            "embeds": self.is_embedding_based,
            "penalty": self.penalty,
            "text": self._text.state(),
            "words": [router.state() for router in self._words],
            "others": [each.state() for each in self._others],
            "knots": self._knots,
            "text_scale": self._text_scale,
            "terms_scale": self._terms_scale,
            "weights": self._weights,
            "intercept": self._intercept,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder | None) -> Self:
        """The router that `state` describes; to fit it anew it lacks `also`."""
        router = cls(state["signals"], embedder, penalty=state["penalty"])
        router._text = Features.from_state(state["text"], embedder)
        router._words = [NgramRidge.from_state(each) for each in state["words"]]
        router._others = [_Others.from_state(each) for each in state["others"]]
        router._knots, router._text_scale = state["knots"], state["text_scale"]
        router._terms_scale, router._weights = state["terms_scale"], state["weights"]
        router._intercept = state["intercept"]
        return router


class _Others:
    """What another table's outcomes say of a text: the qualities of its models, by words and by form."""

    def __init__(self) -> None:
        self._words: list[NgramRidge] = []
        self._form = FormKernel()

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from the table's queries.

        Raises:
            DataError: too few of them, or its models' qualities are all the same.
        """
        if len(examples) < MIN_EXAMPLES:
            raise DataError(
                f"{len(examples)} queries of another table are left without the labelled questions, and "
                f"{MIN_EXAMPLES} are needed. Leave that table out."
            )
        qualities = _qualities(examples)
        if not qualities:
            raise DataError("The models of another table did equally well on all its queries. Leave that table out.")
        self._words = [NgramRidge().fit(alone) for alone in qualities]
        self._form.fit(examples, [[alone[i].strong for alone in qualities] for i in range(len(examples))])
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> Any:
        """Shape (queries, numbers)."""
        import numpy as np

        return np.column_stack([*(router.predict(queries) for router in self._words), self._form.predict(queries)])

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {"words": [router.state() for router in self._words], "form": self._form.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `state` describes."""
        others = cls()
        others._words = [NgramRidge.from_state(each) for each in state["words"]]
        others._form = FormKernel.from_state(state["form"])
        return others


def _spread(columns: Any) -> Any:
    """Each column's standard deviation; 1 where all its numbers are the same."""
    found = columns.std(axis=0)
    found[found < 1e-9] = 1.0
    return found


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
