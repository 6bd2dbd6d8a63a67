"""α-UMi's two stages for SmolLM2, trained on MetaTool and API-Bank: what the adapters do on ToolAlpaca and on BFCL.

    python benchmarks/agents_training.py train [--out DIR] [--seconds S] [--size small|full] [--device cpu|cuda]
    python benchmarks/agents_training.py answer toolalpaca|bfcl base|adapters [--out DIR] [--limit N] [--seconds S]
    python benchmarks/agents_training.py report [--out DIR]

`train` needs the [train] and [agents] extras and fits the backbone, then an adapter for planner, caller and summarizer;
it goes on where an earlier call stopped. `small` is what one CPU core does within the hour, `full` every query and
every layer, for a GPU. Nothing of ToolAlpaca or BFCL is trained on, and nothing was set on ToolAlpaca or on the half of
BFCL that is asked here.
`answer` has α-UMi's planner and caller answer, held to the tools' schemas, with the embedded model as it is or with its
adapters; the tools cannot be run, so that every call is told to have been done. `report` compares the two on the items
that both answered and writes results/agents_training.json. What the structured caller gains is in benchmarks/bfcl.py.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bfcl import LEAST, WEIGHTS, OneModel, macro, rows
from bfcl import items as bfcl_items
from provenance import data_folder, provenance, save

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.evaluation.benchmarks import CallItem, beside, read_rows, read_toolalpaca
from nearfar.agents.evaluation.bfcl import AST_CATEGORIES, CATEGORIES, BfclItem, judge
from nearfar.agents.evaluation.call_metrics import call_figures
from nearfar.agents.evaluation.call_text import Call
from nearfar.agents.evaluation.role_caller import RoleCaller
from nearfar.agents.evaluation.role_turns import GoldTask, gold_tasks, role_turns
from nearfar.agents.roles import Role
from nearfar.errors import NearfarError
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.types import Answer, Query

ROLES = ("planner", "caller", "summarizer")
KINDS = ("base", "adapters")
HELD_BACK = 10  # one in so many tasks
MEASURED = 6  # tasks of each set that the loss is measured on
SMALL = {"apibank": 120, "metatool_multi": 80, "metatool_single": 320}  # tasks
FIGURES = ("plan_accuracy", "action_em", "argument_f1", "all_right")


# --- training --------------------------------------------------------------------------------------------------------


def tasks_of() -> dict[str, list[GoldTask]]:
    """The gold tasks of each set in a fixed random order."""
    folder = data_folder() / "tools"
    files = {
        "apibank": [folder / "apibank" / "apis.jsonl", folder / "apibank" / "dialogues.jsonl.gz"],
        "metatool_multi": [folder / "metatool" / "tools.jsonl", folder / "metatool" / "multi_queries.jsonl"],
        "metatool_single": [folder / "metatool" / "tools.jsonl", folder / "metatool" / "single_queries.jsonl.gz"],
    }
    found = {name: gold_tasks(read_rows(paths)) for name, paths in files.items()}
    for tasks in found.values():
        random.Random(0).shuffle(tasks)
    return found


def train(out: Path, size: str, device: str, seconds: float | None) -> None:
    """Both stages; trained.json tells what came of them so far."""
    from nearfar.training.role_adapters import RolesRecipe, train_roles

    found = tasks_of()
    held = [task for tasks in found.values() for task in tasks[: len(tasks) // HELD_BACK][:MEASURED]]
    kept = {name: tasks[len(tasks) // HELD_BACK :] for name, tasks in found.items()}
    if size == "small":
        kept = {name: tasks[: SMALL[name]] for name, tasks in kept.items()}
        recipe = RolesRecipe(backbone_epochs=1, summarizer_epochs=1, most_tokens=448)
    else:
        recipe = RolesRecipe(rank=32, alpha=64.0, layers=30, batch_size=32, most_tokens=2048)
    done = train_roles(
        WEIGHTS,
        role_turns(task for tasks in kept.values() for task in tasks),
        out,
        recipe=recipe,
        validation=role_turns(held),
        seconds=seconds,
        device=device,
        progress=lambda stage, at, of, loss: print(f"{stage} {at}/{of} {loss:.3f} {time.strftime('%X')}", flush=True),
    )
    earlier = json.loads((out / "trained.json").read_text()) if (out / "trained.json").exists() else {"seconds": 0.0}
    told = {
        "size": size,
        "device": device,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "recipe": asdict(recipe),
        "tasks": {name: len(tasks) for name, tasks in kept.items()},
        "num_parameters": done.num_parameters,
        "untrained": done.untrained,
        "stages": [
            {key: value for key, value in asdict(stage).items() if key not in ("gguf", "peft")} for stage in done.stages
        ],
        "seconds": round(done.seconds + earlier["seconds"], 1),
        "is_complete": done.is_complete,
    }
    (out / "trained.json").write_text(json.dumps(told, indent=1))
    print(json.dumps(told["stages"], indent=1), "complete" if done.is_complete else "run again to go on")


# --- answering -------------------------------------------------------------------------------------------------------


class Named(OneModel):
    """Asks the model that the query names: the embedded one, or the one with a role's adapter.

    Each adapter has weights of its own here: what a model remembers of a prompt holds for one adapter, and the roles
    ask in turn.
    """

    def __init__(self, kind: str, adapters: Path) -> None:
        names = ROLES if kind == "adapters" else ()
        super().__init__(_loaded({}))
        self._models = {name: _loaded({name: adapters / name / "adapter.gguf"}).with_lora(name) for name in names}

    def model_of(self, role: str) -> str:
        """What a query of the role names."""
        return f"smollm2+{role}" if role in self._models else "smollm2"

    async def answer(self, query: Query, *, door: str = "agent") -> Answer:
        """The named model's answer."""
        model = self._models.get(str(query.model).partition("+")[2])
        return await (model.complete(query) if model else super().answer(query))

    async def aclose(self) -> None:
        """Frees the weights."""
        for model in (self._model, *self._models.values()):
            await model.aclose()


def _loaded(loras: dict[str, Path]) -> LlamaCppModel:
    return LlamaCppModel(WEIGHTS, name="smollm2", context_window=8192, parallel=1, threads=1, loras=loras)


def toolalpaca_items() -> list[CallItem]:
    """ToolAlpaca's instructions whose tools are known, in a fixed random order."""
    path = data_folder() / "tools" / "toolalpaca" / "eval.jsonl"
    found = [item for item in read_toolalpaca(read_rows(beside([path], "apis.jsonl"))) if item.tools and item.gold]
    return sorted(found, key=lambda item: hashlib.sha256(item.id.encode()).hexdigest())


def items_of(benchmark: str) -> list[Any]:
    """All items, in the order in which they are asked."""
    if benchmark == "toolalpaca":
        return toolalpaca_items()
    places: Counter[str] = Counter()
    found = []
    for item in bfcl_items(10**6):
        found.append((places[item.category], item))
        places[item.category] += 1
    return [item for _, item in sorted(found, key=lambda each: each[0])]  # all categories in turn


async def answer(benchmark: str, kind: str, out: Path, limit: int, seconds: float) -> None:
    """Asks until all is answered or the time is up; one line an item."""
    path = out / f"{benchmark}_{kind}.jsonl"
    done = {row["id"] for row in rows(path)}
    asked = Named(kind, out)
    roles = {name: Role(name, asked.model_of(name), max_tokens=160) for name in ROLES}
    caller = RoleCaller(asked, AlphaUmi(), roles)
    ends = time.monotonic() + seconds
    with path.open("a", encoding="utf-8") as file:
        for item in items_of(benchmark)[:limit]:
            if item.id in done:
                continue
            if time.monotonic() > ends:
                break
            begun = time.perf_counter()
            try:
                found = await (
                    caller.answer_bfcl(item) if isinstance(item, BfclItem) else caller.answer(item.text, item.tools)
                )
                row = {
                    "calls": [{call.name: dict(call.arguments)} for call in found.calls],
                    "tokens": found.prompt_tokens + found.completion_tokens,
                    "model_calls": found.model_calls,
                }
            except NearfarError as exc:  # a prompt longer than the context window: an answer that is wrong
                row = {"calls": [], "tokens": 0, "model_calls": 0, "error": type(exc).__name__}
            row = {"id": item.id, **row, "seconds": round(time.perf_counter() - begun, 3)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    await asked.aclose()


# --- the figures -----------------------------------------------------------------------------------------------------


def toolalpaca_figures(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """α-UMi's metrics of both kinds on the items that both answered, and the paired differences."""
    both = [item for item in toolalpaca_items() if all(item.id in answers for answers in found.values())]
    values: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in FIGURES} for kind in found}
    for kind, answers in found.items():
        for item in both:
            calls = [Call(*pair) for each in answers[item.id]["calls"] for pair in each.items()]
            figures = call_figures(calls, item.gold, known={tool.name for tool in item.tools})
            for name in FIGURES:
                values[kind][name].append(getattr(figures, name))
    return {"n": len(both)} | {
        name: {kind: macro([values[kind][name]]) for kind in found}
        | {"difference": macro([list(np.subtract(values["adapters"][name], values["base"][name]))])}
        for name in FIGURES
    }


def bfcl_figures(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The share of right answers by category, the macro average where every category has enough, and differences."""
    both = [item for item in bfcl_items(10**6) if all(item.id in answers for answers in found.values())]
    right: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in CATEGORIES} for kind in found}
    for item in both:
        for kind, answers in found.items():
            right[kind][item.category].append(float(judge(item, answers[item.id]["calls"]).is_correct))

    def compared(categories: list[str]) -> dict[str, Any]:
        groups = {kind: [right[kind][name] for name in categories] for kind in found}
        gains = [list(np.subtract(b, a)) for a, b in zip(groups["base"], groups["adapters"], strict=True)]
        n = sum(len(group) for group in groups["base"])
        return {"n": n} | {kind: macro(groups[kind]) for kind in found} | {"difference": macro(gains)}

    told = [name for name in CATEGORIES if len(right["base"][name]) >= LEAST]
    result: dict[str, Any] = {"n": len(both)}
    if set(AST_CATEGORIES) <= set(told):
        result["macro_ast"] = compared(list(AST_CATEGORIES))
    return result | {"categories": {name: compared([name]) for name in told}}


def report(out: Path) -> None:
    """Writes results/agents_training.json."""
    found = {
        benchmark: {kind: {row["id"]: row for row in rows(out / f"{benchmark}_{kind}.jsonl")} for kind in KINDS}
        for benchmark in ("toolalpaca", "bfcl")
    }
    results = provenance("python benchmarks/agents_training.py report", ("xllamacpp",)) | {
        "model": "SmolLM2-135M-Instruct Q4_1, temperature 0",
        "trained": json.loads((out / "trained.json").read_text()),
        "gguf_bytes": {name: (out / name / "adapter.gguf").stat().st_size for name in ROLES},
        "toolalpaca": toolalpaca_figures(found["toolalpaca"]),
        "bfcl": bfcl_figures(found["bfcl"]),
        "tokens_per_item": {
            benchmark: {
                kind: round(float(np.mean([row["tokens"] for row in answers.values()])), 1)
                for kind, answers in kinds.items()
            }
            for benchmark, kinds in found.items()
        },
    }
    print(json.dumps({key: results[key] for key in ("toolalpaca", "bfcl")}, indent=1))
    save(results, "agents_training")


def main() -> None:
    """Runs the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("train", "answer", "report"))
    parser.add_argument("benchmark", nargs="?", choices=("toolalpaca", "bfcl"))
    parser.add_argument("kind", nargs="?", choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("build/agents_training"))
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=None, help="answer: items")
    parser.add_argument("--seconds", type=float, default=None, help="train, answer: time of this call")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    match arguments.part:
        case "train":
            train(arguments.out, arguments.size, arguments.device, arguments.seconds)
        case "answer":
            most_s = 1e9 if arguments.seconds is None else arguments.seconds
            asyncio.run(answer(arguments.benchmark, arguments.kind, arguments.out, arguments.limit, most_s))
        case _:
            report(arguments.out)


if __name__ == "__main__":
    main()
