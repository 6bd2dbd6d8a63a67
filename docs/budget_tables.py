"""The measured tables of agents-budget.md, from the committed result of `benchmarks/agent_budget.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measured_pages import measured, share, signed

_PLANNERS = {"smollm2": "SmolLM2", "rules": "rules, no model", "scripted": "scripted, 89 % right"}


def budget_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the result has them; without a result it stays as it is."""
    yield measured(
        "agents-budget.md",
        ("begin: grid", "agent_budget", _grid),
        ("begin: search", "agent_budget", _search),
        ("begin: draws", "agent_budget", _draws),
    )


def _grid(results: Mapping[str, Any]) -> str:
    lines = [
        f"{results['n']} questions; 95 % bootstrap intervals over questions.",
        "",
        "| planner | draws | caller's draws | right function called | call right | tokens |",
        "|---|---:|---:|---|---|---:|",
    ]
    for name, cell in results["cells"].items():
        planner, draws, caller = _parts(name)
        lines.append(
            f"| {planner} | {draws} | {caller} | {share(cell['plan_accuracy'])} | {share(cell['accuracy'])}"
            f" | {cell['tokens']:,.0f} |"
        )
    return "\n".join(lines)


def _search(results: Mapping[str, Any]) -> str:
    lines = [
        "| planners | tokens | chosen on all: planner, its draws, caller's | call right, held out | over even shares |",
        "|---|---:|---|---|---|",
    ]
    for family, found in results["search"].items():
        for entry in found:
            planner, draws, caller = _parts(entry["cell"])
            gain = signed(entry["gain_over_even_shares"]) if "gain_over_even_shares" in entry else "—"
            lines.append(
                f"| {family.replace('smollm2', 'SmolLM2')} | {entry['budget']:,.0f} | {planner}, {draws}, {caller}"
                f" | {share(entry['accuracy_held_out'])} | {gain} |"
            )
    return "\n".join(lines)


def _draws(results: Mapping[str, Any]) -> str:
    rows = [
        f"| {_told(each['against'])} | {_told(each['cell'])} | {signed(each['gain'])} |"
        for each in results["more_draws"]
    ]
    return "\n".join(["| from | to | call right |", "|---|---|---|", *rows])


def _told(name: str) -> str:
    planner, draws, caller = _parts(name)
    return f"{planner} × {draws}, caller × {caller}"


def _parts(name: str) -> tuple[str, str, str]:
    """Planner, its draws and the caller's, of "smollm2 x 3, caller x 5"."""
    first, second = name.split(", ")
    planner, draws = first.split(" x ")
    return _PLANNERS[planner], draws, second.removeprefix("caller x ")
