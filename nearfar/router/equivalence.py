"""Which of several answers say the same: by their final answer, by their vectors, or by asking a model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from nearfar.types import Answer, ChatModel, Embedder, Message, Query, SamplingOptions

from .answer_span import answer_key

#: Makes a paid call, within what is left of the budget.
Ask: TypeAlias = Callable[[ChatModel, Query], Awaitable[Answer]]

#: Cosine from which two answers say the same. Not tuned; benchmarks/signals.py measures the signals that it gives.
SAME_COSINE = 0.8


class Equivalence(Protocol):
    """Puts answers that say the same into one group."""

    @property
    def calls_per_pair(self) -> int:
        """Paid calls that comparing two answers takes at most."""
        ...

    async def groups(self, question: str, texts: Sequence[str], ask: Ask) -> list[int]:
        """The group of each text, numbered in order of appearance from 0."""
        ...


class SameAnswer:
    """Groups answers by their final number, letter, boxed term or JSON value; texts without one by their words."""

    calls_per_pair = 0

    async def groups(self, question: str, texts: Sequence[str], ask: Ask) -> list[int]:
        """The group of each text."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(answer_key(text, question), len(numbers)) for text in texts]


class SimilarVectors:
    """Groups answers whose vectors are close; the question goes along, so that short answers have a context.

    Args:
        embedder: gives vectors of length 1.
        cosine: from which two answers say the same.
    """

    calls_per_pair = 0

    def __init__(self, embedder: Embedder, cosine: float = SAME_COSINE) -> None:
        self._embedder = embedder
        self._cosine = cosine

    async def groups(self, question: str, texts: Sequence[str], ask: Ask) -> list[int]:
        """The group of each text: that of the first group whose first member is close enough, or a new one."""
        vectors = await asyncio.to_thread(self._embedder.embed, list(texts))
        found: list[int] = []
        firsts: list[int] = []
        for i, vector in enumerate(vectors):
            group = next((g for g, first in enumerate(firsts) if float(vectors[first] @ vector) >= self._cosine), None)
            if group is None and (same := next((j for j in range(i) if texts[j] == texts[i]), None)) is not None:
                group = found[same]  # a text of unknown words has no direction, and is still itself
            if group is None:
                firsts.append(i)
                group = len(firsts) - 1
            found.append(group)
        return found


class Entailment:
    """Groups answers that entail each other in the context of the question, as a model judges.

    Each answer is compared with the first member of every group so far, in both directions; equal texts are not
    compared. At most two calls of a few tokens per pair.

    Args:
        judge: who judges.

    Source: Kuhn et al. 2023, arXiv:2302.09664, algorithm 1 (bidirectional entailment); the question to the judge is
        Farquhar et al. 2024, Nature 630, "Methods", entailment by a general model.
    """

    calls_per_pair = 2

    def __init__(self, judge: ChatModel) -> None:
        self._judge = judge

    async def groups(self, question: str, texts: Sequence[str], ask: Ask) -> list[int]:
        """The group of each text."""
        found: list[int] = []
        firsts: list[str] = []
        known: dict[str, int] = {}
        for text in texts:
            group = known.get(text.strip())
            if group is None:
                for g, first in enumerate(firsts):
                    if await self._entails(question, first, text, ask) and await self._entails(
                        question, text, first, ask
                    ):
                        group = g
                        break
            if group is None:
                firsts.append(text)
                group = len(firsts) - 1
            known[text.strip()] = group
            found.append(group)
        return found

    async def _entails(self, question: str, one: str, other: str, ask: Ask) -> bool:
        prompt = (
            f"We are evaluating answers to the question: {question}\n"
            f"Here are two possible answers:\nPossible Answer 1: {one}\nPossible Answer 2: {other}\n"
            "Does Possible Answer 1 semantically entail Possible Answer 2? "
            "Respond with entailment, contradiction, or neutral."
        )
        query = Query((Message("user", prompt),), sampling=SamplingOptions(max_tokens=8, temperature=0.0))
        answer = await ask(self._judge, query)
        return "entailment" in answer.text.lower()
