"""`nearfar agent`, run as a user runs it, with roles and a tool that are Python functions."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import httpx2
import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from test_cli import Shell

CONFIG = """
[models.planner]
kind = "python"
callable = "roles.py:planner"
[models.caller]
kind = "python"
callable = "roles.py:caller"
[models.summarizer]
kind = "python"
callable = "roles.py:summarizer"

[agents.clerk]
roles = { planner = "planner", caller = "caller", summarizer = "summarizer" }
[agents.clerk.tools.calculator]
kind = "calculator"
[agents.clerk.tools.letters]
kind = "python"
callable = "roles.py:send"
"""
ROLES = '''
import json
import time
from pathlib import Path

def planner(query):
    told = "\\\\n".join(message.text for message in query.messages)
    if "Before anything is read" in told:
        return json.dumps({"calls": []})
    while Path("wait").exists():
        time.sleep(0.05)
    done = told.partition("Task: Work out 6 * 7")[2].count("</data ")
    return json.dumps({"next": ["call calculator", "call send", "answer"][done]})

def caller(query):
    told = "\\n".join(message.text for message in query.messages)
    done = told.partition("Task: Work out 6 * 7")[2].count("</data ")
    return json.dumps([{"expression": "6 * 7"}, {"to": "Ada"}][done])

def summarizer(query):
    return "Sent." if "letter is on its way" in query.text else "Not sent."

def send(to: str) -> str:
    """Sends a letter."""
    with open("sent", "a") as file:
        file.write(to)
    return "the letter is on its way"
'''


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder with the config and its functions."""
    (tmp_path / "nearfar.toml").write_text(CONFIG)
    (tmp_path / "roles.py").write_text(ROLES.replace("\\\\n", "\\n"))
    return Shell(tmp_path)


def test_a_run_waits_for_a_person_and_goes_on(shell: Shell) -> None:
    """run, list, show, approve, resume, explain: the letter is sent once, after it was allowed."""
    ran = shell.run("agent", "run", "Work out 6 * 7 and write to Ada.", "--id", "one")
    listed = json.loads(shell.run("agent", "list", "--json").stdout)
    shown = shell.run("agent", "show", "one")
    approved = shell.run("agent", "approve", "one")
    resumed = shell.run("agent", "resume", "one")
    explained = shell.run("explain", "one")

    assert ran.returncode == 1
    assert "calculator" in ran.stderr
    assert "agent approve one" in ran.stderr
    assert (listed["run_id"], listed["status"]) == ("one", "awaiting_approval")
    assert "waits for a person" in shown.stdout
    assert "planner: 3 model calls" in shown.stdout
    assert approved.returncode == 0, approved.stderr
    assert (resumed.returncode, resumed.stdout) == (0, "Sent.\n")
    assert (shell.folder / "sent").read_text() == "Ada"
    assert "planner" in explained.stdout
    assert "step 2" in explained.stdout


def test_a_no_is_seen_by_the_planner(shell: Shell) -> None:
    """The run ends without the letter."""
    shell.run("agent", "run", "Work out 6 * 7 and write to Ada.", "--id", "one")
    shell.run("agent", "approve", "one", "--deny")
    resumed = shell.run("agent", "resume", "one", "--json")

    events = [json.loads(line) for line in resumed.stdout.splitlines()]
    assert events[-1]["event"] == "ended"
    assert events[-1]["result"]["text"] == "Not sent."
    assert "declined" in [event["observation"]["kind"] for event in events if event["event"] == "observed"]
    assert not (shell.folder / "sent").exists()


def test_ctrl_c_leaves_a_run_to_resume(shell: Shell) -> None:
    """The exit code is a shell's for an interrupt, and the way on is told."""
    (shell.folder / "wait").touch()
    command = shell.command("agent", "run", "Work out 6 * 7 and write to Ada.", "--id", "one")
    process = subprocess.Popen(
        command, cwd=shell.folder, env=shell.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while "running" not in shell.run("agent", "list").stdout:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    (shell.folder / "wait").unlink()
    _, said = process.communicate()
    stopped = shell.run("agent", "list").stdout
    resumed = shell.run("agent", "resume", "one")

    assert process.returncode == 130
    assert "nearfar agent resume one" in said
    assert "stopped" in stopped
    assert "agent approve one" in resumed.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("agent", "run", "x", "--agent", "nobody"), "no agent 'nobody'"),
        (("agent", "resume", "nothing"), "no run 'nothing'"),
        (("agent", "run", "x", "--agent", "clerk", "--folder", "."), "default agent's"),
    ],
)
def test_misuse_is_one_line(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    """With exit code 2."""
    ran = shell.run(*arguments)

    assert ran.returncode == 2
    assert said in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def test_help_loads_nothing_heavy(shell: Shell) -> None:
    """`nearfar agent --help` needs no graph."""
    code = "import sys; from nearfar.cli.run import run; run(['agent', '--help']); print('langgraph' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip().endswith("False")


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path):
    """Without `nearfar[agents]` the message is the command that installs it."""
    program = (
        "import sys; sys.modules['langgraph'] = None; from nearfar.cli.run import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "agent", "run", "x", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'nearfar[agents]'" in done.stderr


# --- nearfar serve ---------------------------------------------------------------------------------------------------


@contextmanager
def served(shell: Shell) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`nearfar serve` in a process of its own, and where its runs are; killed at the end, if it was not before."""
    process = subprocess.Popen(
        shell.command("serve", "--port", "0"),
        cwd=shell.folder,
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        yield process, "http://" + line.partition("http://")[2].strip() + "/agents/runs"
    finally:
        process.kill()
        process.communicate()


def post(url: str, **body: Any) -> dict[str, Any] | None:
    """What the server replies; None: it died."""
    try:
        reply = httpx2.post(url, json=body, timeout=60)
    except httpx2.HTTPError:
        return None
    found: dict[str, Any] = reply.json()
    return found


def test_a_killed_servers_run_goes_on_in_the_next_with_the_command_lines_approval(shell: Shell) -> None:
    """One store for all: begun over HTTP, killed, seen as stopped, gone on with, allowed by `nearfar agent approve`."""
    (shell.folder / "wait").touch()
    with served(shell) as (process, runs):
        asking = Thread(target=post, args=(runs,), kwargs={"task": "Work out 6 * 7 and write to Ada.", "run_id": "one"})
        asking.start()
        while "running" not in shell.run("agent", "list").stdout:
            time.sleep(0.1)
        process.kill()
        asking.join()
    (shell.folder / "wait").unlink()
    with served(shell) as (_, runs):
        stopped = httpx2.get(f"{runs}/one").json()
        waiting = post(f"{runs}/one/resume")
        approved = shell.run("agent", "approve", "one")
        resumed = post(f"{runs}/one/resume")
        shown = httpx2.get(f"{runs}/one").json()
    told = json.loads(shell.run("agent", "show", "one", "--json").stdout)

    assert stopped["status"] == "stopped"
    assert waiting is not None
    assert waiting["status"] == "awaiting_approval"
    assert approved.returncode == 0, approved.stderr
    assert resumed is not None
    assert resumed["result"]["text"] == "Sent."
    assert (shell.folder / "sent").read_text() == "Ada"
    assert shown == {"object": "nearfar.run", **told}
    decided = [each for each in shown["trace"] if each["event"] == "decided"]
    assert {each["decision"]["door"] for each in decided} == {"agent"}
    assert shown["approvals"][0]["is_allowed"] is True


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_servers_killed_at_random_moments(shell: Shell, record_property: Any) -> None:
    """However often it is killed, the letter is sent once at most, and the run ends."""
    chance = random.Random(5)
    killed = 0
    for number in range(8):
        run_id, ended, kills = f"run{number}", None, 0
        (shell.folder / "sent").unlink(missing_ok=True)
        while ended is None:
            with served(shell) as (process, runs):
                timer = Timer(chance.uniform(0, 0.5), process.kill)
                if kills < 3:
                    timer.start()
                    kills += 1
                said = post(runs, task="Work out 6 * 7 and write to Ada.", run_id=run_id)
                waiting = post(f"{runs}/{run_id}/resume")
                for each in (waiting or {}).get("approvals", []):
                    post(f"{runs}/{run_id}/approvals", approval_id=each["approval_id"], allow=True)
                found = post(f"{runs}/{run_id}/resume")
                ended = found if found and found.get("status") == "answered" else None
                timer.cancel()
                killed += process.poll() is not None
                assert said is None or "run_id" in said or said["error"]["code"] == "run_conflict"
        letters = (shell.folder / "sent").read_text() if (shell.folder / "sent").exists() else ""
        kinds = [each["observation"]["kind"] for each in trace_of(shell, run_id) if each["event"] == "observed"]
        assert letters == "Ada" or ("unknown" in kinds and letters in ("", "Ada"))
    assert killed
    record_property("kills", killed)


def trace_of(shell: Shell, run_id: str) -> list[dict[str, Any]]:
    """The run's events."""
    found: list[dict[str, Any]] = json.loads(shell.run("agent", "show", run_id, "--json").stdout)["trace"]
    return found
