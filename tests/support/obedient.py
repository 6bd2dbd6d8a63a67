"""A deterministic stand-in for a model's mind: it does what a query asks, without knowing anything."""

import json
from collections.abc import Mapping
from typing import Any

from nearfar.types import Answer, NamedTool, Query, TokenLogprob, ToolCall, Usage, estimate_tokens

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def obedient(query: Query) -> Answer:
    """Calls the tool that must be called, fills the schema that must be filled, and else counts from one.

    `stop`, `max_tokens` (in words) and `top_logprobs` are honoured, so that a `ScriptedModel([obedient])`, or a
    scripted server with this behind it, passes the whole contract.
    """
    usage = Usage(sum(estimate_tokens(message.text) for message in query.messages) + 4, 1)
    if query.tools and query.tool_choice not in (None, "auto", "none"):
        wanted = query.tool_choice.name if isinstance(query.tool_choice, NamedTool) else query.tools[0].name
        tool = next(tool for tool in query.tools if tool.name == wanted)
        call = ToolCall("call_1", tool.name, json.dumps(instance_of(tool.parameters)))
        return Answer(tool_calls=(call,), finish_reason="tool_calls", usage=usage)
    shape = query.response_format
    if shape and shape.kind == "grammar":
        return Answer("yes", usage=usage)  # the contract's grammar allows it
    if shape and shape.kind in ("json_object", "json_schema"):
        return Answer(json.dumps(instance_of(shape.schema or {"type": "object"})), usage=usage)

    pieces = [WORDS[0], *(f" {word}" for word in WORDS[1:])]
    limit = query.sampling.max_tokens
    is_cut = limit is not None and limit < len(pieces)
    pieces = pieces[:limit]
    for stop in query.sampling.stop:
        if stop in (text := "".join(pieces)):
            kept = text[: text.index(stop)]
            pieces, is_cut = kept.split(" "), False
            pieces = pieces[:1] + [f" {word}" for word in pieces[1:]]
    logprobs = None
    if query.sampling.logprobs:
        others = range(1, query.sampling.top_logprobs or 0)
        logprobs = tuple(
            TokenLogprob(p, -0.1, ((p, -0.1), *((f"other{i}", -2.0 - i) for i in others)) if len(others) else ())
            for p in pieces
        )
    usage = Usage(usage.prompt_tokens, len(pieces))
    return Answer("".join(pieces), finish_reason="length" if is_cut else "stop", logprobs=logprobs, usage=usage)


def instance_of(schema: Mapping[str, Any]) -> Any:
    """The smallest value that a plain JSON Schema allows."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object" | None:
            return {name: instance_of(part) for name, part in schema.get("properties", {}).items()}
        case "array":
            return []
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return "text"
