"""What `nearfar serve` is told, and what it takes besides queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from nearfar.config import Settings
from nearfar.config.keys import read_keys
from nearfar.config.retrieval import BUILT_IN_EMBEDDERS
from nearfar.types import Reranker

from .agents import open_agent, open_runs
from .build import Wired
from .embedders import found_embedder

if TYPE_CHECKING:
    from pydantic import SecretStr

    from nearfar.serving.gateway.agent_runs import AgentsDoor
    from nearfar.serving.gateway.app import Door
    from nearfar.serving.gateway.settings import GatewaySettings


def gateway_settings(settings: Settings) -> GatewaySettings:
    """What `nearfar serve` is told, with the hashes of every key that it takes.

    Raises:
        ConfigError: a key is too short or has a right that is none, or the address is beyond loopback and there is no
            key.
    """
    from nearfar.serving.gateway.keys import Key, Right, hash_key
    from nearfar.serving.gateway.settings import GatewaySettings

    def given(secrets: Iterable[SecretStr], variable: str, *rights: Right) -> Iterator[Key]:
        for number, secret in enumerate(secrets, 1):
            yield Key(hash_key(secret.get_secret_value()), f"{variable} {number}", frozenset(rights))

    keys = [
        *given(settings.gateway_keys, "NEARFAR_API_KEYS", "ask", "run"),
        *given(settings.approver_keys, "NEARFAR_APPROVER_KEYS", "approve"),
    ]
    for key in read_keys(settings.keys_path):
        rights = cast("frozenset[Right]", frozenset(key.rights))  # a `Key` refuses those that are none
        keys.append(Key(key.sha256, key.name, rights))
    return GatewaySettings(**settings.gateway.model_dump(), keys=tuple(keys))


def gateway_doors(settings: Settings) -> dict[str, Door]:
    """What `nearfar serve` takes besides queries: texts to embed and documents to rerank."""
    from nearfar.serving.gateway.embeddings import EmbeddingsDoor
    from nearfar.serving.gateway.rerank import RerankDoor

    names = [*BUILT_IN_EMBEDDERS, *settings.embedders]
    chosen = settings.retrieval.embedder if settings.retrieval.embedder in names else "static"
    return {
        "/v1/embeddings": EmbeddingsDoor(names, chosen, partial(found_embedder, settings)),
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


def _reranker(settings: Settings, hybrid: str, name: str) -> Reranker:
    from nearfar.retrieval.passage_scores import CosineScores, HybridScores

    if name == "hybrid":
        return HybridScores(found_embedder(settings, hybrid))
    return CosineScores(found_embedder(settings, name))
