"""`Settings`: everything that nearfar was told, in one value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import SecretStr

from .agents import (
    AgentSettings,
    McpToolsSettings,
    OpenApiToolsSettings,
    RunsSettings,
    read_agent_secrets,
    read_agents,
)
from .cascades import CascadeSettings, read_cascades
from .environment import check_variables, find_file, user_folder
from .models import ModelSettings, OpenAISettings, model_names, read_model_keys, read_models
from .records import BudgetSettings, DataSection, DecisionSettings, check_budget
from .retrieval import (
    EmbedderSettings,
    MemorySettings,
    RetrievalSettings,
    check_embedders,
    read_embedder_keys,
    read_embedders,
)
from .serving import EnginesSection, GatewaySection
from .source import Section, Source, split
from .token_routers import TokenRouterSettings, read_token_routers

#: The sections whose tables have names of the user's own.
_NAMED = ("models", "cascades", "routers", "embedders", "agents")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value, as `nearfar config` shows it."""

    key: str  # dotted
    value: Any  # a plain JSON value; secrets are masked
    source: str  # the file's name, a variable, "found" or "default"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that nearfar was told, checked.

    `origins` maps dotted keys to where their values came from; a key that is not in it has its default.
    """

    models: Mapping[str, ModelSettings]
    cascades: Mapping[str, CascadeSettings]
    decisions: DecisionSettings
    budget: BudgetSettings
    gateway: GatewaySection
    data: DataSection
    retrieval: RetrievalSettings
    path: Path | None = None  # the file; None: there is none
    model_keys: Mapping[str, SecretStr] = field(default_factory=dict)  # by model
    missing_keys: Mapping[str, str] = field(default_factory=dict)  # model → variable that is not set
    gateway_keys: tuple[SecretStr, ...] = ()
    approver_keys: tuple[SecretStr, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    embedders: Mapping[str, EmbedderSettings] = field(default_factory=dict)
    embedder_keys: Mapping[str, SecretStr] = field(default_factory=dict)  # by embedder
    memory: MemorySettings = field(default_factory=MemorySettings)
    memory_url: SecretStr | None = None  # of the memory's Postgres; None: the local store
    routers: Mapping[str, TokenRouterSettings] = field(default_factory=dict)
    engines: EnginesSection = field(default_factory=EnginesSection)
    agents: Mapping[str, AgentSettings] = field(default_factory=dict)
    agent_secrets: Mapping[str, SecretStr] = field(default_factory=dict)  # by variable
    runs: RunsSettings = field(default_factory=RunsSettings)
    runs_url: SecretStr | None = None  # of the runs' Postgres; None: the file

    SECTIONS: ClassVar[Mapping[str, type[Section]]] = {
        "decisions": DecisionSettings,
        "budget": BudgetSettings,
        "gateway": GatewaySection,
        "data": DataSection,
        "retrieval": RetrievalSettings,
        "memory": MemorySettings,
        "engines": EnginesSection,
        "runs": RunsSettings,
    }

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, environ: Mapping[str, str] | None = None, needs_keys: bool = True
    ) -> Settings:
        """The settings of `path`, or of the first of $NEARFAR_CONFIG, ./nearfar.toml and the user's config folder.

        Without any file: the embedded model first, then whatever far model the environment has a key for.

        Args:
            path: the file; it must exist.
            environ: read instead of the process's environment.
            needs_keys: a model whose key is not set is an error; otherwise it is listed in `missing_keys`.

        Raises:
            ConfigError: one line that names the setting at fault and the fix.
        """
        env = os.environ if environ is None else environ
        check_variables(env, cls.SECTIONS)
        return _read(Source(find_file(path, env), env, needs_keys=needs_keys))

    @property
    def store_path(self) -> Path:
        """The SQLite file with the decisions, the cache and the budget."""
        return self.decisions.path or self.data.dir / "nearfar.db"

    @property
    def collections_path(self) -> Path:
        """The folder with a folder for every collection of documents."""
        return self.retrieval.dir or self.data.dir / "collections"

    @property
    def runs_path(self) -> Path:
        """The SQLite file with agents' runs."""
        return self.runs.path or self.data.dir / "agents.db"

    @property
    def engines_path(self) -> Path:
        """The folder with the records and logs of vLLM servers."""
        return self.data.dir / "engines"

    @property
    def keys_path(self) -> Path:
        """The gateway's keys, hashed."""
        return self.data.dir / "keys.json"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret by value, for scrubbing logs."""
        found = [*self.model_keys.values(), *self.embedder_keys.values(), *self.gateway_keys, *self.approver_keys]
        found += [url for url in (self.memory_url, self.runs_url) if url is not None]
        found += self.agent_secrets.values()
        for agent in self.agents.values():
            for tools in agent.tools.values():
                if isinstance(tools, McpToolsSettings):
                    found += [*tools.env.values(), *tools.headers.values()]
                elif isinstance(tools, OpenApiToolsSettings):
                    found += tools.secrets.values()
        for model in self.models.values():
            if isinstance(model, OpenAISettings):
                found.extend(model.headers.values())
        return tuple(secret.get_secret_value() for secret in found if secret.get_secret_value())

    def describe(self) -> list[Setting]:
        """Every value and where it came from; secrets masked."""
        return list(_describe(self))


def _read(source: Source) -> Settings:
    tables = source.read()
    valid = [*_NAMED, *Settings.SECTIONS]
    for name, table in tables.items():
        if name not in valid:
            raise source.unknown(name, valid, what="section")
        if not isinstance(table, dict):
            raise source.error(f"{name!r} must be a table: [{name}]", name)
    defaults = {"data": {"dir": user_folder(source.env, "data")}}
    sections: dict[str, Any] = {
        name: source.section(name, cls, tables.get(name, {}), defaults=defaults.get(name, {}))
        for name, cls in Settings.SECTIONS.items()
    }
    check_budget(source, sections["budget"])
    models = read_models(source, tables.get("models"))
    model_keys, missing_keys = read_model_keys(source, models)
    routers = read_token_routers(source, tables.get("routers", {}), models)
    cascades = read_cascades(source, tables.get("cascades", {}), models, routers)
    embedders = read_embedders(source, tables.get("embedders", {}))
    memory: MemorySettings = sections["memory"]
    check_embedders(source, sections["retrieval"], memory, embedders)
    agents = read_agents(source, tables.get("agents", {}), [*cascades, *model_names(models), *routers])
    return Settings(
        models=models,
        cascades=cascades,
        **sections,
        path=source.path,
        model_keys=model_keys,
        missing_keys=missing_keys,
        gateway_keys=tuple(map(SecretStr, split(source.env.get("NEARFAR_API_KEYS", "")))),
        approver_keys=tuple(map(SecretStr, split(source.env.get("NEARFAR_APPROVER_KEYS", "")))),
        origins=source.origins,
        embedders=embedders,
        embedder_keys=read_embedder_keys(source, embedders),
        routers=routers,
        memory_url=source.postgres_url("memory", memory.postgres_url_env if memory.enabled else None),
        agents=agents,
        agent_secrets=read_agent_secrets(source, agents),
        runs_url=source.postgres_url("runs", sections["runs"].postgres_url_env),
    )


def _describe(settings: Settings) -> Iterator[Setting]:
    groups: dict[str, Section] = {
        f"{kind}.{name}": section for kind in _NAMED for name, section in getattr(settings, kind).items()
    }
    groups |= {name: getattr(settings, name) for name in Settings.SECTIONS}
    for where, section in groups.items():
        values = section.model_dump(mode="json")
        if isinstance(section, CascadeSettings):  # a tier shows what it was told
            values["tiers"] = [tier.model_dump(mode="json", exclude_defaults=True) for tier in section.tiers]
        for key, value in values.items():
            name = f"{where}.{key}"
            yield Setting(name, _compact(value), settings.origins.get(name, "default"))
        model = where.removeprefix("models.") if where.startswith("models.") else ""
        if model in settings.model_keys:
            yield Setting(f"{where}.api_key", "**********", settings.origins[f"{where}.api_key"])
        elif model in settings.missing_keys:
            yield Setting(f"{where}.api_key", None, f"${settings.missing_keys[model]} is not set")
    if settings.gateway_keys:
        yield Setting("gateway.keys", ["**********"] * len(settings.gateway_keys), "$NEARFAR_API_KEYS")
    if settings.approver_keys:
        yield Setting("gateway.approver_keys", ["**********"] * len(settings.approver_keys), "$NEARFAR_APPROVER_KEYS")


def _compact(value: Any) -> Any:
    """The value without what its tables leave unset."""
    if isinstance(value, dict):
        return {key: _compact(inner) for key, inner in value.items() if inner is not None and inner is not False}
    return [_compact(inner) for inner in value] if isinstance(value, list) else value
