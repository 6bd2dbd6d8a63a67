"""OpenAI's chat completions: a body to a query, and an answer or its stream to the wire's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.types import (
    Answer,
    ContentPart,
    Decision,
    Message,
    Modality,
    Query,
    ReasoningDelta,
    ResponseFormat,
    Role,
    SamplingOptions,
    StreamStart,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
    Usage,
    plain,
)

from .problems import Problem
from .schemas import (
    CONSTRAINT_NAMES,
    NO_CONSTRAINTS,
    NOTES,
    Count,
    FunctionSpec,
    JsonSchemaFormat,
    Penalty,
    StreamOptions,
    Temperature,
    TopLogprobs,
    UnitInterval,
    check_service_tier,
    check_stream_options,
    constraints,
    convert,
    notes,
    parse_object,
    refuse_fields,
    refuse_tool_type,
    refuse_unknown,
    response_format,
    text_of,
    tool_choice,
    unknown_fields,
)

_encode = msgspec.json.Encoder().encode

#: A query's fields to this wire's.
PARAM_NAMES: Mapping[str, str] = CONSTRAINT_NAMES

_UNSUPPORTED: Mapping[str, str] = {
    "functions": "it is the old name of tools; use `tools`",
    "function_call": "it is the old name of tool_choice; use `tool_choice`",
    "audio": "answers are text",
    "best_of": "nearfar gives one answer",
    "store": "nearfar keeps decisions, not completions; leave it out",
}

_MODALITIES: Mapping[str, Modality] = {"image_url": "image", "input_audio": "audio", "file": "file"}
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


# --- requests --------------------------------------------------------------------------------------------------------


class _Function(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str = ""


class _ToolCall(Struct):
    id: str
    function: _Function | None = None
    type: str = "function"


class _Message(Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})


class _Tool(Struct):
    type: str = "function"
    function: FunctionSpec | None = None


class _ResponseFormat(Struct, forbid_unknown_fields=True):
    type: str
    json_schema: JsonSchemaFormat | None = None
    grammar: str | None = None


class _ChatRequest(Struct, kw_only=True):
    messages: list[_Message]
    model: str = "auto"
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    modalities: list[str] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: UnitInterval | None = None
    top_k: int | None = None
    min_p: UnitInterval | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: _ResponseFormat | None = None
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None


class _PlainMessage(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class _PlainRequest(_ChatRequest, kw_only=True, forbid_unknown_fields=True):
    """What nearly all ask: texts, and options that need no look besides their type's."""

    messages: list[_PlainMessage]  # type: ignore[assignment]  # fewer than the others
    tools: None = None
    tool_choice: None = None
    response_format: None = None


_decode_plain = msgspec.json.Decoder(_PlainRequest).decode

#: Fields that need no look besides their type's.
_PLAIN = frozenset(_ChatRequest.__struct_fields__)
_NOTHING: Mapping[str, Any] = {}

#: What nearfar knows of this wire, whether it honours or refuses it.
FIELDS = frozenset({*_ChatRequest.__struct_fields__, "nearfar", "metadata", *NOTES, *_UNSUPPORTED})


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat completion that was asked for."""

    query: Query
    stream: bool
    include_usage: bool

    def reply(self, answer: Answer, decision: Decision, created: int) -> bytes:
        """The answer as a body."""
        return completion(answer, decision, created)

    def encoder(self, created: int) -> ChatStream:
        """What writes the answer as a stream."""
        return ChatStream(self.query.model, created, include_usage=self.include_usage)


def parse_chat(body: bytes, most_s: float) -> ChatCall:
    """What a chat completion's body asks for.

    Args:
        most_s: the longest that its answer may take, in seconds.

    Raises:
        RequestError: the body is wrong or asks for what nearfar does not do; `param` names the field.
    """
    limits, metadata, extra = NO_CONSTRAINTS, _NOTHING, _NOTHING
    request: _ChatRequest
    try:
        request = plain_request = _decode_plain(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw = parse_object(body)
        if not raw.keys() <= _PLAIN:
            refuse_fields(raw, _UNSUPPORTED)
            check_service_tier(raw)
            limits, metadata, extra = constraints(raw), notes(raw), unknown_fields(raw, FIELDS)
        request = convert(raw, _ChatRequest)
        messages = _messages(request.messages, raw["messages"])
        tools = _tools(request.tools, raw["tools"]) if request.tools else ()
    else:
        messages = tuple([Message(message.role, message.content) for message in plain_request.messages])
        tools = ()
    options = request.stream_options
    check_stream_options(options, stream=bool(request.stream))
    if request.n not in {None, 1}:
        raise UnsupportedOption(f"`n` must be 1, not {request.n!r}: nearfar gives one answer.", param="n")
    if request.modalities not in (None, [], ["text"]):
        raise UnsupportedOption("`modalities` other than text are not supported: answers are text.", param="modalities")
    query = Query(
        messages,
        request.model,
        tools,
        None if request.tool_choice is None else _tool_choice(request),
        request.parallel_tool_calls,
        _format(request.response_format),
        _sampling(request, extra),
        limits.budget_usd,
        min(limits.deadline_s or most_s, most_s),
        limits.privacy or "any",
        limits.quality,
        limits.session,
        limits.when_unsure or "best",
        metadata,
        uses_memory=limits.memory is not False,
        docs=limits.docs,
        passages=limits.passages,
        signals=tuple(limits.signals or ()),
    )
    return ChatCall(query, bool(request.stream), bool(options and options.include_usage))


def _messages(messages: Sequence[_Message], raw: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple([_message(messages[i], wire, i) for i, wire in enumerate(raw)])


def _message(message: _Message, wire: Mapping[str, Any], index: int) -> Message:
    role = _ROLES.get(message.role)
    content = message.content
    at = f"messages[{index}]"
    if role is None:
        hint = " It is the old name of 'tool'." if message.role == "function" else ""
        raise UnsupportedOption(
            f"`{at}.role` {message.role!r} is not supported.{hint} Valid roles: {', '.join(_ROLES)}.",
            param=f"{at}.role",
        )
    if role == "tool" and not message.tool_call_id:
        raise RequestError(
            f"`{at}`: a tool message needs the `tool_call_id` that it answers.", param=f"{at}.tool_call_id"
        )
    if message.tool_calls and role != "assistant":
        raise RequestError(f"`{at}`: only an assistant message may have tool calls.", param=f"{at}.tool_calls")
    if wire.get("function_call"):
        raise UnsupportedOption(
            f"`{at}.function_call` is the old name of tool calls; use `tool_calls`.", param=f"{at}.function_call"
        )
    return Message(
        role,
        content if isinstance(content, str) else _parts(content or (), at),
        tuple(
            _call(call, wire["tool_calls"][i], f"{at}.tool_calls[{i}]")
            for i, call in enumerate(message.tool_calls or ())
        ),
        message.tool_call_id,
        message.name,
        unknown_fields(wire, _MESSAGE_FIELDS),
    )


def _parts(parts: Sequence[Mapping[str, Any]], at: str) -> str | tuple[ContentPart, ...]:
    if not parts:
        return ""
    return tuple(_part(part, f"{at}.content[{i}]") for i, part in enumerate(parts))


def _part(part: Mapping[str, Any], at: str) -> ContentPart:
    kind = part.get("type")
    if kind == "text":
        return text_of(part, at=at)
    if kind == "refusal":
        return ContentPart("text", convert(part.get("refusal"), str, at=f"{at}.refusal"))
    modality = _MODALITIES.get(kind) if isinstance(kind, str) else None
    if modality is None:
        valid = ", ".join(["text", "refusal", *_MODALITIES])
        raise UnsupportedOption(f"`{at}.type` {kind!r} is not supported. Valid types: {valid}.", param=f"{at}.type")
    return ContentPart(modality, wire=part)


def _call(call: _ToolCall, wire: Mapping[str, Any], at: str) -> ToolCall:
    refuse_tool_type(call.type, at=at)
    refuse_unknown(wire, ("id", "type", "function", "index"), at=at)  # the index is a stream's, and says nothing here
    if call.function is None:
        raise RequestError(f"`{at}.function` is missing.", param=f"{at}.function")
    return ToolCall(call.id, call.function.name, call.function.arguments)


def _tools(tools: Sequence[_Tool], raw: Sequence[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    specs = []
    for i, tool in enumerate(tools):
        refuse_tool_type(tool.type, at=f"tools[{i}]")
        refuse_unknown(raw[i], ("type", "function"), at=f"tools[{i}]")
        if tool.function is None:
            raise RequestError(f"`tools[{i}].function` is missing.", param=f"tools[{i}].function")
        specs.append(tool.function.to_tool())
    return tuple(specs)


def _tool_choice(request: _ChatRequest) -> Any:
    choice = request.tool_choice
    function = choice.get("function") if isinstance(choice, dict) else None
    return tool_choice(choice, function.get("name") if isinstance(function, dict) else None)


def _format(wanted: _ResponseFormat | None) -> ResponseFormat | None:
    if wanted is None:
        return None
    return response_format(wanted.type, wanted.json_schema, wanted.grammar, at="response_format")


def _sampling(request: _ChatRequest, extra: Mapping[str, Any]) -> SamplingOptions:
    bound, other = request.max_completion_tokens, request.max_tokens
    if bound is None:
        bound = other
    elif other not in (None, bound):
        raise RequestError("`max_tokens` and `max_completion_tokens` differ; give one.", param="max_tokens")
    stop = request.stop
    return SamplingOptions(
        max_tokens=bound,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs,
        extra=extra,
    )


# --- answers ---------------------------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "abstained": "stop",
}


def completion(answer: Answer, decision: Decision, created: int) -> bytes:
    """A whole answer as a chat completion."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text if answer.text or not (answer.tool_calls or answer.refusal) else None,
        "refusal": answer.refusal,
    }
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
    others = Others.of(answer)
    choice = {
        "index": 0,
        "message": {**others.message, **message},
        "logprobs": None if answer.logprobs is None else {"content": chat_logprobs(answer.logprobs), "refusal": None},
        "finish_reason": _FINISH[answer.finish_reason],
        **others.choice,
    }
    return _encode(
        {
            **others.body,
            "id": f"chatcmpl-{decision.id}",
            "object": "chat.completion",
            "created": created,
            "model": answer.model or decision.target,
            "choices": [choice],
            "usage": chat_usage(answer.usage),
            "nearfar": nearfar_field(decision),
        }
    )


@dataclass(frozen=True, slots=True)
class Others:
    """The fields of an upstream's reply that nearfar does not know, by where they stood."""

    body: Mapping[str, Any]
    message: Mapping[str, Any]
    choice: Mapping[str, Any]

    @classmethod
    def of(cls, answer: Answer) -> Others:
        """Those of `answer`."""
        if not answer.extra:
            return _NO_OTHERS
        body = {key: value for key, value in answer.extra.items() if key not in {"message", "choice"}}
        return cls(body, answer.extra.get("message", {}), answer.extra.get("choice", {}))


_NO_OTHERS = Others({}, {}, {})


def nearfar_field(decision: Decision) -> dict[str, Any]:
    """What every reply says about its decision, and the signals of its answer where they were asked for."""
    found: dict[str, Any] = {
        "decision_id": decision.id,
        "status": decision.status,
        "reason": decision.reason,
        "tier": decision.tier,
        "model": decision.model,
        "score": decision.score,
        "threshold": decision.threshold,
        "is_calibrated": decision.is_calibrated,
        "policy": decision.policy,
        "escalations": decision.escalations,
        "cost_usd": decision.cost_usd,
        "is_cost_estimated": decision.is_cost_estimated,
        "latency_s": decision.latency_s.get("total"),
    }
    if decision.request.get("signals"):
        found["signals"] = next((step.signals for step in reversed(decision.steps) if step.tier == decision.tier), {})
        found["signal_costs"] = [
            {"tier": step.tier, **plain(cost)} for step in decision.steps for cost in step.signal_costs
        ]
    return found


def chat_usage(usage: Usage | None) -> dict[str, Any] | None:
    """Tokens as this wire counts them; None: unknown."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities as this wire has them."""
    return [
        {
            "token": token.token,
            "logprob": token.logprob,
            "bytes": list(token.token.encode()),
            "top_logprobs": [
                {"token": text, "logprob": logprob, "bytes": list(text.encode())} for text, logprob in token.top
            ],
        }
        for token in tokens
    ]


class ChatStream:
    """Writes one answer as server-sent events of a chat completion.

    The envelope of a chunk is the same for all: it is encoded once, so that a delta costs its own encoding only.
    """

    def __init__(self, target: str, created: int, *, include_usage: bool) -> None:
        self._target = target
        self._created = created
        self._include_usage = include_usage
        self._head = b""
        self._text = b""
        null_usage = b',"usage":null' if include_usage else b""
        self._tail = b',"logprobs":null,"finish_reason":null}]' + null_usage + b"}\n\n"
        self._rest = b"]" + null_usage + b"}\n\n"

    def start(self, start: StreamStart) -> bytes:
        """The first chunk, which gives the role."""
        envelope = {
            "id": f"chatcmpl-{start.decision_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": start.model or self._target,
        }
        self._head = b"data: " + _encode(envelope)[:-1] + b',"choices":['
        self._text = self._head + b'{"index":0,"delta":{"content":'
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> bytes:
        """The next piece of the answer."""
        if isinstance(event, TextDelta):
            if not event.logprobs:
                return self._text + _encode(event.text) + b"}" + self._tail
            return self._chunk({"content": event.text}, logprobs=event.logprobs)
        if isinstance(event, ReasoningDelta):
            return self._chunk({"reasoning_content": event.text})
        call: dict[str, Any] = {"index": event.index, "function": {"arguments": event.arguments}}
        if event.id is not None:
            call |= {"id": event.id, "type": "function"}
        if event.name is not None:
            call["function"]["name"] = event.name
        return self._chunk({"tool_calls": [call]})

    def end(self, answer: Answer, decision: Decision) -> bytes:
        """The last chunks and the end mark; the very last chunk says how the answer was decided."""
        others = Others.of(answer)
        choice = _encode(
            {
                "index": 0,
                "delta": {**others.message, "refusal": answer.refusal} if answer.refusal else others.message,
                "logprobs": None,
                "finish_reason": _FINISH[answer.finish_reason],
                **others.choice,
            }
        )
        about = b"," + _encode({**others.body, "nearfar": nearfar_field(decision)})[1:] + b"\n\n"
        if not self._include_usage:
            return self._head + choice + b"]" + about + b"data: [DONE]\n\n"
        usage = b'],"usage":' + _encode(chat_usage(answer.usage))
        return self._head + choice + self._rest + self._head + usage + about + b"data: [DONE]\n\n"

    def error(self, problem: Problem) -> bytes:
        """The stream's last event where it cannot be ended well; no end mark follows."""
        return b"event: error\ndata: " + problem.body() + b"\n\n"

    def _chunk(self, delta: Mapping[str, Any], *, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        shown = {"content": chat_logprobs(logprobs), "refusal": None} if logprobs else None
        choice = {"index": 0, "delta": delta, "logprobs": shown, "finish_reason": None}
        return self._head + _encode(choice) + self._rest
