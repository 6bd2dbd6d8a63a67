"""Reranking by any chat model: pointwise by the odds of "yes", pairwise by asking which of two is better."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp
from typing import Literal, TypeAlias, assert_never

from nearfar.errors import ConfigError
from nearfar.types import Answer, ChatModel, Hit, Query, SamplingOptions

#: Characters of a passage that a model is shown: about 300 tokens, so that two fit beside any question.
_SHOWN = 1200

#: Alternatives looked at for the two answers: what every wire gives.
_TOP = 20

Strategy: TypeAlias = Literal["all", "heap", "sliding"]


@dataclass(frozen=True, slots=True)
class YesNoReranker:
    """Orders passages by the probability that a model answers "yes" rather than "no" to whether they help.

    One call of one token per passage. It is ProRank's score at inference (arXiv:2506.03487), read off the log-
    probabilities of the answer, with whichever model is at hand in place of its trained one.

    Args:
        model: one whose answers have log-probabilities.
        at_once: calls that run at the same time.
    """

    model: ChatModel
    at_once: int = 8

    def __post_init__(self) -> None:
        if not self.model.card.supports_logprobs:
            raise ConfigError(
                f"The model {self.model.card.name!r} gives no log-probabilities; rerank pairwise, or by another model."
            )

    async def rerank(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """The hits, best first; the score is the probability of "yes", also under the signal "yes"."""
        gate = asyncio.Semaphore(self.at_once)

        async def judged(hit: Hit) -> Hit:
            async with gate:
                answer = await self.model.complete(_one_word(_relevance_prompt(query, hit), 1))
            score = _share(answer, "yes", "no")
            return replace(hit, score=score, signals={**hit.signals, "yes": score})

        return sorted(await asyncio.gather(*map(judged, hits)), key=lambda hit: -hit.score)


@dataclass(slots=True)
class PairwiseReranker:
    """Orders passages by asking a model, of two at a time, which answers the question better.

    Every pair is asked in both orders. A model that says the same of both wins its passage a point; one that changes
    its mind with the order has only shown its bias to a position, and gives each half a point.

    Strategies, for n passages: "all" asks all n(n-1)/2 pairs and counts points; "heap" sorts, in about n·log2(n)
    pairs; "sliding" makes `passes` passes from the bottom, each of n-1 pairs, after which so many are in their place.
    A pair is two calls of a few tokens.

    Source: pairwise ranking prompting (Qin et al. 2023, arXiv:2306.17563).

    Args:
        model: any; with log-probabilities a preference counts by its strength.
        strategy: see above.
        passes: of "sliding"; the paper's 10 for nDCG@10.
        at_once: calls that run at the same time.
    """

    model: ChatModel
    strategy: Strategy = "sliding"
    passes: int = 10
    at_once: int = 8
    _gate: asyncio.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._gate = asyncio.Semaphore(self.at_once)

    async def rerank(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """The hits, best first; the score falls from 1 by places, for "all" it is the share of points."""
        ranked = list(hits)
        match self.strategy:
            case "all":
                return await self._by_points(query, ranked)
            case "heap":
                ranked = await self._by_heap(query, ranked)
            case "sliding":
                for done in range(min(self.passes, len(ranked) - 1)):
                    for place in range(len(ranked) - 1, done, -1):
                        if await self._preference(query, ranked[place], ranked[place - 1]) > 0.5:
                            ranked[place - 1], ranked[place] = ranked[place], ranked[place - 1]
            case _:
                assert_never(self.strategy)
        return [replace(hit, score=1 - place / len(ranked)) for place, hit in enumerate(ranked)]

    async def _by_points(self, query: str, hits: list[Hit]) -> list[Hit]:
        pairs = [(first, second) for first in range(len(hits)) for second in range(first)]
        shares = await asyncio.gather(*(self._preference(query, hits[first], hits[second]) for first, second in pairs))
        points = [0.0] * len(hits)
        for (first, second), share in zip(pairs, shares, strict=True):
            points[first] += share
            points[second] += 1 - share
        most = max(1, len(hits) - 1)
        scored = [replace(hit, score=point / most) for hit, point in zip(hits, points, strict=True)]
        return sorted(scored, key=lambda hit: -hit.score)

    async def _by_heap(self, query: str, hits: list[Hit]) -> list[Hit]:
        """Heap sort from the worst, so that what is popped last is best; ties keep their order as far as it can."""

        async def sink(root: int, size: int) -> None:
            while (child := 2 * root + 1) < size:
                if child + 1 < size and await self._preference(query, hits[child], hits[child + 1]) > 0.5:
                    child += 1
                if await self._preference(query, hits[child], hits[root]) > 0.5:
                    return
                hits[root], hits[child] = hits[child], hits[root]
                root = child

        for root in range(len(hits) // 2 - 1, -1, -1):
            await sink(root, len(hits))
        for size in range(len(hits) - 1, 0, -1):  # the worst of what is left goes behind it
            hits[0], hits[size] = hits[size], hits[0]
            await sink(0, size)
        return hits

    async def _preference(self, query: str, one: Hit, other: Hit) -> float:
        """How much the model prefers `one`, in [0, 1], 0.5 where the order decides."""
        there, back = await asyncio.gather(self._first_share(query, one, other), self._first_share(query, other, one))
        return (there + 1 - back) / 2

    async def _first_share(self, query: str, first: Hit, second: Hit) -> float:
        prompt = (
            f"Question: {query}\n\nPassage A: {_shown(first)}\n\nPassage B: {_shown(second)}\n\n"
            "Which passage answers the question better? Say A or B and nothing else."
        )
        async with self._gate:
            answer = await self.model.complete(_one_word(prompt, 4, logprobs=self.model.card.supports_logprobs))
        return _share(answer, "a", "b")


def _relevance_prompt(query: str, hit: Hit) -> str:
    return (
        f"Question: {query}\n\nPassage: {_shown(hit)}\n\nDoes the passage help to answer the question? "
        "Say Yes or No and nothing else."
    )


def _shown(hit: Hit) -> str:
    title = str(hit.chunk.metadata.get("title") or "")
    text = f"{title}: {hit.chunk.text}" if title else hit.chunk.text
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"


def _one_word(prompt: str, max_tokens: int, *, logprobs: bool = True) -> Query:
    return Query(
        prompt,
        sampling=SamplingOptions(
            max_tokens=max_tokens,
            temperature=0.0,
            logprobs=logprobs,
            top_logprobs=_TOP if logprobs else None,
        ),
    )


def _share(answer: Answer, good: str, bad: str) -> float:
    """The probability of the one word against the other at the first token that is either; by the text without them.

    Alternatives in any case and with any white space or mark around them count.
    """
    for token in answer.logprobs or ():
        totals = {good: 0.0, bad: 0.0}
        for said, logprob in token.top or ((token.token, token.logprob),):
            bare = said.strip(" \n\t.,:;*\"'()▁Ġ").lower()
            if bare in totals:
                totals[bare] += exp(logprob)
        if (total := sum(totals.values())) > 0:
            return totals[good] / total
    words = [word.strip(".,:;*\"'()").lower() for word in answer.text.split()]
    first = next((word for word in words if word in (good, bad)), None)
    return 0.5 if first is None else float(first == good)
