"""The models of the config: what each kind of them takes, and which there are where no file names any."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr

from nearfar.errors import ConfigError
from nearfar.types import Modality, Placement

from .source import Section, Source

OPENAI_URL = "https://api.openai.com/v1"
DEFAULT_WEIGHTS = "smollm2"
#: The far models taken from a bare key, where NEARFAR_FAR_MODEL names no other: much stronger than the embedded one,
#: priced in the catalogue, and they take every decoding option that `nearfar ask` has.
DEFAULT_OPENAI_MODEL = "gpt-4.1"
DEFAULT_ANTHROPIC_MODEL = "claude-sonnet-4-5"


class PriceSettings(Section):
    """US dollars per million tokens."""

    prompt_usd_per_mtok: float = Field(ge=0)
    completion_usd_per_mtok: float = Field(ge=0)
    cached_prompt_usd_per_mtok: float | None = Field(default=None, ge=0)


class _ModelSettings(Section):
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


def read_models(source: Source, tables: Mapping[str, Any] | None) -> dict[str, ModelSettings]:
    """The models of [models], or those that are found where it names none.

    Raises:
        ConfigError: a table is wrong.
    """
    origin = None if tables else "found"
    return {
        name: _model(source, name, where, table)
        for name, where, table in source.named("models", tables or found_models(source.env), origin=origin)
    }


def read_model_keys(source: Source, models: Mapping[str, ModelSettings]) -> tuple[dict[str, SecretStr], dict[str, str]]:
    """The models' keys, and by model the variables that hold none.

    Raises:
        ConfigError: a variable is not set, and the source needs keys.
    """
    keys: dict[str, SecretStr] = {}
    missing: dict[str, str] = {}
    for name, model in models.items():
        if not isinstance(model, OpenAISettings | AnthropicSettings | VllmSettings):
            continue
        variable = model.api_key_env
        if variable is None and isinstance(model, OpenAISettings) and model.url.rstrip("/") == OPENAI_URL:
            variable = "OPENAI_API_KEY"
        if variable is None:
            continue
        key = source.secret(variable)
        if key is not None:
            keys[name] = key
            source.origins[f"models.{name}.api_key"] = f"${variable}"
        elif source.needs_keys:
            raise source.error(
                f"Model {name!r} takes its key from ${variable}, which is not set; set it, or remove [models.{name}]",
                variable,
            )
        else:
            missing[name] = variable
    return keys, missing


def _model(source: Source, name: str, where: str, table: Mapping[str, Any]) -> ModelSettings:
    _, cls = source.chosen(where, name, table, _KINDS)
    source.check_keys(where, table, cls)
    values = source.with_paths(table, "path", "table")
    if isinstance(values.get("loras"), dict):
        values["loras"] = {lora: source.resolve(str(path)) for lora, path in values["loras"].items()}
    if cls is VllmSettings:
        for key in ("model", "draft"):
            if isinstance(values.get(key), str):
                values[key] = _folder_or_name(source, values[key])
        if str(values.get("model", "")).endswith(".gguf"):
            cls, values = LlamaCppSettings, _for_llama_cpp(source, where, values)
    model: ModelSettings = source.validate(cls, values, where)
    if model.passage_tokens is not None and model.docs is None:
        raise source.error(f"{where}.passage_tokens is of passages; name their collection: docs", "passage_tokens")
    if isinstance(model, VllmSettings) and model.api_key_env and not model.url:
        raise source.error(
            f"{where}.api_key_env needs url; a server that nearfar starts gets a key of its own", "api_key_env"
        )
    if isinstance(model, LlamaCppSettings):
        if model.path and model.weights:
            raise source.error(f"{where} has both path and weights; keep one", "weights")
        if not model.path and not model.weights:
            model = model.model_copy(update={"weights": DEFAULT_WEIGHTS})
    url = model.url if isinstance(model, OpenAISettings | AnthropicSettings | VllmSettings) else None
    if url is not None and not re.match(r"https?://[^/\s]", url):
        raise source.error(f"{where}.url must begin with http:// or https://, not {url!r}", "url")
    return model


def _folder_or_name(source: Source, model: str) -> str:
    """A folder or file by its whole path; a hub's name as it is."""
    path = source.resolve(model)
    return str(path) if model.startswith((".", "/", "~")) or path.exists() else model


def _for_llama_cpp(source: Source, where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a GGUF that was given to vLLM, for llama.cpp."""
    for key in values:
        if key not in LlamaCppSettings.model_fields and key != "model":
            raise source.error(f"{where}.model is a GGUF, which llama.cpp runs without {key!r}; remove it", key)
    others = {key: value for key, value in values.items() if key != "model"}
    return {**others, "kind": "llama.cpp", "path": source.resolve(values["model"])}
