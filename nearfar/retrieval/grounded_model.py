"""A chat model that reads before it answers: passages in its prompt, checked citations and signals in its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from nearfar.errors import UnsupportedOption
from nearfar.types import FREE, Answer, ChatModel, ModelCard, Query, StreamEnd, StreamEvent, TextDelta

from .citations import Citation
from .grounding import Grounded, Grounding
from .verified import Versions


class GroundedModel:
    """The grounding's model as a `ChatModel` whose answers rest on passages, for cascades and routers.

    Its answers carry what the retrieval and the check say (`retrieval_coverage`, `grounding_support` …) as signals, so
    that a tier's scorer can be fitted to them, and the citations under `extra["citations"]`. An answer that it
    withholds ends as "abstained", without log-probabilities, which a cascade defers.

    Args:
        grounding: where the passages come from, and who answers; the model is closed with this one.
        name: the model's name; the inner model's unless told.
        versions: of the passages' sources. With them the answer says under `extra["sources"]` what it rests on, so that
            a memory can let go of it when one changes.
        check: raises where a query may not be searched for; see `Library.check_privacy`.
    """

    def __init__(
        self,
        grounding: Grounding,
        *,
        name: str | None = None,
        versions: Versions | None = None,
        check: Callable[[Query], None] | None = None,
    ) -> None:
        self._grounding = grounding
        self._versions = versions
        self._check = check
        card = grounding.model.card
        self._card = replace(card, name=name or card.name)

    @property
    def inner(self) -> ChatModel:
        """Who answers."""
        return self._grounding.model

    @property
    def card(self) -> ModelCard:
        """The inner model's, under this one's name."""
        return self._card

    async def complete(self, query: Query) -> Answer:
        """The grounded answer.

        Raises:
            UnsupportedOption: the query has a budget and the model a price: what the passages cost is not known before.
            RequestError: the query may not be searched for.
        """
        if query.budget_usd is not None and self._card.price != FREE:
            raise UnsupportedOption(
                f"{self._card.name} reads passages, whose cost no budget can foresee; leave budget_usd out.",
                param="budget_usd",
            )
        if self._check is not None:
            await asyncio.to_thread(self._check, query)
        grounded = await self._grounding.answer(query)
        answer = replace(as_answer(grounded), model=self._card.name)
        if self._versions is None or not grounded.citations:
            return answer
        cited = sorted({citation.chunk.source for citation in grounded.citations})
        return replace(answer, extra={**answer.extra, "sources": await asyncio.to_thread(self._versions, cited)})

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The grounded answer in one piece: a citation can be checked in a whole sentence only."""
        answer = await self.complete(query)
        yield TextDelta(answer.text, answer.logprobs or ())
        yield StreamEnd(answer)

    def unavailable(self) -> str | None:
        """Why the inner model can take no query just now; None: it can."""
        return self.inner.unavailable()

    async def aclose(self) -> None:
        """Closes the inner model."""
        await self.inner.aclose()


def as_answer(grounded: Grounded) -> Answer:
    """The grounded answer as the last model's answer, with every model's cost."""
    last = grounded.answers[-1] if grounded.answers else Answer(cost_usd=0.0)
    return replace(
        last,
        text=grounded.text,
        finish_reason=last.finish_reason if grounded.is_answered else "abstained",
        logprobs=last.logprobs if grounded.is_answered else None,
        cost_usd=grounded.cost_usd,
        latency_s=sum(answer.latency_s for answer in grounded.answers),
        signals={**last.signals, **grounded.signals},
        extra={**last.extra, "citations": [citation_json(citation) for citation in grounded.citations]},
    )


def citation_json(citation: Citation) -> dict[str, Any]:
    """The citation as plain JSON values: number, source, place and quote."""
    chunk = citation.chunk
    return {
        "number": citation.number,
        "source": chunk.source,
        "start": chunk.start,
        "end": chunk.end,
        "quote": citation.quote,
        "support": round(citation.support, 3),
        "metadata": dict(chunk.metadata),
    }
