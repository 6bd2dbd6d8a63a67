"""Roles: who answers for a part of an agent, how it is asked, and how sure it is.

A role is a model's or a cascade's name: the router takes either. How sure a role is, is read off the log-probabilities
of the tokens that matter: the planner's marker and tool names among those that it could have said, the caller's
arguments.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from math import exp

from nearfar.errors import BudgetExceeded, RequestError, RoutingError, UpstreamError
from nearfar.router.answer_span import tokens_in
from nearfar.types import (
    Answer,
    Message,
    Query,
    ResponseFormat,
    SamplingOptions,
    StreamEnd,
    TextDelta,
    ToolChoice,
    ToolSpec,
    Usage,
)

from .refusals import given, refused_for
from .types import Decided, Responder, Wrote

#: What a model may not be able to give, and a role can do without.
_SHAPES = frozenset({"logprobs", "top_logprobs", "response_format"})


@dataclass(frozen=True, slots=True)
class Role:
    """Who answers for a part of an agent, and with how much effort.

    Attributes:
        name: planner, caller, summarizer …
        model: a model's or a cascade's name.
        max_tokens: the longest answer.
        temperature: of one answer; where several are drawn, `sample_temperature` is used.
        samples: how many answers are drawn; the most frequent one counts.
        tokens: what the role's answers may take in a run before only one is drawn of each; None: no limit.
        usd: what the role's answers may cost in a run, so that a cascade of its own goes no further than that lasts;
            None: no limit.
        reads_logprobs: ask for log-probabilities; a cascade with a tier that gives none would lose that tier.
        unsure: who is asked the same again where this one's own score is below `sure_from`, or there is none.
        sure_from: in [0, 1].
    """

    name: str
    model: str = "auto"
    max_tokens: int = 256
    temperature: float | None = 0.0
    samples: int = 1
    tokens: int | None = None
    usd: float | None = None
    sample_temperature: float = 0.7
    reads_logprobs: bool = True
    unsure: Role | None = None
    sure_from: float = 0.5


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to a role, with what its answer must look like and what is left of the run's limits."""

    messages: tuple[Message, ...]
    step: int
    response_format: ResponseFormat | None = None
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    deadline_s: float | None = None
    budget_usd: float | None = None
    max_tokens: int | None = None  # what the run has left
    draw_tokens: int | None = None  # what the role has left for drawing several answers
    privacy: str = "any"
    session: str | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # alternatives per token, where the score reads them
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoleAnswer:
    """What a role said, and the record of every model that was asked for it."""

    answer: Answer
    decided: tuple[Decided, ...]
    score: float | None = None  # how sure it is, in [0, 1]


async def answered(
    responder: Responder,
    role: Role,
    ask: Ask,
    *,
    key: Callable[[Answer], str | None] = lambda answer: answer.text,
    score: Callable[[Answer], float | None] = lambda answer: answer.score,
) -> RoleAnswer:
    """The role's answer, or where it is not sure of it, that of whom it names for that.

    Of several answers the most frequent, whose score is the share of draws that say it. Whoever is asked next may fail,
    or cost more than is left: then the unsure answer stands.

    Args:
        responder: asks the models.
        role: who is asked.
        ask: what.
        key: what two answers share that say the same; None: the answer says nothing and does not count.
        score: how sure the answer is, in [0, 1].

    Raises:
        UpstreamError: every model that was asked failed.
        RoutingError: no model may take it.
    """
    first = await _most_frequent(responder, role, ask, key, score)
    if role.unsure is None or (first.score is not None and first.score >= role.sure_from):
        return first
    try:
        other = await answered(responder, role.unsure, _after(ask, first), key=key, score=score)
    except (BudgetExceeded, RoutingError, UpstreamError):
        return first
    return replace(other, decided=first.decided + other.decided)


def _after(ask: Ask, said: RoleAnswer) -> Ask:
    """The same question, with what that answer left of the run's limits."""
    usages = [each.usage for each in said.decided if each.usage is not None]
    tokens = sum(usage.prompt_tokens + usage.completion_tokens for usage in usages)
    costs = [each.cost_usd for each in said.decided]
    known = [cost for cost in costs if cost is not None]
    left_usd = ask.budget_usd
    if left_usd is not None:
        left_usd = max(0.0, left_usd - sum(known)) if len(known) == len(costs) else 0.0  # what is unknown may be all
    return replace(
        ask,
        budget_usd=left_usd,
        max_tokens=None if ask.max_tokens is None else max(1, ask.max_tokens - tokens),
        draw_tokens=None if ask.draw_tokens is None else ask.draw_tokens - tokens,
    )


async def _most_frequent(
    responder: Responder,
    role: Role,
    ask: Ask,
    key: Callable[[Answer], str | None],
    score: Callable[[Answer], float | None],
) -> RoleAnswer:
    """What most of the role's draws say."""
    left = ask.draw_tokens
    if left is not None and left <= 0:
        role = replace(role, samples=1)
    drawn: list[tuple[str | None, float | None, Answer]] = []
    decided: list[Decided] = []
    for number in range(role.samples):
        if decided and left is not None and _tokens(decided) >= left:
            break
        answer = await _one(responder, role, ask, number)
        sure = score(answer)
        drawn.append((key(answer), sure, answer))
        decided.append(decision_of(role, ask.step, answer, sure))
    if len(drawn) == 1:
        return RoleAnswer(drawn[0][2], tuple(decided), drawn[0][1])
    keys = [key for key, _, _ in drawn if key is not None]
    if not keys:
        return RoleAnswer(drawn[0][2], tuple(decided))
    most = max(keys, key=keys.count)  # the first of them where several are as frequent
    agreeing = [(sure or 0.0, -number, answer) for number, (key, sure, answer) in enumerate(drawn) if key == most]
    best = max(agreeing, key=lambda each: each[:2])[2]
    return RoleAnswer(best, tuple(decided), keys.count(most) / len(drawn))


async def written(responder: Responder, role: Role, ask: Ask) -> AsyncGenerator[Wrote | RoleAnswer, None]:
    """The role's answer piece by piece; the whole of it last."""
    if role.samples > 1 and (ask.draw_tokens is None or ask.draw_tokens > 0):
        whole = await answered(responder, role, ask)
        yield Wrote(whole.answer.text)
        yield whole
        return
    pieces = 0
    async with aclosing(responder.stream(query_of(role, ask, 0, logprobs=False), door="agent")) as stream:
        async for event in stream:
            if isinstance(event, TextDelta) and event.text:
                pieces += 1
                yield Wrote(event.text)
            elif isinstance(event, StreamEnd):
                answer = given(event.answer, "take it")
                if answer.text and not pieces:  # an abstention is said whole
                    yield Wrote(answer.text)
                yield RoleAnswer(answer, (decision_of(role, ask.step, answer, answer.score),))


async def _one(responder: Responder, role: Role, ask: Ask, number: int) -> Answer:
    """One answer; in the prompt's words alone where nobody can be held to the shape, or gives log-probabilities."""
    try:
        answer = await responder.answer(query_of(role, ask, number, logprobs=role.reads_logprobs), door="agent")
    except RequestError as exc:
        if exc.param not in _SHAPES:
            raise
    else:
        if not refused_for(answer) & _SHAPES:
            return given(answer, "take it")
    free = replace(ask, response_format=None)
    return given(await responder.answer(query_of(role, free, number), door="agent"), "take it")


def query_of(role: Role, ask: Ask, number: int = 0, *, logprobs: bool = False) -> Query:
    """The question as the router takes it; the `number`th of several that are drawn."""
    bounds = [bound for bound in (role.max_tokens, ask.max_tokens) if bound is not None]
    drawn = role.samples > 1
    return Query(
        ask.messages,
        model=role.model,
        tools=ask.tools,
        tool_choice=ask.tool_choice,
        response_format=ask.response_format,
        sampling=SamplingOptions(
            max_tokens=max(1, min(bounds)),
            temperature=role.sample_temperature if drawn else role.temperature,
            seed=number if drawn else None,
            stop=ask.stop,
            logprobs=logprobs,
            top_logprobs=ask.top_logprobs if logprobs else None,
        ),
        deadline_s=ask.deadline_s,
        budget_usd=ask.budget_usd,
        privacy="near" if ask.privacy == "near" else "any",
        session=ask.session,
        metadata=ask.metadata,
        uses_memory=False,  # what a role says rests on this run's observations
    )


def decision_of(role: Role, step: int, answer: Answer, score: float | None) -> Decided:
    """The record that a role's model answered."""
    decision = answer.decision
    return Decided(
        step,
        role.name,
        answer.decision_id,
        answer.tier,
        answer.model,
        score,
        decision.cost_usd if decision else answer.cost_usd,
        _usage(answer),
    )


def _tokens(decided: Sequence[Decided]) -> int:
    return sum(each.usage.prompt_tokens + each.usage.completion_tokens for each in decided if each.usage)


def _usage(answer: Answer) -> Usage | None:
    """Tokens of every tier that was asked."""
    if answer.decision is None:
        return answer.usage
    found = [step.usage for step in answer.decision.steps if step.usage is not None]
    total = found[0] if found else answer.usage
    for usage in found[1:]:
        total = usage if total is None else total + usage
    return total


def span_score(answer: Answer, text: str) -> float | None:
    """The geometric mean of the probabilities of the tokens that spell the last `text` in what the model wrote.

    None where the model gave no log-probabilities, or wrote no such text.
    """
    if not answer.logprobs or not text:
        return None
    whole = "".join(token.token for token in answer.logprobs)
    start = whole.rfind(text)
    if start < 0:
        return None
    inside = tokens_in(whole, answer.logprobs, start, start + len(text))
    if not inside:
        return None
    return exp(sum(token.logprob for token in inside) / len(inside))


def joined(parts: Sequence[str]) -> str:
    """The parts that are not empty, a line each."""
    return "\n".join(part for part in parts if part)
