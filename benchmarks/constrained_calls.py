"""No invalid call, ever: real SmolLM2 at temperature 1, held to BFCL's and fuzzed schemas; and what holding it costs.

    python benchmarks/constrained_calls.py [--seconds N] [--work FOLDER] [--count 2000]

Each case is one call that must be made: of BFCL's functions, of a tool with a fuzzed schema (nested objects, arrays,
unions, recursion, names beyond ASCII), or of one of 200 tools. A token limit of 8 to 40, by chance, cuts many of them
off. The call must parse and fit its tool's schema by jsonschema. One case in five goes the whole way of a query with
tools, which are told in its prompt; the others are held by the same grammar and are told the tools' names, since
prompts are what takes the time on a small machine. Cases that no grammar can say are refused before anything is
written, and replaced by the next: they are counted with their reasons.

The work is kept in FOLDER, so that it can be done in pieces: `--seconds` ends a piece, and results are written once
every case is done. Overhead: the same prompts, free and held, one at a time, tokens per second of decoding.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import time
from collections import Counter
from functools import cache
from itertools import count, islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, TextIO, TypeAlias

from fuzzed_schemas import parameters
from jsonschema import Draft202012Validator
from provenance import data_folder, provenance, save

from nearfar.agents.call_checking import CallChecker, unfit
from nearfar.agents.evaluation.bfcl_tools import tool_spec
from nearfar.errors import RequestError
from nearfar.models.grammar import completed, gbnf
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.models.tool_prompt import call_grammar
from nearfar.models.weights import default_cache_dir, fetch
from nearfar.types import Query, ResponseFormat, SamplingOptions, TextDelta, ToolCall, ToolSpec

AT_ONCE = 4  # cases that the model answers side by side
MANY = 200  # tools, in the cases of many
REPEATS = 20  # pairs of answers that the overhead is measured on
NAMES = ("do", "find.it", "加算", "größe_ändern", "a-b", "поиск", "get/thing")
ASKS = (
    "Please do it for me.",
    "I need this for Rome, tomorrow, for two people.",
    "Berechne das bitte für 日本 and the year 1999.",
    "Use whatever values you like.",
    "Call it with a long list.",
)


Case: TypeAlias = "tuple[tuple[ToolSpec, ...], str]"


def bfcl_cases() -> list[Case]:
    """BFCL's public single-turn items: their functions and their question; every set of functions once."""
    found: dict[str, Case] = {}
    for path in sorted((data_folder() / "bfcl").glob("*.jsonl.gz")):
        if path.name.startswith("multi_turn"):
            continue
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                tools = tuple(_brief(tool_spec(function)) for function in row["function"])[:4]
                names = {tool.name for tool in tools}
                if len(names) == len(tools):
                    found.setdefault(json.dumps(sorted(names)), (tools, row["question"][0][-1]["content"][:300]))
    return Random(0).sample(list(found.values()), len(found))


def fuzzed_case(number: int, attempt: int) -> Case:
    """One to three tools with fuzzed schemas."""
    chance = Random(f"fuzzed {number} {attempt}")
    names = chance.sample(NAMES, chance.choice([1, 1, 2, 3]))
    return tuple(ToolSpec(name, "", parameters(chance)) for name in names), chance.choice(ASKS)


@cache
def pool() -> tuple[ToolSpec, ...]:
    """Tools with small fuzzed schemas, half as many again as a case of many needs."""
    tools = (ToolSpec(f"tool_{i}_ü", "", parameters(Random(f"pool {i}"), depth=1)) for i in count())
    return tuple(islice((tool for tool in tools if _refusal((tool,)) is None), MANY + MANY // 2))


def many_case(number: int) -> Case:
    """200 tools at once."""
    chance = Random(f"many {number}")
    return tuple(chance.sample(pool(), MANY)), chance.choice(ASKS)


def _brief(tool: ToolSpec) -> ToolSpec:
    """The tool without descriptions: they cost most of the prompt and hold nothing."""
    return ToolSpec(tool.name, "", _undescribed(tool.parameters))


def _undescribed(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: {name: _undescribed(each) for name, each in value.items()}
            if key == "properties"
            else _undescribed(value)
            for key, value in schema.items()
            if key not in ("description", "default")
        }
    return schema


def _refusal(tools: tuple[ToolSpec, ...]) -> str | None:
    """Why the tools cannot be called; None: they can."""
    if not tools:
        return "there are none"  # items that ask what a model does without tools
    try:
        call_grammar(tools)
    except RequestError as exc:
        return str(exc).split(": ", 2)[-1]
    return next((why for tool in tools if (why := unfit(tool))), None)


def case(number: int, bfcl: list[Case]) -> tuple[str, Case, list[str]]:
    """The case of this number: its kind, its tools and question, and why those tried before could not be said."""
    if number % 20 == 19:
        return "200 tools", many_case(number), []
    refused = []
    if number % 2 == 0 and number // 2 < len(bfcl):
        why = _refusal(bfcl[number // 2][0])
        if why is None:
            return "bfcl", bfcl[number // 2], []
        refused.append(f"bfcl: {why}")
    for attempt in count():
        found = fuzzed_case(number, attempt)
        why = _refusal(found[0])
        if why is None:
            return "fuzzed", found, refused
        refused.append(f"fuzzed: {why}")
    raise AssertionError("count() has no end")


async def made(model: LlamaCppModel, number: int, kind: str, tools: tuple[ToolSpec, ...], ask: str) -> dict[str, Any]:
    """One case: the call, and whether it parses and fits."""
    limit = Random(f"limit {number}").randint(8, 40)
    sampling = SamplingOptions(max_tokens=limit, temperature=1.0)
    start = time.perf_counter()
    if number % 5:  # all tools are in the grammar; told in the prompt they would only cost time
        call = call_grammar(tools)
        prompt = f"{ask} Call one of: {', '.join(tool.name for tool in tools[:10])} … as JSON."
        form = ResponseFormat("grammar", grammar=gbnf(call))
        answer = await model.complete(Query(prompt, response_format=form, sampling=sampling))
        text, taken = completed(call, answer.text)
        written = json.loads(text)
        found = ToolCall("", written["name"], json.dumps(written["arguments"]))
        finished = len(text) - taken
    else:
        answer = await model.complete(Query(ask, tools=tools, tool_choice="required", sampling=sampling))
        (found,) = answer.tool_calls
        finished = int(answer.signals.get("finished_characters", 0))
    return {
        "n": number,
        "kind": kind,
        "problem": problem(tools, found),
        "tokens": answer.usage.completion_tokens if answer.usage else None,
        "finished": finished,
        "seconds": round(time.perf_counter() - start, 3),
    }


def problem(tools: tuple[ToolSpec, ...], call: ToolCall) -> str | None:
    """What is wrong with the call, by the agents' checker and by jsonschema itself."""
    found = CallChecker(tools).problem(call)
    if found is None:
        schema = next(tool.parameters for tool in tools if tool.name == call.name)
        if not Draft202012Validator(dict(schema)).is_valid(json.loads(call.arguments)):
            return "jsonschema says no"
    return found


async def overhead(path: Path) -> dict[str, Any]:
    """Tokens per second of decoding, free and held, the same prompts in turn; and what a grammar takes to build."""
    model = LlamaCppModel(path, name="smollm2", context_window=1024, parallel=1, threads=1)
    rates: dict[str, list[float]] = {"free": [], "held": []}
    builds: list[float] = []
    try:
        for tools, ask in bfcl_cases()[-REPEATS:]:
            start = time.perf_counter()
            grammar = gbnf(call_grammar(tools))
            builds.append(time.perf_counter() - start)
            prompt = f"{ask}\nAnswer with a JSON object of the function's name and its arguments."
            for name, form in (("free", None), ("held", ResponseFormat("grammar", grammar=grammar))):
                sampling = SamplingOptions(max_tokens=48, temperature=1.0)
                rate = await _rate(model, Query(prompt, response_format=form, sampling=sampling))
                if rate is not None:
                    rates[name].append(rate)
    finally:
        await model.aclose()
    free, held = median(rates["free"]), median(rates["held"])
    return {
        "tokens_per_s_free": round(free, 1),
        "tokens_per_s_held": round(held, 1),
        "slower_by": round(1 - held / free, 3),
        "answers": {name: len(each) for name, each in rates.items()},
        "grammar_ms": {"median": round(median(builds) * 1e3, 1), "max": round(max(builds) * 1e3, 1)},
    }


async def _rate(model: LlamaCppModel, query: Query) -> float | None:
    """Tokens per second between the first and the last token; None: there are too few."""
    times = [time.perf_counter() async for event in model.stream(query) if isinstance(event, TextDelta)]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) >= 8 else None


async def piece(path: Path, work: Path, num_cases: int, seconds: float) -> None:
    """Does cases until the time is up."""
    done = {row["n"] for row in rows_of(work)}
    bfcl = bfcl_cases()
    model = LlamaCppModel(path, name="smollm2", context_window=2048, parallel=AT_ONCE, threads=1)
    until = time.monotonic() + seconds
    left = iter([number for number in range(num_cases) if number not in done])

    async def works(file: TextIO) -> None:
        for number in left:
            if time.monotonic() > until:
                return
            kind, (tools, ask), refused = case(number, bfcl)
            row = {**await made(model, number, kind, tools, ask), "refused": refused}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

    try:
        with work.open("a") as file:
            await asyncio.gather(*(works(file) for _ in range(AT_ONCE)))
    finally:
        await model.aclose()


def rows_of(work: Path) -> list[dict[str, Any]]:
    """The cases that are done."""
    return [json.loads(line) for line in work.read_text().splitlines()] if work.exists() else []


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of the cases, by kind."""
    kinds = sorted({row["kind"] for row in rows})
    refusals = Counter(why.split(": ")[-1] for row in rows for why in row["refused"])
    by_kind = {}
    for kind in [*kinds, "all"]:
        of_kind = [row for row in rows if kind in ("all", row["kind"])]
        by_kind[kind] = {
            "calls": len(of_kind),
            "invalid": sum(row["problem"] is not None for row in of_kind),
            "finished_after_the_limit": sum(row["finished"] > 0 for row in of_kind),
            "tokens": sum(row["tokens"] or 0 for row in of_kind),
            "schemas_refused": sum(len(row["refused"]) for row in of_kind),
        }
    # the rule of three: with no failure in n, the rate is below this with 95 % confidence
    below = round(3 / len(rows), 5)
    return {"by_kind": by_kind, "invalid_rate_below": below, "refusals": dict(refusals.most_common(12))}


def main() -> None:
    """Does a piece of the work; writes results/constrained_calls.json once all of it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--work", type=Path, default=Path("constrained_calls.work"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    path = fetch("smollm2", cache_dir=default_cache_dir())
    work = arguments.work / "cases.jsonl"
    asyncio.run(piece(path, work, arguments.count, arguments.seconds))
    rows = rows_of(work)
    print(json.dumps({"cases": len(rows), "invalid": [row for row in rows if row["problem"]][:5]}, ensure_ascii=False))
    if len(rows) >= arguments.count:
        measured = asyncio.run(overhead(path))
        head = provenance("python benchmarks/constrained_calls.py", ["xllamacpp", "jsonschema"])
        save({**head, "temperature": 1.0, **summary(rows), "overhead": measured}, "constrained_calls")


if __name__ == "__main__":
    main()
