"""What every `ChatModel` must do. Subclass `ChatModelContract`, give it a `model` fixture, and its tests are yours.

    class TestScriptedModel(ChatModelContract):
        @pytest.fixture
        async def model(self):
            model = ScriptedModel([obedient])
            yield model
            await model.aclose()

Checks that the model's card rules out are skipped, with that reason. Class attributes say what to ask a model that
cannot be asked anything (a recording), and what else it does not promise.
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from nearfar.errors import RequestError, UnsupportedOption, UpstreamError
from nearfar.types import (
    Answer,
    ChatModel,
    ContentPart,
    Message,
    NamedTool,
    Query,
    ReasoningDelta,
    ResponseFormat,
    SamplingOptions,
    StreamEnd,
    StreamEvent,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
)

WEATHER = ToolSpec(
    "get_weather",
    "The weather in a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "is_metric": {"type": "boolean"}},
        "required": ["city", "is_metric"],
        "additionalProperties": False,
    },
)
CLOCK = ToolSpec(
    "get_time",
    "The time in a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}, "is_warm": {"type": "boolean"}},
    "required": ["colour", "is_warm"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= "yes" | "no"'
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
IMAGE = (
    ContentPart("text", "What is this?"),
    ContentPart("image", wire={"type": "image_url", "image_url": {"url": PIXEL}}),
)

DECODING = {
    "temperature": 0.0,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "seed": 7,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {"5": -1.0},
}


class ChatModelContract:
    """Every clause of `ChatModel`'s docstring, as tests."""

    prompt: ClassVar[str] = "Say hello."
    long_prompt: ClassVar[str] = "Write a long story about a dragon and a farmer."
    unicode_prompt: ClassVar[str] = "Répète : naïve, 日本語, 🙂, \u0645\u0631\u062d\u0628\u0627."
    gives_usage: ClassVar[bool] = True  # on every answer
    honours_lengths: ClassVar[bool] = True  # max_tokens and stop cut the answer
    outcome_only: ClassVar[bool] = False  # answers without text

    @pytest.fixture
    async def model(self) -> ChatModel:
        """A model that is ready to answer; close it after the yield."""
        raise NotImplementedError(f"{type(self).__name__} needs an async fixture named 'model'")

    def query(self, prompt: str | tuple[Message, ...] | None = None, **sampling: Any) -> Query:
        """A cheap question: the contract never needs more than a few tokens."""
        return Query(prompt or self.prompt, sampling=SamplingOptions(**{"max_tokens": 16, **sampling}))

    def check(self, model: ChatModel, answer: Answer) -> None:
        """What holds for every answer, however it came."""
        card = model.card
        assert answer.model == card.name
        assert answer.decision is None
        assert answer.text or answer.tool_calls or answer.refusal or self.outcome_only
        assert answer.latency_s >= 0
        answer.text.encode()  # no lone surrogates
        if self.gives_usage:
            assert answer.usage is not None
            assert answer.usage.prompt_tokens > 0
            assert answer.usage.completion_tokens > 0 or self.outcome_only
        if answer.is_cached:
            assert answer.cost_usd == 0
        elif card.price is None or answer.usage is None:
            assert answer.cost_usd is None or card.is_recording
        elif not card.is_recording:
            assert answer.cost_usd == pytest.approx(card.price.cost_usd(answer.usage))

    # --- one answer --------------------------------------------------------------------------------------------------

    async def test_the_card_names_and_places_the_model(self, model: ChatModel) -> None:
        """The router reads name and placement, and nothing works without them."""
        assert model.card.name
        assert model.card.placement in ("near", "far")
        assert model.unavailable() is None

    async def test_an_answer_is_whole(self, model: ChatModel) -> None:
        """Text, model, usage, cost and finish reason are all there."""
        answer = await model.complete(self.query())

        self.check(model, answer)
        assert answer.finish_reason in ("stop", "length")
        assert answer.logprobs is None  # nobody asked

    async def test_a_conversation_is_answered(self, model: ChatModel) -> None:
        """System and earlier turns are taken."""
        turns = (
            Message("system", "You are brief."),
            Message("user", "Hello."),
            Message("assistant", "Hi!"),
            Message("user", self.prompt),
        )

        self.check(model, await model.complete(self.query(turns)))

    async def test_any_script_is_answered(self, model: ChatModel) -> None:
        """Characters of every plane go in, and whole characters come out."""
        query = self.query(self.unicode_prompt)

        self.check(model, await model.complete(query))
        self.check(model, (await collect(model.stream(query)))[1])

    async def test_an_empty_prompt_is_answered_or_refused(self, model: ChatModel) -> None:
        """It never hangs and never fails with a foreign error."""
        query = Query("", sampling=SamplingOptions(max_tokens=16))

        try:
            answer = await model.complete(query)
        except (RequestError, UpstreamError) as exc:
            assert str(exc)  # noqa: PT017 - either way out is fine
        else:
            assert answer.model == model.card.name

    # --- streams -----------------------------------------------------------------------------------------------------

    async def test_deltas_joined_are_the_answer(self, model: ChatModel) -> None:
        """Whoever joins the pieces has what whoever waited has; the whole answer comes last, once."""
        events, answer = await collect(model.stream(self.query()))

        assert_joined(events, answer)
        self.check(model, answer)

    async def test_a_stream_does_nothing_before_it_is_read(self, model: ChatModel) -> None:
        """A stream that nobody reads can be dropped."""
        before = tasks()

        await model.stream(self.query()).aclose()

        await settled(before)

    # --- options -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("door", ["complete", "stream"])
    @pytest.mark.parametrize("option", ["tools", "json", "json_schema", "grammar", "logprobs", "extra", "image"])
    async def test_what_the_card_rules_out_is_refused_by_name(self, model: ChatModel, option: str, door: str) -> None:
        """An option is honoured or refused, never dropped in silence."""
        query = {
            "tools": Query(self.prompt, tools=(WEATHER,)),
            "json": Query(self.prompt, response_format=ResponseFormat("json_object")),
            "json_schema": Query(self.prompt, response_format=ResponseFormat("json_schema", SCHEMA)),
            "grammar": Query(self.prompt, response_format=ResponseFormat("grammar", grammar=GRAMMAR)),
            "logprobs": Query(self.prompt, sampling=SamplingOptions(logprobs=True)),
            "extra": Query(self.prompt, sampling=SamplingOptions(extra={"best_of": 3})),
            "image": Query((Message("user", IMAGE),)),
        }[option]
        unmet = model.card.unmet(query)
        if not unmet:
            pytest.skip(f"the card says that {option} works")

        with pytest.raises(UnsupportedOption) as caught:
            await ask(model, query, door)

        assert caught.value.param in unmet
        assert model.card.name in str(caught.value)

    @pytest.mark.parametrize("option", DECODING)
    async def test_a_decoding_option_is_honoured_or_refused_by_name(self, model: ChatModel, option: str) -> None:
        """Where a wire has no such option, the error says which."""
        query = self.query(**{option: DECODING[option]})

        try:
            answer = await model.complete(query)
        except UnsupportedOption as exc:
            assert exc.param == option  # noqa: PT017 - either way out is fine
        else:
            self.check(model, answer)

    async def test_max_tokens_ends_the_answer(self, model: ChatModel) -> None:
        """An answer that was cut says so."""
        if not self.honours_lengths:
            pytest.skip("the model cannot be cut short")
        query = self.query(self.long_prompt, max_tokens=3)

        answer = await model.complete(query)
        _, streamed = await collect(model.stream(query))

        for each in (answer, streamed):
            assert each.finish_reason == "length"
            if self.gives_usage:
                assert each.usage is not None
                assert each.usage.completion_tokens <= 3

    @pytest.mark.parametrize("door", ["complete", "stream"])
    async def test_stop_ends_the_answer_and_is_not_part_of_it(self, model: ChatModel, door: str) -> None:
        """Nor is any part of it among the deltas."""
        if not self.honours_lengths:
            pytest.skip("the model cannot be cut short")
        query = self.query(self.long_prompt, temperature=0.0)
        stop = (await model.complete(query)).text.split()[1]

        answer = await ask(model, replace(query, sampling=replace(query.sampling, stop=(stop,))), door)

        assert stop not in answer.text
        assert answer.model == model.card.name

    async def test_logprobs_are_there_when_asked_for(self, model: ChatModel) -> None:
        """One entry per token, with as many alternatives as asked for."""
        if not model.card.supports_logprobs:
            pytest.skip("the card says: no log-probabilities")
        query = self.query(logprobs=True, top_logprobs=3)

        answer = await model.complete(query)
        events, streamed = await collect(model.stream(query))

        assert_joined(events, streamed)
        for each in (answer, streamed):
            self.check(model, each)
            assert_logprobs(each, alternatives=3)

    async def test_logprobs_without_alternatives(self, model: ChatModel) -> None:
        """The chosen token's log-probability alone can be had."""
        if not model.card.supports_logprobs:
            pytest.skip("the card says: no log-probabilities")

        answer = await model.complete(self.query(logprobs=True))

        assert answer.logprobs
        assert all(math.isfinite(each.logprob) and each.logprob <= 1e-6 for each in answer.logprobs)

    # --- shapes ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("door", ["complete", "stream"])
    async def test_a_json_schema_is_kept(self, model: ChatModel, door: str) -> None:
        """The text parses and validates."""
        if not model.card.supports_json_schema:
            pytest.skip("the card says: no JSON schema")
        query = replace(
            self.query("Is red a warm colour? Answer in JSON.", max_tokens=64),
            response_format=ResponseFormat("json_schema", SCHEMA, name="colour", strict=True),
        )

        value = json.loads((await ask(model, query, door)).text)

        assert set(value) == {"colour", "is_warm"}
        assert value["colour"] in ("red", "blue")
        assert isinstance(value["is_warm"], bool)

    async def test_a_grammar_is_kept(self, model: ChatModel) -> None:
        """The text is one that the grammar allows."""
        if not model.card.supports_grammar:
            pytest.skip("the card says: no grammar")
        query = replace(self.query("Is Paris in France?"), response_format=ResponseFormat("grammar", grammar=GRAMMAR))

        assert (await model.complete(query)).text in ("yes", "no")

    @pytest.mark.parametrize("door", ["complete", "stream"])
    @pytest.mark.parametrize("choice", ["required", NamedTool("get_time")], ids=["required", "named"])
    async def test_a_forced_tool_is_called(self, model: ChatModel, choice: Any, door: str) -> None:
        """The call names a tool of the query and its arguments parse."""
        if not model.card.supports_tools:
            pytest.skip("the card says: no tools")
        query = replace(
            self.query("What is the weather in Paris?", max_tokens=96), tools=(WEATHER, CLOCK), tool_choice=choice
        )

        answer = await ask(model, query, door)

        self.check(model, answer)
        assert answer.finish_reason == "tool_calls"
        assert answer.tool_calls
        for call in answer.tool_calls:
            assert call.id
            assert call.name in ({"get_time"} if choice != "required" else {"get_weather", "get_time"})
            assert json.loads(call.arguments)["city"] in ("Paris", "Rome")

    async def test_tools_that_must_not_be_called_are_not(self, model: ChatModel) -> None:
        """`tool_choice` "none" gives text."""
        if not model.card.supports_tools:
            pytest.skip("the card says: no tools")

        answer = await model.complete(replace(self.query(), tools=(WEATHER,), tool_choice="none"))

        assert answer.tool_calls == ()
        assert answer.finish_reason in ("stop", "length")

    async def test_a_tools_result_is_taken(self, model: ChatModel) -> None:
        """A conversation goes on after a call and its result."""
        if not model.card.supports_tools:
            pytest.skip("the card says: no tools")
        turns = (
            Message("user", "What is the weather in Paris?"),
            Message("assistant", tool_calls=(ToolCall("call_1", "get_weather", '{"city":"Paris","is_metric":true}'),)),
            Message("tool", "12 degrees and rain", tool_call_id="call_1"),
        )

        answer = await model.complete(replace(self.query(turns), tools=(WEATHER,), tool_choice="none"))

        self.check(model, answer)

    # --- many at once, and none left behind --------------------------------------------------------------------------

    async def test_many_calls_run_at_once(self, model: ChatModel) -> None:
        """Each gets its own answer, streamed or not."""
        answers = await asyncio.gather(*(ask(model, self.query(), "stream" if i % 2 else "complete") for i in range(8)))

        for answer in answers:
            self.check(model, answer)

    async def test_a_cancelled_call_leaves_nothing_behind(self, model: ChatModel) -> None:
        """Tasks are gone, and what the call held serves the next: more calls than the model has slots."""
        await model.complete(self.query())
        before = tasks()

        for i in range(6):
            call = asyncio.create_task(model.complete(self.query(self.long_prompt, max_tokens=256)))
            await asyncio.sleep(0.01 * i)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled() or call.exception() is None

        await settled(before)
        self.check(model, await model.complete(self.query()))

    async def test_a_closed_stream_leaves_nothing_behind(self, model: ChatModel) -> None:
        """Closing after the first piece stops the work."""
        await model.complete(self.query())
        before = tasks()

        for _ in range(6):
            async with aclosing(model.stream(self.query(self.long_prompt, max_tokens=256))) as stream:
                async for _event in stream:
                    break

        await settled(before)
        self.check(model, await model.complete(self.query()))

    async def test_a_cancelled_stream_leaves_nothing_behind(self, model: ChatModel) -> None:
        """A reader that is cancelled between pieces takes the work with it."""
        await model.complete(self.query())
        before = tasks()

        for i in range(6):
            reader = asyncio.create_task(collect(model.stream(self.query(self.long_prompt, max_tokens=256))))
            await asyncio.sleep(0.01 * i)
            reader.cancel()
            await asyncio.wait([reader])
            assert reader.cancelled() or reader.exception() is None

        await settled(before)
        self.check(model, (await collect(model.stream(self.query())))[1])

    async def test_closing_twice_is_fine(self, model: ChatModel) -> None:
        """As is closing a model that has answered."""
        await model.complete(self.query())

        await model.aclose()
        await model.aclose()


# --- helpers ---------------------------------------------------------------------------------------------------------


async def collect(stream: AsyncGenerator[StreamEvent, None]) -> tuple[list[StreamEvent], Answer]:
    """A stream's events before the last, and the answer that the last holds; every stream must have this form."""
    async with aclosing(stream):
        events = [event async for event in stream]
    assert events, "a stream without events"
    *deltas, end = events
    assert isinstance(end, StreamEnd), f"the last event is {end!r}"
    assert all(isinstance(each, TextDelta | ReasoningDelta | ToolCallDelta) for each in deltas), deltas
    return deltas, end.answer


async def ask(model: ChatModel, query: Query, door: str) -> Answer:
    """The answer, by either door; a stream's is checked against its deltas."""
    if door == "complete":
        return await model.complete(query)
    events, answer = await collect(model.stream(query))
    assert_joined(events, answer)
    return answer


def assert_joined(events: Sequence[StreamEvent], answer: Answer) -> None:
    """The deltas, joined, are the answer: text, log-probabilities, reasoning and tool calls."""
    text, reasoning = "", ""
    logprobs: list[TokenLogprob] = []
    calls: dict[int, ToolCall] = {}
    for event in events:
        match event:
            case TextDelta():
                text += event.text
                logprobs.extend(event.logprobs)
            case ReasoningDelta():
                reasoning += event.text
            case ToolCallDelta():
                known = calls.get(event.index, ToolCall("", "", ""))
                calls[event.index] = ToolCall(
                    known.id or event.id or "", known.name or event.name or "", known.arguments + event.arguments
                )
    assert text == answer.text
    assert reasoning == (answer.reasoning or "")
    assert tuple(calls[i] for i in sorted(calls)) == answer.tool_calls
    assert tuple(logprobs) == (answer.logprobs or ())


def assert_logprobs(answer: Answer, *, alternatives: int) -> None:
    """One finite, non-positive number per token, and the alternatives likeliest first."""
    assert answer.logprobs
    for each in answer.logprobs:
        assert math.isfinite(each.logprob)
        assert each.logprob <= 1e-6
        assert len(each.top) == alternatives
        values = [value for _, value in each.top]
        assert values == sorted(values, reverse=True)
    assert answer.text.strip() in "".join(each.token for each in answer.logprobs)


def tasks() -> set[asyncio.Task[Any]]:
    """The tasks that are alive."""
    return {task for task in asyncio.all_tasks() if not task.done()}


async def settled(before: set[asyncio.Task[Any]]) -> None:
    """Returns once no task is alive that was not before; fails if one stays."""
    for _ in range(500):
        if not (left := tasks() - before):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks left behind: {left}")
