"""Has agents answer evaluation items: the structured caller, the plain prompt, or any agent of the config."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias

from nearfar.agents.types import Agent, Responder
from nearfar.types import Answer, Message, Query, SamplingOptions, ToolSpec

from .answers import Recorded
from .asking import ask
from .benchmarks import CallItem, QuestionItem
from .bfcl import BfclItem
from .plain_caller import plain_messages
from .role_caller import RoleCaller, RolesAnswer
from .structured_caller import StructuredAnswer, StructuredCaller

AgentName: TypeAlias = Literal["structured", "plain"]
#: Has one item answered.
Answering: TypeAlias = Callable[[Any], Awaitable[Recorded]]

_MOST_TOKENS = 160  # 99 % of BFCL's gold answers have fewer
_QUESTION = "Answer the question with a few words and nothing else.\n\n{passages}Question: {text}\nAnswer:"


def structured(caller: StructuredCaller) -> Answering:
    """The structured caller on BFCL's items and on others with tools."""

    async def answer(item: BfclItem | CallItem) -> Recorded:
        if isinstance(item, BfclItem):
            return _recorded(await caller.answer_bfcl(item))
        return _recorded(await caller.answer(item.text, item.tools))

    return answer


def by_roles(caller: RoleCaller) -> Answering:
    """α-UMi's planner and caller on BFCL's items and on others with tools."""

    async def answer(item: BfclItem | CallItem) -> Recorded:
        if isinstance(item, BfclItem):
            return _of_roles(await caller.answer_bfcl(item))
        return _of_roles(await caller.answer(item.text, item.tools))

    return answer


def plain(responder: Responder, model: str) -> Answering:
    """One prompt and one answer: BFCL's own where there are tools, the question with its passages elsewhere."""

    async def answer(item: BfclItem | CallItem | QuestionItem) -> Recorded:
        if isinstance(item, BfclItem):
            messages = plain_messages(item.functions, item.turns, item.language)
        elif isinstance(item, CallItem):
            messages = plain_messages([_document(tool) for tool in item.tools], [("user", item.text)])
        else:
            passages = "".join(f"{title}: {text}\n\n" for title, text in item.passages)
            messages = (Message("user", _QUESTION.format(passages=passages, text=item.text)),)
        sampling = SamplingOptions(temperature=0.0, max_tokens=_MOST_TOKENS)
        said = await ask(responder, Query(messages, model=model, sampling=sampling, uses_memory=False))
        return Recorded(said.text, said.text.strip(), _tokens(said), 1)

    return answer


def by_agent(agent: Agent) -> Answering:
    """An agent of the config on questions."""

    async def answer(item: QuestionItem) -> Recorded:
        result = await agent.run(item.text)
        used = result.usage
        tokens = used.prompt_tokens + used.completion_tokens if used else None
        return Recorded(result.text, result.text, tokens, result.model_calls)

    return answer


def _recorded(found: StructuredAnswer) -> Recorded:
    calls = [{call.name: dict(call.arguments)} for call in found.calls]
    signals = {"plan_score": found.plan.score, "plan_relevance": found.plan.relevance}
    if found.caller_score is not None:
        signals["caller_score"] = found.caller_score
    return Recorded(calls, None, found.prompt_tokens + found.completion_tokens, found.model_calls, signals)


def _of_roles(found: RolesAnswer) -> Recorded:
    calls = [{call.name: dict(call.arguments)} for call in found.calls]
    scores = {"plan_score": found.plan_score, "caller_score": found.caller_score}
    signals = {name: score for name, score in scores.items() if score is not None}
    return Recorded(calls, None, found.prompt_tokens + found.completion_tokens, found.model_calls, signals)


def _document(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _tokens(answer: Answer) -> int | None:
    return answer.usage.prompt_tokens + answer.usage.completion_tokens if answer.usage else None


async def answered(
    items: Sequence[Any], answering: Answering, tell: Callable[[str, Recorded], None] = lambda _id, _answer: None
) -> dict[str, Recorded]:
    """The answers to the items, one after the other; `tell` is called with each."""
    found: dict[str, Recorded] = {}
    for item in items:
        found[item.id] = await answering(item)
        tell(item.id, found[item.id])
    return found
