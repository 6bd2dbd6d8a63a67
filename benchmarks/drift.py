"""How often the monitor cries wolf, and how soon it sees a drop: streams drawn from real tables.

    python benchmarks/drift.py [--streams 1000] [--length 5000] [--jobs 2] [--out benchmarks/results]

Null streams of outcomes have an error rate of exactly alpha, the hardest case in which nothing is wrong; null streams
of signals are drawn from a table in random order. Then the accuracy of accepted answers drops by 5 or 10 points after
500 outcomes, or the signals become those of another data set of the same model. Writes drift.json.
"""

from __future__ import annotations

import argparse
import random
import time
from concurrent.futures import ProcessPoolExecutor
from math import sqrt
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from provenance import RESULTS, data_folder, provenance, save

from nearfar.router import monitor
from nearfar.router.monitor import ErrorMonitor, ShiftMonitor

Bools: TypeAlias = NDArray[np.bool_]

RATE = 0.05
BEFORE = 500
#: model and data set of the labels, and the data set that the signals shift to
SHIFTS = (("gpt-3.5-turbo", "hellaswag", "mmlu"), ("Llama3-8b", "winogrande", "arc"), ("Yi-34b", "mmlu", "hellaswag"))


def accepted(folder: Path, alpha: float) -> list[float]:
    """Outcomes of the answers that Llama-3-8B is surest of on MMLU, as many as keep an error of about alpha."""
    rows = pq.read_table(
        folder / "router" / "mmlu_llama3_cascade.parquet",
        columns=["correct", "confidence_msp"],
        filters=[("model", "=", "Llama3-8b")],
    ).to_pylist()
    ordered = [row["correct"] for row in sorted(rows, key=lambda row: -row["confidence_msp"])]
    wrong, best = 0.0, 1
    for n, outcome in enumerate(ordered, start=1):
        wrong += 1 - outcome
        if wrong <= alpha * n:
            best = n
    return ordered[:best]


def streams_of(pool: list[float], error: float, shape: tuple[int, int], draw: np.random.Generator) -> Bools:
    """Whether each answer is wrong: drawn from the pool, and turned wrong (or right) so that the rate is `error`."""
    base = 1 - sum(pool) / len(pool)
    wrong = draw.choice(1 - np.array(pool), shape) > 0
    if error >= base:
        return wrong | (draw.random(shape) < (error - base) / (1 - base))
    return wrong & (draw.random(shape) < error / base)


def first_alarms(wrong: Bools, alpha: float) -> NDArray[np.int64]:
    """By stream, after how many outcomes `ErrorMonitor` raises the alarm; -1: never. All streams at once."""
    num_streams, length = wrong.shape
    sample = ErrorMonitor(alpha=alpha, false_alarm_rate=RATE)
    stakes = np.array(sample._stakes())
    wealth = np.zeros((num_streams, monitor._MOST_OPEN, len(stakes)))
    found = np.full(num_streams, -1)
    num_opened = 0
    for n in range(length):
        if n % monitor._OPEN_EVERY == 0:
            num_opened += 1
            share = 1 / (num_opened * (num_opened + 1)) / len(stakes)
            if num_opened <= monitor._MOST_OPEN:
                wealth[:, num_opened - 1] = share
            else:  # the poorest makes room, if it is poorer than the new one
                totals = wealth.sum(axis=2)
                slot = totals.argmin(axis=1)
                richer = totals[np.arange(num_streams), slot] < share * len(stakes)
                wealth[richer, slot[richer]] = share
        wealth *= (1 + stakes * (wrong[:, n, None] - alpha))[:, None, :]
        alarm = wealth.sum(axis=(1, 2)) + 1 / (num_opened + 1) >= 1 / RATE
        found[alarm & (found < 0)] = n + 1
    return found


def check(wrong: Bools, alpha: float, alarms: NDArray[np.int64]) -> None:
    """That the vectorised test is the product's, on a few streams."""
    for stream, expected in zip(wrong[:5], alarms[:5], strict=True):
        own = ErrorMonitor(alpha=alpha, false_alarm_rate=RATE)
        after = next((i for i, bad in enumerate(stream, start=1) if own.observe(float(not bad))), -1)
        if after != expected:
            raise AssertionError(f"vectorised {expected}, ErrorMonitor {after}")


def errors(folder: Path, alpha: float, streams: int, length: int) -> dict[str, Any]:
    """False alarms at the promised error, and delays after drops."""
    pool = accepted(folder, alpha)
    draw = np.random.default_rng(round(1000 * alpha))
    wrong = streams_of(pool, alpha, (streams, length), draw)
    alarms = first_alarms(wrong, alpha)
    check(wrong, alpha, alarms)
    found: dict[str, Any] = {
        "alpha": alpha,
        "pool": len(pool),
        "false_alarms": float((alarms > 0).mean()),
        "false_alarms_se": round(sqrt(RATE * (1 - RATE) / streams), 4),
    }
    for drop in (0.05, 0.1):
        before = streams_of(pool, alpha, (streams, BEFORE), draw)
        after = streams_of(pool, alpha + drop, (streams, length - BEFORE), draw)
        alarms = first_alarms(np.hstack([before, after]), alpha)
        is_early = (alarms > 0) & (alarms <= BEFORE)
        delays = [int(a - BEFORE) if a > 0 else length + 1 for a in alarms[~is_early]]
        found[f"drop_{round(100 * drop)}_points"] = delay_figures(delays, length) | {
            "alarms_before": int(is_early.sum())
        }
    return found


def shift(folder: Path, model: str, source: str, target: str, streams: int, length: int) -> dict[str, Any]:
    """False alarms on signals in random order, and delays after the data set changes."""
    rows = pq.read_table(
        folder / "router" / "mcq_msp_confidence.parquet",
        columns=["dataset", "confidence"],
        filters=[("model", "=", model), ("dataset", "in", [source, target])],
    ).to_pylist()
    own, other = ([row["confidence"] for row in rows if row["dataset"] == name] for name in (source, target))
    num_labels = 1000
    length = min(length, len(own) - num_labels)
    false_alarms, delays = 0, []
    for seed in range(streams):
        draw = random.Random(seed)
        signals = draw.sample(own, len(own))
        own_test = ShiftMonitor(seen=signals[:num_labels], false_alarm_rate=RATE, seed=seed)
        false_alarms += any(own_test.observe(signal) for signal in signals[num_labels : num_labels + length])
    for seed in range(streams // 4):
        draw = random.Random(10_000 + seed)
        signals = draw.sample(own, num_labels + BEFORE)
        own_test = ShiftMonitor(seen=signals[:num_labels], false_alarm_rate=RATE, seed=seed)
        if any(own_test.observe(signal) for signal in signals[num_labels:]):
            continue
        delay = next((i for i in range(1, 1001) if own_test.observe(draw.choice(other))), None)
        delays.append(delay if delay is not None else 1001)
    return {
        "model": model,
        "from": source,
        "to": target,
        "length": length,
        "false_alarms": false_alarms / streams,
        "change": delay_figures(delays, 1000),
    }


def delay_figures(delays: list[int], longest: int) -> dict[str, Any]:
    """In outcomes or signals after the change."""
    found = [delay for delay in delays if delay <= longest]
    return {
        "streams": len(delays),
        "seen": round(len(found) / len(delays), 4),
        "median": median(delays),
        "p90": round(quantiles(delays, n=10)[8], 1),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--length", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    folder = data_folder()
    started = time.perf_counter()
    results = provenance(f"python benchmarks/drift.py --streams {args.streams} --length {args.length}")
    results |= {
        "streams": args.streams,
        "length": args.length,
        "false_alarm_rate": RATE,
        "outcomes_before_the_change": BEFORE,
    }
    with ProcessPoolExecutor(args.jobs) as pool:
        drops = [pool.submit(errors, folder, alpha, args.streams, args.length) for alpha in (0.02, 0.05, 0.1)]
        shifts = [pool.submit(shift, folder, *where, args.streams, args.length) for where in SHIFTS]
        results["errors"] = [task.result() for task in drops]
        results["signals"] = [task.result() for task in shifts]
    for cell in (*results["errors"], *results["signals"]):
        print(cell)
    results["wall_s"] = round(time.perf_counter() - started, 1)
    print(f"written to {save(results, 'drift', args.out).name}")


if __name__ == "__main__":
    main()
