"""A real local server that speaks Anthropic's messages API, with scripted answers."""

import json
from typing import Any

from support.wire_server import WireServer, words

from nearfar.types import Answer, Message, NamedTool, Query, ResponseFormat, SamplingOptions, ToolSpec

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class AnthropicServer(WireServer):
    """Answers `POST /v1/messages`, streamed and not."""

    path = "/v1/messages"

    def query_of(self, body: dict[str, Any]) -> Query:
        choice = body.get("tool_choice", {"type": None})
        schema = body.get("output_config", {}).get("format", {}).get("schema")
        texts = [
            (turn["role"], "\n".join(block.get("text", "") for block in turn["content"])) for turn in body["messages"]
        ]
        return Query(
            tuple(Message(role, text) for role, text in texts),
            tools=tuple(
                ToolSpec(tool["name"], tool["description"], tool["input_schema"]) for tool in body.get("tools", [])
            ),
            tool_choice=NamedTool(choice["name"])
            if choice["type"] == "tool"
            else {"any": "required", "auto": "auto", "none": "none", None: None}[choice["type"]],
            response_format=ResponseFormat("json_schema", schema) if schema else None,
            sampling=SamplingOptions(max_tokens=body["max_tokens"], stop=tuple(body.get("stop_sequences", ()))),
        )

    def whole(self, answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "scripted-1",
            "content": _blocks(answer),
            "stop_reason": STOP_REASONS[answer.finish_reason],
            "stop_sequence": None,
            "usage": {**_input(answer), **_output(answer)},
        }

    def events(self, answer: Answer, body: dict[str, Any]) -> list[bytes]:
        start = {**self.whole(answer, body), "content": [], "stop_reason": None}
        start["usage"] = {**_input(answer), "output_tokens": 1}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
        for i, block in enumerate(_blocks(answer)):
            empty: dict[str, Any] = {**block, **({"input": {}} if "input" in block else {})}
            empty |= {key: "" for key in ("text", "thinking", "signature") if key in block}
            events.append({"type": "content_block_start", "index": i, "content_block": empty})
            events += [{"type": "content_block_delta", "index": i, "delta": delta} for delta in _deltas(block)]
            events.append({"type": "content_block_stop", "index": i})
        stop = {"stop_reason": STOP_REASONS[answer.finish_reason], "stop_sequence": None}
        events.append({"type": "message_delta", "delta": stop, "usage": _output(answer)})
        events.append({"type": "message_stop"})
        return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        blocks.append({"type": "thinking", "thinking": answer.reasoning, "signature": "sig"})
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    return blocks + [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in answer.tool_calls
    ]


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    match block["type"]:
        case "thinking":
            pieces = [{"type": "thinking_delta", "thinking": piece} for piece in words(block["thinking"])]
            return [*pieces, {"type": "signature_delta", "signature": block["signature"]}]
        case "text":
            return [{"type": "text_delta", "text": piece} for piece in words(block["text"])]
        case _:
            text = json.dumps(block["input"]) if block["input"] else ""
            return [{"type": "input_json_delta", "partial_json": piece} for piece in ("", text[:5], text[5:])]


def _input(answer: Answer) -> dict[str, int]:
    assert answer.usage
    cached = answer.usage.cached_tokens
    fresh = answer.usage.prompt_tokens - cached
    return {"input_tokens": fresh - 1, "cache_creation_input_tokens": 1, "cache_read_input_tokens": cached}


def _output(answer: Answer) -> dict[str, Any]:
    assert answer.usage
    details = {"thinking_tokens": answer.usage.reasoning_tokens}
    return {"output_tokens": answer.usage.completion_tokens, "output_tokens_details": details}
