"""Test doubles for users' own tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
from math import log

from nearfar.types import (
    FREE,
    Answer,
    ModelCard,
    Query,
    StreamEnd,
    StreamEvent,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    estimate_tokens,
)


class ScriptedModel:
    """A model that gives the answers it was told to, in order, and raises the errors it was told to.

    Args:
        script: answers, texts or exceptions; the last one repeats for ever.
        name: the model's name; "scripted" unless told.
        confidence: probability of every token of a text, in (0, 1]; None: no log-probabilities.
        delay_s: how long each answer takes.
        card: what the model is and can do; a free near model that can do everything unless told.

    Attributes:
        queries: every query received, in order.
    """

    def __init__(
        self,
        script: Iterable[str | Answer | BaseException],
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
        """The next answer of the script."""
        line = self._script[min(len(self.queries), len(self._script) - 1)]
        self.queries.append(query)
        await asyncio.sleep(self._delay_s)
        if isinstance(line, BaseException):
            raise line
        if isinstance(line, Answer):
            return replace(line, model=self.card.name)
        return self._from_text(line, query)

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The next answer of the script, word by word."""
        answer = await self.complete(query)
        words = _words(answer.text)
        logprobs = answer.logprobs or ()
        for i, word in enumerate(words):
            yield TextDelta(word, logprobs[i : i + 1])
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
            logprobs = tuple(TokenLogprob(word, log(self._confidence)) for word in words)
        usage = Usage(sum(estimate_tokens(message.text) for message in query.messages), len(words))
        price = self.card.price
        return Answer(
            text,
            self.card.name,
            logprobs=logprobs,
            usage=usage,
            cost_usd=price.cost_usd(usage) if price else None,
            latency_s=self._delay_s,
        )


def _words(text: str) -> Sequence[str]:
    """Words with the blank that precedes them, so that joining gives the text back."""
    words: list[str] = []
    for piece in text.split(" "):
        words.append(piece if not words else f" {piece}")
    return words if text else []
