"""How well a 135M model names the worker of a query in one token: zero-shot, calibrated, and with a trained adapter.

    python benchmarks/functional_tokens.py train [--out DIR] [--stop-after EPOCHS]     needs the [train] extra
    python benchmarks/functional_tokens.py minilm [--out DIR]                          needs the [minilm] extra
    python benchmarks/functional_tokens.py collect zero-shot|trained [--out DIR] [--limit N]
    python benchmarks/functional_tokens.py report [--out DIR]

The 14 task families of `llmrouter_example` are the workers. A fifth of the queries, by a hash of their text, is held
back: nothing is fitted on it. Another tenth sets the calibration and stops nothing. `train` fits the adapter, `collect`
asks llama.cpp for the distribution of every query of the two parts and can be stopped and run again, `report` reads
what is in DIR, adds the dull baselines and writes results/functional_tokens.json.
The data folder is $NEARFAR_DATA unless told; where it is missing nothing runs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from provenance import data_folder

from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.functional_tokens.chooser import FunctionalTokens
from nearfar.router.functional_tokens.graph import Worker, WorkerGraph, free_labels
from nearfar.router.functional_tokens.prompts import CONTENT_FREE, Style, choice_prompt

DESCRIPTIONS = {
    "agentverse-logicgrid": "logic puzzles about houses in a row and who lives in which",
    "agentverse-mgsm": "math word problems that ask for the final answer in \\boxed{}",
    "arc_challenge": "science questions of school exams",
    "commongen": "a list of words, to be used together in sentences",
    "commonsense_qa": "everyday questions that need common sense",
    "gpqa": "very hard questions of physics, chemistry and biology for experts",
    "gsm8k": "math word problems of primary school",
    "human_eval": "completing a Python function from its signature and docstring",
    "math": "competition mathematics: algebra, geometry, counting, in LaTeX",
    "mbpp": "requests to write a short Python function",
    "mmlu": "exam questions of all subjects, with passages to read",
    "natural_qa": "questions typed into a search engine, without capitals",
    "openbook_qa": "elementary science facts, often a sentence to complete",
    "trivia_qa": "trivia questions of quiz shows",
}
GENERAL = "mmlu"  # the broadest family takes what nobody is chosen for
Part = Literal["fit", "calibration", "held_back"]
Kind = Literal["zero-shot", "trained"]


@dataclass(frozen=True, slots=True)
class Item:
    """A query and the family that it comes from."""

    id: str
    text: str
    worker: str
    part: Part


def items() -> list[Item]:
    """Every query once, with its part."""
    table = pq.read_table(
        data_folder() / "router" / "llmrouter_example.parquet", columns=["dataset", "query_id", "query"]
    )
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["query_id"], Item(row["query_id"], row["query"], row["dataset"], part_of(row["query"])))
    return list(found.values())


def part_of(text: str) -> Part:
    """By a hash of the text without blanks and case, so that copies of a query are in one part."""
    plain = re.sub(r"\s+", " ", text).strip().lower()
    number = int(hashlib.sha256(f"functional tokens {plain}".encode()).hexdigest()[:8], 16) % 100
    return "held_back" if number < 20 else "calibration" if number < 30 else "fit"


def graph() -> WorkerGraph:
    """The families as workers, with the first capital letters as their labels."""
    labels = free_labels((), len(DESCRIPTIONS))
    return WorkerGraph(
        tuple(Worker(name, told, label) for (name, told), label in zip(DESCRIPTIONS.items(), labels, strict=True)),
        GENERAL,
    )


def weights() -> Path:
    """The embedded model's file."""
    from nearfar.models import weights as known

    return known.fetch("smollm2", cache_dir=known.default_cache_dir())


def train(out: Path, stop_after: int | None) -> None:
    """Fits the adapter on the fit part; goes on where an earlier call stopped."""
    from nearfar.training.functional_tokens import LabelledPrompt, train

    workers = graph()
    prompts = {
        part: [
            LabelledPrompt(choice_prompt(workers.workers, each.text, "trained"), workers.by_name[each.worker].label)
            for each in items()
            if each.part == part
        ]
        for part in ("fit", "calibration")
    }
    done = train(
        weights(),
        prompts["fit"],
        out / "adapter",
        labels=[worker.label for worker in workers.workers],
        validation=prompts["calibration"] if stop_after != 0 else (),
        stop_after=stop_after,
        progress=lambda at, total, loss: print(f"{at}/{total} {loss:.3f}", flush=True) if at % 10 == 0 else None,
    )
    print(done)


def model(kind: Kind, out: Path) -> LlamaCppModel:
    """The embedded model, with the adapter for the trained kind."""
    loras = {"router": out / "adapter" / "adapter.gguf"} if kind == "trained" else {}
    base = LlamaCppModel(weights(), name="smollm2", context_window=1024, parallel=1, threads=1, loras=loras)
    return base.with_lora("router") if kind == "trained" else base


async def collect(kind: Kind, out: Path, parts: Sequence[Part], seconds: float) -> None:
    """Asks the model for the distribution over the labels, query by query, and keeps each in a file as it comes."""
    path = out / f"{kind}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["id"] for line in path.read_text().splitlines()} if path.exists() else set()
    style: Style = "trained" if kind == "trained" else "described"
    chooser = FunctionalTokens(model(kind, out), graph(), style=style)
    rows = [(f"content free {i}", text) for i, text in enumerate(CONTENT_FREE)]
    rows += [(each.id, each.text) for part in parts for each in items() if each.part == part]
    ends = time.monotonic() + seconds
    with path.open("a") as file:
        for i, (identity, text) in enumerate(row for row in rows if row[0] not in done):
            if time.monotonic() > ends:
                print(f"stopped after {i}; run again to go on", flush=True)
                break
            started = time.perf_counter()
            found, answer = await chooser.logprobs(text)
            usage = answer.usage
            assert usage is not None
            row = {
                "id": identity,
                "logprobs": found.known,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "latency_s": time.perf_counter() - started,
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            if i % 50 == 0:
                print(i, f"{row['latency_s']:.3f} s", flush=True)
    await chooser.model.aclose()


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["train", "collect"])
    parser.add_argument("kind", nargs="?", choices=["zero-shot", "trained"], default="zero-shot")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp")) / "functional_tokens")
    parser.add_argument("--stop-after", type=int, default=None, help="train: epochs of this call")
    parser.add_argument("--seconds", type=float, default=600.0, help="collect: time of this call")
    options = parser.parse_args()
    if options.part == "train":
        train(options.out, options.stop_after)
    elif options.part == "collect":
        asyncio.run(collect(options.kind, options.out, ["held_back", "calibration"], options.seconds))


if __name__ == "__main__":
    sys.exit(main())
