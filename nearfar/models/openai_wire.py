"""Chat models behind OpenAI's chat completions over HTTP: OpenAI, vLLM, llama.cpp, Ollama and their like."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct, to_builtins
from yarl import URL

from nearfar.errors import UnsupportedOption, UpstreamError
from nearfar.types import (
    Answer,
    Message,
    Modality,
    ModelCard,
    NamedTool,
    Placement,
    Price,
    Query,
    ResponseFormat,
    StreamEnd,
    StreamEvent,
)

from . import gbnf
from .http import Exchange, HttpClient
from .openai_completion import CHUNKS, Assembly, bare_texts, joined, plain_completion
from .wire_json import UNREADABLE

#: OpenAI's own hosts, whose newer models take `max_completion_tokens` alone and tell "developer" from "system". Other
#: servers know `max_tokens`, and their chat templates no role "developer".
_OPENAI_HOSTS: Final = ("api.openai.com", ".openai.azure.com")


class OpenAIWireModel:
    """A model of a server that speaks OpenAI's chat completions.

    Options that nearfar does not know (`SamplingOptions.extra`) go into the body as they are; fields of the answer
    that it does not know come back in `Answer.extra`: the body's own at the top, the message's under "message", the
    choice's under "choice".

    Args:
        name: the model's name in the config.
        url: the server's base URL, usually ending in "/v1".
        model: what the server calls the model.
        placement: "near" on hardware that the user controls, "far" elsewhere.
        api_key: sent as a bearer token; None: no key.
        headers: sent with every request, as `OpenAI-Organization` or Azure's `api-key`.
        context_window: tokens; None: unknown.
        max_output_tokens: the most it writes; sent where a query names no limit.
        price: None: unknown, which is not zero.
        supports_grammar: the server takes GBNF, and a choice among texts, as llama.cpp (`grammar`) or vLLM
            (`structured_outputs`) does; both are sent, and each ignores the other's. Servers that know neither ignore
            both in silence, hence off unless told.
        max_tokens_field: what the server calls the limit of the output; None: `max_completion_tokens` at OpenAI and
            Azure, `max_tokens` elsewhere.
        connect_timeout_s: for name, connection and TLS together.
        read_timeout_s: the longest silence.

    Raises:
        ConfigError: the URL or a header cannot be used.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        model: str,
        placement: Placement,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        context_window: int | None = None,
        max_output_tokens: int | None = None,
        price: Price | None = None,
        supports_logprobs: bool = True,
        supports_tools: bool = True,
        supports_json_schema: bool = True,
        supports_grammar: bool = False,
        modalities: frozenset[Modality] = frozenset({"text", "image"}),
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 120.0,
    ) -> None:
        self._card = ModelCard(
            name,
            placement,
            context_window=context_window,
            max_output_tokens=max_output_tokens,
            price=price,
            supports_logprobs=supports_logprobs,
            supports_tools=supports_tools,
            supports_json_schema=supports_json_schema,
            supports_grammar=supports_grammar,
            supports_choice=supports_grammar,
            modalities=modalities,
            passes_extra=True,
        )
        self._model = model
        self._http = HttpClient(
            model=name,
            url=url,
            headers=_authorised(api_key, headers),
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
        )
        self._endpoint = self._http.endpoint("chat/completions")
        self._is_openai = (URL(url).host or "").endswith(_OPENAI_HOSTS)
        self._max_tokens_field = max_tokens_field or ("max_completion_tokens" if self._is_openai else "max_tokens")

    @property
    def card(self) -> ModelCard:
        """What the model is and can do."""
        return self._card

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            UnsupportedOption: the query asks for something that the model cannot do.
            UpstreamError: the server or the network failed.
        """
        started = time.perf_counter()
        body = self._body(query, is_stream=False)
        async with self._http.exchange("POST", self._endpoint, body) as exchange:
            assembly = Assembly(query)
            self._take_whole(await exchange.read(), assembly, exchange)
        return assembly.answer(self._card, time.perf_counter() - started)

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece; raises what `complete` raises.

        Text without log-probabilities that has come in one read is one piece, however many chunks it was sent in.
        """
        started = time.perf_counter()
        body = self._body(query, is_stream=True)
        async with self._http.exchange("POST", self._endpoint, body) as exchange:
            assembly = Assembly(query)
            if exchange.content_type == "application/json":  # an error, or a server that does not stream
                for event in self._take_whole(await exchange.read(), assembly, exchange):
                    yield event
            else:
                while not assembly.is_done and (batch := await exchange.events()) is not None:
                    events, failure = self._take_batch(batch, assembly)
                    for event in joined(events):
                        yield event
                    if failure is not None:
                        raise failure
                self._check_ended(assembly, exchange)
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
        sampling = query.sampling
        for param, why in self._card.unmet(query).items():
            raise UnsupportedOption(f"{self._card.name!r} {why}.", param=param)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_message(message, keeps_developer=self._is_openai) for message in query.messages],
        }
        if (max_tokens := self._card.output_bound(query)) is not None:
            body[self._max_tokens_field] = max_tokens
        body |= [(name, value) for name, value in to_builtins(sampling).items() if name in _SAMPLING]
        if sampling.logprobs:
            body["logprobs"] = True
            if sampling.top_logprobs is not None:
                body["top_logprobs"] = sampling.top_logprobs
        if query.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.parameters or {"type": "object", "properties": {}},
                        **({} if tool.strict is None else {"strict": tool.strict}),
                    },
                }
                for tool in query.tools
            ]
        if query.tool_choice is not None:
            body["tool_choice"] = _tool_choice(query.tool_choice)
        if query.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = query.parallel_tool_calls
        if query.response_format is not None:
            body |= _shape(query.response_format)
        if is_stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        if sampling.extra:
            self._add_extra(body, sampling.extra)
        return msgspec.json.encode(body)

    def _add_extra(self, body: dict[str, Any], extra: Mapping[str, Any]) -> None:
        for key, value in extra.items():
            if key == "n" and value not in (None, 1):
                raise UnsupportedOption(
                    f"{self._card.name!r} gives one answer per query; ask again for more.", param=key
                )
            if key == "stream_options" and isinstance(value, Mapping):
                body[key] = {**value, **body.get(key, {})}
            elif key in body or key in ("stream", self._max_tokens_field):
                raise UnsupportedOption(f"{key!r} is an option of the query itself; set it there.", param=key)
            else:
                body[key] = value

    # --- what comes back ---------------------------------------------------------------------------------------------

    def _take_whole(self, data: bytes, assembly: Assembly, exchange: Exchange) -> list[StreamEvent]:
        """The events of an answer that came in one piece."""
        events = self._take(data, assembly, exchange)
        if assembly.num_choices == 0:
            raise self._http.errors.malformed("answered without a choice", data)
        assembly.is_done = True
        return events

    def _take_batch(self, batch: list[bytes], assembly: Assembly) -> tuple[list[StreamEvent], UpstreamError | None]:
        """The events of chunks that came together, and what was wrong with the chunk behind the last of them."""
        events: list[StreamEvent] = []
        start = 0
        while start < len(batch):
            if texts := bare_texts(batch, start):
                events.append(assembly.take_texts(texts))
                start += len(texts)
                continue
            data = batch[start]
            start += 1
            if data == b"[DONE]":
                assembly.is_done = True
                break
            try:
                events += self._take(data, assembly)
            except UpstreamError as exc:
                return events, exc
        return events, None

    def _take(self, data: bytes, assembly: Assembly, exchange: Exchange | None = None) -> list[StreamEvent]:
        """The events of one chunk, or of a whole body."""
        if exchange is not None and (plain := plain_completion(data)) is not None:
            return assembly.take(plain)
        try:
            chunk = CHUNKS.decode(data)
            if chunk.error:
                raise self._http.errors.reported(data)
            events = assembly.take(chunk)
            if events and exchange is None:
                return events
            if not assembly.take_others(data):
                raise self._http.errors.reported(data)
        except UNREADABLE as exc:
            kind = f" ({exchange.content_type})" if exchange and "json" not in exchange.content_type else ""
            raise self._http.errors.malformed(f"sent something else than a chat completion{kind}: {exc}", data) from exc
        return events

    def _check_ended(self, assembly: Assembly, exchange: Exchange) -> None:
        if assembly.num_choices == 0:
            raise self._http.errors.malformed(f"sent a stream without an answer ({exchange.content_type or 'untyped'})")
        if not assembly.is_done and assembly.finish_reason is None:
            raise self._http.errors.malformed("ended its stream in the middle of the answer")


class _Model(Struct, gc=False):
    id: str


class _Models(Struct, gc=False):
    data: list[_Model]


async def list_models(
    url: str,
    api_key: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    name: str | None = None,
    connect_timeout_s: float = 5.0,
    read_timeout_s: float = 30.0,
) -> list[str]:
    """What a server calls its models, in its order.

    Args:
        url: the server's base URL, as for `OpenAIWireModel`.
        api_key: sent as a bearer token.
        headers: sent besides.
        name: what errors call the server; its URL unless told.
        connect_timeout_s: for name, connection and TLS together.
        read_timeout_s: the longest silence.

    Raises:
        ConfigError: the URL or a header cannot be used.
        UpstreamError: the server or the network failed.
    """
    http = HttpClient(
        model=name or url,
        url=url,
        headers=_authorised(api_key, headers),
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
    )
    try:
        async with http.exchange("GET", http.endpoint("models")) as exchange:
            body = await exchange.read()
        try:
            return [model.id for model in msgspec.json.decode(body, type=_Models).data]
        except UNREADABLE as exc:
            raise http.errors.malformed(f"sent something else than a list of models: {exc}", body) from exc
    finally:
        await http.aclose()


def _authorised(api_key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    return {**({"Authorization": f"Bearer {api_key}"} if api_key else {}), **(headers or {})}


# --- the request's parts ---------------------------------------------------------------------------------------------

#: Options that have the same name here and on the wire; `top_k` and `min_p` are extensions that vLLM, llama.cpp and
#: Ollama take, and that OpenAI refuses by name.
_SAMPLING: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
    }
)

#: Whose messages hold no calls and answer none.
_PLAIN_ROLES: Final = frozenset({"system", "developer", "user"})


def _message(message: Message, *, keeps_developer: bool) -> dict[str, Any]:
    role = message.role
    if role == "developer" and not keeps_developer:
        role = "system"
    if role in _PLAIN_ROLES and isinstance(message.content, str) and not message.name and not message.extra:
        return {"role": role, "content": message.content}  # nearly all
    content: str | list[Mapping[str, Any]]
    if isinstance(message.content, str):
        content = message.content
    else:
        content = [
            {"type": "text", "text": part.text} if part.kind == "text" else part.wire for part in message.content
        ]
    wire: dict[str, Any] = {"role": role, "content": content}
    if message.tool_calls:
        wire["content"] = content or None
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        wire["name"] = message.name
    return {**message.extra, **wire} if message.extra else wire


def _tool_choice(choice: str | NamedTool) -> Any:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice


def _shape(shape: ResponseFormat) -> dict[str, Any]:
    if shape.kind == "grammar":
        return {"grammar": shape.grammar, "structured_outputs": {"grammar": shape.grammar}}
    if shape.kind == "choice":
        return {"grammar": gbnf.choice(shape.choices), "structured_outputs": {"choice": shape.choices}}
    if shape.kind == "json_schema":
        schema: dict[str, Any] = {"name": shape.name, "schema": shape.schema or {}}
        if shape.strict is not None:
            schema["strict"] = shape.strict
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": shape.kind}}
