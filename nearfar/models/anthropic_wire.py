"""Chat models behind Anthropic's messages API over HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.types import (
    Answer,
    ContentPart,
    FinishReason,
    Message,
    Modality,
    ModelCard,
    NamedTool,
    Placement,
    Price,
    Query,
    ReasoningDelta,
    StreamEnd,
    StreamEvent,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

from .http import HttpClient
from .wire_json import UNREADABLE, checked_usage

#: The version of the API that this module speaks. Source: the official Python client 2.11, October 2026.
_VERSION: Final = "2023-06-01"

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class AnthropicWireModel:
    """A model of a server that speaks Anthropic's messages API.

    System and developer messages become the system prompt, wherever they stand. A message's `name` and the fields of
    `Message.extra` have no place on this wire and stay here, but for "thinking_blocks": an answer's signed thinking
    comes back in `Answer.extra["message"]["thinking_blocks"]`, and goes out again from there. Options that nearfar does
    not know (`SamplingOptions.extra`) go into the body as they are: "thinking", "metadata", "service_tier".

    The wire has no log-probabilities, seed, penalties, bias, `min_p` or JSON without a schema; it refuses some options
    by model (the newest take no temperature), with an error that names them.

    Args:
        name: the model's name in the config.
        model: what the server calls the model.
        api_key: sent as `x-api-key`; None: no key.
        url: the server's base URL.
        placement: "far" unless the user controls the server.
        headers: sent with every request.
        context_window: tokens; None: unknown.
        max_output_tokens: the most it writes; the wire needs a limit, and this is it where a query names none.
        price: None: unknown, which is not zero. Writing to the prompt cache is counted as a fresh prompt.
        supports_tools: whether the model calls tools.
        supports_json_schema: whether the model takes `output_config.format`.
        modalities: what it reads.
        connect_timeout_s: for name, connection and TLS together.
        read_timeout_s: the longest silence.

    Raises:
        ConfigError: the URL or a header cannot be used.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        api_key: str | None,
        url: str = "https://api.anthropic.com",
        placement: Placement = "far",
        headers: Mapping[str, str] | None = None,
        context_window: int | None = None,
        max_output_tokens: int = 4096,
        price: Price | None = None,
        supports_tools: bool = True,
        supports_json_schema: bool = True,
        modalities: frozenset[Modality] = frozenset({"text", "image"}),
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 120.0,
    ) -> None:
        self._card = ModelCard(
            name,
            placement,
            context_window=context_window,
            max_output_tokens=max_output_tokens,
            price=price,
            supports_tools=supports_tools,
            supports_json_schema=supports_json_schema,
            supports_json_object=False,
            modalities=modalities,
            passes_extra=True,
        )
        self._model = model
        self._http = HttpClient(
            model=name,
            url=url,
            headers={**({"x-api-key": api_key} if api_key else {}), **(headers or {})},
            plain_headers={"anthropic-version": _VERSION},
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
        )
        has_version = url.rstrip("/").endswith("/v1")
        self._endpoint = self._http.endpoint("messages" if has_version else "v1/messages")

    @property
    def card(self) -> ModelCard:
        """What the model is and can do."""
        return self._card

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            UnsupportedOption: the query asks for something that the model cannot do.
            RequestError: the conversation cannot be put into this wire's form.
            UpstreamError: the server or the network failed.
        """
        started = time.perf_counter()
        body = self._body(query, is_stream=False)
        async with self._http.exchange("POST", self._endpoint, body) as exchange:
            assembly = _Assembly()
            self._take_whole(await exchange.read(), assembly)
        return assembly.answer(self._card, time.perf_counter() - started)

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece; raises what `complete` raises."""
        started = time.perf_counter()
        body = self._body(query, is_stream=True)
        async with self._http.exchange("POST", self._endpoint, body) as exchange:
            assembly = _Assembly()
            if exchange.content_type == "application/json":  # an error, or a server that does not stream
                for event in self._take_whole(await exchange.read(), assembly):
                    yield event
            else:
                while not assembly.is_done and (batch := await exchange.events()) is not None:
                    for data in batch:
                        for event in self._take(data, assembly):
                            yield event
                self._check_ended(assembly, exchange.content_type)
                await exchange.drain()
        yield StreamEnd(assembly.answer(self._card, time.perf_counter() - started))

    def unavailable(self) -> str | None:
        """Never known before the call."""
        return None

    async def aclose(self) -> None:
        """Closes the connections. Twice is fine."""
        await self._http.aclose()

    # --- what is sent ------------------------------------------------------------------------------------------------

    def _body(self, query: Query, *, is_stream: bool) -> bytes:
        self._check(query)
        sampling, shape = query.sampling, query.response_format
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": self._card.output_bound(query),
            "messages": self._turns(query.messages),
        }
        if system := "\n\n".join(message.text for message in query.messages if message.role in _SYSTEM):
            body["system"] = system
        for option in ("temperature", "top_p", "top_k"):
            if (value := getattr(sampling, option)) is not None:
                body[option] = value
        if sampling.stop:
            body["stop_sequences"] = sampling.stop
        if query.tools:
            body["tools"] = [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": tool.parameters or {"type": "object", "properties": {}},
                    **({} if tool.strict is None else {"strict": tool.strict}),
                }
                for tool in query.tools
            ]
        if choice := _tool_choice(query):
            body["tool_choice"] = choice
        if shape is not None and shape.kind == "json_schema":
            body["output_config"] = {"format": {"type": "json_schema", "schema": shape.schema or {}}}
        if is_stream:
            body["stream"] = True
        for key, value in sampling.extra.items():
            if key == "output_config" and isinstance(value, Mapping):  # holds "effort" too
                body[key] = {**value, **body.get(key, {})}
            elif key in body or key == "stream":
                raise UnsupportedOption(f"{key!r} is an option of the query itself; set it there.", param=key)
            else:
                body[key] = value
        return msgspec.json.encode(body)

    def _check(self, query: Query) -> None:
        """Refuses what the wire cannot say; an option at a value that does nothing is taken."""
        unmet = self._card.unmet(query)
        sampling = query.sampling
        for option in ("seed", "min_p", "presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(sampling, option) not in (None, 0.0, {}) or (option == "seed" and sampling.seed is not None):
                unmet[option] = f"has no option {option!r}"
        if sampling.temperature is not None and sampling.temperature > 1:
            unmet["temperature"] = f"takes a temperature of at most 1, not {sampling.temperature:g}"
        if sampling.extra.get("n") not in (None, 1):
            unmet["n"] = "gives one answer per query; ask again for more"
        for param, why in unmet.items():
            raise UnsupportedOption(f"{self._card.name!r} {why}.", param=param)

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The conversation without its system prompt; neighbours of one role are one turn, as results must be."""
        turns: list[dict[str, Any]] = []
        for message in messages:
            if message.role in _SYSTEM:
                continue
            role = "assistant" if message.role == "assistant" else "user"
            blocks = self._blocks(message)
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += blocks
            else:
                turns.append({"role": role, "content": blocks})
        return turns

    def _blocks(self, message: Message) -> list[dict[str, Any]]:
        content = message.content
        parts = (ContentPart("text", content),) if isinstance(content, str) else content
        blocks = [self._part(part) for part in parts if part.kind != "text" or part.text]
        if message.role == "tool":
            return [{"type": "tool_result", "tool_use_id": message.tool_call_id or "", "content": blocks}]
        thinking = message.extra.get("thinking_blocks", ()) if message.role == "assistant" else ()
        calls = [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": self._arguments(call)}
            for call in message.tool_calls
        ]
        return [*thinking, *blocks, *calls]

    def _arguments(self, call: ToolCall) -> Any:
        try:
            return msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
        except msgspec.DecodeError as exc:
            raise RequestError(
                f"The arguments of tool call {call.id!r} must be a JSON object for {self._card.name!r}: {exc}.",
                param="messages",
            ) from exc

    def _part(self, part: ContentPart) -> dict[str, Any]:
        if part.kind == "text":
            return {"type": "text", "text": part.text}
        image = part.wire.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        if part.kind != "image" or not isinstance(url, str):
            raise UnsupportedOption(
                f"{self._card.name!r} takes images as 'image_url' and no {part.kind}.", param="messages"
            )
        if not url.startswith("data:"):
            return {"type": "image", "source": {"type": "url", "url": url}}
        media_type, _, data = url.removeprefix("data:").partition(";base64,")
        if not data:
            raise RequestError("An image's data URL must be like 'data:image/png;base64,…'.", param="messages")
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}

    # --- what comes back ---------------------------------------------------------------------------------------------

    def _take_whole(self, data: bytes, assembly: _Assembly) -> list[StreamEvent]:
        """The events of an answer that came in one piece."""
        try:
            whole = _WHOLES.decode(data)
        except UNREADABLE as exc:
            raise self._http.errors.malformed(f"sent something else than a message: {exc}", data) from exc
        if whole.error or whole.type == "error":
            raise self._http.errors.reported(data)
        if whole.content is None:
            raise self._http.errors.malformed("answered without content", data)
        try:
            return assembly.take_whole(whole)
        except UnicodeDecodeError as exc:  # in a call's arguments, which are kept as they came
            raise self._http.errors.malformed(f"sent something else than a message: {exc}", data) from exc

    def _take(self, data: bytes, assembly: _Assembly) -> list[StreamEvent]:
        """The events of one event of theirs."""
        try:
            event = _EVENTS.decode(data)
        except UNREADABLE as exc:
            raise self._http.errors.malformed(f"sent something else than an event: {exc}", data) from exc
        if event.error or event.type == "error":
            raise self._http.errors.reported(data)
        return assembly.take(event)

    def _check_ended(self, assembly: _Assembly, content_type: str) -> None:
        if assembly.is_done or assembly.stop_reason is not None:
            return
        if assembly.has_begun:
            raise self._http.errors.malformed("ended its stream in the middle of the answer")
        raise self._http.errors.malformed(f"sent a stream without an answer ({content_type or 'untyped'})")


# --- the request's parts ---------------------------------------------------------------------------------------------

_SYSTEM: Final = ("system", "developer")


def _tool_choice(query: Query) -> dict[str, Any] | None:
    match query.tool_choice:
        case NamedTool(name):
            choice: dict[str, Any] = {"type": "tool", "name": name}
        case "required":
            choice = {"type": "any"}
        case "none":
            return {"type": "none"} if query.tools else None
        case _:
            if not query.tools or (query.tool_choice is None and query.parallel_tool_calls is not False):
                return None
            choice = {"type": "auto"}
    if query.parallel_tool_calls is False:
        choice["disable_parallel_tool_use"] = True
    return choice


# --- the answer's parts ----------------------------------------------------------------------------------------------


class _OutputDetails(Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(Struct, gc=False):
    """Counts so far; a later event repeats some and leaves the others out."""

    input_tokens: int | None = None  # neither read from the cache nor written to it
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None

    def usage(self) -> Usage | None:
        cached = self.cache_read_input_tokens or 0
        fresh = (self.input_tokens or 0, self.cache_creation_input_tokens or 0)
        details = self.output_tokens_details
        if min(fresh) < 0:
            return None
        return checked_usage(
            sum(fresh) + cached,
            self.output_tokens or 0,
            cached_tokens=cached,
            reasoning_tokens=(details.thinking_tokens or 0) if details else 0,
        )


class _Block(Struct, gc=False):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str | None = None
    data: str | None = None  # of redacted_thinking
    id: str = ""
    name: str = ""
    input: Raw = Raw()  # as text; empty where there is none


class _Refusal(Struct, gc=False):
    category: str | None = None
    explanation: str | None = None


class _Delta(Struct, gc=False):
    type: str | None = None
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    signature: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _Refusal | None = None


class _Whole(Struct, gc=False):
    type: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _Refusal | None = None
    usage: _Usage | None = None
    error: Any = None


class _Event(Struct, gc=False):
    type: str
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Whole | None = None
    usage: _Usage | None = None
    error: Any = None


_EVENTS = msgspec.json.Decoder(_Event)
_WHOLES = msgspec.json.Decoder(_Whole)


class _OpenBlock:
    """A content block in the making."""

    __slots__ = ("call", "kind", "pieces", "start")

    def __init__(self, start: _Block, call: int | None) -> None:
        self.start = start
        self.kind = start.type
        self.call = call  # its number among the tool calls
        self.pieces: list[str] = []


class _Assembly:
    """An answer in the making."""

    __slots__ = ("_blocks", "_num_calls", "_stop", "_usage", "has_begun", "is_done", "stop_reason")

    def __init__(self) -> None:
        self.has_begun = False
        self.is_done = False
        self.stop_reason: str | None = None
        self._stop: tuple[str | None, _Refusal | None] = (None, None)
        self._usage: _Usage | None = None
        self._blocks: dict[int, _OpenBlock] = {}
        self._num_calls = 0

    def take(self, event: _Event) -> list[StreamEvent]:
        """Adds one event of theirs and returns ours."""
        match event.type:
            case "content_block_delta" if event.delta is not None:
                return self._delta(event.index, event.delta)
            case "content_block_start" if event.content_block is not None:
                return self._begin(event.index, event.content_block)
            case "content_block_stop":
                return self._end(event.index)
            case "message_start":
                self.has_begun = True
                if event.message is not None:
                    self._count(event.message.usage)
            case "message_delta":
                self._count(event.usage)
                if event.delta is not None and event.delta.stop_reason is not None:
                    self.stop_reason = event.delta.stop_reason
                    self._stop = (event.delta.stop_sequence, event.delta.stop_details)
            case "message_stop":
                self.is_done = True
        return []  # pings, and events of a later version

    def take_whole(self, whole: _Whole) -> list[StreamEvent]:
        """Adds a message that came in one piece and returns its events."""
        events: list[StreamEvent] = []
        self.stop_reason = whole.stop_reason
        self._stop = (whole.stop_sequence, whole.stop_details)
        self._count(whole.usage)
        for i, block in enumerate(whole.content or ()):
            events += self._begin(i, block)
            if block.type == "tool_use" and (arguments := bytes(block.input)):
                events += self._delta(i, _Delta("input_json_delta", partial_json=arguments.decode()))
            events += self._end(i)
        self.has_begun = self.is_done = True
        return events

    def answer(self, card: ModelCard, latency_s: float) -> Answer:
        """The whole answer."""
        usage = self._usage.usage() if self._usage else None
        blocks = [self._blocks[i] for i in sorted(self._blocks)]
        calls = tuple(
            ToolCall(block.start.id, block.start.name, "".join(block.pieces))
            for block in blocks
            if block.call is not None
        )
        return Answer(
            "".join(piece for block in blocks if block.kind == "text" for piece in block.pieces),
            card.name,
            tool_calls=calls,
            finish_reason=_FINISH_REASONS.get(self.stop_reason or "end_turn", "stop"),
            reasoning="".join(piece for block in blocks if block.kind == "thinking" for piece in block.pieces) or None,
            refusal=self._refusal(),
            usage=usage,
            cost_usd=card.price.cost_usd(usage) if card.price and usage else None,
            latency_s=latency_s,
            extra=self._extra(blocks),
        )

    def _count(self, usage: _Usage | None) -> None:
        if usage is None or self._usage is None:
            self._usage = usage or self._usage
            return
        for field in _Usage.__struct_fields__:
            if (value := getattr(usage, field)) is not None:
                setattr(self._usage, field, value)

    def _begin(self, index: int, start: _Block) -> list[StreamEvent]:
        self.has_begun = True
        is_call = start.type == "tool_use"
        block = self._blocks[index] = _OpenBlock(start, self._num_calls if is_call else None)
        self._num_calls += is_call
        if is_call:
            return [ToolCallDelta(self._num_calls - 1, id=start.id, name=start.name)]
        return _said(block, start.text or start.thinking)

    def _delta(self, index: int, delta: _Delta) -> list[StreamEvent]:
        block = self._blocks.get(index)
        if block is None:
            return []
        if block.call is not None:
            block.pieces.append(delta.partial_json)
            return [ToolCallDelta(block.call, delta.partial_json)] if delta.partial_json else []
        if delta.signature:
            block.start.signature = (block.start.signature or "") + delta.signature
        return _said(block, delta.text or delta.thinking)

    def _end(self, index: int) -> list[StreamEvent]:
        block = self._blocks.get(index)
        if block is None or block.call is None or any(block.pieces):
            return []
        block.pieces.append("{}")  # a call without arguments has no pieces
        return [ToolCallDelta(block.call, "{}")]

    def _refusal(self) -> str | None:
        if self.stop_reason != "refusal":
            return None
        details = self._stop[1] or _Refusal()
        return details.explanation or f"The model declined to answer ({details.category or 'no reason given'})."

    def _extra(self, blocks: Sequence[_OpenBlock]) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        thinking: list[dict[str, Any]] = []
        for block in blocks:
            if block.kind == "thinking":
                text = "".join(block.pieces)
                thinking.append({"type": "thinking", "thinking": text, "signature": block.start.signature or ""})
            elif block.kind == "redacted_thinking":
                thinking.append({"type": "redacted_thinking", "data": block.start.data or ""})
        if thinking:
            extra["message"] = {"thinking_blocks": thinking}
        choice = {"stop_sequence": self._stop[0]} if self._stop[0] is not None else {}
        if self.stop_reason is not None and self.stop_reason not in _FINISH_REASONS:
            choice["stop_reason"] = self.stop_reason
        if choice:
            extra["choice"] = choice
        return extra


def _said(block: _OpenBlock, text: str) -> list[StreamEvent]:
    """The event of a piece of text or thinking; blocks of other kinds are the server's own affair."""
    if not text or block.kind not in ("text", "thinking"):
        return []
    block.pieces.append(text)
    return [TextDelta(text) if block.kind == "text" else ReasoningDelta(text)]
