"""What a library of crafted tools is worth on GSM8K's public problems.

    python benchmarks/craft.py                    the library, and recorded answers with and without it
    python benchmarks/craft.py --model            SmolLM2 on fewer questions, added to those results

Tools are made of the training problems' worked solutions, but for 1,000 problems kept out. `held_out` says how often
the formula that a kept-out problem needs is in the library, and how often it is found. `recorded` takes test problems
with recorded answers: a tool's answer (the best one found, its arguments bound by the words that follow the numbers) in
place of the recorded one where the tool fits better than a cut, which is fitted on one half and measured on the other.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from typing import Any

from provenance import RESULTS, data_folder, provenance, save

from nearfar.agents.code_monty import MontyRunner
from nearfar.agents.craft import LIMITS, Crafted, CraftedTool, Problem, Steering, ToolFinder, apply, craft, same
from nearfar.agents.craft_model import ModelMaker
from nearfar.agents.craft_worked import WorkedMaker, quantities, tool_of
from nearfar.retrieval.embedders import find_embedder
from nearfar.types import Answer, Message, Query, ResponseFormat, SamplingOptions

HELD_OUT = 1_000
REACHABLE = 300  # test problems for which every order of the numbers is tried
RECORDED = ("6b_finetuning", "mistralai/Mixtral-8x7B-Instruct-v0.1")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def training_problems() -> list[Problem]:
    """GSM8K's training part with its worked solutions, in a fixed random order."""
    problems = []
    with gzip.open(data_folder() / "router" / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            solution, _, answer = row["answer"].rpartition("####")
            problems.append(Problem(row["question"], float(answer.strip().replace(",", "")), solution))
    random.Random(11).shuffle(problems)
    return problems


def test_problems() -> list[dict[str, Any]]:
    """The test problems with gold answers, and whether each recorded model was right."""
    import pyarrow.parquet as pq

    folder = data_folder() / "router"
    found: dict[str, dict[str, Any]] = {}
    for file in ("routellm_gsm8k", "openai_gsm8k_solutions"):
        for row in pq.read_table(folder / f"{file}.parquet").to_pylist():
            mine = found.setdefault(row["query_id"], {"question": row["query"], "right": {}})
            mine["right"][row["model"]] = bool(row["correct"])
            if row.get("answer"):
                mine["answer"] = float(str(row["answer"]).replace(",", ""))
    rows = [row for row in found.values() if "answer" in row and all(model in row["right"] for model in RECORDED)]
    random.Random(12).shuffle(rows)
    return rows


def bound(tool: CraftedTool, question: str) -> list[float] | None:
    """The question's numbers as the tool's arguments: by the word that follows them, then in order; None: too few."""
    left = quantities(question)
    if len(left) < len(tool.parameters):
        return None
    chosen: list[float | None] = []
    for name in tool.parameters:
        label = re.sub(r"_\d+$", "", name).removeprefix("num_")
        match = next((each for each in left if each.label.lower() == label), None)
        chosen.append(match.value if match else None)
        left = [each for each in left if each is not match]
    return [left.pop(0).value if value is None else value for value in chosen]


async def reachable(tools: Sequence[CraftedTool], question: str, answer: float, runner: MontyRunner) -> bool:
    """Whether any of the tools gives the answer for any order of the question's numbers."""
    numbers = list(dict.fromkeys(each.value for each in quantities(question)))[:6]
    guard = "def attempt(f, a):\n    try:\n        return f(*a)\n    except ArithmeticError:\n        return None\n"
    for tool in tools:
        if len(tool.parameters) <= min(4, len(numbers)):
            orders = list(itertools.permutations(numbers, len(tool.parameters)))
            code = f"{guard}{tool.code}\n[attempt({tool.name}, a) for a in orders]"
            result = await runner.run(code, inputs={"orders": orders}, limits=LIMITS)
            if any(same(value, answer) for value in result.value or ()):
                return True
    return False


async def answered(finder: ToolFinder, question: str, answer: float, runner: MontyRunner) -> dict[str, Any]:
    """What the library makes of a question."""
    found = finder.find(question)
    if not found:
        return {"score": -math.inf, "code": False, "tools": []}
    arguments = bound(found[0].tool, question)
    result = await apply(found[0].tool, arguments, runner) if arguments is not None else None
    return {
        "score": found[0].score if arguments is not None else -math.inf,
        "code": result is not None and same(result.value, answer),
        "tools": [each.tool for each in found],
    }


def share(right: Sequence[bool]) -> dict[str, Any]:
    """A share with its 95 % Wilson interval."""
    from nearfar.router.evaluation import wilson_interval

    interval = wilson_interval(sum(right), len(right))
    return {
        "share": round(sum(right) / len(right), 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "n": len(right),
    }


def difference(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """Mean of first - second over the same questions, with a paired bootstrap's 95 % interval."""
    rng = random.Random(13)
    gaps = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
    means = sorted(sum(rng.choices(gaps, k=len(gaps))) / len(gaps) for _ in range(2_000))
    return {
        "mean": round(sum(gaps) / len(gaps), 4),
        "low": round(means[50], 4),
        "high": round(means[1949], 4),
    }


def steered(rows: Sequence[dict[str, Any]], text: Sequence[bool]) -> dict[str, Any]:
    """A cut fitted on the first half of the questions, and what it is worth on the second."""
    half = len(rows) // 2
    fit, rest = rows[:half], rows[half:]
    rule = Steering.fit([row["score"] for row in fit], [row["code"] for row in fit], text[:half])
    chosen = [rule.trusts_code(row["score"]) for row in rest]
    both = [row["code"] if code else mine for row, code, mine in zip(rest, chosen, text[half:], strict=True)]
    return {
        "cut": None if math.isinf(rule.cut) else round(rule.cut, 4),
        "questions_to_fit": half,
        "text": share(text[half:]),
        "code": share([row["code"] for row in rest]),
        "steered": share(both),
        "answered_by_code": share(chosen),
        "steered_minus_text": difference(both, text[half:]),
    }


async def crafted(runner: MontyRunner) -> tuple[Crafted, ToolFinder]:
    """The library of all training problems but those kept out."""
    made = await craft(training_problems()[HELD_OUT:], WorkedMaker(), runner)
    return made, made.library.index(find_embedder("static"), WorkedMaker().describe)


async def recorded(runner: MontyRunner, made: Crafted, finder: ToolFinder) -> dict[str, Any]:
    """What the library covers, and recorded answers with and without it."""
    problems = training_problems()
    tools = made.library.tools
    formulas = {tool.formula for tool in tools}
    needed = [(problem, tool) for problem in problems[:HELD_OUT] if (tool := tool_of(problem)) is not None]
    found = [[each.tool.formula for each in finder.find(problem.question)] for problem, _ in needed]
    rows = test_problems()
    seen = [await answered(finder, row["question"], row["answer"], runner) for row in rows]
    reached = [
        await reachable(mine["tools"], row["question"], row["answer"], runner)
        for mine, row in zip(seen[:REACHABLE], rows, strict=False)
    ]
    return {
        "library": {
            "problems": made.num_problems,
            "made": made.num_made,
            "verified": made.num_verified,
            "kept": made.num_kept,
            "refused": dict(made.refused),
            "of_two_problems_or_more": sum(tool.num_problems > 1 for tool in tools),
            "problems_in_those": sum(tool.num_problems for tool in tools if tool.num_problems > 1),
        },
        "held_out": {
            "formula_in_library": share([tool.formula in formulas for _, tool in needed]),
            "formula_found_first": share(
                [tool.formula in each[:1] for (_, tool), each in zip(needed, found, strict=True)]
            ),
            "formula_among_three": share([tool.formula in each for (_, tool), each in zip(needed, found, strict=True)]),
        },
        "test": {
            "best_tool_bound_by_rule": share([row["code"] for row in seen]),
            "any_of_three_with_any_arguments": share(reached),
        },
        "recorded": {model: steered(seen, [row["right"][model] for row in rows]) for model in RECORDED},
    }


async def with_model(runner: MontyRunner, finder: ToolFinder, num_questions: int, num_problems: int) -> dict[str, Any]:
    """SmolLM2 as it is: in text, with the library, and as the maker of tools."""
    from nearfar.models.llama_cpp import LlamaCppModel
    from nearfar.models.weights import default_cache_dir, fetch

    model = LlamaCppModel(fetch("smollm2", cache_dir=default_cache_dir()), name="smollm2", parallel=1, threads=1)

    class Direct:
        """The model, as a router that asks nobody else."""

        async def answer(self, query: Query, *, door: str = "agent") -> Answer:
            return await model.complete(query)

    rows = test_problems()[:num_questions]
    text, code, seen = [], [], []
    for row in rows:
        said = await model.complete(
            Query(
                (
                    Message("system", "Solve the problem step by step. End with the number."),
                    Message("user", row["question"]),
                ),
                sampling=SamplingOptions(max_tokens=128, temperature=0.0),
            )
        )
        numbers = _NUMBER.findall(said.text)
        text.append(bool(numbers) and same(float(numbers[-1].replace(",", "")), row["answer"]))
        mine = await answered(finder, row["question"], row["answer"], runner)
        mine["code"] = await _called(model, finder, row, runner)
        seen.append(mine)
        code.append(mine["code"])
    made = await craft(training_problems()[:num_problems], ModelMaker(Direct()), runner)
    await model.aclose()
    return {
        "questions": len(rows),
        "text": share(text),
        "best_tool_with_arguments_by_model": share(code),
        "tool_minus_text": difference(code, text),
        "steering": steered(seen, text),
        "as_maker": {
            "problems": made.num_problems,
            "made": made.num_made,
            "verified": made.num_verified,
            "kept": made.num_kept,
            "refused": dict(made.refused),
        },
    }


async def _called(model: Any, finder: ToolFinder, row: dict[str, Any], runner: MontyRunner) -> bool:
    """Whether the best tool gives the answer with the arguments that the model chose among the question's numbers."""
    found = finder.find(row["question"], 1)
    numbers = sorted({each.value for each in quantities(row["question"])})
    if not found or not numbers:
        return False
    tool = found[0].tool
    schema = {
        "type": "object",
        "properties": {name: {"enum": numbers} for name in tool.parameters},
        "required": list(tool.parameters),
        "additionalProperties": False,
    }
    function = f"{tool.name}({', '.join(tool.parameters)}): {tool.description}"
    task = f"{row['question']}\n\nFunction: {function}\nIts arguments as JSON:"
    said = await model.complete(
        Query(
            task,
            response_format=ResponseFormat("json_schema", schema=schema, strict=True),
            sampling=SamplingOptions(max_tokens=120, temperature=0.0),
        )
    )
    try:
        given = json.loads(said.text)
        result = await apply(tool, [float(given[name]) for name in tool.parameters], runner)
    except (ValueError, KeyError, TypeError):
        return False
    return same(result.value, row["answer"])


async def main() -> None:
    """Runs the parts that were asked for, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="store_true", help="ask SmolLM2, too")
    parser.add_argument("--questions", type=int, default=100, help="for SmolLM2")
    parser.add_argument("--problems", type=int, default=40, help="of which SmolLM2 makes tools")
    args = parser.parse_args()
    runner = MontyRunner(workers=1)
    try:
        made, finder = await crafted(runner)
        facts = provenance("python benchmarks/craft.py", ["pydantic-monty", "wordllama", "xllamacpp"])
        before = RESULTS / "craft.json"
        results = json.loads(before.read_text()) if before.exists() else {}
        if args.model:
            asked = await with_model(runner, finder, args.questions, args.problems)
            results["smollm2"] = {"commit": facts["commit"], **asked}
        else:
            results = {**facts, **await recorded(runner, made, finder), "smollm2": results.get("smollm2")}
        print(save(results, "craft"))
    finally:
        await runner.aclose()


if __name__ == "__main__":
    asyncio.run(main())
