"""Predictive routers: which model should answer, said from the query's text, before any call or after the near one.

`make("auto")` is the default that is shipped; benchmarks/routing.py has it beside the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nearfar.errors import ConfigError

from .protocol import PredictiveRouter
from .queries import RoutingExample, RoutingQuery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nearfar.types import Embedder

#: What `make` takes, with what each one reads.
ROUTERS = {
    "auto": "the default: tfidf-ridge, ridge and forest, weighted by fit; with signals, hybrid",
    "tfidf-ridge": "words and word pairs",
    "forest": "the text's form and topics",
    "boosting": "the text's form and topics",
    "ridge": "the text's form, and its embedding where there is one",
    "logistic": "the text's form, and its embedding where there is one",
    "knn": "the embedding (gain of the nearest labelled queries)",
    "matrix-factorization": "the embedding (RouteLLM)",
    "sw-ranking": "the embedding (RouteLLM)",
    "hybrid": "the near answer's signals, words and word pairs, the form, and the embedding where there is one",
}

__all__ = ["ROUTERS", "PredictiveRouter", "RoutingExample", "RoutingQuery", "make"]


def make(
    name: str,
    *,
    embedder: Embedder | None = None,
    signals: Sequence[str] = (),
    also: Sequence[Sequence[RoutingExample]] = (),
) -> PredictiveRouter:
    """An unfitted router by its name.

    Args:
        name: one of `ROUTERS`.
        embedder: for the routers that embed the text.
        signals: the near answer's signals that it may read; without any, the text alone decides.
        also: tables of other models' qualities on other queries, for `hybrid`.

    Raises:
        ConfigError: no such router, or what it needs was not given.
    """
    from .blend import Blend
    from .dense import GainRidge, MatrixFactorization, TwoLogistic
    from .hybrid import Hybrid
    from .neighbours import NearestNeighbours, SimilarityWeighted
    from .ngrams import NgramRidge
    from .trees import TreeEnsemble

    if name not in ROUTERS:
        raise ConfigError(f"No router {name!r}; there are {', '.join(map(repr, ROUTERS))}.")
    if name == "hybrid" and not signals:
        raise ConfigError("The router 'hybrid' judges a near answer by its signals. Name at least one: --signal COLUMN")
    if signals and name in ("auto", "hybrid"):
        return Hybrid(signals, embedder, also=also)
    if also:
        raise ConfigError(
            f"The router {name!r} learns from one table. With --also take 'hybrid' and a --signal COLUMN."
        )
    if signals:
        raise ConfigError(f"The router {name!r} reads the text alone. For signals take 'auto' or 'hybrid'.")
    if name == "auto":
        return Blend([NgramRidge(), GainRidge(embedder), TreeEnsemble("forest")], kind="auto")
    if name == "tfidf-ridge":
        return NgramRidge()
    if name == "forest":
        return TreeEnsemble("forest")
    if name == "boosting":
        return TreeEnsemble("boosting")
    if name == "ridge":
        return GainRidge(embedder)
    if name == "logistic":
        return TwoLogistic(embedder)
    if embedder is None:
        raise ConfigError(f"The router {name!r} compares embeddings. Name an embedder: --embedder static")
    if name == "knn":
        return NearestNeighbours(embedder)
    if name == "sw-ranking":
        return SimilarityWeighted(embedder)
    return MatrixFactorization(embedder)
