"""The measured tables of guarantees.md, from the committed results of `benchmarks/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_pages import measured


def guarantee_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the results have them; a table without results stays as it is."""
    yield measured(
        "guarantees.md",
        ("begin: guarantees", "guarantees", _guarantees),
        ("begin: drift", "drift", _drift),
        ("begin: off-policy", "off_policy", _off_policy),
    )


def _guarantees(results: dict[str, Any]) -> str:
    lines = [
        "| method | most broken, δ = 0.05 | most broken, δ = 0.1 | valid in every cell | mean coverage |",
        "|---|---:|---:|---|---:|",
    ]
    found = results["accepted_error"]
    for method, figures in found["summary"].items():
        most = {
            delta: max(c["broken"] for c in found["cells"] if c["method"] == method and c["delta"] == delta)
            for delta in (0.05, 0.1)
        }
        valid = "yes" if figures["is_valid_within_2_se"] else "no"
        lines.append(f"| {method} | {most[0.05]:.1%} | {most[0.1]:.1%} | {valid} | {figures['mean_coverage']:.4f} |")
    own = found["summary"]["nearfar"]
    lines += [
        "",
        f"On the test part, which adds its own noise, the most is {own['most_broken_on_test']:.1%}; {_over(found)}.",
        "",
        "The quality lost against always far, δ = 0.1, on the tables that have a far model:",
        "",
        "| table | α | nearfar: broken | accepts | conformal risk control: broken | accepts |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for cell in (each for each in results["quality_loss"] if each["method"] == "nearfar"):
        key = (cell["table"], cell["alpha"])
        other = next(c for c in results["quality_loss"] if (c["table"], c["alpha"]) == key and c["method"] != "nearfar")
        lines.append(
            f"| {key[0]} | {key[1]} | {cell['broken']:.0%} | {cell['coverage']:.1%} | {other['broken']:.0%} | "
            f"{other['coverage']:.1%} |"
        )
    return "\n".join(lines)


def _over(found: dict[str, Any]) -> str:
    """Which cells are above delta on the test part by more than two standard errors."""
    cells = [
        f"{c['table']} at α = {c['alpha']} and δ = {c['delta']} ({c['broken_on_test']:.1%})"
        for c in found["cells"]
        if c["method"] == "nearfar"
        and c["broken_on_test"] > c["delta"] + 2 * (c["delta"] * (1 - c["delta"]) / 500) ** 0.5
    ]
    return f"above δ by more than two standard errors: {', '.join(cells) or 'none'}"


def _drift(results: dict[str, Any]) -> str:
    rate, streams, length = results["false_alarm_rate"], results["streams"], results["length"]
    told = (
        f"`benchmarks/drift.py`: {streams:,} streams of {length:,} outcomes at exactly the promised error, at a stated "
        f"rate of {rate:.0%}; then a drop of the accuracy after {results['outcomes_before_the_change']} outcomes."
    )
    lines = [
        told,
        "",
        "| α | false alarms | outcomes until the alarm, −5 points: median (90 %) | −10 points: median (90 %) |",
        "|---:|---:|---:|---:|",
    ]
    for cell in results["errors"]:
        five, ten = cell["drop_5_points"], cell["drop_10_points"]
        lines.append(
            f"| {cell['alpha']} | {cell['false_alarms']:.1%} | {five['median']:.0f} ({five['p90']:.0f}) | "
            f"{ten['median']:.0f} ({ten['p90']:.0f}) |"
        )
    lines += [
        "",
        "| signals of | from | to | false alarms | signals until the alarm: median (90 %) | seen within 1,000 |",
        "|---|---|---|---:|---:|---:|",
    ]
    for cell in results["signals"]:
        change = cell["change"]
        lines.append(
            f"| {cell['model']} | {cell['from']} | {cell['to']} | {cell['false_alarms']:.1%} | "
            f"{change['median']:.0f} ({change['p90']:.0f}) | {change['seen']:.0%} |"
        )
    return "\n".join(lines)


def _off_policy(results: dict[str, Any]) -> str:
    told = (
        f"`benchmarks/off_policy.py`: {results['runs']} logs of {results['choices']:,} choices, drawn from real tables "
        "by chance and by a bandit; the share of 95 % intervals that cover the policy's true value, and their mean "
        "width."
    )
    lines = [
        told,
        "",
        "| table | logged by | doubly robust: covers | width | self-normalised: covers | width |",
        "|---|---|---:|---:|---:|---:|",
    ]
    cells = results["cells"]
    for robust in (cell for cell in cells if cell["method"] == "doubly_robust"):
        key = (robust["table"], robust["logged_by"])
        plain = next(c for c in cells if (c["table"], c["logged_by"]) == key and c["method"] == "snips")
        lines.append(
            f"| {key[0]} | {key[1]} | {robust['covered']:.1%} | {robust['mean_width']:.4f} | {plain['covered']:.1%} | "
            f"{plain['mean_width']:.4f} |"
        )
    return "\n".join(lines)
