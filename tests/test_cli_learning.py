"""`nearfar outcome` and `nearfar replay` in a real shell."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from nearfar.router.policies import Policy, TierPolicy
from nearfar.router.scorers import MeanProbability

CONFIG = """
[models.near]
kind = "replay"
table = "table.jsonl"
model = "small"
placement = "near"

[models.far]
kind = "replay"
table = "table.jsonl"
model = "large"
placement = "far"

[cascades.auto]
tiers = ["near", "far"]

[data]
dir = "data"
"""


@pytest.fixture
def shell(tmp_path):
    """Runs nearfar in a folder with two recorded models."""
    rows = [{"query": "q", "model": model, "response": model, "correct": 1} for model in ("small", "large")]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "nearfar.toml").write_text(CONFIG)
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "PYTHONPATH"}}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "nearfar.cli", *arguments],
            cwd=tmp_path,
            env={**kept, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


def test_an_outcome_is_told_and_the_log_replayed(shell, tmp_path):
    """From a question to its outcome, and to what another policy would have done."""
    policy = Policy(
        name="other",
        created_at=datetime.now(UTC),
        nearfar_version="0",
        tiers={"near": TierPolicy(model="near", scorer=MeanProbability(), threshold=0.5)},
    )
    policy.save(tmp_path / "other.json")
    asked = json.loads(shell("ask", "q", "--json").stdout)

    told = shell("outcome", asked["decision_id"], "right", "--json")
    replayed = shell("replay", "--policy", "other.json", "--json")
    shown = shell("replay", "--policy", "other.json")

    assert json.loads(told.stdout)["value"] == 1.0
    report = json.loads(replayed.stdout)
    assert report["summary"]["n"] == report["summary"]["same"] + report["summary"]["unknown"] == 1
    assert report["decisions"][0]["decision_id"] == asked["decision_id"]
    assert "decisions" in shown.stdout


def test_nonsense_is_refused_in_one_line(shell):
    """An outcome that is none, a decision that is not there, a policy that is not there."""
    for arguments, reason in (
        (("outcome", "ffff", "splendid"), "'splendid'"),
        (("outcome", "ffff", "right"), "'ffff'"),
        (("replay", "--policy", "none.json"), "none.json"),
    ):
        done = shell(*arguments)
        assert done.returncode != 0
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1


MISTAKES = """
[models.near]
kind = "python"
callable = "parrot.py:near"
placement = "near"

[models.far]
kind = "python"
callable = "parrot.py:far"
placement = "far"

[cascades.auto]
tiers = [{ model = "near", threshold = 1.0 }, { model = "far", error_cases = "told" }]

[data]
dir = "data"
"""
PARROT = '''
def near(query):
    return "0.5"

def far(query):
    """All that it is shown."""
    return " | ".join(message.text for message in query.messages)
'''


def test_a_mistake_that_was_told_is_shown_to_the_tier_that_learns_of_them(shell, tmp_path):
    """From one question's right answer into the far prompt of the next one like it, and into no other cascade's."""
    pytest.importorskip("wordllama", reason="the static embedder finds the cases")
    (tmp_path / "nearfar.toml").write_text(
        MISTAKES + '[cascades.other]\ntiers = [{ model = "far", error_cases = "told" }]\n'
    )
    (tmp_path / "parrot.py").write_text(PARROT)
    first = json.loads(shell("ask", "How many legs has a spider?", "--json").stdout)

    told = shell("outcome", first["decision_id"], "wrong", "--right", "eight", "--reason", "it is no insect")
    then = json.loads(shell("ask", "How many legs has a scorpion?", "--json").stdout)
    elsewhere = json.loads(shell("ask", "How many legs has a scorpion?", "--model", "other", "--json").stdout)

    assert told.returncode == 0, told.stderr
    assert first["answer"] == "How many legs has a spider?"
    for part in ("Question: How many legs has a spider?", "Why it is wrong: it is no insect", "Right answer: eight"):
        assert part in then["answer"]
    assert elsewhere["answer"] == "How many legs has a scorpion?"


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ("right", ("--right", "eight"), "this one was right"),
        ("wrong", ("--reason", "no insect"), "say with --right"),
    ],
)
def test_what_is_no_mistake_is_not_kept(shell, value, options, message):
    """Nothing is recorded either."""
    asked = json.loads(shell("ask", "q", "--json").stdout)

    refused = shell("outcome", asked["decision_id"], value, *options)

    assert refused.returncode == 2
    assert message in refused.stderr


def test_a_mistake_without_its_text_is_refused(shell, tmp_path):
    """Where the log keeps no texts there is nothing to show."""
    (tmp_path / "nearfar.toml").write_text(CONFIG + '[decisions]\ntext = "hash"\n')
    asked = json.loads(shell("ask", "q", "--json").stdout)

    refused = shell("outcome", asked["decision_id"], "wrong", "--right", "eight")

    assert refused.returncode == 2
    assert 'decisions.text = "keep"' in refused.stderr
