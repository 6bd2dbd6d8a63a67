"""Agents with their roles and tools, and the store of their runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from nearfar.config import Settings
from nearfar.config.agents import (
    AgentSettings,
    CalculatorToolsSettings,
    CodeToolsSettings,
    DocumentsToolsSettings,
    FilesToolsSettings,
    McpToolsSettings,
    OpenApiToolsSettings,
    PythonToolsSettings,
    RoleSettings,
    ToolsSettings,
)
from nearfar.errors import ConfigError
from nearfar.types import ToolSpec

from .build import Wired
from .documents import open_collection

if TYPE_CHECKING:
    from nearfar.agents.checkpoints import RunStore
    from nearfar.agents.graph_agent import Graph, GraphAgent
    from nearfar.agents.roles import Role
    from nearfar.agents.types import ToolSource


@asynccontextmanager
async def open_agent(wired: Wired, agent: AgentSettings, name: str, store: RunStore) -> AsyncIterator[GraphAgent]:
    """The agent, with its tools open.

    Raises:
        ConfigError: nearfar[agents] is not installed, or a setting does not fit.
        ToolSourceError: a source of tools cannot be reached.
        DataError: its examples cannot be read.
    """
    from nearfar.agents.graph_agent import GraphAgent, Team
    from nearfar.agents.policy import ToolPolicy
    from nearfar.agents.secrets import SecretBindings
    from nearfar.agents.sources import close_all
    from nearfar.agents.toolbox import Toolbox

    graph = build_graph(agent)
    sources = [build_tools(wired, source, tools) for source, tools in agent.tools.items()]
    values = {variable: secret.get_secret_value() for variable, secret in wired.settings.agent_secrets.items()}
    roles = build_roles(wired, agent, graph.roles)
    try:
        toolbox = await Toolbox.load(
            sources, ToolPolicy(agent.policy), secrets=SecretBindings(agent.secrets, values) if agent.secrets else None
        )
        yield GraphAgent(
            name,
            graph,
            Team(wired.router, toolbox, store),
            roles=roles,
            off_plan=agent.off_plan,
            max_tools=agent.max_tools,
            choose_tools=partial(_fitting_tools, toolbox.specs()),
        )
    finally:
        await close_all(sources)


def build_roles(wired: Wired, agent: AgentSettings, names: Sequence[str]) -> dict[str, Role]:
    """Who answers for each role of these names: what the config names, or else the agent's model."""
    from nearfar.agents.roles import Role

    roles = {}
    for name in names:
        told = agent.roles.get(name) or RoleSettings.model_validate({"model": agent.model})
        own = told.model_dump(exclude={"unsure"})
        role = Role(name, reads_logprobs=_tells_logprobs(wired, told.model), **own)
        if told.unsure is not None:
            next_one = replace(role, model=told.unsure, reads_logprobs=_tells_logprobs(wired, told.unsure), samples=1)
            role = replace(role, unsure=next_one)
        roles[name] = role
    return roles


def build_graph(agent: AgentSettings) -> Graph:
    """The kind of agent that the settings name."""
    from nearfar.agents.alpha_umi import AlphaUmi
    from nearfar.agents.examples import BUILT_IN, load_examples

    match agent.kind:
        case "alpha-umi":
            examples = BUILT_IN if agent.examples is None else load_examples(agent.examples)
            return AlphaUmi(examples, agent.num_examples, agent.rationale)
        case "rewoo":
            from nearfar.agents.rewoo import Rewoo

            return Rewoo()
        case "self-ask":
            from nearfar.agents.self_ask import SelfAsk

            return SelfAsk()
        case "conductor":
            from nearfar.agents.conductor import Conductor

            return Conductor()
        case _:
            assert_never(agent.kind)


def build_tools(wired: Wired, name: str, tools: ToolsSettings) -> ToolSource:
    """A source of tools; nothing is started before it is asked what it offers.

    Raises:
        ToolSourceError: what it names is not there.
    """
    from nearfar.agents.sources import Chosen

    return Chosen(_tool_source(wired, name, tools), tools.only)


def _tool_source(wired: Wired, name: str, tools: ToolsSettings) -> ToolSource:
    from nearfar.agents.functions import FunctionTool, PythonTools
    from nearfar.agents.sources import documentation_search, folder_files

    match tools:
        case FilesToolsSettings():
            return folder_files(name, tools.folder)
        case CalculatorToolsSettings():
            from nearfar.agents.calculator import calculator

            return PythonTools(name, [calculator()])
        case DocumentsToolsSettings():
            found = partial(open_collection, wired.settings, tools.collection)
            return PythonTools(name, [documentation_search(found)])
        case McpToolsSettings():
            from nearfar.agents.mcp_source import HttpServer, McpSource, StdioServer

            env = {key: value.get_secret_value() for key, value in tools.env.items()}
            headers = {key: value.get_secret_value() for key, value in tools.headers.items()}
            server = StdioServer(tools.command, env) if tools.url is None else HttpServer(tools.url, headers)
            return McpSource(name, server, prefix=tools.prefix, trusts_hints=tools.trusted)
        case OpenApiToolsSettings():
            from nearfar.agents.openapi_source import OpenApiSource

            return OpenApiSource(
                name,
                tools.document,
                base_url=tools.base_url,
                secrets={scheme: value.get_secret_value() for scheme, value in tools.secrets.items()},
                allows_private=tools.allows_private,
                prefix=tools.prefix,
                trusts_hints=tools.trusted,
            )
        case CodeToolsSettings():
            from nearfar.agents.code_tool import CodeSource, CodeTool, find_runner
            from nearfar.agents.types import CodeLimits

            limits = CodeLimits(seconds=tools.seconds, memory_bytes=tools.memory_mib * 2**20)
            return CodeSource(name, CodeTool(find_runner(tools.sandbox, limits=limits)))
        case PythonToolsSettings():
            from nearfar.agents.types import ToolHints
            from nearfar.models.python_model import load_callable

            path = wired.settings.path
            function = load_callable(tools.callable, path.absolute().parent if path else Path())
            return PythonTools(name, [FunctionTool(function, hints=ToolHints(read_only=tools.reads_only or None))])
        case _:
            assert_never(tools)


def _tells_logprobs(wired: Wired, target: str) -> bool:
    """Whether every model behind a model's or a cascade's name gives log-probabilities."""
    cascade = wired.cascades.get(target)
    models = [tier.model for tier in cascade.tiers] if cascade else [wired.models[target]]
    return all(model.card.supports_logprobs for model in models)


def _fitting_tools(specs: Sequence[ToolSpec], text: str, k: int) -> list[str]:
    """Names of the tools that fit the text best."""
    from nearfar.retrieval.embedders import find_embedder
    from nearfar.retrieval.tools import ToolIndex

    index = ToolIndex(find_embedder("static"))
    index.add(specs)
    return [hit.chunk.id for hit in index.search(text, k=k)]


async def open_runs(settings: Settings) -> RunStore:
    """Where agents' runs are kept, as the config says.

    Raises:
        ConfigError: nearfar[agents] is not installed.
        DataError: the place cannot be used.
    """
    try:
        from nearfar.agents.checkpoints import open_postgres, open_sqlite
    except ImportError as exc:
        raise ConfigError(f"Agents need {exc.name}. Install it: pip install 'nearfar[agents]'") from exc
    if settings.runs_url is not None:
        return await open_postgres(settings.runs_url.get_secret_value())
    return await open_sqlite(settings.runs_path)
