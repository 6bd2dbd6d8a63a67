"""Outcomes over HTTP: who may tell them, what is refused, and what becomes of them."""

import httpx2
import pytest
from support.gateway import gateway

from nearfar.router.cascade import Cascade, Tier
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.learning import LEARNING, Learning, LiveMonitor, Watch
from nearfar.router.outcomes import OutcomeLog
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.serving.gateway.keys import Key, hash_key, new_key
from nearfar.store import Store
from nearfar.testing import ScriptedModel

HI = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "nearfar.db", [DECISIONS, LEARNING])
    yield store
    store.close()


@pytest.fixture
def outcomes(store):
    return OutcomeLog(store, SqliteDecisionLog(store))


@pytest.fixture
def router(store):
    """A watched near tier that is always sure, and a far one."""
    near, far = ScriptedModel(["near"], name="near", confidence=0.9), ScriptedModel(["far"], name="far")
    log = SqliteDecisionLog(store)
    monitor = LiveMonitor("auto", "near", "p@1", alpha=0.05)
    learning = Learning(store, [monitor])
    tier = Tier(near, scorer=MeanProbability(), threshold=0.8, guard=Watch(monitor, learning))
    cascade = Cascade([tier, Tier(far)], name="auto", policy="p@1")
    return Router({"auto": cascade}, {}, log=log, outcomes=OutcomeLog(store, log, learning), learning=learning)


async def post(url, path, body, **headers):
    async with httpx2.AsyncClient(base_url=url) as client:
        return await client.post(path, json=body, headers=headers)


async def asked(url):
    return await post(url, "/v1/chat/completions", HI)


@pytest.mark.parametrize(("value", "kept"), [(0.25, 0.25), (True, 1.0), ("wrong", 0.0), (1, 1.0)])
async def test_an_outcome_is_attached_to_its_decision(router, outcomes, value, kept):
    """By the id in the reply's header; a number, a truth value or a word."""
    async with gateway(router) as server:
        id_ = (await asked(server.url)).headers["x-nearfar-decision-id"]
        reply = await post(server.url, "/v1/outcomes", {"decision_id": id_, "value": value, "source": "judge"})
        found = await outcomes.of(id_)

    assert reply.status_code == 200
    assert {**reply.json(), "created_at": 0} == {
        "object": "nearfar.outcome", "decision_id": id_, "value": kept, "source": "judge", "created_at": 0,
    }  # fmt: skip
    assert [(each.value, each.source) for each in found] == [(kept, "judge")]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"decision_id": "0" * 28}, 404, "decision_not_found", "decision_id"),
        ({"decision_id": "0"}, 400, "invalid_value", "decision_id"),  # the beginning of somebody's id
        ({"decision_id": 3}, 400, "invalid_value", "decision_id"),
        ({"value": 1.5}, 400, "invalid_value", "value"),
        ({"value": "fine"}, 400, "invalid_value", "value"),
        ({"value": None}, 400, "invalid_value", "value"),
        ({"source": ""}, 400, "invalid_value", "source"),
        ({"grade": 1}, 400, "unsupported_parameter", "grade"),
    ],
)
async def test_what_is_no_outcome_is_refused_in_openais_shape(router, change, status, code, param):
    """With the field at fault; nothing is dropped in silence."""
    async with gateway(router) as server:
        id_ = (await asked(server.url)).headers["x-nearfar-decision-id"]
        reply = await post(server.url, "/v1/outcomes", {"decision_id": id_, "value": 1, **change})

    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"


async def test_telling_needs_a_key_like_asking(router, outcomes):
    """And the method, the media type and a log."""
    key = new_key()
    async with gateway(router, keys=(Key(hash_key(key)),)) as server:
        strange = await post(server.url, "/v1/outcomes", {"decision_id": "0" * 28, "value": 1})
        known = await post(
            server.url, "/v1/outcomes", {"decision_id": "0" * 28, "value": 1}, authorization=f"Bearer {key}"
        )
        async with httpx2.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {key}"}) as client:
            got = await client.get("/v1/outcomes")
    async with gateway(Router({}, {"m": ScriptedModel(["x"])})) as server:
        unlogged = await post(server.url, "/v1/outcomes", {"decision_id": "0" * 28, "value": 1})

    assert [each.status_code for each in (strange, known, got, unlogged)] == [401, 404, 405, 400]
    assert "No decisions are kept" in unlogged.json()["error"]["message"]


async def test_an_alarm_shows_in_the_metrics_and_closes_the_tier(router):
    """Wrong answers told one by one; the next query goes far."""
    async with gateway(router) as server:
        tiers = []
        for _ in range(40):
            reply = await asked(server.url)
            tiers.append(reply.headers["x-nearfar-tier"])
            id_ = reply.headers["x-nearfar-decision-id"]
            await post(server.url, "/v1/outcomes", {"decision_id": id_, "value": 0})
        async with httpx2.AsyncClient(base_url=server.url) as client:
            metrics = (await client.get("/metrics")).text

    assert tiers[0] == "near"
    assert tiers[-1] == "far"
    assert 'nearfar_alarm{cascade="auto",kind="errors",policy="p@1",tier="near"} 1.0' in metrics
    assert 'nearfar_alarm{cascade="auto",kind="shift",policy="p@1",tier="near"} 0.0' in metrics
    assert "nearfar_outcomes_total 40.0" in metrics
