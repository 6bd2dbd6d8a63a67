"""Signals that cost calls: what they say, what they take, and what happens when money or time run out."""

import asyncio
import time
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ConfigError, UpstreamUnavailable
from nearfar.router.equivalence import Entailment, SameAnswer, SimilarVectors
from nearfar.router.sampled_signals import PTrue, Samples, SelfCheck, StatedConfidence, probe_all
from nearfar.router.self_reports import label_share, read_stated
from nearfar.router.semantic_entropy import discrete_entropy, sample_signals, semantic_entropy
from nearfar.testing import ScriptedModel
from nearfar.types import FREE, Answer, ModelCard, Price, Query, SamplingOptions, TokenLogprob, ToolCall, Usage

PRICE = Price(1.0, 2.0)


def model(script, *, price=FREE, placement="near", delay_s=0.0, name="m"):
    """A scripted model that gives log-probabilities."""
    card = ModelCard(name, placement, price=price, supports_logprobs=True, max_output_tokens=10)
    return ScriptedModel(script, card=card, confidence=0.5, delay_s=delay_s)


def letter(**probabilities):
    """An answer of one token with these alternatives."""
    top = tuple((token, log(p)) for token, p in sorted(probabilities.items(), key=lambda pair: -pair[1]))
    return Answer(top[0][0], logprobs=(TokenLogprob(*top[0], top),), usage=Usage(10, 1))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-20, 0)), min_size=1, max_size=12))
def test_semantic_entropy_is_between_none_and_all_different(answers):
    """0 where all mean the same, at most the logarithm of the number of meanings, whatever the order."""
    groups, logprobs = [g for g, _ in answers], [p for _, p in answers]
    bound = log(len(set(groups))) + 1e-9

    assert 0 <= semantic_entropy(groups, logprobs) <= bound
    assert 0 <= discrete_entropy(groups) <= bound
    assert semantic_entropy(groups[::-1], logprobs[::-1]) == pytest.approx(semantic_entropy(groups, logprobs))
    assert semantic_entropy(groups, [-1.0] * len(groups)) == pytest.approx(discrete_entropy(groups))


def test_semantic_entropy_by_hand():
    """Two answers of one meaning and one of another, at probabilities 0.2, 0.2 and 0.4, are an even split."""
    assert semantic_entropy([0, 0, 1], [log(0.2), log(0.2), log(0.4)]) == pytest.approx(log(2))
    assert discrete_entropy([0, 0, 1]) == pytest.approx(-(2 / 3 * log(2 / 3) + 1 / 3 * log(1 / 3)))


def test_signals_of_samples():
    """The answer's own group is counted among the samples; entropy is over the samples alone."""
    found = sample_signals([0, 0, 1, 1, 1], None)

    assert found == {
        "self_consistency": 0.25,
        "sample_agreement": 0.75,
        "num_meanings": 2.0,
        "discrete_semantic_entropy": pytest.approx(discrete_entropy([0, 1, 1, 1])),
    }


async def test_samples_are_drawn_anew_and_counted():
    """Five samples at a temperature of their own, compared by their final number; usage and cost add up."""
    near = model(["#### 7", "so #### 7.0", "#### 8", "#### 7", "#### 7"], price=PRICE)
    query = Query("How many?", sampling=SamplingOptions(temperature=0.0, seed=4))

    found = await probe_all([Samples(5)], query, Answer("#### 7"), near)

    (cost,) = found.costs
    assert found.signals["self_consistency"] == 0.8
    assert found.signals["semantic_entropy"] == pytest.approx(found.signals["discrete_semantic_entropy"])
    assert [q.sampling.temperature for q in near.queries] == [0.7] * 5
    assert [q.sampling.seed for q in near.queries] == [5, 6, 7, 8, 9]
    assert (cost.name, cost.calls, cost.missing) == ("samples", 5, None)
    assert cost.cost_usd == pytest.approx(PRICE.cost_usd(cost.usage))
    assert cost.usage.completion_tokens == 11


async def test_tool_calls_agree_by_their_arguments():
    """The same call with its arguments in another order is the same answer."""

    def call(arguments):
        return Answer("", tool_calls=(ToolCall("1", "get", arguments),), finish_reason="tool_calls")

    near = model([call('{"b": 2, "a": 1}'), call('{"a": 3}')])

    found = await probe_all([Samples(2), SelfCheck()], Query("?"), call('{"a": 1, "b": 2}'), near)

    assert found.signals["self_consistency"] == 0.5
    assert "tool call" in found.costs[1].missing
    assert len(near.queries) == 2


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ({"A": 0.6, " A": 0.1, "B": 0.2, "x": 0.1}, {}, 0.7 / 0.9),
        ({"yes": 0.2, "Yes": 0.2, "No": 0.4}, {}, 0.5),
        ({"A": 0.9, "x": 0.01}, {}, 0.9 / 0.91),  # B is at most as likely as the least that is shown
        ({"x": 0.9, "y": 0.01}, {}, None),
    ],
)
def test_a_label_has_its_share_of_both(one, other, share):
    """Spellings are added up; a label that is not shown is bounded; where neither is, nothing is known."""
    labels = ("Yes", "No") if "Yes" in one else ("A", "B")

    assert label_share(letter(**one), *labels) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("text", "value"),
    [("85", 0.85), ("About 90%.", 0.9), ("0.7", 0.7), ("1", 0.01), ("100", 1.0), ("very", None), ("250", None)],
)
def test_a_stated_confidence_is_read(text, value):
    """Percent or a fraction with a point; nonsense is absent, never zero."""
    assert read_stated(text) == value


async def test_self_reports_ask_one_token_about_the_answer():
    """P(True) shows question and answer anew, the check goes on with the conversation, a number is read."""
    near = model([letter(A=0.75, B=0.25), letter(Yes=0.2, No=0.6), "80"])

    found = await probe_all([PTrue(), SelfCheck(), StatedConfidence()], Query("Capital?"), Answer("Paris"), near)

    assert found.signals == {"p_true": 0.75, "self_check": pytest.approx(0.25), "stated_confidence": 0.8}
    assert [q.sampling.max_tokens for q in near.queries] == [1, 1, 8]
    assert "Proposed Answer: Paris" in near.queries[0].text
    assert [m.role for m in near.queries[1].messages] == ["user", "assistant", "user"]
    assert [cost.calls for cost in found.costs] == [1, 1, 1]


async def test_what_a_probe_cannot_find_out_is_absent_with_the_reason():
    """A failing model, a reply that is no label, a model without log-probabilities: the other signals stand."""
    near = model([UpstreamUnavailable("m is down", model="m"), "hm", "70"])
    blind = ScriptedModel(["70"], card=ModelCard("blind", "near", price=FREE))

    found = await probe_all([PTrue(), SelfCheck(), StatedConfidence()], Query("?"), Answer("x"), near)
    unseeing = await probe_all([PTrue(), StatedConfidence()], Query("?"), Answer("x"), blind)

    assert found.signals == {"stated_confidence": 0.7}
    assert [cost.missing for cost in found.costs] == ["m is down", "the reply does not tell", None]
    assert unseeing.signals == {"stated_confidence": 0.7}
    assert "log-probabilities" in unseeing.costs[0].missing


async def test_probes_keep_to_the_budget():
    """What is left never goes below zero: the samples are not drawn where all five cannot be paid for."""
    near = model([Answer("x", usage=Usage(20, 10))], price=PRICE)
    one_usd = near.card.cost_bound_usd(Query("?"))

    for left in (0.0, one_usd, 3 * one_usd, 5.1 * one_usd):
        found = await probe_all([Samples(5), StatedConfidence()], Query("?"), Answer("x"), near, left_usd=left)

        assert found.cost_usd <= left
        assert ("self_consistency" in found.signals) == (left >= 5 * one_usd)
        if left < 5 * one_usd:
            assert "budget" in found.costs[0].missing
            assert found.costs[0].calls == 0


async def test_probes_keep_to_the_deadline():
    """Out of time the calls are cancelled and the signal is absent; a later probe is not begun."""
    near = model(["x"], delay_s=30.0)

    found = await probe_all(
        [Samples(2), StatedConfidence()], Query("?"), Answer("x"), near, deadline=time.perf_counter() + 0.05
    )

    assert found.signals == {}
    assert [cost.missing for cost in found.costs] == ["time: none was left"] * 2
    assert [cost.calls for cost in found.costs] == [2, 0]


async def test_a_far_judge_is_not_asked_about_a_near_query():
    """Privacy holds for the calls that signals make."""
    near, judge = model(["a", "b"]), model(["entailment"], placement="far", name="judge")

    found = await probe_all([Samples(2, same=Entailment(judge))], Query("?", privacy="near"), Answer("a"), near)

    assert judge.queries == []
    assert found.signals == {}
    assert "may not leave" in found.costs[0].missing


async def test_entailment_groups_what_entails_both_ways():
    """One direction is not enough; equal texts are not compared."""

    def judge(query):
        claims = {line.partition(": ")[2] for line in query.text.splitlines() if line.startswith("Possible")}
        return "entailment" if claims == {"It is Paris", "Paris"} else "neutral"

    near = model([judge])

    async def ask(who, query):
        return await who.complete(query)

    groups = await Entailment(near).groups("Capital?", ["Paris", "It is Paris", "Rome", "Rome"], ask)

    assert groups == [0, 0, 1, 1]
    assert all("Capital?" in query.text for query in near.queries)


class Directions:
    """Vectors by the text's first letter."""

    name, dim = "directions", 2

    def embed(self, texts):
        found = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.9, exp(log(1 - 0.81) / 2))}
        return np.array([found.get(text[:1], (0.0, 0.0)) for text in texts], dtype=np.float32)


async def test_close_vectors_are_one_meaning():
    """Cosine with the group's first member decides; texts of unknown words are equal only to themselves."""
    groups = await SimilarVectors(Directions()).groups("?", ["a1", "c2", "b3", "?", "!", "?"], None)

    assert groups == [0, 0, 1, 2, 3, 2]


async def test_final_answers_are_compared():
    """Words differ, the number is the same."""
    assert await SameAnswer().groups("How many?", ["It is 5.", "5.0", "six"], None) == [0, 0, 1]


@pytest.mark.parametrize("options", [{"num_samples": 1}, {"temperature": 0.0}])
def test_samples_that_cannot_differ_are_refused(options):
    """One sample, or no temperature, tells nothing."""
    with pytest.raises(ConfigError):
        Samples(**options)


async def test_cancelling_stops_the_samples():
    """Whoever goes away leaves no call running."""
    near = model(["x"], delay_s=30.0)
    task = asyncio.create_task(probe_all([Samples(3)], Query("?"), Answer("x"), near))
    await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert asyncio.all_tasks() == {asyncio.current_task()}
