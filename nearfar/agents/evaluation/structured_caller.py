"""Calls in small steps: which tools and how often, what each argument may be, and only then the model.

The planner ranks the tools by a tool index and cuts the request into parts that need one call each; the caller is held
to a schema that the part's own words have narrowed (`grounded_schema`), so that a small model chooses and copies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, fsum
from typing import Any

from nearfar.agents.types import Responder
from nearfar.types import Answer, Embedder, Message, Query, ResponseFormat, SamplingOptions, ToolSpec

from .asking import ask
from .bfcl import BfclItem
from .bfcl_tools import calls_for_checker, tool_spec
from .call_text import Call
from .grounded_schema import grounded
from .request_plan import Plan, planned

_PROMPT = """\
Function: {name}: {description}
Arguments:
{arguments}
Request: {text}
The arguments as JSON, each copied from the request:"""
_EXAMPLES = (
    Message(
        "user",
        _PROMPT.format(
            name="train_search",
            description="Search for trains between two stations.",
            arguments="- origin: Where the journey begins.\n- destination: Where it ends.\n- seats: How many seats.",
            text="I want to go to Lyon with my two sisters, so three seats please. We live in Nice.",
        ),
    ),
    Message("assistant", '{"origin": "Nice", "destination": "Lyon", "seats": 3}'),
)
#: A request that no tool is this near to wants no call; the embedder can only tell in English. On one half of BFCL's
#: public items, half of those without a fitting function are below, and 2 % of the others.
LEAST_RELEVANCE = 0.2
_MOST_DESCRIPTION = 200  # characters
_MOST_TOKENS = 300
_MOST_QUESTIONS = 3  # one, and again where two arguments got the same value


@dataclass(frozen=True, slots=True)
class StructuredAnswer:
    """The calls, how sure planner and caller are, and what it took."""

    calls: tuple[Call, ...]
    plan: Plan
    caller_score: float | None  # of the least sure call
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model_calls: int = 0


class StructuredCaller:
    """Answers BFCL items in small steps.

    Args:
        responder: asks the models.
        model: of the caller.
        embedder: of the tool index.
    """

    def __init__(self, responder: Responder, model: str, embedder: Embedder) -> None:
        self._responder = responder
        self._model = model
        self._embedder = embedder

    async def answer(self, text: str, tools: Sequence[ToolSpec]) -> StructuredAnswer:
        """The calls that the request wants; none where no tool is near to it.

        Raises:
            UpstreamError: the model failed.
            RoutingError: no model may take it.
        """
        specs = {tool.name: tool for tool in tools}
        plan = planned(text, list(specs.values()), self._embedder)
        calls: list[Call] = []
        scores: list[float] = []
        used = [0, 0, 0]
        is_relevant = plan.relevance >= LEAST_RELEVANCE or not text.isascii()
        for step in plan.steps if is_relevant else ():
            arguments, logprobs, tokens = await self._arguments(specs[step.tool], step.text, text)
            used = [have + more for have, more in zip(used, tokens, strict=True)]
            call = Call(step.tool, arguments)
            if call not in calls:
                calls.append(call)
            if logprobs:
                scores.append(exp(fsum(logprobs) / len(logprobs)))
        return StructuredAnswer(tuple(calls), plan, min(scores, default=None), *used)

    async def answer_bfcl(self, item: BfclItem) -> StructuredAnswer:
        """The calls that a BFCL item wants, with arguments as its checker reads them."""
        found = await self.answer(item.text, [tool_spec(function) for function in item.functions])
        return replace(found, calls=calls_for_checker(found.calls, item))

    async def _arguments(self, spec: ToolSpec, text: str, whole: str) -> tuple[dict[str, Any], list[float], list[int]]:
        """The arguments of one call, log-probabilities of their tokens, and prompt tokens, completion tokens, calls."""
        schema = grounded(spec.parameters, text, whole)
        order = schema["required"]
        known = settled(schema)
        logprobs: list[float] = []
        used = [0, 0, 0]
        for _ in range(_MOST_QUESTIONS):
            open_names = [name for name in order if name not in known]
            if not open_names:
                break
            answer = await self._asked(spec, text, schema, open_names, known)
            usage = answer.usage
            used = [
                used[0] + (usage.prompt_tokens if usage else 0),
                used[1] + (usage.completion_tokens if usage else 0),
                used[2] + 1,
            ]
            logprobs = [token.logprob for token in answer.logprobs or ()]
            found = _read(answer.text)
            again = _doubled({**known, **found}, open_names, schema)
            known |= {name: value for name, value in found.items() if name not in again}
            for name in again:
                left = [each for each in schema["properties"][name]["enum"] if each not in known.values()]
                schema["properties"][name] = {"enum": left}
            if not again:
                break
        return {name: known[name] for name in order if name in known}, logprobs, used

    async def _asked(
        self, spec: ToolSpec, text: str, schema: dict[str, Any], names: Sequence[str], known: dict[str, Any]
    ) -> Answer:
        """The model's JSON object with the arguments that are still open."""
        query = Query(
            caller_messages(spec, text, schema["required"], known),
            model=self._model,
            response_format=ResponseFormat(
                "json_schema",
                schema={
                    "type": "object",
                    "properties": {name: schema["properties"][name] for name in names},
                    "required": list(names),
                    "additionalProperties": False,
                },
            ),
            sampling=SamplingOptions(temperature=0.0, max_tokens=_MOST_TOKENS, logprobs=True),
            uses_memory=False,
        )
        return await ask(self._responder, query)


def caller_messages(spec: ToolSpec, text: str, names: Sequence[str], known: Mapping[str, Any]) -> tuple[Message, ...]:
    """What the caller is asked: an example, the function, its arguments of these names, and what is known of them."""
    about = spec.parameters.get("properties") or {}
    lines = [
        f"- {name}: {str(about[name].get('description', ''))[:_MOST_DESCRIPTION]}" for name in names if name in about
    ]
    given = f"\nAlready known: {json.dumps(known, ensure_ascii=False)}" if known else ""
    prompt = _PROMPT.format(
        name=spec.name, description=spec.description[:_MOST_DESCRIPTION], arguments="\n".join(lines), text=text
    )
    return (*_EXAMPLES, Message("user", prompt + given))


def settled(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that can have one value only, so that no model is asked for them."""
    return {name: each["enum"][0] for name, each in schema["properties"].items() if len(each.get("enum", ())) == 1}


def _read(text: str) -> dict[str, Any]:
    """The object that the model wrote; nothing where the token limit cut it off."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _doubled(values: dict[str, Any], names: Sequence[str], schema: dict[str, Any]) -> list[str]:
    """The arguments that have an earlier one's value and could have another: each value of a request has one use."""
    seen: list[Any] = [value for name, value in values.items() if name not in names]
    found = []
    for name in names:
        value = values.get(name)
        choices = schema["properties"][name].get("enum", ())
        is_free = (
            isinstance(value, str | int | float)
            and not isinstance(value, bool)
            and "enum" in schema["properties"][name]
        )
        if is_free and value in seen and any(each not in seen for each in choices):
            found.append(name)
        seen.append(value)
    return found
