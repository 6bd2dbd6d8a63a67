"""What planner, caller and summarizer should say, from gold calls: turns to train roles on.

The words are those of the agent's own prompts. No data set here has rationales; what the planner says before it says
who is next are the tools that are still to be called, templated from the gold calls.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearfar.agents.alpha_umi import CALLER, PLANNER, SUMMARIZER, Example, ExampleStep, conversation
from nearfar.types import Message, ToolSpec


@dataclass(frozen=True, slots=True)
class Turn:
    """What a role is told, and what it should say."""

    role: str
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A task done well, and the tools that were offered."""

    example: Example
    tools: tuple[ToolSpec, ...]
    is_plan_only: bool = False  # gold names tools and neither arguments nor answers


def turns_of(trajectory: Trajectory) -> list[Turn]:
    """The roles' turns, in order: for each step the planner's and the caller's, then the planner's and the answer."""
    messages = conversation("", trajectory.tools, [], [trajectory.example])[:-1]
    said = [place for place, message in enumerate(messages) if message.role == "assistant"]
    roles = [PLANNER, CALLER] * len(trajectory.example.steps) + [PLANNER, SUMMARIZER]
    turns = [Turn(role, messages[:at], messages[at].text) for role, at in zip(roles, said, strict=True)]
    return turns[:1] if trajectory.is_plan_only else turns


def apibank_trajectories(
    rows: Iterable[Mapping[str, Any]], tools: Sequence[ToolSpec], *, offered: int = 5, seed: int = 0
) -> list[Trajectory]:
    """API-Bank's dialogues with what their calls gave back; gold's tools among others, `offered` in all."""
    by_name = {tool.name: tool for tool in tools}
    found = []
    for row in rows:
        turns = row.get("turns") or []
        calls = [turn for turn in turns if turn["role"] == "API"]
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "API"), None)
        answers = [turn["text"] for turn in turns[first:] if turn["role"] == "AI"]
        if first is None or not answers or not all(turn["api_name"] in by_name for turn in calls):
            continue
        task = "\n".join(f"{turn['role']}: {turn['text']}" for turn in turns[:first])
        steps = tuple(ExampleStep(turn["api_name"], turn.get("param_dict") or {}, _output(turn)) for turn in calls)
        wanted = [by_name[name] for name in dict.fromkeys(step.tool for step in steps)]
        among = _among(wanted, tools, offered, f"{seed} {row['id']}")
        found.append(Trajectory(Example(task, steps, answers[-1]), among))
    return found


def _output(turn: Mapping[str, Any]) -> str:
    result = turn.get("result")
    output = result.get("output", result) if isinstance(result, Mapping) else result
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def metatool_trajectories(
    queries: Iterable[Mapping[str, Any]], tools: Sequence[ToolSpec], *, offered: int = 8, seed: int = 0
) -> list[Trajectory]:
    """MetaTool's queries: which tool is next, among others; there is nothing to call it with."""
    by_name = {tool.name: tool for tool in tools}
    found = []
    for row in queries:
        wanted = [by_name[name] for name in row["tools"] if name in by_name]
        if not wanted:
            continue
        steps = tuple(ExampleStep(tool.name, {}, "") for tool in wanted)
        among = _among(wanted, tools, offered, f"{seed} {row['id']}")
        found.append(Trajectory(Example(row["text"], steps, ""), among, is_plan_only=True))
    return found


def _among(wanted: Sequence[ToolSpec], tools: Sequence[ToolSpec], offered: int, seed: str) -> tuple[ToolSpec, ...]:
    """The wanted tools and others drawn at random, in random order."""
    draw = random.Random(seed)  # noqa: S311 - an order, no secret
    others = [tool for tool in tools if tool not in wanted]
    chosen = [*wanted, *draw.sample(others, max(0, min(len(others), offered - len(wanted))))]
    draw.shuffle(chosen)
    return tuple(chosen)
