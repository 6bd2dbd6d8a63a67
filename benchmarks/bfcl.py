"""SmolLM2 on BFCL's public items: BFCL's own prompt against calls in small steps, per category.

    python benchmarks/bfcl.py answer plain|structured|adapters [--out DIR] [--limit N] [--seconds S] [--adapters DIR]
    python benchmarks/bfcl.py report [--out DIR]

Half of the items, by a hash of their ids, set the rules of the structured caller; the figures are of the other half.
`answer` asks items of all categories in turn, can be stopped and run again; `report` compares the two on the items that
both answered and writes results/bfcl.json. The plain prompt's answers are read leniently: calls in any form, also among
other words; how the leaderboard reads them is told beside. `adapters` is the structured caller with the caller's
adapter of benchmarks/agents_training.py; it is told beside where it has answered the same items.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import data_folder, provenance, save

from nearfar.agents.evaluation.answering import plain, structured
from nearfar.agents.evaluation.answers import Recorded
from nearfar.agents.evaluation.bfcl import (
    AST_CATEGORIES,
    CATEGORIES,
    RELEVANCE_CATEGORIES,
    BfclItem,
    judge,
    read_item,
)
from nearfar.agents.evaluation.structured_caller import StructuredCaller
from nearfar.errors import NearfarError
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.retrieval.embedders import find_embedder
from nearfar.types import Answer, Query

WEIGHTS = Path.home() / ".cache" / "nearfar" / "weights" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESAMPLES = 2000
LEAST = 5  # items of a category that an interval is told of
AGENTS = ("plain", "structured")
ADAPTERS = "adapters"


def is_reported(item_id: str) -> bool:
    """Whether the item is in the half that nothing was set on."""
    return int(hashlib.sha256(item_id.encode()).hexdigest(), 16) % 2 == 1


def items(limit: int) -> list[BfclItem]:
    """Up to `limit` items of every category of the reported half in a fixed random order, categories in turn.

    Those with gold calls come first.
    """
    found: dict[str, list[BfclItem]] = {}
    for category in CATEGORIES:
        with gzip.open(data_folder() / "bfcl" / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [row for row in map(json.loads, file) if is_reported(row["id"])]
        rows.sort(key=lambda row: hashlib.sha256(f"s{row['id']}".encode()).hexdigest())
        found[category] = [item for row in rows[:limit] if (item := read_item(row))]
    return [
        found[category][place]
        for categories in (AST_CATEGORIES, RELEVANCE_CATEGORIES)
        for place in range(max(len(found[category]) for category in categories))
        for category in categories
        if place < len(found[category])
    ]


class OneModel:
    """Asks the model itself: no tier, no log."""

    def __init__(self, model: LlamaCppModel) -> None:
        self._model = model

    async def answer(self, query: Query, *, door: str = "agent") -> Answer:
        """The model's answer."""
        return await self._model.complete(query)

    def stream(self, query: Query, *, door: str = "agent") -> Any:
        """The same in pieces."""
        return self._model.stream(query)


async def answer(agent: str, limit: int, most_s: float, out: Path, adapters: Path) -> None:
    """Asks until all is answered or the time is up; one line an item."""
    path = out / f"{agent}.jsonl"
    done = {json.loads(line)["id"] for line in path.read_text().splitlines()} if path.exists() else set()
    loras = {"caller": adapters / "caller" / "adapter.gguf"} if agent == ADAPTERS else {}
    model = LlamaCppModel(WEIGHTS, name="smollm2", context_window=8192, parallel=1, threads=1, loras=loras)
    one = OneModel(model.with_lora("caller") if loras else model)
    asking = (
        plain(one, "smollm2")
        if agent == "plain"
        else structured(StructuredCaller(one, "smollm2", find_embedder("static")))
    )
    start = time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        for item in items(limit):
            if item.id in done:
                continue
            if time.monotonic() - start > most_s:
                break
            begun = time.perf_counter()
            try:
                found = await asking(item)
            except NearfarError as exc:  # a prompt longer than the context window: an answer that is wrong
                found = Recorded(f"({type(exc).__name__})")
            row = {
                "id": item.id,
                "answer": found.value,
                "tokens": found.tokens,
                "model_calls": found.model_calls,
                "seconds": round(time.perf_counter() - begun, 3),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    await model.aclose()


def report(out: Path) -> None:
    """Writes results/bfcl.json from what was answered by both."""
    answers = {agent: {row["id"]: row for row in rows(out / f"{agent}.jsonl")} for agent in AGENTS}
    both = [item for item in items(10**6) if all(item.id in found for found in answers.values())]
    right: dict[str, dict[str, list[float]]] = {}
    readings = (
        ("plain", "plain", "lenient"),
        ("plain_strict", "plain", "strict"),
        ("structured", "structured", "strict"),
    )
    for name, agent, reading in readings:
        right[name] = {category: [] for category in CATEGORIES}
        for item in both:
            verdict = judge(item, answers[agent][item.id]["answer"], reading=reading)  # type: ignore[arg-type]  # a literal
            right[name][item.category].append(float(verdict.is_correct))
    few = [category for category in AST_CATEGORIES if len(right["plain"][category]) < LEAST]
    if few:  # resampling one or two items of a category shows no spread, and an interval of it would lie
        raise SystemExit(f"skipped: fewer than {LEAST} items were answered by both of {', '.join(few)}; answer more")
    compared = list(AST_CATEGORIES)
    results = provenance("python benchmarks/bfcl.py report", ("xllamacpp", "wordllama")) | {
        "model": "SmolLM2-135M-Instruct Q4_1, temperature 0",
        "n": len(both),
        "split": "the half of the public items that set no rule; categories in turn, as many as both answered",
        "macro_ast": {name: macro([found[category] for category in compared]) for name, found in right.items()},
        "macro_ast_difference": macro([gains(right, "plain", "structured", category) for category in compared]),
        "categories": {
            category: {"n": len(right["plain"][category])}
            | {name: macro([found[category]]) for name, found in right.items()}
            | {"difference": macro([gains(right, "plain", "structured", category)])}
            for category in CATEGORIES
            if right["plain"][category]
        },
        "cost": {
            agent: {
                "tokens_per_item": round(float(np.mean([found[item.id]["tokens"] or 0 for item in both])), 1),
                "model_calls_per_item": round(float(np.mean([found[item.id]["model_calls"] or 0 for item in both])), 2),
            }
            for agent, found in answers.items()
        },
    }
    trained = {row["id"]: row for row in rows(out / f"{ADAPTERS}.jsonl")}
    if trained:
        results["adapters"] = beside([item for item in both if item.id in trained], answers["structured"], trained)
    print(json.dumps({key: results[key] for key in ("n", "macro_ast", "macro_ast_difference", "categories")}, indent=1))
    save(results, "bfcl")


def beside(asked: list[BfclItem], base: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """The structured caller as it is and with its adapter, by category, on the items that both answered."""
    right: dict[str, dict[str, list[float]]] = {name: {} for name in ("structured", ADAPTERS)}
    for item in asked:
        for name, answers in (("structured", base), (ADAPTERS, trained)):
            is_right = judge(item, answers[item.id]["answer"]).is_correct
            right[name].setdefault(item.category, []).append(float(is_right))

    def compared(categories: list[str]) -> dict[str, Any]:
        found = {name: macro([of[category] for category in categories]) for name, of in right.items()}
        difference = macro([gains(right, "structured", ADAPTERS, category) for category in categories])
        return (
            {"n": sum(len(right[ADAPTERS][category]) for category in categories)} | found | {"difference": difference}
        )

    told = [category for category in AST_CATEGORIES if len(right[ADAPTERS].get(category, ())) >= LEAST]
    result: dict[str, Any] = {"categories": {category: compared([category]) for category in told}}
    return result | ({"macro_ast": compared(told)} if len(told) == len(AST_CATEGORIES) else {})


def gains(right: dict[str, dict[str, list[float]]], one: str, other: str, category: str) -> list[float]:
    """How much better `other` is on each of the category's items."""
    return [b - a for a, b in zip(right[one][category], right[other][category], strict=True)]


def rows(path: Path) -> list[dict[str, Any]]:
    """What was answered so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def macro(groups: list[list[float]]) -> dict[str, Any]:
    """The mean of the groups' means and its 95 % interval, resampled inside of each group."""
    draw = np.random.default_rng(0)
    arrays = [np.asarray(group, float) for group in groups]
    means = [np.mean([a[draw.integers(len(a), size=len(a))].mean() for a in arrays]) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    value = np.mean([array.mean() for array in arrays])
    return {"value": round(float(value), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def main() -> None:
    """Runs the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("answer", "report"))
    parser.add_argument("agent", nargs="?", choices=(*AGENTS, ADAPTERS))
    parser.add_argument("--out", type=Path, default=Path("build/bfcl"))
    parser.add_argument("--adapters", type=Path, default=Path("build/agents_training"))
    parser.add_argument("--limit", type=int, default=40, help="items of each category")
    parser.add_argument("--seconds", type=float, default=1e9)
    arguments = parser.parse_args()
    if arguments.part == "report":
        report(arguments.out)
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(answer(arguments.agent, arguments.limit, arguments.seconds, arguments.out, arguments.adapters))


if __name__ == "__main__":
    main()
