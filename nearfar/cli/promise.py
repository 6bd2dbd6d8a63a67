"""`nearfar calibrate --near … --far …`: the threshold on a signal that keeps a promise, and the policy of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import remark, stdout, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.router.paired import Missing, PairedOutcomes
    from nearfar.types import Threshold


class TargetChoice(StrEnum):
    """What is promised."""

    accepted_error = "accepted-error"
    quality_loss = "quality-loss"
    cost = "cost"


class MissingChoice(StrEnum):
    """What becomes of a near answer without a signal."""

    refuse = "refuse"
    defer = "defer"


def promise(
    source: Path,
    *,
    near: str,
    far: str,
    signal: str,
    target: TargetChoice,
    alpha: float,
    delta: float,
    missing: Missing,
    columns: dict[str, str],
    tier: str | None,
    name: str,
    out: Path | None,
    as_json: bool,
) -> int:
    """Fits, prints, and writes a policy where a file was named."""
    from nearfar.router.paired import load_paired
    from nearfar.router.policies import Policy
    from nearfar.router.promises import fit_promise, promise_policy

    table = load_paired(source, near=near, far=far, signal=signal, columns=columns, missing=missing)
    found = fit_promise(table, target.value, alpha=alpha, delta=delta)
    label = None
    if out is not None:
        version = Policy.load(out).version + 1 if out.exists() else 1
        policy = promise_policy(table, found, tier=tier, name=name, version=version)
        policy.save(out)
        label = policy.label
    facts = _facts(table, found)
    if as_json:
        write_json(facts | ({"policy": label, "path": str(out)} if out else {}))
    else:
        _print(facts)
        if out is not None:
            remark(f'\n{label} written to {out}. Use it: under [cascades.NAME] write policy = "{out}"', style="")
    return DONE


def _facts(table: PairedOutcomes, found: Threshold) -> dict[str, Any]:
    guarantee = dict(found.guarantee or {})
    right = found.accepted_accuracy
    facts: dict[str, Any] = {
        "target": guarantee["target"],
        "near": table.near,
        "far": table.far,
        "signal": table.signal,
        "alpha": guarantee["alpha"],
        "delta": guarantee["delta"],
        "threshold": found.value,
        "n": found.n,
        "coverage": found.coverage,
        "needed_n": guarantee["needed_n"],
        "is_feasible": guarantee["is_feasible"],
        "promise": guarantee["promise"],
        "reason": guarantee["reason"],
        "method": guarantee["method"],
        "assumptions": guarantee["assumptions"],
        "accepted_n": guarantee["accepted_n"],
        "accepted_error": None if right is None else 1 - right,
        "near_accuracy": sum(table.near_outcomes) / table.n,
        "far_accuracy": None,
        "cascade_accuracy": None,
        "data_sha256": table.sha256,
    }
    if table.far_outcomes is not None:
        value = found.value
        given = [
            own if value is not None and signal >= value else other
            for signal, own, other in zip(table.signals, table.near_outcomes, table.far_outcomes, strict=True)
        ]
        facts["far_accuracy"] = sum(table.far_outcomes) / table.n
        facts["cascade_accuracy"] = sum(given) / table.n
    return facts


def _print(facts: dict[str, Any]) -> None:
    console = stdout()
    confidence = f"with confidence {1 - facts['delta']:.4g}" if facts["delta"] else "in expectation"
    rows: list[tuple[str, str]] = [("promise", f"{facts['promise']}, {confidence}")]
    if facts["threshold"] is None:
        needed = facts["needed_n"]
        rows += [
            ("threshold", "none: nothing can be promised"),
            ("why", facts["reason"]),
            (
                "labels needed",
                "no number would do" if needed is None else f"about {needed:,}; there are {facts['n']:,}",
            ),
        ]
    else:
        rows += [
            ("accept where", f"{facts['signal']} ≥ {facts['threshold']!r}"),
            ("accepts", f"{facts['coverage']:.1%} of {facts['n']:,} labelled answers"),
            ("wrong among them", f"{facts['accepted_error']:.1%}"),
        ]
    for key, label in (("near", "near alone"), ("far", "far alone"), ("cascade", "cascade")):
        if facts[f"{key}_accuracy"] is not None:
            rows.append((label, f"{facts[f'{key}_accuracy']:.1%} right"))
    rows += [("by", facts["method"]), ("provided that", "; ".join(facts["assumptions"]))]
    for label, value in rows:
        console.print(f"[dim]{label:<18}[/]", end="")
        console.print(value, markup=False)
