"""How well scores are calibrated, method by method, out of fold on real tables: is boosting worth its weight?

    python benchmarks/calibration.py [--out benchmarks/results]

Five folds by a hash of the query's id. The single-signal methods read the first signal; logistic regression and
gradient boosting with monotone constraints read all. Writes calibration.json.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.parquet as pq
from provenance import RESULTS, data_folder, provenance, save

from nearfar.router.boosting import fit_boosted
from nearfar.router.evaluation import auroc, bootstrap_interval, brier, expected_calibration_error
from nearfar.router.fits import fit_isotonic, fit_logistic
from nearfar.router.recalibration import fit_beta, fit_platt, fit_temperature

Rows: TypeAlias = list[dict[str, float]]
Score: TypeAlias = Callable[[dict[str, float]], float | None]

#: file, model, signals, and for each whether a surer answer has more of it (1), less (-1), or nobody knows (0)
TABLES = {
    "MMLU, Llama-3-8B": ("mmlu_llama3_cascade", "Llama3-8b", {"confidence_msp": 1, "confidence_max_logit": 1}),
    "MMLU, Llama-3-70B": ("mmlu_llama3_cascade", "Llama3-70b", {"confidence_msp": 1, "confidence_max_logit": 1}),
    "MCQ, GPT-3.5": ("mcq_msp_confidence", "gpt-3.5-turbo", {"confidence": 1}),
    "MCQ, Llama-3-70B": ("mcq_msp_confidence", "Llama3-70b", {"confidence": 1}),
    "MMLU-Pro, Llama-3.1-8B": (
        "mmlupro_confidence",
        "Meta-Llama-3.1-8B-Instruct-Turbo",
        {"verbal_conf": 1, "logit_ppl_conf": 1, "tokens_out": 0},
    ),
    "MMLU-Pro, GPT-4o mini": (
        "mmlupro_confidence",
        "gpt-4o-mini-2024-07-18",
        {"verbal_conf": 1, "logit_ppl_conf": 1, "tokens_out": 0},
    ),
    "Stated, Llama-3.1-70B": (
        "stated_confidence",
        "Meta-Llama-3.1-70B-Instruct",
        {"token_confidence": 1, "stated_confidence": 1},
    ),
}
FOLDS = 5


def load(folder: Path, file: str, model: str, signals: Sequence[str]) -> tuple[Rows, list[float], list[int]]:
    """Signals, outcomes and folds of a model's answers that have all signals."""
    table = pq.read_table(
        folder / "router" / f"{file}.parquet",
        columns=["query_id", "correct", *signals],
        filters=[("model", "=", model)],
    ).to_pylist()
    rows, outcomes, folds = [], [], []
    for row in table:
        values = [row[name] for name in signals]
        if all(value is not None and value == value for value in values):
            rows.append(dict(zip(signals, map(float, values), strict=True)))
            outcomes.append(float(row["correct"]))
            folds.append(hashlib.sha256(str(row["query_id"]).encode()).digest()[0] % FOLDS)
    return rows, outcomes, folds


def fits(signs: dict[str, int]) -> dict[str, Callable[[Rows, list[float]], Score]]:
    """By name, what makes a score of rows and outcomes."""
    first = next(iter(signs))
    found: dict[str, Callable[[Rows, list[float]], Score]] = {
        "as stated": lambda rows, outcomes: lambda row: min(1.0, max(0.0, row[first])),
        "temperature": lambda rows, outcomes: fit_temperature(rows, outcomes, signal=first, scale="probability").score,
        "Platt": lambda rows, outcomes: fit_platt(rows, outcomes, signal=first).score,
        "isotonic": lambda rows, outcomes: fit_isotonic(rows, outcomes, signal=first).score,
        "beta": lambda rows, outcomes: fit_beta(rows, outcomes, signal=first, scale="probability").score,
        "boosting": lambda rows, outcomes: fit_boosted(rows, outcomes, signals=list(signs), directions=signs).score,
    }
    if len(signs) > 1:
        found["logistic"] = lambda rows, outcomes: fit_logistic(rows, outcomes, signals=list(signs)).score
    return found


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    folder = data_folder()
    started = time.perf_counter()
    cells: list[dict[str, Any]] = []
    for name, (file, model, signs) in TABLES.items():
        rows, outcomes, folds = load(folder, file, model, list(signs))
        for method, fit in fits(signs).items():
            scores = [0.0] * len(rows)
            for fold in range(FOLDS):
                inside = [i for i in range(len(rows)) if folds[i] != fold]
                outside = [i for i in range(len(rows)) if folds[i] == fold]
                score = fit([rows[i] for i in inside], [outcomes[i] for i in inside])
                for i in outside:
                    scores[i] = score(rows[i])
            interval = bootstrap_interval(brier, scores, outcomes, resamples=200)
            cells.append(
                {
                    "table": name,
                    "method": method,
                    "n": len(rows),
                    "signals": list(signs) if method in {"logistic", "boosting"} else list(signs)[:1],
                    "brier": round(brier(scores, outcomes), 5),
                    "brier_interval": [round(interval.low, 5), round(interval.high, 5)],
                    "ece": round(expected_calibration_error(scores, outcomes), 5),
                    "auroc": round(auroc(scores, outcomes), 5),
                }
            )
            print(cells[-1], flush=True)
    results = provenance("python benchmarks/calibration.py", ["scikit-learn"])
    results |= {"folds": FOLDS, "cells": cells, "wall_s": round(time.perf_counter() - started, 1)}
    print(f"written to {save(results, 'calibration', args.out).name}")


if __name__ == "__main__":
    main()
