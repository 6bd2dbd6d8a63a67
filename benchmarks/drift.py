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
from typing import Any

import pyarrow.parquet as pq
from provenance import RESULTS, data_folder, provenance, save

from nearfar.router.monitor import ErrorMonitor, ShiftMonitor

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


def outcomes(pool: list[float], error: float, draw: random.Random) -> float:
    """An outcome from the pool, made wrong (or right) at random so that the error rate is `error` exactly."""
    base = 1 - sum(pool) / len(pool)
    outcome = draw.choice(pool)
    if error >= base:
        return outcome if draw.random() >= (error - base) / (1 - base) else 0.0
    return outcome if outcome or draw.random() < error / base else 1.0


def errors(folder: Path, alpha: float, streams: int, length: int) -> dict[str, Any]:
    """False alarms at the promised error, and delays after drops."""
    pool = accepted(folder, alpha)
    false_alarms = 0
    for seed in range(streams):
        draw = random.Random(seed)
        monitor = ErrorMonitor(alpha=alpha, false_alarm_rate=RATE)
        false_alarms += any(monitor.observe(outcomes(pool, alpha, draw)) for _ in range(length))
    found: dict[str, Any] = {
        "alpha": alpha,
        "pool": len(pool),
        "false_alarms": false_alarms / streams,
        "false_alarms_se": round(sqrt(RATE * (1 - RATE) / streams), 4),
    }
    for drop in (0.05, 0.1):
        delays, early = [], 0
        for seed in range(streams // 4):
            draw = random.Random(10_000 + seed)
            monitor = ErrorMonitor(alpha=alpha, false_alarm_rate=RATE)
            if any(monitor.observe(outcomes(pool, alpha, draw)) for _ in range(BEFORE)):
                early += 1
                continue
            delay = next((i for i in range(1, length + 1) if monitor.observe(outcomes(pool, alpha + drop, draw))), None)
            delays.append(delay if delay is not None else length + 1)
        found[f"drop_{round(100 * drop)}_points"] = delay_figures(delays, length) | {"alarms_before": early}
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
        monitor = ShiftMonitor(seen=signals[:num_labels], false_alarm_rate=RATE, seed=seed)
        false_alarms += any(monitor.observe(signal) for signal in signals[num_labels : num_labels + length])
    for seed in range(streams // 4):
        draw = random.Random(10_000 + seed)
        signals = draw.sample(own, num_labels + BEFORE)
        monitor = ShiftMonitor(seen=signals[:num_labels], false_alarm_rate=RATE, seed=seed)
        if any(monitor.observe(signal) for signal in signals[num_labels:]):
            continue
        delay = next((i for i in range(1, 1001) if monitor.observe(draw.choice(other))), None)
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
