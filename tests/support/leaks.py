"""What sessions of a sandbox leave behind in this process and beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nearfar.agents.types import CodeRunner

#: Code that ends well, fails, prints too much, takes too much memory, and calls too often.
CODES = ("print(lookup(1))\n[1, 2]", "1/0", "print('a' * 10**6)", "x = [0] * 10**10", "while True: lookup(1)")


@dataclass(frozen=True, slots=True)
class Left:
    """How much more there is than before."""

    descriptors: int
    memory_bytes: int
    processes: int  # after closing


async def left_behind(make: Callable[[], CodeRunner], *, warm: int, sessions: int) -> Left:
    """What is left after `sessions` runs, beyond what the first `warm` took."""
    before = children()
    runner = make()

    async def run(count: int) -> None:
        for i in range(count):
            await runner.run(CODES[i % len(CODES)], functions={"lookup": str})

    await run(warm)
    descriptors, memory = num_descriptors(), resident_bytes()
    await run(sessions)
    more_descriptors, more_memory = num_descriptors() - descriptors, resident_bytes() - memory
    await runner.aclose()
    return Left(more_descriptors, more_memory, len(children() - before))


def num_descriptors() -> int:
    """How many files, pipes and sockets this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def children() -> set[str]:
    """The processes that this one started, and theirs."""
    found = {str(os.getpid())}
    while True:
        more = {
            status.parent.name
            for status in Path("/proc").glob("[0-9]*/stat")
            if (text := _read(status)) and text.rpartition(")")[2].split()[1] in found
        } - found
        if not more:
            return found - {str(os.getpid())}
        found |= more


def peak_bytes(process: str) -> int:
    """The most memory that a process has held so far; 0 where it is gone."""
    found = [line for line in _read(Path("/proc", process, "status")).splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) * 1024 if found else 0


def resident_bytes() -> int:
    """What this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
