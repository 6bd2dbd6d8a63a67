"""The models of the settings: each kind is imported when one of it is named, and wrapped as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from nearfar.config import Settings
from nearfar.config.models import (
    AnthropicSettings,
    LlamaCppSettings,
    ModelSettings,
    OpenAISettings,
    PythonSettings,
    ReplaySettings,
    VllmSettings,
    placement,
)
from nearfar.models.budget import Budget, Budgeted
from nearfar.models.cache import Cached
from nearfar.models.catalogue import ModelFacts, find
from nearfar.models.circuit_breaker import CircuitBroken
from nearfar.models.deadline import Deadline
from nearfar.models.limits import Limited
from nearfar.models.retry import Retried
from nearfar.models.wrapper import Wrapper
from nearfar.store import Store
from nearfar.types import FREE, ChatModel, Price

from .engines import engine_spec, open_fleet

if TYPE_CHECKING:
    from nearfar.serving.engine.fleet import Fleet


def build_models(settings: Settings, store: Store, budget: Budget | None) -> Iterator[tuple[ModelSettings, ChatModel]]:
    """Every model, adapter and width inside its wrappers, with the settings that it is of.

    Args:
        settings: which models there are.
        store: of their caches.
        budget: that far ones are held to; None: there is none.

    Raises:
        ConfigError: a file that one needs is missing.
        DataError: a table cannot be used.
    """
    fleet = open_fleet(settings)
    for name, told in settings.models.items():
        for model in _with_adapters(build_model(settings, name, fleet), told, fleet):
            yield told, _wrapped(model, told, store, budget)


def build_model(settings: Settings, name: str, fleet: Fleet | None = None) -> ChatModel:
    """The model of this name, without any wrapper.

    Args:
        settings: which models there are.
        name: which one to build.
        fleet: the vLLM servers; None: opened for this model alone.

    Raises:
        ConfigError: a file that it needs is missing.
        DataError: its table cannot be used.
    """
    model = settings.models[name]
    key = settings.model_keys.get(name)
    api_key = key.get_secret_value() if key else None
    match model:
        case LlamaCppSettings():
            return _llama_cpp(name, model)
        case VllmSettings():
            return _vllm(name, model, fleet or open_fleet(settings))
        case OpenAISettings():
            return _openai(name, model, api_key)
        case AnthropicSettings():
            return _anthropic(name, model, api_key)
        case ReplaySettings():
            return _replay(name, model)
        case PythonSettings():
            return _python(name, model, settings.path)
        case _:
            assert_never(model)


def _llama_cpp(name: str, model: LlamaCppSettings) -> ChatModel:
    from nearfar.models.llama_cpp import LlamaCppModel

    return LlamaCppModel(
        weights_path(model),
        name=name,
        context_window=model.context_window,
        parallel=model.parallel,
        threads=model.threads,
        max_output_tokens=model.max_output_tokens,
        temperature=model.temperature,
        loras=model.loras,
        price=_given_price(model) or FREE,
    )


def _vllm(
    name: str, model: VllmSettings, fleet: Fleet | None, adapter: str | None = None, bits: int | None = None
) -> ChatModel:
    from nearfar.serving.engine.model import EngineModel

    assert fleet is not None  # there is this model
    asked = bits or max(model.widths, default=None)
    return EngineModel(
        fleet,
        name,
        adapter=adapter,
        name=None if bits is None else f"{name}@{bits}",
        extra=None if asked is None else {"vllm_xargs": {"bits": asked}},
        served=None if model.url is None else adapter or model.model,
        max_output_tokens=model.max_output_tokens,
        price=_given_price(model) or FREE,
        max_queue=model.max_queue,
        read_timeout_s=model.read_timeout_s,
    )


def _openai(name: str, model: OpenAISettings, api_key: str | None) -> ChatModel:
    from nearfar.models.openai_wire import OpenAIWireModel

    entry = find(model.model, url=model.url)
    return OpenAIWireModel(
        name=name,
        url=model.url,
        model=model.model,
        placement=model.placement,
        api_key=api_key,
        headers={header: value.get_secret_value() for header, value in model.headers.items()},
        context_window=model.context_window or (entry.context_window if entry else None),
        max_output_tokens=model.max_output_tokens or (entry.max_output_tokens if entry else None),
        price=_price(model, entry),
        supports_logprobs=model.supports_logprobs,
        supports_tools=model.supports_tools,
        supports_json_schema=model.supports_json_schema,
        supports_grammar=model.supports_grammar,
        modalities=model.modalities,
        max_tokens_field=model.max_tokens_field,
        connect_timeout_s=model.connect_timeout_s,
        read_timeout_s=model.read_timeout_s,
    )


def _anthropic(name: str, model: AnthropicSettings, api_key: str | None) -> ChatModel:
    from nearfar.models.anthropic_wire import AnthropicWireModel

    entry = find(model.model, url=model.url)
    return AnthropicWireModel(
        name=name,
        model=model.model,
        api_key=api_key or "",
        url=model.url,
        placement=model.placement,
        context_window=model.context_window or (entry.context_window if entry else None),
        max_output_tokens=model.max_output_tokens,
        price=_price(model, entry),
    )


def _replay(name: str, model: ReplaySettings) -> ChatModel:
    from nearfar.models.replay import OutcomeTable, ReplayModel

    entry = find(model.model)
    return ReplayModel(
        OutcomeTable.load(model.table, model.columns),
        name=name,
        model=model.model,
        placement=model.placement,
        price=_price(model, entry),
        context_window=model.context_window or (entry.context_window if entry else None),
    )


def _python(name: str, model: PythonSettings, config: Path | None) -> ChatModel:
    from nearfar.models.python_model import PythonModel, load_callable

    folder = config.absolute().parent if config else Path()
    return PythonModel(
        load_callable(model.callable, folder),
        name=name,
        placement=model.placement,
        price=_price(model, None),
    )


def _with_adapters(built: ChatModel, model: ModelSettings, fleet: Fleet | None) -> Iterator[ChatModel]:
    """The model, each of its LoRA adapters, and each width of nested weights: the same weights in the same memory."""
    yield built
    if isinstance(model, VllmSettings):
        for bits in model.widths:
            yield _vllm(built.card.name, model, fleet, bits=bits)
        for lora in model.loras:
            yield _vllm(built.card.name, model, fleet, lora)
    if isinstance(model, LlamaCppSettings) and model.loras:
        from nearfar.models.llama_cpp import LlamaCppModel

        assert isinstance(built, LlamaCppModel)
        for lora in model.loras:
            yield built.with_lora(lora)


def weights_path(model: LlamaCppSettings) -> Path:
    """The model's GGUF file: where it is, or where it would be once it has been fetched."""
    from nearfar.models import weights

    if model.path:
        return model.path
    name = model.weights or ""
    cache_dir = weights.default_cache_dir()
    return weights.find(name, cache_dir) or cache_dir / "weights" / name


class _Unfetched(Wrapper):
    """A model whose weights are known by name and not on this machine: it says how to get them."""

    def __init__(self, inner: ChatModel, weights: str) -> None:
        super().__init__(inner)
        self._reason = f"its weights are not on this machine; fetch them: nearfar models get {weights}"

    def unavailable(self) -> str | None:
        """How to get the weights; the model takes them at the next start."""
        return self._reason


def _wrapped(model: ChatModel, settings: ModelSettings, store: Store, budget: Budget | None) -> ChatModel:
    """The model inside the wrappers that its settings ask for, the cache outermost."""
    is_remote = isinstance(settings, OpenAISettings | AnthropicSettings)
    if isinstance(settings, LlamaCppSettings) and settings.weights and not weights_path(settings).is_file():
        model = _Unfetched(model, settings.weights)
    if settings.timeout_s is not None:
        model = Deadline(model, settings.timeout_s)
    if settings.concurrency is not None or settings.requests_per_minute is not None:
        model = Limited(model, settings.concurrency, settings.requests_per_minute)
    if is_remote:
        model = CircuitBroken(model)  # not around engines, which are mended while their requests wait
    if is_remote or isinstance(settings, VllmSettings):
        model = Retried(model, settings.attempts) if settings.attempts > 1 else model
    if budget is not None and model.card.price != FREE:
        model = Budgeted(model, budget)
    if settings.cache_ttl_s is not None:
        ttl_s = None if isinf(settings.cache_ttl_s) else settings.cache_ttl_s
        model = Cached(model, store, ttl_s, identity=_identity(settings))
    return model


def _identity(settings: ModelSettings) -> str:
    """What tells the model from another that had its name before."""
    match settings:
        case LlamaCppSettings():
            return f"{settings.path or settings.weights} {sorted(settings.loras.items())}"
        case OpenAISettings() | AnthropicSettings():
            return f"{settings.url} {settings.model}"
        case VllmSettings():
            return engine_spec("", settings).fingerprint
        case ReplaySettings():
            return f"{settings.table} {settings.model}"
        case PythonSettings():
            return settings.callable
        case _:
            assert_never(settings)


def _given_price(model: ModelSettings) -> Price | None:
    return Price(**model.price.model_dump()) if model.price else None


def _price(model: ModelSettings, entry: ModelFacts | None) -> Price | None:
    """The config's price, or the catalogue's; near models are free unless the config says otherwise."""
    given = _given_price(model)
    if given is not None or placement(model) == "near":
        return given or FREE
    return entry.price if entry else None
