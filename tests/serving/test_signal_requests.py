"""Signals that take further calls, over HTTP: from a cascade's config, and where a request asks for them."""

import json
from math import log

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway import MemoryLog, gateway, router_of

from nearfar.config import Settings
from nearfar.router.asked_signals import ASKABLE, asked_probes
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.decision_log import SqliteDecisionLog
from nearfar.router.router import Router
from nearfar.router.sampled_signals import Samples
from nearfar.router.scorers import StatedProbability
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, ModelCard, Price, TokenLogprob, Usage
from nearfar.wiring import build
from nearfar.wiring.records import open_store

HI = {"model": "auto", "messages": [{"role": "user", "content": "How many?"}]}
PRICE = Price(1.0, 2.0)

#: A cascade whose near tier is judged by a paid signal, both models behind a wire.
CONFIG = """
[models.near]
kind = "openai"
url = "URL/v1"
model = "near"
placement = "near"
price = { prompt_usd_per_mtok = 1.0, completion_usd_per_mtok = 2.0 }
[models.far]
kind = "openai"
url = "URL/v1"
model = "far"
price = { prompt_usd_per_mtok = 1.0, completion_usd_per_mtok = 2.0 }
[cascades.auto]
tiers = [{ model = "near", signals = SIGNALS, samples = 3, threshold = 0.6 }, "far"]
"""


async def ask(url, path="/v1/chat/completions", **fields):
    body = {"model": "auto", "input": "How many?"} if path.endswith("responses") else HI
    async with httpx2.AsyncClient(base_url=url) as client:
        return await client.post(path, json={**body, **fields})


def events_of(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def token(first, second, share):
    """One token, the first with this probability and the second with the rest."""
    top = ((first, log(share)), (second, log(1 - share)))
    return Answer(first, logprobs=(TokenLogprob(first, log(share), top),), usage=Usage(30, 1))


@pytest.mark.parametrize(
    ("signals", "replies", "tier", "score", "calls"),
    [
        (["self_consistency"], ["7", "7", "7", "8"], "near", 2 / 3, 3),
        (["self_consistency"], ["7", "8", "9", "7"], "far", 1 / 3, 3),
        (["semantic_entropy", "self_consistency"], ["7", "7", "7", "7"], "near", 1.0, 3),
        (["p_true"], ["7", token("A", "B", 0.9)], "near", 0.9, 1),
        (["self_check"], ["7", token("Yes", "No", 0.25)], "far", 0.25, 1),
        (["stated_confidence"], ["7", "85"], "near", 0.85, 1),
        (["stated_confidence"], ["7", "15 %"], "far", 0.15, 1),
    ],
)
async def test_a_served_cascade_pays_for_its_signals(tmp_path, signals, replies, tier, score, calls):
    """From the config file to OpenAI's wire on both sides; the decision in the store has the signal and its price."""
    near = ScriptedModel(replies, name="near", confidence=0.9)
    upstream = Router({}, {"near": near, "far": ScriptedModel(["8"], name="far")})
    path = tmp_path / "nearfar.toml"

    async with gateway(upstream) as models:
        path.write_text(CONFIG.replace("URL", models.url).replace("SIGNALS", json.dumps(signals)))
        settings = Settings.load(path, environ={"NEARFAR_HOME": str(tmp_path / "home")})
        wired = build(settings)
        try:
            async with gateway(wired.router) as server:
                reply = await ask(server.url)
        finally:
            await wired.aclose()

    with_store = open_store(settings)
    try:
        [decision] = await SqliteDecisionLog(with_store).select()
    finally:
        with_store.close()
    [cost] = decision.steps[0].signal_costs
    assert reply.json()["nearfar"]["tier"] == tier
    assert decision.steps[0].score == pytest.approx(score, abs=0.001)
    assert (cost.calls, cost.missing) == (calls, None)
    assert cost.cost_usd == pytest.approx(PRICE.cost_usd(cost.usage))
    assert cost.cost_usd > 0
    assert (
        decision.cost_usd
        == reply.json()["nearfar"]["cost_usd"]
        == pytest.approx(sum(s.cost_usd for s in decision.steps))
    )
    assert decision.steps[0].cost_usd == pytest.approx(PRICE.cost_usd(decision.steps[0].usage) + cost.cost_usd)
    assert "signals" not in reply.json()["nearfar"]


def model(*replies, name="m"):
    """Gives the replies in turn, at a price."""
    card = ModelCard(name, "near", price=PRICE, supports_logprobs=True)
    return ScriptedModel([*replies], name=name, card=card, confidence=0.9)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_request_asks_for_signals(path, is_stream):
    """On either wire, whole or as a stream, of a model that was named: the reply has them and what they cost."""
    kept = MemoryLog()
    near = model("7", "80")

    async with gateway(router_of(near, log=kept)) as server:
        asked = {"model": "m", "stream": is_stream, "nearfar": {"signals": ["stated_confidence", "query"]}}
        reply = await ask(server.url, path, **asked)

    [decision] = kept.decisions
    last = events_of(reply.text)[-1] if is_stream else reply.json()
    about = last.get("response", last)["nearfar"]
    [cost] = about["signal_costs"]
    assert about["signals"]["stated_confidence"] == decision.steps[0].signals["stated_confidence"] == 0.8
    assert about["signals"]["query_length"] > 0
    assert (cost["tier"], cost["name"], cost["calls"]) == ("m", "stated_confidence", 1)
    assert cost["cost_usd"] > 0
    assert about["cost_usd"] == decision.cost_usd == decision.steps[0].cost_usd
    assert len(near.queries) == 2


async def test_a_cascade_reads_what_is_asked_of_every_answer():
    """Of the tier that defers and of the last one, as each has it set."""
    kept, (near, far) = MemoryLog(), (model("7", "1", "2", "3", name="near"), model("8", "95", name="far"))
    tier = Tier(near, scorer=StatedProbability("self_consistency"), threshold=0.5, probes=[Samples(3)])
    router = Router({"auto": Cascade([tier, Tier(far)], name="auto")}, {}, log=kept)

    async with gateway(router) as server:
        about = (await ask(server.url, nearfar={"signals": ["self_consistency"]})).json()["nearfar"]

    assert about["tier"] == "far"
    assert [(cost["tier"], cost["name"], cost["calls"]) for cost in about["signal_costs"]] == [
        ("near", "samples", 3),
        ("far", "samples", 5),
    ]
    assert about["signals"]["self_consistency"] == 0.0
    assert about["cost_usd"] == pytest.approx(sum(step.cost_usd for step in kept.decisions[0].steps))
    assert len(near.queries) == 4
    assert len(far.queries) == 6


async def test_a_stream_is_not_held_back_for_signals():
    """The words are sent as they come; what is asked about them is asked when they are there."""
    near = model("one two three", "50")

    async with gateway(router_of(near)) as server:
        reply = await ask(server.url, stream=True, nearfar={"signals": ["stated_confidence"]})

    chunks = events_of(reply.text)
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]]
    assert [text for text in texts if text] == ["one", " two", " three"]
    assert chunks[-1]["nearfar"]["signals"]["stated_confidence"] == 0.5


async def test_a_budget_holds_for_what_is_asked():
    """Signals that cannot be paid for are left out with the reason, and the answer stands."""
    near = model(Answer("7", usage=Usage(10, 1)))
    limits = {"signals": ["self_consistency"], "budget_usd": 0.0006}

    async with gateway(router_of(near)) as server:
        reply = await ask(server.url, nearfar=limits)

    about = reply.json()["nearfar"]
    [cost] = about["signal_costs"]
    assert reply.json()["choices"][0]["message"]["content"] == "7"
    assert (cost["calls"], cost["cost_usd"]) == (0, 0.0)
    assert "budget" in cost["missing"]
    assert "self_consistency" not in about["signals"]
    assert len(near.queries) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/route"])
@pytest.mark.parametrize("signals", [["vibes"], ["p_true", "predicted_gain"], "p_true", [7]])
async def test_a_signal_that_there_is_not_is_refused(path, signals):
    """By name, before any call, with those that there are."""
    near = model("7")

    async with gateway(router_of(near)) as server:
        reply = await ask(server.url, path, nearfar={"signals": signals})

    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("nearfar.signals")
    assert near.queries == []


@given(st.lists(st.sampled_from(ASKABLE), unique=True, min_size=1))
def test_every_name_has_its_probe(names):
    """Whatever is asked for is read once, free signals before those with a price."""
    found = asked_probes(names)
    prices = [probe.num_calls > 0 for probe in found]

    assert prices == sorted(prices)
    assert len({probe.name for probe in found}) == len(found)
    assert len(found) == len({"samples" if "cons" in name or "entropy" in name else name for name in names})
