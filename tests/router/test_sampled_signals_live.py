"""Paid signals on the embedded model itself."""

import pytest
from support.weights import smollm2_path

from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.free_probes import SpanSignals
from nearfar.router.router import Router
from nearfar.router.sampled_signals import PTrue, Samples, SelfCheck, StatedConfidence
from nearfar.router.scorers import StatedProbability
from nearfar.testing import ScriptedModel
from nearfar.types import Query, SamplingOptions


@pytest.fixture
async def near():
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=1024)
    yield model
    await model.aclose()


async def test_the_embedded_model_gives_every_signal(near):
    """With no more calls than are stated, one token each where one is; every signal is a number in its range."""
    probes = [SpanSignals(), Samples(2), PTrue(), SelfCheck(), StatedConfidence()]
    tier = Tier(near, scorer=StatedProbability("self_consistency"), threshold=0.0, probes=probes)
    router = Router({"auto": Cascade([tier, Tier(ScriptedModel(["far"]))], name="auto")}, {})
    query = Query(
        "What is 2 + 3? Answer with the number only.", sampling=SamplingOptions(max_tokens=8, temperature=0.0)
    )

    answer = await router.answer(query)

    step = answer.decision.steps[0]
    assert answer.tier == "smollm2"
    assert {cost.name: cost.calls for cost in step.signal_costs} == {
        "samples": 2, "p_true": 1, "self_check": 1, "stated_confidence": 1,
    }  # fmt: skip
    for name in ("self_consistency", "sample_agreement", "p_true", "self_check"):
        assert 0 <= step.signals[name] <= 1
    assert step.signals["semantic_entropy"] >= 0
    assert step.signals["span_mean_logprob"] <= 0
    assert all(cost.usage.completion_tokens == 1 for cost in step.signal_costs if cost.name in ("p_true", "self_check"))
