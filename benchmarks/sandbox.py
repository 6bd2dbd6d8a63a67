"""What the sandboxes keep in: every attack of the tests' suite, then sessions that must leave nothing behind.

    python benchmarks/sandbox.py         writes results/sandbox.json

By runner: attacks by family, how many got out (any trace of the bait), how many bombs were not stopped, the longest run
against its limit, the most memory that any process of the sandbox held; then what 1,000 sessions left in descriptors,
processes and memory, and how long a session takes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from provenance import ROOT, provenance, save

sys.path.insert(0, str(ROOT / "tests"))

from support.code_attacks import ATTACKS, LIMITS, attempt, laid_out
from support.leaks import children, left_behind, peak_bytes

from nearfar.agents.code_tool import find_runner
from nearfar.agents.types import CodeRunner
from nearfar.errors import ConfigError


async def attacked(make: Callable[[], CodeRunner]) -> dict[str, Any]:
    """Every attack against one runner."""
    before = children()
    runner = make()
    got_out: list[str] = []
    not_stopped: list[str] = []
    limits: Counter[str] = Counter()
    longest = peak = 0.0
    watching = True

    async def watch() -> None:
        nonlocal peak
        while watching:
            peak = max([peak, *map(peak_bytes, children() - before)])
            await asyncio.sleep(0.05)

    watcher = asyncio.create_task(watch())
    with tempfile.TemporaryDirectory() as folder:
        async with laid_out(Path(folder)) as bait:
            for attack in ATTACKS:
                result, traces = await attempt(runner, attack, bait)
                label = f"{attack.family}: {attack.name}"
                got_out += [f"{label}: {trace}" for trace in traces]
                not_stopped += [label] if attack.must_stop and result.error is None else []
                limits[result.limit or ("error" if result.error else "ended by itself")] += 1
                longest = max(longest, result.seconds)
    watching = False
    await watcher
    await runner.aclose()
    return {
        "attacks": len(ATTACKS),
        "by_family": dict(Counter(attack.family for attack in ATTACKS)),
        "got_out": got_out,
        "not_stopped": not_stopped,
        "ended_by": dict(limits),
        "longest_s": round(longest, 3),
        "time_limit_s": LIMITS.seconds,
        "memory_limit_mib": LIMITS.memory_bytes // 2**20,
        "peak_of_any_process_mib": round(peak / 2**20, 1),
    }


async def timed(make: Callable[[], CodeRunner], runs: int = 30) -> dict[str, float]:
    """Seconds from code to result, for `1 + 1`: the first, and the median of the next."""
    runner = make()
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        assert (await runner.run("1 + 1")).value == 2
        seconds.append(time.perf_counter() - started)
    await runner.aclose()
    return {"first_s": round(seconds[0], 4), "median_s": round(median(seconds[1:]), 4)}


async def main() -> None:
    """Runs all of it and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1_000)
    args = parser.parse_args()
    results: dict[str, Any] = {**provenance("python benchmarks/sandbox.py", ["pydantic-monty"]), "runners": {}}
    for name in ("monty", "bubblewrap"):

        def make(name: Any = name) -> CodeRunner:
            return find_runner(name, workers=1)

        try:
            page = {**await attacked(make), "latency": await timed(make)}
        except ConfigError as exc:
            results["runners"][name] = {"skipped": str(exc)}
            continue
        left = await left_behind(make, warm=50, sessions=args.sessions)
        results["runners"][name] = {**page, "sessions": args.sessions, "left_behind": asdict(left)}
    print(save(results, "sandbox"))


if __name__ == "__main__":
    asyncio.run(main())
