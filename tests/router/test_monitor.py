"""Monitors: rarely an alarm with nothing wrong, soon one when something is, and a tier that defers after it."""

import math
import random

import msgspec
import pytest

from nearfar.errors import ConfigError, DataError
from nearfar.router.monitor import ErrorMonitor, Guarded, Monitor, ShiftMonitor
from nearfar.router.scorers import MeanProbability


def delay(monitor, error, *, seed, longest):
    """Outcomes until the alarm, at an error rate; None: none came."""
    draw = random.Random(seed)
    return next((i for i in range(longest) if monitor.observe(float(draw.random() >= error))), None)


def test_false_alarms_keep_to_the_stated_rate():
    """At an error of exactly alpha, few of many monitors ever raise an alarm."""
    rate, streams = 0.1, 150
    alarms = sum(
        delay(ErrorMonitor(alpha=0.1, false_alarm_rate=rate), 0.1, seed=seed, longest=1500) is not None
        for seed in range(streams)
    )

    assert alarms / streams <= rate + 2 * math.sqrt(rate * (1 - rate) / streams)


def test_a_drop_is_seen_however_late_it_comes():
    """Ten points more errors raise the alarm within some hundreds of outcomes, after a long good time, too."""
    for good in (0, 3000):
        monitor = ErrorMonitor(alpha=0.05, false_alarm_rate=0.01)
        assert delay(monitor, 0.02, seed=1, longest=good) is None

        found = delay(monitor, 0.15, seed=2, longest=1000)

        assert found is not None
        assert monitor.alarm.kind == "errors"
        assert monitor.alarm.after == good + found + 1


def test_an_alarm_stays():
    """Good outcomes after an alarm do not take it back, and are still counted."""
    monitor = ErrorMonitor(alpha=0.05)
    assert delay(monitor, 1.0, seed=0, longest=100) is not None
    raised, n = monitor.alarm, monitor.n

    for _ in range(500):
        monitor.observe(1.0)

    assert monitor.alarm.after == raised.after
    assert monitor.n == n + 500


def test_a_shift_is_seen_and_order_alone_is_not():
    """Signals of another distribution raise the alarm; the same distribution, with ties, does not."""
    draw = random.Random(0)

    def usual():
        return round(draw.betavariate(8, 2), 2)

    monitor = ShiftMonitor(seen=[usual() for _ in range(500)], false_alarm_rate=0.01)
    assert not any(monitor.observe(usual()) for _ in range(1500))

    assert any(monitor.observe(round(draw.betavariate(5, 3), 2)) for _ in range(400))
    assert "Label anew" in monitor.alarm.message


def test_signals_that_only_spread_are_a_shift():
    """The same mean with wider tails is seen as well."""
    draw = random.Random(0)
    monitor = ShiftMonitor(seen=[draw.gauss(0, 1) for _ in range(500)], false_alarm_rate=0.01)

    assert any(monitor.observe(draw.gauss(0, 3)) for _ in range(500))


def test_shift_false_alarms_keep_to_the_stated_rate():
    """On exchangeable signals, few of many monitors ever raise an alarm."""
    rate, streams, alarms = 0.1, 100, 0
    for seed in range(streams):
        draw = random.Random(seed)
        monitor = ShiftMonitor(seen=[draw.random() for _ in range(100)], false_alarm_rate=rate, seed=seed)
        alarms += any(monitor.observe(draw.random()) for _ in range(500))

    assert alarms / streams <= rate + 2 * math.sqrt(rate * (1 - rate) / streams)


def test_a_guarded_tier_defers_after_the_alarm():
    """Once trust is lost there is no score, and a tier without a score defers."""
    monitor = Monitor(0.05, signals=[i / 100 for i in range(100)], false_alarm_rate=0.05)
    guarded = Guarded(MeanProbability(), monitor)
    signals = {"mean_logprob": -0.1}
    assert guarded.score(signals) == MeanProbability().score(signals)

    while monitor.observe_outcome(0.0) is None:
        monitor.observe_signal(0.5)

    assert guarded.score(signals) is None
    assert not guarded.is_calibrated


def test_the_rate_is_shared_by_both_tests():
    """Two tests at half the rate each raise a false alarm at most at the rate."""
    monitor = Monitor(0.05, signals=[0.1, 0.2], false_alarm_rate=0.05)

    assert monitor.errors.false_alarm_rate + monitor.shift.false_alarm_rate == 0.05
    assert Monitor(0.05, false_alarm_rate=0.05).errors.false_alarm_rate == 0.05


@pytest.mark.parametrize("monitor", [ErrorMonitor(alpha=0.1), ShiftMonitor(seen=[0.1, 0.9])])
def test_a_monitor_survives_a_restart(monitor):
    """Written and read, it goes on as if it had never stopped."""
    for value in (0.0, 1.0, 1.0, 0.0):
        monitor.observe(value)

    again = msgspec.json.decode(msgspec.json.encode(monitor), type=type(monitor))
    for each in (monitor, again):
        each.observe(1.0)

    assert again == monitor


def test_numbers_that_are_none_are_refused():
    """Outcomes out of range, signals that are not finite, rates outside of (0, 1)."""
    with pytest.raises(DataError, match=r"1\.5"):
        ErrorMonitor(alpha=0.1).observe(1.5)
    with pytest.raises(DataError, match="nan"):
        ShiftMonitor(seen=[0.5]).observe(math.nan)
    with pytest.raises(DataError, match="numbers"):
        ShiftMonitor(seen=[])
    with pytest.raises(ConfigError, match="alpha"):
        ErrorMonitor(alpha=0.0)
    with pytest.raises(ConfigError, match="false_alarm_rate"):
        ShiftMonitor(seen=[0.5], false_alarm_rate=1.0)
