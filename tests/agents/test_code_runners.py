"""Every runner of code keeps to the contract, and no attack gets out of any."""

import shutil
import stat
import subprocess
import sys

import pytest

pytest.importorskip("pydantic_monty", reason="needs nearfar[agents]")

from contracts.code_runner import CodeRunnerContract
from support.code_attacks import ATTACKS, LIMITS, SECRET, attempt, laid_out
from support.leaks import left_behind

from nearfar.agents.code_bubblewrap import BubblewrapRunner
from nearfar.agents.code_monty import MontyRunner
from nearfar.errors import ConfigError

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt install bubblewrap")


@pytest.fixture
async def monty():
    """The default runner."""
    runner = MontyRunner()
    yield runner
    await runner.aclose()


class TestMonty(CodeRunnerContract):
    """monty keeps to the contract."""

    @pytest.fixture
    def runner(self, monty):
        return monty


@needs_bubblewrap
class TestBubblewrap(CodeRunnerContract):
    """bubblewrap keeps to the contract."""

    @pytest.fixture
    def runner(self):
        return BubblewrapRunner()

    async def test_it_is_real_python(self, runner):
        """The standard library is there, and a scratch folder."""
        result = await runner.run(
            "import statistics, sqlite3, decimal\nopen('notes.txt', 'w').write('hello')\n"
            "def numbers():\n    yield from (1, 2, 6)\n"
            "(statistics.mean(numbers()), open('notes.txt').read(), str(decimal.Decimal(1) / 8))"
        )

        assert result.error is None
        assert result.value == [3, "hello", "0.125"]


def runner_of(name: str):
    """A runner by its name."""
    return MontyRunner(workers=1) if name == "monty" else BubblewrapRunner(workers=1)


@pytest.mark.parametrize("family", sorted({attack.family for attack in ATTACKS}))
@pytest.mark.parametrize("name", ["monty", pytest.param("bubblewrap", marks=needs_bubblewrap)])
async def test_no_attack_gets_out(name, family, tmp_path, monkeypatch):
    """Nothing is read, written, reached or started outside, what must stop is stopped, and the runner still works."""
    monkeypatch.setenv("NEARFAR_BAIT", SECRET)
    runner = runner_of(name)
    attacks = [attack for attack in ATTACKS if attack.family == family]

    try:
        async with laid_out(tmp_path) as bait:
            ends = {attack.name: await attempt(runner, attack, bait) for attack in attacks}
        after = await runner.run("20 + 1")
    finally:
        await runner.aclose()

    assert {attack: traces for attack, (_, traces) in ends.items() if traces} == {}
    assert [attack.name for attack in attacks if attack.must_stop and ends[attack.name][0].error is None] == []
    assert max(len(result.output) for result, _ in ends.values()) <= LIMITS.output_characters
    assert after.value == 21


def test_attacks_are_many_and_differ():
    """The promised sixty, each under a name of its own."""
    assert len({(each.family, each.name) for each in ATTACKS}) == len(ATTACKS) >= 60


async def sessions_leak_nothing(name: str, warm: int, sessions: int) -> None:
    """Descriptors and processes are what they were after so many sessions, and memory nearly."""
    left = await left_behind(lambda: runner_of(name), warm=warm, sessions=sessions)

    assert left.descriptors <= 1  # a worker that was ended is replaced at the next need
    assert left.memory_bytes < 8 * 2**20
    assert left.processes == 0


@pytest.mark.parametrize("name", ["monty", pytest.param("bubblewrap", marks=needs_bubblewrap)])
async def test_sessions_leak_nothing(name):
    """Many sessions leave nothing behind."""
    await sessions_leak_nothing(name, warm=5, sessions=20)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["monty", pytest.param("bubblewrap", marks=needs_bubblewrap)])
async def test_thousand_sessions_leak_nothing(name):
    """A thousand sessions leave nothing behind."""
    await sessions_leak_nothing(name, warm=50, sessions=1_000)


def test_process_ends_cleanly_after_runs():
    """The interpreter that used the sandbox exits with 0 and leaves no thread of monty's to abort it."""
    code = (
        "import asyncio\nfrom nearfar.agents.code_monty import MontyRunner\n"
        "async def main():\n    runner = MontyRunner()\n    print((await runner.run('1 + 1')).value)\n"
        "    await runner.aclose()\nasyncio.run(main())"
    )

    ends = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False) for _ in range(5)]

    assert [(each.returncode, each.stdout.strip()) for each in ends] == [(0, "2")] * 5


def test_missing_bubblewrap_is_refused_with_the_fix(monkeypatch, tmp_path):
    """Without the program there is no runner, and the message says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match="apt install bubblewrap"):
        BubblewrapRunner()


async def test_bubblewrap_that_may_not_is_refused_with_the_fix(monkeypatch, tmp_path):
    """Where the system forbids what it needs, nothing runs unprotected, and the message says what to allow."""
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match=r"No permissions to create a new namespace.*monty"):
        await BubblewrapRunner().run("1 + 1")
