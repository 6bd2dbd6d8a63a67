"""One ranking out of several: reciprocal rank fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum

from nearfar.types import Filter, Hit, Retriever

#: How much a first place counts against many middling ones: the constant of Cormack, Clarke and Büttcher, SIGIR 2009.
RRF_K = 60


def reciprocal_rank(rankings: Sequence[Sequence[Hit]], *, constant: int = RRF_K) -> list[Hit]:
    """The hits of all rankings, by the sum of 1 / (constant + rank); ties by chunk id.

    A hit keeps the signals of every ranking that has it. The order of the rankings makes no difference.

    Source: Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods".
    """
    known: dict[str, Hit] = {}
    points: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            name = hit.chunk.id
            known[name] = replace(hit, signals={**known[name].signals, **hit.signals}) if name in known else hit
            points.setdefault(name, []).append(1 / (constant + rank))
    fused = [replace(hit, score=fsum(points[name])) for name, hit in known.items()]
    return sorted(fused, key=lambda hit: (-hit.score, hit.chunk.id))


@dataclass(frozen=True, slots=True)
class Fused:
    """Asks several retrievers and fuses their rankings by reciprocal rank."""

    retrievers: tuple[Retriever, ...]
    depth: int = 100  # hits asked of each

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The best of all rankings together."""
        depth = max(k, self.depth)
        return reciprocal_rank([inner.search(query, k=depth, filter=filter) for inner in self.retrievers])[:k]
