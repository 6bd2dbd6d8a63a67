"""Agents for tests: real routers, toolboxes and stores, and models that say what they are told."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nearfar.agents.checkpoints import open_sqlite
from nearfar.agents.functions import FunctionTool
from nearfar.agents.graph_agent import Graph, GraphAgent, Team
from nearfar.agents.policy import ToolPolicy
from nearfar.agents.roles import Role
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Tool, ToolHints
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Query, ToolCall, Usage

READS = ToolHints(read_only=True)


def plan(following: str, rationale: str = "because") -> str:
    """What a planner says."""
    return json.dumps({"next": following, "rationale": rationale})


def arguments(**values: Any) -> str:
    """What a caller says where the planner has named the tool."""
    return json.dumps(values)


def call(name: str, **arguments: Any) -> Answer:
    """What a caller says where it names the tool itself."""
    return Answer(
        tool_calls=(ToolCall("written", name, json.dumps(arguments)),), finish_reason="tool_calls", usage=Usage(10, 5)
    )


def reading(function: Callable[..., Any], **hints: Any) -> FunctionTool:
    """The function as a tool whose owner says that it only reads."""
    return FunctionTool(function, hints=ToolHints(read_only=True, **hints))


Says = Sequence[str | Answer | BaseException | Callable[[Query], str | Answer]]


@asynccontextmanager
async def agent(
    graph: Graph,
    folder: Path,
    tools: Sequence[Tool] = (),
    policy: ToolPolicy | None = None,
    *,
    confidence: float | None = None,
    options: dict[str, Any] | None = None,
    **says: Says,
) -> AsyncIterator[GraphAgent]:
    """An agent whose roles say what they are told, and whose runs are kept in `folder`."""
    models = {role: ScriptedModel(script, name=role, confidence=confidence) for role, script in says.items()}
    roles = {role: Role(role, role, reads_logprobs=confidence is not None) for role in says}
    async with await open_sqlite(folder / "agents.db") as store:
        team = Team(Router({}, models), Toolbox(tools, policy), store)
        yield GraphAgent("tested", graph, team, roles=roles, **(options or {}))
