"""A memory in front of cascades: which queries it may answer, for whom, and the decision that says so."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from nearfar.errors import NearfarError
from nearfar.types import (
    Answer,
    Decision,
    Memo,
    Memory,
    Query,
    Recollection,
    SamplingOptions,
    Scope,
    Step,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    estimate_tokens,
)

from .cascade import Cascade
from .trail import Journal, new_decision_id

#: The tier that a decision names where a memory answered.
MEMORY_TIER = "memory"

_DEFAULTS = SamplingOptions()

_logger = logging.getLogger(__name__)


class Recall:
    """Answers queries from a memory, and lets it remember what cascades answer.

    It takes part only where an answer depends on nothing but the question: one user message, with or without a system
    message, no tools, no shape, no decoding options besides a length and a temperature of 0. The system message is
    part of the scope, as are the cascade, its policy, the user and the privacy label. A memory that fails costs its
    help and not the answer.

    Args:
        memory: the answers.
        per_user: users, as the query's metadata name them, do not share; False: they do, and privacy labels still not.
    """

    def __init__(self, memory: Memory, *, per_user: bool = True) -> None:
        self._memory = memory
        self._per_user = per_user

    async def answer(self, query: Query, cascade: Cascade, *, door: str, journal: Journal) -> Answer | None:
        """The remembered answer with its decision, which is written; None where the cascade has to be asked."""
        if not _depends_on_the_question_alone(query):
            return None
        started, created_at = time.perf_counter(), time.time()
        try:
            found = await self._memory.recall(query.text, self.scope(query, cascade))
        except NearfarError as exc:  # the store, or a server that embeds
            _logger.warning("the memory could not be read, so %r is asked: %s", cascade.name, exc)
            return None
        if found is None or not _is_short_enough(found.memo.answer, query):
            return None
        decision = _decision(found, query, cascade, door, created_at, time.perf_counter() - started)
        journal.record(decision)
        await journal.flush()
        return Answer(
            found.memo.answer,
            found.memo.model,
            cost_usd=0.0,
            latency_s=decision.latency_s["total"],
            is_cached=True,
            decision=decision,
        )

    async def remember(self, query: Query, cascade: Cascade, answer: Answer) -> None:
        """Keeps the answer where it is whole, final and depends on nothing but the question."""
        decision = answer.decision
        if (
            decision is None
            or decision.status != "answered"
            or decision.reason not in {"confident", "last_tier"}
            or answer.finish_reason != "stop"
            or answer.tool_calls
            or answer.refusal is not None
            or not answer.text.strip()
            or not _depends_on_the_question_alone(query)
        ):
            return
        memo = Memo(query.text, answer.text, decision.model or "", _sources(answer), decision.id)
        try:
            await self._memory.remember(memo, self.scope(query, cascade))
        except NearfarError as exc:  # the store, or a server that embeds
            _logger.warning("an answer of %r was not remembered: %s", cascade.name, exc)

    def scope(self, query: Query, cascade: Cascade) -> Scope:
        """Whose memory the query may use."""
        parts = [cascade.name, cascade.policy, query.when_unsure]
        context = [message.text for message in query.messages[:-1]]
        if context:
            parts.append(hashlib.sha256(msgspec.json.encode(context)).hexdigest()[:32])
        user = query.metadata.get("user", "") if self._per_user else ""
        return Scope(user, "/".join(parts), query.privacy)


def pieces(answer: Answer) -> Iterator[StreamEvent]:
    """A remembered answer as a stream."""
    decision = answer.decision
    if decision is None:
        raise AssertionError("a remembered answer has its decision")
    yield StreamStart(
        decision.id, decision.tier, decision.model, decision.score, decision.threshold, decision.is_calibrated
    )
    yield TextDelta(answer.text)
    yield StreamEnd(answer)


def _depends_on_the_question_alone(query: Query) -> bool:
    *context, last = query.messages
    sampling = replace(query.sampling, temperature=None, max_tokens=None, seed=None)
    return (
        last.role == "user"
        and isinstance(last.content, str)
        and bool(last.content.strip())
        and all(message.role in {"system", "developer"} and not message.modalities for message in context)
        and not query.tools
        and (query.response_format is None or query.response_format.kind == "text")
        and sampling == _DEFAULTS
        and not query.sampling.temperature
        and not query.wants_signals
        and not query.signals
        and query.uses_memory
    )


def _is_short_enough(text: str, query: Query) -> bool:
    longest = query.sampling.max_tokens
    return longest is None or estimate_tokens(text) <= longest


def _sources(answer: Answer) -> dict[str, str]:
    """The versions of the sources that the answer rests on, where its model names them."""
    named = answer.extra.get("sources")
    return {str(source): str(version) for source, version in named.items()} if isinstance(named, dict) else {}


def _decision(
    found: Recollection, query: Query, cascade: Cascade, door: str, created_at: float, latency_s: float
) -> Decision:
    memo = found.memo
    is_same = query.text.strip() == memo.question.strip()
    asked = "the very same question" if is_same else "another wording"  # whose text belongs to another record
    reason = (
        f"remembered for {found.age_s:.0f} s, as the answer to {asked}: likeness {found.score:.3f} ≥ threshold "
        f"{found.threshold:.3f}" + (f"; first given in decision {memo.decision_id}" if memo.decision_id else "")
    )
    step = Step(
        MEMORY_TIER,
        memo.model,
        "near",
        "accepted",
        reason,
        found.score,
        found.threshold,
        found.is_calibrated,
        {"memory_likeness": found.score, "memory_age_s": found.age_s},
        cost_usd=0.0,
        latency_s=latency_s,
        first_token_s=latency_s,
        is_cached=True,
        text=memo.answer,
    )
    return Decision(
        new_decision_id(),
        created_at,
        "answered",
        "remembered",
        door,
        query.model,
        MEMORY_TIER,
        memo.model,
        found.score,
        found.threshold,
        found.is_calibrated,
        cascade.policy,
        1.0,
        (),
        (step,),
        (),
        0.0,
        False,
        {MEMORY_TIER: latency_s, "total": latency_s},
        msgspec.to_builtins(query),
    )
