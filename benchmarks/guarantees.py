"""Whether promised error rates hold on real tables, and how much is accepted: ours beside other valid methods.

    python benchmarks/guarantees.py [--splits 500] [--labels 1000] [--out benchmarks/results]

Nine tables, each a model's answers with a signal and whether they were right. In each of 500 splits, 1,000 answers are
drawn at random to calibrate on and the rest are the test. A promise is broken in a split where the accepted answers'
error is above alpha: on the whole table, which stands for the population that the promise is about; and on the test
part, which adds its own noise, so that an exact method may come out above delta there. Writes guarantees.json.

`mapie` is measured where it is installed: pip install mapie.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from provenance import RESULTS, data_folder, provenance, save

from nearfar.router.guarantees import AcceptedError, ExpectedLoss, QualityLoss, between, first_rank
from nearfar.router.p_values import hoeffding_bentkus_p_value, most_errors

try:
    from mapie.risk_control._base_controller import ltt_procedure
except ImportError:
    ltt_procedure = None

Floats = NDArray[np.float64]

#: file, model, signal; the far model where the quality lost is measured too
TABLES = {
    "MCQ, GPT-3.5, MSP": ("mcq_msp_confidence", "gpt-3.5-turbo", "confidence", None),
    "MCQ, Llama-3-70B, MSP": ("mcq_msp_confidence", "Llama3-70b", "confidence", None),
    "MCQ, Yi-34B, MSP": ("mcq_msp_confidence", "Yi-34b", "confidence", None),
    "MMLU, Llama-3-8B, MSP": ("mmlu_llama3_cascade", "Llama3-8b", "confidence_msp", "Llama3-70b"),
    "MMLU, Llama-3-70B, MSP": ("mmlu_llama3_cascade", "Llama3-70b", "confidence_msp", "gpt-4-1106-preview"),
    "MMLU-Pro, DeepSeek-V3, verbal": ("mmlupro_confidence", "deepseek-chat", "verbal_conf", "deepseek-reasoner"),
    "MMLU-Pro, Qwen3-14B thinking, verbal": ("mmlupro_confidence", "Qwen3-14B-think", "verbal_conf", None),
    "MMLU-Pro, GPT-4o mini, perplexity": ("mmlupro_confidence", "gpt-4o-mini-2024-07-18", "logit_ppl_conf", None),
    "Stated, Llama-3.1-70B, token": (
        "stated_confidence",
        "Meta-Llama-3.1-70B-Instruct",
        "token_confidence",
        None,
    ),
}
ALPHAS = (0.02, 0.05, 0.1)
DELTAS = (0.05, 0.1)
GRID = 100


@dataclass(frozen=True)
class Table:
    """Answers in descending order of their signal."""

    signals: Floats
    errors: Floats
    far_errors: Floats | None
    running: Floats = field(init=False)  # errors among the first i

    def __post_init__(self) -> None:
        object.__setattr__(self, "running", np.r_[0.0, np.cumsum(self.errors)])


def load(folder: Path, file: str, model: str, signal: str, far: str | None) -> Table:
    """A model's answers; those without a signal are left out."""
    table = pq.read_table(
        folder / "router" / f"{file}.parquet",
        columns=["dataset", "query_id", "model", "correct", signal],
        filters=[("model", "in", [model, *([far] if far else [])])],
    ).to_pylist()
    near_rows = {(r["dataset"], r["query_id"]): r for r in table if r["model"] == model and r[signal] is not None}
    far_rows = {(r["dataset"], r["query_id"]): r["correct"] for r in table if r["model"] == far}
    rows = [
        (row[signal], 1 - row["correct"], 1 - far_rows.get(key, 1.0))
        for key, row in near_rows.items()
        if row[signal] == row[signal] and (not far or key in far_rows)
    ]
    signals, errors, far_errors = (np.array(column, float) for column in zip(*rows, strict=True))
    order = np.argsort(-signals, kind="stable")
    return Table(signals[order], errors[order], far_errors[order] if far else None)


@dataclass(frozen=True)
class Sample:
    """The calibration part of a split, cut at every distinct signal."""

    signals: Floats  # descending
    accepted: NDArray[np.int64]  # by cut
    errors: NDArray[np.int64]

    def threshold(self, cut: int) -> float:
        """Of the cut, as the product gives it."""
        if cut < 0:
            return np.inf
        m = self.accepted[cut]
        below = self.signals[m] if m < len(self.signals) else -np.inf
        return between(float(below), float(self.signals[m - 1]))


Method = Callable[[Sample, float, float], float]


def last_passed(passes: NDArray[np.bool_], start: int) -> int:
    """The last cut before the first that fails, from `start` on; -1: the first fails."""
    if start >= len(passes) or not passes[start]:
        return -1
    failed = np.flatnonzero(~passes[start:])
    return int(start + failed[0] - 1) if len(failed) else len(passes) - 1


_allowed: dict[tuple[str, int, float, float], NDArray[np.int64]] = {}


def allowed(kind: str, n: int, alpha: float, delta: float) -> NDArray[np.int64]:
    """The most errors by number accepted."""
    key = (kind, n, alpha, delta)
    if key not in _allowed:
        if kind == "binomial":
            _allowed[key] = np.array(most_errors(n, alpha, delta))
        else:
            found, k = [-1], -1
            for m in range(1, n + 1):
                while k + 1 <= m and hoeffding_bentkus_p_value((k + 1) / m, m, alpha) <= delta:
                    k += 1
                found.append(k)
            _allowed[key] = np.array(found)
    return _allowed[key]


def ours(sample: Sample, alpha: float, delta: float) -> float:
    """`AcceptedError`, vectorised; `agrees` checks that it is the same."""
    n = len(sample.signals)
    passes = sample.errors <= allowed("binomial", n, alpha, delta)[sample.accepted]
    start = int(np.searchsorted(sample.accepted, first_rank(n, alpha, delta)))
    return sample.threshold(last_passed(passes, start))


def walk_from_the_top(kind: str) -> Method:
    """Fixed sequence over all cuts from the first that can pass without an error."""

    def method(sample: Sample, alpha: float, delta: float) -> float:
        limits = allowed(kind, len(sample.signals), alpha, delta)
        passes = sample.errors <= limits[sample.accepted]
        start = int(np.searchsorted(sample.accepted, int(np.argmax(limits >= 0)) if limits.max() >= 0 else 10**9))
        return sample.threshold(last_passed(passes, start))

    return method


def bonferroni(kind: str) -> Method:
    """Every hundredth of the labels is tested at a hundredth of delta."""

    def method(sample: Sample, alpha: float, delta: float) -> float:
        n = len(sample.signals)
        cuts = np.unique(np.searchsorted(sample.accepted, np.linspace(n / GRID, n, GRID)))
        cuts = cuts[cuts < len(sample.accepted)]
        passes = sample.errors[cuts] <= allowed(kind, n, alpha, delta / GRID)[sample.accepted[cuts]]
        return sample.threshold(int(cuts[passes][-1])) if passes.any() else np.inf

    return method


def population_grid(quantiles: Floats) -> Method:
    """Exact binomial, fixed sequence over a hundred quantiles of the whole table, which nobody has in practice."""

    def method(sample: Sample, alpha: float, delta: float) -> float:
        n = len(sample.signals)
        accepted = np.searchsorted(-sample.signals, -quantiles, side="right")
        running = np.r_[0, np.cumsum(np.diff(np.r_[0, sample.errors]))]
        counts = np.r_[0, sample.accepted]
        at = np.searchsorted(counts, accepted)
        passes = running[at] <= allowed("binomial", n, alpha, delta)[accepted]
        least = int(np.ceil(np.log(delta) / np.log1p(-alpha) + 3 * sqrt(n * alpha)))
        start = int(np.searchsorted(np.arange(1, GRID + 1) * n / GRID, least))
        cut = last_passed(passes, start)
        return float(quantiles[cut]) if cut >= 0 else np.inf

    return method


def plug_in(sample: Sample, alpha: float, _: float) -> float:
    """The lowest threshold whose error on the labels is at most alpha: no guarantee."""
    passes = sample.errors <= alpha * sample.accepted + 1e-9
    return sample.threshold(int(np.flatnonzero(passes)[-1])) if passes.any() else np.inf


def conformal(sample: Sample, alpha: float, _: float) -> float:
    """Conformal risk control on the accepted error's excess over alpha, which is not monotone: a mean, no 1 − delta."""
    n = len(sample.signals)
    passes = (sample.errors - alpha * sample.accepted + 1) / (n + 1) <= 0
    return sample.threshold(int(np.flatnonzero(passes)[-1])) if passes.any() else np.inf


def mapie(fwer: str, grid: Floats) -> Method:
    """mapie's learn-then-test for precision over a grid of thresholds, ascending as its default is."""

    def method(sample: Sample, alpha: float, delta: float) -> float:
        accepted = np.searchsorted(-sample.signals, -grid, side="right")
        counts = np.r_[0, sample.accepted]
        errors = np.r_[0, sample.errors][np.searchsorted(counts, accepted)]
        risk = np.where(accepted > 0, errors / np.maximum(accepted, 1), 1.0)
        size = np.where(accepted > 0, accepted, -1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            valid, _ = ltt_procedure(
                risk[None, :], np.array([[alpha]]), delta, size[None, :].astype(float), True, fwer_method=fwer
            )
        chosen = [i for i in valid[0] if accepted[i] > 0]
        return float(grid[min(chosen)]) if chosen else np.inf

    return method


def methods(table: Table) -> dict[str, Method]:
    """By name; those after the plug-in and conformal ones claim 1 − delta."""
    quantiles = np.quantile(table.signals, 1 - np.arange(1, GRID + 1) / GRID, method="lower")
    found: dict[str, Method] = {
        "nearfar": ours,
        "binomial, walk from the top": walk_from_the_top("binomial"),
        "binomial, Bonferroni": bonferroni("binomial"),
        "binomial, quantiles of the table": population_grid(quantiles),
        "Hoeffding-Bentkus, walk from the top": walk_from_the_top("hb"),
        "Hoeffding-Bentkus, Bonferroni": bonferroni("hb"),
        "conformal risk control": conformal,
        "plug-in": plug_in,
    }
    if ltt_procedure is not None:
        found["mapie, its defaults"] = mapie("bonferroni_holm", np.linspace(0, 0.99, GRID))
        found["mapie, fixed sequence over quantiles"] = mapie("fixed_sequence", np.unique(quantiles))
    return found


def accepted_error(args: argparse.Namespace, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Violations and coverage of every method, by table, alpha and delta."""
    cells = []
    for name, table in tables.items():
        draw = np.random.default_rng(0)
        n, size = args.labels, len(table.signals)
        found = methods(table)
        sums = {(m, a, d): np.zeros(4) for m in found for a in ALPHAS for d in DELTAS}
        checked = 0
        for split in range(args.splits):
            rows = np.sort(draw.permutation(size)[:n])
            signals, running = table.signals[rows], np.cumsum(table.errors[rows])
            cuts = np.flatnonzero(np.r_[signals[1:] != signals[:-1], True])
            sample = Sample(signals, cuts + 1, np.rint(running[cuts]).astype(int))
            for (method, alpha, delta), total in sums.items():
                threshold = found[method](sample, alpha, delta)
                if method == "nearfar" and split < 3:
                    check(table, rows, alpha, delta, threshold)
                    checked += 1
                if threshold == np.inf:
                    continue
                accepted = int(np.searchsorted(-table.signals, -threshold, side="right"))
                of_sample = int(np.searchsorted(-signals, -threshold, side="right"))
                wrong = table.running[accepted]
                test = accepted - of_sample
                test_wrong = wrong - (running[of_sample - 1] if of_sample else 0)
                total += (
                    wrong > alpha * accepted + 1e-9,
                    test > 0 and test_wrong > alpha * test + 1e-9,
                    test / (size - n),
                    1,
                )
        for (method, alpha, delta), total in sums.items():
            broken, broken_on_test, coverage, answered = (float(x) / args.splits for x in total)
            cells.append(
                {
                    "table": name,
                    "method": method,
                    "alpha": alpha,
                    "delta": delta,
                    "broken": round(broken, 4),
                    "broken_on_test": round(broken_on_test, 4),
                    "coverage": round(coverage, 5),
                    "feasible": round(answered, 4),
                }
            )
        print(f"{name}: {size:,} answers, {checked} thresholds equal to AcceptedError's", flush=True)
    return {"cells": cells, "summary": summary(cells, args.splits)}


def check(table: Table, rows: NDArray[np.int64], alpha: float, delta: float, threshold: float) -> None:
    """That the vectorised method is the product's."""
    fitted = AcceptedError(alpha, delta).fit(list(table.signals[rows]), list(1 - table.errors[rows]))
    if (np.inf if fitted.value is None else fitted.value) != threshold:
        raise AssertionError(f"vectorised {threshold!r}, fitted {fitted.value!r}")


def summary(cells: list[dict[str, Any]], splits: int) -> dict[str, Any]:
    """By method: the worst excess of violations over delta in standard errors, and the mean coverage."""
    found: dict[str, Any] = {}
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = [cell for cell in cells if cell["method"] == method]

        def worst(key: str, own: list[dict[str, Any]] = own) -> float:
            return max((c[key] - c["delta"]) / sqrt(c["delta"] * (1 - c["delta"]) / splits) for c in own)

        found[method] = {
            "cells": len(own),
            "most_broken": max(c["broken"] for c in own),
            "most_broken_on_test": max(c["broken_on_test"] for c in own),
            "worst_excess_se": round(worst("broken"), 2),
            "worst_excess_se_on_test": round(worst("broken_on_test"), 2),
            "is_valid_within_2_se": worst("broken") <= 2,
            "is_valid_within_2_se_on_test": worst("broken_on_test") <= 2,
            "mean_coverage": round(sum(c["coverage"] for c in own) / len(own), 5),
        }
    return found


def quality_loss(args: argparse.Namespace, tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """The quality lost against always far: exact difference of two models beside conformal risk control."""
    cells = []
    for name, table in tables.items():
        if table.far_errors is None:
            continue
        losses = np.r_[0.0, np.cumsum(table.errors - table.far_errors)]
        size, n, delta = len(table.signals), args.labels, 0.1
        draw = np.random.default_rng(1)
        splits = max(1, args.splits // 5)
        parts = [np.sort(draw.permutation(size)[:n]) for _ in range(splits)]
        for alpha in (0.02, 0.05):
            for method in ("nearfar", "conformal risk control"):
                broken = coverage = 0.0
                for rows in parts:
                    far = list(1 - table.far_errors[rows])
                    fitter = QualityLoss(alpha, delta, far) if method == "nearfar" else ExpectedLoss(alpha, far)
                    value = fitter.fit(list(table.signals[rows]), list(1 - table.errors[rows])).value
                    if value is not None:
                        accepted = int(np.searchsorted(-table.signals, -value, side="right"))
                        broken += losses[accepted] / size > alpha
                        coverage += accepted / size
                cells.append(
                    {
                        "table": name,
                        "method": method,
                        "alpha": alpha,
                        "delta": delta,
                        "splits": splits,
                        "broken": round(broken / splits, 4),
                        "coverage": round(coverage / splits, 5),
                    }
                )
        print(f"{name}: quality loss done", flush=True)
    return cells


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    folder = data_folder()
    started = time.perf_counter()
    tables = {name: load(folder, *where) for name, where in TABLES.items()}
    results = provenance(
        f"python benchmarks/guarantees.py --splits {args.splits} --labels {args.labels}", ["numpy", "mapie"]
    )
    results |= {
        "splits": args.splits,
        "labels": args.labels,
        "tables": {
            name: {
                "file": TABLES[name][0],
                "model": TABLES[name][1],
                "signal": TABLES[name][2],
                "answers": len(table.signals),
                "distinct_signals": len(np.unique(table.signals)),
                "accuracy": round(1 - float(table.errors.mean()), 4),
            }
            for name, table in tables.items()
        },
        "accepted_error": accepted_error(args, tables),
        "quality_loss": quality_loss(args, tables),
    }
    results["wall_s"] = round(time.perf_counter() - started, 1)
    path = save(results, "guarantees" if args.labels == 1000 else f"guarantees_{args.labels}", args.out)
    for method, figures in results["accepted_error"]["summary"].items():
        print(f"{method:40} {figures}")
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
