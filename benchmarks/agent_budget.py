"""Which role deserves the test-time budget: a measured search over a small grid, as AgentTTS asks (arXiv:2508.00890).

    python benchmarks/agent_budget.py answer [--work FOLDER] [--seconds N] [--limit N]
    python benchmarks/agent_budget.py report [--work FOLDER]

The agent is the real one (the graph of alpha-UMi with its checkpoints, one step), on BFCL's questions with two to six
functions and one gold call. Its planner names the function and its caller writes the arguments, held to the function's
schema as the request's words narrow it. Both are SmolLM2 with 1, 3 or 5 draws of which the most frequent counts: the
number of draws is what the budget buys. A model of 135M parameters plans badly, so that two others plan, too: `rules`
asks no model (nearfar.agents.evaluation.request_plan), and `scripted` is told the gold plan of 89 % of the questions,
by a hash of their ids, and another function for the rest: the accuracy that alpha-UMi's paper has for its planner of 7B
parameters (arXiv:2401.07324, 88.92 %). Its tokens count 52 times, 7B over 135M; it is no model, and its rows say what
such a planner would have to be worth.

Draws are kept in FOLDER and are the same in every cell: with 5 draws the agent sees the 3 of the cell before and two
more. Where three agree, or the schema leaves one text, the others cannot change what is most frequent: they are not
made, and count as many tokens as the first. Within each budget nine tenths of the questions, by a hash, choose the best
cell for the last tenth, in turn. Nothing of the caller's rules was set on any of them (`is_reported`).
Writes results/agent_budget.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import itertools
import json
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bfcl import is_reported
from provenance import data_folder, provenance, save

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.checkpoints import RunStore, open_sqlite
from nearfar.agents.evaluation.bfcl import BfclItem, judge, read_item
from nearfar.agents.evaluation.bfcl_tools import arguments_for_checker, tool_spec
from nearfar.agents.evaluation.grounded_schema import grounded
from nearfar.agents.evaluation.request_plan import planned
from nearfar.agents.graph_agent import GraphAgent, Team
from nearfar.agents.roles import Role
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Called, Decided, Limits, Observation, Planned, Task, ToolHints
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.models.weights import default_cache_dir, fetch
from nearfar.retrieval.embedders import Embedder, Remembered, find_embedder
from nearfar.types import Answer, Query, StreamEnd, StreamEvent, ToolSpec, Usage, estimate_tokens

CATEGORIES = ("multiple", "live_multiple")
FUNCTIONS = (2, 6)  # how many a question may offer
DRAWS = (1, 3, 5)
PLANNERS = (("smollm2", 1), ("smollm2", 3), ("smollm2", 5), ("rules", 1), ("scripted", 1))
CELLS = tuple(itertools.product(PLANNERS, DRAWS))
WEIGHTS = {"smollm2": 1.0, "rules": 0.0, "scripted": 7e9 / 135e6}  # what a token of a planner counts
SCRIPTED_ACCURACY = 0.8892
FOLDS = 10
RESAMPLES = 2000
MAX_TOKENS = 96


def share(text: str) -> float:
    """A number in [0, 1) that the text has for ever."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def items(limit: int) -> list[BfclItem]:
    """The questions in a fixed random order, the categories in turn."""
    found: list[list[BfclItem]] = []
    for category in CATEGORIES:
        with gzip.open(data_folder() / "bfcl" / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
            read = [read_item(row) for row in map(json.loads, file) if is_reported(row["id"])]
        fitting = [
            each
            for each in read
            if each is not None
            and FUNCTIONS[0] <= len({function["name"] for function in each.functions}) <= FUNCTIONS[1]
            and len(each.gold) == 1
        ]
        found.append(sorted(fitting, key=lambda each: share(f"order {each.id}")))
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*found))
    return [each for each in in_turn if each is not None][:limit]


# --- the agent -------------------------------------------------------------------------------------------------------


class Noted:
    """A tool that does nothing: what is measured is the call."""

    hints = ToolHints(read_only=True, is_trusted=True)

    def __init__(self, spec: ToolSpec) -> None:
        self.spec = spec

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Says that it was done."""
        return Observation("done")


class Draws:
    """SmolLM2, each of whose draws is kept: the same question with the same seed is asked once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found = {row["key"]: row for row in rows_of(path)}
        self._model: LlamaCppModel | None = None

    async def answer(self, query: Query) -> Answer:
        """The draw."""
        asked = [
            [[message.role, message.text] for message in query.messages],
            query.response_format.schema if query.response_format else None,
            [query.sampling.max_tokens, query.sampling.temperature, query.sampling.seed],
        ]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        family = hashlib.sha256(json.dumps(asked[:2], sort_keys=True).encode()).hexdigest()
        if key not in self._found and (known := self._settled(family, query)) is not None:
            self._note({**known, "key": key, "is_made": False})
        if key not in self._found:
            if self._model is None:
                weights = fetch("smollm2", cache_dir=default_cache_dir())
                self._model = LlamaCppModel(weights, name="smollm2", context_window=4096, parallel=1, threads=1)
            said = await self._model.complete(query)
            usage = said.usage or Usage(0, 0)
            tokens = [usage.prompt_tokens, usage.completion_tokens]
            self._note({"key": key, "family": family, "seed": query.sampling.seed, "text": said.text, "usage": tokens})
        row = self._found[key]
        return Answer(row["text"], "smollm2", usage=Usage(*row["usage"]))

    def _settled(self, family: str, query: Query) -> dict[str, Any] | None:
        """A draw that stands for this one, which cannot change what is most frequent; None: it has to be made."""
        before = [row for row in self._found.values() if row.get("family") == family and row.get("is_made", True)]
        schema = (query.response_format.schema if query.response_format else None) or {}
        if before and all(len(each.get("enum", ())) == 1 for each in schema.get("properties", {}).values()):
            return before[0]
        first = [row for row in before if row["seed"] in (0, 1, 2)]
        if query.sampling.seed not in (3, 4) or len(first) < 3 or len({said(row["text"]) for row in first}) > 1:
            return None
        return first[0]

    def _note(self, row: dict[str, Any]) -> None:
        self._found[row["key"]] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    async def aclose(self) -> None:
        """Frees the model."""
        if self._model is not None:
            await self._model.aclose()


def said(text: str) -> str:
    """What two draws share that say the same: the planner's next, or the caller's arguments."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return json.dumps(value.get("next", value) if isinstance(value, dict) else value, sort_keys=True)


class Responder:
    """Answers for the roles of one question: SmolLM2, or a plan that is written down."""

    def __init__(self, draws: Draws, plans: Mapping[str, str]) -> None:
        self._draws = draws
        self._plans = plans

    async def answer(self, query: Query, *, door: str = "agent") -> Answer:
        """The model's answer, or the plan."""
        tool = self._plans.get(query.model)
        if tool is None:
            return await self._draws.answer(query)
        text = json.dumps({"plan": [tool, "answer"], "next": f"call {tool}"})
        read = sum(estimate_tokens(message.text) for message in query.messages)
        return Answer(text, query.model, usage=Usage(read, estimate_tokens(text)))

    async def stream(self, query: Query, *, door: str = "agent") -> AsyncGenerator[StreamEvent, None]:
        """The summarizer's answer, asked for where the planner wants no call: that is wrong here, whatever is said."""
        yield StreamEnd(Answer("no call", query.model))


def plans_of(item: BfclItem, tools: Sequence[ToolSpec], embedder: Embedder) -> dict[str, str]:
    """What the planners that are no models say."""
    gold = item.gold[0].name
    others = [tool.name for tool in tools if tool.name != gold]
    is_right = share(f"plan {item.id}") < SCRIPTED_ACCURACY
    return {
        "rules": planned(item.text, tools, embedder).steps[0].tool,
        "scripted": gold if is_right else others[int(share(f"other {item.id}") * len(others))],
    }


async def cells_of(item: BfclItem, draws: Draws, store: RunStore, embedder: Embedder) -> dict[str, Any]:
    """What every cell of the grid makes of the question: the plan, the call, and each role's tokens."""
    functions = {function["name"]: function for function in item.functions}
    tools = [tool_spec(function) for function in functions.values()]
    narrowed = [replace(tool, parameters=grounded(tool.parameters, item.text)) for tool in tools]
    responder = Responder(draws, plans_of(item, tools, embedder))
    toolbox = Toolbox([Noted(tool) for tool in narrowed])
    found = {}
    for (planner, planner_draws), caller_draws in CELLS:
        roles = {
            "planner": Role("planner", planner, MAX_TOKENS, samples=planner_draws, reads_logprobs=False),
            "caller": Role("caller", "smollm2", MAX_TOKENS, samples=caller_draws, reads_logprobs=False),
        }
        agent = GraphAgent("budget", AlphaUmi(()), Team(responder, toolbox, store), roles=roles)
        tokens = dict.fromkeys(roles, 0)
        plan = None
        calls: list[dict[str, Any]] = []
        async for event in agent.stream(Task(item.text, limits=Limits(steps=1, seconds=600))):
            match event:
                case Decided() if event.usage is not None:
                    tokens[event.role] += event.usage.prompt_tokens + event.usage.completion_tokens
                case Planned():
                    plan = event.next
                case Called():
                    arguments = json.loads(event.call.arguments)
                    plain = arguments_for_checker(arguments, functions[event.call.name], item.language)
                    calls.append({event.call.name: plain})
                case _:
                    pass
        found[name_of((planner, planner_draws), caller_draws)] = {
            "right": judge(item, calls).is_correct,
            "planned": plan == "caller" and bool(calls) and item.gold[0].name in calls[0],
            "tokens": tokens,
        }
    return found


def name_of(planner: tuple[str, int], caller_draws: int) -> str:
    """A cell's name."""
    return f"{planner[0]} x {planner[1]}, caller x {caller_draws}"


async def answer(work: Path, limit: int, most_s: float) -> None:
    """Does questions until all are done or the time is up; several processes may, each in an order of its own."""
    asked = items(limit)
    random.shuffle(asked)
    embedder = Remembered(find_embedder("static"))
    draws = Draws(work / "draws.jsonl")
    until = time.monotonic() + most_s
    try:
        with tempfile.TemporaryDirectory() as folder, (work / "items.jsonl").open("a", encoding="utf-8") as file:
            for item in asked:
                if item.id in {row["id"] for row in rows_of(work / "items.jsonl")}:
                    continue
                if time.monotonic() > until:
                    break
                async with await open_sqlite(Path(folder) / f"{item.id}.db") as store:
                    cells = await cells_of(item, draws, store, embedder)
                file.write(json.dumps({"id": item.id, "cells": cells}) + "\n")
                file.flush()
    finally:
        await draws.aclose()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What was done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- the search ------------------------------------------------------------------------------------------------------


def cost(cell: str, tokens: Mapping[str, int]) -> float:
    """What a question took, in tokens of SmolLM2."""
    return WEIGHTS[cell.split(" ")[0]] * tokens["planner"] + tokens["caller"]


def best_within(budget: float, names: Sequence[str], right: Any, costs: Any) -> str:
    """The cell that is right most often among those that cost no more on average; the cheapest of equals, or of all."""
    fitting = [at for at in range(len(names)) if costs[:, at].mean() <= budget]
    if not fitting:
        return names[int(costs.mean(axis=0).argmin())]
    return names[max(fitting, key=lambda at: (right[:, at].mean(), -costs[:, at].mean()))]


def interval(values: Any) -> dict[str, Any]:
    """The mean with its 95 % bootstrap interval over questions."""
    draw = np.random.default_rng(0)
    means = values[draw.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"value": round(float(values.mean()), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def report(work: Path) -> None:
    """Writes what was found."""
    rows = list({row["id"]: row for row in rows_of(work / "items.jsonl")}.values())
    names = [name_of(*cell) for cell in CELLS]
    place = {name: at for at, name in enumerate(names)}
    right = np.array([[row["cells"][name]["right"] for name in names] for row in rows], float)
    plans = np.array([[row["cells"][name]["planned"] for name in names] for row in rows], float)
    costs = np.array([[cost(name, row["cells"][name]["tokens"]) for name in names] for row in rows])
    folds = np.array([int(share(f"fold {row['id']}") * FOLDS) for row in rows])

    def chosen(offered: Sequence[str]) -> list[dict[str, Any]]:
        """The search's choice at every budget at which it changes, against even shares of the same budget."""
        at = [place[name] for name in offered]
        found: list[dict[str, Any]] = []
        for budget in sorted(float(costs[:, each].mean()) for each in at):
            best = best_within(budget, offered, right[:, at], costs[:, at])
            if found and found[-1]["cell"] == best:
                continue
            held_out = np.empty(len(rows))
            for fold in range(FOLDS):
                rest, this = folds != fold, folds == fold
                name = best_within(budget, offered, right[rest][:, at], costs[rest][:, at])
                held_out[this] = right[this, place[name]]
            even = [name_of(("smollm2", k), k) for k in DRAWS]
            fitting = [name for name in even if costs[:, place[name]].mean() <= budget]
            entry = {"budget": round(budget, 1), "cell": best, "accuracy_held_out": interval(held_out)}
            if fitting:
                gained = held_out - right[:, place[fitting[-1]]]
                entry |= {"even_shares": fitting[-1], "gain_over_even_shares": interval(gained)}
            found.append(entry)
        return found

    def gain(more: str, less: str) -> dict[str, Any]:
        return {"cell": more, "against": less, "gain": interval(right[:, place[more]] - right[:, place[less]])}

    one = name_of(("smollm2", 1), 1)
    page = provenance("python benchmarks/agent_budget.py report", ("xllamacpp", "langgraph", "numpy")) | {
        "model": "SmolLM2-135M-Instruct Q4_1; one draw at temperature 0, several at 0.7",
        "data": "BFCL v4, multiple and live_multiple with two to six functions, the half that set no rule",
        "n": len(rows),
        "scripted_planner": {"accuracy": SCRIPTED_ACCURACY, "weight_of_a_token": round(WEIGHTS["scripted"], 1)},
        "cells": {
            name: {
                "accuracy": interval(right[:, at]),
                "plan_accuracy": interval(plans[:, at]),
                "tokens": round(float(costs[:, at].mean()), 1),
            }
            for name, at in place.items()
        },
        "search": {
            "smollm2 alone": chosen([name for name in names if name.startswith("smollm2")]),
            "smollm2 or rules": chosen([name for name in names if not name.startswith("scripted")]),
            "all planners": chosen(names),
        },
        "more_draws": [
            gain(name_of(("smollm2", 5), 1), one),
            gain(name_of(("smollm2", 1), 5), one),
            gain(name_of(("smollm2", 5), 5), one),
            gain(name_of(("rules", 1), 5), name_of(("rules", 1), 1)),
            gain(name_of(("scripted", 1), 5), name_of(("scripted", 1), 1)),
            gain(name_of(("rules", 1), 1), one),
            gain(name_of(("scripted", 1), 1), one),
        ],
    }
    print(json.dumps({key: page[key] for key in ("n", "cells", "search", "more_draws")}, indent=1))
    save(page, "agent_budget")


def main() -> None:
    """Answers, or reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("answer", "report"))
    parser.add_argument("--work", type=Path, default=Path("agent_budget.work"))
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--limit", type=int, default=180)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "answer":
        asyncio.run(answer(options.work, options.limit, options.seconds))
    else:
        report(options.work)


if __name__ == "__main__":
    main()
