"""The cheapest mix of machines for a load: an integer program, a greedy plan and single kinds beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from typing import Literal

from nearfar.errors import ConfigError, DataError

from .machines import Machine, Target
from .simulator import Simulated, simulate
from .workload import Bucket, Shape, buckets

#: A bucket's rate is dealt out in so many equal parts.
#: Source: the slice factor of Griggs et al. 2024, arXiv:2404.14527; eight keep the solution within seconds.
SLICES = 8

#: Shares of a machine's time that are planned for, tried in this order until the simulation keeps the target.
LOADS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)

_SLACK = 1e-9  # of rounding, in machines


@dataclass(frozen=True, slots=True)
class Plan:
    """Machines to rent, and which requests go where."""

    by: Literal["program", "greedy", "single"]
    counts: tuple[int, ...]  # of each kind
    usd_per_hour: float
    shares: tuple[tuple[float, ...], ...]  # by bucket, then by kind: where its requests go; rows sum to 1
    load: float  # the share of the machines' time that was planned for


@dataclass(frozen=True, slots=True)
class Checked:
    """A plan with what the simulation says of it."""

    plan: Plan
    simulated: Simulated
    keeps_target: bool


def loads(
    work: Sequence[Bucket], rate: float, machines: Sequence[Machine], target: Target, load: float
) -> list[list[float]]:
    """How many machines of each kind a whole bucket keeps busy, by bucket and kind; infinite: it misses the target."""
    return [
        [
            each.share * rate / most if (most := machine.requests_per_s(each.shape, target, load=load)) > 0 else inf
            for machine in machines
        ]
        for each in work
    ]


def program(
    work: Sequence[Bucket],
    rate: float,
    machines: Sequence[Machine],
    target: Target,
    *,
    load: float,
    slices: int = SLICES,
) -> Plan | None:
    """The cheapest plan; None where no mix of these machines keeps the target.

    The slices of a bucket are all alike, so that the program counts how many go to a kind (one whole number) where
    the paper decides each (a binary variable a slice): the same plans, and an eighth of the variables.

    Raises:
        ConfigError: nearfar[fit] is not installed.

    Source: Griggs et al. 2024, arXiv:2404.14527, solved with HiGHS (`scipy.optimize.milp`).
    """
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import lil_array
    except ImportError as exc:
        raise ConfigError("Capacity plans need scipy. Install it: pip install 'nearfar[fit]'") from exc
    table = loads(work, rate, machines, target, load)
    n, m = len(work), len(machines)
    cost = np.concatenate([np.zeros(n * m), [machine.usd_per_hour for machine in machines]])
    upper = np.full(n * m + m, float(slices))
    upper[n * m :] = [inf if machine.most is None else machine.most for machine in machines]
    whole = lil_array((n, n * m + m))
    busy = lil_array((m, n * m + m))
    for i, row in enumerate(table):
        for j, need in enumerate(row):
            whole[i, i * m + j] = 1
            if need == inf:
                upper[i * m + j] = 0
            else:
                busy[j, i * m + j] = need / slices
    for j in range(m):
        busy[j, n * m + j] = -1
    found = milp(
        cost,
        constraints=[LinearConstraint(whole.tocsr(), slices, slices), LinearConstraint(busy.tocsr(), -inf, 0)],
        bounds=Bounds(0, upper),
        integrality=np.ones(n * m + m),
        options={"time_limit": 20.0, "mip_rel_gap": 1e-4},
    )
    if found.x is None:
        return None
    parts = np.rint(found.x[: n * m]).reshape(n, m)
    shares = tuple(tuple(float(part) / slices for part in row) for row in parts)
    return _plan("program", table, shares, machines, load)


def greedy(
    work: Sequence[Bucket], rate: float, machines: Sequence[Machine], target: Target, *, load: float
) -> Plan | None:
    """Each bucket to the kind that answers it at the lowest price, and as many machines as that takes."""
    table = loads(work, rate, machines, target, load)
    shares = []
    for row in table:
        prices = [need * machine.usd_per_hour for need, machine in zip(row, machines, strict=True)]
        best = min(range(len(machines)), key=prices.__getitem__)
        if prices[best] == inf:
            return None
        shares.append(tuple(float(j == best) for j in range(len(machines))))
    return _plan("greedy", table, tuple(shares), machines, load)


def single(
    work: Sequence[Bucket], rate: float, machines: Sequence[Machine], target: Target, kind: int, *, load: float
) -> Plan | None:
    """Machines of one kind alone; None where it cannot keep the target for every bucket."""
    table = loads(work, rate, machines, target, load)
    if any(row[kind] == inf for row in table):
        return None
    row = tuple(float(j == kind) for j in range(len(machines)))
    return _plan("single", table, (row,) * len(work), machines, load)


def plan_capacity(
    requests: Sequence[Shape],
    rate: float,
    machines: Sequence[Machine],
    target: Target,
    *,
    by: Literal["program", "greedy", "single"] = "program",
    kind: int = 0,
    num_requests: int = 4000,
    seed: int = 0,
) -> Checked:
    """The cheapest plan whose simulation keeps the target.

    Planned first for nearly all of the machines' time; while the simulation misses the target, for less of it, so
    that bursts find room. The program knows means alone: where the simulation sends it to a dearer plan than a simpler
    one needs, the simpler one is given.

    Args:
        requests: sizes to plan for, each as likely as the others.
        rate: requests per second, arriving at random (Poisson).
        machines: what there is to rent.
        target: what answers may take.
        by: how to plan; "program" also tries the other two, "single" rents machines of `kind` alone.
        kind: index into `machines`.
        num_requests: to simulate.
        seed: of the simulation.

    Raises:
        DataError: the rate or the target is not positive, or no machine keeps the target for some requests.
        ConfigError: nearfar[fit] is not installed.
    """
    if not rate > 0 or not target.ttft_s > 0 or not target.tpot_s > 0 or not 0 < target.quantile < 1:
        raise DataError(f"The rate and both times must be above 0, and the quantile in (0, 1): {rate!r}, {target!r}.")
    work = buckets(requests)
    _refuse_impossible(work, machines, target, None if by != "single" else kind)
    ways: list[Callable[[float], Plan | None]] = []
    if by == "program":
        ways.append(lambda load: program(work, rate, machines, target, load=load))
    if by in ("program", "greedy"):
        ways.append(lambda load: greedy(work, rate, machines, target, load=load))
    kinds = range(len(machines)) if by == "program" else [kind] if by == "single" else []
    ways += [partial(_single_at, work, rate, machines, target, j) for j in kinds]
    found: list[Checked] = []
    for way in ways:
        for load in LOADS:
            plan = way(load)
            if plan is None or any(each.keeps_target and each.plan.usd_per_hour <= plan.usd_per_hour for each in found):
                break  # a smaller load is never cheaper
            shares = _by_label(work, plan)
            simulated = simulate(requests, rate, machines, plan.counts, shares, num_requests=num_requests, seed=seed)
            found.append(Checked(plan, simulated, _keeps(simulated, target)))
            if found[-1].keeps_target:
                break
    if not found:
        raise DataError("There are not enough machines for this rate. Raise `most`, or allow other kinds.")
    return min(found, key=lambda each: (not each.keeps_target, each.plan.usd_per_hour))


def _single_at(
    work: Sequence[Bucket], rate: float, machines: Sequence[Machine], target: Target, kind: int, load: float
) -> Plan | None:
    return single(work, rate, machines, target, kind, load=load)


def _keeps(simulated: Simulated, target: Target) -> bool:
    return simulated.ttft_s(target.quantile) <= target.ttft_s and simulated.tpot_s(target.quantile) <= target.tpot_s


def _refuse_impossible(work: Sequence[Bucket], machines: Sequence[Machine], target: Target, kind: int | None) -> None:
    allowed = machines if kind is None else [machines[kind]]
    for each in work:
        if not any(machine.requests_per_s(each.shape, target) > 0 for machine in allowed):
            shape = each.shape
            raise DataError(
                f"No machine ({', '.join(machine.name for machine in allowed)}) answers {shape.prompt_tokens} + "
                f"{shape.completion_tokens} tokens within {target.ttft_s:g} s to the first token and "
                f"{target.tpot_s * 1000:g} ms a token. Loosen the target, or add a faster machine."
            )


def _plan(
    by: Literal["program", "greedy", "single"],
    table: Sequence[Sequence[float]],
    shares: tuple[tuple[float, ...], ...],
    machines: Sequence[Machine],
    load: float,
) -> Plan | None:
    counts = []
    for j, machine in enumerate(machines):
        busy = sum(row[j] * share[j] for row, share in zip(table, shares, strict=True) if share[j] > 0)
        count = ceil(busy - _SLACK)
        if machine.most is not None and count > machine.most:
            return None
        counts.append(count)
    usd = sum(count * machine.usd_per_hour for count, machine in zip(counts, machines, strict=True))
    return Plan(by, tuple(counts), usd, shares, load)


def _by_label(work: Sequence[Bucket], plan: Plan) -> dict[tuple[int, int], tuple[float, ...]]:
    return {each.label: share for each, share in zip(work, plan.shares, strict=True)}
