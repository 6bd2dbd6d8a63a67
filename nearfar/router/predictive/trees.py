"""Ensembles of regression trees on a query's form and topics; predicting walks them in plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

from .fitting import gains, require_sklearn
from .ngrams import WordTopics
from .queries import RoutingExample, RoutingQuery

Method: TypeAlias = Literal["forest", "boosting"]

_NUM_TREES: Mapping[Method, int] = {"forest": 100, "boosting": 250}


class TreeEnsemble:
    """Expected gain by an ensemble of regression trees over the query's form and topics.

    Args:
        method: `forest` grows extremely randomised trees (Geurts et al. 2006), `boosting` small trees that each mend
            what the ones before left over (Friedman 2002, "Stochastic gradient boosting"). The settings of both are
            from benchmarks/routing.py.
        num_trees: None: 100 in a forest, 250 boosted.
        num_topics: coordinates of `WordTopics` besides the form; 0 reads the form alone.
    """

    reads_signals = False
    is_embedding_based = False

    def __init__(self, method: Method = "forest", *, num_trees: int | None = None, num_topics: int = 15) -> None:
        self.kind = method
        self.num_trees = num_trees or _NUM_TREES[method]
        self.topics = WordTopics(num_topics)
        self._start = 0.0
        self._step = 1.0
        self._trees: list[_Tree] = []

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        require_sklearn()
        import numpy as np
        from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor

        targets = gains(examples)
        self.topics.fit(examples)
        features = np.array([self._features(example) for example in examples], np.float32)
        if self.kind == "forest":
            forest = ExtraTreesRegressor(
                self.num_trees,
                min_samples_leaf=15,
                max_features=0.3,
                bootstrap=True,
                max_samples=0.7,
                random_state=0,
            ).fit(features, targets)
            self._start, self._step, fitted = 0.0, 1 / self.num_trees, forest.estimators_
        else:
            boosted = GradientBoostingRegressor(
                n_estimators=self.num_trees,
                learning_rate=0.04,
                max_depth=4,
                subsample=0.5,
                max_features=0.15,
                min_samples_leaf=20,
                random_state=0,
            ).fit(features, targets)
            self._start, self._step = float(boosted.init_.constant_.ravel()[0]), boosted.learning_rate
            fitted = boosted.estimators_.ravel()
        self._trees = [_Tree.of(each.tree_) for each in fitted]
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        import numpy as np

        found = []
        for query in queries:
            features = np.array(self._features(query), np.float32).tolist()  # the precision that the trees were cut at
            found.append(self._start + self._step * sum(tree.value(features) for tree in self._trees))
        return found

    def _features(self, query: RoutingQuery) -> list[float]:
        return [*query.surface, *self.topics.transform(query)]

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        import numpy as np

        return {
            "method": self.kind,
            "num_trees": self.num_trees,
            "topics": self.topics.state(),
            "start": self._start,
            "step": self._step,
            "sizes": np.array([len(tree.features) for tree in self._trees], np.int32),
            "features": np.array([x for tree in self._trees for x in tree.features], np.int16),
            "cuts": np.array([x for tree in self._trees for x in tree.cuts], np.float64),
            "rights": np.array([x for tree in self._trees for x in tree.rights], np.int32),
            "values": np.array([x for tree in self._trees for x in tree.values], np.float32),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The router that `state` describes."""
        router = cls(state["method"], num_trees=state["num_trees"])
        router.topics = WordTopics.from_state(state["topics"])
        router._start, router._step = state["start"], state["step"]
        columns = [state[name].tolist() for name in ("features", "cuts", "rights", "values")]
        at = 0
        for size in state["sizes"].tolist():
            router._trees.append(_Tree(*(column[at : at + size] for column in columns)))
            at += size
        return router


class _Tree:
    """One regression tree as columns: node 0 is the root, a left child comes next, and a leaf's feature is negative."""

    __slots__ = ("cuts", "features", "rights", "values")

    def __init__(self, features: list[int], cuts: list[float], rights: list[int], values: list[float]) -> None:
        self.features = features
        self.cuts = cuts
        self.rights = rights
        self.values = values

    @classmethod
    def of(cls, tree: Any) -> _Tree:
        """scikit-learn's `Tree`, whose nodes are numbered in pre-order."""
        return cls(
            tree.feature.tolist(), tree.threshold.tolist(), tree.children_right.tolist(), tree.value.ravel().tolist()
        )

    def value(self, features: Sequence[float]) -> float:
        """The leaf's value for a query."""
        names, cuts, rights = self.features, self.cuts, self.rights
        node = 0
        while (feature := names[node]) >= 0:
            node = node + 1 if features[feature] <= cuts[node] else rights[node]
        return self.values[node]
