"""The measured table of capacity.md, from the committed results of `benchmarks/capacity.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_pages import measured


def capacity_documents() -> Iterator[tuple[Path, str]]:
    """The page with its table as the results have it."""
    yield measured("capacity.md", ("begin: capacity", "capacity", _table))


def _table(results: dict[str, Any]) -> str:
    lines = [
        "| sizes | target | requests/s | mix | $ an hour | greedy | best single kind | saved | p99 first | p99 next |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["plans"]:
        target, mix, greedy = results["targets"][row["target"]], row["mix"], row["greedy"]
        machines = ", ".join(f"{count} × {name}" for name, count in mix["machines"].items())
        cells = [
            row["workload"],
            f"{target['ttft_s']:g} s, {1000 * target['tpot_s']:g} ms",
            f"{row['rate']:g}",
            machines,
            f"{mix['usd_per_hour']:.2f}",
            f"{greedy['usd_per_hour']:.2f}" if greedy["keeps_target_when_chosen"] else "missed",
            f"{row['best_single_usd_per_hour']:.2f}" if row["best_single_usd_per_hour"] else "missed",
            f"{row['saving']:.0%}" if row["saving"] is not None else "—",
            f"{mix['ttft_p99_s']:.2f} s",
            f"{1000 * mix['tpot_p99_s']:.0f} ms{'' if mix['keeps_target_again'] else ' (missed)'}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    kept = sum(row["mix"]["keeps_target_again"] for row in results["plans"])
    lines += ["", f"{kept} of {len(results['plans'])} plans keep the target in a second simulation."]
    return "\n".join(lines)
