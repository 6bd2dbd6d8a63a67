"""Passing failures are tried again, and nothing else is."""

import asyncio

import pytest
from contracts.chat_model import ChatModelContract, collect
from hypothesis import given
from hypothesis import strategies as st
from support.obedient import obedient

from nearfar.errors import (
    CircuitOpen,
    ConfigError,
    MalformedAnswer,
    UnsupportedOption,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from nearfar.models.retry import Retried
from nearfar.testing import ScriptedModel
from nearfar.types import ModelCard, Price, Query, TextDelta


class TestRetriedKeepsTheContract(ChatModelContract):
    """Without failures it changes nothing."""

    @pytest.fixture
    async def model(self):
        model = Retried(ScriptedModel([obedient], confidence=0.9, delay_s=0.01))
        yield model
        await model.aclose()


class Waits(list):
    """Notes the waits that were asked for, and does not wait."""

    async def __call__(self, seconds):
        self.append(seconds)
        await asyncio.sleep(0)


def down(**facts):
    return UpstreamUnavailable("down", model="scripted", status=503, **facts)


async def by_complete(model, query):
    return await model.complete(query)


async def by_stream(model, query):
    return (await collect(model.stream(query)))[1]


@pytest.fixture(params=[by_complete, by_stream])
def ask(request):
    """Either door."""
    return request.param


async def test_a_passing_failure_is_tried_again(ask):
    """The second or third try answers."""
    waits = Waits()
    model = Retried(ScriptedModel([down(), down(), "fine"]), attempts=3, sleep=waits)

    answer = await ask(model, Query("x"))

    assert answer.text == "fine"
    assert len(waits) == 2


async def test_the_last_failure_is_raised(ask):
    """After the last try there is no further wait."""
    waits = Waits()
    inner = ScriptedModel([down()])

    with pytest.raises(UpstreamUnavailable, match="down"):
        await ask(Retried(inner, attempts=3, sleep=waits), Query("x"))

    assert len(inner.queries) == 3
    assert len(waits) == 2


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRejected("no", model="scripted", status=400),
        MalformedAnswer("what", model="scripted"),
        CircuitOpen("open", model="scripted"),
        UnsupportedOption("no", param="seed"),
        RuntimeError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_waiting_cannot_cure_is_raised_at_once(ask, error):
    """One try only."""
    inner = ScriptedModel([error, "never"])

    with pytest.raises(type(error)):
        await ask(Retried(inner, sleep=Waits()), Query("x"))

    assert len(inner.queries) == 1


async def test_nothing_is_paid_for_twice(ask):
    """A call that may have cost something is tried again only where the model is free."""
    late = UpstreamTimeout("late", model="m", may_have_cost=True)
    dear = ScriptedModel([late, "again"], card=ModelCard("m", "far", price=Price(1, 1)))
    unpriced = ScriptedModel([late, "again"], card=ModelCard("m", "far"))
    free = ScriptedModel([late, "again"])

    for model in (dear, unpriced):
        with pytest.raises(UpstreamTimeout):
            await ask(Retried(model, sleep=Waits()), Query("x"))
    answer = await ask(Retried(free, sleep=Waits()), Query("x"))

    assert answer.text == "again"
    assert [len(model.queries) for model in (dear, unpriced, free)] == [1, 1, 2]


async def test_retry_after_is_honoured(ask):
    """The wait is never shorter than the server asked for."""
    waits = Waits()
    limited = UpstreamRateLimited("slow down", model="scripted", status=429, retry_after_s=7.0)
    model = Retried(ScriptedModel([limited, "fine"]), first_wait_s=0.5, sleep=waits)

    await ask(model, Query("x"))

    assert 7.0 <= waits[0] <= 7.5


async def test_a_long_retry_after_is_not_waited_for(ask):
    """The caller has better things to do: another tier."""
    limited = UpstreamRateLimited("tomorrow", model="scripted", status=429, retry_after_s=86400.0)
    waits = Waits()

    with pytest.raises(UpstreamRateLimited):
        await ask(Retried(ScriptedModel([limited, "never"]), longest_wait_s=30, sleep=waits), Query("x"))

    assert waits == []


async def test_a_wait_beyond_the_deadline_is_not_begun(ask):
    """The query would be late anyway."""
    limited = UpstreamRateLimited("slow down", model="scripted", status=429, retry_after_s=20.0)
    waits = Waits()

    with pytest.raises(UpstreamRateLimited):
        await ask(Retried(ScriptedModel([limited, "never"]), sleep=waits), Query("x", deadline_s=10))

    assert waits == []


async def test_a_stream_that_has_begun_is_not_restarted():
    """Its reader would see the beginning twice."""

    class Breaking(ScriptedModel):
        async def stream(self, query):
            self.queries.append(query)
            yield TextDelta("One")
            raise down()

    inner = Breaking(["x"])
    stream = Retried(inner, sleep=Waits()).stream(Query("x"))

    assert await anext(stream) == TextDelta("One")
    with pytest.raises(UpstreamUnavailable):
        await anext(stream)

    assert len(inner.queries) == 1


async def test_cancelling_while_it_waits_ends_the_call():
    """No try follows."""
    waiting = asyncio.Event()

    async def for_ever(_):
        waiting.set()
        await asyncio.Event().wait()

    inner = ScriptedModel([down(), "never"])
    call = asyncio.create_task(Retried(inner, sleep=for_ever).complete(Query("x")))
    await waiting.wait()

    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert len(inner.queries) == 1


@given(attempts=st.integers(2, 12), first=st.floats(0.01, 10), most=st.floats(0.01, 60))
def test_waits_stay_inside_a_range_that_doubles_up_to_a_limit(attempts, first, most):
    """Full jitter: anything from nothing to the range's end."""
    waits = Waits()
    model = Retried(ScriptedModel([down()]), attempts=attempts, first_wait_s=first, backoff_max_s=most, sleep=waits)

    with pytest.raises(UpstreamUnavailable):
        asyncio.run(model.complete(Query("x")))

    assert len(waits) == attempts - 1
    for i, wait in enumerate(waits):
        assert 0 <= wait <= min(most, first * 2**i)


def test_no_attempts_are_refused():
    """A model that is never asked is a mistake in the config."""
    with pytest.raises(ConfigError, match="attempts of 'scripted'"):
        Retried(ScriptedModel(["x"]), attempts=0)
