"""A real local server that speaks OpenAI's chat completions, with scripted answers."""

import json
from typing import Any

from aiohttp import web
from support.wire_server import WireServer, words

from nearfar.types import (
    Answer,
    ContentPart,
    Message,
    NamedTool,
    Query,
    ResponseFormat,
    SamplingOptions,
    TokenLogprob,
    ToolCall,
    ToolSpec,
)

COMMON = {"id": "chatcmpl-1", "created": 1, "model": "scripted-1", "system_fingerprint": "fp_1"}


class OpenAIServer(WireServer):
    """Answers `POST /v1/chat/completions`, streamed and not, and `GET /v1/models`."""

    path = "/v1/chat/completions"

    @property
    def base_url(self) -> str:
        """What a client is told."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        super().add_routes(app)
        app.router.add_get("/v1/models", self._models)

    async def _models(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        return web.json_response({"object": "list", "data": [{"id": "small", "object": "model"}, {"id": "large"}]})

    def query_of(self, body: dict[str, Any]) -> Query:
        choice = body.get("tool_choice")
        return Query(
            tuple(_message(message) for message in body["messages"]),
            tools=tuple(
                ToolSpec(tool["function"]["name"], tool["function"]["description"], tool["function"]["parameters"])
                for tool in body.get("tools", [])
            ),
            tool_choice=NamedTool(choice["function"]["name"]) if isinstance(choice, dict) else choice,
            response_format=_shape(body),
            sampling=SamplingOptions(
                max_tokens=body.get("max_tokens", body.get("max_completion_tokens")),
                stop=tuple(body.get("stop", ())),
                logprobs=body.get("logprobs", False),
                top_logprobs=body.get("top_logprobs"),
            ),
        )

    def whole(self, answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": answer.refusal}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [_call(call) for call in answer.tool_calls]
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
        if answer.logprobs is not None:
            choice["logprobs"] = {"content": [_token(each) for each in answer.logprobs], "refusal": None}
        whole = {**COMMON, "object": "chat.completion", "choices": [choice], **answer.extra}
        return {**whole, "usage": _usage(answer)} if answer.usage else whole

    def events(self, answer: Answer, body: dict[str, Any]) -> list[bytes]:
        deltas: list[tuple[dict[str, Any], Any]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"reasoning_content": piece}, None) for piece in words(answer.reasoning or "")]
        if answer.logprobs is not None:
            deltas += [({"content": each.token}, {"content": [_token(each)]}) for each in answer.logprobs]
        else:
            deltas += [({"content": piece}, None) for piece in words(answer.text)]
        deltas += [({"refusal": piece}, None) for piece in words(answer.refusal or "")]
        for i, call in enumerate(answer.tool_calls):
            half = len(call.arguments) // 2
            head, tail = call.arguments[:half], call.arguments[half:]
            deltas.append(({"tool_calls": [{"index": i, **_call(ToolCall(call.id, call.name, ""))}]}, None))
            deltas += [({"tool_calls": [{"index": i, "function": {"arguments": each}}]}, None) for each in (head, tail)]
        chunks = [_chunk([{"index": 0, "delta": delta, "logprobs": logprobs}]) for delta, logprobs in deltas]
        chunks.append({**_chunk([{"index": 0, "delta": {}, "finish_reason": answer.finish_reason}]), **answer.extra})
        if answer.usage and body.get("stream_options", {}).get("include_usage"):
            chunks.append({**_chunk([]), "usage": _usage(answer)})
        return [*(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks), b"data: [DONE]\n\n"]


def _chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {**COMMON, "object": "chat.completion.chunk", "choices": choices}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _token(each: TokenLogprob) -> dict[str, Any]:
    top = [{"token": token, "logprob": logprob, "bytes": list(token.encode())} for token, logprob in each.top]
    return {"token": each.token, "logprob": each.logprob, "bytes": list(each.token.encode()), "top_logprobs": top}


def _usage(answer: Answer) -> dict[str, Any]:
    assert answer.usage
    return {
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "total_tokens": answer.usage.prompt_tokens + answer.usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": answer.usage.reasoning_tokens},
    }


def _message(message: dict[str, Any]) -> Message:
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = tuple(
            ContentPart("text", part["text"]) if part["type"] == "text" else ContentPart("image", wire=part)
            for part in content
        )
    calls = [(call["id"], call["function"]) for call in message.get("tool_calls", [])]
    return Message(
        message["role"],
        content,
        tuple(ToolCall(key, function["name"], function["arguments"]) for key, function in calls),
        message.get("tool_call_id"),
    )


def _shape(body: dict[str, Any]) -> ResponseFormat | None:
    if "grammar" in body:
        return ResponseFormat("grammar", grammar=body["grammar"])
    shape = body.get("response_format")
    if shape is None:
        return None
    return ResponseFormat(shape["type"], shape.get("json_schema", {}).get("schema"))
