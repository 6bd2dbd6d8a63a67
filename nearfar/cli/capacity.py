"""`nearfar plan-capacity`: the cheapest machines for a load, checked by simulation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nearfar.errors import DataError, RequestError

from . import options as opt
from .console import escape, remark, seconds, table, usd, waiting, write_json
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.serving.capacity.machines import Machine
    from nearfar.serving.capacity.planner import Checked


def plan_capacity(
    lengths: Annotated[
        Path, typer.Argument(help="JSON lines or CSV with prompt_tokens and completion_tokens of real requests.")
    ],
    rate: Annotated[float, typer.Option("--rate", "-r", help="Requests per second.")],
    machines: Annotated[Path, typer.Option("--machines", "-m", help="TOML with prices and step times.")],
    ttft_s: Annotated[float, typer.Option("--ttft-s", help="Seconds to the first token, waiting included.")] = 1.0,
    tpot_ms: Annotated[float, typer.Option("--tpot-ms", help="Milliseconds for each further token.")] = 100.0,
    quantile: Annotated[float, typer.Option("--quantile", help="Share of the requests that keep both.")] = 0.99,
    simulated: Annotated[int, typer.Option("--requests", min=100, help="How many to simulate.")] = 4000,
    seed: Annotated[int, typer.Option("--seed", help="Of the simulation.")] = 0,
    as_json: opt.JsonOption = False,
) -> int:
    """Find the cheapest mix of machines for a load and a latency target, and simulate it."""
    for option, value, end in (
        ("--rate", rate, math.inf),
        ("--ttft-s", ttft_s, math.inf),
        ("--tpot-ms", tpot_ms, math.inf),
        ("--quantile", quantile, 1.0),
    ):
        if not 0 < value < end:
            below = "" if end == math.inf else f" and below {end:g}"
            raise RequestError(f"{option} is {value:g}; give a number above 0{below}.", param=option)
    from nearfar.serving.capacity.machines import Target, read_machines
    from nearfar.serving.capacity.planner import plan_capacity as plan
    from nearfar.serving.capacity.workload import read_lengths

    kinds = read_machines(machines)
    requests = read_lengths(lengths)
    target = Target(ttft_s, tpot_ms / 1000, quantile)
    rows: list[tuple[str, Checked | str]] = []
    with waiting("planning and simulating"):
        best = plan(requests, rate, kinds, target, num_requests=simulated, seed=seed)
        rows.append(("mix, integer program", best))
        ways: list[tuple[str, Literal["greedy", "single"], int]] = [("mix, greedy", "greedy", 0)]
        ways += [(f"{machine.name} alone", "single", i) for i, machine in enumerate(kinds)]
        for name, by, kind in ways:
            try:
                found: Checked | str = plan(
                    requests, rate, kinds, target, by=by, kind=kind, num_requests=simulated, seed=seed
                )
            except DataError as exc:
                found = str(exc)
            rows.append((name, found))
    if as_json:
        plans = [_as_json(name, each, kinds, quantile) for name, each in rows]
        write_json({"rate": rate, "requests": len(requests), "plans": plans})
    else:
        _show(rows, kinds, quantile)
    if best.keeps_target:
        return DONE
    remark("No plan keeps the target in the simulation. Loosen it, or add a faster machine.")
    return FAILED


def _show(rows: list[tuple[str, Checked | str]], kinds: list[Machine], quantile: float) -> None:
    columns = [
        "plan",
        "$ an hour",
        "machines",
        f"first token p{quantile * 100:g}",
        f"next p{quantile * 100:g}",
        "target",
    ]
    shown = []
    for name, found in rows:
        if isinstance(found, str):
            shown.append([escape(name), "—", escape(found), "", "", "missed"])
            continue
        simulated = found.simulated
        shown.append(
            [
                escape(name),
                usd(found.plan.usd_per_hour),
                escape(_machines(found, kinds)),
                seconds(simulated.ttft_s(quantile)),
                seconds(simulated.tpot_s(quantile)),
                "kept" if found.keeps_target else "missed",
            ]
        )
    table(columns, shown, right=["$ an hour"], wrap=["machines"])


def _machines(found: Checked, kinds: list[Machine]) -> str:
    pairs = zip(found.plan.counts, kinds, strict=True)
    return ", ".join(f"{count} × {machine.name}" for count, machine in pairs if count)


def _as_json(name: str, found: Checked | str, kinds: list[Machine], quantile: float) -> dict[str, Any]:
    if isinstance(found, str):
        return {"plan": name, "keeps_target": False, "reason": found}
    plan, simulated = found.plan, found.simulated
    return {
        "plan": name,
        "usd_per_hour": plan.usd_per_hour,
        "machines": {machine.name: count for machine, count in zip(kinds, plan.counts, strict=True)},
        "planned_load": plan.load,
        "keeps_target": found.keeps_target,
        "ttft_s": simulated.ttft_s(quantile),
        "tpot_s": simulated.tpot_s(quantile),
        "latency_s": simulated.latency_s(quantile),
        "utilisation": {machine.name: share for machine, share in zip(kinds, simulated.utilisation, strict=True)},
    }
