"""How well documents are found for labelled queries, stage by stage: what each adds, and what it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from nearfar.types import Chunk, Embedder, Hit

from .corpus import Corpus
from .embedders import Remembered
from .fitted import FittedReranker, Judged
from .judged import JudgedQuery, UsageMemory, with_usage
from .metrics import FIGURES, Mean, figures, mean

#: How many hits a stage ranks.
DEPTH = 100

#: Fewer labelled queries than this fit nothing: what they teach is chance.
LEAST = 20

#: How many chunks enter the candidates for what they were relevant to.
_REMEMBERED = 20


@dataclass(frozen=True, slots=True)
class Stage:
    """A pipeline and its figures."""

    name: str
    figures: Mapping[str, Mean]  # by name, see metrics.FIGURES
    latency_s: float  # median of one query's, its embedding included
    gain: Mean | None  # of ndcg@10 over the stage before, per query; None for the first


@dataclass(frozen=True, slots=True)
class RankingReport:
    """The stages, the best pipeline last."""

    documents: int
    queries: int
    train_queries: int
    embedder: str
    index_s: float  # embedding and indexing the documents
    fit_s: float
    stages: tuple[Stage, ...]
    rankings: Mapping[str, tuple[str, ...]]  # of the last stage, by query id

    @property
    def best(self) -> Stage:
        """What a user gets who does nothing else."""
        return self.stages[-1]


class LearnedRetriever:
    """Candidates of a corpus, ordered as labelled queries teach; see `FittedReranker` and `UsageMemory`.

    Args:
        corpus: searched in.
        queries: labelled ones.
        uses_memory: whether a chunk is also known by the labelled queries that it was relevant to.
    """

    def __init__(self, corpus: Corpus, queries: Sequence[JudgedQuery], *, uses_memory: bool = True) -> None:
        self._corpus = corpus
        self._memory = UsageMemory(queries, corpus.embedder) if uses_memory else None
        examples = [Judged(self._candidates(query.text, but=query.id), query.relevant) for query in queries]
        self.reranker = FittedReranker.fit(examples)

    def search(self, query: str, *, k: int = 10, filter: Mapping[str, object] | None = None) -> list[Hit]:  # noqa: A002
        """The best k of the candidates."""
        return self.reranker.rerank(self._candidates(query, filter=filter, depth=max(k, DEPTH)))[:k]

    def _candidates(
        self,
        query: str,
        *,
        but: str | None = None,
        filter: Mapping[str, object] | None = None,  # noqa: A002
        depth: int = DEPTH,
    ) -> list[Hit]:
        if self._memory is None:
            return self._corpus.candidates(query, depth=depth, filter=filter)
        likeness = self._memory.likeness(query, but=but)
        remembered = sorted(likeness, key=lambda name: -likeness[name])[:_REMEMBERED]
        return with_usage(self._corpus.candidates(query, depth=depth, extra=remembered, filter=filter), likeness)


def rank_and_measure(
    chunks: Sequence[Chunk],
    queries: Sequence[JudgedQuery],
    train: Sequence[JudgedQuery],
    embedder: Embedder,
    *,
    multi_hop: bool = False,
    resamples: int = 1000,
) -> RankingReport:
    """The figures of every stage on the queries.

    Args:
        chunks: searched in.
        queries: measured on.
        train: fitted on, where there are at least `LEAST`.
        embedder: of both.
        multi_hop: whether several passages answer a query together, each leading to the next.
        resamples: of the bootstrap.

    Raises:
        DataError: the training queries teach nothing.
    """
    started = time.perf_counter()
    remembered = Remembered(embedder)
    corpus = Corpus(chunks, remembered)
    index_s = time.perf_counter() - started
    started = time.perf_counter()
    learned: list[tuple[str, Callable[[str], list[Hit]]]] = []
    if len(train) >= LEAST:
        remembered.embed_queries([query.text for query in train])
        for name, uses_memory in (("weights fitted on the labelled queries", False), ("… and what they found", True)):
            retriever = LearnedRetriever(corpus, train, uses_memory=uses_memory)
            learned.append((name, lambda text, retriever=retriever: retriever.search(text, k=DEPTH)))  # type: ignore[misc]
    if multi_hop:
        from .bridges import BridgeRetriever

        bridged = BridgeRetriever(corpus)
        learned.append(("bridges", lambda text: bridged.search(text, k=DEPTH)))
    fit_s = time.perf_counter() - started
    pipelines: list[tuple[str, Callable[[str], list[Hit]]]] = [
        ("bm25", lambda text: corpus.search_by(text, "bm25", k=DEPTH)),
        (f"cosine of {embedder.name}", lambda text: corpus.search_by(text, "cosine", k=DEPTH)),
        ("scores added", lambda text: corpus.search(text, k=DEPTH)),
        *learned,
    ]
    embedding_s = embedding_latency_s(embedder, [query.text for query in queries])
    remembered.embed_queries([query.text for query in queries])
    asked = [(query.id, query.text, query.relevant) for query in queries]
    stages, rankings = measure(pipelines, asked, embedding_s=embedding_s, resamples=resamples)
    return RankingReport(len(chunks), len(queries), len(train), embedder.name, index_s, fit_s, stages, rankings)


def measure(
    pipelines: Sequence[tuple[str, Callable[[str], list[Hit]]]],
    queries: Sequence[tuple[str, str, Mapping[str, float]]],
    *,
    embedding_s: float = 0.0,
    resamples: int = 1000,
) -> tuple[tuple[Stage, ...], dict[str, tuple[str, ...]]]:
    """Every pipeline's figures on the same queries, and the last one's rankings by query id.

    Args:
        pipelines: names, and what each finds for a text.
        queries: id, text, and gains by chunk id.
        embedding_s: what embedding a query takes, where the pipelines find it remembered.
        resamples: of the bootstrap.
    """
    stages: list[Stage] = []
    before: list[dict[str, float]] = []
    rankings: dict[str, tuple[str, ...]] = {}
    for name, find in pipelines:
        rows, latencies = [], []
        for key, text, relevant in queries:
            started = time.perf_counter()
            rankings[key] = tuple(hit.chunk.id for hit in find(text))
            latencies.append(time.perf_counter() - started + embedding_s)
            rows.append(figures(rankings[key], relevant))
        gains = [row["ndcg@10"] - old["ndcg@10"] for row, old in zip(rows, before, strict=False)]
        stages.append(
            Stage(
                name,
                {figure: mean([row[figure] for row in rows], resamples=resamples) for figure in FIGURES},
                median(latencies),
                mean(gains, resamples=resamples) if gains else None,
            )
        )
        before = rows
    return tuple(stages), rankings


def embedding_latency_s(embedder: Embedder, texts: Sequence[str]) -> float:
    """What embedding one text takes, the median of up to 20 asked one by one."""
    times = []
    for text in texts[:20]:
        started = time.perf_counter()
        embedder.embed_queries([text])
        times.append(time.perf_counter() - started)
    return median(times)
