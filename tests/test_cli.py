"""The command line, run as a user runs it: what it prints, where, and with which exit code."""

import csv
import io
import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from support.counting_upstream import CountingUpstream
from support.weights import smollm2_path

from nearfar.cli.logs import configure_logs

ROWS = [
    {"query": "capital of France?", "model": "small", "response": "Paris", "correct": 1},
    {"query": "capital of France?", "model": "gpt-4.1", "response": "It is Paris.", "correct": 1},
    {"query": "17*23?", "model": "gpt-4.1", "response": "391", "correct": 1},
]
CONFIG = """
[models.near]
kind = "replay"
table = "table.jsonl"
model = "small"
placement = "near"
[models.far]
kind = "replay"
table = "table.jsonl"
model = "gpt-4.1"
price = { prompt_usd_per_mtok = 2.0, completion_usd_per_mtok = 8.0 }
max_output_tokens = 100
"""
SECRET = "sk-a-secret-that-must-not-be-seen"


class Shell:
    """A folder, and nearfar run in it with nothing of the developer's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "PYTHONPATH"}}
        self.environment = {**kept, "HOME": str(folder / "home"), "COLUMNS": "100"}

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "nearfar.cli", *arguments]

    def run(self, *arguments: str, stdin: str | bytes = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """The finished command."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environment, **variables},
            input=data,
            capture_output=True,
            timeout=100,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def json(self, *arguments: str, **variables: str) -> object:
        """The JSON that a command prints, which must be one line and come with exit code 0."""
        done = self.run(*arguments, "--json", **variables)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        return json.loads(line)

    def refused(self, *arguments: str, code: int = 2, stdin: str | bytes = "", **variables: str) -> str:
        """The one line with which a command is refused."""
        done = self.run(*arguments, stdin=stdin, **variables)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        return line


@contextmanager
def running(shell, *arguments, **streams):
    """The command while it runs; killed in the end if it has not ended by itself."""
    command = shell.command(*arguments)
    with subprocess.Popen(command, cwd=shell.folder, env=shell.environment, **streams) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def shell(tmp_path):
    """A folder with a config of recorded answers."""
    (tmp_path / "nearfar.toml").write_text(CONFIG)
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Shell(tmp_path)


@pytest.fixture
def bare(tmp_path):
    """A folder with nothing in it."""
    return Shell(tmp_path)


# --- ask -------------------------------------------------------------------------------------------------------------


def test_ask_prints_the_answer_alone_on_stdout(shell):
    """The answer goes to stdout, where it came from to stderr."""
    done = shell.run("ask", "capital of France?")

    assert (done.returncode, done.stdout) == (0, "It is Paris.\n")
    assert re.search(r"far .* near → far .* nearfar explain \w+", done.stderr)


def test_ask_json_is_one_object_with_every_field(shell):
    """--json is one object on one line, and nothing else is said."""
    answer = shell.json("ask", "capital of France?")

    wanted = {"answer", "tier", "score", "decision_id", "cost_usd", "latency_s", "status", "model", "calibrated"}
    assert wanted <= answer.keys()
    assert (answer["answer"], answer["tier"], answer["status"]) == ("It is Paris.", "far", "answered")
    assert answer["calibrated"] is False
    assert answer["cost_usd"] > 0


@pytest.mark.parametrize("arguments", [("ask",), ("ask", "-")])
def test_ask_reads_a_pipe(shell, arguments):
    """Without a prompt, or with "-", the prompt is what comes in."""
    assert shell.run(*arguments, stdin="17*23?\n").stdout == "391\n"


def test_ask_explain_shows_the_decision(shell):
    """--explain adds the tiers with their reasons, and --json --explain the record."""
    shown = shell.run("ask", "17*23?", "--explain").stdout
    record = shell.json("ask", "17*23?", "--explain")["decision"]

    assert shown.startswith("391\n")
    assert "not recorded" in shown
    assert [step["tier"] for step in record["steps"]] == ["near", "far"]


def test_a_failed_query_names_its_record(shell):
    """When every model fails, the error is one line with the decision's id, and --json still prints an object."""
    line = shell.refused("ask", "never recorded", code=1)
    done = shell.run("ask", "never recorded", "--json")

    decision_id = re.search(r"nearfar explain (\w+)", line)[1]
    assert "failed" in shell.run("explain", decision_id).stdout
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["answer"]) == ("failed", None)
    assert "not recorded" in answer["error"]


def test_a_refused_query_says_why(shell):
    """A query that no tier may take fails with every tier's reason."""
    line = shell.refused("ask", "x" * 1000, "--model", "far", "--budget-usd", "0.0000001", code=1)
    done = shell.run("ask", "x", "--model", "far", "--budget-usd", "0", "--json")

    assert "budget" in line
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "refused"


MISUSE = [
    (("ask", ""), "prompt is empty"),
    (("ask", "   "), "prompt is empty"),
    (("ask", "x", "--model", "gpt"), "no model 'gpt'. There are: auto, far, near"),
    (("ask", "x", "--model", "far", "--privacy", "near"), "'far' is a far model, and --privacy near"),
    (("ask", "x", "--privacy", "secret"), "'secret'"),
    (("ask", "x", "--budget-usd", "-1"), "budget_usd must be at least 0"),
    (("ask", "x", "--budget-usd", "nan"), "budget_usd"),
    (("ask", "x", "--temperature", "9"), "temperature must be in [0, 2]"),
    (("ask", "x", "--max-tokens", "0"), "max_tokens must be at least 1"),
    (("ask", "x", "--quality", "best"), "no policy 'best'"),
    (("ask", "x", "--modle", "far"), "No such option: --modle"),
    (("ask", "x", "--config", "none.toml"), "no config file 'none.toml'. Write one: nearfar init"),
    (("aks", "x"), "No such command 'aks'"),
    (("batch", "none.jsonl", "out.jsonl"), "no file 'none.jsonl'"),
    (("batch", "table.jsonl"), "OUT"),
    (("explain",), "ID"),
    (("decisions", "--since", "yesterday"), "30m, 12h, 7d"),
    (("decisions", "--status", "great"), "'great'"),
    (("calibrate", "none.csv"), "none.csv"),
    (("calibrate", "table.jsonl", "--tier", "middle"), "no tier 'middle'; it has 'near', 'far'"),
    (("models", "get", "nothing"), "'nothing'"),
    (("serve", "--host", "0.0.0.0"), "nearfar keys new"),
    (("keys", "revoke", "nobody"), "no key 'nobody'"),
]


@pytest.mark.parametrize(("arguments", "says"), MISUSE, ids=[" ".join(arguments) for arguments, _ in MISUSE])
def test_misuse_is_one_line_and_code_2(shell, arguments, says):
    """What was asked for wrongly is named in one line with the fix."""
    assert says in shell.refused(*arguments)


def test_a_prompt_that_is_not_utf8_is_refused(shell):
    """Bytes that are no text are refused and not guessed at."""
    assert "not UTF-8 (byte 3)" in shell.refused("ask", stdin=b"caf\xe9")


def test_a_config_with_a_typo_is_one_line(shell):
    """A misspelt key is named with its line, its place and what was meant."""
    (shell.folder / "nearfar.toml").write_text(CONFIG.replace("table =", "tabel =", 1))

    line = shell.refused("ask", "x")

    assert "unknown key 'tabel' in [models.near] (did you mean 'table'?)" in line


def test_a_newer_policy_is_one_line(shell):
    """A policy of a later version says to upgrade."""
    (shell.folder / "nearfar.toml").write_text(CONFIG + '[cascades.auto]\ntiers = ["near", "far"]\npolicy = "p.json"\n')
    (shell.folder / "p.json").write_text('{"format_version": 99}')

    assert "Upgrade nearfar" in shell.refused("ask", "x", code=1)


def test_a_table_without_its_columns_is_one_line(shell):
    """A table of recorded answers that lacks a column names the column."""
    (shell.folder / "table.jsonl").write_text('{"question": "x"}\n')

    assert "query" in shell.refused("ask", "x", code=1)


def test_tracebacks_only_when_asked_for(shell):
    """NEARFAR_DEBUG=1 shows where an error came from."""
    assert "Traceback" in shell.run("ask", "x", "--model", "no", NEARFAR_DEBUG="1").stderr
    assert "Traceback" not in shell.run("ask", "x", "--model", "no").stderr


def test_ctrl_c_is_quiet_and_recorded(bare):
    """Ctrl-C ends with 130 and no noise, and the record says that it was cancelled."""
    with CountingUpstream(delay_s=60.0) as upstream:
        (bare.folder / "nearfar.toml").write_text(chat_config(upstream.url))
        with running(bare, "ask", "hello", stderr=subprocess.PIPE, text=True) as child:
            upstream.wait_for(1, child)
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate(timeout=60)

    assert (child.returncode, stderr) == (130, "")
    assert bare.json("explain", "last")["status"] == "cancelled"


# --- decisions -------------------------------------------------------------------------------------------------------


def test_decisions_are_listed_filtered_and_exported(shell):
    """Every question leaves a record that can be listed, filtered, looked up by its beginning, and exported."""
    first = shell.json("ask", "capital of France?")["decision_id"]
    shell.run("ask", "never recorded")

    listed = shell.run("decisions").stdout
    failed = shell.run("decisions", "--status", "failed", "--json").stdout.splitlines()
    exported = shell.run("decisions", "--export", "out.jsonl", "--since", "1h", "--tier", "far")
    records = [json.loads(line) for line in (shell.folder / "out.jsonl").read_text().splitlines()]

    assert "capital of France?" in listed
    assert "never recorded" in listed
    assert [json.loads(line)["status"] for line in failed] == ["failed"]
    assert (exported.returncode, exported.stdout) == (0, "")
    assert [record["id"] for record in records] == [first]
    assert first in shell.run("explain", first[:16]).stdout
    assert shell.json("explain", first)["id"] == first
    assert shell.json("explain", "last")["status"] == "failed"
    assert "no decision 'zz'" in shell.refused("explain", "zz", code=1)


def test_decisions_can_be_followed(shell):
    """--tail prints new decisions as they come, and ends quietly at Ctrl-C."""
    shell.run("ask", "17*23?")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running(shell, "decisions", "--tail", "--json", **pipes) as tail:
        old = json.loads(tail.stdout.readline())
        asked = shell.json("ask", "capital of France?")["decision_id"]
        new = json.loads(tail.stdout.readline())
        tail.send_signal(signal.SIGINT)
        _, stderr = tail.communicate(timeout=30)

    assert old["id"] != asked
    assert new["id"] == asked
    assert (tail.returncode, stderr) == (130, "")


def test_route_plans_without_answering(shell):
    """Planning names the tiers with reasons and leaves no record."""
    plan = shell.json("route", "17*23?", "--privacy", "near")

    assert (plan["target"], plan["first"]) == ("auto", "near")
    assert [(c["tier"], c["eligible"]) for c in plan["candidates"]] == [("near", True), ("far", False)]
    assert "privacy" in plan["candidates"][1]["reason"]
    assert "dropped: privacy" in shell.run("route", "17*23?", "--privacy", "near").stdout
    assert shell.run("decisions", "--json").stdout == ""


# --- chat ------------------------------------------------------------------------------------------------------------


def chat_config(url):
    """A config whose only model is the upstream."""
    return f'[models.up]\nkind = "openai"\nurl = "{url}"\nmodel = "m"\nsupports_logprobs = false\nplacement = "near"\n'


def test_chat_keeps_its_history_and_resets(bare):
    """Every turn carries the earlier ones; /reset forgets them; a failed turn does not end the chat."""
    with CountingUpstream() as upstream:
        (bare.folder / "nearfar.toml").write_text(chat_config(upstream.url))
        done = bare.run("chat", "--system", "Be kind.", stdin="one\ntwo\n/reset\n\nthree\n/explain\n/exit\nfour\n")

    sent = [[message["content"] for message in body["messages"]] for body in upstream.bodies]
    assert sent == [
        ["Be kind.", "one"],
        ["Be kind.", "one", "echo: one", "two"],
        ["Be kind.", "three"],
    ]
    assert done.returncode == 0
    assert done.stdout.startswith("echo: one\necho: two\necho: three\n")
    assert "answered by near up" in done.stdout


class Pty:
    """A command at a terminal of its own."""

    def __init__(self, shell: Shell, *arguments: str, **variables: str) -> None:
        self._unread = b""
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.chdir(shell.folder)
            os.execve(sys.executable, shell.command(*arguments), {**shell.environment, **variables})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._terminal)  # hangs up, which ends a child that is still there

    def write(self, text: bytes) -> None:
        """Types."""
        os.write(self._terminal, text)

    def expect(self, text: str) -> bytes:
        """What is shown up to `text`, and it."""
        wanted = text.encode()
        end = time.monotonic() + 60
        while wanted not in self._unread:
            assert time.monotonic() < end, self._unread
            if select.select([self._terminal], [], [], 0.2)[0]:
                try:
                    self._unread += os.read(self._terminal, 65536)
                except OSError as exc:  # the child has gone
                    raise AssertionError(self._unread) from exc
        shown, _, self._unread = self._unread.partition(wanted)
        return shown + wanted

    def exit_code(self) -> int:
        """Of the command, once it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])


def test_ctrl_c_ends_the_answer_and_not_the_chat(bare):
    """At a terminal, Ctrl-C stops the answer that is coming; the conversation goes on without that turn."""
    with CountingUpstream(delay_s=60.0) as upstream:
        (bare.folder / "nearfar.toml").write_text(chat_config(upstream.url))
        with Pty(bare, "chat", TERM="dumb") as terminal:
            terminal.expect("› ")
            terminal.write(b"slow\n")
            upstream.wait_for(1, _Forever())
            terminal.write(b"\x03")
            terminal.expect("stopped")
            terminal.expect("› ")
            upstream.delay_s = 0.0
            terminal.write(b"quick\n")
            terminal.expect("echo: quick")
            terminal.expect("› ")
            terminal.write(b"\x04")
            code = terminal.exit_code()

    assert code == 0
    assert [message["content"] for message in upstream.bodies[-1]["messages"]] == ["quick"]


class _Forever:
    """A child that has not ended."""

    def poll(self) -> None:
        """Never anything."""


# --- batch -----------------------------------------------------------------------------------------------------------


def test_batch_says_what_it_did(shell):
    """A batch with failures ends with code 1, counts them, and retries them when told."""
    with (shell.folder / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "prompt"], ["a", "17*23?"], ["b", "never recorded"]])

    done = shell.run("batch", "in.csv", "out.csv", "--json")
    retried = shell.run("batch", "in.csv", "out.csv", "--retry-failed")
    with (shell.folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    report = json.loads(done.stdout)
    assert (done.returncode, retried.returncode) == (1, 1)
    assert (report["records"], report["answered"], report["failed"]) == (2, 1, 1)
    assert "--retry-failed" in done.stderr
    assert [(row["id"], row["answer"], row["status"]) for row in rows] == [
        ("a", "391", "answered"),
        ("b", "", "failed"),
    ]


# --- set up ----------------------------------------------------------------------------------------------------------


def test_init_writes_a_config_from_what_is_found(bare):
    """The written config loads, names the far model that has a key, is not overwritten, and holds no key."""
    done = bare.run("init", OPENAI_API_KEY=SECRET)
    text = (bare.folder / "nearfar.toml").read_text()
    line = bare.refused("init")

    assert done.returncode == 0
    assert done.stdout == "nearfar.toml\n"
    assert SECRET not in text
    settings = bare.json("config", OPENAI_API_KEY=SECRET)["settings"]
    assert settings["models.far.model"] == {"value": "gpt-4.1", "source": "nearfar.toml"}
    assert [tier["model"] for tier in settings["cascades.auto.tiers"]["value"]][-1] == "far"
    assert "--force" in line
    assert bare.run("init", "--force").returncode == 0


def test_config_shows_sources_and_no_secrets(shell):
    """Every value comes with where it is from; keys are masked wherever they are shown."""
    (shell.folder / "nearfar.toml").write_text(
        '[models.far]\nkind = "openai"\nmodel = "gpt-4.1"\nheaders = { X-Team = "' + SECRET + '2" }\n'
    )
    variables = {"OPENAI_API_KEY": SECRET, "NEARFAR_GATEWAY_PORT": "9999"}

    settings = shell.json("config", **variables)["settings"]
    shown = shell.run("config", "--all", **variables).stdout

    assert settings["gateway.port"] == {"value": 9999, "source": "$NEARFAR_GATEWAY_PORT"}
    assert settings["models.far.model"]["source"] == "nearfar.toml"
    assert settings["models.far.api_key"] == {"value": "**********", "source": "$OPENAI_API_KEY"}
    assert SECRET not in json.dumps(settings) + shown


def test_models_lists_cards_and_cascades(shell):
    """The list has every model with placement and price, and every cascade."""
    listed = shell.json("models")

    assert [(model["name"], model["placement"], model["kind"]) for model in listed["models"]] == [
        ("near", "near", "replay"),
        ("far", "far", "replay"),
    ]
    assert listed["cascades"] == {"auto": ["near", "far"]}
    assert "near → far" in shell.run("models", "list").stdout


def test_keys_are_shown_once_and_kept_hashed(shell):
    """A new key is printed once; the file holds its hash alone; a revoked one is gone."""
    done = shell.run("keys", "new", "laptop")
    key = done.stdout.strip()
    kept = "".join(path.read_text() for path in shell.folder.rglob("keys.json"))

    assert len(key) >= 43
    assert key not in kept
    assert "laptop" in kept
    assert [each["name"] for each in json.loads(shell.run("keys", "list", "--json").stdout)] == ["laptop"]
    assert "already" in shell.refused("keys", "new", "laptop")
    assert shell.run("keys", "revoke", "laptop").returncode == 0
    assert json.loads(shell.run("keys", "list", "--json").stdout) == []


def test_a_key_may_what_its_maker_says(shell):
    """Asking and running unless told otherwise; what is no right is refused."""
    shell.run("keys", "new", "program")
    desk = json.loads(shell.run("keys", "new", "desk", "--may", "approve", "--json").stdout)
    listed = json.loads(shell.run("keys", "list", "--json").stdout)

    assert desk["rights"] == ["approve"]
    assert {each["name"]: each["rights"] for each in listed} == {"program": ["ask", "run"], "desk": ["approve"]}
    assert "approve" in shell.run("keys", "list").stdout
    assert "'ask', 'run', 'approve'" in shell.refused("keys", "new", "other", "--may", "aprove")


def test_doctor_finds_what_is_wrong(shell):
    """Healthy is 0; a server that is down, a missing key and a broken config are found, each with a fix, and 1."""
    healthy = shell.run("doctor", "--json")
    (shell.folder / "nearfar.toml").write_text(
        CONFIG
        + '[models.down]\nkind = "openai"\nurl = "http://127.0.0.1:9/v1"\nmodel = "m"\n'
        + '[models.keyless]\nkind = "openai"\nmodel = "gpt-4.1"\n'
    )
    ill = shell.run("doctor", "--json")
    (shell.folder / "nearfar.toml").write_text("[models")
    broken = shell.run("doctor")

    assert healthy.returncode == 0
    assert json.loads(healthy.stdout)["healthy"] is True
    assert ill.returncode == 1
    checks = {check["name"]: check for check in json.loads(ill.stdout)["checks"]}
    assert checks["near"]["state"] == "ok"
    assert checks["down"]["state"] == "failed"
    assert "OPENAI_API_KEY" in checks["keyless"]["says"]
    assert all(check["fix"] for check in checks.values() if check["state"] == "failed")
    assert broken.returncode == 1
    assert "not valid TOML" in broken.stdout


def test_calibrate_writes_a_policy_that_a_cascade_takes(shell):
    """From labelled answers to a policy, and from the policy to calibrated decisions."""
    rows = [
        {"signals": {"mean_logprob": -i / 100, "num_tokens": 5 + i % 7}, "correct": int(i < 50 or i % 5 == 0)}
        for i in range(100)
    ]
    (shell.folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    report = shell.json("calibrate", "labels.jsonl", "--name", "mine")
    again = shell.run("calibrate", "labels.jsonl", "--name", "mine", "--method", "isotonic")
    (shell.folder / "nearfar.toml").write_text(
        CONFIG + '[cascades.auto]\ntiers = ["near", "far"]\npolicy = "mine.policy.json"\n'
    )

    assert report["policy"] == "mine@1"
    assert report["auroc"] > 0.7
    assert again.returncode == 0
    assert "mine@2 written to mine.policy.json" in again.stderr
    assert shell.json("ask", "capital of France?")["policy"] == "mine@2"


def test_serve_answers_openai_clients(shell):
    """The served cascade answers a chat completion with its decision, and ends at Ctrl-C."""
    import http.client

    with running(shell, "serve", "--port", "0", stderr=subprocess.PIPE, text=True) as server:
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "17*23?"}]})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)

    assert answer["choices"][0]["message"]["content"] == "391"
    assert server.returncode in (0, 130)
    assert shell.json("explain", "last")["door"] == "http"


# --- everywhere ------------------------------------------------------------------------------------------------------


def test_a_closed_pipe_is_quiet(shell):
    """A reader that goes away, such as `head`, makes no noise."""
    for _ in range(3):
        shell.run("ask", "17*23?")
    with running(shell, "decisions", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        stderr = child.stderr.read()

    assert stderr == b""


def test_every_command_has_help(bare):
    """Every command is listed with one line, and has its own help."""
    listed = bare.run("--help").stdout
    names = re.findall(r"^│ (\w+) {2,}\w", listed, re.MULTILINE)

    assert {
        *("ask", "chat", "route", "explain", "decisions", "batch", "models", "config", "calibrate", "serve", "keys"),
        *("init", "doctor", "demo"),
    } <= set(names)
    for name in ("ask", "batch", "models", "keys"):
        assert "Usage: nearfar " + name in bare.run(name, "--help").stdout
    assert re.fullmatch(r"nearfar \d+\.\d+\.\d+\n", bare.run("--version").stdout)


def test_help_is_light(bare):
    """Asking for help, or importing the package, loads nothing heavy."""
    heavy = [
        "pydantic",
        "msgspec",
        "aiohttp",
        "xllamacpp",
        "numpy",
        "starlette",
        "asyncio",
        "nearfar.config",
    ]
    script = f"import sys, nearfar.cli.app; print([name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=bare.environment)

    assert done.stdout.strip() == "['asyncio']", done.stderr


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {}])
def test_colours_only_at_a_terminal_that_wants_them(shell, variables):
    """Pipes and NO_COLOR get no colours."""
    with Pty(shell, "models", TERM="xterm-256color", **variables) as terminal:
        shown = terminal.expect("uncalibrated")
        terminal.exit_code()

    assert (b"\x1b[32m" in shown) == (not variables)
    assert "\x1b" not in shell.run("models").stdout


@pytest.mark.parametrize("is_terminal", [False, True])
def test_secrets_are_scrubbed_from_logs(is_terminal, monkeypatch):
    """Secrets given by value vanish from every log line, tracebacks included, and so do look-alikes."""
    written = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logs(["hunter2", "hunter2-longer"], level=logging.INFO)
        try:
            raise ValueError("hunter2")
        except ValueError:
            logging.getLogger("nearfar.x").exception("call %s with Bearer abcdefghijkl", "hunter2-longer")
        logging.getLogger("somebody.else").info("chatter")
    finally:
        root.handlers[:], root.level = before

    text = written.getvalue()
    assert "ValueError" in text
    assert "call *** with" in text
    for secret in ("hunter2", "longer", "abcdefghijkl", "chatter"):
        assert secret not in text
    if not is_terminal:
        assert json.loads(text)["level"] == "error"


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


# --- the real small model --------------------------------------------------------------------------------------------


def test_the_real_model_answers(bare):
    """With no config at all, the embedded model answers on this machine, with a score and a record."""
    variables = {"XDG_CACHE_HOME": str(smollm2_path().parents[3])}

    answer = bare.json("ask", "What is the capital of Japan?", "--temperature", "0", "--max-tokens", "32", **variables)

    assert "Tokyo" in answer["answer"]
    assert 0 < answer["score"] <= 1
    assert answer["calibrated"] is False
    assert (answer["tier"], answer["cost_usd"], answer["left_machine"]) == ("smollm2", 0.0, False)


def test_the_demo_runs(bare):
    """The demo answers live, says which answers would go far, and what to try next."""
    variables = {"XDG_CACHE_HOME": str(smollm2_path().parents[3])}

    done = bare.run("demo", **variables)

    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout
    assert re.search(r"stayed near .* score 0\.\d\d ≥ 0\.80", done.stdout)
    assert re.search(r"unsure .* score 0\.\d\d < 0\.80 .* none is configured", done.stdout)
    assert "the part before the separator" in done.stdout
    assert re.search(
        r"\[1\] /\S+/pydoc_data/topics\.py:\d+  pydoc_data\.topics\.topics\['string-methods'\]", done.stdout
    )
    assert "Try next:" in done.stdout


def test_the_demo_really_escalates(bare):
    """With a far model in the environment, what the small model is unsure of is answered there."""
    with CountingUpstream() as upstream:
        variables = {
            "XDG_CACHE_HOME": str(smollm2_path().parents[3]),
            "NEARFAR_FAR_URL": upstream.url,
            "NEARFAR_FAR_MODEL": "m",
        }
        done = bare.run("demo", **variables)

    assert done.returncode == 0, done.stderr
    assert "echo: What is 17 times 23?" in done.stdout
    assert "went far to far" in done.stdout
    assert "What is the capital of Japan?" not in upstream.prompts
