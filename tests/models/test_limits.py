"""A model gets no more calls than it may have, in the order in which they came."""

import asyncio
from contextlib import aclosing

import pytest
from contracts.chat_model import ChatModelContract
from hypothesis import given
from hypothesis import strategies as st
from support.obedient import obedient

from nearfar.errors import ConfigError, UpstreamRateLimited
from nearfar.models.limits import Limited
from nearfar.testing import ScriptedModel
from nearfar.types import Query


class TestLimitedKeepsTheContract(ChatModelContract):
    """Two calls at once, and enough of them a minute."""

    @pytest.fixture
    async def model(self):
        inner = ScriptedModel([obedient], confidence=0.9, delay_s=0.005)
        model = Limited(inner, concurrency=2, requests_per_minute=10_000)
        yield model
        await model.aclose()


class Counting(ScriptedModel):
    """Knows how many calls it has at once."""

    now = most = 0

    async def complete(self, query):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.001)
            return await super().complete(query)
        finally:
            self.now -= 1


class Time:
    """A clock that its own sleep moves."""

    now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)


async def test_no_more_calls_at_once_than_allowed():
    """Streams count as long as they are read."""
    inner = Counting(["a b"])
    model = Limited(inner, concurrency=3)

    async def stream():
        async with aclosing(model.stream(Query("x"))) as events:
            return [event async for event in events]

    await asyncio.gather(*(model.complete(Query("x")) for _ in range(20)), *(stream() for _ in range(20)))

    assert inner.most == 3
    assert len(inner.queries) == 40


async def test_an_open_stream_holds_its_place_until_it_is_closed():
    """And then frees it."""
    model = Limited(ScriptedModel(["a b c"]), concurrency=1)
    stream = model.stream(Query("x"))
    await anext(stream)
    waiting = asyncio.create_task(model.complete(Query("y")))
    await asyncio.sleep(0.01)
    assert not waiting.done()

    await stream.aclose()

    assert (await waiting).text == "a b c"


async def test_calls_go_in_the_order_in_which_they_came():
    """No call overtakes another."""
    inner = ScriptedModel(["x"])
    time = Time()
    model = Limited(inner, concurrency=1, requests_per_minute=3, clock=time, sleep=time.sleep)

    await asyncio.gather(*(model.complete(Query(str(i))) for i in range(10)))

    assert [query.text for query in inner.queries] == [str(i) for i in range(10)]


async def test_a_cancelled_wait_takes_no_place():
    """Neither a slot nor a place in the minute."""
    time = Time()
    asleep = asyncio.Event()

    async def for_ever(_):
        asleep.set()
        await asyncio.Event().wait()

    inner = ScriptedModel(["x"])
    model = Limited(inner, concurrency=1, requests_per_minute=1, clock=time, sleep=for_ever)
    await model.complete(Query("first"))
    waiting = asyncio.create_task(model.complete(Query("second")))
    await asleep.wait()

    waiting.cancel()
    await asyncio.wait([waiting])
    time.now = 60.0
    await model.complete(Query("third"))

    assert waiting.cancelled()
    assert [query.text for query in inner.queries] == ["first", "third"]


async def test_a_wait_longer_than_the_deadline_is_refused():
    """At once, with the time after which it would work."""
    time = Time()
    model = Limited(ScriptedModel(["x"]), requests_per_minute=1, clock=time, sleep=time.sleep)
    await model.complete(Query("x"))
    time.now = 20.0

    with pytest.raises(UpstreamRateLimited, match="'scripted' may begin 1 calls a minute") as caught:
        await model.complete(Query("x", deadline_s=5))

    assert caught.value.retry_after_s == 40.0
    assert time.now == 20.0


@given(limit=st.integers(1, 7), gaps=st.lists(st.floats(0, 90), min_size=1, max_size=40))
def test_no_sixty_seconds_have_more_calls_than_allowed(limit, gaps):
    """Whenever the calls come."""
    time = Time()
    begun = []

    def note(_):
        begun.append(time.now)
        return "x"

    model = Limited(ScriptedModel([note]), requests_per_minute=limit, clock=time, sleep=time.sleep)

    async def run():
        for gap in gaps:
            time.now += gap
            await model.complete(Query("x"))

    asyncio.run(run())

    assert len(begun) == len(gaps)
    for i, start in enumerate(begun[limit:]):
        assert start - begun[i] >= 60 - 1e-6


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"requests_per_minute": -1}])
def test_a_limit_that_lets_nothing_through_is_refused(options):
    """A model that can never be asked is a mistake in the config."""
    with pytest.raises(ConfigError, match=f"{next(iter(options))} of 'scripted'"):
        Limited(ScriptedModel(["x"]), **options)
