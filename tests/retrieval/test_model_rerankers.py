"""Reranking by chat models: the odds of yes, and pairs in both orders, whatever the model's bias."""

import pytest
from hypothesis import given, settings
from hypothesis.strategies import permutations, sampled_from

from nearfar.errors import ConfigError
from nearfar.retrieval.cross_encoder import CrossEncoder
from nearfar.retrieval.model_rerankers import PairwiseReranker, YesNoReranker
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Chunk, Hit, TokenLogprob


def hits(order):
    """Passages that say how good they are, 0 the worst."""
    return [Hit(Chunk(f"worth {number}", id=str(number)), 0.0) for number in order]


def ids(found):
    """What was found, in order."""
    return [hit.chunk.id for hit in found]


def judge(query):
    """Says which of two passages is worth more."""
    a, b = (int(part.split("worth ")[1].split()[0]) for part in query.text.split("Passage ")[1:3])
    return "A" if a > b else "B"


@settings(max_examples=20, deadline=None)
@given(order=permutations(range(6)), strategy=sampled_from(["all", "heap", "sliding"]))
async def test_every_strategy_sorts_by_a_consistent_judge(order, strategy):
    """From any order, the best first, with falling scores."""
    reranker = PairwiseReranker(ScriptedModel([judge]), strategy)

    found = await reranker.rerank("which?", hits(order))

    assert ids(found) == ["5", "4", "3", "2", "1", "0"]
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


@pytest.mark.parametrize("strategy", ["all", "sliding"])
async def test_a_bias_to_a_position_changes_nothing(strategy):
    """A judge that always says A has said nothing: the order stays."""
    reranker = PairwiseReranker(ScriptedModel(["A"]), strategy)

    assert ids(await reranker.rerank("which?", hits([2, 0, 1]))) == ["2", "0", "1"]


async def test_sliding_asks_a_pass_at_a_time():
    """One pass brings the best up, in two calls a pair."""
    model = ScriptedModel([judge])

    found = await PairwiseReranker(model, "sliding", passes=1).rerank("which?", hits([0, 1, 2, 3]))

    assert ids(found) == ["3", "0", "1", "2"]
    assert len(model.queries) == 6


def yes_no(query):
    """Surer of passages that are worth more, in tokens as tokenizers write them."""
    number = int(query.text.split("worth ")[1].split()[0])
    from math import log

    yes = (number + 1) / 10
    return Answer("Yes", logprobs=(TokenLogprob("Yes", log(yes), ((" Yes", log(yes)), ("no", log(1 - yes)))),))


async def test_yes_and_no_order_passages_by_their_odds():
    """The score is the probability of yes among the two; one token is asked for."""
    model = ScriptedModel([yes_no], confidence=0.9)

    found = await YesNoReranker(model).rerank("which?", hits([1, 3, 2]))

    assert ids(found) == ["3", "2", "1"]
    assert found[0].score == pytest.approx(0.4)
    assert found[0].signals["yes"] == found[0].score
    assert all(query.sampling.max_tokens == 1 for query in model.queries)


def test_a_model_without_log_probabilities_cannot_say_how_surely():
    """Which is said before any call."""
    with pytest.raises(ConfigError, match="pairwise"):
        YesNoReranker(ScriptedModel(["yes"]))


async def test_nothing_to_rank_is_ranked():
    """No call is made."""
    model = ScriptedModel(["A"])

    for strategy in ("all", "heap", "sliding"):
        assert await PairwiseReranker(model, strategy).rerank("q", []) == []
        assert ids(await PairwiseReranker(model, strategy).rerank("q", hits([1]))) == ["1"]
    assert not model.queries


def test_a_cross_encoder_that_is_not_there_is_named():
    """With what to install or to give."""
    with pytest.raises(ConfigError, match=r"sentence-transformers|no weights"):
        CrossEncoder("/nonexistent/model")
