"""Fixes what a run may do before anything from outside is read, so that nothing read can widen it.

Tools whose owner vouches that they only read, and nothing outside this machine, may be called with any arguments: such
a call changes nothing and tells nobody anything. Every other call must have been planned from the task's own words: its
tool, and each argument but those that the plan says come from data. Whatever an observation asks for beyond that is put
before a person, or refused. The idea is CaMeL's (Debenedetti et al. 2025, arXiv:2503.18813), without its interpreter;
ReWOO's plans are fixed whole (`rewoo`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearfar.types import ResponseFormat, ToolCall, ToolSpec

from .toolbox import Toolbox
from .trace import Trace, canonical


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call with effects that the task asks for."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    from_data: tuple[str, ...] = ()  # arguments that what was read may fill


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run may do unasked."""

    reading: tuple[str, ...] = ()  # tools that only read
    calls: tuple[PlannedCall, ...] = ()  # of other tools, each once
    asking: tuple[str, ...] = ()  # other tools that there were: what is not planned takes a person

    def objection(self, call: ToolCall, trace: Trace) -> str | None:
        """Why the call is not part of the plan; None: it is."""
        if call.name in self.reading:
            return None
        planned = [each for each in self.calls if each.tool == call.name]
        if not planned:
            return f"the plan, made before anything was read, has no call of {call.name!r}"
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            return f"the arguments of {call.name!r} are not JSON"
        fitting = [each for each in planned if _fits(each, arguments)]
        if not fitting:
            return f"the plan, made before anything was read, has {call.name!r} with other arguments"
        made = [json.loads(each["call"]["arguments"] or "{}") for each in trace if _is_call_of(each, call.name)]
        if sum(any(_fits(each, past) for each in fitting) for past in made) >= len(fitting):
            return f"{call.name!r} was called as often as the plan has it"
        return None


def _is_call_of(event: Mapping[str, Any], tool: str) -> bool:
    return bool(event["event"] == "called" and event["call"]["name"] == tool)


def _fits(planned: PlannedCall, arguments: Mapping[str, Any]) -> bool:
    """Whether the arguments are the planned ones, but for those that come from data."""
    names = arguments.keys() | planned.arguments.keys()
    return all(
        name in planned.from_data
        or (
            name in arguments
            and name in planned.arguments
            and canonical(json.dumps(arguments[name])) == canonical(json.dumps(planned.arguments[name]))
        )
        for name in names
    )


def only_reads(toolbox: Toolbox, tool: str) -> bool:
    """Whether the owner vouches that the tool changes nothing and reaches nobody."""
    hints = toolbox.hints(tool)
    return bool(hints.is_trusted and hints.read_only and not hints.open_world and not hints.destructive)


def plan_format(tools: Iterable[ToolSpec]) -> ResponseFormat:
    """The shape of a planner's list of calls with effects."""
    items = [
        {
            "type": "object",
            "properties": {
                "tool": {"const": tool.name},
                "arguments": {"type": "object", "properties": _argument_schemas(tool), "additionalProperties": False},
                "from_data": {
                    "type": "array",
                    "items": {"enum": sorted(tool.parameters.get("properties", {})) or [""]},
                },
            },
            "required": ["tool", "arguments", "from_data"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema = {
        "type": "object",
        "properties": {"calls": {"type": "array", "items": {"anyOf": items}, "maxItems": 8}},
        "required": ["calls"],
        "additionalProperties": False,
    }
    return ResponseFormat("json_schema", schema=schema, name="plan")


def _argument_schemas(tool: ToolSpec) -> dict[str, Any]:
    """The schemas of the tool's arguments; any value where they refer to definitions elsewhere in the tool's schema."""
    found = tool.parameters.get("properties", {})
    return {name: {} if "$ref" in json.dumps(schema) else schema for name, schema in found.items()}


def read_calls(text: str, tools: Sequence[ToolSpec]) -> tuple[PlannedCall, ...]:
    """The calls that a planner listed; those that are none, or of no such tool, are left out."""
    names = {tool.name for tool in tools}
    try:
        listed = json.loads(text[text.index("{") : text.rindex("}") + 1])["calls"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    calls = []
    for each in listed if isinstance(listed, list) else ():
        if not isinstance(each, dict) or each.get("tool") not in names:
            continue
        arguments, from_data = each.get("arguments"), each.get("from_data")
        if isinstance(arguments, dict):
            free = tuple(name for name in from_data if isinstance(name, str)) if isinstance(from_data, list) else ()
            calls.append(PlannedCall(each["tool"], arguments, free))
    return tuple(calls)
