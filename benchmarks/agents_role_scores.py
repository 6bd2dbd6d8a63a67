"""Whether model roles know when they are wrong: α-UMi's planner and caller, scored by their own tokens, against gold.

    python benchmarks/agents_role_scores.py answer planner|caller base|adapters SET [--adapters DIR] [--work DIR]
                                                   [--limit N] [--seconds S]
    python benchmarks/agents_role_scores.py report [--work DIR]

The model is SmolLM2 in the agent's own prompts, held to its schemas, as it is or with the role's adapter of
benchmarks/agents_training.py. A plan is the planner's first decision: which tool is called first. It is right where
that is gold's first tool on ToolAlpaca, and one that gold calls on BFCL, where the order is free; wanting to answer or
to give up is wrong, since there is a call to make. The caller is told gold's tool and writes the arguments of
questions with one call; BFCL's checker says whether they are right.
SETs: `toolalpaca`, all public items (plans); `bfcl`, the half that set no rule (`benchmarks/bfcl.py`), for plans the
questions with several functions; `chosen`, the same of the other half, where the planner's score was chosen.
Nothing was trained on any of them. `report` compares the scores with the geometric mean of the token probabilities as
the model itself has them, escalates the least sure quarter to gold as benchmarks/agents_roles.py does, and writes
results/agents_role_scores.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from agents_roles import RESAMPLES, SHARE, auroc, figures
from bfcl import WEIGHTS, is_reported, rows
from provenance import data_folder, provenance, save

from nearfar.agents.alpha_umi import (
    CALLER,
    PLANNER,
    arguments_format,
    arguments_score,
    asked_next,
    call_question,
    conversation,
    plan_score,
    planned_text,
    planner_format,
    read_plan,
)
from nearfar.agents.evaluation.benchmarks import beside, read_rows, read_toolalpaca
from nearfar.agents.evaluation.bfcl import AST_CATEGORIES, BfclItem, judge, read_item
from nearfar.agents.evaluation.bfcl_tools import calls_for_checker, tool_spec
from nearfar.agents.evaluation.call_text import Call
from nearfar.agents.roles import Ask, Role, query_of, span_score
from nearfar.errors import NearfarError
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.held_choices import CHOICE_LOGPROBS
from nearfar.types import Answer, TokenLogprob, ToolSpec

ROLES = (PLANNER, CALLER)
KINDS = ("base", "adapters")
SETS = ("bfcl", "toolalpaca", "chosen")
CATEGORIES = {
    PLANNER: tuple(category for category in AST_CATEGORIES if "multiple" in category),
    CALLER: tuple(category for category in AST_CATEGORIES if "parallel" not in category),
}
MAX_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Item:
    """A request with its tools, and the tools that are right to call first."""

    id: str
    text: str
    tools: tuple[ToolSpec, ...]
    gold: tuple[str, ...]
    bfcl: BfclItem | None = None


# --- answering -------------------------------------------------------------------------------------------------------


def in_order(found: list[Item]) -> list[Item]:
    """The items in a fixed random order."""
    return sorted(found, key=lambda item: hashlib.sha256(f"role {item.id}".encode()).hexdigest())


def items_of(role: str, name: str) -> list[Item]:
    """The items of a set in the order in which they are asked, BFCL's categories in turn."""
    if name == "toolalpaca":
        path = data_folder() / "tools" / "toolalpaca" / "eval.jsonl"
        read = read_toolalpaca(read_rows(beside([path], "apis.jsonl")))
        with_gold = [item for item in read if item.tools and item.gold]
        return in_order([Item(item.id, item.text, item.tools, (item.gold[0].name,)) for item in with_gold])
    groups = []
    for category in CATEGORIES[role]:
        group = []
        with gzip.open(data_folder() / "bfcl" / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                item = read_item(row)
                if item is None or is_reported(item.id) != (name == "bfcl"):
                    continue
                tools = tuple({each["name"]: tool_spec(each) for each in item.functions}.values())
                if len(tools) > 1 or role == CALLER:
                    group.append(Item(item.id, item.text, tools, tuple(call.name for call in item.gold), item))
        groups.append(in_order(group))
    return [item for turn in itertools.zip_longest(*groups) for item in turn if item is not None]


def ask_of(role: str, item: Item) -> Ask:
    """The first question to the role; the caller is told that gold's tool is next."""
    tools = [replace(tool, parameters={**tool.parameters, "additionalProperties": False}) for tool in item.tools]
    history = conversation(item.text, tools, [])
    if role == PLANNER:
        return Ask(history, 1, planner_format(tools), top_logprobs=CHOICE_LOGPROBS)
    name = item.gold[0]
    turns = asked_next(history, planned_text(name, f"{name}, then answer", "steps"), call_question(name))
    shape = arguments_format(next(tool for tool in tools if tool.name == name))
    return Ask(turns, 1, shape, top_logprobs=CHOICE_LOGPROBS)


async def answer(role: str, kind: str, name: str, options: argparse.Namespace) -> None:
    """Asks until all is answered or the time is up; one line an item, with its tokens and their alternatives."""
    path = options.work / f"{role}_{name}_{kind}.jsonl"
    done = {row["id"] for row in rows(path)}
    loras = {role: options.adapters / role / "adapter.gguf"} if kind == "adapters" else {}
    model = LlamaCppModel(WEIGHTS, name="smollm2", context_window=8192, parallel=1, threads=1, loras=loras)
    asked = model.with_lora(role) if loras else model
    ends = time.monotonic() + options.seconds
    with path.open("a", encoding="utf-8") as file:
        for item in items_of(role, name)[: options.limit]:
            if item.id in done:
                continue
            if time.monotonic() > ends:
                break
            row: dict[str, Any] = {"id": item.id}
            try:
                query = query_of(Role(role, "smollm2", max_tokens=MAX_TOKENS), ask_of(role, item), logprobs=True)
                said = await asked.complete(query)
                row |= {"text": said.text, "tokens": [plain(token) for token in said.logprobs or ()]}
            except NearfarError as exc:  # a prompt longer than the context window: an answer that is wrong
                row |= {"text": "", "tokens": [], "error": type(exc).__name__}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    await model.aclose()


def plain(token: TokenLogprob) -> list[Any]:
    """A token as JSON values."""
    return [token.token, round(token.logprob, 4), [[other, round(logprob, 4)] for other, logprob in token.top]]


# --- the figures -----------------------------------------------------------------------------------------------------


def is_right(role: str, item: Item, text: str) -> bool:
    """Whether the plan names a tool of gold's, or the checker takes the call."""
    if role == PLANNER:
        _, following, tool = read_plan(text, item.tools)
        return following == "caller" and tool in item.gold
    assert item.bfcl is not None
    try:
        arguments = json.loads(text)
    except ValueError:  # cut off by the token limit
        return False
    calls = calls_for_checker([Call(item.gold[0], arguments)], item.bfcl)
    return judge(item.bfcl, [{call.name: dict(call.arguments)} for call in calls]).is_correct


def score_of(role: str, item: Item, answer: Answer) -> float | None:
    """The product's score; a call that was cut off is repaired there and has none."""
    if role == PLANNER:
        return plan_score(answer, planner_format(item.tools))
    return arguments_score(answer) if _is_json(answer.text) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def own_score(role: str, item: Item, answer: Answer) -> float | None:
    """The geometric mean of the probabilities of the marker's or the call's tokens, as the model itself has them."""
    if role == CALLER:
        return span_score(answer, answer.text.strip())
    try:
        return span_score(answer, json.dumps(json.loads(answer.text)["next"], ensure_ascii=False))
    except (ValueError, KeyError):  # cut off
        return None


def first_listed(text: str) -> str | None:
    """What the planner lists first, whatever its marker says."""
    try:
        return str(json.loads(text)["plan"][0])
    except (ValueError, KeyError, IndexError):  # cut off
        return None


Score = Callable[[str, Item, Answer], float | None]


def judged(role: str, name: str, found: list[dict[str, Any]], score: Score) -> list[tuple[float, bool]]:
    """How sure each answer is, by `score`, and whether it is right; one without a score is least sure."""
    items = {item.id: item for item in items_of(role, name)}
    told = []
    for row in found:
        item = items[row["id"]]
        tokens = tuple(TokenLogprob(token, own, tuple(map(tuple, top))) for token, own, top in row["tokens"])
        sure = score(role, item, Answer(row["text"], logprobs=tokens)) if tokens else None
        told.append((sure or 0.0, is_right(role, item, row["text"])))
    return told


def compared(role: str, name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The score's figures, the AUROC of the model's own probabilities beside it, and the paired difference."""
    ours, own = judged(role, name, found, score_of), judged(role, name, found, own_score)
    right = np.array([ok for _, ok in ours], float)
    scores, before = (np.array([score for score, _ in each]) for each in (ours, own))
    draw = np.random.default_rng(0)
    samples = [draw.integers(len(ours), size=len(ours)) for _ in range(RESAMPLES)]
    gains = [auroc(scores[at], right[at]) - auroc(before[at], right[at]) for at in samples]
    low, high = np.nanquantile(gains, (0.025, 0.975))
    gain = float(auroc(scores, right) - auroc(before, right))
    items = {item.id: item for item in items_of(role, name)}
    listed = [first_listed(row["text"]) in items[row["id"]].gold for row in found] if role == PLANNER else []
    return figures(ours) | {
        **({"accuracy_of_first_listed": round(sum(listed) / len(listed), 4)} if listed else {}),
        "auroc_of_own_probabilities": figures(own)["auroc"],
        "auroc_gain": {"value": round(gain, 4), "interval": [round(float(low), 4), round(float(high), 4)]},
    }


def report(work: Path) -> None:
    """Writes results/agents_role_scores.json."""
    results = provenance("python benchmarks/agents_role_scores.py report", ("xllamacpp", "numpy")) | {
        "model": "SmolLM2-135M-Instruct Q4_1, temperature 0",
        "share_escalated": SHARE,
        "roles": {
            role: {
                name: {
                    kind: compared(role, name, found)
                    for kind in KINDS
                    if (found := rows(work / f"{role}_{name}_{kind}.jsonl"))
                }
                for name in SETS
            }
            for role in ROLES
        },
    }
    print(json.dumps(results["roles"], indent=1))
    save(results, "agents_role_scores")


def main() -> None:
    """Runs the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("answer", "report"))
    parser.add_argument("role", nargs="?", choices=ROLES)
    parser.add_argument("kind", nargs="?", choices=KINDS)
    parser.add_argument("set", nargs="?", choices=SETS)
    parser.add_argument("--adapters", type=Path, default=Path("build/agents_training"))
    parser.add_argument("--work", type=Path, default=Path("build/agents_role_scores"))
    parser.add_argument("--limit", type=int, default=None, help="items")
    parser.add_argument("--seconds", type=float, default=1e9)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "report":
        report(options.work)
    else:
        asyncio.run(answer(options.role, options.kind, options.set, options))


if __name__ == "__main__":
    main()
