"""One gateway for all clients: the real embedded model, and stand-ins for what must be exact or must fail."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.gateway import MemoryLog, gateway_thread
from support.obedient import obedient
from support.weights import smollm2_path

from nearfar.errors import UpstreamRateLimited, UpstreamTimeout, UpstreamUnavailable
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.serving.gateway.keys import Key, hash_key, new_key
from nearfar.testing import ScriptedModel
from nearfar.types import FREE, Answer, ModelCard, StreamEnd, TextDelta


class Endless(ScriptedModel):
    """Writes a word every few milliseconds, for ever."""

    async def stream(self, query):
        while True:
            yield TextDelta("word ")
            await asyncio.sleep(0.005)
        yield StreamEnd(Answer())


class Breaking(ScriptedModel):
    """Says two words, then breaks."""

    async def stream(self, query):
        yield TextDelta("One")
        yield TextDelta(" two")
        raise UpstreamUnavailable("the wire broke", model=self.card.name)


@dataclass(frozen=True)
class Door:
    """Where the gateway is, the key to it, and what it decided."""

    url: str
    key: str
    log: MemoryLog

    @property
    def base_url(self) -> str:
        """What OpenAI's clients are told."""
        return f"{self.url}/v1"

    def await_decision(self, decision_id: str) -> str:
        """The status of a decision once it is made; the test's own timeout bounds the wait."""
        while True:
            for decision in list(self.log.decisions):
                if decision.id == decision_id:
                    return decision.status
            time.sleep(0.01)

    def await_new_decision(self, before: int) -> str:
        """The status of the first decision after `before` others."""
        while len(self.log.decisions) <= before:
            time.sleep(0.01)
        return self.log.decisions[before].status


@pytest.fixture(scope="session")
def door() -> Iterator[Door]:
    """Model "auto" is the embedded SmolLM2; the others are named for what they do."""
    log, key = MemoryLog(), new_key()
    everything = ModelCard(
        "obedient",
        "near",
        price=FREE,
        supports_logprobs=True,
        supports_tools=True,
        supports_json_schema=True,
        supports_grammar=True,
        passes_extra=True,
    )
    models = {
        "smollm2": LlamaCppModel(smollm2_path(), name="smollm2", max_output_tokens=64),
        "obedient": ScriptedModel([obedient], card=everything),
        "plain": ScriptedModel(["Hi"], card=ModelCard("plain", "near", price=FREE)),
        "asleep": ScriptedModel(["never"], name="asleep", delay_s=3600),
        "endless": Endless(["unused"], name="endless"),
        "breaking": Breaking(["unused"], name="breaking"),
        "limited": ScriptedModel([UpstreamRateLimited("slow down", model="limited", retry_after_s=1)], name="limited"),
        "down": ScriptedModel([UpstreamUnavailable("refused", model="down")], name="down"),
        "late": ScriptedModel([UpstreamTimeout("late", model="late")], name="late"),
    }
    near = Tier(models["smollm2"], scorer=MeanProbability(), threshold=0.0)
    router = Router({"auto": Cascade([near], name="auto")}, models, log=log)
    with gateway_thread(router, keys=(Key(hash_key(key)),)) as url:
        yield Door(url, key, log)
