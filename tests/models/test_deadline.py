"""A call ends in time, whatever the model does."""

import asyncio
from contextlib import aclosing

import pytest
from contracts.chat_model import ChatModelContract, collect
from support.obedient import obedient

from nearfar.errors import ConfigError, UpstreamTimeout
from nearfar.models.deadline import Deadline
from nearfar.models.wrapper import Wrapper
from nearfar.testing import ScriptedModel
from nearfar.types import Query, StreamEnd, TextDelta


class TestDeadlineKeepsTheContract(ChatModelContract):
    """With time to spare it changes nothing."""

    @pytest.fixture
    async def model(self):
        model = Deadline(ScriptedModel([obedient], confidence=0.9, delay_s=0.01), 60)
        yield model
        await model.aclose()


class Stuck(ScriptedModel):
    """Sends one piece and then nothing, for ever; remembers that it was closed."""

    was_closed = False

    async def stream(self, query):
        try:
            yield TextDelta("One")
            await asyncio.Event().wait()
        finally:
            self.was_closed = True


async def test_a_hanging_call_times_out():
    """The error says that the call may have cost something, since nobody knows how far it got."""
    model = Deadline(ScriptedModel(["late"], delay_s=3600), 0.02)

    with pytest.raises(UpstreamTimeout, match=r"'scripted' did not finish within 0\.02 s") as caught:
        await model.complete(Query("x"))

    assert caught.value.may_have_cost
    assert caught.value.model == "scripted"


async def test_a_stream_that_stops_in_the_middle_times_out_and_is_closed():
    """What came before the silence was handed on."""
    inner = Stuck(["x"])
    stream = Deadline(inner, 0.02).stream(Query("x"))

    assert await anext(stream) == TextDelta("One")
    with pytest.raises(UpstreamTimeout):
        await anext(stream)

    assert inner.was_closed


async def test_a_slow_reader_is_not_interrupted():
    """The time is up while the reader works: its own await is left alone, the next read fails or ends."""
    stream = Deadline(Stuck(["x"]), 0.01).stream(Query("x"))
    await anext(stream)

    await asyncio.sleep(0.05)
    with pytest.raises(UpstreamTimeout):
        await anext(stream)


async def test_a_whole_answer_is_in_time_however_slowly_it_is_read():
    """After the last event there is nothing left to be late."""
    seen = []
    async with aclosing(Deadline(ScriptedModel(["word"]), 0.05).stream(Query("x"))) as stream:
        async for event in stream:
            seen.append(event)
            if isinstance(event, StreamEnd):
                await asyncio.sleep(0.1)

    assert len(seen) == 2


async def test_a_cancelled_reader_is_cancelled_and_not_late():
    """Also where its time is up in the same moment."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        reader = asyncio.create_task(collect(Deadline(Stuck(["x"]), 0.005).stream(Query("x"))))
        loop.call_later(0.005, reader.cancel)
        await asyncio.wait([reader])
        assert reader.cancelled() or isinstance(reader.exception(), UpstreamTimeout)
    reader = asyncio.create_task(collect(Deadline(Stuck(["x"]), 3600).stream(Query("x"))))
    await asyncio.sleep(0.01)

    reader.cancel()
    await asyncio.wait([reader])

    assert reader.cancelled()


async def test_a_reader_that_was_late_once_can_go_on():
    """Its task is not left half cancelled."""
    with pytest.raises(UpstreamTimeout):
        await collect(Deadline(Stuck(["x"]), 0.01).stream(Query("x")))

    assert asyncio.current_task().cancelling() == 0
    async with asyncio.timeout(60):
        await asyncio.sleep(0)


async def test_the_callers_own_timeout_stays_a_timeout():
    """An outer, shorter limit is not taken for the model's."""
    model = Deadline(ScriptedModel(["late"], delay_s=3600), 1800)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await model.complete(Query("x"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await collect(model.stream(Query("x")))


async def test_a_timeout_from_inside_is_not_ours():
    """A `TimeoutError` that the model raises by itself is passed on as it is."""
    model = Deadline(ScriptedModel([TimeoutError("from a socket")]), 60)

    with pytest.raises(TimeoutError, match="from a socket"):
        await model.complete(Query("x"))
    with pytest.raises(TimeoutError, match="from a socket"):
        await collect(model.stream(Query("x")))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_limit_that_nothing_can_keep_is_refused(seconds):
    """At construction."""
    with pytest.raises(ConfigError, match="timeout_s"):
        Deadline(ScriptedModel(["x"]), seconds)


async def test_a_bare_wrapper_passes_everything_on():
    """Card, availability, answers and streams are the inner model's."""
    inner = ScriptedModel(["a b"])
    model = Wrapper(inner)

    answer = await model.complete(Query("x"))
    events, end = await collect(model.stream(Query("x")))

    assert model.card is inner.card
    assert model.unavailable() is None
    assert answer.text == end.text == "a b"
    assert events
    assert not any(isinstance(event, StreamEnd) for event in events)
