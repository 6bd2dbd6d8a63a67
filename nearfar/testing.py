"""Test doubles for users' own tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import replace
from math import log
from typing import TypeAlias

from nearfar.errors import UnsupportedOption
from nearfar.types import (
    FREE,
    Answer,
    ModelCard,
    Query,
    ReasoningDelta,
    StreamEnd,
    StreamEvent,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    estimate_tokens,
)

#: What a scripted model says: a text, a whole answer, an error to raise, or a function from the query to one of them.
Line: TypeAlias = "str | Answer | BaseException | Callable[[Query], str | Answer | BaseException]"


class ScriptedModel:
    """A model that gives the answers it was told to, in order, and raises the errors it was told to.

    It decodes nothing, so `stop` and `max_tokens` do not change a scripted text; what its card rules out it refuses.

    Args:
        script: texts, answers, exceptions, or functions of the query that give one; the last one repeats for ever.
        name: the model's name; "scripted" unless told.
        confidence: probability of every token of a text, in (0, 1]; None: texts have no log-probabilities.
        delay_s: how long each answer takes.
        card: what the model is and can do; a free near model that can do everything unless told.

    Attributes:
        queries: every query received, in order.
    """

    def __init__(
        self,
        script: Iterable[Line],
        *,
        name: str = "scripted",
        confidence: float | None = None,
        delay_s: float = 0.0,
        card: ModelCard | None = None,
    ) -> None:
        self._script = list(script)
        if not self._script:
            raise ValueError("a script needs at least one answer")
        if confidence is not None and not 0 < confidence <= 1:
            raise ValueError(f"confidence must be in (0, 1], not {confidence!r}")
        self._confidence = confidence
        self._delay_s = delay_s
        self._card = card or ModelCard(
            name,
            "near",
            price=FREE,
            supports_logprobs=confidence is not None,
            supports_tools=True,
            supports_json_schema=True,
            supports_grammar=True,
            passes_extra=True,
        )
        self.queries: list[Query] = []

    @property
    def card(self) -> ModelCard:
        """What the model is and can do."""
        return self._card

    async def complete(self, query: Query) -> Answer:
        """The next answer of the script.

        Raises:
            UnsupportedOption: the card rules out something that the query asks for.
        """
        for param, why in self.card.unmet(query).items():
            raise UnsupportedOption(f"{self.card.name!r} cannot take {param!r}: it {why}.", param=param)
        line = self._script[min(len(self.queries), len(self._script) - 1)]
        self.queries.append(query)
        await asyncio.sleep(self._delay_s)
        if callable(line):
            line = line(query)
        if isinstance(line, BaseException):
            raise line
        return self._named(line if isinstance(line, Answer) else self._from_text(line, query))

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The next answer of the script, word by word."""
        answer = await self.complete(query)
        words = _words(answer.text)
        logprobs = answer.logprobs or ()
        if answer.reasoning:
            yield ReasoningDelta(answer.reasoning)
        for i, word in enumerate(words):
            is_last = i == len(words) - 1
            yield TextDelta(word, logprobs[i:] if is_last else logprobs[i : i + 1])
            await asyncio.sleep(0)
        for i, call in enumerate(answer.tool_calls):
            yield ToolCallDelta(i, call.arguments, call.id, call.name)
        yield StreamEnd(answer)

    def unavailable(self) -> str | None:
        """Never."""
        return None

    async def aclose(self) -> None:
        """Holds nothing."""

    def _from_text(self, text: str, query: Query) -> Answer:
        words = _words(text)
        logprobs = None
        if self._confidence is not None and query.sampling.logprobs:
            alternatives = _alternatives(self._confidence, query.sampling.top_logprobs or 0)
            logprobs = tuple(
                TokenLogprob(word, log(self._confidence), tuple((other or word, p) for other, p in alternatives))
                for word in words
            )
        usage = Usage(sum(estimate_tokens(message.text) for message in query.messages), len(words))
        return Answer(text, logprobs=logprobs, usage=usage, latency_s=self._delay_s)

    def _named(self, answer: Answer) -> Answer:
        """The answer with this model's name, and its price where the script names none."""
        price, usage, cost_usd = self.card.price, answer.usage, answer.cost_usd
        if cost_usd is None and price is not None and usage is not None:
            cost_usd = price.cost_usd(usage)
        return replace(answer, model=self.card.name, cost_usd=cost_usd)


def _alternatives(confidence: float, count: int) -> list[tuple[str, float]]:
    """The chosen token, under the name "", and others that share the rest evenly; likeliest first."""
    if count == 0:
        return []
    share = max((1 - confidence) / max(1, count - 1), 1e-9)
    top = [("", log(confidence)), *((f"<{i}>", log(share)) for i in range(1, count))]
    return sorted(top, key=lambda pair: -pair[1])


def _words(text: str) -> Sequence[str]:
    """Words with the blank that precedes them, so that joining gives the text back."""
    words: list[str] = []
    for piece in text.split(" "):
        words.append(piece if not words else f" {piece}")
    return words if text else []
