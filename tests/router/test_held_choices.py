"""How the probability is shared out among the texts that a schema allows, at every token where they part."""

import json
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.weights import smollm2_path

from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.held_choices import CHOICE_LOGPROBS, choice_probability, choice_signals
from nearfar.router.live import default_scorer, probes
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Query, ResponseFormat, SamplingOptions, TokenLogprob

ENDINGS = '"xyz'


def token(text, **shares):
    """A token with its alternatives' probabilities; blanks stand for underlines."""
    top = sorted(((name.replace("_", " "), log(p)) for name, p in shares.items()), key=lambda pair: -pair[1])
    return TokenLogprob(text, dict(top).get(text, -9.0), tuple(top))


def enum(*choices):
    """The shape of an object with one choice."""
    schema = {"type": "object", "properties": {"next": {"enum": list(choices)}}, "required": ["next"]}
    return ResponseFormat("json_schema", schema=schema, name="choice")


def test_only_what_was_allowed_counts():
    """The tokens that the model would rather have written are left out, and so are those where nothing parts."""
    tokens = (
        TokenLogprob('{"next": "', -0.1, (('{"next": "', -0.1), ("Sure", -2.0))),
        token("call", call=0.2, answer=0.3, Let=0.5),
        token(" mail", _mail=0.1, _the=0.9),
        token("er", er=0.06, ing=0.02, ed=0.9),
        TokenLogprob('"}', -3.0, (("!", -0.1), ('"}', -3.0))),
    )
    text = "".join(each.token for each in tokens)
    answer = Answer(text, logprobs=tokens)

    found = choice_signals(Query("?", response_format=enum("call mailer", "call mailing", "answer")), answer)

    assert found["choice_probability"] == pytest.approx(0.2 / 0.5 * 0.06 / 0.08)


def test_a_choice_that_another_goes_on_from_ends_at_its_quotation_mark():
    """`call get` is told from `call get_all` by what follows."""
    tokens = (
        token('{"next": "'),
        token("get", get=0.9),
        TokenLogprob('"}', log(0.3), (("_", log(0.6)), ('"}', log(0.3)))),
    )
    text = '{"next": "get"}'
    found = choice_probability(text, tokens, 9, ['"get"', '"get_all"'])

    assert found == pytest.approx(0.3 / 0.9)


def test_a_token_may_spell_more_than_the_choice():
    """Beginning before it and ending after it."""
    tokens = (TokenLogprob(' "yes",', log(0.2), ((' "no"', log(0.6)), (' "yes",', log(0.2)))),)

    assert choice_probability(' "yes",', tokens, 1, ['"yes"', '"no"']) == pytest.approx(0.25)


def test_of_a_list_the_first_item_counts():
    """It is what is chosen first; what follows depends on it."""
    schema = {"properties": {"plan": {"type": "array", "items": {"enum": ["a", "b"]}}, "why": {"type": "string"}}}
    tokens = (
        TokenLogprob('{"plan": ["', 0.0, (("{", 0.0),)),
        token("a", a=0.4, b=0.1),
        TokenLogprob('", "', 0.0, (('"', 0.0),)),
        token("b", a=0.5, b=0.5),
        TokenLogprob('"], "why": "b"}', 0.0, (('"', 0.0),)),
    )
    text = "".join(each.token for each in tokens)
    form = ResponseFormat("json_schema", schema=schema, name="plan")

    found = choice_signals(Query("?", response_format=form), Answer(text, logprobs=tokens))

    assert found == {"choice_probability": pytest.approx(0.8)}


@pytest.mark.parametrize(
    ("text", "tokens", "form"),
    [
        ('{"next": "a"}', None, enum("a", "b")),
        ('{"next": "a"}', (TokenLogprob('{"next": "a"}', -1.0),), enum("a", "b")),
        ('{"next": "a"}', (token("other words", b=0.5, a=0.4),), enum("a", "b")),
        ("a", (token("a", a=0.5, b=0.5),), enum("a", "b")),
        ('{"next": "a"}', (token('{"next": "a"}', a=0.5, b=0.5),), enum("a")),
        ('{"next": "a"}', (token('{"next": "a"}', a=0.5, b=0.5),), None),
    ],
    ids=["no tokens", "no alternatives", "tokens of another text", "another form", "no choice", "no schema"],
)
def test_where_nothing_is_told_there_is_no_signal(text, tokens, form):
    """Rather than a number that means nothing."""
    assert choice_signals(Query("?", response_format=form), Answer(text, logprobs=tokens)) == {}


@given(
    st.sets(st.text("xyz", min_size=1, max_size=4), min_size=2, max_size=6),
    st.dictionaries(st.text("xyz", max_size=4), st.lists(st.floats(0.05, 1), min_size=5, max_size=5)),
)
def test_the_choices_share_out_the_whole(choices, weights):
    """With every character told, the probabilities of all choices add up to 1, whatever the model would rather say.

    Of those that were not written, no less than theirs is told.
    """

    def tokens(choice):
        quoted = json.dumps(choice)
        for place, character in enumerate(quoted):
            given_weights = weights.get(quoted[1:place] if place else "", [0.2] * 5)
            total = sum(given_weights)
            shares = dict(zip([*ENDINGS, "?"], (weight / total for weight in given_weights), strict=True))
            yield TokenLogprob(character, log(shares[character]), tuple((c, log(p)) for c, p in shares.items()))

    quoted = [json.dumps(each) for each in choices]
    exact = {each: choice_probability(each, [*tokens(json.loads(each))], 0, quoted) for each in quoted}
    written = quoted[0]
    told = {each: choice_probability(written, [*tokens(json.loads(written))], 0, quoted, each) for each in quoted}

    assert sum(exact.values()) == pytest.approx(1)
    assert told[written] == exact[written]
    assert all(told[each] >= exact[each] - 1e-12 for each in quoted)


async def test_of_two_choices_the_embedded_model_writes_the_likelier():
    """At temperature 0, where they part at one token; what it would have said without a schema is left out."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=512, parallel=1, threads=1)
    sampling = SamplingOptions(temperature=0.0, max_tokens=24, logprobs=True, top_logprobs=CHOICE_LOGPROBS)
    found, own = [], []
    try:
        for city, others in (("Paris", "Rome"), ("Rome", "Oslo")):
            query = Query(f"Write a poem about {city}.", response_format=enum(city, others), sampling=sampling)
            answer = await model.complete(query)
            found.append(choice_signals(query, answer)["choice_probability"])
            own.append(exp(sum(each.logprob for each in answer.logprobs)))
    finally:
        await model.aclose()

    assert all(0.5 <= p <= 1 for p in found)
    assert all(p > other for p, other in zip(found, own, strict=True))


@pytest.mark.parametrize(("share", "tier"), [(0.9, "near"), (0.6, "far")])
async def test_a_cascade_escalates_what_its_near_model_half_chose(share, tier):
    """A sure choice stays near, whatever its tokens' own probabilities are."""
    tokens = (
        TokenLogprob('{"next": "', -5.0, (("Sure", -0.1), ('{"next": "', -5.0))),
        token("left", left=0.1 * share, right=0.1 * (1 - share), Well=0.9),
        TokenLogprob('"}', 0.0, (('"}', 0.0),)),
    )
    answer = Answer("".join(each.token for each in tokens), logprobs=tokens)
    near = ScriptedModel([answer], name="near", confidence=0.5)
    far = ScriptedModel(['{"next": "right"}'], name="far")
    first = Tier(near, scorer=default_scorer(["span", "choices"]), threshold=0.8, probes=probes(["choices"]))
    router = Router({"auto": Cascade([first, Tier(far)], name="auto")}, {"near": near, "far": far})

    found = await router.answer(Query("Where?", response_format=enum("left", "right")))

    assert found.tier == tier
    assert found.decision.steps[0].score == pytest.approx(share)
