"""What a config says about signals, classifiers, routers, bandits and monitors, from the file to the answer."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from nearfar.config import Settings
from nearfar.errors import ConfigError
from nearfar.router.policies import Policy, Reference, TierPolicy
from nearfar.router.predictive import RoutingExample, files, make
from nearfar.router.scorers import LogisticScorer, StatedProbability
from nearfar.types import Query
from nearfar.wiring import build
from nearfar.wiring.learning import open_learning
from nearfar.wiring.records import open_store

#: A near model that is sure of short questions and counts its calls; a far one that always says the same.
MODELS = """
calls = []

def near(query):
    calls.append(query)
    text = query.messages[-1].text
    if "number from 0 to 100" in text:
        return "90" if len(query.messages[0].text) < 20 else "10"
    return "near", {"confidence": 0.9 if len(text) < 20 else 0.3}

def far(query):
    return "far"
"""
CONFIG = """
[models.near]
kind = "python"
callable = "models.py:near"
[models.far]
kind = "python"
callable = "models.py:far"
placement = "far"
[cascades.auto]
tiers = [TIER, "far"]
MORE
"""
SHORT, LONG = "short?", "a question that is much longer than twenty letters?"


@pytest.fixture
def load(tmp_path):
    """Loads a config of two callables, with a tier and more of its cascade as given."""
    (tmp_path / "models.py").write_text(MODELS)

    def load(tier='"near"', more=""):
        path = tmp_path / "nearfar.toml"
        path.write_text(CONFIG.replace("TIER", tier).replace("MORE", more))
        return Settings.load(path, environ={"NEARFAR_HOME": str(tmp_path / "home")})

    return load


@pytest.fixture
async def wire(load):
    """Builds what such a config says, and closes it after the test."""
    built = []

    def wire(*given):
        built.append(build(load(*given)))
        return built[-1]

    yield wire
    for wired in built:
        await wired.aclose()


async def test_a_classifier_is_a_tier(wire):
    """Its confidence is its score; unsure, it hands over."""
    router = wire().router

    sure, unsure = await router.answer(Query(SHORT)), await router.answer(Query(LONG))

    assert (sure.tier, sure.decision.score, sure.decision.is_calibrated) == ("near", 0.9, False)
    assert (unsure.tier, unsure.decision.steps[0].score) == ("far", 0.3)


async def test_a_paid_signal_scores_the_tier_that_names_it(wire):
    """Without a policy it is the score; the call that it takes is on record."""
    router = wire('{ model = "near", signals = ["stated_confidence"], threshold = 0.5 }').router

    sure, unsure = await router.answer(Query(SHORT)), await router.answer(Query(LONG))

    assert (sure.tier, sure.decision.score) == ("near", 0.9)
    assert (unsure.tier, unsure.decision.steps[0].score) == ("far", 0.1)
    assert [(cost.name, cost.calls) for cost in sure.decision.steps[0].signal_costs] == [("stated_confidence", 1)]


async def test_samples_are_drawn_as_the_config_says(wire):
    """So many, compared by their words."""
    router = wire('{ model = "near", signals = ["self_consistency"], samples = 3 }').router

    answer = await router.answer(Query(LONG))

    assert (answer.tier, answer.decision.score) == ("near", 1.0)
    assert answer.decision.steps[0].signal_costs[0].calls == 3


def fitted(**options):
    """A policy file's content for the near tier."""
    tier = TierPolicy(**{"model": "near", "scorer": StatedProbability("confidence"), "threshold": 0.5, **options})
    return Policy(name="p", created_at=datetime.now(UTC), nearfar_version="0", tiers={"near": tier})


async def test_a_policy_reads_what_the_query_tells_for_nothing(wire, tmp_path):
    """Signals without a price need no mention in the config; those with one do."""
    scorer = LogisticScorer(("query_length",), (-50.0,), 0.0, (0.25,), (1.0,))
    fitted(scorer=scorer).save(tmp_path / "p.json")
    answers = [await wire('"near"', 'policy = "p.json"').router.answer(Query(text)) for text in (SHORT, LONG)]

    assert [answer.tier for answer in answers] == ["near", "far"]

    fitted(scorer=StatedProbability("p_true")).save(tmp_path / "p.json")
    with pytest.raises(ConfigError, match=r'reads \'p_true\'.*signals = \["p_true"\]'):
        wire('"near"', 'policy = "p.json"')


async def test_a_policy_may_give_up_early(wire, tmp_path):
    """As the file says, for queries that take abstention."""
    fitted(abstain_below=0.4).save(tmp_path / "p.json")
    router = wire('"near"', 'policy = "p.json"').router

    answer = await router.answer(Query(LONG, when_unsure="abstain"))

    assert (answer.decision.status, answer.decision.reason) == ("abstained", "abstained_early")


@pytest.fixture
def router_file(tmp_path):
    """A router that has learned that long questions gain from the far model."""
    pytest.importorskip("sklearn")
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    texts = [f"{'hard' if i % 2 else 'easy'} {words[i % 10]} {words[i // 10 % 10]} {i}" for i in range(120)]
    examples = [RoutingExample(text, weak=float(text.startswith("easy")), strong=1.0) for text in texts]
    router = make("tfidf-ridge").fit(examples)
    files.save(router, tmp_path / "router.bin", weak="near", strong="far", examples=examples)
    return tmp_path / "router.bin"


async def test_a_router_file_picks_the_tier(wire, router_file):
    """Its score, threshold and propensity are in the decision and in the plan."""
    wired = wire('"near"', 'router = { file = "router.bin", threshold = 0.5, use = "skip" }')

    easy, hard = [await wired.router.answer(Query(f"{how} beta gamma")) for how in ("easy", "hard")]

    assert (easy.tier, hard.tier) == ("near", "far")
    routing = hard.decision.routing
    assert routing.by.startswith("router router.bin#")
    assert routing.score > routing.threshold == 0.5
    assert wired.router.plan(Query("hard beta")).routing.tier == "far"
    assert (await wired.log.get(hard.decision.id)).routing == routing


@pytest.mark.parametrize(
    ("tier", "more", "says"),
    [
        ('"near"', 'router = { file = "router.bin", threshold = 0.5, weak = "far" }', "fitted with 'near' as the weak"),
        ('"near"', 'router = { file = "router.bin", threshold = 0.5, weak = "no" }', "no tier"),
        ('"near"', 'router = { file = "none.bin", threshold = 0.5 }', "none.bin"),
        ('"near"', 'router = { file = "router.bin" }', "threshold is missing"),
        ('"near"', 'router = { fle = "router.bin" }', "did you mean 'file'"),
        ('"near"', 'bandit = {}\nrouter = { file = "router.bin", threshold = 0.5 }', "a router and a bandit"),
        ('"near"', 'bandit = { features = ["domain"] }', "reads 'domain'"),
        ('"near"', "monitor = {}", "nothing to watch"),
        ('{ model = "near", signals = ["entropy"] }', "", "signals"),
        ('{ model = "near", signals = ["similar_queries"] }', "", "needs labelled_queries"),
        ('{ model = "near", signals = ["predicted_gain"] }', "", "needs router"),
        ('{ model = "near", judge = "far" }', "", "entailment"),
        ('{ model = "near", signals = ["p_true"] }', 'commit = "prefix"', "whole answer"),
        ('{ model = "near", threshold = 0.5, abstain_below = 0.6 }', "", "abstain_below"),
    ],
)
async def test_what_cannot_be_is_refused_before_any_query(wire, router_file, tier, more, says):
    """One line that names the setting and the fix."""
    with pytest.raises(Exception, match=says) as caught:
        wire(tier, more)

    assert type(caught.value).__name__ in {"ConfigError", "DataError"}
    assert "\n" not in str(caught.value)


async def test_a_bandit_learns_from_what_is_told(wire, load):
    """Outcomes told to one process are known to the next."""
    wired = wire('"near"', 'bandit = { use = "pick" }')
    for i in range(60):
        answer = await wired.router.answer(Query(SHORT))
        assert answer.decision.propensity == answer.decision.routing.propensity
        await wired.router.tell(answer.decision.id, float(answer.tier == "far"))
        assert i or 0 < answer.decision.propensity < 1

    later = wire('"near"', 'bandit = { use = "pick" }')
    routing = (await later.router.answer(Query(SHORT))).decision.routing

    assert routing.propensities["far"] > 0.9


@pytest.fixture
def shell(load, tmp_path):
    """Runs nearfar in the folder of the config."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "PYTHONPATH"}}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "nearfar.cli", *arguments],
            cwd=tmp_path,
            env={**kept, "HOME": str(tmp_path), "NEARFAR_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


async def test_an_alarm_shows_wherever_one_looks(wire, load, shell, tmp_path):
    """Wrong answers told by CLI and by Python; doctor fails, explain says why the tier was closed."""
    guarantee = {"target": "accepted-error", "alpha": 0.05}
    reference = Reference.of("confidence", [0.9 - i / 1000 for i in range(100)])
    fitted(guarantee=guarantee, reference=reference).save(tmp_path / "p.json")
    given = ('"near"', 'policy = "p.json"\nmonitor = { on_alarm = "defer" }')
    wired = wire(*given)
    decisions = [(await wired.router.answer(Query(SHORT))).decision for _ in range(40)]
    for decision in decisions[1:]:
        await wired.router.tell(decision.id, 0.0)

    told = shell("outcome", decisions[0].id, "wrong")
    checked = json.loads(shell("doctor", "--json").stdout)
    closed = await wired.router.answer(Query(SHORT))
    explained = shell("explain", closed.decision.id)

    assert told.returncode == 0
    check = next(check for check in checked["checks"] if check["name"] == "auto/near")
    assert check["state"] == "failed"
    assert "alarm (errors)" in check["says"]
    assert closed.tier == "far"
    assert "alarm (errors)" in " ".join(explained.stdout.split())


async def test_another_threshold_is_replayed_from_the_log(wire, router_file, shell):
    """Which threshold sends how many, what would have changed, and the mean outcome where exploration tells."""
    router = wire('"near"', 'router = { file = "router.bin", threshold = 0.5, use = "pick", explore = 0.8 }').router
    for i in range(160):
        answer = await router.answer(Query(f"{'hard' if i % 2 else 'easy'} beta {i}"))
        await router.tell(answer.decision.id, float(answer.tier == "far" or not i % 2))

    table = json.loads(shell("replay", "--router", "router.bin", "--json").stdout)
    report = json.loads(shell("replay", "--router", "router.bin", "--threshold", "0.5", "--json").stdout)
    shown = shell("replay", "--router", "router.bin", "--threshold", "0.5", "--changed")
    nothing = shell("replay")

    assert table["n"] == 160
    assert [row["threshold"] for row in table["thresholds"]] == sorted(
        (row["threshold"] for row in table["thresholds"]), reverse=True
    )
    summary = report["summary"]
    assert (summary["n"], summary["judged"], summary["strong_share"]) == (160, 160, 0.5)
    assert summary["estimate"]["interval"]["low"] > 0.8  # it is right on all of them
    assert "doubly robust" in shown.stdout
    assert nothing.returncode != 0
    assert "--policy FILE or --router FILE" in nothing.stderr


async def test_paid_signals_are_labelled_and_fitted(load, shell, tmp_path):
    """A batch reads them of every answer, calibrate fits to them, and the policy judges by them."""
    pytest.importorskip("sklearn")
    load('{ model = "near", signals = ["stated_confidence"] }')
    texts = [f"short {i}" if i % 2 else f"a long question, the {i}th of many" for i in range(80)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))

    done = shell("batch", "q.jsonl", "a.jsonl", "--model", "near", "--signals")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    labelled = [
        {**row, "correct": int((row["signals"]["stated_confidence"] > 0.5) != (i < 4))} for i, row in enumerate(rows)
    ]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    fitted = shell("calibrate", "l.jsonl", "--signal", "stated_confidence", "--out", "p.json")

    assert done.returncode == fitted.returncode == 0, done.stderr + fitted.stderr
    kept = Policy.load(tmp_path / "p.json").tiers["near"]
    assert kept.signals == ("stated_confidence",)
    assert kept.reference.signal == "stated_confidence"
    assert len(kept.reference.values) == 80


async def test_a_plain_config_learns_nothing(load):
    """No bandit, no monitor: no row is written and nothing is looked up."""
    settings = load()
    store = open_store(settings)
    learning = open_learning(settings, store)

    assert learning.monitors == learning.bandits == []
    assert store.read_now(lambda c: c.execute("SELECT count(*) FROM learned").fetchone()) == (0,)
    store.close()
