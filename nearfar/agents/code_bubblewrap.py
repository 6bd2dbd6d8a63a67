"""Runs a model's code in real CPython inside bubblewrap: no network, no home, a read-only system, hard limits."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from nearfar.errors import ConfigError

from .code_border import MAX_CODE_CHARACTERS, Function, Grants
from .code_conversation import Conversation, NotReady, line_limit
from .code_seccomp import filter_program, supports
from .processes import end
from .types import CodeLimits, CodeResult

#: What the interpreter itself takes of the address space, before any code runs (27 MiB here, with room).
_INTERPRETER_BYTES: Final = 48 * 2**20

#: The sandbox's own writable folder, in memory.
_SCRATCH: Final = "/tmp"  # noqa: S108 -- the sandbox's, not the machine's
_SCRATCH_BYTES: Final = 8 * 2**20

#: Whom the code runs as.
_NOBODY: Final = 65_534

#: Where the interpreter is in the sandbox; where it is on the machine is nobody's affair there.
_PYTHON: Final = "/python"

_DRIVER: Final = Path(__file__).with_name("code_driver.py")

_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/urandom")


class BubblewrapRunner:
    """Runs code in CPython, one process a run, with the standard library and no other package.

    Around the process: namespaces of its own for processes, network, mounts, names and shared memory; no capability;
    nothing mounted but the interpreter and its libraries, read-only, and a scratch folder of 8 MiB in memory. On it:
    hard limits for address space, processor time, files and processes (none besides itself), a filter of system calls
    (`code_seccomp`), and the clock of the host, which stands still while a granted function runs. Use it in one event
    loop.

    Args:
        workers: how many pieces of code run at once.
        limits: where a run names none.

    Raises:
        ConfigError: bubblewrap is not installed, or this is no Linux on x86_64 or aarch64.
    """

    def __init__(self, *, workers: int = 2, limits: CodeLimits | None = None) -> None:
        found = shutil.which("bwrap")
        if found is None or not sys.platform.startswith("linux"):
            raise ConfigError(
                "Code in real CPython needs bubblewrap, which is not here. Install it (apt install bubblewrap), "
                "or use the runner 'monty'."
            )
        if not supports():
            raise ConfigError(
                f"The sandbox with bubblewrap knows no system calls of {platform.machine()!r}. Use the runner 'monty'."
            )
        self._bwrap = found
        self._limits = limits or CodeLimits()
        self._turns = asyncio.Semaphore(workers)

    @property
    def name(self) -> str:
        """Which sandbox it is."""
        return "bubblewrap"

    async def run(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        functions: Mapping[str, Function] | None = None,
        limits: CodeLimits | None = None,
    ) -> CodeResult:
        """See `CodeRunner.run`.

        Raises:
            ConfigError: this system lets bubblewrap make no sandbox.
        """
        limits = limits or self._limits
        if len(code) > MAX_CODE_CHARACTERS:
            return CodeResult(error=f"the code has more than {MAX_CODE_CHARACTERS} characters")
        rlimits = {
            "RLIMIT_AS": limits.memory_bytes + _INTERPRETER_BYTES,
            "RLIMIT_CPU": int(limits.seconds) + 2,
            "RLIMIT_NPROC": 0,  # no process or thread besides itself
            "RLIMIT_FSIZE": _SCRATCH_BYTES,
            "RLIMIT_NOFILE": 32,
            "RLIMIT_CORE": 0,
        }
        async with self._turns:
            process = await self._start(limits)
            try:
                talk = Conversation(process, limits, Grants(functions or {}, limits))
                user = _NOBODY if os.geteuid() == 0 else None
                await talk.start(code, inputs or {}, limits=rlimits, recursion=limits.recursion, user=user)
                return await talk.result()
            except NotReady as exc:
                raise ConfigError(
                    f"bubblewrap makes no sandbox here: {str(exc) or 'it said nothing'}. Use version 0.8 or later and "
                    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
                    "kernel.apparmor_restrict_unprivileged_userns=0), or use the runner 'monty'."
                ) from exc
            finally:
                await end(process)

    async def aclose(self) -> None:
        """Nothing is held between runs."""

    async def _start(self, limits: CodeLimits) -> asyncio.subprocess.Process:
        with _filter_file() as seccomp:
            return await asyncio.create_subprocess_exec(
                *_sandbox(self._bwrap),
                "--seccomp",
                str(seccomp),
                *_interpreter(),
                pass_fds=(seccomp,),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
                cwd="/",
                limit=line_limit(limits),
            )


@contextmanager
def _filter_file() -> Iterator[int]:
    """A descriptor to read the filter of system calls from; each sandbox reads its own."""
    reading, writing = os.pipe()
    try:
        os.write(writing, filter_program())  # far less than a pipe holds
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


@cache
def _sandbox(bwrap: str) -> tuple[str, ...]:
    """bubblewrap's part of the command line."""
    command = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv"]
    if os.geteuid() == 0:
        # No namespace for users, in which root stays root to the kernel, which then counts no limit of processes:
        # the driver becomes nobody before any code runs, and can never become another.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    command += ["--ro-bind", str(Path(sys.base_prefix).resolve()), _PYTHON, "--perms", "0755", "--dir", "/usr"]
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"):
        path = Path(folder)
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), folder]
        elif path.is_dir():
            command += ["--ro-bind", folder, folder]
    command += [
        "--perms",
        "1777",
        "--size",
        str(_SCRATCH_BYTES),
        "--tmpfs",
        _SCRATCH,
        "--size",
        "4096",
        "--tmpfs",
        "/dev",
    ]
    for device in _DEVICES:
        command += ["--dev-bind", device, device]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", _SCRATCH]
    command += ["--setenv", "LD_LIBRARY_PATH", f"{_PYTHON}/lib"]
    return tuple(command)


@cache
def _interpreter() -> tuple[str, ...]:
    """The interpreter's part: no environment, no site packages, no files written, UTF-8."""
    executable = f"{_PYTHON}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return (executable, "-I", "-S", "-B", "-X", "utf8", "-c", _DRIVER.read_text(encoding="utf-8"))
