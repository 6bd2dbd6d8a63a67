"""A name is held for as long as its process lives, and not a moment longer."""

import subprocess
import sys
import textwrap
from contextlib import ExitStack

import pytest

from nearfar.models.owners import Owner, can_own, is_gone

pytestmark = pytest.mark.skipif(not can_own(), reason="this system has no such locks")

HOLD = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    from nearfar.models.owners import Owner

    owner = Owner(Path(sys.argv[1]))
    print(owner.name, flush=True)
    sys.stdin.read()
    """
)


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold a name each until they are killed or told to end."""
    with ExitStack() as stack:

        def start():
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD, str(tmp_path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield start


def test_a_killed_process_is_gone_and_a_living_one_is_not(tmp_path, holder):
    """SIGKILL leaves a file, which goes with the first look."""
    process = holder()
    name = process.stdout.readline().strip()

    before = is_gone(tmp_path, name)
    process.kill()
    process.wait()
    left = [path.name for path in tmp_path.iterdir()]
    after = is_gone(tmp_path, name)

    assert (before, after) == (False, True)
    assert left == [name]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_leaves_no_file(tmp_path, holder):
    """It takes its own away."""
    process = holder()
    name = process.stdout.readline().strip()

    process.stdin.close()
    process.wait()

    assert list(tmp_path.iterdir()) == []
    assert is_gone(tmp_path, name)


def test_a_closed_owner_is_gone(tmp_path):
    """In the same process, too."""
    owner = Owner(tmp_path / "new")

    before = is_gone(tmp_path / "new", owner.name)
    owner.close()
    owner.close()

    assert not before
    assert is_gone(tmp_path / "new", owner.name)
    assert list((tmp_path / "new").iterdir()) == []


def test_owners_that_begin_at_once_do_not_take_each_other_for_gone(tmp_path, holder):
    """Each cleans up as it begins; no name that is held is taken away, and what a killed one left is."""
    killed = holder()
    killed.stdout.readline()
    killed.kill()
    killed.wait()
    processes = [holder() for _ in range(8)]
    names = [process.stdout.readline().strip() for process in processes]

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [is_gone(tmp_path, name) for name in names] == [False] * 8
