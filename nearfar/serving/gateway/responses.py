"""OpenAI's responses: a body to a query, and an answer or its stream to the wire's bytes. Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import Struct

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.types import (
    Answer,
    ContentPart,
    Decision,
    Message,
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
)

from .chat import FIELDS, Others, nearfar_field
from .problems import Problem
from .schemas import (
    CONSTRAINT_NAMES,
    NOTES,
    Count,
    FunctionSpec,
    JsonSchemaFormat,
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
PARAM_NAMES: Mapping[str, str] = {
    **CONSTRAINT_NAMES,
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "include",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}

_UNSUPPORTED: Mapping[str, str] = {
    "previous_response_id": "nearfar stores no responses; send the whole conversation as `input`",
    "conversation": "nearfar stores no conversations; send the whole one as `input`",
    "background": "answers are given at once",
    "prompt": "prompt templates live at OpenAI; send `input`",
    "max_tool_calls": "it bounds OpenAI's own tools; nearfar has none",
    "store": "nearfar keeps decisions, not responses; leave it out",
    "context_management": "nothing is compacted; send what is to be read",
}

_LOGPROBS = "message.output_text.logprobs"
_ROLES: Mapping[str, Role] = {"system": "system", "developer": "developer", "user": "user", "assistant": "assistant"}


# --- requests --------------------------------------------------------------------------------------------------------


class _Format(Struct, forbid_unknown_fields=True):
    type: str
    name: str = "answer"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None
    grammar: str | None = None


class _Text(Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(Struct):
    effort: str | None = None


class _Tool(FunctionSpec):
    type: str = "function"


class _ResponseRequest(Struct, kw_only=True):
    input: str | list[dict[str, Any]]
    model: str = "auto"
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: UnitInterval | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    truncation: str | None = None


_KNOWN = frozenset({*_ResponseRequest.__struct_fields__, "nearfar", "metadata", *NOTES, *_UNSUPPORTED})


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A response that was asked for."""

    query: Query
    stream: bool
    request: Mapping[str, Any]  # as the client sent it, for the fields that a response repeats

    def reply(self, answer: Answer, decision: Decision, created: int) -> bytes:
        """The answer as a body."""
        return _encode(_finished(_envelope(self, decision.id, created), answer, decision, _output(answer, decision.id)))

    def encoder(self, created: int) -> ResponseStream:
        """What writes the answer as a stream."""
        return ResponseStream(self, created)


def parse_response(body: bytes, most_s: float) -> ResponseCall:
    """What a response's body asks for.

    Args:
        most_s: the longest that its answer may take, in seconds.

    Raises:
        RequestError: the body is wrong or asks for what nearfar does not do; `param` names the field.
    """
    raw = parse_object(body)
    refuse_fields(raw, _UNSUPPORTED)
    refuse_fields(raw, dict.fromkeys(FIELDS - _KNOWN, "it is a field of chat completions, not of responses"))
    check_service_tier(raw)
    limits = constraints(raw)
    request = convert(raw, _ResponseRequest)
    check_stream_options(request.stream_options, stream=bool(request.stream))
    if request.truncation not in {None, "disabled"}:
        raise UnsupportedOption("`truncation` is not supported: a prompt is never cut.", param="truncation")
    query = Query(
        _messages(request),
        model=request.model,
        tools=_tools(request.tools or ()),
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_text_format(request.text, raw),
        sampling=_sampling(request, raw),
        budget_usd=limits.budget_usd,
        deadline_s=min(limits.deadline_s or most_s, most_s),
        privacy=limits.privacy or "any",
        quality=limits.quality,
        session=limits.session,
        when_unsure=limits.when_unsure or "best",
        metadata=notes(raw),
        uses_memory=limits.memory is not False,
        docs=limits.docs,
        passages=limits.passages,
        signals=tuple(limits.signals or ()),
    )
    return ResponseCall(query, bool(request.stream), raw)


def _messages(request: _ResponseRequest) -> tuple[Message, ...]:
    messages = [Message("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return (*messages, Message("user", request.input))
    reasoning = ""
    for i, item in enumerate(request.input):
        at = f"input[{i}]"
        kind = item.get("type", "message")
        if kind == "reasoning":
            reasoning += _reasoning_text(item, at)
            continue
        if kind == "message":
            message = _message(item, at)
        elif kind == "function_call":
            message = Message("assistant", "", (_call(item, at),))
        elif kind == "function_call_output":
            message = _call_output(item, at)
        else:
            raise UnsupportedOption(
                f"`{at}.type` {kind!r} is not supported. Valid: message, reasoning, function_call, "
                "function_call_output.",
                param=f"{at}.type",
            )
        if message.role == "assistant" and reasoning:
            message = replace(message, extra={"reasoning_content": reasoning})
        reasoning = ""
        last = messages[-1] if messages else None
        if last is not None and last.role == "assistant" and kind == "function_call":
            messages[-1] = replace(last, tool_calls=(*last.tool_calls, *message.tool_calls))
        else:
            messages.append(message)
    return tuple(messages)


def _message(item: Mapping[str, Any], at: str) -> Message:
    refuse_unknown(item, ("type", "role", "content", "id", "status", "phase"), at=at)
    role = _ROLES.get(item["role"]) if isinstance(item.get("role"), str) else None
    if role is None:
        raise RequestError(f"`{at}.role` must be one of {', '.join(_ROLES)}.", param=f"{at}.role")
    content = convert(item.get("content"), str | list[dict[str, Any]], at=f"{at}.content")  # type: ignore[arg-type]  # a union is a type form
    return Message(role, _content(content, f"{at}.content"))


def _content(content: str | Sequence[Mapping[str, Any]], at: str) -> str | tuple[ContentPart, ...]:
    if isinstance(content, str):
        return content
    parts = tuple(_part(part, f"{at}[{i}]") for i, part in enumerate(content))
    if all(part.kind == "text" for part in parts):
        return "".join(part.text for part in parts)
    return parts


def _part(part: Mapping[str, Any], at: str) -> ContentPart:
    kind = part.get("type")
    if kind in {"input_text", "output_text"}:
        return text_of(part, at=at)
    if kind == "refusal":
        return ContentPart("text", convert(part.get("refusal"), str, at=f"{at}.refusal"))
    if kind == "input_image":
        refuse_unknown(part, ("type", "image_url", "detail"), at=at)
        image = {"url": convert(part.get("image_url"), str, at=f"{at}.image_url")}
        if part.get("detail") is not None:
            image["detail"] = convert(part["detail"], str, at=f"{at}.detail")
        return ContentPart("image", wire={"type": "image_url", "image_url": image})
    if kind == "input_file":
        file = {key: value for key, value in part.items() if key != "type" and value is not None}
        return ContentPart("file", wire={"type": "file", "file": file})
    if kind == "input_audio":
        return ContentPart("audio", wire=part)
    raise UnsupportedOption(
        f"`{at}.type` {kind!r} is not supported. Valid: input_text, input_image, input_file, input_audio, output_text, "
        "refusal.",
        param=f"{at}.type",
    )


def _call(item: Mapping[str, Any], at: str) -> ToolCall:
    refuse_unknown(item, ("type", "id", "call_id", "name", "arguments", "status"), at=at)
    texts = [convert(item.get(key), str, at=f"{at}.{key}") for key in ("call_id", "name", "arguments")]
    return ToolCall(*texts)


def _call_output(item: Mapping[str, Any], at: str) -> Message:
    refuse_unknown(item, ("type", "id", "call_id", "output", "status"), at=at)
    call_id = convert(item.get("call_id"), str, at=f"{at}.call_id")
    output = convert(item.get("output"), str | list[dict[str, Any]], at=f"{at}.output")  # type: ignore[arg-type]  # a union is a type form
    return Message("tool", _content(output, f"{at}.output"), tool_call_id=call_id)


def _reasoning_text(item: Mapping[str, Any], at: str) -> str:
    """The reasoning that the client sends back; what is encrypted for another server says nothing to ours."""
    parts = convert(item.get("content") or item.get("summary") or [], list[dict[str, Any]], at=f"{at}.content")
    return "".join(convert(part.get("text"), str, at=f"{at}.content") for part in parts)


def _tools(tools: Sequence[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    specs = []
    for i, tool in enumerate(tools):
        refuse_tool_type(tool.get("type"), at=f"tools[{i}]")
        specs.append(convert(tool, _Tool, at=f"tools[{i}]").to_tool())
    return tuple(specs)


def _tool_choice(request: _ResponseRequest) -> Any:
    choice = request.tool_choice
    return tool_choice(choice, choice.get("name") if isinstance(choice, dict) else None)


def _text_format(text: _Text | None, raw: Mapping[str, Any]) -> ResponseFormat | None:
    if text is None:
        return None
    refuse_unknown(raw["text"], ("format", "verbosity"), at="text")
    wanted = text.format
    if wanted is None:
        return None
    schema = JsonSchemaFormat(wanted.name, wanted.schema, wanted.strict, wanted.description)
    return response_format(wanted.type, schema, wanted.grammar, at="text.format")


def _sampling(request: _ResponseRequest, raw: Mapping[str, Any]) -> SamplingOptions:
    include = set(request.include or ())
    if include - {_LOGPROBS}:
        unknown = min(include - {_LOGPROBS})
        raise UnsupportedOption(f"`include` {unknown!r} is not supported. Valid: {_LOGPROBS}.", param="include")
    extra = unknown_fields(raw, _KNOWN)
    if request.reasoning is not None:
        refuse_unknown(raw["reasoning"], ("effort",), at="reasoning")
        if request.reasoning.effort is not None:
            extra["reasoning_effort"] = request.reasoning.effort
    if request.text is not None and request.text.verbosity is not None:
        extra["verbosity"] = request.text.verbosity
    return SamplingOptions(
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        logprobs=bool(include) or bool(request.top_logprobs),
        top_logprobs=request.top_logprobs,
        extra=extra,
    )


# --- answers ---------------------------------------------------------------------------------------------------------

#: What a response repeats of its request, with what stands for absent.
_REPEATED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "user": None,
}


def _envelope(call: ResponseCall, decision_id: str, created: int) -> dict[str, Any]:
    """A response that has begun."""
    repeated = {
        name: default if call.request.get(name) is None else call.request[name] for name, default in _REPEATED.items()
    }
    return {
        "id": f"resp_{decision_id}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": call.query.model,
        "output": [],
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
        "usage": None,
        **repeated,
    }


def _finished(
    envelope: Mapping[str, Any], answer: Answer, decision: Decision, output: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The response once it has ended."""
    cut_by = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answer.finish_reason)
    return {
        **Others.of(answer).body,
        **envelope,
        "status": "incomplete" if cut_by else "completed",
        "incomplete_details": {"reason": cut_by} if cut_by else None,
        "model": answer.model or decision.target,
        "output": output,
        "usage": _usage(answer.usage),
        "nearfar": nearfar_field(decision),
    }


def _output(answer: Answer, decision_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    status = "incomplete" if answer.finish_reason in {"length", "content_filter"} else "completed"
    if answer.reasoning:
        items.append(_reasoning_item(decision_id, answer.reasoning))
    if answer.text or answer.refusal or not answer.tool_calls:
        items.append(_message_item(decision_id, status, _content_parts(answer)))
    items += [_call_item(decision_id, i, call, status) for i, call in enumerate(answer.tool_calls)]
    return items


def _content_parts(answer: Answer) -> list[dict[str, Any]]:
    if answer.refusal and not answer.text:
        return [{"type": "refusal", "refusal": answer.refusal}]
    return [_text_part(answer.text, answer.logprobs or ())]


def _text_part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": _logprobs(logprobs)}


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
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


def _message_item(decision_id: str, status: str, content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{decision_id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": list(content),
    }


def _reasoning_item(decision_id: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": f"rs_{decision_id}", "type": "reasoning", "summary": [], "content": content}


def _call_item(decision_id: str, index: int, call: ToolCall, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{decision_id}_{index}",
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


# --- streams ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _OpenItem:
    """An output item that is being written."""

    output_index: int
    item_id: str
    text: str = ""  # so far: a message's text, a call's arguments, the reasoning
    call_id: str = ""
    name: str = ""


class ResponseStream:
    """Writes one answer as the events of a response."""

    def __init__(self, call: ResponseCall, created: int) -> None:
        self._call = call
        self._created = created
        self._sequence_number = 0
        self._envelope: dict[str, Any] = _envelope(call, "", created)
        self._id = ""
        self._items: list[dict[str, Any]] = []  # by output index; a dictionary is filled when its item is done
        self._reasoning: _OpenItem | None = None
        self._message: _OpenItem | None = None
        self._text_head = b""
        self._logprobs: list[TokenLogprob] = []
        self._calls: dict[int, _OpenItem] = {}  # by the call's index

    def start(self, start: StreamStart) -> bytes:
        """The first events."""
        self._id = start.decision_id
        self._envelope = _envelope(self._call, start.decision_id, self._created)
        self._envelope["model"] = start.model or self._call.query.model
        return self._event("response.created", response=self._envelope) + self._event(
            "response.in_progress", response=self._envelope
        )

    def delta(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> bytes:
        """The next piece of the answer."""
        if isinstance(event, TextDelta):
            return self._text_delta(event)
        if isinstance(event, ReasoningDelta):
            return self._reasoning_delta(event)
        return self._call_delta(event)

    def end(self, answer: Answer, decision: Decision) -> bytes:
        """The last events; the very last one holds the whole response."""
        status = "incomplete" if answer.finish_reason in {"length", "content_filter"} else "completed"
        data = b""
        if self._message is None and not answer.tool_calls:
            data += self._open_message()
        data += self._close_reasoning() + self._close_message(status, answer)
        for index, item in self._calls.items():
            data += self._close_call(index, item, status)
        response = _finished(self._envelope, answer, decision, self._items)
        return data + self._event(f"response.{response['status']}", response=response)

    def error(self, problem: Problem) -> bytes:
        """The last events of a stream that cannot be ended well."""
        error = problem.to_error()
        told = {"code": error["code"], "message": error["message"], "param": error["param"]}
        failed = {**self._envelope, "status": "failed", "error": {"code": error["code"], "message": error["message"]}}
        return self._event("error", **told) + self._event("response.failed", response=failed)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = _encode({"type": kind, "sequence_number": self._sequence_number, **fields})
        self._sequence_number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _open(self, prefix: str, item: dict[str, Any]) -> tuple[_OpenItem, bytes]:
        opened = _OpenItem(len(self._items), prefix)
        self._items.append({})
        return opened, self._event("response.output_item.added", output_index=opened.output_index, item=item)

    def _done(self, opened: _OpenItem, item: dict[str, Any]) -> bytes:
        self._items[opened.output_index] = item
        return self._event("response.output_item.done", output_index=opened.output_index, item=item)

    # --- text --------------------------------------------------------------------------------------------------------

    def _open_message(self) -> bytes:
        data = self._close_reasoning()
        item = _message_item(self._id, "in_progress", ())
        self._message, added = self._open(item["id"], item)
        place = {"item_id": self._message.item_id, "output_index": self._message.output_index, "content_index": 0}
        head = _encode({"type": "response.output_text.delta", **place})
        self._text_head = b"event: response.output_text.delta\ndata: " + head[:-1] + b',"delta":'
        return data + added + self._event("response.content_part.added", **place, part=_text_part(""))

    def _text_delta(self, event: TextDelta) -> bytes:
        data = b"" if self._message else self._open_message()
        logprobs = b"[]"
        if event.logprobs:
            self._logprobs.extend(event.logprobs)
            logprobs = _encode(_logprobs(event.logprobs))
        number = self._sequence_number
        self._sequence_number += 1
        return b'%b%b%b,"logprobs":%b,"sequence_number":%d}\n\n' % (
            data,
            self._text_head,
            _encode(event.text),
            logprobs,
            number,
        )

    def _close_message(self, status: str, answer: Answer) -> bytes:
        opened = self._message
        if opened is None:
            return b""
        place = {"item_id": opened.item_id, "output_index": opened.output_index, "content_index": 0}
        if answer.refusal and not answer.text:
            part: dict[str, Any] = {"type": "refusal", "refusal": answer.refusal}
            done = self._event("response.refusal.done", **place, refusal=answer.refusal)
        else:
            part = _text_part(answer.text, self._logprobs)
            done = self._event("response.output_text.done", **place, text=answer.text, logprobs=part["logprobs"])
        return (
            done
            + self._event("response.content_part.done", **place, part=part)
            + self._done(opened, _message_item(self._id, status, [part]))
        )

    # --- reasoning ---------------------------------------------------------------------------------------------------

    def _reasoning_delta(self, event: ReasoningDelta) -> bytes:
        data = b""
        if self._reasoning is None:
            item = _reasoning_item(self._id, "")
            self._reasoning, data = self._open(item["id"], item)
        self._reasoning.text += event.text
        return data + self._event("response.reasoning_text.delta", **self._reasoning_place(), delta=event.text)

    def _reasoning_place(self) -> dict[str, Any]:
        opened = self._reasoning
        if opened is None:
            raise AssertionError("no reasoning is open")
        return {"item_id": opened.item_id, "output_index": opened.output_index, "content_index": 0}

    def _close_reasoning(self) -> bytes:
        opened = self._reasoning
        if opened is None or self._items[opened.output_index]:
            return b""
        done = self._event("response.reasoning_text.done", **self._reasoning_place(), text=opened.text)
        return done + self._done(opened, _reasoning_item(self._id, opened.text))

    # --- tool calls --------------------------------------------------------------------------------------------------

    def _call_delta(self, event: ToolCallDelta) -> bytes:
        data = b""
        opened = self._calls.get(event.index)
        if opened is None:
            item = _call_item(self._id, event.index, ToolCall(event.id or "", event.name or "", ""), "in_progress")
            opened, data = self._open(item["id"], item)
            opened.call_id, opened.name = item["call_id"], item["name"]
            self._calls[event.index] = opened
        opened.text += event.arguments
        if not event.arguments:
            return data
        return data + self._event(
            "response.function_call_arguments.delta",
            item_id=opened.item_id,
            output_index=opened.output_index,
            delta=event.arguments,
        )

    def _close_call(self, index: int, opened: _OpenItem, status: str) -> bytes:
        done = self._event(
            "response.function_call_arguments.done",
            item_id=opened.item_id,
            output_index=opened.output_index,
            name=opened.name,
            arguments=opened.text,
        )
        call = ToolCall(opened.call_id, opened.name, opened.text)
        return done + self._done(opened, _call_item(self._id, index, call, status))
