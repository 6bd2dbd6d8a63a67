"""Whether intervals from logs cover a policy's true value: logs drawn from real tables, by chance and by a bandit.

    python benchmarks/off_policy.py [--runs 500] [--choices 2000] [--jobs 2] [--out benchmarks/results]

In each run, queries are drawn from a table, one of the recorded models is drawn for each, and its recorded outcome is
the reward. The policy in question asks far for the three queries in ten where near is least sure, and near otherwise;
its true value is known from the table. Writes off_policy.json.
"""

from __future__ import annotations

import argparse
import random
import time
from concurrent.futures import ProcessPoolExecutor
from math import log, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
from provenance import RESULTS, data_folder, provenance, save

from nearfar.errors import DataError
from nearfar.router.bandit import ThompsonBandit
from nearfar.router.off_policy import LoggedChoice, Method, evaluate, predict_rewards

METHODS: tuple[Method, ...] = ("ips", "snips", "doubly_robust")

#: file, models near to far, the near model's signal
TABLES = {
    "MMLU, Llama-3-8B and 70B": ("mmlu_llama3_cascade", ("Llama3-8b", "Llama3-70b"), "confidence_msp"),
    "MMLU, Llama-3-8B, 70B and GPT-4": (
        "mmlu_llama3_cascade",
        ("Llama3-8b", "Llama3-70b", "gpt-4-1106-preview"),
        "confidence_msp",
    ),
    "MCQ, GPT-3.5 and GPT-4": ("mcq_msp_confidence", ("gpt-3.5-turbo", "gpt-4-turbo"), "confidence"),
    "MMLU-Pro, Llama-3.1-8B and 405B": (
        "mmlupro_confidence",
        ("Meta-Llama-3.1-8B-Instruct-Turbo", "Meta-Llama-3.1-405B-Instruct-Turbo"),
        "logit_ppl_conf",
    ),
}
#: The bandit's budget, in far calls per query; its floor bounds the weights by 10.
BUDGET, FLOOR = 0.6, 0.1

#: Share of the queries that the evaluated policy sends far.
DEFERRED = 0.3


def load(folder: Path, file: str, models: tuple[str, ...], signal: str) -> list[tuple[float, dict[str, float]]]:
    """For every query, the near model's signal and each model's outcome."""
    rows = pq.read_table(
        folder / "router" / f"{file}.parquet",
        columns=["dataset", "query_id", "model", "correct", signal],
        filters=[("model", "in", list(models))],
    ).to_pylist()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["query_id"]), {})[row["model"]] = row
    return [
        (own[models[0]][signal], {model: float(own[model]["correct"]) for model in models})
        for own in found.values()
        if len(own) == len(models) and own[models[0]][signal] is not None
    ]


def features(signal: float) -> dict[str, float]:
    """The signal and its log-odds, about of unit scale."""
    held = min(max(signal, 1e-4), 1 - 1e-4)
    return {"signal": signal, "log_odds": log(held / (1 - held)) / 4, "square": signal * signal}


def one_run(
    queries: list[tuple[float, dict[str, float]]],
    models: tuple[str, ...],
    is_sure: float,
    *,
    n: int,
    seed: int,
    by: str,
) -> dict[Method, Any]:
    """The estimates from one log."""
    draw = random.Random(seed)
    bandit = ThompsonBandit.over(models, tuple(features(0.5)), budget=BUDGET, floor=FLOOR)
    costs = {model: float(i > 0) for i, model in enumerate(models)}
    even = {model: 1 / len(models) for model in models}
    logged, rows = [], []
    for signal, outcomes in draw.choices(queries, k=n):
        known = features(signal)
        propensities = bandit.propensities(known, costs) if by == "bandit" else even
        model = draw.choices(models, [propensities[m] for m in models])[0]
        if by == "bandit":
            bandit.learn(known, model, outcomes[model], costs[model])
        logged.append((model, propensities, outcomes[model], models[0] if signal >= is_sure else models[-1]))
        rows.append(list(known.values()))
    predicted = predict_rewards(rows, [entry[0] for entry in logged], [entry[2] for entry in logged], names=models)
    choices = [
        LoggedChoice(model, shares[model], reward, {m: float(m == wanted) for m in models}, shares, expected)
        for (model, shares, reward, wanted), expected in zip(logged, predicted, strict=True)
    ]
    return {method: evaluate(choices, method=method) for method in METHODS}


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Coverage and width, by table, logging policy and method."""
    parts = [(name, by, folder, args.runs, args.choices) for name in TABLES for by in ("random", "bandit")]
    cells: list[dict[str, Any]] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for found in pool.map(one_part, *zip(*parts, strict=True)):
            cells += found
            for cell in found:
                print({key: cell[key] for key in ("table", "logged_by", "method", "covered", "mean_width")}, flush=True)
    return cells


def one_part(name: str, by: str, folder: Path, num_runs: int, n: int) -> list[dict[str, Any]]:
    """The cells of one table and logging policy."""
    file, models, signal = TABLES[name]
    queries = load(folder, file, models, signal)
    signals = sorted(signal for signal, _ in queries)
    is_sure = signals[int(len(signals) * DEFERRED)]
    truth = fmean(outcomes[models[0] if signal >= is_sure else models[-1]] for signal, outcomes in queries)
    runs = [one_run(queries, models, is_sure, n=n, seed=seed, by=by) for seed in range(num_runs)]
    widths = {m: [run[m].interval.high - run[m].interval.low for run in runs] for m in METHODS}
    cells = []
    for method in METHODS:
        found = [run[method] for run in runs]
        cells.append(
            {
                "table": name,
                "queries": len(queries),
                "models": list(models),
                "logged_by": by,
                "method": method,
                "truth": round(truth, 5),
                "covered": round(fmean(e.interval.low <= truth <= e.interval.high for e in found), 4),
                "mean_width": round(fmean(widths[method]), 5),
                "narrower_than_snips": round(
                    fmean(a < b for a, b in zip(widths[method], widths["snips"], strict=True)), 4
                ),
                "bias": round(fmean(e.value - truth for e in found), 5),
                "bias_se": round(sqrt(fmean((e.value - truth) ** 2 for e in found) / len(found)), 5),
                "mean_effective_n": round(fmean(e.effective_n for e in found), 1),
            }
        )
    return cells


def refusals(folder: Path) -> dict[str, str]:
    """What is said of logs that cannot tell."""
    file, models, signal = next(iter(TABLES.values()))
    queries = load(folder, file, models, signal)[:1000]
    near, far = models[0], models[-1]
    logs = {
        "always near": [LoggedChoice(near, 1.0, o[near], {far: 1.0}) for _, o in queries],
        "a propensity of zero": [LoggedChoice(near, 0.0, o[near], {near: 1.0}) for _, o in queries],
        "near for half of the queries": [
            LoggedChoice(near if i % 2 else far, 1.0, o[near if i % 2 else far], {near: 1.0})
            for i, (_, o) in enumerate(queries)
        ],
    }
    said = {}
    for name, choices in logs.items():
        try:
            evaluate(choices, method="snips")
        except DataError as exc:
            said[name] = str(exc)
    return said


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--choices", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    folder = data_folder()
    started = time.perf_counter()
    results = provenance(f"python benchmarks/off_policy.py --runs {args.runs} --choices {args.choices}")
    results |= {
        "runs": args.runs,
        "choices": args.choices,
        "budget": BUDGET,
        "floor": FLOOR,
        "deferred": DEFERRED,
        "cells": measure(args, folder),
        "refused": refusals(folder),
    }
    results["wall_s"] = round(time.perf_counter() - started, 1)
    print(f"written to {save(results, 'off_policy', args.out).name}")


if __name__ == "__main__":
    main()
