"""Promises from a table: what is read, what is refused, and a policy that accepts the same answers."""

import csv
import json
import math
import random
import subprocess
import sys

import pytest

from nearfar.errors import ConfigError, DataError
from nearfar.router.calibration import calibrate
from nearfar.router.guarantees import AcceptedError
from nearfar.router.labels import LabelledAnswer
from nearfar.router.paired import load_paired
from nearfar.router.policies import Policy
from nearfar.router.promises import fit_promise, promise_policy

pytest.importorskip("sklearn.linear_model", reason="fitting needs scikit-learn")


def rows_of(n=600, *, seed=0, cost=False):
    """A near model that is right where its signal is high, a far one that is usually right, in long form."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        signal = draw.random()
        near = {"dataset": "d", "query_id": f"q{i}", "model": "small", "sure": signal}
        near["correct"] = int(draw.random() < 0.999 - 0.7 * (1 - signal) ** 3)
        far = {"dataset": "d", "query_id": f"q{i}", "model": "large", "sure": "", "correct": int(draw.random() < 0.95)}
        if cost:
            near["cost"], far["cost"] = 0.001, draw.choice([0.01, 0.05])
        rows += [near, far]
    return rows


@pytest.fixture
def table(tmp_path):
    """Writes rows as a CSV and returns its path."""

    def write(rows):
        path = tmp_path / "table.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def load(path, **changes):
    return load_paired(path, **({"near": "small", "far": "large", "signal": "sure"} | changes))


def test_the_table_is_read_by_query(table):
    """Both outcomes of each query, in the near rows' order, whatever order the far rows have."""
    rows = rows_of(20)
    shuffled = rows[::2] + rows[:0:-2]

    found = load(table(shuffled))

    assert found.n == 20
    assert found.near_outcomes == tuple(float(row["correct"]) for row in rows[::2])
    assert found.far_outcomes == tuple(float(row["correct"]) for row in rows[1::2])
    assert found.near_costs is None


def test_a_missing_far_answer_leaves_the_accepted_error(table):
    """The quality lost against far needs far on every query; the accepted error does not."""
    found = load(table(rows_of()[:-1]))

    assert fit_promise(found, "accepted-error", alpha=0.1, delta=0.1).value is not None
    with pytest.raises(DataError, match="'large'"):
        fit_promise(found, "quality-loss", alpha=0.1, delta=0.1)


def test_costs_are_money_where_the_table_has_them_and_shares_where_not(table):
    """The limit is in the table's unit, or the share sent far."""
    money = fit_promise(load(table(rows_of(cost=True))), "cost", alpha=0.015, delta=0.1)
    share = fit_promise(load(table(rows_of())), "cost", alpha=0.3, delta=0.1)

    assert "mean cost" in money.guarantee["promise"]
    assert 0.4 < money.coverage < 0.9
    assert "share" in share.guarantee["promise"]
    assert 0.7 < share.coverage < 0.8
    with pytest.raises(ConfigError, match="not below 1"):
        fit_promise(load(table(rows_of())), "cost", alpha=2.0, delta=0.1)


def test_the_policy_accepts_what_the_threshold_accepts(table, tmp_path):
    """Scores part the answers just as the signal does, and the file carries promise and fingerprint."""
    paired = load(table(rows_of()))
    threshold = fit_promise(paired, "accepted-error", alpha=0.1, delta=0.1)

    promise_policy(paired, threshold, tier="first").save(tmp_path / "p.json")
    tier = Policy.load(tmp_path / "p.json").tier("first", model="small")

    scores = [tier.scorer.score({"sure": signal}) for signal in paired.signals]
    assert [s >= tier.threshold for s in scores] == [s >= threshold.value for s in paired.signals]
    assert tier.guarantee["alpha"] == 0.1
    assert tier.guarantee["n"] == tier.data.n == 600
    assert tier.data.sha256 == paired.sha256


def test_a_policy_of_another_model_is_refused(table):
    """What was fitted on one model's signals does not hold for another's."""
    paired = load(table(rows_of()))
    policy = promise_policy(paired, fit_promise(paired, "accepted-error", alpha=0.1, delta=0.1))

    with pytest.raises(ConfigError, match="fitted on answers of 'small'"):
        policy.tier("small", model="other")


def test_nothing_promised_is_a_tier_that_defers(table):
    """An infeasible promise makes a policy that accepts nothing and says how many labels would do."""
    paired = load(table(rows_of(60)))
    threshold = fit_promise(paired, "accepted-error", alpha=0.02, delta=0.05)

    tier = promise_policy(paired, threshold).tiers["small"]

    assert tier.accepts_nothing
    assert tier.guarantee["needed_n"] > 60


def test_a_signal_that_falls_makes_no_policy(table):
    """Less sure answers that are better ones cannot be scored by a rising curve."""
    paired = load(table([row | {"sure": -row["sure"] if row["sure"] != "" else ""} for row in rows_of()]))
    feasible = fit_promise(paired, "cost", alpha=0.5, delta=0.1)

    with pytest.raises(DataError, match="Turn its sign"):
        promise_policy(paired, feasible)


def changed(rows, index, **changes):
    return [row | changes if i == index else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        (rows_of(50), {"near": "tiny"}, "no rows of 'tiny'; its models are 'large', 'small'"),
        (rows_of(50), {"far": "huge"}, "no rows of 'huge'"),
        (rows_of(50), {"signal": "logit"}, "no column 'logit'"),
        (rows_of(50) + rows_of(1), {}, "'q0' a second time"),
        (changed(rows_of(50), 4, sure="nan"), {}, "on query 'q2', not a usable number"),
        (changed(rows_of(50), 4, sure=""), {}, "--missing defer"),
        (changed(rows_of(50), 4, sure="high"), {}, "'high', not a number"),
        (changed(rows_of(50), 4, correct="3"), {}, "outcomes are in"),
        (changed(rows_of(50), 4, correct=""), {}, "outcomes are in"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(table, rows, changes, reason):
    """Models, columns and ids that are missing or twice there are named."""
    with pytest.raises(DataError, match=reason):
        load(table(rows), **changes)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (rows_of(5), "5 labelled answers are too few"),
        ([row | {"correct": 1} for row in rows_of(50)], "All 50 labelled answers are right"),
        ([row | {"sure": 0.5} for row in rows_of(50)], "0.5 in every"),
    ],
)
def test_labels_that_say_nothing_are_refused(table, rows, reason):
    """Too few, one class only, a constant signal."""
    with pytest.raises(DataError, match=reason):
        fit_promise(load(table(rows)), "accepted-error", alpha=0.1, delta=0.1)


def test_missing_signals_may_be_deferred(table):
    """Answers without a signal count as labels and are never accepted."""
    found = load(table(changed(rows_of(), 0, sure="")), missing="defer")

    assert found.signals[0] == -math.inf
    assert fit_promise(found, "accepted-error", alpha=0.1, delta=0.1).coverage < 1


def test_the_same_model_twice_is_refused(table):
    """A model is not its own far model."""
    with pytest.raises(ConfigError, match="name two models"):
        load(table(rows_of(20)), far="small")
    with pytest.raises(ConfigError, match="No column 'answer'"):
        load(table(rows_of(20)), columns={"answer": "x"})


def test_a_promise_takes_the_place_of_the_default_rule():
    """`calibrate` carries a fitter's guarantee into the policy, and says what out-of-fold scores assume besides."""
    rows = [row for row in rows_of(800) if row["model"] == "small"]
    examples = [LabelledAnswer({"mean_logprob": math.log(row["sure"])}, float(row["correct"])) for row in rows]

    policy, report = calibrate(
        examples, tier="small", model="small", method="beta", signals=["mean_logprob"], fitter=AcceptedError(0.1, 0.1)
    )

    tier = policy.tiers["small"]
    assert tier.threshold == report.threshold.value is not None
    assert tier.guarantee["target"] == "accepted-error"
    assert tier.guarantee["scores"] == "out of fold"
    assert len(tier.guarantee["assumptions"]) == 3


@pytest.mark.parametrize("method", ["temperature", "beta"])
def test_a_signal_that_states_no_probability_has_no_temperature(method):
    """Temperature and beta need a probability or its logarithm."""
    rows = [row for row in rows_of(200) if row["model"] == "small"]
    examples = [LabelledAnswer({"length": 100 * row["sure"]}, float(row["correct"])) for row in rows]

    with pytest.raises(DataError, match="neither a probability"):
        calibrate(examples, tier="small", model="small", method=method, signals=["length"])
    with pytest.raises(ConfigError, match="reads one signal"):
        calibrate(examples, tier="small", model="small", method=method, signals=["length", "other"])


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "nearfar.cli", "calibrate", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_the_threshold_in_the_signals_units(table, tmp_path):
    """--json has what scripts read, and --out writes the policy."""
    path = table(rows_of())
    pair = ("--near", "small", "--far", "large", "--signal", "sure")

    ran = command(path, *pair, "--target", "accepted-error", "--alpha", "0.1", "--json", "--out", tmp_path / "p.json")
    few = command(path, *pair, "--alpha", "0.001", "--json")
    told = command(path, *pair, "--target", "quality-loss", "--alpha", "0.1")

    report = json.loads(ran.stdout)
    expected = fit_promise(load(path), "accepted-error", alpha=0.1, delta=0.1)
    assert report["threshold"] == expected.value
    assert report["coverage"] == expected.coverage
    assert report["n"] == 600
    assert report["needed_n"] is None
    assert Policy.load(tmp_path / "p.json").label == report["policy"]
    assert json.loads(few.stdout)["threshold"] is None
    assert json.loads(few.stdout)["needed_n"] > 600
    assert few.returncode == 0
    assert "accept where" in told.stdout


def test_the_command_refuses_in_one_line(table):
    """A promise without both models, or about a model that is not there."""
    path = table(rows_of(20))

    half = command(path, "--near", "small", "--signal", "sure")
    unknown = command(path, "--near", "tiny", "--far", "large", "--signal", "sure")

    assert half.returncode != 0
    assert "--far" in half.stderr
    assert unknown.returncode == 1
    assert "no rows of 'tiny'" in unknown.stderr
