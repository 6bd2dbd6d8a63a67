"""Never more is spent than there is, whoever asks and whatever is killed."""

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import aclosing, closing, contextmanager, suppress

import pytest
from contracts.chat_model import ChatModelContract, collect
from hypothesis import given, settings
from hypothesis import strategies as st
from support.obedient import obedient

from nearfar.errors import (
    BudgetExceeded,
    ConfigError,
    UnsupportedOption,
    UpstreamRejected,
    UpstreamTimeout,
)
from nearfar.models.budget import BUDGETS, Budget, Budgeted
from nearfar.store import Schema, Store
from nearfar.testing import ScriptedModel
from nearfar.types import FREE, Answer, ModelCard, Price, Query, SamplingOptions, Usage

DEAR = ModelCard("dear", "far", max_output_tokens=1000, price=Price(0.0, 1000.0))  # $1 for the longest answer
WHOLE = Answer("all of it", usage=Usage(5, 1000))  # costs $1
SHORT = Answer("short", usage=Usage(5, 250))  # costs $0.25


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nearfar.db"


@pytest.fixture
def store(path):
    store = Store(path, [BUDGETS])
    yield store
    store.close()


def dear(*script, **options):
    return ScriptedModel(script, card=DEAR, **options)


class TestBudgetedKeepsTheContract(ChatModelContract):
    """With enough money it changes nothing."""

    @pytest.fixture
    async def model(self, store):
        card = ModelCard(
            "priced", "far", max_output_tokens=500, price=Price(1, 2), supports_tools=True, supports_logprobs=True
        )
        inner = ScriptedModel([obedient], card=card, delay_s=0.01)
        return Budgeted(inner, Budget(store, name="b", limit_usd=1e6))


async def test_two_hundred_at_once_on_a_budget_for_fifty(store):
    """Fifty are answered, nothing is overspent, and the rest say so before anything is sent."""
    inner = dear(WHOLE, delay_s=0.01)
    budget = Budget(store, name="b", limit_usd=50.0)
    model = Budgeted(inner, budget)

    done = await asyncio.gather(*(model.complete(Query("x")) for _ in range(200)), return_exceptions=True)

    assert sum(isinstance(each, Answer) for each in done) == 50
    assert sum(isinstance(each, BudgetExceeded) for each in done) == 150
    assert len(inner.queries) == 50
    assert await budget.spent() == 50.0


async def test_what_short_answers_give_back_is_spent_on_more(store):
    """At a quarter of the reservation, four times as many are served in the end."""
    inner = dear(SHORT)
    budget = Budget(store, name="b", limit_usd=10.0)
    model = Budgeted(inner, budget)

    served = 0
    for _ in range(60):
        done = await asyncio.gather(model.complete(Query("x")), return_exceptions=True)
        served += isinstance(done[0], Answer)

    assert served == 37  # the last reservation of $1 needs $1: at $9.25 there is $0.75
    assert await budget.spent() == 9.25


async def test_a_stream_settles_before_its_last_event(store):
    """Whoever has the whole answer sees what it has cost."""
    budget = Budget(store, name="b", limit_usd=2.0)
    model = Budgeted(dear(SHORT), budget)

    async with aclosing(model.stream(Query("x"))) as stream:
        await anext(stream)
        during = await budget.spent()
        await anext(stream)
        after = await budget.spent()

    assert (during, after) == (1.0, 0.25)


async def test_a_stream_closed_early_costs_its_reservation(store):
    """Nobody knows what the provider charges for it."""
    budget = Budget(store, name="b", limit_usd=2.0)

    async with aclosing(Budgeted(dear(Answer("a b c", usage=Usage(1, 3))), budget).stream(Query("x"))) as stream:
        await anext(stream)
    await store.flush()

    assert await budget.spent() == 1.0


async def test_a_cancelled_answer_costs_its_reservation(store):
    """By either door."""
    budget = Budget(store, name="b", limit_usd=2.0)
    begun = asyncio.Barrier(3)

    class Hanging(ScriptedModel):
        async def complete(self, query):
            await begun.wait()
            await asyncio.Event().wait()

    model = Budgeted(Hanging([WHOLE], card=DEAR), budget)
    calls = [asyncio.create_task(model.complete(Query("x"))), asyncio.create_task(collect(model.stream(Query("x"))))]
    await begun.wait()

    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await store.flush()

    assert await budget.spent() == 2.0


async def test_a_call_cancelled_while_it_reserves_costs_nothing(store):
    """Nothing was sent; whenever the cancellation comes."""
    budget = Budget(store, name="b", limit_usd=1.0)
    model = Budgeted(dear(WHOLE), budget)

    for _ in range(50):
        call = asyncio.create_task(model.complete(Query("x")))
        await asyncio.sleep(0)  # the reservation is queued
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
    await store.flush()

    assert await budget.spent() == 0.0
    assert model.inner.queries == []


@pytest.mark.parametrize(
    ("line", "cost_usd"),
    [
        (UpstreamTimeout("late", model="dear", may_have_cost=True), 1.0),
        (UpstreamRejected("no", model="dear", status=400), 0.0),
        (UnsupportedOption("no", param="seed"), 0.0),
        (RuntimeError("a bug"), 1.0),
        (Answer("no usage"), 1.0),
        (Answer("dearer than thought", usage=Usage(0, 1500)), 1.5),
        (Answer("kept", usage=Usage(0, 10), cost_usd=0.0, is_cached=True), 0.0),
    ],
    ids=["late", "rejected", "refused", "bug", "no usage", "dearer", "cached"],
)
@pytest.mark.parametrize("door", ["complete", "stream"])
async def test_what_each_end_costs(store, line, cost_usd, door):
    """What may have cost something counts in full, what cannot have gives its reservation back."""
    budget = Budget(store, name="b", limit_usd=2.0)
    model = Budgeted(dear(line), budget)

    call = model.complete(Query("x")) if door == "complete" else collect(model.stream(Query("x")))
    await asyncio.gather(call, return_exceptions=True)
    await store.flush()

    assert await budget.spent() == cost_usd


async def test_free_models_need_no_budget(store):
    """Nor does an empty budget stop them."""
    model = Budgeted(
        ScriptedModel(["free"], card=ModelCard("near", "near", price=FREE)), Budget(store, name="b", limit_usd=0)
    )

    assert (await model.complete(Query("x"))).text == "free"
    assert (await collect(model.stream(Query("x"))))[1].text == "free"


@pytest.mark.parametrize(
    ("card", "fix"),
    [
        (ModelCard("m", "far", max_output_tokens=10), "The price of 'm' is unknown"),
        (ModelCard("m", "far", price=Price(1, 1)), "The longest answer of 'm' is unknown"),
    ],
)
async def test_an_unknown_cost_is_refused_and_says_which_part(store, card, fix):
    """Unknown is not zero."""
    inner = ScriptedModel(["x"], card=card)
    model = Budgeted(inner, Budget(store, name="b", limit_usd=100))

    with pytest.raises(BudgetExceeded, match=fix):
        await model.complete(Query("x"))
    with pytest.raises(BudgetExceeded, match=fix):
        await collect(model.stream(Query("x")))

    assert inner.queries == []


async def test_a_refusal_says_what_is_left(store):
    """And what to do."""
    model = Budgeted(dear(SHORT), Budget(store, name="b", limit_usd=1.2, period="day"))
    await model.complete(Query("x"))

    with pytest.raises(BudgetExceeded, match=r"'b' has \$0\.95 of \$1\.2 left for this day \(UTC\).* may cost \$1\."):
        await model.complete(Query("x"))
    cheaper = await model.complete(Query("x", sampling=SamplingOptions(max_tokens=500)))

    assert cheaper.text == "short"


async def test_periods_start_anew(store):
    """A day's and a month's budget come back, a total does not."""
    now = [1_795_000_000.0]  # 2026-11-18 in UTC
    budgets = [
        Budget(store, name=period, limit_usd=1, period=period, clock=lambda: now[0])
        for period in ("day", "month", "total")
    ]
    held = [await budget.reserve(1) for budget in budgets]

    now[0] += 86400
    tomorrow = [await budget.spent() for budget in budgets]
    now[0] += 30 * 86400
    next_month = [await budget.spent() for budget in budgets]
    await budgets[0].settle(held[0], 0.5)
    now[0] -= 31 * 86400

    assert tomorrow == [0, 1, 1]
    assert next_month == [0, 0, 1]
    assert await budgets[0].spent() == 0.5  # settled in the period in which it was reserved


async def test_budgets_do_not_mix(store):
    """Each name has its own money."""
    a, b = (Budget(store, name=name, limit_usd=1) for name in "ab")

    await a.reserve(1)

    assert await b.spent() == 0
    await b.reserve(1)


async def test_settling_twice_counts_once(store):
    """Whatever the second time says."""
    budget = Budget(store, name="b", limit_usd=10)
    held = await budget.reserve(2)

    await budget.settle(held, 1)
    await budget.settle(held, 2)
    budget.forfeit(held)
    await store.flush()

    assert await budget.spent() == 1


#: What a float's last digits may add to a limit: a thousandth of a nano-dollar.
NOISE_USD = 1e-12


@settings(deadline=None, max_examples=50)
@given(
    limit=st.floats(0, 10),
    calls=st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=12),
)
def test_no_sequence_of_calls_overspends_and_no_cent_gets_lost(tmp_path_factory, limit, calls):
    """Whatever the amounts: spent and reserved never pass the limit, and settle to the sum of the costs."""

    async def run(store):
        budget = Budget(store, name="b", limit_usd=limit)
        open_calls = []
        for bound, share in calls:
            with suppress(BudgetExceeded):
                open_calls.append((await budget.reserve(bound), bound * share))
            assert await budget.spent() <= limit + NOISE_USD
        for held, cost in open_calls:
            await budget.settle(held, cost)
        total = sum(cost for _, cost in open_calls)
        assert total - 1e-9 <= await budget.spent() <= total + 1e-9 * (len(open_calls) + 1)

    store = Store(tmp_path_factory.mktemp("budget") / "b.db", [BUDGETS])
    try:
        asyncio.run(run(store))
    finally:
        store.close()


SPEND = textwrap.dedent(
    """
    import asyncio, sys
    from nearfar.errors import BudgetExceeded
    from nearfar.models.budget import BUDGETS, Budget, Budgeted
    from nearfar.store import Store
    from nearfar.testing import ScriptedModel
    from nearfar.types import Answer, ModelCard, Price, Query, Usage

    async def main(path, count, delay_s):
        card = ModelCard("dear", "far", max_output_tokens=1000, price=Price(0.0, 1000.0))
        inner = ScriptedModel([Answer("x", usage=Usage(0, 1000))], card=card, delay_s=delay_s)
        model = Budgeted(inner, Budget(Store(path, [BUDGETS]), name="b", limit_usd=50.0))
        calls = [asyncio.create_task(model.complete(Query("x"))) for _ in range(count)]
        while len(inner.queries) < count and not all(call.done() for call in calls):
            await asyncio.sleep(0.001)
        print("begun", flush=True)
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, Answer | BudgetExceeded) for each in done), done
        print(sum(isinstance(each, Answer) for each in done), flush=True)

    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
    """
)


@contextmanager
def spenders(number, path, count, delay_s):
    """Other processes that spend from the same budget of $50, a dollar a call; killed in the end if need be."""
    command = [sys.executable, "-c", SPEND, str(path), str(count), str(delay_s)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def test_two_processes_share_one_budget(path, store):
    """A hundred calls each, fifty dollars together."""
    with spenders(2, path, 100, 0.005) as processes:
        served = [int(process.communicate(timeout=60)[0].split()[1]) for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    assert sum(served) == 50
    assert await Budget(store, name="b", limit_usd=50).spent() == 50.0


def reservations(path):
    """The amounts that are reserved, in dollars."""
    with closing(sqlite3.connect(path)) as database:
        return [nano_usd / 1e9 for (nano_usd,) in database.execute("SELECT nano_usd FROM budget_reservations")]


async def test_a_killed_process_leaves_its_reservations_counted(path, store, caplog):
    """Its calls may have been charged for; nobody can find out. The next look settles them as what they may cost."""
    with spenders(1, path, 5, 3600) as (process,):
        assert process.stdout.readline() == "begun\n"
        process.kill()  # SIGKILL
        process.wait()
        left = reservations(path)
        budget = Budget(store, name="b", limit_usd=50)
        counted = await budget.spent()
        await budget.settle(await budget.reserve(1.0), 0.5)

    assert (left, counted) == ([1.0] * 5, 5.0)
    assert reservations(path) == []
    assert await budget.spent() == 5.5
    assert "$5 of the budget 'b', reserved by killed processes, counts as spent" in caplog.text


async def test_what_a_killed_process_had_reserved_can_be_given_back(path, store, caplog):
    """Where the owner would rather have the money: not while the process lives, and at once when it does not."""
    with spenders(1, path, 5, 3600) as (process,):
        assert process.stdout.readline() == "begun\n"
        budget = Budget(store, name="b", limit_usd=5, killed_calls="returned")
        with pytest.raises(BudgetExceeded):
            await budget.reserve(1.0)
        alive = reservations(path)
        process.kill()  # SIGKILL
        process.wait()
        held = await budget.reserve(1.0)

    assert alive == [1.0] * 5
    assert reservations(path) == [1.0]
    assert await budget.spent() == 1.0
    await budget.settle(held, 0.25)
    assert await budget.spent() == 0.25
    assert "is given back" in caplog.text


async def test_reservations_of_the_living_stay(path, store):
    """Of other processes, and of another budget object of this one, whatever is killed beside them."""
    other = Budget(store, name="b", limit_usd=50)
    held = await other.reserve(7.0)
    with spenders(2, path, 5, 3600) as (living, killed):
        assert (living.stdout.readline(), killed.stdout.readline()) == ("begun\n", "begun\n")
        killed.kill()
        killed.wait()
        budget = Budget(store, name="b", limit_usd=50, killed_calls="returned")
        await budget.settle(await budget.reserve(1.0), 0.0)
        left = sorted(reservations(path))

    assert left == [1.0] * 5 + [7.0]
    await other.settle(held, 2.0)


async def test_reservations_that_nobody_owns_end_after_a_day(path):
    """Those of an earlier nearfar, whose table had no owners."""
    Store(path, [Schema(BUDGETS.component, BUDGETS.migrations[:1])]).close()
    with closing(sqlite3.connect(path)) as database:
        rows = [("old", "b", "total", 3 * 10**9, 1000.0), ("new", "b", "total", 2 * 10**9, 80_000.0)]
        database.executemany("INSERT INTO budget_reservations VALUES (?, ?, ?, ?, ?)", rows)
        database.commit()
    store = Store(path, [BUDGETS])
    budget = Budget(store, name="b", limit_usd=50, killed_calls="returned", clock=lambda: 90_000.0)

    await budget.settle(await budget.reserve(1.0), 0.0)

    assert reservations(path) == [2.0]
    store.close()


async def test_a_store_that_fails_after_the_answer_costs_no_answer(path, caplog):
    """It is paid for; its reservation goes on counting."""
    store = Store(path, [BUDGETS])
    budget = Budget(store, name="b", limit_usd=10)

    class Closing(ScriptedModel):
        async def complete(self, query):
            store.close()
            return await super().complete(query)

    answer = await Budgeted(Closing([SHORT], card=DEAR), budget).complete(Query("x"))

    assert answer.text == "short"
    assert "stays at its reservation" in caplog.text
    again = Store(path, [BUDGETS])
    assert await Budget(again, name="b", limit_usd=10).spent() == 1.0
    again.close()


@pytest.mark.parametrize("limit", [-1, float("nan"), float("inf")])
def test_a_limit_that_is_no_amount_is_refused(store, limit):
    """At construction."""
    with pytest.raises(ConfigError, match="limit_usd of the budget 'b'"):
        Budget(store, name="b", limit_usd=limit)
