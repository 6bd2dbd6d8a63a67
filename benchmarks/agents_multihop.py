"""ReWOO against agents that read every observation: tokens and model calls per multi-hop question, same plans.

    python benchmarks/agents_multihop.py [--limit N]       writes results/agents_multihop.json

MuSiQue's questions, whose decompositions are what every planner says: a model of 135M parameters cannot plan them, so
that the roles are scripted, and what is measured is what the graphs have models read and write. Readers are ideal: a
role that is told a passage with the answer to a hop finds it, and one that is not, does not. The searches are real
(BM25 over the question's own 20 passages, three a search), and so are graphs, prompts, gates and checkpoints. Tokens
are counted alike for all, at four bytes each.

- `rewoo`: the plan has a search and a reader for every hop; the reader is a model that sees three passages, as the
  paper's LLM worker does, and its tokens are counted.
- `loop`: one model that writes the next call from all that was observed so far (the conductor's graph without experts).
- `alpha_umi`: a planner, a caller and a summarizer that see all that was observed so far.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from memory import _lines
from provenance import data_folder, provenance, save

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.checkpoints import open_sqlite
from nearfar.agents.conductor import Conductor
from nearfar.agents.functions import FunctionTool
from nearfar.agents.graph_agent import Graph, GraphAgent, Team
from nearfar.agents.rewoo import Rewoo
from nearfar.agents.roles import Role
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Limits, Task, ToolHints
from nearfar.retrieval.passages import LexicalRetriever
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import Chunk, Query, Usage, estimate_tokens

PASSAGES = 3
READS = ToolHints(read_only=True)
UNKNOWN = "unknown"


class Question:
    """One question with its hops, and what ideal roles say to it."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.text: str = row["question"]
        self.hops: list[tuple[str, str]] = [(hop["q"].replace(">>", ""), hop["a"]) for hop in row["decomposition"]]
        self.answers = [row["answer"], *row["aliases"]]
        self.search = LexicalRetriever([Chunk(f"{p['title']}. {p['text']}", p["title"]) for p in row["passages"]])
        self.reader_usage: list[Usage] = []

    def found(self, told: str) -> list[str]:
        """The answers to the hops, as far as they can be read in what was told; unknown where they cannot."""
        return [answer if _holds(told, answer) else UNKNOWN for _, answer in self.hops]

    def query(self, hop: int, known: Sequence[str]) -> str:
        """A hop's question with the answers that are known in place of its references."""
        return re.sub(r"#(\d+)", lambda match: known[int(match[1]) - 1], self.hops[hop][0])

    def tools(self) -> list[FunctionTool]:
        def search(query: str) -> str:
            """Finds passages."""
            return "\n".join(hit.chunk.text for hit in self.search.search(query, k=PASSAGES))

        def read(question: str, passages: str) -> str:
            """Answers a question from passages, in a few words."""
            prompt = f"Answer the question from the passages in a few words.\n{passages}\nQuestion: {question}\nAnswer:"
            number = int(question.partition(":")[0]) - 1
            said = self.hops[number][1] if _holds(passages, self.hops[number][1]) else UNKNOWN
            self.reader_usage.append(Usage(estimate_tokens(prompt), estimate_tokens(said)))
            return said

        return [FunctionTool(search, hints=READS), FunctionTool(read, hints=READS)]


def _holds(text: str, answer: str) -> bool:
    return answer.lower() in text.lower()


def _told(query: Query) -> str:
    """What the role was told that came from outside."""
    told = "\n".join(message.text for message in query.messages)
    return "\n".join(re.findall(r"<data \w+>\n(.*?)\n</data ", told, re.DOTALL))


def _observations(query: Query) -> int:
    return sum(message.text.count("\n</data ") for message in query.messages)


def rewoo(question: Question) -> tuple[Graph, dict[str, Any]]:
    """A search and a reader for every hop."""
    steps = []
    for hop in range(len(question.hops)):
        asked = re.sub(r"#(\d+)", lambda match: f"#E{2 * int(match[1])}", question.hops[hop][0])
        steps.append({"why": f"find hop {hop + 1}", "tool": "search", "arguments": {"query": asked}})
        arguments = {"question": f"{hop + 1}: {asked}", "passages": f"#E{2 * hop + 1}"}
        steps.append({"why": f"read hop {hop + 1}", "tool": "read", "arguments": arguments})
    return Rewoo(), {
        "planner": [json.dumps({"steps": steps})],
        "solver": [lambda query: _final(question, _told(query))],
    }


def loop(question: Question) -> tuple[Graph, dict[str, Any]]:
    """One model that writes the next search from all that it has read."""

    def turn(query: Query) -> str:
        done, told = _observations(query), _told(query)
        if done == len(question.hops):
            return json.dumps({"answer": _final(question, told)})
        return json.dumps({"tool": "search", "arguments": {"query": question.query(done, question.found(told))}})

    return Conductor(), {"conductor": [turn], "expert": ["?"]}


def alpha_umi(question: Question) -> tuple[Graph, dict[str, Any]]:
    """A planner and a caller for every search."""

    def plan(query: Query) -> str:
        left = len(question.hops) - _observations(query)
        following = "call search" if left else "answer"
        return json.dumps({"plan": [*["search"] * left, "answer"], "next": following})

    def call(query: Query) -> str:
        return json.dumps({"query": question.query(_observations(query), question.found(_told(query)))})

    return AlphaUmi(), {
        "planner": [plan],
        "caller": [call],
        "summarizer": [lambda query: _final(question, _told(query))],
    }


def _final(question: Question, told: str) -> str:
    """The answer, where it is in what was told."""
    return next((answer for answer in question.answers if _holds(told, answer)), UNKNOWN)


async def measured(question: Question, kind: Any, store: Any, run_id: str) -> dict[str, float]:
    """Tokens, calls of models and of tools, and whether the answer was found."""
    graph, says = kind(question)
    question.reader_usage.clear()
    models = {role: ScriptedModel(script, name=role) for role, script in says.items()}
    roles = {role: Role(role, role, reads_logprobs=False) for role in says}
    agent = GraphAgent(kind.__name__, graph, Team(Router({}, models), Toolbox(question.tools()), store), roles=roles)
    result = await agent.run(Task(question.text, limits=Limits(steps=40, seconds=600)), run_id=run_id)
    assert result.status == "answered", result
    assert result.usage is not None
    usage = sum(question.reader_usage, result.usage)
    return {
        "tokens": usage.prompt_tokens + usage.completion_tokens,
        "model_calls": result.model_calls + len(question.reader_usage),
        "searches": result.tool_calls - len(question.reader_usage),
        "found": float(any(answer.lower() == result.text.lower() for answer in question.answers)),
    }


async def run(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Every question by every kind of agent."""
    found: dict[str, list[dict[str, float]]] = {kind.__name__: [] for kind in (rewoo, loop, alpha_umi)}
    with tempfile.TemporaryDirectory() as folder:
        async with await open_sqlite(Path(folder) / "agents.db") as store:
            for number, row in enumerate(rows):
                for kind in (rewoo, loop, alpha_umi):
                    found[kind.__name__].append(await measured(Question(row), kind, store, f"{kind.__name__}-{number}"))
    return found


def interval(values: Sequence[float], rng: random.Random) -> list[float]:
    """95 % percentile bootstrap of the mean."""
    means = sorted(mean(rng.choices(values, k=len(values))) for _ in range(2000))
    return [means[50], means[1949]]


def ratio(ours: Sequence[float], theirs: Sequence[float], rng: random.Random) -> dict[str, Any]:
    """How many times the second's total the first's is, questions drawn in pairs."""
    pairs = list(zip(ours, theirs, strict=True))
    drawn = []
    for _ in range(2000):
        sample = rng.choices(pairs, k=len(pairs))
        drawn.append(sum(b for _, b in sample) / sum(a for a, _ in sample))
    drawn.sort()
    return {"times": sum(theirs) / sum(ours), "interval": [drawn[50], drawn[1949]]}


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    rows = [
        row
        for row in _lines(data_folder() / "multihop" / "qa_with_passages.jsonl.gz")
        if row["dataset"].startswith("musique") and row.get("decomposition")
    ][: options.limit]
    found = asyncio.run(run(rows))
    rng = random.Random(3)
    kinds = {
        name: {
            measure: {
                "mean": mean(each[measure] for each in values),
                "interval": interval([each[measure] for each in values], rng),
            }
            for measure in values[0]
        }
        for name, values in found.items()
    }
    tokens = {name: [each["tokens"] for each in values] for name, values in found.items()}
    command = f"python benchmarks/agents_multihop.py --limit {options.limit}"
    page = {
        "provenance": provenance(command, ["langgraph"]),
        "data": "MuSiQue (CC BY 4.0), development questions with decomposition",
        "n": len(rows),
        "hops": mean(len(row["decomposition"]) for row in rows),
        "agents": kinds,
        "tokens_against_rewoo": {name: ratio(tokens["rewoo"], tokens[name], rng) for name in ("loop", "alpha_umi")},
    }
    path = save(page, "agents_multihop")
    sys.stdout.write(
        f"{json.dumps({key: page[key] for key in ('n', 'agents', 'tokens_against_rewoo')}, indent=1)}\n{path}\n"
    )


if __name__ == "__main__":
    main()
