"""Chat completions as OpenAI's wire brings them: chunks and whole bodies, put together to an answer and its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Final, Literal
from uuid import uuid4

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from nearfar.types import (
    Answer,
    FinishReason,
    ModelCard,
    Query,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

from .wire_json import UNREADABLE, checked_usage

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Alternative(Struct, gc=False):
    token: str
    logprob: float


class _Token(Struct, gc=False):
    token: str
    logprob: float
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(Struct, gc=False):
    content: list[_Token] | None = None


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Words(Struct, gc=False):
    """A whole message, or a stream's next piece of one."""

    content: str | None = None
    reasoning_content: str | None = None  # DeepSeek, vLLM until 0.11, llama.cpp
    reasoning: str | None = None  # OpenRouter, Ollama, vLLM since
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Words | None = None
    message: _Words | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    def usage(self) -> Usage | None:
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        return checked_usage(
            self.prompt_tokens,
            self.completion_tokens,
            cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
            reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
        )


class Chunk(Struct, gc=False):
    """A stream's chunk or a whole completion."""

    choices: list[_Choice] | UnsetType = UNSET
    usage: _Usage | None = None
    error: Any = None


class _PlainMessage(_Words, gc=False, forbid_unknown_fields=True):
    role: str | None = None


class _PlainChoice(_Choice, gc=False, forbid_unknown_fields=True):
    delta: None = None
    message: _PlainMessage | None = None


class _PlainCompletion(Chunk, gc=False, forbid_unknown_fields=True):
    """A whole completion all of whose fields have a place of their own, or say nothing that outlives the answer."""

    choices: list[_PlainChoice] | UnsetType = UNSET  # type: ignore[assignment]  # fewer than the others
    error: None = None
    id: Any = None
    object: Any = None
    created: Any = None
    model: Any = None


class _BareDelta(Struct, gc=False):
    content: Annotated[str, Meta(min_length=1)]
    reasoning_content: None = None
    reasoning: None = None
    refusal: None = None
    tool_calls: None = None


class _BareChoice(Struct, gc=False):
    delta: _BareDelta
    index: Literal[0] = 0
    finish_reason: None = None
    logprobs: None = None


class _BareChunk(Struct, gc=False):
    """A stream's chunk that is a piece of text and nothing else: all but a few."""

    choices: tuple[_BareChoice]
    usage: None = None
    error: None = None


CHUNKS = msgspec.json.Decoder(Chunk)
_BARE_CHUNKS = msgspec.json.Decoder(_BareChunk)
_PLAIN_COMPLETIONS = msgspec.json.Decoder(_PlainCompletion)
_OBJECTS = msgspec.json.Decoder(dict[str, Raw])
_LISTS = msgspec.json.Decoder(list[dict[str, Raw]])

#: Fields that have a place of their own, or say nothing that outlives the answer (obfuscation is padding); "message"
#: and "choice" name the places of others in `Answer.extra`.
_KNOWN_IN_BODY = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "error", "obfuscation", "message", "choice"}
)
_KNOWN_IN_CHOICE = frozenset({"index", "delta", "message", "finish_reason", "logprobs"})
_KNOWN_IN_MESSAGE = frozenset({"role", "content", "reasoning_content", "reasoning", "refusal", "tool_calls"})


@dataclass(slots=True)
class _OpenCall:
    """A tool call in the making."""

    wire_index: int | None
    wire_id: str | None
    id: str
    name: str | None
    arguments: list[str]


def bare_texts(batch: list[bytes], start: int) -> list[str]:
    """The texts of the chunks from `start` to the first that is not a piece of text alone."""
    texts: list[str] = []
    decode = _BARE_CHUNKS.decode
    try:
        for i in range(start, len(batch)):
            texts.append(decode(batch[i]).choices[0].delta.content)  # noqa: PERF401  # kept where the next one raises
    except UNREADABLE:
        return texts
    return texts


def plain_completion(data: bytes) -> Chunk | None:
    """The whole completion where nothing in it needs a second look; None: read it as `CHUNKS`, and for other fields."""
    try:
        found = _PLAIN_COMPLETIONS.decode(data)
    except UNREADABLE:
        return None
    return found if found.choices else None


class Assembly:
    """An answer in the making."""

    __slots__ = (
        "_calls",
        "_extra",
        "_logprobs",
        "_reasoning",
        "_refusal",
        "_text",
        "_usage",
        "finish_reason",
        "is_done",
        "num_choices",
    )

    def __init__(self, query: Query) -> None:
        self.is_done = False  # the server has said that nothing follows
        self.num_choices = 0  # chunks with something of the answer
        self.finish_reason: str | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[_OpenCall] = []
        self._logprobs: list[TokenLogprob] | None = [] if query.sampling.logprobs else None
        self._usage: _Usage | None = None
        self._extra: dict[str, Any] = {}

    def take(self, chunk: Chunk) -> list[StreamEvent]:
        """Adds a chunk and returns its events."""
        events: list[StreamEvent] = []
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.choices is UNSET:
            return events
        for choice in chunk.choices:
            if choice.index != 0:
                continue
            self.num_choices += 1
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
            words = choice.delta or choice.message
            if words is None:
                continue
            if reasoning := words.reasoning_content or words.reasoning:
                self._reasoning.append(reasoning)
                events.append(ReasoningDelta(reasoning))
            text = words.content
            tokens = self._tokens(choice.logprobs) if choice.logprobs is not None else ()
            if text or tokens:
                self._text.append(text or "")
                events.append(TextDelta(text or "", tokens))
            if words.refusal:
                self._refusal.append(words.refusal)
            if words.tool_calls:
                events.extend(self._call(i, call) for i, call in enumerate(words.tool_calls))
        return events

    def take_texts(self, texts: list[str]) -> TextDelta:
        """Adds chunks that are a piece of text each, and returns them as one event."""
        self.num_choices += len(texts)
        self._text += texts
        return TextDelta("".join(texts))

    def take_others(self, data: bytes) -> bool:
        """Keeps the fields of a chunk that have no place of their own; False where it is an error in disguise."""
        fields = _OBJECTS.decode(data)
        if (
            "choices" not in fields
            and "usage" not in fields
            and ("detail" in fields or fields.get("object") == b'"error"' or fields.get("type") == b'"error"')
        ):
            return False
        if others := _others(fields, _KNOWN_IN_BODY):
            _merge(self._extra, others)
        for choice in _LISTS.decode(fields["choices"]) if "choices" in fields else []:
            if others := _others(choice, _KNOWN_IN_CHOICE):
                _merge(self._extra, {"choice": others})
            message = choice.get("delta") or choice.get("message")
            if (
                message is not None
                and message != b"null"
                and (others := _others(_OBJECTS.decode(message), _KNOWN_IN_MESSAGE))
            ):
                _merge(self._extra, {"message": others})
        return True

    def answer(self, card: ModelCard, latency_s: float) -> Answer:
        """The whole answer."""
        usage = self._usage.usage() if self._usage else None
        calls = tuple(ToolCall(call.id, call.name or "", "".join(call.arguments)) for call in self._calls)
        finish_reason = _FINISH_REASONS.get(self.finish_reason or "stop")
        if finish_reason is None:
            self._extra["finish_reason"] = self.finish_reason
        if calls and finish_reason in (None, "stop"):  # OpenAI says "stop" of a call that was forced
            finish_reason = "tool_calls"
        return Answer(
            "".join(self._text),
            card.name,
            tool_calls=calls,
            finish_reason=finish_reason or "stop",
            reasoning="".join(self._reasoning) or None,
            refusal="".join(self._refusal) or None,
            logprobs=tuple(self._logprobs) if self._logprobs else None,
            usage=usage,
            cost_usd=card.price.cost_usd(usage) if card.price and usage else None,
            latency_s=latency_s,
            extra=self._extra,
        )

    def _tokens(self, logprobs: _Logprobs) -> tuple[TokenLogprob, ...]:
        if self._logprobs is None or not logprobs.content:
            return ()
        tokens = tuple(
            TokenLogprob(
                each.token,
                each.logprob,
                tuple((other.token, other.logprob) for other in each.top_logprobs) if each.top_logprobs else (),
            )
            for each in logprobs.content
        )
        self._logprobs.extend(tokens)
        return tokens

    def _call(self, position: int, piece: _Call) -> ToolCallDelta:
        """Adds a piece of a call and returns its event.

        A piece belongs to the last call of its index, unless its id says otherwise (Ollama has numbered all calls 0);
        where the server gives no index, an id or a second call in one chunk begins a call.
        """
        calls = self._calls
        arguments = (piece.function.arguments if piece.function else None) or ""
        name = piece.function.name if piece.function else None
        if piece.index is None:
            begins = bool(piece.id) or position > 0 or not calls
            slot = len(calls) if begins else len(calls) - 1
        else:
            slot = next((i for i in reversed(range(len(calls))) if calls[i].wire_index == piece.index), len(calls))
            if slot < len(calls) and piece.id and calls[slot].wire_id not in (None, piece.id):
                slot = len(calls)
        if slot == len(calls):
            call = _OpenCall(piece.index, piece.id or None, piece.id or f"call_{uuid4().hex[:24]}", name, [arguments])
            calls.append(call)
            return ToolCallDelta(slot, arguments, call.id, name)
        call = calls[slot]
        call.arguments.append(arguments)
        is_named = call.name is not None
        call.name = call.name or name
        return ToolCallDelta(slot, arguments, name=None if is_named else name)


def joined(events: list[StreamEvent]) -> list[StreamEvent]:
    """The events, with neighbouring pieces of bare text as one: each costs every layer above as much as a long one."""
    joined: list[StreamEvent] = []
    for is_bare_text, group in groupby(events, key=lambda event: isinstance(event, TextDelta) and not event.logprobs):
        if is_bare_text:
            joined.append(TextDelta("".join([event.text for event in group if isinstance(event, TextDelta)])))
        else:
            joined += group
    return joined


def _others(fields: Mapping[str, Raw], known: frozenset[str]) -> dict[str, Any]:
    """The fields that are not known and not empty."""
    if fields.keys() <= known:
        return {}
    values = {key: msgspec.json.decode(raw) for key, raw in fields.items() if key not in known}
    return {key: value for key, value in values.items() if value is not None and value not in ([], {}, "")}


def _merge(into: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Adds a stream's next piece: objects field by field, lists joined, else the last wins."""
    for key, value in piece.items():
        known = into.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            known += value
        elif value not in ([], {}):
            into[key] = value
