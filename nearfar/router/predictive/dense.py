"""Linear routers over a query's vector: its form, and its embedding where there is an embedder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from nearfar.types import Embedder

from .fitting import gains, require_sklearn
from .queries import SURFACE, RoutingExample, RoutingQuery

#: Standard deviations beyond which a feature is cut off: one odd query must not get an odd score.
_REACH = 5.0


#: What a standard deviation of the form counts beside an embedding of length 1. On `routellm_gsm8k` and
#: `routellm_mmlu` anything from 0.05 to 0.2 is as good within the folds' noise (benchmarks/routing.py).
_FORM_WEIGHT = 0.1


class Features:
    """A query's vector: its form in standard deviations from its mean, lightly weighted, and its embedding as it is."""

    def __init__(self, embedder: Embedder | None) -> None:
        self.embedder = embedder
        self._means: Any = None
        self._scales: Any = None

    def fit(self, queries: Sequence[RoutingQuery]) -> Any:
        form = _form(queries)
        self._means, scales = form.mean(axis=0), form.std(axis=0)
        scales[scales < 1e-6] = 1.0
        self._scales = scales / _FORM_WEIGHT
        return self.transform(queries)

    def transform(self, queries: Sequence[RoutingQuery]) -> Any:
        import numpy as np

        reach = _REACH * _FORM_WEIGHT
        form = np.clip((_form(queries) - self._means) / self._scales, -reach, reach)
        if self.embedder is None:
            return form
        return np.hstack([form, self.embedder.embed([query.text for query in queries])])

    def state(self) -> dict[str, Any]:
        return {"means": self._means, "scales": self._scales}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder | None) -> Self:
        features = cls(embedder)
        features._means, features._scales = state["means"], state["scales"]
        return features


def _form(queries: Sequence[RoutingQuery]) -> Any:
    import numpy as np

    return np.array([query.surface for query in queries], np.float64).reshape(len(queries), len(SURFACE))


class GainRidge:
    """Ridge regression of the gain on the query's form, and on its embedding where there is an embedder.

    Args:
        embedder: None reads the form alone.
        penalty: of the squared weights; None: 3 for the form alone, 20 with an embedding (benchmarks/routing.py).
    """

    kind = "ridge"
    reads_signals = False

    def __init__(self, embedder: Embedder | None = None, *, penalty: float | None = None) -> None:
        self.embedder = embedder
        self.is_embedding_based = embedder is not None
        self.penalty = penalty if penalty is not None else (3.0 if embedder is None else 20.0)
        self._features = Features(embedder)
        self._weights: Any = None
        self._intercept = 0.0

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        require_sklearn()
        from sklearn.linear_model import Ridge

        targets = gains(examples)
        ridge = Ridge(alpha=self.penalty).fit(self._features.fit(examples), targets)
        self._weights, self._intercept = ridge.coef_, float(ridge.intercept_)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        found: list[float] = (self._features.transform(queries) @ self._weights + self._intercept).tolist()
        return found

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "penalty": self.penalty,
            "embeds": self.is_embedding_based,
            "features": self._features.state(),
            "weights": self._weights,
            "intercept": self._intercept,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder | None) -> Self:
        """The router that `state` describes."""
        router = cls(embedder, penalty=state["penalty"])
        router._features = Features.from_state(state["features"], embedder)
        router._weights, router._intercept = state["weights"], state["intercept"]
        return router


class TwoLogistic:
    """Probability that the strong model is right, less that the weak one is, each by logistic regression.

    A quality between 0 and 1 counts as right from one half up.

    Args:
        embedder: None reads the form alone.
        penalty: of the squared weights; None: 0.3 for the form alone, 3 with an embedding.
    """

    kind = "logistic"
    reads_signals = False

    def __init__(self, embedder: Embedder | None = None, *, penalty: float | None = None) -> None:
        self.embedder = embedder
        self.is_embedding_based = embedder is not None
        self.penalty = penalty if penalty is not None else (0.3 if embedder is None else 3.0)
        self._features = Features(embedder)
        self._weights: Any = None  # (2, features): weak, strong
        self._intercepts: Any = None

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        require_sklearn()
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        gains(examples)
        matrix = self._features.fit(examples)
        rows: list[Any] = []
        intercepts: list[float] = []
        for right in ([e.weak >= 0.5 for e in examples], [e.strong >= 0.5 for e in examples]):
            if len(set(right)) == 1:  # always right, or never
                rows.append(np.zeros(matrix.shape[1]))
                intercepts.append(20.0 if right[0] else -20.0)
                continue
            model = LogisticRegression(C=1 / self.penalty, max_iter=1000).fit(matrix, right)
            rows.append(model.coef_[0])
            intercepts.append(float(model.intercept_[0]))
        self._weights, self._intercepts = np.array(rows), np.array(intercepts)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        import numpy as np

        log_odds = self._features.transform(queries) @ self._weights.T + self._intercepts
        right = 1 / (1 + np.exp(-log_odds))
        found: list[float] = (right[:, 1] - right[:, 0]).tolist()
        return found

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "penalty": self.penalty,
            "embeds": self.is_embedding_based,
            "features": self._features.state(),
            "weights": self._weights,
            "intercepts": self._intercepts,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder | None) -> Self:
        """The router that `state` describes."""
        router = cls(embedder, penalty=state["penalty"])
        router._features = Features.from_state(state["features"], embedder)
        router._weights, router._intercepts = state["weights"], state["intercepts"]
        return router


class MatrixFactorization:
    """RouteLLM's matrix factorization: a model's strength on a query is bilinear in the two's vectors.

    strength(model, query) = v · (u_model * (W · embedding + b)), trained by Adam so that the logistic of the difference
    of two strengths is the probability of winning; an equal pair of answers is half a win.

    Args:
        embedder: the query's vector.
        dim: of the shared space.
        num_epochs: passes over the labelled queries.
        learning_rate: Adam's.
        weight_decay: share of each weight lost per step, times the learning rate.

    Source: Ong et al. 2024, arXiv:2406.18665, section 4.2.
    """

    kind = "matrix-factorization"
    reads_signals = False
    is_embedding_based = True

    def __init__(
        self,
        embedder: Embedder,
        *,
        dim: int = 64,
        num_epochs: int = 30,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.3,
    ) -> None:
        self.embedder = embedder
        self.dim = dim
        self.num_epochs = num_epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self._direction: Any = None  # the strong model's strength less the weak one's, as a function of the embedding
        self._offset = 0.0

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        import numpy as np

        wins = (np.sign(gains(examples)) + 1) / 2
        vectors = np.asarray(self.embedder.embed([example.text for example in examples]), np.float64)
        draw = np.random.default_rng(0)
        dim = self.dim
        parameters = {
            "models": draw.normal(0, 1, (2, dim)),  # weak, strong
            "projection": draw.normal(0, 1 / np.sqrt(vectors.shape[1]), (dim, vectors.shape[1])),
            "bias": np.zeros(dim),
            "head": draw.normal(0, 1 / np.sqrt(dim), dim),
        }
        moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in parameters.items()}
        step = 0
        for _ in range(self.num_epochs):
            order = draw.permutation(len(wins))
            for start in range(0, len(order), 64):
                batch = order[start : start + 64]
                step += 1
                for name, gradient in _mf_gradients(parameters, vectors[batch], wins[batch]).items():
                    self._adam(parameters, moments, name, gradient, step)
        gap = parameters["models"][1] - parameters["models"][0]
        self._direction = (parameters["head"] * gap) @ parameters["projection"]
        self._offset = float((parameters["head"] * gap) @ parameters["bias"])
        return self

    def _adam(
        self, parameters: dict[str, Any], moments: dict[str, tuple[Any, Any]], name: str, gradient: Any, step: int
    ) -> None:
        import numpy as np

        first, second = moments[name]
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        change = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        parameters[name] -= self.learning_rate * (change + self.weight_decay * parameters[name])

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """The strong model's log-odds of winning, per query."""
        vectors = self.embedder.embed([query.text for query in queries])
        found: list[float] = (vectors @ self._direction + self._offset).tolist()
        return found

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {"dim": self.dim, "direction": self._direction, "offset": self._offset}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder) -> Self:
        """The router that `state` describes."""
        router = cls(embedder, dim=state["dim"])
        router._direction, router._offset = state["direction"], state["offset"]
        return router


def _mf_gradients(parameters: Mapping[str, Any], vectors: Any, wins: Any) -> dict[str, Any]:
    """Gradients of the mean log-loss of a batch."""
    import numpy as np

    gap = parameters["models"][1] - parameters["models"][0]
    head = parameters["head"]
    hidden = vectors @ parameters["projection"].T + parameters["bias"]  # (n, dim)
    error = (1 / (1 + np.exp(-(hidden * gap) @ head)) - wins) / len(wins)
    mean_hidden = error @ hidden
    models = np.stack([-mean_hidden * head, mean_hidden * head])
    return {
        "models": models,
        "projection": np.outer(head * gap, error @ vectors),
        "bias": head * gap * error.sum(),
        "head": mean_hidden * gap,
    }
