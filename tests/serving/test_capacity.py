"""Capacity plans: the optimum on small cases, and the simulator against what queueing theory says."""

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.cli.run import run
from nearfar.errors import DataError
from nearfar.serving.capacity.machines import Machine, Target, read_machines
from nearfar.serving.capacity.planner import SLICES, greedy, loads, plan_capacity, program, single
from nearfar.serving.capacity.simulator import simulate
from nearfar.serving.capacity.workload import Shape, buckets, read_lengths

SMALL = Machine("small", 0.7, 0.055, 1e-4, 4e-7, 1.2e-4, kv_tokens=30_000, max_sequences=64)
LARGE = Machine("large", 3.7, 0.009, 5e-5, 6e-8, 2e-5, kv_tokens=400_000)
TARGET = Target(ttft_s=1.0, tpot_s=0.1)

shapes = st.builds(Shape, st.integers(1, 4000), st.integers(1, 800))


@settings(max_examples=12)
@given(st.lists(shapes, min_size=1, max_size=12), st.floats(0.2, 20))
def test_the_program_is_never_dearer_than_the_others(requests, rate):
    """Greedy plans and single kinds are among the program's choices, up to the slices that it deals in."""
    work = buckets(requests)
    machines = [SMALL, LARGE]
    found = program(work, rate, machines, TARGET, load=0.9)
    others = [greedy(work, rate, machines, TARGET, load=0.9)]
    others += [single(work, rate, machines, TARGET, kind, load=0.9) for kind in range(2)]

    assert all(found.usd_per_hour <= other.usd_per_hour + 1e-6 for other in others if other is not None)


@settings(max_examples=12)
@given(st.lists(shapes, min_size=1, max_size=12), st.floats(0.2, 20))
def test_a_plan_holds_its_load(requests, rate):
    """Every bucket is dealt out whole, and no kind is given more than its machines can do."""
    work = buckets(requests)
    machines = [SMALL, LARGE]
    plan = program(work, rate, machines, TARGET, load=0.9)
    table = loads(work, rate, machines, TARGET, 0.9)

    for j, count in enumerate(plan.counts):
        assert sum(row[j] * share[j] for row, share in zip(table, plan.shares, strict=True) if share[j]) <= count + 1e-6
    assert all(sum(row) == pytest.approx(1) for row in plan.shares)


def test_the_program_finds_the_optimum():
    """Three buckets dealt out in every possible way: none is cheaper."""
    requests = [Shape(50, 20)] * 6 + [Shape(900, 200)] * 3 + [Shape(3000, 300)]
    work = buckets(requests)
    machines = [SMALL, LARGE]
    table = loads(work, 9.0, machines, TARGET, 0.9)
    best = float("inf")
    for parts in product(range(SLICES + 1), repeat=len(work)):
        busy = [0.0, 0.0]
        for row, part in zip(table, parts, strict=True):
            busy[0] += row[0] * part / SLICES if part else 0
            busy[1] += row[1] * (SLICES - part) / SLICES
        cost = sum(-(-each // 1) * machine.usd_per_hour for each, machine in zip(busy, machines, strict=True))
        best = min(best, cost)

    assert program(work, 9.0, machines, TARGET, load=0.9).usd_per_hour == pytest.approx(best)


def test_a_limited_supply_is_kept():
    """Where the cheap kind runs out, the dear one fills in; where both do, there is no plan."""
    work = buckets([Shape(100, 100)])
    free = program(work, 30.0, [SMALL, LARGE], TARGET, load=0.9)
    few = program(work, 30.0, [replace(SMALL, most=1), replace(LARGE, most=2)], TARGET, load=0.9)

    assert few.counts[0] <= 1
    assert few.counts[1] <= 2
    assert few.usd_per_hour >= free.usd_per_hour
    assert program(work, 1e4, [replace(SMALL, most=1)], TARGET, load=0.9) is None


def test_the_planned_rate_is_what_the_simulator_sustains():
    """At the rate that the steady state allows the queue does not grow; a third above, it does."""
    shape = Shape(500, 100)
    most = SMALL.requests_per_s(shape, TARGET)
    everywhere = {label.label: (1.0,) for label in buckets([shape])}

    def late(rate, n):
        found = simulate([shape], rate, [SMALL], [1], everywhere, num_requests=n)
        return found.ttft_s(0.5)

    assert late(0.9 * most, 3000) < 1.0
    assert late(1.35 * most, 3000) > 2 * late(1.35 * most, 1000) > 2.0


def test_one_at_a_time_is_an_m_d_1_queue():
    """With a batch of one and equal requests, the mean wait is that of Pollaczek and Khinchine."""
    machine = Machine("one", 1.0, 0.01, 0.0, 0.0, 0.0, kv_tokens=10_000, max_sequences=1)
    shape = Shape(10, 20)
    service_s = 20 * 0.01
    rate = 0.6 / service_s
    labels = {each.label: (1.0,) for each in buckets([shape])}

    found = simulate([shape], rate, [machine], [1], labels, num_requests=40_000, seed=3)

    mean = sum(found.latencies_s) / len(found.latencies_s)
    assert mean - service_s == pytest.approx(0.6 * service_s / (2 * 0.4), rel=0.06)
    assert found.utilisation[0] == pytest.approx(0.6, rel=0.03)


@settings(max_examples=15)
@given(st.lists(shapes, min_size=1, max_size=20), st.integers(0, 100))
def test_every_request_is_answered_whole(requests, seed):
    """No request is lost or ends before it begins, whatever the sizes."""
    labels = {each.label: (0.5, 0.5) for each in buckets(requests)}

    found = simulate(requests, 3.0, [SMALL, LARGE], [1, 1], labels, num_requests=200, seed=seed, warm_up=0.0)

    assert len(found.latencies_s) == len(found.ttfts_s) == 200
    assert all(0 < ttft <= latency for ttft, latency in zip(found.ttfts_s, found.latencies_s, strict=True))


def test_a_plan_that_is_given_keeps_its_target_in_the_simulation():
    """Bursts that the steady state does not see are met by planning for less of the machines' time."""
    requests = [Shape(60, 30)] * 8 + [Shape(1500, 250)] * 2

    found = plan_capacity(requests, 6.0, [SMALL, LARGE], TARGET, num_requests=2000)

    assert found.keeps_target
    assert found.simulated.ttft_s(0.99) <= 1.0
    assert found.simulated.tpot_s(0.99) <= 0.1


def test_a_target_that_no_machine_keeps_is_refused():
    """The request at fault is named."""
    with pytest.raises(DataError, match=r"4000 \+ 10 tokens"):
        plan_capacity([Shape(4000, 10)], 1.0, [SMALL], Target(ttft_s=0.1, tpot_s=0.1))


MACHINES = """
[machines.small]
usd_per_hour = 0.7
step_s = 0.055
per_sequence_s = 1e-4
per_context_token_s = 4e-7
per_prompt_token_s = 1.2e-4
kv_tokens = 30000
"""


def test_the_command_plans_from_files(tmp_path, capsys):
    """Lengths and machines in, plans out; the mix keeps the target."""
    (tmp_path / "m.toml").write_text(MACHINES)
    (tmp_path / "l.csv").write_text("prompt_tokens,completion_tokens\n60,30\n80,40\n")

    code = run(
        [
            *("plan-capacity", str(tmp_path / "l.csv"), "--rate", "2", "--machines", str(tmp_path / "m.toml")),
            *("--requests", "500", "--json"),
        ]
    )

    page = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [plan["plan"] for plan in page["plans"]] == ["mix, integer program", "mix, greedy", "small alone"]
    assert page["plans"][0]["keeps_target"]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--rate", "0", "--rate is 0; give a number above 0"),
        ("--rate", "inf", "--rate is inf"),
        ("--tpot-ms", "nan", "--tpot-ms is nan"),
        ("--quantile", "1", "above 0 and below 1"),
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path, capsys, option, value, says):
    """By its name, before a file is read."""
    code = run(["plan-capacity", "none.csv", "--rate", "2", "--machines", "none.toml", option, value])

    assert code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("usd_per_hour = 0.7", "", "lacks 'usd_per_hour'"),
        ("usd_per_hour = 0.7", "usd_per_hour = nan", "usd_per_hour must be"),
        ("usd_per_hour = 0.7", "usd_per_hour = 0", "must be above 0"),
        ("kv_tokens = 30000", "kv_tokens = 1.5", "whole number"),
        ("step_s", "step", "unknown key 'step'"),
        ("[machines.small]", "[small]", "no table"),
        ("0.7", "0.7.7", "not valid TOML"),
    ],
)
def test_wrong_machines_are_refused(tmp_path, old, new, says):
    """With the key at fault."""
    path = tmp_path / "m.toml"
    path.write_text(MACHINES.replace(old, new))

    with pytest.raises(DataError, match=says):
        read_machines(path)


@pytest.mark.parametrize(
    "text", ["", '{"prompt_tokens": 3}\n', '{"prompt_tokens": 0, "completion_tokens": 2}\n', "x\n"]
)
def test_wrong_lengths_are_refused(tmp_path, text):
    """Empty, missing, zero and no JSON."""
    path = tmp_path / "l.jsonl"
    path.write_text(text)

    with pytest.raises(DataError):
        read_lengths(path)
