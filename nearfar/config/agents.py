"""The agents of the config: their roles, tools and limits, and where their runs are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr

from .cascades import AUTO
from .source import Section, Source


class RoleSettings(Section):
    """Who answers for a part of an agent; a bare string in the file is its model."""

    model: str = AUTO  # a model's or a cascade's name
    max_tokens: PositiveInt = 256
    temperature: float = Field(0.0, ge=0, le=2)
    samples: int = Field(1, ge=1, le=32)  # answers drawn; the most frequent one counts
    tokens: PositiveInt | None = None  # of the role in a run, before it draws one answer each
    usd: float | None = Field(default=None, ge=0)  # of the role in a run
    unsure: str | None = None  # a model or cascade that is asked the same where the role's own score is too low
    sure_from: float = Field(0.5, ge=0, le=1)  # the score that is not


class _ToolsSettings(Section):
    """What every source of tools takes."""

    only: tuple[str, ...] = ()  # these of its tools; (): all


class FilesToolsSettings(_ToolsSettings):
    """The text files of a folder, read through an MCP server of their own."""

    kind: Literal["files"]
    folder: Path = Path()


class CalculatorToolsSettings(_ToolsSettings):
    """Exact arithmetic."""

    kind: Literal["calculator"]


class DocumentsToolsSettings(_ToolsSettings):
    """Search in a collection of documents."""

    kind: Literal["documents"]
    collection: str


class McpToolsSettings(_ToolsSettings):
    """An MCP server: a program that is started, or a URL."""

    kind: Literal["mcp"]
    command: tuple[str, ...] = ()
    url: str | None = None
    env: dict[str, SecretStr] = Field(default_factory=dict)  # for the program
    headers: dict[str, SecretStr] = Field(default_factory=dict)  # for the URL
    trusted: bool = False  # you vouch for what it says of its tools: what only reads then runs unasked
    prefix: str = ""  # before its tools' names


class PythonToolsSettings(_ToolsSettings):
    """A Python function."""

    kind: Literal["python"]
    callable: str  # package.module:name, or file.py:name beside this file
    reads_only: bool = False  # it changes nothing and reaches nobody


class OpenApiToolsSettings(_ToolsSettings):
    """The operations of an OpenAPI document."""

    kind: Literal["openapi"]
    document: str  # a file beside this one, or a URL
    base_url: str | None = None  # None: the document's first server
    secrets: dict[str, SecretStr] = Field(default_factory=dict)  # by the document's security schemes
    allows_private: bool = False  # addresses that are not public may be reached
    trusted: bool = False  # you vouch that GET only reads
    prefix: str = ""  # before its tools' names


class CodeToolsSettings(_ToolsSettings):
    """Python that a role writes, run in a sandbox."""

    kind: Literal["code"]
    sandbox: Literal["monty", "bubblewrap"] = "monty"
    seconds: PositiveFloat = 2.0
    memory_mib: PositiveInt = 64


ToolsSettings: TypeAlias = (
    FilesToolsSettings
    | CalculatorToolsSettings
    | DocumentsToolsSettings
    | McpToolsSettings
    | PythonToolsSettings
    | OpenApiToolsSettings
    | CodeToolsSettings
)
_TOOLS_KINDS: Mapping[str, type[ToolsSettings]] = {
    "files": FilesToolsSettings,
    "calculator": CalculatorToolsSettings,
    "documents": DocumentsToolsSettings,
    "mcp": McpToolsSettings,
    "python": PythonToolsSettings,
    "openapi": OpenApiToolsSettings,
    "code": CodeToolsSettings,
}


class AgentSettings(Section):
    """Roles, tools and limits of one agent; docs/agents.md."""

    kind: Literal["alpha-umi", "rewoo", "self-ask", "conductor"] = "alpha-umi"
    model: str = AUTO  # of roles that name none
    roles: dict[str, RoleSettings] = Field(default_factory=dict)
    tools: dict[str, ToolsSettings] = Field(default_factory=dict)
    policy: dict[str, Literal["allow", "ask", "deny"]] = Field(default_factory=dict)  # by tool, or pattern
    off_plan: Literal["ask", "refuse"] = "ask"  # calls that were not planned before anything was read
    secrets: dict[str, dict[str, str]] = Field(default_factory=dict)  # tool → argument → "secret:VARIABLE"
    max_tools: PositiveInt = 8  # shown to a role, the fitting ones
    examples: Path | None = None  # JSONL of tasks done well, shown to every role
    num_examples: int = Field(3, ge=0, le=50)  # of them, those most like the task
    rationale: Literal["steps", "words"] = "steps"  # of the planner: the calls to come, or its reasons
    steps: PositiveInt = 12
    seconds: PositiveFloat = 120.0
    tokens: PositiveInt | None = None
    usd: float | None = Field(default=None, ge=0)
    repeats: PositiveInt = 2  # of the same call, before it is a loop


class RunsSettings(Section):
    """Where agents' runs are kept."""

    path: Path | None = None  # None: agents.db in data.dir
    postgres_url_env: str | None = None  # variable with the URL of a Postgres; None: the file


def read_agents(source: Source, tables: Mapping[str, Any], targets: Sequence[str]) -> dict[str, AgentSettings]:
    """The agents of [agents].

    Args:
        source: what the tables were read from.
        tables: by name.
        targets: the models, cascades and routers that roles may name.

    Raises:
        ConfigError: a table is wrong.
    """
    agents: dict[str, AgentSettings] = {}
    for name, where, table in source.named("agents", tables):
        source.check_keys(where, table, AgentSettings)
        values = source.with_paths(table, "examples") | {"roles": {}, "tools": {}}
        for key in ("roles", "tools"):
            source.check_table(f"{where}.{key}", table.get(key, {}), key)
        for role, told in table.get("roles", {}).items():
            said = {"model": told} if isinstance(told, str) else told
            source.check_table(f"{where}.roles.{role}", said, role)
            source.check_keys(f"{where}.roles.{role}", said, RoleSettings)
            values["roles"][role] = {"model": table.get("model", AUTO), **said}
        for tools, told in table.get("tools", {}).items():
            values["tools"][tools] = _tools(source, f"{where}.tools.{tools}", tools, told)
        agent = agents[name] = source.validate(AgentSettings, values, where)
        named = [each for role in agent.roles.values() for each in (role.model, role.unsure) if each is not None]
        for target in (agent.model, *named):
            source.check_model(where, target, targets, listing="there are")
    return agents


def read_agent_secrets(source: Source, agents: Mapping[str, AgentSettings]) -> dict[str, SecretStr]:
    """By variable, what the agents' tools take arguments from.

    Raises:
        ConfigError: a variable is not set, and the source needs keys.
    """
    secrets: dict[str, SecretStr] = {}
    for name, agent in agents.items():
        for tool, bound in agent.secrets.items():
            for argument, template in bound.items():
                for variable in re.findall(r"secret:([A-Za-z_][A-Za-z0-9_]*)", template):
                    value = source.secret(variable)
                    if value is not None:
                        secrets[variable] = value
                    elif source.needs_keys:
                        raise source.error(
                            f"agents.{name}.secrets.{tool}.{argument} takes ${variable}, which is not set; set it",
                            variable,
                        )
    return secrets


def _tools(source: Source, where: str, name: str, table: Any) -> ToolsSettings:
    source.check_table(where, table, name)
    kind, cls = source.chosen(where, name, table, _TOOLS_KINDS, default=name)
    source.check_keys(where, table, cls)
    values = {**source.with_paths(table, "folder"), "kind": kind}
    document = values.get("document")
    if isinstance(document, str) and not document.startswith(("http://", "https://")):
        values["document"] = str(source.resolve(document))
    tools = source.validate(cls, values, where)
    if isinstance(tools, McpToolsSettings) and bool(tools.command) == bool(tools.url):
        raise source.error(f"{where} needs either command, a program to start, or url", name)
    return tools
