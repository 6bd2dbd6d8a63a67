"""What planner, caller and summarizer should say, from gold calls: turns to train roles on.

The prompts are the agents' own. No data set here has rationales: what the planner says before it says who is next is
templated from gold, the tools that are still to be called.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from nearfar.agents.alpha_umi import CALLER, PLANNER, SUMMARIZER, Example, ExampleStep, conversation, example_summary
from nearfar.agents.untrusted import bounded
from nearfar.errors import DataError
from nearfar.training.role_adapters import RoleTurn
from nearfar.types import ToolSpec

from .benchmarks import apibank_tools
from .call_metrics import same_value
from .grounded_schema import grounded
from .structured_caller import caller_messages, settled

_OBSERVED = 1024  # characters of an observation, as in α-UMi
_OFFERED = (3, 6)  # tools a task is told of: from, to
#: One in so many MetaTool queries is offered no tool that helps, as in MetaTool's own "reliability" task.
_UNHELPED = 8


@dataclass(frozen=True, slots=True)
class GoldTask:
    """A task done well, and the tools that were offered; without steps, none of them helps."""

    example: Example
    tools: tuple[ToolSpec, ...]
    is_plan_only: bool = False  # gold names tools, and neither arguments nor answers


def gold_tasks(rows: Iterable[Mapping[str, Any]], *, seed: int = 0) -> list[GoldTask]:
    """The tasks in rows of several kinds, each known by its fields.

    API-Bank's dialogues (`turns`) with its APIs (`signature`); MetaTool's queries (`text`, `tools`) with its tools
    (`text` alone); and one's own (`task`, `tools` with name, description and parameters, `steps` with tool, arguments
    and observation, `answer`). Tools that were not wanted are drawn from the others of the same set.

    Raises:
        DataError: a row is none of these.
    """
    rows = list(rows)
    apis = apibank_tools(rows)
    listed = [ToolSpec(row["id"], row["text"]) for row in rows if {"id", "text"} <= row.keys() and "tools" not in row]
    tasks = []
    for row in rows:
        draw = random.Random(f"{seed} {row.get('id')}")  # noqa: S311 - an order, no secret
        if "turns" in row:
            tasks += list(_apibank(row, apis, draw))
        elif "task" in row:
            tasks.append(_own(row))
        elif "tools" in row and "text" in row:
            tasks += list(_metatool(row, listed, draw))
        elif "signature" not in row and not {"id", "text"} <= row.keys():
            raise DataError(
                f"The row with the fields {', '.join(map(repr, row)) or 'none'} is no task; "
                "it needs task, tools, steps and answer."
            )
    return tasks


def role_turns(tasks: Iterable[GoldTask]) -> list[RoleTurn]:
    """The turns of every role, in order."""
    return [turn for task in tasks for turn in (*_conversed(task), *_filled(task))]


def _conversed(task: GoldTask) -> Iterator[RoleTurn]:
    """α-UMi's turns: for each step the planner's and the caller's, then the planner's and the summarizer's."""
    if not task.example.steps:
        told = conversation(task.example.task, task.tools, [])
        yield RoleTurn(PLANNER, told, json.dumps({"plan": ["give up"], "next": "give up"}))
        return
    messages = conversation("", task.tools, [], [task.example])[:-1]
    said = [place for place, message in enumerate(messages) if message.role == "assistant"]
    for number, place in enumerate(said[:-1]):
        yield RoleTurn(CALLER if number % 2 else PLANNER, messages[:place], messages[place].text)
        if task.is_plan_only:
            return
    yield RoleTurn(SUMMARIZER, example_summary(task.example), task.example.answer)


def _filled(task: GoldTask) -> Iterator[RoleTurn]:
    """The caller's turns in the structured caller's words, where gold is among what it is held to."""
    by_name = {tool.name: tool for tool in task.tools}
    text = task.example.task
    for step in task.example.steps if not task.is_plan_only else ():
        spec = by_name[step.tool]
        schema = grounded(spec.parameters, text, text)
        names, known = schema["required"], settled(schema)
        chosen: dict[str, Any] = {}
        for name in names:
            if name not in step.arguments:
                break
            allowed = schema["properties"][name].get("enum", [step.arguments[name]])
            fitting = [value for value in allowed if same_value(value, step.arguments[name])]
            if not fitting or (name not in known and not _is_told(fitting[0], text)):
                break
            chosen[name] = fitting[0]
        open_names = [name for name in names if name not in known]
        if len(chosen) == len(names) and open_names:
            answer = json.dumps({name: chosen[name] for name in open_names}, ensure_ascii=False)
            yield RoleTurn(CALLER, caller_messages(spec, text, names, known), answer)


def _is_told(value: Any, text: str) -> bool:
    """Whether the value can be copied from the request."""
    return isinstance(value, bool) or str(value).lower() in text.lower()


# --- API-Bank, MetaTool, one's own -----------------------------------------------------------------------------------


def _apibank(row: Mapping[str, Any], apis: Sequence[ToolSpec], draw: random.Random) -> Iterator[GoldTask]:
    """Each run of calls in the dialogue is a task: what was said before it, its calls, and what was said next."""
    by_name = {api.name: api for api in apis}
    runs = [(is_call, list(turns)) for is_call, turns in groupby(row["turns"], key=lambda turn: turn["role"] == "API")]
    said: list[str] = []
    for (is_call, turns), (_, after) in pairwise([*runs, (False, [])]):
        if not is_call:
            said += [f"{turn['role']}: {turn['text']}" for turn in turns]
            continue
        names = dict.fromkeys(turn["api_name"] for turn in turns)
        if after and after[0]["role"] == "AI" and said and all(name in by_name for name in names):
            steps = tuple(
                ExampleStep(turn["api_name"], _ordered(turn, by_name[turn["api_name"]]), _output(turn))
                for turn in turns
            )
            tools = _among([by_name[name] for name in names], apis, draw)
            yield GoldTask(Example("\n".join(said), steps, after[0]["text"]), tools)


def _ordered(turn: Mapping[str, Any], api: ToolSpec) -> dict[str, Any]:
    """The call's arguments in the order of the API's own, as a caller is held to write them."""
    given = turn.get("param_dict") or {}
    return {name: given[name] for name in [*api.parameters["properties"], *given] if name in given}


def _output(turn: Mapping[str, Any]) -> str:
    result = turn.get("result")
    output = result.get("output", result) if isinstance(result, Mapping) else result
    return bounded(output if isinstance(output, str) else json.dumps(output, ensure_ascii=False), _OBSERVED)[0]


def _metatool(row: Mapping[str, Any], listed: Sequence[ToolSpec], draw: random.Random) -> Iterator[GoldTask]:
    """Which tools are wanted; in one of several queries none of those is offered."""
    wanted = [tool for name in row["tools"] for tool in listed if tool.name == name]
    if len(wanted) != len(row["tools"]):
        return
    is_helped = len(wanted) > 1 or draw.randrange(_UNHELPED) > 0
    steps = tuple(ExampleStep(tool.name, {}, "") for tool in wanted) if is_helped else ()
    others = [tool for tool in listed if tool not in wanted]
    yield GoldTask(
        Example(row["text"], steps, ""), _among(wanted if is_helped else [], others, draw), is_plan_only=True
    )


def _among(wanted: Sequence[ToolSpec], tools: Sequence[ToolSpec], draw: random.Random) -> tuple[ToolSpec, ...]:
    """The wanted tools and others drawn at random, in random order."""
    others = [tool for tool in tools if tool not in wanted]
    room = max(0, draw.randint(*_OFFERED) - len(wanted))
    chosen = [*wanted, *draw.sample(others, min(len(others), room))]
    draw.shuffle(chosen)
    return tuple(chosen)


def _own(row: Mapping[str, Any]) -> GoldTask:
    try:
        tools = tuple(
            ToolSpec(each["name"], each.get("description", ""), each.get("parameters") or {}) for each in row["tools"]
        )
        steps = tuple(
            ExampleStep(each["tool"], dict(each["arguments"]), each["observation"], each.get("rationale", ""))
            for each in row["steps"]
        )
        task = GoldTask(Example(row["task"], steps, row["answer"]), tools)
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise DataError(
            f"The task {str(row['task'])[:60]!r} is not whole ({exc!r}); it needs task, tools, steps and answer."
        ) from exc
    unknown = [step.tool for step in steps if step.tool not in {tool.name for tool in tools}]
    if unknown:
        raise DataError(f"The task {row['task'][:60]!r} calls {unknown[0]!r}, which is not among its tools; add it.")
    return task
