"""The embedded model: any GGUF, run by llama.cpp in this process, as a `ChatModel`."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from nearfar.errors import ConfigError, MalformedAnswer, RequestError, UnsupportedOption, UpstreamRejected
from nearfar.types import (
    FREE,
    Answer,
    FinishReason,
    ModelCard,
    Price,
    Query,
    ReasoningDelta,
    StreamEnd,
    StreamEvent,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

from .gbnf import Grammar
from .grammar import Node
from .llama_engine import Choice, Engine, EngineRequest, WireUsage
from .tool_prompt import CallReader, Shape, is_forced, shape_of, template_messages

_MAX_TOP_LOGPROBS: Final = 20
_CHOICE_BIAS: Final = 100.0  # on the logits of choices, so that no other token has a share that a float could show
_MAX_SEED: Final = 2**32 - 1  # llama.cpp takes this one for "random"


class LlamaCppModel:
    """A GGUF that answers on this machine, with no network and no key.

    - Tools are told in the system message and held by a grammar of their schemas, so that a call always parses and
      fits its schema; a tool whose schema no grammar can say is refused. A call that the token limit cuts off is
      finished in the shortest valid way: the reason to finish is then still `length`, and the signal
      `finished_characters` says how much was not the model's. One call per answer unless the query says
      `parallel_tool_calls`.
    - A JSON schema that is `strict` and cannot be enforced is refused; without `strict`, what cannot be enforced is
      a hint, as in OpenAI's API.
    - A choice among texts that comes with log-probabilities has those of all of them, renormalised, and is drawn from
      them whatever the temperature.
    - Other log-probabilities are the model's own, before any grammar or sampling option. Tokens that are only part of a
      character come as one entry with the character's last token's number.
    - The same query with the same seed gives the same answer while no other query runs beside it: then the prompt is
      computed anew, since a cached one differs in the last bits.

    Args:
        path: the GGUF file; read at the first query.
        name: the model's name.
        context_window: tokens per query, prompt and answer together.
        parallel: queries answered at once; further ones wait.
        threads: None: one per available core, eight at most.
        max_output_tokens: the most that it writes where the query names no limit or a higher one.
        temperature: where the query names none; what SmolLM2's own card uses. llama.cpp's 0.8 makes small models stray.
        loras: LoRA adapters by name; see `with_lora`.
        price: free, unless the user counts the electricity.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        context_window: int = 4096,
        parallel: int = 2,
        threads: int | None = None,
        max_output_tokens: int | None = 512,
        temperature: float = 0.2,
        loras: Mapping[str, Path] | None = None,
        price: Price = FREE,
    ) -> None:
        numbers = {
            "context_window": context_window,
            "parallel": parallel,
            "threads": threads,
            "max_output_tokens": max_output_tokens,
        }
        for option, value in numbers.items():
            if value is not None and value < 1:
                raise ConfigError(f"{option} of {name!r} is {value!r}. Set it to 1 or more")
        self._card = ModelCard(
            name,
            "near",
            context_window=context_window,
            max_output_tokens=max_output_tokens,
            price=price,
            supports_logprobs=True,
            supports_tools=True,
            supports_json_schema=True,
            supports_grammar=True,
            supports_choice=True,
        )
        if not 0 <= temperature <= 2:
            raise ConfigError(f"temperature of {name!r} is {temperature!r}. Set it within [0, 2]")
        self._temperature = temperature
        self._price = price
        self._lora: str | None = None
        self._engine = Engine(
            Path(path), name=name, context_window=context_window, parallel=parallel, threads=threads, loras=loras or {}
        )

    @property
    def card(self) -> ModelCard:
        """What the model is and can do."""
        return self._card

    @property
    def listening_address(self) -> str | None:
        """Where llama.cpp's own HTTP server listens, behind a random key that nobody is told; None: not loaded."""
        return self._engine.listening_address

    def with_lora(self, name: str) -> Self:
        """The same weights, in the same memory, answering with the adapter `name`; closing either closes both.

        Raises:
            ConfigError: no adapter of that name was given to the constructor.
        """
        if name not in self._engine.lora_names:
            known = ", ".join(self._engine.lora_names) or "none"
            raise ConfigError(f"{self.card.name!r} has no LoRA adapter {name!r}. It has: {known}")
        view = copy.copy(self)
        view._lora = name
        view._card = replace(self._card, name=f"{self._card.name}+{name}")
        return view

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            RequestError: an option of the query is wrong or cannot be honoured.
            UpstreamError: the weights cannot be loaded, or llama.cpp failed or refused.
        """
        async with aclosing(self.stream(query)) as events:
            async for event in events:
                if isinstance(event, StreamEnd):
                    return event.answer
        raise MalformedAnswer(f"{self.card.name!r}: the answer has no end", model=self.card.name)

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece; `complete` says what it raises."""
        start = time.perf_counter()
        is_plain = not query.tools and query.response_format is None
        shape = self._shape(query) if is_plain else await asyncio.to_thread(self._shape, query)  # may take seconds
        request = self._request(query, shape)
        progress = _Progress(query, shape.call)
        async with aclosing(self._engine.chat(request)) as chunks:
            async for chunk in chunks:
                progress.usage = chunk.usage or progress.usage
                for choice in chunk.choices:
                    for event in progress.take(choice):
                        yield event
        for event in progress.finish():
            yield event
        answer = self._answer(query, progress, time.perf_counter() - start)
        if shape.own is not None and await asyncio.to_thread(_strays, shape.own, answer, query):
            raise UpstreamRejected(
                f"{self.card.name!r}: the grammar is too ambiguous, and was lost on the way. Make it simpler",
                model=self.card.name,
                status=400,
            )
        yield StreamEnd(answer)

    async def count_prompt_tokens(self, query: Query) -> int:
        """How many tokens the query's prompt has, chat template and tools included.

        Raises:
            UpstreamError: the weights cannot be loaded.
        """
        return await self._engine.count_prompt_tokens(template_messages(query))

    def unavailable(self) -> str | None:
        """Why the model can take no query just now: closed, or its weights are not there."""
        return self._engine.unavailable()

    async def aclose(self) -> None:
        """Stops what runs and frees the memory."""
        await self._engine.aclose()

    # --- the query in llama.cpp's words ------------------------------------------------------------------------------

    def _shape(self, query: Query) -> Shape:
        self._refuse_unmet(query)
        if not query.messages:
            raise RequestError("a query needs at least one message", param="messages")
        return shape_of(query)

    def _request(self, query: Query, shape: Shape) -> EngineRequest:
        body: dict[str, Any] = {
            "messages": template_messages(query),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,  # a callback per batch of the prompt, so that it can be cancelled there
            **self._sampling(query),
        }
        if shape.grammar is not None:
            body["grammar"] = shape.grammar
        names = self._engine.lora_names
        if names:
            body["lora"] = [{"id": i, "scale": 1.0} for i, name in enumerate(names) if name == self._lora]
        bias = query.sampling.logit_bias or {}
        return EngineRequest(body, shape.probes, tuple(_token_id(key) for key in bias))

    def _refuse_unmet(self, query: Query) -> None:
        for param, why in self.card.unmet(query).items():
            raise UnsupportedOption(f"{self.card.name!r} {why}: {param!r}", param=param)

    def _sampling(self, query: Query) -> dict[str, Any]:
        """The decoding options; those that are None are left to llama.cpp and the GGUF."""
        sampling = query.sampling
        for option in ("max_tokens", "top_logprobs", "top_k"):
            value = getattr(sampling, option)
            low = 1 if option == "max_tokens" else 0
            if value is not None and value < low:
                raise RequestError(f"{option} is {value!r}. Set it to {low} or more", param=option)
        if sampling.top_logprobs is not None and sampling.top_logprobs > _MAX_TOP_LOGPROBS:
            raise RequestError(
                f"top_logprobs is {sampling.top_logprobs!r}. Set it to {_MAX_TOP_LOGPROBS} or less",
                param="top_logprobs",
            )
        if "" in sampling.stop:
            raise RequestError("a stop string is empty. Leave it out", param="stop")
        options: dict[str, Any] = {
            "max_tokens": self.card.output_bound(query),
            "temperature": self._temperature if sampling.temperature is None else sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        }
        if sampling.stop and not is_forced(query):  # inside a call's JSON a stop string would only break it
            options["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            options |= {"seed": sampling.seed % _MAX_SEED, "cache_prompt": False}
        if sampling.logit_bias:
            options["logit_bias"] = [[_token_id(key), value] for key, value in sampling.logit_bias.items()]
        if sampling.logprobs:
            options |= {"logprobs": True, "top_logprobs": max(1, sampling.top_logprobs or 0)}
        if sampling.logprobs and (choices := _choices(query)):
            # llama.cpp applies a grammar only once a token was drawn that breaks it; until then the bias does its work,
            # which is the same for every choice and leaves their ratios as they are.
            bias = [*options.get("logit_bias", ()), *([choice, _CHOICE_BIAS] for choice in choices)]
            options |= {
                "logit_bias": bias,
                "top_logprobs": len(choices),
                "post_sampling_probs": True,
                "samplers": [],
            }
        return {key: value for key, value in options.items() if value is not None}

    # --- the answer --------------------------------------------------------------------------------------------------

    def _answer(self, query: Query, progress: _Progress, latency_s: float) -> Answer:
        text = "".join(progress.text)
        if progress.finish_reason is None:
            raise MalformedAnswer(f"{self.card.name!r}: llama.cpp ended before the answer did", model=self.card.name)
        if is_forced(query) and progress.finish_reason == "stop":
            raise MalformedAnswer(f"{self.card.name!r}: the answer is not a tool call", model=self.card.name)
        form = query.response_format
        is_json = form is not None and form.kind in ("json_object", "json_schema")
        if is_json and progress.finish_reason == "stop" and not query.sampling.stop and not _is_json(text):
            raise MalformedAnswer(f"{self.card.name!r}: the answer is not JSON", model=self.card.name)
        usage = _usage(progress.usage)
        return Answer(
            text,
            self.card.name,
            tool_calls=tuple(progress.calls),
            finish_reason=progress.finish_reason,
            reasoning="".join(progress.reasoning) or None,
            logprobs=tuple(progress.logprobs) if query.sampling.logprobs else None,
            usage=usage,
            cost_usd=self._price.cost_usd(usage) if usage else None,
            latency_s=latency_s,
            signals={"finished_characters": float(progress.finished)} if progress.finished else {},
        )


class _Progress:
    """What has been written so far, and the events that tell of it."""

    def __init__(self, query: Query, call: Node | None) -> None:
        self._reader = CallReader(call) if call is not None else None
        self._is_forced = is_forced(query)
        self._num_top = max(query.sampling.top_logprobs or 0, len(_choices(query)))
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.usage: WireUsage | None = None
        self.finished = 0  # characters of a call that the model did not write

    @property
    def calls(self) -> list[Any]:
        return self._reader.calls if self._reader else []

    def take(self, choice: Choice) -> list[StreamEvent]:
        """The events of one piece."""
        events: list[StreamEvent] = []
        if choice.delta.reasoning_content:
            self.reasoning.append(choice.delta.reasoning_content)
            events.append(ReasoningDelta(choice.delta.reasoning_content))
        found = choice.logprobs.content if choice.logprobs else None
        logprobs = tuple(
            TokenLogprob(
                each.token,
                each.nats,
                tuple((top.token, top.nats) for top in (each.top_probs or each.top_logprobs)[: self._num_top]),
            )
            for each in found or ()
        )
        events += self._write(choice.delta.content or "", logprobs)
        if choice.finish_reason:
            self.finish_reason = "length" if choice.finish_reason == "length" else "stop"
        return events

    def finish(self) -> list[StreamEvent]:
        """The events that were held back until the end."""
        if self._reader is None:
            return []
        if self.finish_reason == "length" and (self._reader.is_cut_off or (self._is_forced and not self._reader.calls)):
            call, self.finished = self._reader.finish_call()
            if not self.finished:  # only the closing marker was cut off
                self.finish_reason = "tool_calls"
            return [ToolCallDelta(len(self.calls) - 1, call.arguments, call.id, call.name)]
        if self._reader.calls and not self._reader.is_cut_off:
            self.finish_reason = "tool_calls"
        rest = self._reader.finish()
        self.text.append(rest)
        return [TextDelta(rest)] if rest else []

    def _write(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[StreamEvent]:
        first = len(self.calls)
        if self._reader:
            text, calls = self._reader.feed(text)
        else:
            calls = []
        self.text.append(text)
        self.logprobs += logprobs
        events: list[StreamEvent] = [TextDelta(text, logprobs)] if text or logprobs else []
        events += [ToolCallDelta(first + i, call.arguments, call.id, call.name) for i, call in enumerate(calls)]
        return events


def _choices(query: Query) -> tuple[str, ...]:
    form = query.response_format
    return form.choices if form is not None and form.kind == "choice" else ()


def _strays(grammar: Grammar, answer: Answer, query: Query) -> bool:
    """Whether the answer is none of the grammar's: where that gets too much for llguidance, llama.cpp drops it."""
    if answer.reasoning is not None:
        return False
    is_whole = answer.finish_reason == "stop" and not query.sampling.stop
    return grammar.refuses(answer.text if is_whole else answer.text.rstrip("\ufffd"), is_whole=is_whole)


def _usage(wire: WireUsage | None) -> Usage | None:
    if wire is None:
        return None
    cached = wire.prompt_tokens_details.cached_tokens if wire.prompt_tokens_details else 0
    return Usage(wire.prompt_tokens, wire.completion_tokens, cached_tokens=cached)


def _token_id(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise RequestError(f"logit_bias names {key!r}, which is not a token's number", param="logit_bias") from None


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
