"""A server as a group of processes: started here or found running, watched, and ended with all of its children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from nearfar.errors import ConfigError

_POLL_S = 0.05


class ServerProcess:
    """A process that leads a group of its own.

    Attributes:
        pid: its number, and its group's.
        started: when it began, in the kernel's words; tells it from a later process with the same number.
    """

    def __init__(self, pid: int, started: str, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.started = started
        self._child = child

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Self:
        """Starts a command in a group of its own, with what it prints added to `log`.

        Raises:
            ConfigError: it cannot be started, or the log cannot be written.
        """
        try:
            with log.open("ab") as out:
                child = subprocess.Popen(  # noqa: S603 - built by EngineSpec.command
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
        except OSError as exc:
            raise ConfigError(f"Cannot start {command[0]!r}: {exc.strerror or exc}. Check engines.python.") from exc
        return cls(child.pid, started_at(child.pid) or "", child)

    @classmethod
    def adopt(cls, pid: int, started: str) -> Self | None:
        """The process, where it still runs."""
        found = cls(pid, started)
        return found if found.is_running() else None

    @property
    def returncode(self) -> int | None:
        """How it ended; None where it runs, or was started by somebody else."""
        return None if self._child is None else self._child.poll()

    def is_running(self) -> bool:
        """Whether it is alive."""
        if self._child is not None:
            return self._child.poll() is None
        return started_at(self.pid) == self.started

    def rss_bytes(self) -> int | None:
        """Resident memory of the whole group, shared pages counted once each process; None where nobody knows."""
        total = 0
        for pid in members(self.pid):
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, ValueError, IndexError):
                continue
            total += pages * os.sysconf("SC_PAGE_SIZE")
        return total or None

    async def stop(self, grace_s: float) -> None:
        """Asks it to end, waits, and kills what is left of its group. Twice is fine."""
        if self.is_running():
            self._signal(signal.SIGTERM, to_group=False)
            await self._until_gone(grace_s)
        await self.kill()

    async def kill(self) -> None:
        """Kills the whole group, and waits until nothing is left of it."""
        if self.is_running() or members(self.pid):
            self._signal(signal.SIGKILL, to_group=True)
            await self._until_gone(10.0)

    async def _until_gone(self, limit_s: float) -> None:
        for _ in range(max(1, round(limit_s / _POLL_S))):
            if not self.is_running() and not members(self.pid):
                return
            await asyncio.sleep(_POLL_S)

    def _signal(self, number: signal.Signals, *, to_group: bool) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if to_group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)


def started_at(pid: int) -> str | None:
    """When the process began, in the kernel's words; None where there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - where there is no /proc
        return shown.stdout.strip() or None
    return None if fields[0] in "ZX" else fields[19]


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX" and int(fields[2]) == group:
            found.append(int(entry.name))
    return found
