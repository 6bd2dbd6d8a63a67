"""`nearfar agent`, run as a user runs it, with roles and a tool that are Python functions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
