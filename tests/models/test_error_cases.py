"""A model that is shown past mistakes: what it is sent, and when it is sent the query alone."""

from dataclasses import replace

import pytest
from contracts.chat_model import ChatModelContract
from support.obedient import obedient

from nearfar.errors import ConfigError
from nearfar.models.error_cases import WithErrorCases, with_error_cases
from nearfar.testing import ScriptedModel
from nearfar.types import ErrorCase, Message, ModelCard, Query, SamplingOptions, prompt_token_bound

CASES = [ErrorCase("old question", "wrong one", "right one", reason="for a reason"), ErrorCase("other", "no", "yes")]


class Listed:
    """The same cases for every question, up to k."""

    async def similar(self, question, k):
        return [(case, 0.5) for case in CASES[:k]]


class TestWithErrorCases(ChatModelContract):
    @pytest.fixture
    async def model(self):
        model = WithErrorCases(ScriptedModel([obedient]), Listed())
        yield model
        await model.aclose()


def echoing(card=None):
    """A model whose answer is what it was sent."""
    return ScriptedModel([lambda query: "\n".join(message.text for message in query.messages)], card=card)


async def test_the_likest_mistakes_go_before_the_question():
    """With what was wrong, why, and what is right; the conversation before it stays first."""
    conversation = (Message("system", "be brief"), Message("user", "hello"), Message("assistant", "hi"))
    query = Query((*conversation, Message("user", "new question")))

    answer = await WithErrorCases(echoing(), Listed(), k=1).complete(query)

    assert answer.text.startswith("be brief\nhello\nhi\n")
    assert answer.text.endswith("Right answer: right one\n</case>\nnew question")
    for part in ("old question", "wrong one", "for a reason"):
        assert part in answer.text
    assert "other" not in answer.text.split("<case>")[1]
    assert answer.text.count("<case>") == 1


async def test_a_budget_of_its_own_leaves_a_query_as_it_is():
    """Its tier was chosen by what the query alone may cost."""
    answer = await WithErrorCases(echoing(), Listed()).complete(Query("new question", budget_usd=1.0))

    assert answer.text == "new question"


async def test_cases_that_do_not_fit_are_left_out():
    """The least like one first, until the prompt and its answer fit into the context window."""
    query = Query("new question", sampling=SamplingOptions(max_tokens=10))
    both = replace(query, prompt=with_error_cases(query.messages, CASES))
    one = replace(query, prompt=with_error_cases(query.messages, CASES[:1]))

    async def sent(window):
        card = ModelCard("small", "far", context_window=window)
        return (await WithErrorCases(echoing(card), Listed()).complete(query)).text.count("<case>")

    assert await sent(prompt_token_bound(both) + 10) == 2
    assert await sent(prompt_token_bound(both) + 9) == 1
    assert await sent(prompt_token_bound(one) + 9) == 0


def test_without_cases_the_messages_stay():
    """And a conversation without a user's message has them at its end."""
    system = (Message("system", "be brief"),)

    assert with_error_cases(system, []) == system
    assert with_error_cases(system, CASES)[0] == system[0]
    assert with_error_cases(system, CASES)[1].text.count("<case>") == 2
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        WithErrorCases(echoing(), Listed(), k=0)
