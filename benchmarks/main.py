"""The main job: a live small model near, a strong model's recorded answers far, on real questions.

    python benchmarks/main.py [--limit 200] [--labels 400] [--data ../shared/data] [--out benchmarks/results]
    python benchmarks/main.py --render     the page anew from the figures

Two workloads, each with two disjoint sets of questions drawn by a hash of their text. The near model answers the first
set live, through the router, and a policy is fitted to those answers (`nearfar.router.calibration`). Then the cascade
with that policy answers the second set, live again, and everything that is reported is measured there. What would have
happened at other thresholds is read off the same run: each near answer is in the decision log even where the cascade
went on, and the far model's answers are recorded for every question.

Writes main.json and main.html. Weights that are not there yet are fetched. The data folder is $NEARFAR_DATA unless
told; its README says where the tables come from.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from main_page import render

import nearfar
from nearfar.errors import DataError
from nearfar.models import weights
from nearfar.models.catalogue import find
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.models.replay import OutcomeTable, ReplayModel
from nearfar.router.calibration import CalibrationReport, LabelledAnswer, calibrate
from nearfar.router.cascade import UNCALIBRATED_THRESHOLD, Cascade, Tier
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.evaluation import (
    area_under,
    auroc,
    bootstrap_interval,
    brier,
    cascade_curve,
    expected_calibration_error,
    quality_at,
    reliability_table,
    wilson_interval,
)
from nearfar.router.policies import Policy
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.store import Store
from nearfar.types import Answer, Message, Query, SamplingOptions

ROOT = Path(__file__).resolve().parent.parent
NEAR = "smollm2"
PARALLEL = 2  # questions at once

Grade = Callable[[str, str], bool]


# --- the workloads ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its right answer."""

    text: str
    gold: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Questions, how they are put, how they are graded, and who answers them from afar."""

    name: str
    title: str
    description: str
    source: str
    far: str  # the model's name in the table
    far_title: str
    catalogue_name: str  # "provider/model", for its price
    instruction: str  # system message
    sampling: SamplingOptions
    grade: Grade
    read: Callable[[Path, str], tuple[list[Question], pa.Table]]

    def query(self, question: Question, model: str) -> Query:
        """The question as every model is asked it."""
        messages = (Message("system", self.instruction), Message("user", question.text))
        return Query(messages, model=model, sampling=self.sampling)


def final_number(text: str) -> Decimal | None:
    """The number after the last "####", or else the last number in the text; None: there is none."""
    _, mark, tail = text.rpartition("####")
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", tail if mark else text)
    if not numbers:
        return None
    return Decimal((numbers[0] if mark else numbers[-1]).replace(",", ""))


def is_right_number(text: str, gold: str) -> bool:
    """Whether the answer's final number is the right one."""
    return final_number(text) == Decimal(gold.replace(",", ""))


def is_right_letter(text: str, gold: str) -> bool:
    """Whether the answer begins with the right letter."""
    return text.strip()[:1] == gold


def read_gsm8k(data: Path, far: str) -> tuple[list[Question], pa.Table]:
    """Questions with the gold number, and the far model's recorded responses."""
    table = pq.read_table(data / "router/routellm_gsm8k.parquet", filters=[("model", "=", far)])
    questions = [Question(row["query"], row["answer"]) for row in table.select(["query", "answer"]).to_pylist()]
    return questions, table.select(["query", "model", "response", "correct"])


def read_mmlu_pro(data: Path, far: str) -> tuple[list[Question], pa.Table]:
    """Questions with the gold letter, and whether the far model was right; of its words only their number is known."""
    asked = pq.read_table(data / "router/mmlupro_questions.parquet", columns=["query_id", "query", "answer"])
    outcomes = pq.read_table(
        data / "router/mmlupro_confidence.parquet",
        columns=["query_id", "model", "correct", "tokens_out"],
        filters=[("model", "=", far)],
    )
    joined = asked.join(outcomes, "query_id", join_type="inner")
    questions = [Question(row["query"], row["answer"]) for row in joined.select(["query", "answer"]).to_pylist()]
    return questions, joined.select(["query", "model", "correct", "tokens_out"]).rename_columns(
        ["query", "model", "correct", "completion_tokens"]
    )


WORKLOADS = (
    Workload(
        name="gsm8k",
        title="Grade-school maths (GSM8K)",
        description="Word problems with a number for an answer; several steps of arithmetic each.",
        source="router/routellm_gsm8k: lm-sys/RouteLLM, Apache-2.0; answers of openai/grade-school-math, MIT",
        far="gpt-4-1106-preview",
        far_title="GPT-4 (1106 preview), recorded answers",
        catalogue_name="openai/gpt-4-1106-preview",
        instruction="Solve the problem step by step, briefly. End with a line '#### ' and the number.",
        sampling=SamplingOptions(max_tokens=160, temperature=0.0),
        grade=is_right_number,
        read=read_gsm8k,
    ),
    Workload(
        name="mmlu_pro",
        title="University exam questions (MMLU-Pro)",
        description="Multiple choice with up to ten options from 14 fields; a guess is right about one time in nine.",
        source="router/mmlupro_questions: MMLU-Pro, MIT; router/mmlupro_confidence: "
        "Linwei94/LLM-Calibration-Study, MIT",
        far="Meta-Llama-3.1-405B-Instruct-Turbo",
        far_title="Llama 3.1 405B, recorded outcomes",
        catalogue_name="together/meta-llama/Meta-Llama-3.1-405B-Instruct-Turbo",
        instruction="Answer the multiple-choice question with the letter of the right option and nothing else.",
        sampling=SamplingOptions(max_tokens=1, temperature=0.0),
        grade=is_right_letter,
        read=read_mmlu_pro,
    ),
)


# --- asking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """One question that the cascade answered, with what either tier says to it."""

    question: str  # first 16 digits of its SHA-256
    near_correct: float
    far_correct: float
    score: float | None  # of the policy
    raw_score: float | None  # mean token probability
    tier: str
    near_s: float
    near_tokens: int | None
    cost_usd: float | None  # of the cascade
    far_cost_usd: float | None  # of asking the far model


async def ask_all(router: Router, queries: Sequence[Query], what: str) -> list[Answer]:
    """The answers in order, two at a time, with a line of progress on stderr."""
    answers: list[Answer | None] = [None] * len(queries)
    remaining = iter(enumerate(queries))
    started, num_done = time.perf_counter(), 0

    async def work() -> None:
        nonlocal num_done
        for i, query in remaining:
            answers[i] = await router.answer(query)
            num_done += 1
            if num_done % 20 == 0 or num_done == len(queries):
                rate = num_done / (time.perf_counter() - started)
                print(f"  {what}: {num_done}/{len(queries)}, {rate:.1f} a second", file=sys.stderr)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(PARALLEL):
            tasks.create_task(work())
    return [answer for answer in answers if answer is not None]


async def run(workload: Workload, near: LlamaCppModel, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Calibrates on one set of questions, answers another, and gives back the figures."""
    print(f"{workload.title}", file=sys.stderr)
    questions, recorded = workload.read(args.data, workload.far)
    questions.sort(key=lambda question: digest(question.text))
    asked, labelled = questions[: args.limit], questions[args.limit : args.limit + args.labels]
    path = folder / f"{workload.name}.parquet"
    pq.write_table(recorded, path)
    facts = find(workload.catalogue_name)
    if facts is None:
        raise DataError(f"The catalogue has no {workload.catalogue_name!r}.")
    far = ReplayModel(OutcomeTable.load(path), name="far", model=workload.far, placement="far", price=facts.price)
    store = Store(folder / f"{workload.name}.sqlite", [DECISIONS])
    log = SqliteDecisionLog(store)
    models = {NEAR: near, "far": far}

    alone = Router({}, models, log=log)
    examples = await label(alone, workload, labelled)
    policy, report, refusal = fit(examples, workload)
    fitted = policy.tier("near", model=NEAR) if policy else None
    tier = Tier(
        near,
        name="near",
        scorer=fitted.scorer if fitted else MeanProbability(),
        threshold=fitted.threshold if fitted else None,
        accepts_nothing=fitted.accepts_nothing if fitted else False,
    )
    cascade = Cascade((tier, Tier(far)), name="auto", policy=policy.label if policy else "uncalibrated")
    answers = await ask_all(
        Router({"auto": cascade}, models, log=log), [workload.query(q, "auto") for q in asked], "cascade"
    )
    far_answers = await ask_all(alone, [workload.query(q, "far") for q in asked], "far alone")
    rows = [
        judge(workload, question, answer, far_answer)
        for question, answer, far_answer in zip(asked, answers, far_answers, strict=True)
    ]
    logged = await log.select(limit=10 * len(questions))
    store.close()
    return {
        "title": workload.title,
        "description": workload.description,
        "source": workload.source,
        "far": {
            "name": workload.far,
            "title": workload.far_title,
            "prompt_usd_per_mtok": facts.price.prompt_usd_per_mtok,
            "completion_usd_per_mtok": facts.price.completion_usd_per_mtok,
            "price_source": facts.source,
            "has_text": not far_answers[0].outcome_only,
        },
        "instruction": workload.instruction,
        "max_tokens": workload.sampling.max_tokens,
        "n": len(rows),
        "decisions_logged": len(logged),
        "decisions_expected": 2 * len(labelled) + 2 * len(asked),
        "calibration": calibration_figures(report, policy, refusal, examples),
        **figures(rows, tier),
        "answers": [asdict(row) for row in rows],
    }


async def label(router: Router, workload: Workload, questions: Sequence[Question]) -> list[LabelledAnswer]:
    """What the near model answers live, graded, with the far model's recorded outcome."""
    near = await ask_all(router, [workload.query(question, NEAR) for question in questions], "labels")
    far = await ask_all(router, [workload.query(question, "far") for question in questions], "labels, far")
    return [
        LabelledAnswer(
            answer.decision.steps[0].signals if answer.decision else {},
            float(workload.grade(answer.text, question.gold)),
            far_answer.correct,
        )
        for question, answer, far_answer in zip(questions, near, far, strict=True)
    ]


def fit(
    examples: Sequence[LabelledAnswer], workload: Workload
) -> tuple[Policy | None, CalibrationReport | None, str | None]:
    """The policy, or why there is none."""
    try:
        policy, report = calibrate(examples, tier="near", model=NEAR, name=f"main-{workload.name}")
    except DataError as exc:
        print(f"  not calibrated: {exc}", file=sys.stderr)
        return None, None, str(exc)
    return policy, report, None


def judge(workload: Workload, question: Question, answer: Answer, far: Answer) -> Asked:
    """The row of one question; the near answer is read off the decision, whoever had the last word."""
    if answer.decision is None or far.correct is None:
        raise DataError(f"Nothing is recorded for {question.text[:60]!r}.")
    step = answer.decision.steps[0]
    return Asked(
        question=digest(question.text)[:16],
        near_correct=float(workload.grade(step.text, question.gold)),
        far_correct=far.correct,
        score=step.score,
        raw_score=MeanProbability().score(step.signals),
        tier=answer.decision.tier or "none",
        near_s=step.latency_s,
        near_tokens=step.usage.completion_tokens if step.usage else None,
        cost_usd=answer.decision.cost_usd,
        far_cost_usd=far.cost_usd,
    )


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


# --- figures ---------------------------------------------------------------------------------------------------------


def figures(rows: Sequence[Asked], tier: Tier) -> dict[str, Any]:
    """Everything that is reported of the evaluation set."""
    near = [row.near_correct for row in rows]
    far = [row.far_correct for row in rows]
    scores = [row.score for row in rows]
    curve = cascade_curve(scores, near, far)
    oracle = cascade_curve([n - f for n, f in zip(near, far, strict=True)], near, far)
    latencies = sorted(row.near_s for row in rows)
    return {
        "systems": systems(rows, near, far),
        "score": score_figures([row.score for row in rows], near),
        "raw_score": score_figures([row.raw_score for row in rows], near),
        "threshold": None if tier.accepts_nothing else tier.threshold,
        "area_under_curve": {
            "cascade": area_under(curve),
            "random": (fmean(near) + fmean(far)) / 2,
            "oracle": area_under(oracle),
        },
        "curve": [asdict(point) for point in curve],
        "oracle_curve": [asdict(point) for point in oracle],
        "near_latency_s": {"p50": percentile(latencies, 50), "p95": percentile(latencies, 95)},
        "near_tokens_mean": fmean(row.near_tokens or 0 for row in rows),
    }


def systems(rows: Sequence[Asked], near: Sequence[float], far: Sequence[float]) -> list[dict[str, Any]]:
    """Accuracy, cost and share near of the cascade and of what it is compared with."""
    far_costs = [row.far_cost_usd for row in rows]
    kept = [row.tier == "near" for row in rows]
    kept_raw = [row.raw_score is not None and row.raw_score >= UNCALIBRATED_THRESHOLD for row in rows]
    needless = [n >= f for n, f in zip(near, far, strict=True)]
    share_near = fmean(kept)
    straight = cascade_curve([0.5] * len(rows), near, far)

    def system(name: str, keeps: Sequence[bool], costs: Sequence[float | None] | None = None) -> dict[str, Any]:
        outcomes = [n if keep else f for keep, n, f in zip(keeps, near, far, strict=True)]
        paid = costs or [0.0 if keep else cost for keep, cost in zip(keeps, far_costs, strict=True)]
        return {
            "name": name,
            "accuracy": fmean(outcomes),
            "accuracy_interval": asdict(wilson_interval(sum(outcomes), len(outcomes))),
            "share_near": fmean(keeps),
            "usd_per_1000": per_1000(paid),
        }

    random_accuracy = quality_at(straight, 1 - share_near)
    far_per_1000 = per_1000(far_costs)
    return [
        system("cascade", kept, [row.cost_usd for row in rows]),
        system("cascade, uncalibrated default", kept_raw),
        system("near alone", [True] * len(rows)),
        system("far alone", [False] * len(rows)),
        {
            "name": "random at the same share",
            "accuracy": random_accuracy,
            "accuracy_interval": asdict(wilson_interval(random_accuracy * len(rows), len(rows))),
            "share_near": share_near,
            "usd_per_1000": None if far_per_1000 is None else far_per_1000 * (1 - share_near),
        },
        system("oracle", needless),
    ]


def per_1000(costs: Sequence[float | None]) -> float | None:
    """US dollars per thousand questions; None where one cost is unknown."""
    known = [cost for cost in costs if cost is not None]
    return 1000 * fmean(known) if len(known) == len(costs) else None


def score_figures(scores: Sequence[float | None], outcomes: Sequence[float]) -> dict[str, Any]:
    """How well a score ranks the near answers and how true it is."""
    pairs = [(score, outcome) for score, outcome in zip(scores, outcomes, strict=True) if score is not None]
    if not pairs:
        return {"n": 0}
    known, right = [score for score, _ in pairs], [outcome for _, outcome in pairs]
    interval = bootstrap_interval(auroc, known, right)
    return {
        "n": len(pairs),
        "num_right": sum(right),
        "mean": fmean(known),
        "auroc": finite(auroc(known, right)),
        "auroc_interval": {"low": finite(interval.low), "high": finite(interval.high)},
        "ece": expected_calibration_error(known, right),
        "brier": brier(known, right),
        "reliability": [asdict(row) for row in reliability_table(known, right)],
    }


def calibration_figures(
    report: CalibrationReport | None, policy: Policy | None, refusal: str | None, examples: Sequence[LabelledAnswer]
) -> dict[str, Any]:
    """What was fitted, on what, and how it did out of fold."""
    base = {"n": len(examples), "num_right": sum(example.correct for example in examples), "refusal": refusal}
    if report is None or policy is None:
        return base
    fitted = policy.tiers["near"]
    return {
        **base,
        "method": report.method,
        "signals": report.signals,
        "out_of_fold": {"auroc": report.auroc, "ece": report.ece, "brier": report.brier},
        "threshold": report.threshold.value,
        "rule": report.rule,
        "guarantee": report.threshold.guarantee,
        "warnings": report.warnings,
        "labels_sha256": fitted.data.sha256 if fitted.data else None,
    }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Of a sorted sequence."""
    return quantiles(ordered, n=100, method="inclusive")[percent - 1] if len(ordered) > 1 else ordered[0]


def finite(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None


# --- where and when --------------------------------------------------------------------------------------------------


def provenance(gguf: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What is needed to run the same again."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return {
        "command": f"python benchmarks/main.py --limit {args.limit} --labels {args.labels}"
        + (f" --only {args.only}" if args.only else ""),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cpu": found[1].strip() if found else platform.processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "nearfar": nearfar.__version__,
            "python": platform.python_version(),
            "xllamacpp": version("xllamacpp"),
            "scikit-learn": version("scikit-learn"),
        },
        "near": {
            "name": NEAR,
            "title": "SmolLM2-135M-Instruct, Q4_1, live on this machine's processor",
            "file": gguf.name,
            "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
            "questions_at_once": PARALLEL,
        },
    }


def commit() -> str:
    """The checkout's commit, marked where the package differs from it."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if head.returncode:
        return "unknown"
    changed = subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "nearfar", "benchmarks/main.py"], cwd=ROOT, check=False
    )
    return head.stdout.strip() + ("+changes" if changed.returncode else "")


# --- the command -----------------------------------------------------------------------------------------------------


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All workloads, one after the other."""
    cache = weights.default_cache_dir()
    gguf = weights.find(NEAR, cache) or weights.fetch(NEAR, cache_dir=cache)
    results = provenance(gguf, args)
    started = time.perf_counter()
    near = LlamaCppModel(gguf, name=NEAR, parallel=PARALLEL)
    try:
        with tempfile.TemporaryDirectory() as folder:
            chosen = [workload for workload in WORKLOADS if args.only in (None, workload.name)]
            results["workloads"] = {workload.name: await run(workload, near, args, Path(folder)) for workload in chosen}
    finally:
        await near.aclose()
    results["wall_s"] = round(time.perf_counter() - started, 1)
    return results


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and writes its figures and its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=200, help="questions of each workload that are evaluated on")
    parser.add_argument("--labels", type=int, default=400, help="other questions that the policy is fitted to")
    parser.add_argument("--only", choices=[workload.name for workload in WORKLOADS], help="one workload")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("NEARFAR_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--render", action="store_true", help="make the page anew from main.json, and run nothing")
    args = parser.parse_args(arguments)
    figures_path, page_path = args.out / "main.json", args.out / "main.html"
    if not args.render:
        if args.limit < 1:
            parser.error("--limit must be at least 1")
        if not (args.data / "router").is_dir():
            parser.error("no data folder: set NEARFAR_DATA or give --data")
        results = asyncio.run(measure(args))
        args.out.mkdir(parents=True, exist_ok=True)
        figures_path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    results = json.loads(figures_path.read_text())
    page_path.write_text(render(results))
    print_summary(results)
    print(f"\n{figures_path.name} and {page_path.name} are in the folder {args.out.name!r}.")
    return 0


def print_summary(results: Mapping[str, Any]) -> None:
    """The figures as a table."""
    for workload in results["workloads"].values():
        print(f"\n{workload['title']}, {workload['n']} questions")
        for system in workload["systems"]:
            low, high = system["accuracy_interval"]["low"], system["accuracy_interval"]["high"]
            cost = "unknown" if system["usd_per_1000"] is None else f"${system['usd_per_1000']:.2f}"
            print(
                f"  {system['name']:32} right {system['accuracy']:6.1%} [{low:.1%}, {high:.1%}]"
                f"   near {system['share_near']:6.1%}   {cost} per 1,000 (estimated)"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
