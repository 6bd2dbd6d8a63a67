"""A model that keeps failing is left alone, and comes back by itself."""

import asyncio
from contextlib import aclosing

import pytest
from contracts.chat_model import ChatModelContract, collect
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.obedient import obedient

from nearfar.errors import (
    CircuitOpen,
    ConfigError,
    UnsupportedOption,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from nearfar.models.circuit_breaker import CircuitBroken
from nearfar.testing import ScriptedModel
from nearfar.types import Query

DOWN = UpstreamUnavailable("down", model="scripted", status=503)
QUERY = Query("x")


class TestCircuitBrokenKeepsTheContract(ChatModelContract):
    """With the circuit closed it changes nothing."""

    @pytest.fixture
    async def model(self):
        model = CircuitBroken(ScriptedModel([obedient], confidence=0.9, delay_s=0.01))
        yield model
        await model.aclose()


class Clock:
    """Seconds that pass when told."""

    now = 1000.0

    def __call__(self):
        return self.now


async def fail(model, times=1):
    for _ in range(times):
        with pytest.raises(UpstreamError):
            await model.complete(QUERY)


@pytest.fixture
def clock():
    return Clock()


async def test_repeated_failures_open_the_circuit(clock):
    """Nothing is sent while it is open, and the reason has the seconds left."""
    inner = ScriptedModel([DOWN])
    model = CircuitBroken(inner, failures=3, cool_down_s=30, clock=clock)
    await fail(model, 3)
    clock.now += 12

    with pytest.raises(CircuitOpen, match="3 failures in a row, 18 s left"):
        await model.complete(QUERY)
    with pytest.raises(CircuitOpen):
        await collect(model.stream(QUERY))

    assert len(inner.queries) == 3
    assert model.unavailable() == "circuit open after 3 failures in a row, 18 s left"


async def test_a_success_between_failures_keeps_it_closed(clock):
    """Only failures in a row count."""
    model = CircuitBroken(ScriptedModel([DOWN, DOWN, "ok", DOWN, DOWN, "ok"]), failures=3, clock=clock)

    await fail(model, 2)
    await model.complete(QUERY)
    await fail(model, 2)

    assert (await model.complete(QUERY)).text == "ok"


async def test_one_probe_goes_through_and_its_success_closes_the_circuit(clock):
    """Others are held off while it runs."""
    inner = ScriptedModel([DOWN, "back"], delay_s=0.01)
    model = CircuitBroken(inner, failures=1, cool_down_s=30, clock=clock)
    await fail(model)
    clock.now += 30
    assert model.unavailable() is None

    probe = asyncio.create_task(model.complete(QUERY))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen, match="half open"):
        await model.complete(QUERY)
    answer = await probe

    assert answer.text == "back"
    assert model.unavailable() is None
    assert (await model.complete(QUERY)).text == "back"


async def test_a_failed_probe_opens_it_for_as_long_again(clock):
    """From the probe's end on."""
    model = CircuitBroken(ScriptedModel([DOWN]), failures=2, cool_down_s=30, clock=clock)
    await fail(model, 2)
    clock.now += 31

    await fail(model)

    assert model.unavailable() == "circuit open after 3 failures in a row, 30 s left"


async def test_a_cancelled_probe_frees_its_place(clock):
    """Cancelling says nothing about the model."""
    inner = ScriptedModel([DOWN, "slow", "back"], delay_s=0.0)
    model = CircuitBroken(inner, failures=1, cool_down_s=30, clock=clock)
    await fail(model)
    clock.now += 30

    probe = asyncio.create_task(model.complete(QUERY))
    await asyncio.sleep(0)
    probe.cancel()
    await asyncio.wait([probe])

    assert probe.cancelled()
    assert (await model.complete(QUERY)).text == "back"


async def test_a_probe_whose_stream_is_closed_early_frees_its_place(clock):
    """As where the client goes away."""
    model = CircuitBroken(ScriptedModel([DOWN, "a b c"]), failures=1, cool_down_s=30, clock=clock)
    await fail(model)
    clock.now += 30

    async with aclosing(model.stream(QUERY)) as stream:
        await anext(stream)
        with pytest.raises(CircuitOpen):
            await model.complete(QUERY)

    assert (await model.complete(QUERY)).text == "a b c"


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRejected("no", model="scripted", status=400),
        UnsupportedOption("no", param="seed"),
        UpstreamRateLimited("our own limit", model="scripted"),
        RuntimeError("a bug of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_is_not_the_servers_failure_never_opens_it(clock, error):
    """However often it happens."""
    model = CircuitBroken(ScriptedModel([error]), failures=1, clock=clock)

    for _ in range(5):
        with pytest.raises(type(error)):
            await model.complete(QUERY)

    assert model.unavailable() is None


async def test_a_server_that_always_says_slow_down_is_left_alone(clock):
    """429 from the server counts; it asks for exactly that."""
    model = CircuitBroken(
        ScriptedModel([UpstreamRateLimited("slow", model="scripted", status=429)]), failures=2, clock=clock
    )

    await fail(model, 2)

    assert model.unavailable()


async def test_calls_from_before_it_opened_do_not_close_or_prolong_it(clock):
    """They say nothing about now."""
    inner = ScriptedModel(["early", DOWN], delay_s=0.02)
    model = CircuitBroken(inner, failures=1, cool_down_s=30, clock=clock)
    early = asyncio.create_task(model.complete(QUERY))
    await asyncio.sleep(0)

    await fail(model)
    await early

    assert model.unavailable()


async def test_the_inner_models_own_reason_shows_through():
    """A closed circuit is no promise that the model is there."""

    class Away(ScriptedModel):
        def unavailable(self):
            return "weights not there"

    assert CircuitBroken(Away(["x"])).unavailable() == "weights not there"


@pytest.mark.parametrize("options", [{"failures": 0}, {"cool_down_s": 0}])
def test_a_breaker_that_cannot_work_is_refused(options):
    """At construction."""
    with pytest.raises(ConfigError, match="circuit breaker of 'scripted'"):
        CircuitBroken(ScriptedModel(["x"]), **options)


class Breaker(RuleBasedStateMachine):
    """The breaker against a model of it: a count of failures in a row and the time it opened."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.line = "ok"
        inner = ScriptedModel([lambda _: self.line])
        self.sent = inner.queries
        self.breaker = CircuitBroken(inner, failures=3, cool_down_s=10, clock=self.clock)
        self.failures, self.opened_at = 0, None

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(works=st.booleans())
    def call(self, works):
        self.line = "ok" if works else DOWN
        is_open = self.opened_at is not None and self.clock.now < self.opened_at + 10
        before = len(self.sent)
        try:
            asyncio.run(self.breaker.complete(QUERY))
        except CircuitOpen:
            assert is_open
            return
        except UpstreamUnavailable:
            self.failures += 1
            if self.failures >= 3:
                self.opened_at = self.clock.now
        else:
            self.failures, self.opened_at = 0, None
        assert not is_open
        assert len(self.sent) == before + 1

    @invariant()
    def says_what_it_does(self):
        is_open = self.opened_at is not None and self.clock.now < self.opened_at + 10
        assert bool(self.breaker.unavailable()) == is_open


TestBreaker = Breaker.TestCase
TestBreaker.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
