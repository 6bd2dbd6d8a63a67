"""Cascades at work with paid signals, routers, bandits, monitors and early abstention."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ConfigError, UpstreamUnavailable
from nearfar.router.answer_text import ANSWER_TEXT_SIGNALS, answer_text_signals
from nearfar.router.bandit import ThompsonBandit
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.choosing import BanditChoice, PredictiveChoice
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.free_probes import (
    QUERY_SIGNALS,
    AnswerText,
    QueryForm,
    SimilarQueries,
    SpanSignals,
    query_signals,
)
from nearfar.router.learning import LEARNING, Learning, LiveBandit, LiveMonitor, Watch
from nearfar.router.outcomes import OutcomeLog
from nearfar.router.router import Router
from nearfar.router.sampled_signals import Samples, SelfCheck, StatedConfidence
from nearfar.router.scorers import MeanProbability, StatedProbability
from nearfar.store import Store
from nearfar.testing import ScriptedModel
from nearfar.types import FREE, Answer, ModelCard, Price, Query, StreamEnd, StreamStart, Usage

PRICE = Price(1.0, 1.0)


def model(name, script, *, placement="near", price=FREE, delay_s=0.0, confidence=0.5):
    """A scripted model with a card of its own."""
    card = ModelCard(name, placement, price=price, supports_logprobs=True, max_output_tokens=10)
    return ScriptedModel(script, card=card, confidence=confidence, delay_s=delay_s)


def router_of(near_tier, far, **options):
    """A cascade of the tier and a far model."""
    cascade = Cascade([near_tier, Tier(far)], name="auto", **options)
    return Router({"auto": cascade}, {near_tier.name: near_tier.model, "far": far})


def agreeing(near, threshold=0.6, **options):
    """A tier that accepts what its samples agree on."""
    return Tier(near, scorer=StatedProbability("self_consistency"), threshold=threshold, probes=[Samples(4)], **options)


# --- signals at a price ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "tier"), [(["7", "7", "8", "7"], "near"), (["7", "8", "9", "1"], "far")])
async def test_agreement_among_samples_decides(samples, tier):
    """What the samples say again is accepted, the rest escalates; the step says what that took."""
    near, far = model("near", ["7", *samples], price=PRICE), model("far", ["7!"], placement="far")

    answer = await router_of(agreeing(near), far).answer(Query("How many?"))

    step = answer.decision.steps[0]
    (cost,) = step.signal_costs
    assert answer.tier == tier
    assert step.score == step.signals["self_consistency"] == samples.count("7") / 4
    assert (cost.calls, len(near.queries)) == (4, 5)
    assert step.cost_usd == pytest.approx(PRICE.cost_usd(step.usage) + cost.cost_usd)
    assert answer.cost_usd == pytest.approx(sum(each.cost_usd for each in answer.decision.steps))
    assert all(query.sampling.temperature is None for query in near.queries[:1])


@given(st.floats(0, 0.002))
async def test_no_budget_is_exceeded_by_signals(budget_usd):
    """Whatever is left, answer and signals together stay inside it."""
    near = model("near", [Answer("7", usage=Usage(20, 10))], price=PRICE)
    far = model("far", [Answer("8", usage=Usage(20, 10))], placement="far", price=PRICE)
    tier = Tier(near, scorer=MeanProbability(), threshold=0.9, probes=[Samples(3), SelfCheck(), StatedConfidence()])

    answer = await router_of(tier, far).answer(Query("How many?", budget_usd=budget_usd))

    assert answer.decision.cost_usd <= budget_usd


async def test_signals_keep_to_the_deadline():
    """Samples that take too long are given up, and the answer that is there is given."""
    near = model("near", ["7"], delay_s=0.15)

    answer = await router_of(agreeing(near), model("far", ["x"])).answer(Query("How many?", deadline_s=0.2))

    assert (answer.text, answer.decision.reason) == ("7", "out_of_time")
    assert "time" in answer.decision.steps[0].signal_costs[0].missing


async def test_nothing_is_asked_where_nothing_hangs_on_it():
    """The last tier's answer, an empty one, and a model that was named are not probed; labelling asks for it."""
    near, far = model("near", ["7"]), model("far", ["8"])
    empty = model("empty", [""])
    alone = Router({"auto": Cascade([agreeing(near)], name="auto")}, {"near": near})

    last = await alone.answer(Query("How many?"))
    named = await alone.answer(Query("How many?", model="near"))
    flawed = await router_of(agreeing(empty), far).answer(Query("How many?"))
    labelling = await alone.answer(Query("How many?", model="near", wants_signals=True))

    for answer in (last, named, flawed):
        assert answer.decision.steps[0].signal_costs == ()
    assert labelling.decision.steps[0].signals["self_consistency"] == 1.0


async def test_what_signals_send_far_is_on_record():
    """Each call to a far model is a departure, with a digest of what was sent."""
    middle = model("middle", ["7"], placement="far")

    answer = await router_of(agreeing(middle), model("far", ["8"], placement="far")).answer(Query("How many?"))

    assert [departure.model for departure in answer.decision.departures] == ["middle"] * 5


async def test_a_tier_that_asks_again_is_not_streamed_before():
    """Even with commit="prefix" its whole answer is judged."""
    near, far = model("near", ["1 2 3", "4", "5", "6", "7"], confidence=0.9), model("far", ["8 9"])
    router = router_of(agreeing(near), far, commit="prefix", prefix_tokens=1)

    events = [event async for event in router.stream(Query("How many?"))]

    assert isinstance(events[0], StreamStart)
    assert events[0].tier == "far"
    assert events[-1].answer.text == "8 9"


async def test_free_signals_are_read_along():
    """The answer's span and the query's form are there without a call."""
    near, far = model("near", ["so #### 7"], confidence=0.9), model("far", ["8"])
    tier = Tier(near, scorer=MeanProbability(), probes=[SpanSignals(), AnswerText(), QueryForm()])

    answer = await router_of(tier, far).answer(Query("How many?\nSay 12."))

    signals = answer.decision.steps[0].signals
    assert signals["span_mean_logprob"] < 0
    assert {name: signals[name] for name in ANSWER_TEXT_SIGNALS} == answer_text_signals(
        "How many?\nSay 12.", "so #### 7"
    )
    assert {name: signals[name] for name in QUERY_SIGNALS} == query_signals(Query("How many?\nSay 12."))
    assert len(near.queries) == 1


class Letters:
    """Vectors that count letters."""

    name, dim = "letters", 26

    def embed(self, texts):
        import numpy as np

        rows = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
        return rows / np.maximum(1e-9, np.linalg.norm(rows, axis=1, keepdims=True))

    embed_queries = embed


async def test_similar_queries_tell_how_the_model_fared(tmp_path):
    """The nearest labelled query is itself; its neighbours' outcomes are averaged by likeness."""
    path = tmp_path / "labels.jsonl"
    path.write_text('{"query": "aaa", "correct": 1}\n{"query": "zzz", "correct": 0}\n')
    probe = SimilarQueries.load(path, Letters())

    found = await probe.read(Query("aaa"), Answer("x"), model("near", ["x"]), None)

    assert found["query_similarity"] == pytest.approx(1.0)
    assert found["neighbour_accuracy"] > 0.99


# --- a choice before any call ----------------------------------------------------------------------------------------


class Gain:
    """A router that expects what it was told, by text."""

    kind, reads_signals, is_embedding_based = "gain", False, False

    def __init__(self, gains):
        self._gains = gains

    def predict(self, queries):
        return [self._gains[query.text] for query in queries]


def chooser(**options):
    return PredictiveChoice(
        Gain({"easy": 0.1, "hard": 0.6}), label="router r", weak="near", strong="far", threshold=0.5, **options
    )


@pytest.mark.parametrize("use", ["order", "skip", "pick"])
async def test_a_router_picks_the_tier_to_begin_at(use):
    """A hard query goes far at once, an easy one begins near; score, threshold and propensity are on record."""
    near, far = model("near", ["near"], confidence=0.9), model("far", ["far"])
    tier = Tier(near, scorer=MeanProbability(), threshold=0.8)
    router = router_of(tier, far, chooser=chooser(), use=use)

    easy, hard = await router.answer(Query("easy")), await router.answer(Query("hard"))

    assert (easy.text, hard.text) == ("near", "far")
    assert len(near.queries) == 1
    routing = hard.decision.routing
    assert (routing.tier, routing.score, routing.threshold, routing.propensity) == ("far", 0.6, 0.5, 1.0)
    assert (hard.decision.propensity, hard.decision.reason) == (1.0, "last_tier")
    dropped = [c for c in hard.decision.candidates if not c.is_eligible]
    assert [c.tier for c in dropped] == ([] if use == "order" else ["near"])
    assert all("router r chose far" in c.reason for c in dropped)


async def test_a_router_that_embeds_leaves_the_event_loop_free():
    """Its choice is made in a thread, and is the same."""
    seen = []

    class Embedding(Gain):
        is_embedding_based = True

        def predict(self, queries):
            seen.append(threading.current_thread())
            return super().predict(queries)

    near, far = model("near", ["near"], confidence=0.9), model("far", ["far"])
    slow = PredictiveChoice(Embedding({"hard": 0.6}), label="r", weak="near", strong="far", threshold=0.5)
    tier = Tier(near, scorer=MeanProbability(), threshold=0.8)

    answer = await router_of(tier, far, chooser=slow).answer(Query("hard"))

    assert answer.text == "far"
    assert seen[0] is not threading.current_thread()


async def test_an_unsure_near_answer_still_escalates_unless_picked():
    """ "pick" takes the chosen tier's answer as it is."""
    for use, text in (("order", "far"), ("skip", "far"), ("pick", "near")):
        near, far = model("near", ["near"], confidence=0.2), model("far", ["far"])
        tier = Tier(near, scorer=MeanProbability(), threshold=0.8)
        answer = await router_of(tier, far, chooser=chooser(), use=use).answer(Query("easy"))

        assert answer.text == text


async def test_the_tiers_passed_over_answer_when_the_chosen_fails():
    """With "order" a failing far model costs quality, not the answer, whole or streamed."""
    near = model("near", ["near"], confidence=0.2)
    far = model("far", [UpstreamUnavailable("far is down", model="far")])
    router = router_of(Tier(near, scorer=MeanProbability(), threshold=0.8), far, chooser=chooser())

    whole = await router.answer(Query("hard"))
    streamed = [event async for event in router.stream(Query("hard"))][-1]

    assert whole.text == "near"
    assert isinstance(streamed, StreamEnd)
    assert streamed.answer.text == "near"


async def test_exploring_is_logged_as_it_is_drawn():
    """A share of the queries is left to a coin, and each choice carries its probability."""
    near, far = model("near", ["near"], confidence=0.9), model("far", ["far"])
    tier = Tier(near, scorer=MeanProbability(), threshold=0.8)
    router = router_of(tier, far, chooser=chooser(explore=0.4, draw=random.Random(3)))

    routings = [(await router.answer(Query("hard"))).decision.routing for _ in range(300)]

    shares = {each.tier: each.propensity for each in routings}
    assert shares == {"far": 0.8, "near": pytest.approx(0.2)}
    assert 35 <= sum(each.tier == "near" for each in routings) <= 85
    assert all(sum(each.propensities.values()) == pytest.approx(1) for each in routings)


async def test_where_one_tier_may_take_the_query_nothing_is_chosen():
    """A private query stays near, and nobody claims to have chosen that."""
    near, far = model("near", ["near"], confidence=0.9), model("far", ["far"], placement="far")
    tier = Tier(near, scorer=MeanProbability(), threshold=0.8)

    answer = await router_of(tier, far, chooser=chooser()).answer(Query("hard", privacy="near"))

    assert answer.text == "near"
    assert answer.decision.routing is None


def test_a_router_that_judges_near_answers_is_refused():
    """It has none to judge before any call."""
    judge = Gain({})
    judge.reads_signals = True

    with pytest.raises(ConfigError, match="judges a near answer"):
        PredictiveChoice(judge, label="r", weak="a", strong="b", threshold=0.0)


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "nearfar.db", [DECISIONS, LEARNING])
    yield store
    store.close()


async def test_a_bandit_learns_to_send_short_queries_near(store):
    """From outcomes alone, told after each answer; what it chose and how likely that was is in every decision."""
    near, far = model("near", ["near"], confidence=0.9), model("far", ["far"])
    live = LiveBandit("auto", ThompsonBandit.over(["near", "far"], ["query_length"]))
    learning = Learning(store, [live])
    log = SqliteDecisionLog(store)
    cascade = Cascade(
        [Tier(near, scorer=MeanProbability(), threshold=0.8), Tier(far)],
        name="auto",
        chooser=BanditChoice(live, learning, draw=random.Random(0)),
        use="pick",
    )
    router = Router({"auto": cascade}, {}, log=log, outcomes=OutcomeLog(store, log, learning), learning=learning)
    short, long = "?", "w" * 20_000

    for i in range(120):
        text = short if i % 2 else long
        answer = await router.answer(Query(text))
        await router.tell(answer.decision.id, float((answer.tier == "near") == (text is short)))
    decisions = [(await router.answer(Query(text))).decision for text in (short, long)]

    assert decisions[0].routing.propensities["near"] > 0.85
    assert decisions[1].routing.propensities["far"] > 0.85
    for decision in decisions:
        assert decision.propensity == decision.routing.propensities[decision.tier]
        assert (await log.get(decision.id)).routing == decision.routing


async def test_an_alarm_closes_the_tier(store):
    """Wrong answers that the policy accepted make it defer all; with "tell" it goes on, and the alarm is known."""
    for defers in (True, False):
        near, far = model("near", ["near"], confidence=0.9), model("far", ["far"])
        watch = LiveMonitor("auto", "near", f"p@{defers:d}", alpha=0.05)
        learning = Learning(store, [watch])
        log = SqliteDecisionLog(store)
        tier = Tier(near, scorer=MeanProbability(), threshold=0.8, guard=Watch(watch, learning, defers=defers))
        cascade = Cascade([tier, Tier(far)], name="auto", policy=f"p@{defers:d}")
        router = Router({"auto": cascade}, {}, log=log, outcomes=OutcomeLog(store, log, learning), learning=learning)

        for _ in range(40):
            answer = await router.answer(Query("?"))
            await router.tell(answer.decision.id, 0.0)
        answer = await router.answer(Query("?"))

        assert (await router.monitors())[0].alarm.kind == "errors"
        assert answer.tier == ("far" if defers else "near")
        assert ("alarm (errors)" in answer.decision.steps[0].reason) == defers


# --- giving up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidence", "when_unsure", "status", "reason", "asked_far"),
    [
        (0.1, "abstain", "abstained", "abstained_early", 0),
        (0.5, "abstain", "answered", "last_tier", 1),
        (0.1, "best", "answered", "last_tier", 1),
    ],
)
async def test_a_hopeless_score_asks_nobody_further(confidence, when_unsure, status, reason, asked_far):
    """Where the query takes abstention; one that wants the best answer is escalated as ever."""
    near = model("near", ["near"], confidence=confidence)
    far = ScriptedModel(["far"], card=ModelCard("far", "far", price=FREE))
    tier = Tier(near, scorer=MeanProbability(), threshold=0.8, abstain_below=0.2)

    answer = await router_of(tier, far).answer(Query("?", when_unsure=when_unsure))

    assert (answer.decision.status, answer.decision.reason) == (status, reason)
    assert len(far.queries) == asked_far


def test_giving_up_above_the_threshold_is_refused():
    """An answer cannot be both accepted and hopeless."""
    with pytest.raises(ConfigError, match="abstain_below"):
        Tier(model("near", ["x"]), scorer=MeanProbability(), threshold=0.5, abstain_below=0.6)
