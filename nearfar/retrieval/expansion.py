"""More queries out of one: by words and names of what was found, by a near model that rewrites or splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log

import anyio.to_thread

from nearfar.types import ChatModel, Filter, Hit, Query, Retriever, SamplingOptions

from .fusion import reciprocal_rank
from .names import names, plain
from .words import words

_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])?\s*")


def feedback_query(query: str, hits: Sequence[Hit], *, num_words: int = 8, from_hits: int = 3) -> str:
    """The query with the words that tell the first hits apart: pseudo-relevance feedback without a model.

    Words count by how often they are in the first hits, each hit by its share of the scores, and by how few of all
    hits have them.

    Source: the relevance model RM3 (Abdul-Jaleel et al. 2004), with the hits in place of the collection.
    """
    if not hits:
        return query
    asked = set(words(query))
    top = max(hit.score for hit in hits[:from_hits])
    having = Counter(word for hit in hits for word in set(words(hit.chunk.text)))
    worth: Counter[str] = Counter()
    spelled: dict[str, str] = {}
    for hit in hits[:from_hits]:
        share = exp(min(0.0, hit.score - top))
        found = hit.chunk.text.split()
        for said in found:
            for word in words(said)[:1]:
                bare = said.strip(".,:;!?\"'()[]").lower()
                if word not in asked and len(bare) > 2:
                    spelled.setdefault(word, bare)
                    worth[word] += share / len(found) * log(1 + len(hits) / having[word])  # type: ignore[assignment]
    return " ".join([query, *(spelled[word] for word, _ in worth.most_common(num_words))])


def bridge_names(query: str, hits: Sequence[Hit], *, num_names: int = 3, from_hits: int = 3) -> list[str]:
    """Names in the first hits that the query has not, those of better and of more hits first: where to search next."""
    said = f" {plain(query)} "
    worth: Counter[str] = Counter()
    for place, hit in enumerate(hits[:from_hits], 1):
        title = plain(str(hit.chunk.metadata.get("title") or ""))
        for name in names(hit.chunk.text):
            if f" {name} " not in said and name != title and not name.isdigit():
                worth[name] += 1 / place  # type: ignore[assignment]
    return [name for name, _ in worth.most_common(num_names)]


async def expand(model: ChatModel, query: str, *, num_queries: int = 3) -> list[str]:
    """The query and at most so many other wordings by the model; the query alone where it says nothing of use."""
    said = await _lines(
        model,
        f"Write {num_queries} short search queries, one a line, that would find passages answering this question in "
        f"other words. Write nothing else.\n\nQuestion: {query}",
    )
    return _distinct([query, *said])[: num_queries + 1]


async def decompose(model: ChatModel, query: str, *, num_questions: int = 4) -> list[str]:
    """The simpler questions that the model splits the query into, in the order in which they must be answered.

    The query alone where the model finds nothing to split.
    """
    said = await _lines(
        model,
        "Split this question into the simpler questions that must be answered first, one a line, in their order. If it "
        f"is simple already, repeat it. Write nothing else.\n\nQuestion: {query}",
    )
    return _distinct(said)[:num_questions] or [query]


@dataclass(frozen=True, slots=True)
class ExpandedSearch:
    """Searches several queries made of one, and fuses what they find by reciprocal rank.

    Args:
        retriever: searched, in a thread.
        model: writes the other queries; None: they are the query with words of what it finds (`feedback_query`).
        depth: hits asked of each.
    """

    retriever: Retriever
    model: ChatModel | None = None
    depth: int = 50

    async def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The best k of all queries together."""
        find = _finder(self.retriever, max(k, self.depth), filter)
        if self.model is None:
            first = await anyio.to_thread.run_sync(find, query)
            rankings = [first, await anyio.to_thread.run_sync(find, feedback_query(query, first))]
        else:
            rankings = [await anyio.to_thread.run_sync(find, each) for each in await expand(self.model, query)]
        return reciprocal_rank(rankings)[:k]


@dataclass(frozen=True, slots=True)
class IterativeSearch:
    """Searches in steps, each led by what the step before found: for questions that take several passages.

    Without a model a step searches the query with each of the names that lead on (`bridge_names`). With one, it shows
    the model what was found and searches what the model wants to know next, until it has enough (self-ask, Press et
    al. 2023, arXiv:2210.03350).

    For passages in memory `BridgeRetriever` finds more than the steps without a model.

    Args:
        retriever: searched, in a thread.
        model: None: by names.
        steps: at most so many after the first.
        depth: hits asked of each search.
    """

    retriever: Retriever
    model: ChatModel | None = None
    steps: int = 2
    depth: int = 50

    async def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The best k of all steps together."""
        find = _finder(self.retriever, max(k, self.depth), filter)
        rankings = [await anyio.to_thread.run_sync(find, query)]
        asked = {plain(query)}
        for _ in range(self.steps):
            fused = reciprocal_rank(rankings)
            if self.model is None:
                following = [f"{query} {name}" for name in bridge_names(query, fused)]
            else:
                following = await self._next(query, fused)
            following = [each for each in following if plain(each) not in asked]
            if not following:
                break
            for each in following:
                asked.add(plain(each))
                rankings.append(await anyio.to_thread.run_sync(find, each))
        return reciprocal_rank(rankings)[:k]

    async def _next(self, query: str, hits: Sequence[Hit]) -> list[str]:
        assert self.model is not None
        shown = "\n".join(f"- {hit.chunk.text[:400]}" for hit in hits[:3])
        said = await _lines(
            self.model,
            "To answer the question, what must be searched next? Write one short search query, or DONE if the passages "
            f"have the answer. Write nothing else.\n\nQuestion: {query}\n\nPassages:\n{shown}",
        )
        return [] if not said or plain(said[0]) == "done" else said[:1]


def _finder(retriever: Retriever, depth: int, wanted: Filter | None) -> Callable[[str], list[Hit]]:
    return lambda text: retriever.search(text, k=depth, filter=wanted)


async def _lines(model: ChatModel, prompt: str) -> list[str]:
    answer = await model.complete(Query(prompt, sampling=SamplingOptions(max_tokens=120, temperature=0.0)))
    return [line for each in answer.text.splitlines() if (line := _LINE.sub("", each).strip())]


def _distinct(queries: Sequence[str]) -> list[str]:
    return list({plain(query): query for query in reversed(queries)}.values())[::-1]
