"""The kernel is built once for what it is built from, and again when any of that changes; errors say what to do."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")

from nearfar.errors import ConfigError
from nearfar.serving.kernels.cpu import extension


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that copies nothing but its name into what it makes, and counts its calls."""
    path = tmp_path / "compiler"
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then cat "$(dirname "$0")/version"; exit; fi\n'
        'echo "$@" >> "$(dirname "$0")/calls"\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo made > "$2"\n'
    )
    path.chmod(0o755)
    (tmp_path / "version").write_text("one 1.0\n")
    return path


def calls(compiler):
    """How often it was called to compile or to link."""
    log = compiler.with_name("calls")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_what_was_built_is_kept(compiler, tmp_path):
    """A second call compiles nothing."""
    path = extension.build(tmp_path / "kept", compiler=str(compiler))
    count = calls(compiler)

    assert extension.build(tmp_path / "kept", compiler=str(compiler)) == path
    assert (calls(compiler), path.read_text()) == (count, "made\n")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # nothing half-built is left


def test_another_compiler_builds_another(compiler, tmp_path):
    """What an earlier version built is not loaded."""
    first = extension.build(tmp_path / "kept", compiler=str(compiler))
    compiler.with_name("version").write_text("one 1.1\n")

    second = extension.build(tmp_path / "kept", compiler=str(compiler))

    assert first != second
    assert second.exists()


def test_no_compiler_is_said(tmp_path, monkeypatch):
    """With what happens then."""
    with pytest.raises(ConfigError, match=r"No C\+\+ compiler \('no-such-compiler'\); .* torch alone"):
        extension.build(tmp_path, compiler="no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"g\+\+, c\+\+ or clang"):
        extension.build(tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path):
    """Its first error, and no file is left that looks built."""
    path = tmp_path / "compiler"
    path.write_text("#!/bin/sh\necho 'x.cpp:1: error: unknown option -mavx512vnni' >&2\nexit 1\n")
    path.chmod(0o755)

    with pytest.raises(ConfigError, match="error: unknown option -mavx512vnni"):
        extension.build(tmp_path / "kept", compiler=str(path))

    assert list((tmp_path / "kept").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path, compiler):
    """The cache's place is a file."""
    (tmp_path / "kept").write_text("")

    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        extension.build(tmp_path / "kept", compiler=str(compiler))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("import platform; platform.machine = lambda: 'aarch64'", "on 'aarch64'"),
        ("torch.__version__ = '2.9.1'", "needs torch 2.10 or newer, and this is 2.9.1"),
        ("import os; os.environ['CXX'] = 'no-such-compiler'", "No C"),
    ],
)
def test_where_it_cannot_run_the_reason_is_given(tmp_path, prepare, message):
    """And importing it and the reference works all the same."""
    script = (
        f"import torch\n{prepare}\n"
        "from nearfar.errors import ConfigError\nfrom nearfar.serving.kernels import cpu\n"
        "try:\n    cpu.load()\nexcept ConfigError as exc:\n    print(exc)\n"
    )

    made = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert message in made.stdout


def test_a_damaged_library_is_not_loaded(tmp_path):
    """The message names the file to delete."""
    script = (
        "from nearfar.errors import ConfigError\nfrom nearfar.serving.kernels.cpu import extension\n"
        "folder = extension.default_folder()\n"
        "folder.mkdir(parents=True)\n"
        "path = folder / f'nested-{extension._digest(extension._compiler(None))}.so'\n"
        "path.write_bytes(b'cut off')\n"
        "try:\n    extension.load()\nexcept ConfigError as exc:\n    print(exc)\n"
    )

    made = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "Delete it, and it is built again" in made.stdout
