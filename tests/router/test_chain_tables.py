"""Chains fitted to a table: what is read, what is refused, and a policy that decides as the thresholds do."""

import json
import random

import pytest
from typer.testing import CliRunner

from nearfar.cli.app import app
from nearfar.errors import ConfigError, DataError
from nearfar.router.chain_tables import chain_table_policy, load_chain
from nearfar.router.chains import ChainFitter
from nearfar.router.policies import Policy

pytest.importorskip("sklearn", reason="needs nearfar[fit]")

LINKS = ["small=sure", "middle=logit", "large"]


def rows_of(n=600, *, seed=3):
    """Three models of rising cost and skill on the same queries; the first two know fairly well when they are right."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        ease = draw.random()
        for model, skill, cost in (("small", ease**2, 1), ("middle", ease**0.5, 5), ("large", 0.97, 50)):
            row = {"query_id": number, "model": model, "correct": int(draw.random() < skill), "cost": cost}
            rows.append(row | {"sure": ease, "logit": 10 * ease - 3})
    return rows


@pytest.fixture
def write(tmp_path):
    """Writes a table."""

    def write(rows):
        path = tmp_path / "table.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_queries_that_a_model_lacks_are_left_out_and_counted(write):
    """The rest stands in the table's order, whatever the order of its rows."""
    rows = rows_of(30)
    last_first = sorted(rows, key=lambda row: (row["query_id"], -row["cost"]))

    table = load_chain(write([row for row in last_first if (row["query_id"], row["model"]) != (7, "middle")]), LINKS)

    assert (table.n, table.num_left_out, table.has_costs, table.signals) == (29, 1, True, ("sure", "logit"))
    assert [tier.name for tier in table.tiers] == ["small", "middle", "large"]
    kept = [row for row in rows if row["query_id"] != 7]
    assert table.tiers[1].scores == [row["logit"] for row in kept if row["model"] == "middle"]
    assert table.tiers[2].outcomes == [row["correct"] for row in kept if row["model"] == "large"]
    assert table.tiers[2].scores is None


def test_without_costs_calls_are_counted(write):
    """One a call, where any cost is missing."""
    rows = rows_of(30)
    del rows[4]["cost"]

    table = load_chain(write(rows), LINKS)

    assert not table.has_costs
    assert {cost for tier in table.tiers for cost in tier.costs} == {1.0}


def test_the_policy_decides_as_the_thresholds_on_the_signals_do(write):
    """Every labelled answer is accepted or deferred by its score as by its signal, and the guarantee is in the file."""
    table = load_chain(write(rows_of()), LINKS)
    fit = ChainFitter(0.1, delta=0.1, abstention_value=0.6).fit(table.tiers)

    policy = chain_table_policy(table, fit, name="three", version=2)

    assert policy.label == "three@2"
    assert list(policy.tiers) == ["small", "middle"]
    for tier, signal, threshold in zip(table.tiers, table.signals, fit.setting.thresholds, strict=False):
        fitted = policy.tier(tier.name, model=tier.name)
        assert fitted.guarantee["method"] == "Pareto testing, fixed sequence"
        accepted = [
            not fitted.accepts_nothing and fitted.scorer.score({signal: s}) >= fitted.threshold for s in tier.scores
        ]
        assert accepted == [threshold is not None and s >= threshold for s in tier.scores]


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (["small=sure"], "two links"),
        (["small", "large"], "'small' is not the last link"),
        (["small=sure", "small=logit", "large"], "'small' twice"),
    ],
)
def test_links_that_make_no_chain_are_refused(write, links, message):
    """With what to say in their place."""
    with pytest.raises(ConfigError, match=message):
        load_chain(write(rows_of(30)), links)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.append(rows[0]), "a second time"),
        (lambda rows: rows[0].update(sure=None), "'sure' of 'small' is None on query '0'"),
        (lambda rows: rows[0].update(sure=float("nan")), "not a usable number"),
        (lambda rows: rows[0].update(sure="high"), "not a number"),
        (lambda rows: [row.update(model="other") for row in rows if row["model"] == "large"], "no rows of 'large'"),
        (lambda rows: [row.pop("sure") for row in rows], "no column 'sure'"),
        (
            lambda rows: [row.update(query_id=-1 - row["query_id"]) for row in rows if row["cost"] == 50],
            "no query that",
        ),
    ],
)
def test_tables_that_hold_no_chain_are_refused(tmp_path, spoil, message):
    """Naming what is wrong with them."""
    rows = rows_of(30)
    spoil(rows)
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row).replace("NaN", '"nan"') + "\n" for row in rows))

    with pytest.raises(DataError, match=message):
        load_chain(path, LINKS)


def test_no_policy_comes_of_a_chain_that_keeps_no_promise(write):
    """There is nothing to write."""
    table = load_chain(write(rows_of(40)), LINKS)
    fit = ChainFitter(0.001, "accepted-error").fit(table.tiers)

    with pytest.raises(DataError, match="No setting"):
        chain_table_policy(table, fit)


# --- the command -----------------------------------------------------------------------------------------------------


def run(*words):
    """`nearfar calibrate …`."""
    return CliRunner().invoke(app, ["calibrate", *map(str, words)], standalone_mode=False)


CHAIN = ["--chain", "small=sure", "--chain", "middle=logit", "--chain", "large"]


def test_command_fits_a_chain_and_writes_its_policy(write, tmp_path):
    """The JSON has a threshold in each signal's own units, and the policy's file the guarantee."""
    out = tmp_path / "chain.policy.json"

    said = run(write(rows_of()), *CHAIN, "--target", "quality-loss", "--alpha", 0.1, "--out", out, "--json")
    found = json.loads(said.stdout)

    assert (found["n"], found["is_feasible"], found["policy"]) == (600, True, "calibrated@1")
    assert [each["model"] for each in found["chain"]] == ["small", "middle", "large"]
    assert found["cost"] < found["chain"][-1]["cost_alone"]
    assert sum(each["keeps"] for each in found["chain"]) == pytest.approx(1)
    tiers = Policy.load(out).tiers
    assert tiers["middle"].guarantee["alpha"] == 0.1
    assert "accepts where" in run(tmp_path / "table.jsonl", *CHAIN).stdout


def test_command_says_how_many_labels_a_chain_needs(write, tmp_path):
    """And writes nothing."""
    out = tmp_path / "chain.policy.json"

    found = json.loads(run(write(rows_of(40)), *CHAIN, "--alpha", 0.01, "--out", out, "--json").stdout)

    assert not found["is_feasible"]
    assert found["needed_n"] > 40
    assert [each["threshold"] for each in found["chain"]] == [None] * 3
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*CHAIN, "--near", "small"], "leave --near"),
        ([*CHAIN, "--target", "cost"], "not cost"),
        (["--abstention-value", "0.5"], "chain's"),
    ],
)
def test_command_refuses_what_is_no_chain(write, words, message):
    """Before anything is fitted."""
    said = run(write(rows_of(30)), *words)

    assert isinstance(said.exception, ConfigError)
    assert message in str(said.exception)
