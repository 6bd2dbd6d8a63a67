"""Builds everything that the settings describe, and nothing else: each kind of model is imported when one is named."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

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
from nearfar.config.cascades import CascadeSettings, MonitorSettings, TierSettings
from nearfar.config.keys import read_keys
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
from nearfar.config.retrieval import (
    BUILT_IN_EMBEDDERS,
    LlamaCppEmbedderSettings,
    OpenAIEmbedderSettings,
    SentenceTransformersSettings,
)
from nearfar.config.token_routers import TokenRouterSettings
from nearfar.errors import ConfigError, RequestError
from nearfar.models.budget import BUDGETS, Budget, Budgeted
from nearfar.models.cache import CACHE, Cached
from nearfar.models.catalogue import ModelFacts, find
from nearfar.models.circuit_breaker import CircuitBroken
from nearfar.models.deadline import Deadline
from nearfar.models.limits import Limited
from nearfar.models.retry import Retried
from nearfar.models.wrapper import Wrapper
from nearfar.retrieval.error_store import ERROR_CASES, SqliteErrorCases
from nearfar.retrieval.memory import MEMORY
from nearfar.router.cascade import Cascade, Chooser, Tier
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.learning import LEARNING, Learner, Learning, LiveBandit, LiveMonitor, Watch
from nearfar.router.outcomes import OutcomeLog
from nearfar.router.policies import Policy
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability, StatedProbability
from nearfar.store import Store
from nearfar.types import (
    FREE,
    ChatModel,
    Decision,
    Embedder,
    ErrorCase,
    ErrorCases,
    Price,
    Query,
    Reranker,
    Scorer,
    ToolSpec,
)

if TYPE_CHECKING:
    from nearfar.agents.checkpoints import RunStore
    from nearfar.agents.graph_agent import Graph, GraphAgent
    from nearfar.agents.roles import Role
    from nearfar.agents.types import ToolSource
    from nearfar.retrieval.collection import Collection
    from nearfar.retrieval.library import Library
    from nearfar.retrieval.memory import SqliteMemory
    from nearfar.retrieval.postgres import PostgresMemory
    from nearfar.retrieval.writing import CollectionWriter
    from nearfar.router.functional_tokens.chooser import FunctionalTokens
    from nearfar.router.functional_tokens.graph import WorkerGraph
    from nearfar.router.predictive import PredictiveRouter
    from nearfar.router.recall import Recall
    from nearfar.router.sampled_signals import Probe
    from nearfar.serving.engine.fleet import Fleet
    from nearfar.serving.engine.spec import EngineSpec
    from nearfar.serving.gateway.agent_runs import AgentsDoor
    from nearfar.serving.gateway.app import Door
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
    learning: Learning
    outcomes: OutcomeLog
    library: Library | None = None  # what models answer from; None: none does
    memory: SqliteMemory | PostgresMemory | None = None  # in front of the cascades; None: there is none
    documents: Library | _Documents | None = None  # what queries are answered from

    async def aclose(self) -> None:
        """Closes the models, then the store. Twice is fine."""
        await self.router.aclose()
        if self.library is not None:
            self.library.close()
        if self.documents is not None:
            self.documents.close()
        if self.memory is not None:
            self.memory.close()
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
        library = open_library(settings) if any(model.docs for model in settings.models.values()) else None
        fleet = open_fleet(settings)
        models = {
            built.card.name: _grounded(_wrapped(built, model, store, budget), model, library)
            for name, model in settings.models.items()
            for built in _with_adapters(build_model(settings, name, fleet), model, fleet)
        }
        learning = open_learning(settings, store)
        cascades = {
            name: _Cascades(name, cascade, settings, models, learning, store).build()
            for name, cascade in settings.cascades.items()
        }
        cascades |= {name: _token_router(name, router, models) for name, router in settings.routers.items()}
        outcomes = OutcomeLog(store, log, learning)
        memory = open_memory(settings, store) if settings.memory.enabled else None
        recall = open_recall(settings, memory, library)
        documents = library or _Documents(settings)
        router = Router(
            cascades,
            models,
            log=log,
            outcomes=outcomes,
            learning=learning,
            recall=recall,
            library=documents,
        )
        return Wired(
            settings, store, log, models, cascades, router, budget, learning, outcomes, library, memory, documents
        )
    except BaseException:
        store.close()
        raise


def open_store(settings: Settings) -> Store:
    """The store that the settings name, with every table."""
    return Store(settings.store_path, [DECISIONS, CACHE, BUDGETS, LEARNING, MEMORY, ERROR_CASES])


async def keep_mistake(settings: Settings, store: Store, decision: Decision, *, right: str, reason: str = "") -> None:
    """Keeps the decision's answer as a mistake, for tiers of its cascade that are shown those that were told.

    Args:
        settings: name the cascade.
        store: of `open_store`.
        decision: whose answer was wrong.
        right: what would have been right.
        reason: why it was wrong, in words.

    Raises:
        RequestError: the decision is no cascade's, or the log kept no text of it.
        ConfigError: the cascade's embedder is not here.
        DataError: the store cannot be written.
    """
    from nearfar.retrieval.embedders import find_embedder
    from nearfar.router.replay import asked

    cascade = settings.cascades.get(decision.target)
    if cascade is None:
        raise RequestError(
            f"The decision {decision.id!r} was asked of {decision.target!r}, which is no cascade; mistakes are shown "
            "to the tiers of a cascade.",
            param="id",
        )
    question = asked(decision)
    wrong = next((step.text for step in reversed(decision.steps) if step.tier == decision.tier), "")
    if question is None or not wrong or settings.decisions.text != "keep":
        raise RequestError(
            f"The log has no text of the decision {decision.id!r}, so its mistake cannot be shown to anybody; set "
            'decisions.text = "keep".',
            param="id",
        )
    cases = SqliteErrorCases(store, find_embedder(cascade.embedder), decision.target)
    await cases.add([ErrorCase(question, wrong, right, reason, decision.model or "")])


def _grounded(model: ChatModel, settings: ModelSettings, library: Library | None) -> ChatModel:
    """The model, answering from the collection that its settings name."""
    if settings.docs is None or library is None:
        return model
    from nearfar.retrieval.grounded_model import GroundedModel
    from nearfar.retrieval.grounding import Grounding

    name = settings.docs
    return GroundedModel(
        Grounding(library.retriever(name), model, **_compressed(settings.passage_tokens)),
        versions=lambda sources: {f"{name}:{s}": version for s, version in library.versions(name, sources).items()},
        check=partial(library.check_privacy, name),
    )


def open_recall(
    settings: Settings, memory: SqliteMemory | PostgresMemory | None, library: Library | None = None
) -> Recall | None:
    """What puts the memory in front of the cascades; None where there is none."""
    if memory is None:
        return None
    from nearfar.router.recall import Recall

    if library is None:
        return Recall(memory, per_user=settings.memory.per_user)
    from nearfar.retrieval.verified import VerifiedMemory

    return Recall(VerifiedMemory(memory, partial(_versions, library)), per_user=settings.memory.per_user)


def _versions(library: Library, sources: Iterable[str]) -> dict[str, str]:
    """The present versions of sources named COLLECTION:SOURCE."""
    by_collection: dict[str, list[str]] = {}
    for name in sources:
        collection, _, source = name.partition(":")
        by_collection.setdefault(collection, []).append(source)
    return {
        f"{collection}:{source}": version
        for collection, named in by_collection.items()
        for source, version in library.versions(collection, named).items()
    }


def open_memory(settings: Settings, store: Store) -> SqliteMemory | PostgresMemory:
    """The answers given before, where the config keeps them.

    Raises:
        ConfigError: its embedder, or nearfar[postgres], is not here.
        DataError: its policy or its database cannot be used.
    """
    from nearfar.retrieval.matching import MatchPolicy

    memory = settings.memory
    embedder = build_embedder(settings, memory.embedder)
    assert embedder is not None  # the config refuses "none"
    policy = None if memory.policy is None else MatchPolicy.load(memory.policy)
    ttl_s = None if isinf(memory.ttl_s) else memory.ttl_s
    if settings.memory_url is not None:
        from nearfar.retrieval.postgres import PostgresMemory

        url = settings.memory_url.get_secret_value()
        return PostgresMemory(url, embedder, policy=policy, ttl_s=ttl_s, max_memos=memory.max_memos)
    from nearfar.retrieval.memory import SqliteMemory

    return SqliteMemory(store, embedder, policy=policy, ttl_s=ttl_s, max_memos=memory.max_memos)


def gateway_doors(settings: Settings) -> dict[str, Door]:
    """What `nearfar serve` takes besides queries: texts to embed and documents to rerank."""
    from nearfar.serving.gateway.embeddings import EmbeddingsDoor
    from nearfar.serving.gateway.rerank import RerankDoor

    names = [*BUILT_IN_EMBEDDERS, *settings.embedders]
    chosen = settings.retrieval.embedder if settings.retrieval.embedder in names else "static"
    return {
        "/v1/embeddings": EmbeddingsDoor(names, chosen, partial(_found_embedder, settings)),
        "/v1/rerank": RerankDoor(["hybrid", *names], "hybrid", partial(_reranker, settings, chosen)),
    }


def gateway_agents(wired: Wired, gateway: GatewaySettings) -> AgentsDoor | None:
    """What `nearfar serve` does for the config's agents; None: there are none."""
    from nearfar.agents.types import Limits
    from nearfar.serving.gateway.agent_runs import AgentCard, AgentsDoor

    agents = wired.settings.agents
    if not agents:
        return None
    cards = {
        name: AgentCard(
            agent.kind,
            agent.model,
            {role: told.model for role, told in agent.roles.items()},
            tuple(agent.tools),
            Limits(agent.steps, agent.seconds, agent.tokens, agent.usd, agent.repeats),
        )
        for name, agent in agents.items()
    }
    return AgentsDoor(
        cards,
        partial(open_runs, wired.settings),
        lambda name, store: open_agent(wired, agents[name], name, store),
        wired.log,
        gateway,
    )


def _found_embedder(settings: Settings, name: str) -> Embedder:
    embedder = build_embedder(settings, name)
    assert embedder is not None  # "none" is no name that a request may give
    return embedder


def _reranker(settings: Settings, hybrid: str, name: str) -> Reranker:
    from nearfar.retrieval.passage_scores import CosineScores, HybridScores

    if name == "hybrid":
        return HybridScores(_found_embedder(settings, hybrid))
    return CosineScores(_found_embedder(settings, name))


def open_log(settings: Settings, store: Store) -> SqliteDecisionLog:
    """The decision log in the store."""
    return SqliteDecisionLog(store, text=settings.decisions.text, retention_days=settings.decisions.retention_days)


def open_learning(settings: Settings, store: Store) -> Learning:
    """Every bandit and monitor that the settings name, with what they have learned so far; no model is built.

    Raises:
        ConfigError: a policy is missing, or a bandit cannot be made.
        DataError: a policy or the store cannot be used.
    """
    learners: list[Learner] = []
    for name, cascade in settings.cascades.items():
        if cascade.bandit is not None:
            learners.append(_bandit(name, cascade))
        if cascade.monitor is not None:
            learners += _monitors(name, cascade, cascade.monitor)
    learning = Learning(store, learners)
    if learners:
        learning.load()
    return learning


def _bandit(name: str, cascade: CascadeSettings) -> LiveBandit:
    from nearfar.router.bandit import ThompsonBandit
    from nearfar.router.free_probes import QUERY_SIGNALS

    settings = cascade.bandit
    assert settings is not None
    unknown = [feature for feature in settings.features if feature not in QUERY_SIGNALS]
    if unknown:
        raise ConfigError(
            f"The bandit of cascade {name!r} reads {unknown[0]!r}; before any call there are "
            f"{', '.join(map(repr, QUERY_SIGNALS))}."
        )
    tiers = [tier.name or tier.model for tier in cascade.tiers]
    fresh = ThompsonBandit.over(
        tiers, settings.features, budget=settings.budget_usd, floor=settings.floor, rule=settings.rule
    )
    return LiveBandit(name, fresh)


def _monitors(name: str, cascade: CascadeSettings, settings: MonitorSettings) -> Iterator[LiveMonitor]:
    """A monitor per policy and tier, where there is anything to watch."""
    from nearfar.router.live import monitor

    policies: list[Policy | None] = [*_policies(name, cascade)]
    if cascade.policy is None:
        policies.append(None)
    num_watched = 0
    for policy in policies:
        for tier in cascade.tiers[:-1]:
            found = monitor(
                name,
                tier.name or tier.model,
                policy,
                alpha=settings.alpha,
                false_alarm_rate=settings.false_alarm_rate,
            )
            if found is not None:
                num_watched += 1
                yield found
    if not num_watched:
        raise ConfigError(
            f"The monitor of cascade {name!r} has nothing to watch: no policy promises anything of its tiers. Set "
            "alpha, the share of wrong answers to watch for, or fit a policy: nearfar calibrate."
        )


def _policies(name: str, cascade: CascadeSettings) -> list[Policy]:
    """The cascade's policies, the default one first."""
    policies = [Policy.load(path) for path in ([cascade.policy] if cascade.policy else []) + [*cascade.policies]]
    names = [policy.name for policy in policies]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise ConfigError(f"Cascade {name!r} has two policies named {twice!r}; rename one.")
    return policies


def open_fleet(settings: Settings) -> Fleet | None:
    """The vLLM servers that the settings name, none of them started; None where they name none."""
    named = {name: model for name, model in settings.models.items() if isinstance(model, VllmSettings)}
    if not named:
        return None
    from nearfar.serving.engine.engine import Address, Engine, Patience
    from nearfar.serving.engine.fleet import Fleet
    from nearfar.serving.engine.installation import find_vllm
    from nearfar.serving.engine.records import Records
    from nearfar.serving.engine.spec import GIB

    section = settings.engines
    find = cache(partial(find_vllm, section.python, allow_untested=section.allow_untested))
    engines = []
    for name, model in named.items():
        spec = engine_spec(name, model)
        spec.check()
        key = settings.model_keys.get(name)
        attach = None
        if model.url is not None:
            attach = Address(model.url.rstrip("/").removesuffix("/v1"), key.get_secret_value() if key else None)
        patience = Patience(start_s=model.start_timeout_s, drain_s=model.drain_timeout_s)
        engines.append(Engine(spec, home=settings.engines_path, find=find, patience=patience, attach=attach))
    budget = None if section.memory_gib is None else int(section.memory_gib * GIB)
    return Fleet(engines, records=Records(settings.engines_path), budget_bytes=budget)


def engine_spec(name: str, model: VllmSettings) -> EngineSpec:
    """What the server of a model is to be."""
    from nearfar.serving.engine.spec import GIB, EngineSpec

    return EngineSpec(
        name,
        model.model,
        revision=model.revision,
        quantization=model.quantization,
        dtype=model.dtype,
        context_window=model.context_window,
        loras=model.loras,
        draft=model.draft,
        draft_tokens=model.draft_tokens,
        memory_bytes=None if model.memory_gib is None else int(model.memory_gib * GIB),
        kv_cache_bytes=int(model.kv_cache_gib * GIB),
        gpu_share=model.gpu_share,
        threads=model.threads,
        port=model.port,
        is_attached=model.url is not None,
        tool_parser=model.tool_parser,
        trusts_remote_code=model.trust_remote_code,
        sleeps=model.sleep,
        widths=model.widths,
        arguments=model.arguments,
        environment=model.environment,
    )


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


def token_router(name: str, settings: TokenRouterSettings, model: ChatModel) -> FunctionalTokens:
    """The router of functional tokens that `model` chooses for.

    Raises:
        ConfigError: its workers make no graph, its policy is for others, or the model gives no log-probabilities.
        DataError: its policy cannot be read.
    """
    from nearfar.router.functional_tokens.chooser import FunctionalTokens
    from nearfar.router.functional_tokens.policy import TokenPolicy

    return FunctionalTokens(
        model,
        worker_graph(settings),
        name=name,
        style=settings.style,
        policy=TokenPolicy.load(settings.policy) if settings.policy else None,
        abstain_below=settings.abstain_below,
    )


def worker_graph(settings: TokenRouterSettings) -> WorkerGraph:
    """The router's workers, with a letter each where they have no label of their own.

    Raises:
        ConfigError: they make no graph.
    """
    from nearfar.router.functional_tokens.graph import Worker, WorkerGraph, free_labels

    given = [worker.label for worker in settings.workers.values() if worker.label is not None]
    free = iter(free_labels(given, len(settings.workers) - len(given)))
    workers = [
        Worker(name, told.description, next(free) if told.label is None else told.label, told.next)
        for name, told in settings.workers.items()
    ]
    return WorkerGraph(workers, settings.general)


def _token_router(name: str, settings: TokenRouterSettings, models: Mapping[str, ChatModel]) -> Cascade:
    from nearfar.router.functional_tokens.guide import TokenGuide

    tokens = token_router(name, settings, models[settings.model])
    return Cascade(
        tuple(
            Tier(models[told.model], name=worker, deadline_s=told.deadline_s)
            for worker, told in settings.workers.items()
        ),
        name,
        policy=tokens.policy.label if tokens.policy else "uncalibrated",
        guide=TokenGuide(tokens, rewrites=settings.rewrite, max_hops=settings.max_hops, explore=settings.explore),
    )


class _Cascades:
    """Builds one cascade of the settings, and its variants by policy."""

    def __init__(
        self,
        name: str,
        cascade: CascadeSettings,
        settings: Settings,
        models: Mapping[str, ChatModel],
        learning: Learning,
        store: Store,
    ) -> None:
        self._name = name
        self._cascade = cascade
        self._settings = settings
        self._models = models
        self._learning = learning
        self._store = store
        self._embedder: Embedder | None = None
        self._router: PredictiveRouter | None = None
        self._tier_names = [tier.name or tier.model for tier in cascade.tiers]

    def build(self) -> Cascade:
        """The cascade with its default policy, and a variant for each policy."""
        policies = _policies(self._name, self._cascade)
        chooser = self._chooser()
        variants = {policy.name: self._with_policy(policy, chooser) for policy in policies}
        default = self._with_policy(policies[0] if self._cascade.policy else None, chooser)
        return replace(default, variants=variants)

    def _with_policy(self, policy: Policy | None, chooser: Chooser | None) -> Cascade:
        names = self._tier_names
        strangers = sorted(set(policy.tiers) - set(names)) if policy else []
        if policy and strangers:
            raise ConfigError(
                f"The policy {policy.label!r} has a tier {strangers[0]!r}, which cascade {self._name!r} has not; it "
                f"has {', '.join(map(repr, names))}. Rename the tier, or fit another policy: nearfar calibrate."
            )
        last = len(names) - 1
        choice = self._cascade.router or self._cascade.bandit
        return Cascade(
            tuple(self._tier(tier, policy, is_last=i == last) for i, tier in enumerate(self._cascade.tiers)),
            self._name,
            commit=self._cascade.commit,
            prefix_tokens=self._cascade.prefix_tokens,
            policy=policy.label if policy else "uncalibrated",
            chooser=chooser,
            use=choice.use if choice else "order",
        )

    def _tier(self, settings: TierSettings, policy: Policy | None, *, is_last: bool) -> Tier:
        """The tier with its policy's scorer, or the uncalibrated one.

        The last tier's score decides nothing: it is shown where it is free to have, and a far server is not asked for
        log-probabilities that it may not give.
        """
        name, model = settings.name or settings.model, self._models[settings.model]
        probes = self._probes(settings, policy)
        scorer: Scorer | None = None
        threshold, accepts_nothing, abstain_below = settings.threshold, False, settings.abstain_below
        if policy and name in policy.tiers:
            from nearfar.router.live import check_signals

            fitted = policy.tier(name, model=settings.model)
            check_signals(policy, name, probes)
            scorer, threshold, accepts_nothing = fitted.scorer, fitted.threshold, fitted.accepts_nothing
            abstain_below = fitted.abstain_below if abstain_below is None else abstain_below
        elif not is_last or model.card.placement == "near":
            scorer = self._default_scorer(settings)
        if settings.error_cases is not None:
            from nearfar.models.error_cases import WithErrorCases

            model = WithErrorCases(model, self._error_cases(settings.error_cases), k=settings.num_error_cases)
        return Tier(
            model,
            name=name,
            scorer=scorer,
            threshold=threshold,
            accepts_nothing=accepts_nothing,
            wants_draft=settings.draft,
            deadline_s=settings.deadline_s,
            probes=probes,
            abstain_below=abstain_below,
            guard=self._guard(name, policy),
        )

    def _error_cases(self, where: Path | Literal["told"]) -> ErrorCases:
        if where == "told":
            return SqliteErrorCases(self._store, self._find_embedder(), self._name)
        from nearfar.retrieval.listed_errors import ListedErrors

        return ListedErrors.load(where, self._find_embedder())

    def _default_scorer(self, settings: TierSettings) -> Scorer:
        if settings.signals:
            from nearfar.router.live import default_scorer

            return default_scorer(settings.signals)
        if isinstance(self._settings.models.get(settings.model), PythonSettings):
            return StatedProbability("confidence")
        return MeanProbability()

    def _guard(self, tier: str, policy: Policy | None) -> Watch | None:
        settings = self._cascade.monitor
        label = policy.label if policy else "uncalibrated"
        for each in self._learning.monitors if settings else ():
            if (each.cascade, each.tier, each.policy) == (self._name, tier, label):
                return Watch(each, self._learning, defers=settings is not None and settings.on_alarm == "defer")
        return None

    def _probes(self, settings: TierSettings, policy: Policy | None) -> tuple[Probe, ...]:
        """What the tier finds out beyond its answer: as the config says, and what its policy reads for nothing."""
        names: list[str] = list(settings.signals)
        fitted = policy.tiers.get(settings.name or settings.model) if policy else None
        free = ("span_", "answer_", "query_")
        if not names and not (fitted and any(each.startswith(free) for each in fitted.signals)):
            return ()
        from nearfar.router.free_probes import SimilarQueries
        from nearfar.router.live import free_names, probes, same_by
        from nearfar.router.sampled_signals import Samples

        if fitted is not None:
            names += free_names(fitted)
        judge = self._models[settings.judge or settings.model]
        similar = None
        if "similar_queries" in names and self._cascade.labelled_queries is not None:
            similar = SimilarQueries.load(self._cascade.labelled_queries, self._find_embedder())
        return probes(
            names,
            samples=Samples(
                settings.samples,
                temperature=settings.sample_temperature,
                same=same_by(settings.same_by, embedder=self._find_embedder, judge=judge),
            ),
            similar=similar,
            router=self._router,
        )

    def _chooser(self) -> Chooser | None:
        if self._cascade.bandit is not None:
            from nearfar.router.choosing import BanditChoice

            label = _bandit(self._name, self._cascade).label
            return BanditChoice(next(each for each in self._learning.bandits if each.label == label), self._learning)
        settings = self._cascade.router
        if settings is None:
            return None
        from nearfar.router.choosing import PredictiveChoice
        from nearfar.router.live import check_pair, load_router

        self._router, label, weak, strong = load_router(settings.file, embedder=self._find_embedder)
        names = self._tier_names
        weak_tier, strong_tier = settings.weak or names[0], settings.strong or names[-1]
        for role, fitted, tier in (("weak", weak, weak_tier), ("strong", strong, strong_tier)):
            check_pair(label, role, fitted, self._known_as(self._cascade.tiers[names.index(tier)].model), tier)
        return PredictiveChoice(
            self._router,
            label=label,
            weak=weak_tier,
            strong=strong_tier,
            threshold=settings.threshold,
            explore=settings.explore,
        )

    def _known_as(self, model: str) -> set[str]:
        """The model's name in the config, and its name at its provider or in its table."""
        named = getattr(self._settings.models.get(model), "model", None)
        return {model, named} if isinstance(named, str) else {model}

    def _find_embedder(self) -> Embedder:
        from nearfar.retrieval.embedders import find_embedder

        if self._embedder is None:
            self._embedder = find_embedder(self._cascade.embedder)
        return self._embedder


# --- agents ----------------------------------------------------------------------------------------------------------


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
        roles[name] = Role(name, reads_logprobs=_tells_logprobs(wired, told.model), **told.model_dump())
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


# --- documents -------------------------------------------------------------------------------------------------------


def build_embedder(settings: Settings, name: str) -> Embedder | None:
    """The embedder of this name; None for "none".

    Raises:
        ConfigError: there is none of this name, or what it needs is not here.
    """
    if name == "none":
        return None
    if name in BUILT_IN_EMBEDDERS:
        from nearfar.retrieval.embedders import find_embedder

        return find_embedder(name)
    if name not in settings.embedders:
        known = ", ".join(map(repr, ["none", *BUILT_IN_EMBEDDERS, *settings.embedders]))
        raise ConfigError(
            f"There is no embedder {name!r}; there are {known}. Add one to the config: [embedders.{name}]."
        )
    embedder = settings.embedders[name]
    match embedder:
        case SentenceTransformersSettings():
            from nearfar.retrieval.sentence_embedder import SentenceEmbedder

            return SentenceEmbedder(**embedder.model_dump(exclude={"kind"}))
        case OpenAIEmbedderSettings():
            from nearfar.models.wire_embedder import WireEmbedder

            key = settings.embedder_keys.get(name)
            options = embedder.model_dump(exclude={"kind", "api_key_env", "placement"})
            return WireEmbedder(name=name, api_key=key.get_secret_value() if key else None, **options)
        case LlamaCppEmbedderSettings():
            from nearfar.models.llama_embedder import LlamaCppEmbedder

            return LlamaCppEmbedder(name=name, **embedder.model_dump(exclude={"kind"}))
        case _:
            assert_never(embedder)


def collection_folder(settings: Settings, name: str) -> Path:
    """Where the collection of this name is, or would be.

    Raises:
        RequestError: it is no name for a collection.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RequestError(f"{name!r} is no name for a collection; use letters, digits and . _ -", param="docs")
    return settings.collections_path / name


def collection_names(settings: Settings) -> list[str]:
    """The collections that there are."""
    return sorted(file.parent.name for file in settings.collections_path.glob("*/collection.db"))


def open_collection(settings: Settings, name: str) -> Collection:
    """The collection, to be searched with the embedder that it was made with; close it when done.

    Raises:
        RequestError: there is none of this name.
        DataError: it cannot be used.
        ConfigError: its embedder is not in the config, or nearfar[retrieval] is not installed.
    """
    from nearfar.retrieval.collection import Collection, read_facts

    folder = collection_folder(settings, name)
    names = collection_names(settings)
    if name not in names:
        known = f"there are {', '.join(map(repr, names))}" if names else "there is none yet"
        raise RequestError(f"No collection {name!r}; {known}. Make it: nearfar index {name} PATH", param="docs")
    key = read_facts(folder).get("embedder_key", "none")
    embedder = settings.embedders.get(key)
    is_far = isinstance(embedder, OpenAIEmbedderSettings) and embedder.placement == "far"
    return Collection(folder, build_embedder(settings, key), is_far=is_far)


class _Documents:
    """The library, imported and opened when the first query names a collection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._library: Library | None = None

    async def ground(self, query: Query) -> tuple[Query, Sequence[Mapping[str, Any]]]:
        """See `Library.ground`."""
        if self._library is None:
            self._library = open_library(self._settings)
        return await self._library.ground(query)

    def close(self) -> None:
        """Closes what was opened. Twice is fine."""
        if self._library is not None:
            self._library.close()


def open_library(settings: Settings) -> Library:
    """The collections that there are; none is opened before somebody asks for it."""
    from nearfar.retrieval.library import Library

    wanted = settings.retrieval
    return Library(partial(open_collection, settings), passages=wanted.passages, **_compressed(wanted.passage_tokens))


def _compressed(tokens: int | None) -> dict[str, Any]:
    """How passages get into so many tokens; None: as they are, the first that fit."""
    if tokens is None:
        return {}
    from nearfar.retrieval.compression import Compressor
    from nearfar.retrieval.embedders import find_embedder

    return {"passage_tokens": tokens, "compressor": Compressor(find_embedder("static"))}


def open_collection_writer(
    settings: Settings, name: str, *, embedder: str | None = None, creates: bool = True, reembeds: bool = False
) -> CollectionWriter:
    """The collection's only writer; close it when done.

    Args:
        settings: say where collections are.
        name: the collection's.
        embedder: its name; None: the one that the collection was made with, or the config's for a new one.
        creates: make the collection where there is none.
        reembeds: put the embedder in the place of the one that the collection was made with.

    Raises:
        RequestError: it is no name for a collection.
        DataError: somebody else is writing, or the collection was made with another embedder.
        ConfigError: the embedder is not there, or nearfar[retrieval] is not installed.
    """
    from nearfar.retrieval.collection import read_facts
    from nearfar.retrieval.writing import CollectionWriter

    folder = collection_folder(settings, name)
    facts = read_facts(folder) if name in collection_names(settings) else {}
    if embedder is None:  # a collection without facts was begun, and its embedder could not be reached
        embedder = facts.get("embedder_key", "none") if "made" in facts else settings.retrieval.embedder
    return CollectionWriter(
        folder, build_embedder(settings, embedder), creates=creates, reembeds=reembeds, embedder_key=embedder
    )
