"""Settings: one TOML file and the environment, read here and nowhere else, checked before anything is built.

Values come from, strongest first: `NEARFAR_<SECTION>_<KEY>` variables, the file, what is found (keys in the
environment), the defaults. pydantic checks the types; pydantic-settings is not used, because it doubles the import
time (78 to 152 ms) and does not say where a value came from.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError

from nearfar.errors import ConfigError
from nearfar.types import Modality, Placement

FILE_NAME = "nearfar.toml"
DEFAULT_WEIGHTS = "smollm2"
#: The cascade that a query names when it names nothing.
AUTO = "auto"

OPENAI_URL = "https://api.openai.com/v1"
#: The far models taken from a bare key, where NEARFAR_FAR_MODEL names no other: much stronger than the embedded one,
#: priced in the catalogue, and they take every decoding option that `nearfar ask` has.
DEFAULT_OPENAI_MODEL = "gpt-4.1"
DEFAULT_ANTHROPIC_MODEL = "claude-sonnet-4-5"

_FREE_VARIABLES = {
    "NEARFAR_CONFIG": "path of the config file",
    "NEARFAR_HOME": "folder of the store and the keys",
    "NEARFAR_FAR_URL": "an OpenAI-compatible far server, where there is no config file",
    "NEARFAR_FAR_MODEL": "the far model's name",
    "NEARFAR_FAR_KEY": "the far server's key",
    "NEARFAR_API_KEYS": "keys that the gateway takes, separated by commas",
    "NEARFAR_DEBUG": "show tracebacks",
}


class _Section(BaseModel):
    """A table of the file; unknown keys were refused before."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class PriceSettings(_Section):
    """US dollars per million tokens."""

    prompt_usd_per_mtok: float = Field(ge=0)
    completion_usd_per_mtok: float = Field(ge=0)
    cached_prompt_usd_per_mtok: float | None = Field(default=None, ge=0)


class _ModelSettings(_Section):
    """What every kind of model takes."""

    context_window: PositiveInt | None = None  # tokens; None: the catalogue's, or unknown
    max_output_tokens: PositiveInt | None = None
    price: PriceSettings | None = None  # None: the catalogue's, or unknown
    timeout_s: PositiveFloat | None = None  # the whole call
    attempts: int = Field(3, ge=1, le=10)
    concurrency: PositiveInt | None = None  # calls at once
    requests_per_minute: PositiveInt | None = None
    cache_ttl_s: PositiveFloat | None = None  # None: no cache; inf: for ever
    docs: str | None = None  # a collection that it answers from, with citations, or says that it does not know
    passage_tokens: PositiveInt | None = None  # what of its passages the question needs, in so many; None: whole


class LlamaCppSettings(_ModelSettings):
    """A GGUF file, run inside this process."""

    kind: Literal["llama.cpp"]
    weights: str | None = None  # a name that `nearfar models get` knows; smollm2 where there is no path either
    path: Path | None = None
    context_window: PositiveInt = 4096
    max_output_tokens: PositiveInt = 512
    parallel: PositiveInt = 2
    threads: PositiveInt | None = None
    temperature: float = Field(0.2, ge=0, le=2)  # where the query names none
    loras: dict[str, Path] = Field(default_factory=dict)  # adapters by name; each is a model NAME+ADAPTER besides


class OpenAISettings(_ModelSettings):
    """A server that speaks OpenAI's chat completions."""

    kind: Literal["openai"]
    url: str = OPENAI_URL
    model: str
    placement: Placement = "far"
    api_key_env: str | None = None  # OPENAI_API_KEY where the URL is OpenAI's
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    timeout_s: PositiveFloat = 120.0
    connect_timeout_s: PositiveFloat = 5.0
    read_timeout_s: PositiveFloat = 120.0  # between two bytes
    supports_logprobs: bool = True
    supports_tools: bool = True
    supports_json_schema: bool = True
    supports_grammar: bool = False
    modalities: frozenset[Modality] = frozenset({"text", "image"})
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = (
        None  # None: what the URL's provider takes
    )


class AnthropicSettings(_ModelSettings):
    """A server that speaks Anthropic's messages."""

    kind: Literal["anthropic"]
    url: str = "https://api.anthropic.com"
    model: str
    placement: Placement = "far"
    api_key_env: str = "ANTHROPIC_API_KEY"
    timeout_s: PositiveFloat = 120.0
    max_output_tokens: PositiveInt = 4096


class ReplaySettings(_ModelSettings):
    """Recorded answers, by question."""

    kind: Literal["replay"]
    table: Path
    model: str  # value of the table's model column
    placement: Placement = "far"
    columns: dict[str, str] = Field(default_factory=dict)  # our name for a column → the table's


class VllmSettings(_ModelSettings):
    """A vLLM server on this machine, started when it is asked for; docs/engine.md."""

    kind: Literal["vllm"]
    model: str  # a folder, or a hub's name with revision; a GGUF goes to llama.cpp
    revision: str | None = None  # the commit of a hub's model
    quantization: str | None = None  # None: what the checkpoint says
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    loras: dict[str, Path] = Field(default_factory=dict)  # adapters' folders by name; each is a model NAME+ADAPTER
    widths: tuple[int, ...] = ()  # bits to read nested weights at; each is a model NAME@BITS, NAME itself the widest
    draft: str | None = None  # a smaller model that guesses ahead
    draft_tokens: int = Field(4, ge=1, le=32)
    memory_gib: PositiveFloat | None = None  # what it takes of engines.memory_gib; None: estimated
    kv_cache_gib: PositiveFloat = 1.0  # on a CPU
    gpu_share: float = Field(0.9, gt=0, le=1)  # of the GPU's memory
    threads: PositiveInt | None = None  # on a CPU
    port: int | None = Field(default=None, ge=1, le=65535)  # None: any free one
    url: str | None = None  # a vLLM that runs already: used, never started or stopped
    api_key_env: str | None = None  # with url
    tool_parser: str | None = None  # vLLM's name for how this model writes tool calls; None: it takes no tools
    trust_remote_code: bool = False
    sleep: bool = False  # evicted by putting it to sleep; needs a GPU
    max_queue: PositiveInt | None = None  # requests from which the model says that it is unavailable
    start_timeout_s: PositiveFloat = 600.0
    drain_timeout_s: PositiveFloat = 30.0
    read_timeout_s: PositiveFloat = 120.0  # between two bytes
    arguments: tuple[str, ...] = ()  # further ones for vLLM
    environment: dict[str, str] = Field(default_factory=dict)  # further variables for vLLM


class PythonSettings(_ModelSettings):
    """A Python callable: a classifier, a rule, a look-up."""

    kind: Literal["python"]
    callable: str  # package.module:name, or file.py:name beside this file
    placement: Placement = "near"


ModelSettings: TypeAlias = (
    LlamaCppSettings | VllmSettings | OpenAISettings | AnthropicSettings | ReplaySettings | PythonSettings
)

_KINDS: Mapping[str, type[ModelSettings]] = {
    "llama.cpp": LlamaCppSettings,
    "vllm": VllmSettings,
    "openai": OpenAISettings,
    "anthropic": AnthropicSettings,
    "replay": ReplaySettings,
    "python": PythonSettings,
}


#: Signals that a tier reads only where they are asked for: the first four take calls; docs/routing.md has the price.
SignalName: TypeAlias = Literal[
    "self_consistency",
    "semantic_entropy",
    "p_true",
    "self_check",
    "stated_confidence",
    "span",
    "answer_text",
    "query",
    "similar_queries",
    "predicted_gain",
]

#: Those of them that take calls.
PAID_SIGNALS = frozenset({"self_consistency", "semantic_entropy", "p_true", "self_check", "stated_confidence"})

EmbedderName: TypeAlias = Literal["static", "minilm"]


class TierSettings(_Section):
    """One step of a cascade; a bare string in the file is its model."""

    model: str
    name: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    draft: bool = False  # hand the best answer so far on to this tier
    deadline_s: PositiveFloat | None = None
    signals: tuple[SignalName, ...] = ()  # beyond those that every answer carries
    samples: int = Field(default=5, ge=2, le=100)  # for self_consistency and semantic_entropy
    sample_temperature: float = Field(default=0.7, gt=0, le=2)
    same_by: Literal["answer", "embedding", "entailment"] = "answer"  # which samples say the same
    judge: str | None = None  # the model that judges entailment; None: the tier's own
    abstain_below: float | None = Field(default=None, ge=0, le=1)  # a score below which no further tier is asked
    error_cases: Path | Literal["told"] | None = None  # past mistakes to show this tier: JSONL, or what was told
    num_error_cases: PositiveInt = 5  # how many of them, the likest


class RouterSettings(_Section):
    """A fitted router that picks the tier to begin at."""

    file: Path  # made by `nearfar evaluate --save`
    threshold: float  # expected gain from which the strong tier is chosen
    weak: str | None = None  # the tier whose model it was fitted on as the weak one; None: the first
    strong: str | None = None  # None: the last
    use: Literal["order", "skip", "pick"] = "order"
    explore: float = Field(0.0, ge=0, le=1)  # share of queries left to a coin, so that the log can judge other routers


class BanditSettings(_Section):
    """A bandit that picks the tier to begin at and learns from outcomes."""

    rule: Literal["thompson", "linucb"] = "thompson"
    features: tuple[str, ...] = ("query_length", "query_numbers", "query_symbols")
    budget_usd: PositiveFloat | None = None  # mean cost per query to keep to; None: cost does not matter
    floor: float = Field(0.05, gt=0, lt=0.5)  # the least probability of each tier
    use: Literal["order", "skip", "pick"] = "order"


class MonitorSettings(_Section):
    """Watches what the policy promises, on outcomes and signals as they come."""

    alpha: float | None = Field(default=None, gt=0, lt=1)  # wrong among the accepted; None: as the policy promises
    false_alarm_rate: float = Field(0.05, gt=0, lt=1)
    on_alarm: Literal["defer", "tell"] = "defer"  # defer: the tier's answers are accepted no more


class CascadeSettings(_Section):
    """Tiers in order."""

    tiers: tuple[TierSettings, ...] = Field(min_length=1)
    commit: Literal["answer", "prefix"] = "answer"
    prefix_tokens: PositiveInt = 16
    policy: Path | None = None  # made by `nearfar calibrate`
    policies: tuple[Path, ...] = ()  # more of them, for queries that name one as their quality
    router: RouterSettings | None = None
    bandit: BanditSettings | None = None
    monitor: MonitorSettings | None = None
    labelled_queries: Path | None = None  # for the signal similar_queries: `query`, and `correct` where known
    embedder: EmbedderName = "static"  # for similar_queries, same_by = "embedding" and routers that embed


class WorkerSettings(_Section):
    """Somebody whom a router of functional tokens may choose."""

    model: str
    description: str = Field(min_length=1)  # what it is good at, as the choosing model is told
    label: str | None = None  # one token of the choosing model's tokenizer; None: a letter
    next: tuple[str, ...] = ()  # workers that may go on with its answer
    deadline_s: PositiveFloat | None = None


class TokenRouterSettings(_Section):
    """A near model names the worker of each query by a token; a target like a cascade."""

    model: str  # who chooses
    workers: dict[str, WorkerSettings] = Field(min_length=2)
    general: str  # the worker that takes what nobody is chosen for with enough certainty
    style: Literal["described", "trained"] = "described"  # trained: for a model with an adapter for these workers
    policy: Path | None = None  # made by `nearfar train`
    abstain_below: float = Field(0.0, ge=0, le=1)  # the likeliest worker's probability
    rewrite: bool = False  # ask the chosen worker in the words of its trade
    max_hops: int = Field(1, ge=0, le=10)  # handovers along `next`
    explore: float = Field(0.0, ge=0, le=1)  # share of queries whose worker is drawn, so that the log can judge others


class DecisionSettings(_Section):
    """The decision log."""

    path: Path | None = None  # None: nearfar.db in data.dir
    text: Literal["keep", "hash", "drop"] = "keep"
    retention_days: PositiveFloat | None = None


class BudgetSettings(_Section):
    """The most that all far calls together may cost."""

    limit_usd: float | None = Field(default=None, ge=0)  # None: no limit
    period: Literal["total", "day", "month"] = "total"


class GatewaySection(_Section):
    """`nearfar serve`; see `nearfar.serving.gateway.settings.GatewaySettings` for what each does."""

    host: str = "127.0.0.1"
    port: int = Field(8642, ge=0, le=65535)
    allowed_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    max_body_bytes: PositiveInt = 16 * 1024 * 1024
    max_header_bytes: PositiveInt = 64 * 1024
    receive_timeout_s: PositiveFloat = 30.0
    request_timeout_s: PositiveFloat = 600.0
    max_concurrency: PositiveInt = 512
    heartbeat_s: PositiveFloat = 15.0
    shutdown_grace_s: PositiveFloat = 30.0


class MemorySettings(_Section):
    """Answers given before, in front of every cascade."""

    enabled: bool = False
    policy: Path | None = None  # made by `nearfar memory calibrate`; None: only the very same question is recalled
    embedder: str = "static"  # finds the questions to compare: static, minilm, one of [embedders]
    ttl_s: PositiveFloat = 7 * 86_400.0  # inf: until it is pushed out
    max_memos: PositiveInt = 100_000
    per_user: bool = True  # by the request's `user`; False: all users share, privacy labels never
    postgres_url_env: str | None = None  # variable with the URL of a Postgres with pgvector; None: the local store


class RetrievalSettings(_Section):
    """Collections of documents."""

    dir: Path | None = None  # None: collections in data.dir
    embedder: str = "static"  # of new collections: static, minilm, one of [embedders]; none: search by words alone
    passages: int = Field(5, ge=1, le=50)  # that an answer is grounded in
    passage_tokens: PositiveInt | None = None  # what of them the question needs, in so many together; None: whole
    max_chars: PositiveInt = Field(1000, ge=100)  # of a chunk


class _EmbedderSettings(_Section):
    """What every kind of embedder takes."""

    dim: PositiveInt | None = None  # the first so many numbers of a Matryoshka model; None: all
    query_prompt: str = ""  # before every text that searches
    document_prompt: str = ""  # before every text that is found


class SentenceTransformersSettings(_EmbedderSettings):
    """A model of sentence-transformers, from its hub or a folder."""

    kind: Literal["sentence-transformers"]
    model: str
    batch_size: PositiveInt = 32
    device: str | None = None  # as torch names it; None: torch's choice


class OpenAIEmbedderSettings(_EmbedderSettings):
    """A server that speaks OpenAI's embeddings."""

    kind: Literal["openai"]
    url: str = OPENAI_URL
    model: str
    placement: Placement = "far"
    api_key_env: str | None = None  # OPENAI_API_KEY where the URL is OpenAI's
    timeout_s: PositiveFloat = 60.0
    attempts: int = Field(3, ge=1, le=10)
    batch_size: PositiveInt = 128


class LlamaCppEmbedderSettings(_EmbedderSettings):
    """A GGUF file of an embedding model, run inside this process."""

    kind: Literal["llama.cpp"]
    path: Path
    context_window: PositiveInt = 512
    threads: PositiveInt | None = None


EmbedderSettings: TypeAlias = SentenceTransformersSettings | OpenAIEmbedderSettings | LlamaCppEmbedderSettings

_EMBEDDER_KINDS: Mapping[str, type[EmbedderSettings]] = {
    "sentence-transformers": SentenceTransformersSettings,
    "openai": OpenAIEmbedderSettings,
    "llama.cpp": LlamaCppEmbedderSettings,
}
#: Embedders that are there without a table of the file.
BUILT_IN_EMBEDDERS = ("static", "minilm")


class EnginesSection(_Section):
    """The vLLM servers of this machine."""

    python: Path | None = None  # of the environment that has vLLM; None: nearfar's own
    memory_gib: PositiveFloat | None = None  # for all of them together; None: no limit
    allow_untested: bool = False  # run a version of vLLM that nearfar was not tested with


class RoleSettings(_Section):
    """Who answers for a part of an agent; a bare string in the file is its model."""

    model: str = AUTO  # a model's or a cascade's name
    max_tokens: PositiveInt = 256
    temperature: float = Field(0.0, ge=0, le=2)
    samples: int = Field(1, ge=1, le=32)  # answers drawn; the most frequent one counts
    tokens: PositiveInt | None = None  # of the role in a run, before it draws one answer each
    usd: float | None = Field(default=None, ge=0)  # of the role in a run


class _ToolsSettings(_Section):
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


class AgentSettings(_Section):
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


class RunsSettings(_Section):
    """Where agents' runs are kept."""

    path: Path | None = None  # None: agents.db in data.dir
    postgres_url_env: str | None = None  # variable with the URL of a Postgres; None: the file


class DataSection(_Section):
    """Where nearfar keeps its files."""

    dir: Path


_SectionT = TypeVar("_SectionT", bound=_Section)


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

    SECTIONS: ClassVar[Mapping[str, type[_Section]]] = {
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
        _check_variables(env)
        file = _find_file(path, env)
        return _Loader(file, env, needs_keys=needs_keys).load()

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
        found = [*self.model_keys.values(), *self.embedder_keys.values(), *self.gateway_keys]
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


def is_debugging(environ: Mapping[str, str] | None = None) -> bool:
    """Whether NEARFAR_DEBUG asks for tracebacks."""
    return bool((os.environ if environ is None else environ).get("NEARFAR_DEBUG"))


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is kept of a gateway key."""

    sha256: str
    name: str
    created_at: str  # ISO 8601


def read_keys(path: Path) -> tuple[StoredKey, ...]:
    """The gateway keys in the file; none where there is no file.

    Raises:
        ConfigError: the file is not what `write_keys` wrote.
    """
    try:
        return tuple(StoredKey(**key) for key in json.loads(path.read_text(encoding="utf-8"))["keys"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"Cannot read the gateway's keys in {str(path)!r}: {exc!r}. Remove it and make new ones."
        ) from exc


def write_keys(path: Path, keys: Iterable[StoredKey]) -> None:
    """Writes the keys' hashes, whole or not at all, readable by the owner alone.

    Raises:
        ConfigError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=2)
        temporary.replace(path)
    except OSError as exc:
        raise ConfigError(f"Cannot write the gateway's keys to {str(path)!r}: {exc.strerror}.") from exc


def user_config_path(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's own config file is looked for, whether or not it exists."""
    environ = os.environ if environ is None else environ
    return _user_folder(environ, "config") / FILE_NAME


def found_models(environ: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The models to use where no file names any, as tables of the file: embedded first, then what has a key.

    Raises:
        ConfigError: NEARFAR_FAR_URL comes without NEARFAR_FAR_MODEL.
    """
    environ = os.environ if environ is None else environ
    tables: dict[str, dict[str, Any]] = {DEFAULT_WEIGHTS: {"kind": "llama.cpp", "weights": DEFAULT_WEIGHTS}}
    named = environ.get("NEARFAR_FAR_MODEL")
    url = environ.get("NEARFAR_FAR_URL")
    if url:
        if not named:
            raise ConfigError(
                f"NEARFAR_FAR_URL is {url!r} and NEARFAR_FAR_MODEL is not set; name the model to ask there."
            )
        tables["far"] = {"kind": "openai", "url": url, "model": named}
        if environ.get("NEARFAR_FAR_KEY"):
            tables["far"]["api_key_env"] = "NEARFAR_FAR_KEY"
    elif environ.get("OPENAI_API_KEY"):
        tables["far"] = {
            "kind": "openai",
            "model": named or DEFAULT_OPENAI_MODEL,
            "api_key_env": "OPENAI_API_KEY",
        }
    elif environ.get("ANTHROPIC_API_KEY"):
        tables["far"] = {
            "kind": "anthropic",
            "model": named or DEFAULT_ANTHROPIC_MODEL,
            "api_key_env": "ANTHROPIC_API_KEY",
        }
    return tables


class _Loader:
    """Reads one file and one environment into `Settings`."""

    def __init__(self, file: Path | None, env: Mapping[str, str], *, needs_keys: bool) -> None:
        self._file = file
        self._env = env
        self._needs_keys = needs_keys
        self._text = ""
        self._origins: dict[str, str] = {}
        self._keys: dict[str, SecretStr] = {}
        self._missing: dict[str, str] = {}
        self._embedder_keys: dict[str, SecretStr] = {}
        self._agent_secrets: dict[str, SecretStr] = {}

    def load(self) -> Settings:
        tables = self._read()
        valid = ["models", "cascades", "routers", "embedders", "agents", *Settings.SECTIONS]
        for name, table in tables.items():
            if name not in valid:
                raise self._unknown(name, valid, what="section")
            if not isinstance(table, dict):
                raise self._error(f"{name!r} must be a table: [{name}]", name)
        sections = {name: self._fixed(name, tables.get(name, {})) for name in Settings.SECTIONS}
        models = self._models(tables.get("models"))
        routers = self._routers(tables.get("routers") or {}, models)
        cascades = self._cascades(tables.get("cascades") or {}, models, routers)
        embedders = self._embedders(tables.get("embedders") or {})
        chosen = sections["retrieval"].embedder
        known = ["none", *BUILT_IN_EMBEDDERS, *embedders]
        if chosen not in known:
            raise self._error(
                f"retrieval.embedder is {chosen!r}{_did_you_mean(chosen, known)}; the embedders are {_listed(known)}",
                "embedder",
            )
        keys = _split(self._env.get("NEARFAR_API_KEYS", ""))
        agents = self._agents(tables.get("agents") or {}, [*cascades, *model_names(models), *routers])
        return Settings(
            models=models,
            cascades=cascades,
            **sections,
            path=self._file,
            model_keys=self._keys,
            missing_keys=self._missing,
            gateway_keys=tuple(map(SecretStr, keys)),
            origins=self._origins,
            embedders=embedders,
            embedder_keys=self._embedder_keys,
            routers=routers,
            memory_url=self._memory_url(sections["memory"], known, embedders),
            agents=agents,
            agent_secrets=self._agent_secrets,
            runs_url=self._runs_url(sections["runs"]),
        )

    def _agents(self, tables: dict[str, Any], targets: Sequence[str]) -> dict[str, AgentSettings]:
        agents: dict[str, AgentSettings] = {}
        for name, table in tables.items():
            where = f"agents.{name}"
            if not isinstance(table, dict):
                raise self._error(f"{where} must be a table: [agents.{name}]", name)
            self._check_name(name)
            self._check_keys(where, table, AgentSettings)
            values = dict(table)
            if isinstance(values.get("examples"), str):
                values["examples"] = self._resolve(values["examples"])
            roles = values.get("roles") or {}
            values["roles"] = {role: {"model": told} if isinstance(told, str) else told for role, told in roles.items()}
            for role, told in values["roles"].items():
                self._check_keys(f"{where}.roles.{role}", told, RoleSettings)
                told.setdefault("model", values.get("model", AUTO))
            values["tools"] = {
                source: self._tools(f"{where}.tools.{source}", told)
                for source, told in (values.get("tools") or {}).items()
            }
            agent = agents[name] = self._validate(AgentSettings, values, where)
            for target in (agent.model, *(role.model for role in agent.roles.values())):
                if target not in targets:
                    raise self._error(
                        f"{where} names the model {target!r}, which is not there{_did_you_mean(target, targets)}; "
                        f"there are {_listed(targets)}",
                        target,
                    )
            self._find_agent_secrets(where, agent)
            self._origins.update({f"{where}.{key}": self._file_name for key in table})
        return agents

    def _tools(self, where: str, table: Any) -> ToolsSettings:
        if not isinstance(table, dict):
            raise self._error(f"{where} must be a table: [{where}]", where.rpartition(".")[2])
        kind = str(table.get("kind", where.rpartition(".")[2]))
        if kind not in _TOOLS_KINDS:
            raise self._error(
                f"{where}.kind is {kind!r}{_did_you_mean(kind, _TOOLS_KINDS)}; use one of {_listed(_TOOLS_KINDS)}",
                "kind" if "kind" in table else where.rpartition(".")[2],
            )
        cls = _TOOLS_KINDS[kind]
        self._check_keys(where, table, cls)
        values = {**table, "kind": kind}
        if isinstance(values.get("folder"), str):
            values["folder"] = self._resolve(values["folder"])
        document = values.get("document")
        if isinstance(document, str) and not document.startswith(("http://", "https://")):
            values["document"] = str(self._resolve(document))
        tools = self._validate(cls, values, where)
        if isinstance(tools, McpToolsSettings) and bool(tools.command) == bool(tools.url):
            raise self._error(f"{where} needs either command, a program to start, or url", where.rpartition(".")[2])
        return tools

    def _find_agent_secrets(self, where: str, agent: AgentSettings) -> None:
        """The variables that the agent's tools take arguments from."""
        for tool, bound in agent.secrets.items():
            for argument, template in bound.items():
                for variable in re.findall(r"secret:([A-Za-z_][A-Za-z0-9_]*)", template):
                    value = self._env.get(variable, "").strip()
                    if value:
                        self._agent_secrets[variable] = SecretStr(value)
                    elif self._needs_keys:
                        raise self._error(
                            f"{where}.secrets.{tool}.{argument} takes ${variable}, which is not set; set it", variable
                        )

    def _runs_url(self, runs: RunsSettings) -> SecretStr | None:
        """The URL of the runs' Postgres, from the variable that the config names."""
        variable = runs.postgres_url_env
        if variable is None:
            return None
        value = self._env.get(variable, "").strip()
        if not value:
            raise self._error(f"runs.postgres_url_env names ${variable}, which is not set; set it", variable)
        self._origins["runs.postgres_url"] = f"${variable}"
        return SecretStr(value)

    def _memory_url(
        self, memory: MemorySettings, names: Iterable[str], embedders: Mapping[str, EmbedderSettings]
    ) -> SecretStr | None:
        """The URL of the memory's Postgres, from the variable that the config names."""
        known = [name for name in names if name != "none"]
        if memory.embedder not in known:
            raise self._error(
                f"memory.embedder is {memory.embedder!r}{_did_you_mean(memory.embedder, known)}; the embedders are "
                f"{_listed(known)}",
                "embedder",
            )
        embedder = embedders.get(memory.embedder)
        if memory.enabled and isinstance(embedder, OpenAIEmbedderSettings) and embedder.placement == "far":
            raise self._error(
                f"memory.embedder {memory.embedder!r} is far, and every question would go there, whatever its privacy; "
                'take a near one, or say placement = "near" if the server is yours',
                "embedder",
            )
        variable = memory.postgres_url_env
        if variable is None or not memory.enabled:
            return None
        value = self._env.get(variable, "").strip()
        if not value:
            raise self._error(f"memory.postgres_url_env names ${variable}, which is not set; set it", variable)
        self._origins["memory.postgres_url"] = f"${variable}"
        return SecretStr(value)

    def _read(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            self._text = self._file.read_bytes().decode()
            return tomllib.loads(self._text)
        except OSError as exc:
            raise ConfigError(f"Cannot read the config {str(self._file)!r}: {exc.strerror or exc}.") from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(
                f"The config {str(self._file)!r} is not UTF-8 (byte {exc.start}); save it as UTF-8."
            ) from exc
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"The config {str(self._file)!r} is not valid TOML: {exc}.") from exc

    def _fixed(self, name: str, table: dict[str, Any]) -> Any:
        """A section with fixed keys: the file's values, then the environment's over them."""
        cls = Settings.SECTIONS[name]
        self._check_keys(name, table, cls)
        values = dict(table)
        origins = {f"{name}.{key}": self._file_name for key in table}
        for key in cls.model_fields:
            variable = "NEARFAR_HOME" if (name, key) == ("data", "dir") else _variable(name, key)
            if self._env.get(variable):
                is_list = isinstance(cls.model_fields[key].default, tuple)
                values[key] = _split(self._env[variable]) if is_list else self._env[variable]
                origins[f"{name}.{key}"] = f"${variable}"
            elif isinstance(values.get(key), str) and key in {"path", "dir", "policy", "python"}:
                values[key] = self._resolve(values[key])
        if name == "data" and "dir" not in values:
            values["dir"] = _user_folder(self._env, "data")
        for key in ("path", "dir"):
            if key in values:
                values[key] = Path(values[key]).expanduser()
        section = self._validate(cls, values, name)
        self._origins.update(origins)
        if isinstance(section, BudgetSettings) and section.limit_usd is None and section.period != "total":
            raise self._error("budget.period is set and budget.limit_usd is not; set a limit, or neither", "period")
        return section

    def _models(self, tables: dict[str, Any] | None) -> dict[str, ModelSettings]:
        is_found = not tables
        tables = tables or found_models(self._env)
        models: dict[str, ModelSettings] = {}
        for name, table in tables.items():
            where = f"models.{name}"
            if not isinstance(table, dict):
                raise self._error(f"{where} must be a table: [models.{name}]", name)
            self._check_name(name)
            model = self._model(where, table)
            models[name] = model
            source = "found" if is_found else self._file_name
            self._origins.update({f"{where}.{key}": source for key in table})
            self._find_key(name, model)
        return models

    def _model(self, where: str, table: dict[str, Any]) -> ModelSettings:
        kind = table.get("kind")
        if kind is None:
            raise self._error(f"{where} has no kind; set kind to one of {_listed(_KINDS)}", where)
        if kind not in _KINDS:
            raise self._error(
                f"{where}.kind is {kind!r}{_did_you_mean(kind, _KINDS)}; use one of {_listed(_KINDS)}", "kind"
            )
        cls = _KINDS[kind]
        self._check_keys(where, table, cls)
        values = dict(table)
        for key in ("path", "table"):
            if isinstance(values.get(key), str):
                values[key] = self._resolve(values[key])
        if isinstance(values.get("loras"), dict):
            values["loras"] = {name: self._resolve(str(path)) for name, path in values["loras"].items()}
        if cls is VllmSettings:
            for key in ("model", "draft"):
                if isinstance(values.get(key), str):
                    values[key] = self._folder_or_name(values[key])
            if str(values.get("model", "")).endswith(".gguf"):
                cls, values = LlamaCppSettings, self._for_llama_cpp(where, values)
        model: ModelSettings = self._validate(cls, values, where)
        if model.passage_tokens is not None and model.docs is None:
            raise self._error(f"{where}.passage_tokens is of passages; name their collection: docs", "passage_tokens")
        if isinstance(model, VllmSettings) and model.api_key_env and not model.url:
            raise self._error(
                f"{where}.api_key_env needs url; a server that nearfar starts gets a key of its own", "api_key_env"
            )
        if isinstance(model, LlamaCppSettings):
            if model.path and model.weights:
                raise self._error(f"{where} has both path and weights; keep one", "weights")
            if not model.path and not model.weights:
                model = model.model_copy(update={"weights": DEFAULT_WEIGHTS})
        url = model.url if isinstance(model, OpenAISettings | AnthropicSettings | VllmSettings) else None
        if url is not None and not re.match(r"https?://[^/\s]", url):
            raise self._error(f"{where}.url must begin with http:// or https://, not {url!r}", "url")
        return model

    def _folder_or_name(self, model: str) -> str:
        """A folder or file by its whole path; a hub's name as it is."""
        path = self._resolve(model)
        return str(path) if model.startswith((".", "/", "~")) or path.exists() else model

    def _for_llama_cpp(self, where: str, values: dict[str, Any]) -> dict[str, Any]:
        """The table of a GGUF that was given to vLLM, for llama.cpp."""
        for key in values:
            if key not in LlamaCppSettings.model_fields and key != "model":
                raise self._error(f"{where}.model is a GGUF, which llama.cpp runs without {key!r}; remove it", key)
        others = {key: value for key, value in values.items() if key != "model"}
        return {**others, "kind": "llama.cpp", "path": self._resolve(values["model"])}

    def _embedders(self, tables: dict[str, Any]) -> dict[str, EmbedderSettings]:
        embedders: dict[str, EmbedderSettings] = {}
        for name, table in tables.items():
            where = f"embedders.{name}"
            if not isinstance(table, dict):
                raise self._error(f"{where} must be a table: [embedders.{name}]", name)
            self._check_name(name)
            if name in ("none", *BUILT_IN_EMBEDDERS):
                raise self._error(f"{name!r} is the name of a built-in embedder; rename [embedders.{name}]", name)
            kind = str(table.get("kind"))
            if kind not in _EMBEDDER_KINDS:
                raise self._error(
                    f"{where}.kind is {kind!r}{_did_you_mean(kind, _EMBEDDER_KINDS)}; use one of "
                    f"{_listed(_EMBEDDER_KINDS)}",
                    "kind" if "kind" in table else name,
                )
            cls = _EMBEDDER_KINDS[kind]
            self._check_keys(where, table, cls)
            values = dict(table)
            if isinstance(values.get("path"), str):
                values["path"] = self._resolve(values["path"])
            embedders[name] = self._validate(cls, values, where)
            self._origins.update({f"{where}.{key}": self._file_name for key in table})
            self._find_embedder_key(name, embedders[name])
        return embedders

    def _find_embedder_key(self, name: str, embedder: EmbedderSettings) -> None:
        if not isinstance(embedder, OpenAIEmbedderSettings):
            return
        variable = embedder.api_key_env
        if variable is None and embedder.url.rstrip("/") == OPENAI_URL:
            variable = "OPENAI_API_KEY"
        value = self._env.get(variable, "").strip() if variable else ""
        if variable and value:
            self._embedder_keys[name] = SecretStr(value)
            self._origins[f"embedders.{name}.api_key"] = f"${variable}"
        elif variable and self._needs_keys:
            raise self._error(
                f"Embedder {name!r} takes its key from ${variable}, which is not set; set it, or remove "
                f"[embedders.{name}]",
                variable,
            )

    def _find_key(self, name: str, model: ModelSettings) -> None:
        if not isinstance(model, OpenAISettings | AnthropicSettings | VllmSettings):
            return
        variable = model.api_key_env
        if variable is None and isinstance(model, OpenAISettings) and model.url.rstrip("/") == OPENAI_URL:
            variable = "OPENAI_API_KEY"
        if variable is None:
            return
        value = self._env.get(variable, "").strip()
        if value:
            self._keys[name] = SecretStr(value)
            self._origins[f"models.{name}.api_key"] = f"${variable}"
        elif self._needs_keys:
            raise self._error(
                f"Model {name!r} takes its key from ${variable}, which is not set; set it, or remove [models.{name}]",
                variable,
            )
        else:
            self._missing[name] = variable

    def _routers(self, tables: dict[str, Any], models: Mapping[str, ModelSettings]) -> dict[str, TokenRouterSettings]:
        routers: dict[str, TokenRouterSettings] = {}
        known = model_names(models)
        for name, table in tables.items():
            where = f"routers.{name}"
            if not isinstance(table, dict):
                raise self._error(f"{where} must be a table: [routers.{name}]", name)
            self._check_name(name)
            if name in models:
                raise self._error(f"{name!r} is both a model and a router; rename one", name)
            self._check_keys(where, table, TokenRouterSettings)
            for worker, told in (table.get("workers") or {}).items():
                if not isinstance(told, dict):
                    raise self._error(f"{where}.workers.{worker} must be a table: [{where}.workers.{worker}]", worker)
                self._check_keys(f"{where}.workers.{worker}", told, WorkerSettings)
            values = dict(table)
            if isinstance(values.get("policy"), str):
                values["policy"] = self._resolve(values["policy"])
            router = routers[name] = self._validate(TokenRouterSettings, values, where)
            for user, model in (("", router.model), *((f".workers.{w}", s.model) for w, s in router.workers.items())):
                if model not in known:
                    raise self._error(
                        f"{where}{user} names the model {model!r}, which is not there{_did_you_mean(model, known)}; "
                        f"the models are {_listed(known)}",
                        model,
                    )
            if router.general not in router.workers:
                raise self._error(
                    f"{where}.general is {router.general!r}, which is no worker"
                    f"{_did_you_mean(router.general, router.workers)}; the workers are {_listed(router.workers)}",
                    "general",
                )
            self._origins.update({f"{where}.{key}": self._file_name for key in table})
        return routers

    def _cascades(
        self,
        tables: dict[str, Any],
        models: Mapping[str, ModelSettings],
        routers: Mapping[str, TokenRouterSettings],
    ) -> dict[str, CascadeSettings]:
        cascades: dict[str, CascadeSettings] = {}
        for name, table in tables.items():
            where = f"cascades.{name}"
            if not isinstance(table, dict):
                raise self._error(f"{where} must be a table: [cascades.{name}]", name)
            self._check_name(name)
            if name in models:
                raise self._error(f"{name!r} is both a model and a cascade; rename one", name)
            if name in routers:
                raise self._error(f"{name!r} is both a router and a cascade; rename one", name)
            cascades[name] = self._cascade(where, table, models)
            self._origins.update({f"{where}.{key}": self._file_name for key in table})
        if AUTO not in cascades and AUTO not in routers:
            if AUTO in models:
                raise self._error(
                    f"A model may not be called {AUTO!r}, the name of the default cascade; rename it", AUTO
                )
            cascades[AUTO] = CascadeSettings(tiers=tuple(TierSettings(model=name) for name in _near_first(models)))
        return cascades

    def _cascade(self, where: str, table: dict[str, Any], models: Mapping[str, ModelSettings]) -> CascadeSettings:
        self._check_keys(where, table, CascadeSettings)
        values = dict(table)
        tiers = values.get("tiers")
        if not isinstance(tiers, list) or not tiers:
            raise self._error(f"{where}.tiers must be a list of models, such as [{_listed(models)}]", "tiers")
        values["tiers"] = [{"model": tier} if isinstance(tier, str) else tier for tier in tiers]
        for i, tier in enumerate(values["tiers"]):
            if not isinstance(tier, dict):
                raise self._error(f"{where}.tiers[{i}] must be a model's name or a table, not {tier!r}", "tiers")
            self._check_keys(f"{where}.tiers[{i}]", tier, TierSettings)
            if isinstance(tier.get("error_cases"), str) and tier["error_cases"] != "told":
                values["tiers"][i] = tier | {"error_cases": self._resolve(tier["error_cases"])}
        if isinstance(values.get("policy"), str):
            values["policy"] = self._resolve(values["policy"])
        if isinstance(values.get("policies"), list):
            values["policies"] = [self._resolve(str(path)) for path in values["policies"]]
        if isinstance(values.get("labelled_queries"), str):
            values["labelled_queries"] = self._resolve(values["labelled_queries"])
        for key, cls in (("router", RouterSettings), ("bandit", BanditSettings), ("monitor", MonitorSettings)):
            if isinstance(values.get(key), dict):
                self._check_keys(f"{where}.{key}", values[key], cls)
        if isinstance(values.get("router"), dict) and isinstance(values["router"].get("file"), str):
            values["router"] = {**values["router"], "file": self._resolve(values["router"]["file"])}
        cascade = self._validate(CascadeSettings, values, where)
        seen: set[str] = set()
        known = model_names(models)
        for tier in cascade.tiers:
            if tier.model not in known:
                raise self._error(
                    f"{where} names the model {tier.model!r}, which is not there{_did_you_mean(tier.model, known)}; "
                    f"the models are {_listed(known)}",
                    tier.model,
                )
            name = tier.name or tier.model
            if name in seen:
                raise self._error(f"{where} has two tiers named {name!r}; keep one, or give one another name", "tiers")
            seen.add(name)
            if cascade.policy and tier.threshold is not None:
                raise self._error(
                    f"{where} has a policy and a threshold on {name!r}; the policy sets it: keep one", "tiers"
                )
        self._check_signals(where, cascade, known)
        if cascade.tiers[0].draft:
            raise self._error(f"{where}: the first tier has no earlier draft; remove draft = true", "draft")
        if cascade.commit == "answer" and "prefix_tokens" in table:
            raise self._error(f'{where} sets prefix_tokens, which needs commit = "prefix"', "prefix_tokens")
        return cascade

    def _check_signals(self, where: str, cascade: CascadeSettings, models: Iterable[str]) -> None:
        """What signals, router and bandit need besides their own keys."""
        names = [tier.name or tier.model for tier in cascade.tiers]
        for name, tier in zip(names, cascade.tiers, strict=True):
            if tier.judge is not None and tier.judge not in models:
                raise self._error(
                    f"{where}: the judge {tier.judge!r} of tier {name!r} is no model; the models are {_listed(models)}",
                    "judge",
                )
            if tier.judge is not None and tier.same_by != "entailment":
                raise self._error(f'{where}: tier {name!r} has a judge, which needs same_by = "entailment"', "judge")
            if cascade.commit == "prefix" and PAID_SIGNALS & set(tier.signals) and tier is not cascade.tiers[-1]:
                raise self._error(
                    f'{where}: commit = "prefix" judges the first tokens, and the signals of tier {name!r} need the '
                    "whole answer; keep one",
                    "commit",
                )
            if "similar_queries" in tier.signals and cascade.labelled_queries is None:
                raise self._error(f"{where}: similar_queries needs labelled_queries, a file of them", "signals")
            if "predicted_gain" in tier.signals and cascade.router is None:
                raise self._error(f"{where}: predicted_gain needs router, a table with its file", "signals")
        if (cascade.router or cascade.bandit) and len(names) < 2:
            raise self._error(f"{where} has one tier, so that there is nothing to choose; add one", "tiers")
        if cascade.router and cascade.bandit:
            raise self._error(f"{where} has a router and a bandit; keep one to choose the tier", "bandit")
        for role in ("weak", "strong") if cascade.router else ():
            named = getattr(cascade.router, role)
            if named is not None and named not in names:
                raise self._error(f"{where}.router.{role} is {named!r}, no tier; the tiers are {_listed(names)}", role)

    # --- checking and saying ---

    @property
    def _file_name(self) -> str:
        return self._file.name if self._file else "found"

    def _resolve(self, path: str) -> Path:
        """Relative paths are relative to the file that names them."""
        found = Path(path).expanduser()
        return found if self._file is None else self._file.parent.absolute() / found

    def _validate(self, cls: type[_SectionT], values: Mapping[str, Any], where: str) -> _SectionT:
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            problem = exc.errors(include_url=False)[0]
        keys = [str(part) for part in problem["loc"]]
        name = ".".join([where, *keys])
        if problem["type"] == "missing":
            raise self._error(f"{name} is missing; set it", where)
        said = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        shown = "" if "headers" in keys else f", not {problem['input']!r}"
        source = self._origins.get(name) or (f"${_variable(where, keys[0])}" if self._is_from_env(where, keys) else "")
        raise self._error(
            f"{name} {said}{shown}" + (f" (from {source})" if source else ""), keys[-1] if keys else where
        )

    def _is_from_env(self, where: str, keys: list[str]) -> bool:
        return bool(keys) and where in Settings.SECTIONS and bool(self._env.get(_variable(where, keys[0])))

    def _check_keys(self, where: str, table: Mapping[str, Any], cls: type[_Section]) -> None:
        for key in table:
            if key not in cls.model_fields:
                raise self._unknown(key, cls.model_fields, what="key", where=where)

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.:/@-]*", name):
            raise self._error(f"{name!r} is no name for a model or cascade; use letters, digits and . _ - : /", name)

    def _unknown(self, name: str, valid: Iterable[str], *, what: str, where: str = "") -> ConfigError:
        valid = list(valid)
        place = f" in [{where}]" if where else ""
        hint = " (keys are not written into the file: name their variable)" if name in {"api_key", "key"} else ""
        text = f"unknown {what} {name!r}{place}{_did_you_mean(name, valid)}; valid {what}s: {', '.join(valid)}{hint}"
        return self._error(text, name)

    def _error(self, text: str, key: str) -> ConfigError:
        if self._file is None:
            is_word = text.split(" ", 1)[0].isalpha()
            return ConfigError(f"{text[0].upper() if is_word else text[0]}{text[1:]}.")
        line = _line_of(key, self._text)
        place = f"{str(self._file)!r}, line {line}" if line else repr(str(self._file))
        return ConfigError(f"{place}: {text}.")


def _find_file(path: str | Path | None, env: Mapping[str, str]) -> Path | None:
    named = path or env.get("NEARFAR_CONFIG")
    if named:
        file = Path(named).expanduser()
        if not file.is_file():
            origin = "" if path else " (from $NEARFAR_CONFIG)"
            raise ConfigError(f"There is no config file {str(file)!r}{origin}. Write one: nearfar init.")
        return file
    return next((file for file in (Path(FILE_NAME), user_config_path(env)) if file.is_file()), None)


def _check_variables(env: Mapping[str, str]) -> None:
    """Refuses NEARFAR_ variables that look like a misspelt setting; others may belong to somebody else."""
    valid = [_variable(name, key) for name, cls in Settings.SECTIONS.items() for key in cls.model_fields]
    valid = [*_FREE_VARIABLES, *(name for name in valid if name != "NEARFAR_DATA_DIR")]
    sections = tuple(f"NEARFAR_{name.upper()}_" for name in Settings.SECTIONS)
    for name in env:
        if not name.startswith("NEARFAR_") or name in valid:
            continue
        if name.startswith(sections) or difflib.get_close_matches(name, valid, 1, 0.85):
            raise ConfigError(f"Unknown variable ${name}{_did_you_mean(name, valid)}; valid ones: {', '.join(valid)}.")


def _variable(section: str, key: str) -> str:
    return f"NEARFAR_{section}_{key}".upper()


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _user_folder(env: Mapping[str, str], kind: Literal["config", "data"]) -> Path:
    """The platform's folder for a user's files of this kind (XDG base directories on Linux)."""
    home = Path(env.get("HOME") or env.get("USERPROFILE") or Path.home())
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "nearfar"
    if sys.platform == "win32":
        return Path(env.get("LOCALAPPDATA") or home / "AppData" / "Local") / "nearfar"
    if kind == "config":
        return Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "nearfar"
    return Path(env.get("XDG_DATA_HOME") or home / ".local" / "share") / "nearfar"


def _near_first(models: Mapping[str, ModelSettings]) -> list[str]:
    return sorted(models, key=lambda name: placement(models[name]) == "far")  # stable: the file's order otherwise


def model_names(models: Mapping[str, ModelSettings]) -> list[str]:
    """What a cascade or a query may name: every model, its LoRA adapters as MODEL+ADAPTER, its widths as MODEL@BITS."""
    widths = (
        f"{name}@{bits}" for name, model in models.items() if isinstance(model, VllmSettings) for bits in model.widths
    )
    adapters = (
        f"{name}+{lora}"
        for name, model in models.items()
        if isinstance(model, LlamaCppSettings | VllmSettings)
        for lora in model.loras
    )
    return [*models, *adapters, *widths]


def placement(model: ModelSettings) -> Placement:
    """Where the model runs."""
    return "near" if isinstance(model, LlamaCppSettings | VllmSettings) else model.placement


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _did_you_mean(name: object, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(valid), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _line_of(key: str, text: str) -> int | None:
    """The only line that sets `key` or opens its table; None where there is none or several."""
    name = re.escape(key)
    pattern = re.compile(rf"""^\s*(?:["']?{name}["']?\s*=|\[[^\]]*\b{name}["']?\s*\])""")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]
    return lines[0] if len(lines) == 1 else None


def _compact(value: Any) -> Any:
    """The value without what its tables leave unset."""
    if isinstance(value, dict):
        return {key: _compact(inner) for key, inner in value.items() if inner is not None and inner is not False}
    return [_compact(inner) for inner in value] if isinstance(value, list) else value


def _describe(settings: Settings) -> Iterator[Setting]:
    groups: dict[str, BaseModel] = {f"models.{name}": model for name, model in settings.models.items()}
    groups |= {f"cascades.{name}": cascade for name, cascade in settings.cascades.items()}
    groups |= {f"routers.{name}": router for name, router in settings.routers.items()}
    groups |= {f"embedders.{name}": embedder for name, embedder in settings.embedders.items()}
    groups |= {f"agents.{name}": agent for name, agent in settings.agents.items()}
    groups |= {name: getattr(settings, name) for name in Settings.SECTIONS}
    for where, section in groups.items():
        values = section.model_dump(mode="json")
        if isinstance(section, CascadeSettings):  # a tier shows what it was told
            values["tiers"] = [tier.model_dump(mode="json", exclude_defaults=True) for tier in section.tiers]
        for key, value in values.items():
            name = f"{where}.{key}"
            yield Setting(name, _compact(value), settings.origins.get(name, "default"))
        model = where.removeprefix("models.")
        if model in settings.model_keys:
            yield Setting(f"{where}.api_key", "**********", settings.origins[f"{where}.api_key"])
        elif model in settings.missing_keys:
            yield Setting(f"{where}.api_key", None, f"${settings.missing_keys[model]} is not set")
    if settings.gateway_keys:
        yield Setting("gateway.keys", ["**********"] * len(settings.gateway_keys), "$NEARFAR_API_KEYS")
