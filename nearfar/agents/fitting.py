"""Lets a question fit into a model's context: what tools gave back is cut shorter until it does, and nothing else is.

A tool's result is bounded by its own limit, and the model that reads it may have less room than that, or several
results to read. The observation that is kept is whole; what a role was shown says how much was left out.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from nearfar.errors import ContextTooLong
from nearfar.types import Answer, Message, Query, StreamEnd, StreamEvent

from .refusals import refused_for
from .types import Responder
from .untrusted import bounded

#: Characters of each result, one after another until the question fits: from half of what a toolbox keeps of one to
#: what still says what it was about.
_SHORTER: Final = (8_000, 4_000, 2_000, 1_000, 500, 250)

#: A result as `untrusted.quoted` writes it; the number makes sure of its end.
_RESULT: Final = re.compile(r"(<data (\w+)>\n)(.*?)(\n</data \2>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Asks `inner`, and again with shorter results where none of its models has room for the question."""

    inner: Responder

    async def answer(self, query: Query, *, door: str = "agent") -> Answer:
        """The answer to the longest form of the question that fits.

        Raises:
            ContextTooLong: none does.
        """
        questions = list(_questions(query))
        for number, question in enumerate(questions, 1):
            is_last = number == len(questions)
            try:
                answer = await self.inner.answer(question, door=door)
            except ContextTooLong:
                if is_last:
                    raise
                continue
            if is_last or "messages" not in refused_for(answer):
                break
        return answer

    async def stream(self, query: Query, *, door: str = "agent") -> AsyncGenerator[StreamEvent, None]:
        """As `answer`, piece by piece."""
        questions = list(_questions(query))
        for number, question in enumerate(questions, 1):
            is_last = number == len(questions)
            has_begun = False
            try:
                async with aclosing(self.inner.stream(question, door=door)) as events:
                    async for event in events:
                        if (
                            isinstance(event, StreamEnd)
                            and not is_last
                            and not has_begun
                            and "messages" in refused_for(event.answer)
                        ):
                            break
                        has_begun = True
                        yield event
                    else:
                        return
            except ContextTooLong:
                if is_last or has_begun:
                    raise


def _questions(query: Query) -> Iterator[Query]:
    """The question, and then with ever shorter results, each as long as it differs from the one before."""
    yield query
    last = query.messages
    for limit in _SHORTER:
        messages = tuple(_shortened(message, limit) for message in query.messages)
        if messages != last:
            last = messages
            yield replace(query, prompt=messages)


def _shortened(message: Message, limit: int) -> Message:
    if not isinstance(message.content, str):
        return message
    return replace(
        message,
        content=_RESULT.sub(lambda found: f"{found[1]}{bounded(found[3], limit)[0]}{found[4]}", message.content),
    )
