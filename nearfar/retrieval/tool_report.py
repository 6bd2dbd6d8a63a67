"""How well tools are found for requests: each way alone, and all of them as the examples teach."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nearfar.types import Embedder, Hit, ToolSpec

from .embedders import Remembered
from .ranking_report import Stage, embedding_latency_s, measure
from .tool_classifier import ToolClassifier
from .tools import ToolIndex, ToolUse

#: The ways of the first stage that are shown beside the whole, and what they are.
_ALONE = {
    "bm25": "bm25 over descriptions",
    "description": "cosine to descriptions",
    "words": "TF-IDF centroids of examples",
    "centre": "Tool2Vec: mean of examples",
    "vote": "votes of examples",
}

_DEPTH = 100


@dataclass(frozen=True, slots=True)
class ToolReport:
    """The ways alone, then what a user gets."""

    tools: int
    requests: int
    examples: int
    embedder: str
    index_s: float  # embedding and fitting
    stages: tuple[Stage, ...]
    rankings: Mapping[str, tuple[str, ...]]  # of the last stage, by the request's number from 1

    @property
    def best(self) -> Stage:
        """What a user gets who does nothing else."""
        return self.stages[-1]


def search_and_measure(
    tools: Sequence[ToolSpec],
    requests: Sequence[ToolUse],
    examples: Sequence[ToolUse],
    embedder: Embedder,
    *,
    resamples: int = 1000,
) -> ToolReport:
    """The figures of every way on the requests.

    Args:
        tools: searched in.
        requests: measured on.
        examples: learned from; none: only descriptions tell.
        embedder: of both.
        resamples: of the bootstrap.
    """
    started = time.perf_counter()
    remembered = Remembered(embedder)
    index = ToolIndex(remembered)
    index.add(tools)
    index.learn(examples)
    index.fit()
    index.search("", k=1)
    index_s = time.perf_counter() - started
    alone = {name: said for name, said in _ALONE.items() if examples or name in ("bm25", "description")}
    ways: list[tuple[str, Callable[[str], list[Hit]]]] = [
        (said, lambda text, name=name: index.search_by(text, name, k=_DEPTH))  # type: ignore[misc]
        for name, said in alone.items()
    ]
    if examples:
        classifier = ToolClassifier.fit(examples, remembered)
        ways.append(("multi-label classifier", lambda text: classifier.search(text, k=_DEPTH)))
    ways.append(("all, weighed by examples" if index.is_fitted else "all", lambda text: index.search(text, k=_DEPTH)))

    embedding_s = embedding_latency_s(embedder, [request.text for request in requests])
    remembered.embed_queries([request.text for request in requests])
    asked = [
        (str(number), request.text, dict.fromkeys(request.tools, 1.0)) for number, request in enumerate(requests, 1)
    ]
    stages, rankings = measure(ways, asked, embedding_s=embedding_s, resamples=resamples)
    return ToolReport(len(tools), len(requests), len(examples), embedder.name, index_s, stages, rankings)
