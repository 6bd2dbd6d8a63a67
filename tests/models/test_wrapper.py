"""The wrappers together, in the order in which the wiring puts them."""

import asyncio
import random

import pytest
from contracts.chat_model import ChatModelContract, ask, settled, tasks
from support.obedient import obedient

from nearfar.errors import (
    BudgetExceeded,
    NearfarError,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from nearfar.models.budget import BUDGETS, Budget, Budgeted
from nearfar.models.cache import CACHE, Cached
from nearfar.models.circuit_breaker import CircuitBroken
from nearfar.models.deadline import Deadline
from nearfar.models.limits import Limited
from nearfar.models.retry import Retried
from nearfar.models.wrapper import Wrapper
from nearfar.store import Store
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, ModelCard, Price, Query, TextDelta, Usage

CARD = ModelCard(
    "far",
    "far",
    max_output_tokens=1000,
    price=Price(0.0, 1000.0),
    supports_logprobs=True,
    supports_tools=True,
    supports_json_schema=True,
)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "nearfar.db", [BUDGETS, CACHE])
    yield store
    store.close()


def wrapped(inner, store, *, limit_usd, **retry):
    """The wiring's order, outermost first: cache, budget, retries, breaker, limits, deadline."""
    budget = Budget(store, name="all", limit_usd=limit_usd)
    limited = Limited(Deadline(inner, 60), concurrency=4)
    return Cached(Budgeted(Retried(CircuitBroken(limited, failures=1000), **retry), budget), store), budget


class TestAllWrappersTogetherKeepTheContract(ChatModelContract):
    """Nothing that one does breaks what another promises."""

    @pytest.fixture
    async def model(self, store):
        model, _ = wrapped(ScriptedModel([obedient], card=CARD, delay_s=0.005), store, limit_usd=1e6)
        yield model
        await model.aclose()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner, _: Wrapper(inner),
        lambda inner, _: Deadline(inner, 60),
        lambda inner, _: Retried(inner),
        lambda inner, _: CircuitBroken(inner),
        lambda inner, _: Limited(inner, 1, 1000),
        lambda inner, store: Cached(inner, store),
        lambda inner, store: Budgeted(inner, Budget(store, name="b", limit_usd=10)),
    ],
    ids=["Wrapper", "Deadline", "Retried", "CircuitBroken", "Limited", "Cached", "Budgeted"],
)
async def test_closing_a_stream_closes_the_inner_one_at_once(wrap, store):
    """Not when the garbage collector comes by: an upstream call is hanging on it."""
    was_closed = False

    class Open(ScriptedModel):
        async def stream(self, query):
            nonlocal was_closed
            try:
                yield TextDelta("a")
                yield TextDelta("b")
            finally:
                was_closed = True

    stream = wrap(Open(["x"], card=CARD), store).stream(Query("x"))
    await anext(stream)

    await stream.aclose()

    assert was_closed


async def test_a_thousand_calls_with_faults_are_all_answered_or_refused_and_never_overspent(store):
    """Answers, failures of every kind, cancellations and early goodbyes: the books are right at the end."""
    rng = random.Random(7)
    charged = []  # what the provider would bill, in dollars

    def line(_):
        kind = rng.randrange(6)
        if kind == 0:
            return UpstreamUnavailable("down", model="far", status=503)
        if kind == 1:
            return UpstreamRateLimited("slow", model="far", status=429, retry_after_s=0.001)
        if kind == 2:
            return UpstreamRejected("no", model="far", status=400)
        tokens = rng.randrange(1, 1000)
        charged.append(tokens / 1000)
        if kind == 3:
            return UpstreamTimeout("late", model="far", may_have_cost=True)
        return Answer("some words of it", usage=Usage(3, tokens))

    inner = ScriptedModel([line], card=CARD, delay_s=0.0005)
    model, budget = wrapped(inner, store, limit_usd=100.0, first_wait_s=0.001)
    before = tasks()

    async def one(i):
        call = asyncio.create_task(ask(model, Query(str(i)), "stream" if i % 2 else "complete"))
        if i % 7 == 0:
            await asyncio.sleep(rng.random() * 0.01)
            call.cancel()
        (done,) = await asyncio.gather(call, return_exceptions=True)
        return done

    done = await asyncio.gather(*(one(i) for i in range(1000)))
    await settled(before)
    await store.flush()

    assert all(isinstance(each, Answer | NearfarError | asyncio.CancelledError) for each in done)
    answered = [each for each in done if isinstance(each, Answer)]
    assert answered
    assert any(isinstance(each, BudgetExceeded) for each in done)
    assert any(isinstance(each, UpstreamError) for each in done)
    spent = await budget.spent()
    assert sum(answer.cost_usd for answer in answered) <= spent <= 100.0
    assert sum(charged) <= spent + 1e-6
