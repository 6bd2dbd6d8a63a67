"""Builds everything that the settings describe, and nothing else: each kind of model is imported when one is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from nearfar.config import (
    AnthropicSettings,
    CascadeSettings,
    LlamaCppSettings,
    ModelSettings,
    OpenAISettings,
    PythonSettings,
    ReplaySettings,
    Settings,
    TierSettings,
    placement,
    read_keys,
)
from nearfar.errors import ConfigError
from nearfar.models.budget import BUDGETS, Budget, Budgeted
from nearfar.models.cache import CACHE, Cached
from nearfar.models.catalogue import ModelFacts, find
from nearfar.models.circuit_breaker import CircuitBroken
from nearfar.models.deadline import Deadline
from nearfar.models.limits import Limited
from nearfar.models.retry import Retried
from nearfar.models.wrapper import Wrapper
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.policies import Policy
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.store import Store
from nearfar.types import FREE, ChatModel, Price, Scorer

if TYPE_CHECKING:
    from nearfar.serving.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class Wired:
    """What `build` made; close it when done."""

    settings: Settings
    store: Store
    log: SqliteDecisionLog
    models: Mapping[str, ChatModel]
    cascades: Mapping[str, Cascade]
    router: Router
    budget: Budget | None  # None: no limit was set

    async def aclose(self) -> None:
        """Closes the models, then the store. Twice is fine."""
        await self.router.aclose()
        self.store.close()


def build(settings: Settings) -> Wired:
    """The router, its models, and the log that it writes to.

    Raises:
        ConfigError: a file that a setting names is missing, or a policy does not fit its cascade.
        DataError: the store, a table or a policy cannot be used.
    """
    store = open_store(settings)
    try:
        log = open_log(settings, store)
        limit = settings.budget.limit_usd
        budget = None if limit is None else Budget(store, name="all", limit_usd=limit, period=settings.budget.period)
        models = {
            built.card.name: _wrapped(built, model, store, budget)
            for name, model in settings.models.items()
            for built in _with_adapters(build_model(settings, name), model)
        }
        cascades = {name: _cascade(name, cascade, models) for name, cascade in settings.cascades.items()}
        return Wired(settings, store, log, models, cascades, Router(cascades, models, log=log), budget)
    except BaseException:
        store.close()
        raise


def open_store(settings: Settings) -> Store:
    """The store that the settings name, with every table."""
    return Store(settings.store_path, [DECISIONS, CACHE, BUDGETS])


def open_log(settings: Settings, store: Store) -> SqliteDecisionLog:
    """The decision log in the store."""
    return SqliteDecisionLog(store, text=settings.decisions.text, retention_days=settings.decisions.retention_days)


def build_model(settings: Settings, name: str) -> ChatModel:
    """The model of this name, without any wrapper.

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


def _with_adapters(built: ChatModel, model: ModelSettings) -> Iterator[ChatModel]:
    """The model, and each of its LoRA adapters on the same weights in the same memory."""
    yield built
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


def gateway_settings(settings: Settings) -> GatewaySettings:
    """What `nearfar serve` is told, with the hashes of every key that it takes.

    Raises:
        ConfigError: a key is too short, or the address is beyond loopback and there is no key.
    """
    from nearfar.serving.gateway.keys import hash_key
    from nearfar.serving.gateway.settings import GatewaySettings

    hashes = [hash_key(key.get_secret_value()) for key in settings.gateway_keys]
    return GatewaySettings(
        **settings.gateway.model_dump(), key_hashes=(*hashes, *(key.sha256 for key in read_keys(settings.keys_path)))
    )


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
        model = CircuitBroken(model)
        if settings.attempts > 1:
            model = Retried(model, settings.attempts)
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


def _cascade(name: str, settings: CascadeSettings, models: Mapping[str, ChatModel]) -> Cascade:
    default = Policy.load(settings.policy) if settings.policy else None
    variants: dict[str, Cascade] = {}
    for policy in [*([default] if default else []), *map(Policy.load, settings.policies)]:
        if policy.name in variants:
            raise ConfigError(f"Cascade {name!r} has two policies named {policy.name!r}; rename one.")
        variants[policy.name] = _with_policy(name, settings, models, policy)
    return replace(_with_policy(name, settings, models, default), variants=variants)


def _with_policy(
    name: str, settings: CascadeSettings, models: Mapping[str, ChatModel], policy: Policy | None
) -> Cascade:
    names = [tier.name or tier.model for tier in settings.tiers]
    strangers = sorted(set(policy.tiers) - set(names)) if policy else []
    if policy and strangers:
        raise ConfigError(
            f"The policy {policy.label!r} has a tier {strangers[0]!r}, which cascade {name!r} has not; it has "
            f"{', '.join(map(repr, names))}. Rename the tier, or fit another policy: nearfar calibrate."
        )
    last = len(names) - 1
    tiers = [_tier(tier, models[tier.model], policy, is_last=i == last) for i, tier in enumerate(settings.tiers)]
    label = policy.label if policy else "uncalibrated"
    return Cascade(tuple(tiers), name, commit=settings.commit, prefix_tokens=settings.prefix_tokens, policy=label)


def _tier(settings: TierSettings, model: ChatModel, policy: Policy | None, *, is_last: bool) -> Tier:
    """The tier with its policy's scorer, or the uncalibrated one.

    The last tier's score decides nothing: it is shown where it is free to have, and a far server is not asked for
    log-probabilities that it may not give.
    """
    name = settings.name or settings.model
    scorer: Scorer | None = None
    threshold, accepts_nothing = settings.threshold, False
    if policy and name in policy.tiers:
        fitted = policy.tier(name, model=settings.model)
        scorer, threshold, accepts_nothing = fitted.scorer, fitted.threshold, fitted.accepts_nothing
    elif not is_last or model.card.placement == "near":
        scorer = MeanProbability()
    return Tier(
        model,
        name=name,
        scorer=scorer,
        threshold=threshold,
        accepts_nothing=accepts_nothing,
        wants_draft=settings.draft,
        deadline_s=settings.deadline_s,
    )
