"""α-UMi's planner and caller on items whose tools cannot be run: every call is told to have been done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from nearfar.agents.alpha_umi import (
    CALLER,
    PLANNER,
    AlphaUmi,
    arguments_format,
    arguments_score,
    asked_next,
    call_question,
    conversation,
    plan_score,
    planned_text,
    planner_format,
    read_plan,
)
from nearfar.agents.roles import Ask, Role, answered
from nearfar.agents.trace import to_plain
from nearfar.agents.types import Called, Observation, Observed, Planned, Responder
from nearfar.router.held_choices import CHOICE_LOGPROBS
from nearfar.types import Answer, ToolCall, ToolSpec

from .bfcl import BfclItem
from .bfcl_tools import calls_for_checker, tool_spec
from .call_text import Call

_DONE = Observation("done")
_MOST_CALLS = 6


@dataclass(frozen=True, slots=True)
class RolesAnswer:
    """The calls, how sure the roles are of the least sure one, and what it took."""

    calls: tuple[Call, ...]
    plan_score: float | None
    caller_score: float | None
    prompt_tokens: int
    completion_tokens: int
    model_calls: int


@dataclass(frozen=True, slots=True)
class RoleCaller:
    """Answers items with α-UMi's planner and caller, in the agent's own words and held to its schemas.

    Attributes:
        responder: asks the models.
        graph: its kind of rationale.
        roles: planner and caller.
    """

    responder: Responder
    graph: AlphaUmi
    roles: Mapping[str, Role]

    async def answer(self, text: str, tools: Sequence[ToolSpec]) -> RolesAnswer:
        """The calls up to where the planner would answer or give up, or calls again what it has called.

        Raises:
            UpstreamError: a model failed.
            RoutingError: no model may take it.
        """
        tools = [replace(tool, parameters={**tool.parameters, "additionalProperties": False}) for tool in tools]
        specs = {tool.name: tool for tool in tools}
        trace: list[dict[str, Any]] = []
        calls: list[Call] = []
        answers: list[Answer] = []
        plan_scores: list[float | None] = []
        call_scores: list[float | None] = []
        for step in range(1, _MOST_CALLS + 1):
            history = conversation(text, tools, trace, rationale=self.graph.rationale)
            shape = planner_format(tools, self.graph.rationale)
            ask = Ask(history, step, shape, top_logprobs=CHOICE_LOGPROBS)
            said = await answered(self.responder, self.roles[PLANNER], ask, score=partial(plan_score, shape=shape))
            answers.append(said.answer)
            plan_scores.append(said.score)
            rationale, following, name = read_plan(said.answer.text, tools)
            if following != "caller" or name is None:
                break
            told = planned_text(name, rationale, self.graph.rationale)
            turns = asked_next(history, told, call_question(name))
            ask = Ask(turns, step, arguments_format(specs[name]))
            written = await answered(self.responder, self.roles[CALLER], ask, score=arguments_score)
            answers.append(written.answer)
            call_scores.append(written.score)
            call = Call(name, _read(written.answer.text))
            if call in calls:
                break
            calls.append(call)
            made = ToolCall(str(step), name, written.answer.text.strip())
            done = (Planned(step, rationale, "caller"), Called(step, made), Observed(step, made.id, name, _DONE))
            trace += [to_plain(event) for event in done]
        used = [answer.usage for answer in answers if answer.usage is not None]
        return RolesAnswer(
            tuple(calls),
            _least(plan_scores),
            _least(call_scores),
            sum(usage.prompt_tokens for usage in used),
            sum(usage.completion_tokens for usage in used),
            len(answers),
        )

    async def answer_bfcl(self, item: BfclItem) -> RolesAnswer:
        """The calls that a BFCL item wants, with arguments as its checker reads them."""
        found = await self.answer(item.text, [tool_spec(function) for function in item.functions])
        return replace(found, calls=calls_for_checker(found.calls, item))


def _read(text: str) -> dict[str, Any]:
    """The object that the caller wrote; nothing where the token limit cut it off."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _least(scores: Sequence[float | None]) -> float | None:
    return min((score for score in scores if score is not None), default=None)
