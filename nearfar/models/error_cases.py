"""A model that is shown what a smaller one got wrong on questions like the one asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from nearfar.errors import ConfigError
from nearfar.types import Answer, ChatModel, ErrorCase, ErrorCases, Message, Query, StreamEvent, prompt_token_bound

from .wrapper import Wrapper

_PREFACE = (
    "On questions like the one asked, a smaller model made the mistakes below. Where one bears on this question, do "
    "not repeat it; answer in the form that is asked for, and do not mention these cases."
)


class WithErrorCases(Wrapper):
    """Puts the likest past mistakes into the prompt, before the last message of the user.

    The cases, which are other queries with their answers, go wherever `inner` is. A case that does not fit into the
    context window, with the answer, is left out. A query with a budget of its own is sent as it is: its tier was chosen
    by what the query alone may cost.

    Args:
        inner: who answers.
        cases: the mistakes.
        k: how many are shown at most; 5 in AdaptiveLog (Ma et al. 2025, arXiv:2501.11031).
    """

    def __init__(self, inner: ChatModel, cases: ErrorCases, *, k: int = 5) -> None:
        super().__init__(inner)
        if k < 1:
            raise ConfigError(f"k is how many error cases are shown, at least 1, not {k!r}.")
        self._cases = cases
        self._k = k

    async def complete(self, query: Query) -> Answer:
        """The inner model's answer to the query with its cases."""
        return await self.inner.complete(await self._with_cases(query))

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The same, piece by piece."""
        async with aclosing(self.inner.stream(await self._with_cases(query))) as events:
            async for event in events:
                yield event

    async def _with_cases(self, query: Query) -> Query:
        if query.budget_usd is not None or not query.text:
            return query
        found = [case for case, _ in await self._cases.similar(query.text, self._k)]
        while found:
            shown = replace(query, prompt=with_error_cases(query.messages, found))
            if self._fits(shown):
                return shown
            found.pop()
        return query

    def _fits(self, query: Query) -> bool:
        window = self.card.context_window
        return window is None or prompt_token_bound(query) + (self.card.output_bound(query) or 0) <= window


def with_error_cases(messages: Sequence[Message], cases: Sequence[ErrorCase]) -> tuple[Message, ...]:
    """The messages, with the mistakes in a message of their own before the last one of the user.

    Source: Ma et al. 2025, arXiv:2501.11031: each case with the question, what was said, why it was wrong and what is
        right.
    """
    if not cases:
        return tuple(messages)
    note = Message("user", "\n\n".join([_PREFACE, *(_shown(case) for case in cases)]))
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages))
    return (*messages[:last], note, *messages[last:])


def _shown(case: ErrorCase) -> str:
    lines = ["<case>", f"Question: {case.question}", f"Wrong answer: {case.wrong}"]
    if case.reason:
        lines.append(f"Why it is wrong: {case.reason}")
    return "\n".join([*lines, f"Right answer: {case.right}", "</case>"])
