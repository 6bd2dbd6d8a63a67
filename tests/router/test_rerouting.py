"""What another router would have done, decision by decision and on average, and what another policy gives up on."""

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from nearfar.errors import DataError
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.choosing import PredictiveChoice
from nearfar.router.policies import Policy, TierPolicy
from nearfar.router.replay import asked, estimate, replay, reroute, thresholds
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.testing import ScriptedModel
from nearfar.types import Query


class Length:
    """A router that expects gain from long queries."""

    kind, reads_signals, is_embedding_based = "length", False, False

    def predict(self, queries):
        return [len(query.text) / 100 for query in queries]


class Memory:
    """Keeps decisions in a list."""

    def __init__(self):
        self.decisions = []

    def submit(self, decision):
        self.decisions.append(decision)

    async def flush(self):
        pass


async def logged(explore, n=400):
    """Decisions on queries of 1 to 100 letters, with outcomes: far is always right, near on short ones."""
    near, far = ScriptedModel(["n"], name="near", confidence=0.9), ScriptedModel(["f"], name="far")
    log, draw = Memory(), random.Random(5)
    chooser = PredictiveChoice(
        Length(), label="length", weak="near", strong="far", threshold=0.5, explore=explore, draw=draw
    )
    cascade = Cascade(
        [Tier(near, scorer=MeanProbability(), threshold=0.5), Tier(far)], name="auto", chooser=chooser, use="pick"
    )
    router = Router({"auto": cascade}, {}, log=log)
    for _ in range(n):
        await router.answer(Query("w" * draw.randint(1, 100)))
    return [(each, float(each.tier == "far" or len(asked(each)) <= 30)) for each in log.decisions]


async def test_another_threshold_is_replayed_and_estimated():
    """The estimate covers what the other threshold would really have had."""
    judged = await logged(0.5)

    found = reroute(judged, Length(), weak="near", strong="far", threshold=0.8)
    mean = estimate(judged, found)

    truth = sum(each.score >= 0.8 or each.score <= 0.3 for each in found) / len(found)
    assert len(found) == 400
    assert all((each.tier == "far") == (each.score >= 0.8) for each in found)
    assert {each.propensity for each in found} == {0.75, 0.25}
    assert mean.interval.low <= truth <= mean.interval.high
    assert mean.interval.high - mean.interval.low < 0.25


async def test_a_log_without_exploration_tells_nothing_of_other_routers():
    """What it would do elsewhere was never tried, and that is said."""
    judged = await logged(0.0)

    with pytest.raises(DataError, match=r"propensity in the log is 0|covers only"):
        estimate(judged, reroute(judged, Length(), weak="near", strong="far", threshold=0.8))
    with pytest.raises(DataError, match="No routed decision has an outcome"):
        estimate([(each, None) for each, _ in judged], [])


async def test_hashed_texts_are_not_guessed_at():
    """A log that keeps no text can be replayed by policies alone."""
    judged = await logged(0.5, n=3)
    hidden = replace(judged[0][0], request={"prompt": [{"role": "user", "content": "sha256:00"}]})

    assert reroute([(hidden, 1.0)], Length(), weak="near", strong="far", threshold=0.5) == []


def test_thresholds_send_the_share_that_they_say():
    """As many of the logged queries as asked for reach the threshold."""
    scores = [i / 10 for i in range(10)]

    found = thresholds(scores, [0.1, 0.5, 1.0])

    assert [(share, sum(score >= threshold for score in scores)) for share, threshold in found] == [
        (0.1, 1), (0.5, 5), (1.0, 10),
    ]  # fmt: skip
    with pytest.raises(DataError):
        thresholds([], [0.5])


async def test_a_policy_that_gives_up_early_is_replayed_so():
    """Only for queries that take abstention."""
    near, far = ScriptedModel(["n"], name="near", confidence=0.3), ScriptedModel(["f"], name="far")
    log = Memory()
    cascade = Cascade([Tier(near, scorer=MeanProbability(), threshold=0.8), Tier(far)], name="auto")
    router = Router({"auto": cascade}, {}, log=log)
    for when_unsure in ("abstain", "best"):
        await router.answer(Query("?", when_unsure=when_unsure))
    policy = Policy(
        name="p",
        created_at=datetime.now(UTC),
        nearfar_version="0",
        tiers={"near": TierPolicy(model="near", scorer=MeanProbability(), threshold=0.8, abstain_below=0.5)},
    )

    abstaining, best = (replay(decision, policy) for decision in log.decisions)

    assert (abstaining.tier, abstaining.is_known, abstaining.is_same) == (None, True, False)
    assert "abstains" in abstaining.why
    assert best.tier == "far"
