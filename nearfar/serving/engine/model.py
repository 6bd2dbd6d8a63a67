"""A vLLM server's model, or one of its LoRA adapters, as a near `ChatModel` that loads it when it is asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from nearfar.errors import RequestError, UnsupportedOption, UpstreamRejected, UpstreamTimeout, UpstreamUnavailable
from nearfar.models.gbnf import Grammar
from nearfar.models.json_schema import require_descent
from nearfar.models.openai_wire import OpenAIWireModel
from nearfar.types import FREE, Answer, ModelCard, Price, Query, ResponseFormat, StreamEnd, StreamEvent

from .engine import Address
from .fleet import Fleet
from .suspects import MOST_DEATHS, key_of


class EngineModel:
    """Answers with an engine of a fleet.

    Every answer carries the engine's load at that time as signals: `engine_queue` (requests in it),
    `engine_kv_cache_use` in [0, 1] and `engine_tokens_per_s`.

    Args:
        fleet: whose engine it is.
        engine: the engine's name.
        adapter: the LoRA adapter that answers; None: the model itself.
        name: the model's name in the config; None: the engine's, with the adapter's.
        max_output_tokens: the most that it writes where the query names no limit or a higher one.
        price: free, unless the user counts the electricity.
        max_queue: requests in the engine from which the model says that it is unavailable; None: any number.
        extra: body fields of every request.
        read_timeout_s: the longest silence of the server.
    """

    def __init__(
        self,
        fleet: Fleet,
        engine: str,
        *,
        adapter: str | None = None,
        name: str | None = None,
        served: str | None = None,
        max_output_tokens: int | None = None,
        price: Price = FREE,
        max_queue: int | None = None,
        extra: Mapping[str, Any] | None = None,
        read_timeout_s: float = 120.0,
    ) -> None:
        self._fleet = fleet
        self._engine = fleet.engines[engine]
        spec = self._engine.spec
        self._served = served or spec.served_name(adapter)
        self._owns_engine = adapter is None and name is None
        self._max_queue = max_queue
        self._extra = dict(extra or {})
        self._read_timeout_s = read_timeout_s
        self._wires: dict[Address, OpenAIWireModel] = {}
        self._card = ModelCard(
            name or spec.served_name(adapter),
            "near",
            context_window=spec.context_window,
            max_output_tokens=max_output_tokens,
            price=price,
            supports_logprobs=True,
            supports_tools=spec.tool_parser is not None,
            supports_json_schema=True,
            supports_grammar=True,
            supports_choice=True,
            passes_extra=True,
        )

    @property
    def card(self) -> ModelCard:
        """What the model is and can do."""
        return self._card

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            UnsupportedOption: the query asks for something that the model cannot do.
            UpstreamError: the engine cannot be loaded, or failed.
        """
        query = self._prepared(query)
        async with self._asked(query) as wire:
            return self._signed(await wire.complete(query))

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece; raises what `complete` raises."""
        query = self._prepared(query)
        async with self._asked(query) as wire, aclosing(wire.stream(query)) as events:
            async for event in events:
                yield StreamEnd(self._signed(event.answer)) if isinstance(event, StreamEnd) else event

    def unavailable(self) -> str | None:
        """Why the engine can take no query just now: it failed for good, or its queue is too long."""
        engine = self._engine
        if engine.state == "failed" and engine.failure is not None and not engine.failure.is_passing:
            return f"its engine is not up: {engine.failure.reason}"
        load = engine.load
        if self._max_queue is not None and load is not None and load.running + load.waiting >= self._max_queue:
            return f"its engine has {load.running + load.waiting} requests, and max_queue is {self._max_queue}"
        return None

    async def aclose(self) -> None:
        """Closes the connections; the model itself stops its engine too. Twice is fine."""
        for wire in self._wires.values():
            await wire.aclose()
        self._wires.clear()
        if self._owns_engine:
            await self._fleet.aclose(self._engine.spec.name)

    @asynccontextmanager
    async def _asked(self, query: Query) -> AsyncGenerator[OpenAIWireModel, None]:
        """The server, for as long as it answers the query; whoever may have killed one before is tried alone."""
        engine = self._engine
        suspects = engine.suspects
        key = key_of(query, self._served) if suspects else None
        is_suspect = key is not None and key in suspects
        async with AsyncExitStack() as held:
            if key is not None and is_suspect:
                self._refuse_killer(key)
                if engine.state != "ready" or suspects.deaths(key, engine.life):
                    await held.enter_async_context(suspects.alone)
            address = await held.enter_async_context(self._fleet.lease(engine.spec.name, limit_s=query.deadline_s))
            if key is not None and is_suspect:
                self._refuse_killer(key)  # only now is it known whether the last server died
            life = engine.life
            try:
                yield self._wire(address)
            except (UpstreamUnavailable, UpstreamTimeout) as exc:
                engine.suspect(is_silent=isinstance(exc, UpstreamTimeout))
                if exc.was_sent:
                    suspects.note(key or key_of(query, self._served), life)
                raise
            if key is not None:
                suspects.clear(key)

    def _refuse_killer(self, key: bytes) -> None:
        deaths = self._engine.suspects.deaths(key, self._engine.life)
        if deaths >= MOST_DEATHS:
            raise UpstreamRejected(
                f"{self._card.name!r} died {deaths} times while it answered this request, which is not sent again. "
                f"Change it, and see why: nearfar engine logs {self._engine.spec.name}",
                model=self._card.name,
                status=400,
                was_sent=False,
            )

    def _prepared(self, query: Query) -> Query:
        """The query with this model's own fields; refused before anything is loaded if it cannot be answered."""
        for param, why in self._card.unmet(query).items():
            raise UnsupportedOption(f"{self._card.name!r} {why}.", param=param)
        if query.response_format is not None:
            _check_shape(query.response_format)
        if not self._extra:
            return query
        for key in self._extra:
            if key in query.sampling.extra:
                raise UnsupportedOption(f"{key!r} is set by the model {self._card.name!r}; leave it out.", param=key)
        return replace(query, sampling=replace(query.sampling, extra={**query.sampling.extra, **self._extra}))

    def _wire(self, address: Address) -> OpenAIWireModel:
        found = self._wires.get(address)
        if found is None:
            card = self._card
            found = self._wires[address] = OpenAIWireModel(
                name=card.name,
                url=f"{address.url}/v1",
                model=self._served,
                placement="near",
                api_key=address.key,
                context_window=card.context_window,
                max_output_tokens=card.max_output_tokens,
                price=card.price,
                supports_tools=card.supports_tools,
                supports_grammar=True,
                modalities=card.modalities,
                max_tokens_field="max_tokens",
                read_timeout_s=self._read_timeout_s,
            )
        return found

    def _signed(self, answer: Answer) -> Answer:
        load = self._engine.load
        return replace(answer, signals={**load.signals(), **answer.signals}) if load is not None else answer


def _check_shape(shape: ResponseFormat) -> None:
    """Refuses what vLLM 0.32 ends with an internal error over, which would be tried again.

    Raises:
        RequestError: a schema that applies itself to the same value without end, or a grammar that is none.
    """
    try:
        if shape.kind == "grammar":
            Grammar(shape.grammar or "")
        elif shape.schema is not None:
            require_descent(shape.schema)
    except ValueError as exc:
        raise RequestError(f"no model can be held to the {shape.kind}: {exc}.", param="response_format") from exc
