"""What is learned from outcomes: kept, shared by processes, revised, watched."""

import asyncio
import logging
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nearfar.router.bandit import LinearReward, ThompsonBandit
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.learning import LEARNING, Learning, LiveBandit, LiveMonitor
from nearfar.router.outcomes import OutcomeLog
from nearfar.store import Store
from nearfar.types import Decision, Routing

TIERS = ("near", "far")


def decided(number, *, tier="near", routing=None, reason="confident", policy="p@1", cost_usd=0.0):
    """A decision on which an outcome may come."""
    return Decision(
        f"{number:028x}", 1.0, "answered", reason, "python", "auto", tier, tier, 0.9, 0.5, True, policy, 1.0,
        (), (), (), cost_usd, False, {}, {}, routing=routing,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "nearfar.db", [DECISIONS, LEARNING])
    yield store
    store.close()


def bandit(**options):
    return LiveBandit("auto", ThompsonBandit.over(TIERS, ["length"], **options))


def watched(**options):
    return LiveMonitor("auto", "near", "p@1", **{"alpha": 0.1, **options})


async def told(store, learning, decisions, values, **options):
    """The decisions, logged and each given its outcome."""
    log = SqliteDecisionLog(store)
    outcomes = OutcomeLog(store, log, learning)
    for decision in decisions:
        log.submit(decision)
    await log.flush()
    for decision, value in zip(decisions, values, strict=True):
        await outcomes.record(decision.id, value, **options)


def chosen(live, tier, length=0.5):
    return Routing(live.label, tier, 0.5, {"near": 0.5, "far": 0.5}, signals={"length": length})


async def test_a_bandit_learns_from_outcomes_and_survives(store):
    """What it learned is in the store: another object of the same shape begins where it stopped."""
    live = bandit()
    decisions = [decided(i, routing=chosen(live, TIERS[i % 2])) for i in range(60)]

    await told(store, Learning(store, [live]), decisions, [float(i % 2) for i in range(60)])
    heir = bandit()
    await Learning(store, [heir]).refresh()

    for one in (live, heir):
        shares = one.choose({"length": 0.5}, {}, among=TIERS, draw=random.Random(0)).propensities
        assert shares["far"] > 0.9
        assert one.num_outcomes == {"near": 30, "far": 30}


async def test_a_changed_outcome_changes_what_was_learned(store):
    """Told wrong and then right ends where told right at once does; a second source is averaged in."""
    live, sure = bandit(), LinearReward.prior(2)
    learning = Learning(store, [live])
    decision = decided(1, routing=chosen(live, "near"))

    await told(store, learning, [decision], [0.0])
    outcomes = OutcomeLog(store, SqliteDecisionLog(store), learning)
    await outcomes.record(decision.id, 1.0)
    await outcomes.record(decision.id, 0.5, source="judge")

    sure.update([1.0, 0.5], 0.75)
    assert live._bandit.beliefs["near"].weights == pytest.approx(sure.weights)
    assert live.num_outcomes == {"near": 1, "far": 0}


async def test_others_choices_teach_it_nothing(store):
    """A bandit of other features, and decisions that nobody routed, are passed over."""
    live = bandit()
    other = LiveBandit("auto", ThompsonBandit.over(TIERS, ["length", "turns"]))
    decisions = [decided(1), decided(2, routing=chosen(other, "near"))]

    await told(store, Learning(store, [live]), decisions, [1.0, 1.0])

    assert other.label != live.label
    assert live.num_outcomes == {"near": 0, "far": 0}


async def test_a_tier_that_may_not_take_the_query_is_not_drawn(store):
    """The probabilities are among those that may, and add up to one."""
    found = bandit().choose({"length": 0.5}, {}, among=["far"], draw=random.Random(0))

    assert (found.model, found.propensities) == ("far", {"far": 1.0})


def test_linucb_takes_the_highest_bound():
    """The best known one gets all but the floor; ties are split."""
    learned = ThompsonBandit.over(TIERS, [], rule="linucb", floor=0.1)
    even = learned.propensities({})
    for _ in range(50):
        learned.learn({}, "near", 0.2)
        learned.learn({}, "far", 0.9)

    assert even == {"near": 0.5, "far": 0.5}
    assert learned.propensities({}) == pytest.approx({"near": 0.1, "far": 0.9})


SCRIPT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_learning import *

async def main():
    store = Store(Path(sys.argv[1]), [DECISIONS, LEARNING])
    live, watch = bandit(), watched()
    first = int(sys.argv[3])
    decisions = [decided(first + i, routing=chosen(live, TIERS[i % 2])) for i in range(40)]
    await told(store, Learning(store, [live, watch]), decisions, [0.5] * 40)
    store.close()

asyncio.run(main())
"""


def test_two_processes_learn_into_one_state(store):
    """Nothing that either hears is lost, though both change the same rows at once."""
    here = str(Path(__file__).parent)
    running = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(store.path), here, str(first)]) for first in (1000, 2000)
    ]
    codes = [process.wait(timeout=100) for process in running]
    live, watch = bandit(), watched()

    asyncio.run(Learning(store, [live, watch]).refresh())

    assert codes == [0, 0]
    assert live.num_outcomes == {"near": 40, "far": 40}
    assert watch.num_outcomes == 80


async def test_wrong_answers_raise_an_alarm_that_stays(store, caplog):
    """It is logged once, another process finds it, and a new version of the policy begins without it."""
    watch = watched()
    with caplog.at_level(logging.WARNING):
        await told(store, Learning(store, [watch]), [decided(i) for i in range(60)], [0.0] * 60)
    heir, successor = watched(), LiveMonitor("auto", "near", "p@2", alpha=0.1)
    learning = Learning(store, [heir, successor])
    await learning.refresh()

    assert watch.alarm.kind == heir.alarm.kind == "errors"
    assert successor.alarm is None
    assert [raised.tier for raised in learning.alarms] == ["near"]
    assert sum("alarm (errors)" in record.message for record in caplog.records) == 2  # once in each object


async def test_only_accepted_answers_of_the_policy_are_tested(store):
    """What another tier gave, what was the last tier's, and what another policy accepted say nothing about it."""
    watch = watched()
    decisions = [decided(1, tier="far"), decided(2, reason="last_tier"), decided(3, policy="q@1")]

    await told(store, Learning(store, [watch]), decisions, [0.0] * 3)
    await told(store, Learning(store, [watch]), [decided(4)], [0.0])
    await told(store, Learning(store, [watch]), [], [])
    outcomes = OutcomeLog(store, SqliteDecisionLog(store), Learning(store, [watch]))
    await outcomes.record(decided(4).id, 1.0)  # it has its outcome already

    assert watch.num_outcomes == 1


async def test_a_shift_of_the_signal_raises_an_alarm(store):
    """Signals beyond the labelled ones do; signals like them do not; those that wait are written at the end."""
    draw = random.Random(1)
    reference = [draw.gauss(0, 1) for _ in range(200)]
    same, other = (
        LiveMonitor("auto", tier, "p@1", alpha=None, signal="mean_logprob", reference=reference) for tier in TIERS
    )
    learning = Learning(store, [same, other])
    for _ in range(400):
        learning.see(same, {"mean_logprob": draw.gauss(0, 1)})
        learning.see(other, {"mean_logprob": draw.gauss(2, 1)})
        learning.see(other, {"another": 1.0})

    await learning.aclose()
    await store.flush()
    await learning.refresh()

    assert same.num_signals == other.num_signals == 400
    assert same.alarm is None
    assert other.alarm.kind == "shift"


async def test_the_shift_test_begins_anew_and_still_sees_a_late_shift(store):
    """After ten thousand signals that were as before it is small again; a shift then is not hidden by the past."""
    draw = random.Random(2)
    reference = [draw.gauss(0, 1) for _ in range(100)]
    monitor = LiveMonitor("auto", "near", "p@1", alpha=None, signal="s", reference=reference)
    learning = Learning(store, [monitor])

    async def see(n, mean):
        for _ in range(n):
            learning.see(monitor, {"s": draw.gauss(mean, 1)})
        await learning.aclose()
        await store.flush()
        await learning.refresh()

    await see(10_100, 0.0)
    before = monitor.alarm, monitor.num_signals
    await see(300, 2.0)

    assert before == (None, 100)
    assert monitor.alarm.kind == "shift"
    assert monitor.alarm.false_alarm_rate == pytest.approx(0.05 * 6 / (3.14159265 * 2) ** 2)


async def test_a_state_that_cannot_be_read_costs_the_learning_not_the_outcome(store, caplog):
    """The outcome is kept and the fault reported."""
    live = bandit()
    await store.write(lambda c: c.execute("INSERT INTO learned VALUES (?, 1, ?, 0)", (live.name, b"{")))
    decision = decided(1, routing=chosen(live, "near"))
    log = SqliteDecisionLog(store)
    log.submit(decision)
    await log.flush()

    await OutcomeLog(store, log, Learning(store, [live])).record(decision.id, 1.0)

    assert [o.value for o in await OutcomeLog(store, log).of(decision.id)] == [1.0]
    assert "nothing was learned" in caplog.text
    assert "is not used" in caplog.text


async def test_the_configs_budget_holds_for_what_was_learned_before(store):
    """The state keeps the beliefs; floor, rule and budget are those of now."""
    live = bandit()
    await told(store, Learning(store, [live]), [decided(1, routing=chosen(live, "near"))], [1.0])
    later = bandit(floor=0.2, budget=0.5, rule="linucb")

    await Learning(store, [later]).refresh()

    kept = later._bandit
    assert (kept.floor, kept.budget, kept.rule) == (0.2, 0.5, "linucb")
    assert later.num_outcomes["near"] == 1
