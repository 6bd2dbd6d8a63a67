"""Puts this folder on the path, so that tests share `support` and `contracts`; no test is timed.

`--results FILE` writes what ran and how it ended, with what the tests recorded of themselves: `make soak` commits it.
What is in the file of tests that did not run stays there, with its own time and commit.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--results`."""
    parser.addoption("--results", metavar="FILE", help="write the outcomes as JSON")


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


def pytest_configure(config: pytest.Config) -> None:
    """Registers the collector where a file is named."""
    if path := config.getoption("--results"):
        config.pluginmanager.register(Results(Path(path)))
