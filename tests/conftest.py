"""Puts this folder on the path, so that tests share `support` and `contracts`; no test is timed.

`--results FILE` writes what ran and how it ended, with what the tests recorded of themselves: `make soak` commits it.
What is in the file of tests that did not run stays there, with its own time and commit.

`--must-run WORD` fails the run where a test was skipped for a reason that holds the word: CI installs what needs root,
and nothing that needs it may be skipped there.
"""

import json
import os
import platform
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A shell without job control has its background jobs ignore Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# OpenMP's threads sleep where they wait: llama.cpp's otherwise spin against whatever else the tests run.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--results` and `--must-run`."""
    parser.addoption("--results", metavar="FILE", help="write the outcomes as JSON")
    parser.addoption(
        "--must-run", metavar="WORD", action="append", default=[], help="fail where a skip's reason holds this word"
    )


class Results:
    """Collects what ran."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: list[dict[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes one test's call, or the phase in which it ended otherwise."""
        if report.when == "call" or report.outcome != "passed":
            self.tests.append(
                {
                    "test": report.nodeid,
                    "outcome": report.outcome,
                    "duration_s": round(report.duration, 2),
                    **dict(report.user_properties),
                }
            )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes the file."""
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        when = {"created_at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit.stdout.strip()}
        earlier = json.loads(self.path.read_text())["tests"] if self.path.exists() else []
        known = {test["test"]: test for test in earlier}
        known.update((str(test["test"]), test | when) for test in self.tests)
        page = {
            "command": "make soak",
            "machine": {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
            "tests": list(known.values()),
        }
        self.path.write_text(json.dumps(page, indent=1) + "\n")


class MustRun:
    """Fails the run where what had to run was skipped."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.missed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes a skip that may not be."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Notes a whole file's skip that may not be."""
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        if any(word.lower() in reason.lower() for word in self.words):
            self.missed.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turns such a skip into a failure."""
        if self.missed and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Says what was missed."""
        for line in self.missed:
            terminalreporter.write_line(f"skipped, but had to run: {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the collectors that are asked for."""
    if words := config.getoption("--must-run"):
        config.pluginmanager.register(MustRun(words))
    if path := config.getoption("--results"):
        config.pluginmanager.register(Results(Path(path)))
