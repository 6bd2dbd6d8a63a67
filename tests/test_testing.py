"""The doubles that users get do what real models do."""

from math import exp, log

import pytest
from contracts.chat_model import ChatModelContract, collect
from support.obedient import obedient

from nearfar.errors import UnsupportedOption, UpstreamTimeout
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, ModelCard, Price, Query, SamplingOptions, ToolCall, Usage


class TestScriptedModel(ChatModelContract):
    """Answers by a function of the query."""

    @pytest.fixture
    async def model(self):
        model = ScriptedModel([obedient], confidence=0.9, delay_s=0.01)
        yield model
        await model.aclose()


class TestScriptedTexts(ChatModelContract):
    """The usual way: a list of texts, and a card that can do nothing else."""

    honours_lengths = False

    @pytest.fixture
    async def model(self):
        card = ModelCard("plain", "far", price=Price(1.0, 2.0), supports_logprobs=True)
        model = ScriptedModel(["Hello there, dear reader."], confidence=0.5, card=card)
        yield model
        await model.aclose()


async def test_the_script_is_followed_in_order_and_its_last_line_repeats():
    """Errors are raised where they stand in the script."""
    model = ScriptedModel(["a", UpstreamTimeout("late", model="scripted"), lambda query: query.text.upper()])

    first = await model.complete(Query("x"))
    with pytest.raises(UpstreamTimeout):
        await model.complete(Query("x"))
    third = await model.complete(Query("y"))
    fourth = await model.complete(Query("z"))

    assert [first.text, third.text, fourth.text] == ["a", "Y", "Z"]
    assert [query.text for query in model.queries] == ["x", "x", "y", "z"]


async def test_confidence_is_every_tokens_probability():
    """Alternatives share what is left."""
    model = ScriptedModel(["a b"], confidence=0.6)

    answer = await model.complete(Query("x", sampling=SamplingOptions(logprobs=True, top_logprobs=3)))

    assert [each.logprob for each in answer.logprobs] == [log(0.6)] * 2
    assert sum(exp(p) for _, p in answer.logprobs[0].top) == pytest.approx(1)


async def test_a_whole_answer_keeps_what_it_says_and_is_priced():
    """Tool calls, reasoning and log-probabilities of any length stream as they are."""
    card = ModelCard("priced", "far", price=Price(1.0, 2.0))
    said = Answer("x y", reasoning="hm", tool_calls=(ToolCall("1", "f", "{}"),), usage=Usage(1_000_000, 500_000))
    model = ScriptedModel([said], card=card)

    _, answer = await collect(model.stream(Query("q")))

    assert answer.cost_usd == 2.0
    assert (answer.text, answer.reasoning, answer.tool_calls) == (said.text, said.reasoning, said.tool_calls)


async def test_a_refused_option_uses_up_no_line_of_the_script():
    """What the card rules out never reaches the script."""
    model = ScriptedModel(["a", "b"], card=ModelCard("plain", "near"))

    with pytest.raises(UnsupportedOption, match="'plain' cannot take 'logprobs'"):
        await model.complete(Query("x", sampling=SamplingOptions(logprobs=True)))

    assert (await model.complete(Query("x"))).text == "a"


@pytest.mark.parametrize(("script", "confidence"), [([], None), (["a"], 0.0), (["a"], 1.5)])
def test_a_script_that_cannot_be_played_is_refused(script, confidence):
    """At once, not at the first query."""
    with pytest.raises(ValueError, match=r"script|confidence"):
        ScriptedModel(script, confidence=confidence)
