"""Outcomes attached to decisions, and decisions replayed under another policy."""

from datetime import UTC, datetime

import pytest

from nearfar.errors import ConfigError, RequestError
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.outcomes import OutcomeLog
from nearfar.router.policies import Policy, TierPolicy
from nearfar.router.replay import replay
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.store import Schema, Store
from nearfar.testing import ScriptedModel
from nearfar.types import ModelCard, Query


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "nearfar.db", [DECISIONS])
    yield store
    store.close()


async def asked(log, confidence):
    """The decision on a query whose near answer has this confidence; below 0.8 it goes far."""
    near = ScriptedModel(["near says"], name="small", confidence=confidence)
    far = ScriptedModel(["far says"], name="large", confidence=0.99)
    cascade = Cascade([Tier(near, scorer=MeanProbability(), threshold=0.8), Tier(far)], name="auto")
    router = Router({"auto": cascade}, {"small": near, "large": far}, log=log)
    answer = await router.answer(Query("?"))
    return answer.decision


def policy(threshold, model="small"):
    return Policy(
        name="other",
        created_at=datetime.now(UTC),
        nearfar_version="0",
        tiers={"small": TierPolicy(model=model, scorer=MeanProbability(), threshold=threshold)},
    )


async def test_an_outcome_is_attached_by_the_beginning_of_an_id(store):
    """It comes back with its decision; a source has one say, and several sources are averaged."""
    decisions = SqliteDecisionLog(store)
    outcomes = OutcomeLog(store, decisions)
    judged, silent = await asked(decisions, 0.9), await asked(decisions, 0.9)

    await outcomes.record(judged.id, 0.0)
    await outcomes.record(judged.id, 1.0)
    await outcomes.record(judged.id, 0.5, source="judge")

    assert {(o.source, o.value) for o in await outcomes.of(judged.id)} == {("user", 1.0), ("judge", 0.5)}
    assert [(d.id, value) async for d, value in outcomes.judged()] == [(judged.id, 0.75), (silent.id, None)]


async def test_what_cannot_have_an_outcome_is_refused(store):
    """No such decision, a value out of range, a decision without an answer."""
    decisions = SqliteDecisionLog(store)
    outcomes = OutcomeLog(store, decisions)
    decision = await asked(decisions, 0.9)
    far = ScriptedModel(["far says"], card=ModelCard("large", "far"))
    router = Router({"auto": Cascade([Tier(far)], name="auto")}, {"large": far}, log=decisions)
    refused = await router.answer(Query("?", privacy="near"))

    with pytest.raises(RequestError, match="no decision 'ffff'"):
        await outcomes.record("ffff", 1.0)
    for value in (1.5, -0.1, float("nan")):
        with pytest.raises(RequestError, match="outcomes are in"):
            await outcomes.record(decision.id, value)
    with pytest.raises(RequestError, match="ended refused"):
        await outcomes.record(refused.decision.id, 1.0)


async def test_outcomes_go_with_their_decisions(store):
    """Retention deletes both."""
    decisions = SqliteDecisionLog(store, retention_days=0.0)
    outcomes = OutcomeLog(store, decisions)
    decision = await asked(decisions, 0.9)
    await outcomes.record(decision.id, 1.0)

    await decisions.purge()

    assert await outcomes.of(decision.id) == []


async def test_a_store_without_outcomes_gets_them(tmp_path):
    """A log of the first schema is opened, keeps its decisions, and takes outcomes."""
    path = tmp_path / "old.db"
    store = Store(path, [Schema("decisions", DECISIONS.migrations[:1])])
    decision = await asked(SqliteDecisionLog(store), 0.9)
    store.close()

    store = Store(path, [DECISIONS])
    outcomes = OutcomeLog(store, SqliteDecisionLog(store))
    await outcomes.record(decision.id, 1.0)
    assert [value async for _, value in outcomes.judged()] == [1.0]
    store.close()


@pytest.mark.parametrize(
    ("confidence", "threshold", "tier", "is_same", "outcome"),
    [
        (0.9, 0.5, "small", True, 1.0),  # still accepted
        (0.9, 0.95, None, False, None),  # would defer to a model that was not asked
        (0.7, 0.75, "large", True, 1.0),  # still deferred
        (0.7, 0.6, "small", False, None),  # would have accepted the near answer, which nobody judged
        (0.9, None, None, False, None),  # accepts nothing
    ],
)
async def test_a_decision_is_replayed_where_the_log_tells(store, confidence, threshold, tier, is_same, outcome):
    """Recorded answers are re-judged; what was never asked is not known."""
    decision = await asked(SqliteDecisionLog(store), confidence)

    found = replay(decision, policy(threshold), outcome=1.0)

    assert found.tier == tier
    assert found.is_known == (tier is not None)
    assert found.is_same == is_same
    assert found.outcome == outcome


async def test_a_policy_of_another_model_is_refused(store):
    """Signals of one model say nothing under another's policy."""
    decision = await asked(SqliteDecisionLog(store), 0.9)

    with pytest.raises(ConfigError, match="fitted on answers of 'tiny'"):
        replay(decision, policy(0.5, model="tiny"))


async def test_a_query_that_named_its_model_is_not_replayed(store):
    """A policy has no say in it."""
    near = ScriptedModel(["hi"], name="small", confidence=0.5)
    router = Router({}, {"small": near}, log=SqliteDecisionLog(store))
    answer = await router.answer(Query("?", model="small"))

    assert replay(answer.decision, policy(0.9)) is None
