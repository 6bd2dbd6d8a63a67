"""Ends child processes for good: asyncio's own `wait` also waits for whoever inherited the pipes, or for a full one."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Final

_ASK_EVERY_S: Final = 0.01


async def has_exited(process: asyncio.subprocess.Process, patience_s: float) -> bool:
    """Whether the process is gone by then."""
    for _ in range(round(patience_s / _ASK_EVERY_S)):
        if process.returncode is not None:
            break
        await asyncio.sleep(_ASK_EVERY_S)
    return process.returncode is not None


def signal_group(pid: int, number: signal.Signals) -> None:
    """Sends a signal to all processes of a group, if there are any left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill(process: asyncio.subprocess.Process) -> None:
    """Kills the process, if it lives."""
    # Its own `kill` looks first whether it lives, which may take the exit code away from asyncio, which then warns.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def end(process: asyncio.subprocess.Process, patience_s: float = 5.0) -> None:
    """Kills the process, if it lives, and closes its pipes."""
    kill(process)
    await has_exited(process, patience_s)
    # Nothing public closes the pipes while somebody else holds their other end, or what they hold is unread.
    if (transport := getattr(process, "_transport", None)) is not None:
        transport.close()
    await asyncio.sleep(0)  # the pipes' transports close in the loop's next round
