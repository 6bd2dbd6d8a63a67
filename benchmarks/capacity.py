"""What a mix of machines saves on real lengths of questions and answers, and whether its plan keeps the target.

    python benchmarks/capacity.py

Sizes: every question and recorded answer of two public tables of grade-school problems, and questions with the passages
that they are to be answered from, counted with the embedded model's own tokenizer. Machines: an 8-billion-parameter
model in 16 bits on four GPUs, their step times modelled from bandwidth and arithmetic, at assumed prices; no GPU of
ours was timed. Each plan is simulated a second time, with other random numbers than it was chosen by.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from provenance import data_folder, provenance, save

from nearfar.errors import DataError
from nearfar.models import weights
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.serving.capacity.machines import Machine, Target
from nearfar.serving.capacity.planner import Checked, _by_label, plan_capacity
from nearfar.serving.capacity.simulator import simulate
from nearfar.serving.capacity.workload import Shape, buckets
from nearfar.types import Query

TARGETS = {"loose": Target(ttft_s=2.0, tpot_s=0.12), "tight": Target(ttft_s=1.0, tpot_s=0.04)}
RATES = (2.0, 8.0, 32.0, 128.0)

#: Kind: US dollars an hour, memory in GB, GB/s, dense 16-bit TFLOP/s, tokens of prompts in a step.
#: Prices: assumed, of the order of on-demand ones in 2024 (the A100's is that of the example configuration of Griggs et
#: al. 2024, arXiv:2404.14527); the rest from the vendors' data sheets.
GPUS = {
    "L4": (0.70, 24, 300, 121, 256),
    "A10G": (1.01, 24, 600, 70, 256),
    "A100-80GB": (3.67, 80, 1935, 312, 1024),
    "H100-80GB": (7.516, 80, 3350, 989, 2048),
}
PARAMETERS = 8.0e9
KV_BYTES_PER_TOKEN = 131_072  # 32 layers, 8 heads of 128 for keys and for values, 16 bits
EFFICIENCY = 0.6  # of bandwidth and of arithmetic
FIXED_S = 0.004  # of a step: launch, sampling, scheduling


def modelled(name: str) -> Machine:
    """The GPU's steps: the weights and the context are read, a prompt's tokens are multiplied."""
    price, memory_gb, bandwidth, tflops, chunk = GPUS[name]
    bytes_per_s, flops = EFFICIENCY * bandwidth * 1e9, EFFICIENCY * tflops * 1e12
    return Machine(
        name,
        price,
        step_s=FIXED_S + 2 * PARAMETERS / bytes_per_s,
        per_sequence_s=2 * PARAMETERS / flops,
        per_context_token_s=KV_BYTES_PER_TOKEN / bytes_per_s,
        per_prompt_token_s=2 * PARAMETERS / flops,
        kv_tokens=int((0.9 * memory_gb * 1e9 - 2 * PARAMETERS) / KV_BYTES_PER_TOKEN),
        prompt_chunk=chunk,
        source="modelled from bandwidth and arithmetic",
    )


async def lengths(folder: Path) -> dict[str, list[Shape]]:
    """The sizes of each workload's requests."""
    model = LlamaCppModel(
        weights.fetch("smollm2", cache_dir=weights.default_cache_dir()), name="smollm2", context_window=8192, parallel=1
    )
    known: dict[str, int] = {}

    async def count(text: str) -> int:
        if text not in known:
            known[text] = await model.count_prompt_tokens(Query(text))
        return known[text]

    try:
        template = await count("a") - 1
        chat = []
        for table in ("routellm_gsm8k", "openai_gsm8k_solutions"):
            rows = pq.read_table(folder / "router" / f"{table}.parquet", columns=["query", "response"]).to_pylist()
            chat += [Shape(await count(row["query"]), max(1, await count(row["response"]) - template)) for row in rows]
        grounded = []
        with gzip.open(folder / "multihop" / "qa_with_passages.jsonl.gz", "rt") as file:
            for line in file:
                row = json.loads(line)
                passages = "\n\n".join(f"{each['title']}\n{each['text']}" for each in row["passages"])
                prompt = await count(f"{passages}\n\n{row['question']}")
                grounded.append(Shape(prompt, max(1, await count(str(row["answer"])) - template)))
    finally:
        await model.aclose()
    repeats = max(1, len(chat) // (2 * len(grounded)))
    return {"chat": chat, "chat and passages": chat + grounded * repeats}


def check(
    found: Checked, requests: list[Shape], rate: float, machines: list[Machine], target: Target, seed: int
) -> dict[str, Any]:
    """The plan, and what a second simulation says of it."""
    labels = _by_label(buckets(requests), found.plan)
    again = simulate(requests, rate, machines, found.plan.counts, labels, num_requests=6000, seed=seed)
    return {
        "by": found.plan.by,
        "usd_per_hour": round(found.plan.usd_per_hour, 3),
        "machines": {m.name: count for m, count in zip(machines, found.plan.counts, strict=True) if count},
        "planned_load": found.plan.load,
        "keeps_target_when_chosen": found.keeps_target,
        "ttft_p99_s": round(again.ttft_s(0.99), 4),
        "tpot_p99_s": round(again.tpot_s(0.99), 4),
        "keeps_target_again": again.ttft_s(0.99) <= target.ttft_s and again.tpot_s(0.99) <= target.tpot_s,
    }


def row_of(requests: list[Shape], rate: float, machines: list[Machine], target: Target) -> dict[str, Any]:
    """The mix, the greedy plan and every single kind for one load."""

    def planned(**options: Any) -> dict[str, Any]:
        try:
            found = plan_capacity(requests, rate, machines, target, num_requests=3000, **options)
        except DataError as exc:
            return {"reason": str(exc), "keeps_target_when_chosen": False}
        return check(found, requests, rate, machines, target, seed=101)

    started = time.perf_counter()
    row: dict[str, Any] = {"mix": planned(), "plan_s": round(time.perf_counter() - started, 2)}
    row["greedy"] = planned(by="greedy")
    row["single"] = {machine.name: planned(by="single", kind=i) for i, machine in enumerate(machines)}
    kept = [each for each in row["single"].values() if each["keeps_target_when_chosen"]]
    best = min((each["usd_per_hour"] for each in kept), default=None)
    row["best_single_usd_per_hour"] = best
    row["saving"] = None if best is None else round(1 - row["mix"]["usd_per_hour"] / best, 4)
    return row


def main() -> None:
    """Plans, simulates, writes the file and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    workloads = asyncio.run(lengths(data_folder()))
    machines = [modelled(name) for name in GPUS]
    rows = []
    for name, requests in workloads.items():
        for label, target in TARGETS.items():
            for rate in RATES:
                row = {"workload": name, "target": label, "rate": rate} | row_of(requests, rate, machines, target)
                rows.append(row)
                print(json.dumps({key: row[key] for key in ("workload", "target", "rate", "saving")}), file=sys.stderr)
    results = {
        **provenance("python benchmarks/capacity.py", ["scipy", "xllamacpp"]),
        "targets": {label: asdict(target) for label, target in TARGETS.items()},
        "machines": [asdict(machine) for machine in machines],
        "lengths": {
            name: {
                "requests": len(requests),
                "prompt_tokens": _summary([each.prompt_tokens for each in requests]),
                "completion_tokens": _summary([each.completion_tokens for each in requests]),
            }
            for name, requests in workloads.items()
        },
        "plans": rows,
    }
    print(save(results, "capacity", *([arguments.out] if arguments.out else [])))


def _summary(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    picks = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (5, 50, 95, 99)}
    return {"mean": round(sum(values) / len(values), 1), **picks, "max": ordered[-1]}


if __name__ == "__main__":
    main()
