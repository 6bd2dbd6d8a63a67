"""Answers that rest on passages, and those that are withheld."""

from dataclasses import replace

import pytest
from contracts.retriever import animals
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ConfigError, RequestError, UpstreamError
from nearfar.retrieval.citations import check, sentences, support
from nearfar.retrieval.compression import Compressor
from nearfar.retrieval.embedders import find_embedder
from nearfar.retrieval.grounded_model import GroundedModel
from nearfar.retrieval.grounding import ABSTENTION, Grounding, fit_passages, retrieval_signals
from nearfar.retrieval.passages import LexicalRetriever
from nearfar.router.signals import answer_signals
from nearfar.testing import ScriptedModel
from nearfar.types import Chunk, Hit, Message, Query, StreamEnd, TextDelta, estimate_tokens

pytest.importorskip("bm25s", reason="needs nearfar[retrieval]")


@pytest.fixture(scope="module")
def zoo():
    """Five passages."""
    return LexicalRetriever(animals())


CATS, DOGS, HENS = (chunk for chunk in animals()[:3])


def test_citation_that_holds_is_kept():
    """With the words of the passage that bear it out."""
    checked = check("Cats hunt mice at night [1]. Dogs fetch sticks [2].", [CATS, DOGS])

    assert checked.text == "Cats hunt mice at night [1]. Dogs fetch sticks [2]."
    assert [(c.number, c.quote) for c in checked.citations] == [(1, CATS.text), (2, DOGS.text)]
    assert (checked.unsupported, checked.num_dropped, checked.support) == ((), 0, 1.0)


def test_wrong_citation_is_corrected_and_a_missing_one_added():
    """To the passage that says it."""
    checked = check("Cats hunt mice at night [2]. Dogs fetch sticks.", [CATS, DOGS])

    assert checked.text == "Cats hunt mice at night [1]. Dogs fetch sticks [2]."
    assert checked.num_dropped == 1


@pytest.mark.parametrize("mark", ["[7]", "[0]", "[99999999]", "[1, 7]"])
def test_invented_sentence_loses_its_citation(mark):
    """Neither a passage that does not say it nor one that does not exist is cited."""
    checked = check(f"Elephants trumpet loudly in Africa {mark}.", [CATS, DOGS])

    assert checked.text == "Elephants trumpet loudly in Africa."
    assert checked.citations == ()
    assert checked.unsupported == ("Elephants trumpet loudly in Africa.",)
    assert checked.support == 0.0


def test_number_that_the_passage_has_not_is_unsupported():
    """However well the words agree."""
    passage = "The tower was built in 1889 and is 330 metres high."

    assert support("The tower was built in 1889.", passage)[0] == 1.0
    assert support("The tower was built in 1899.", passage)[0] == 0.0


def test_name_that_the_passage_has_not_is_unsupported():
    """Unless the question had it; a document's title counts as part of its passage."""
    passage = "The tower in Paris was designed by Gustave Eiffel and built in two years."
    claim = "The tower in Paris was designed by Stephen Sauvestre and built in two years."

    assert support(claim, passage)[0] == 0.0
    assert support(claim, passage, given="Did Stephen Sauvestre design it?")[0] > 0
    titled = Chunk("It was built in two years.", metadata={"title": "Eiffel Tower"})
    assert check("The Eiffel Tower was built in two years [1].", [titled]).citations


def test_short_answer_is_borne_out_by_what_it_adds():
    """The question's own words prove nothing."""
    question = "Which animals hunt mice at night?"

    assert support("Cats hunt mice at night", CATS.text, given=question)[0] == 1.0
    assert support("Elephants hunt mice at night", CATS.text, given=question)[0] == 0.0


def test_sentence_may_rest_on_two_passages_together():
    """Each is cited for its part, and neither would do alone."""
    checked = check("Cats and dogs: the former purr, the latter bark [1][2].", [CATS, DOGS, HENS])

    assert [citation.number for citation in checked.citations] == [1, 2]
    assert check("Cats and dogs: the former purr, the latter bark [1].", [CATS, DOGS, HENS]).citations == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is so. [1] And so.", ["It is so. [1]", "And so."]),
        ("It costs 3.5 dollars. Really?", ["It costs 3.5 dollars.", "Really?"]),
        ("", []),
        ("- one\n- two", ["- one", "- two"]),
    ],
)
def test_sentences(text, expected):
    """Ends are full stops before capitals, and lines."""
    assert sentences(text) == expected


@given(st.text(alphabet="Cats hunt mice. [123],-\n", max_size=80))
def test_checked_text_cites_only_what_holds(text):
    """Whatever a model writes, each number in the checked answer has its citation, and checking again changes none."""
    checked = check(text, [CATS, DOGS])
    again = check(checked.text, [CATS, DOGS])

    assert {c.number for c in again.citations} == {c.number for c in checked.citations}
    assert again.num_dropped == 0


async def test_answer_cites_what_was_retrieved(zoo):
    """The model is shown numbered passages, and its answer comes back with the place of each."""
    model = ScriptedModel(["Owls hunt mice at night."])

    grounded = await Grounding(zoo, model).answer("Which animals hunt mice at night?")

    assert grounded.is_answered
    citation = grounded.citations[0]
    assert citation.chunk.source == "zoo/owls.txt"
    assert grounded.text == f"Owls hunt mice at night [{citation.number}]."
    assert f"[{citation.number}] {citation.chunk.text}" in model.queries[0].text
    assert "Question: Which animals hunt mice at night?" in model.queries[0].text
    assert grounded.signals["retrieval_coverage"] == 0.75
    assert grounded.signals["grounding_support"] == 1.0


async def test_no_model_is_asked_where_nothing_speaks_of_it(zoo):
    """A question whose words the passages have not costs no call."""
    model = ScriptedModel(["Paris"])

    grounded = await Grounding(zoo, model).answer("What is the capital of France?")

    assert (grounded.text, grounded.reason) == (ABSTENTION, "no_evidence")
    assert model.queries == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("I don't know.", "model_abstained"),
        ("The passages do not say.", "model_abstained"),
        ("", "model_abstained"),
        ("Elephants trumpet in Africa [1].", "unsupported"),
    ],
)
async def test_answer_without_support_is_withheld(zoo, said, reason):
    """Whether the model gives up or makes something up."""
    grounded = await Grounding(zoo, ScriptedModel([said])).answer("Which animals hunt mice at night?")

    assert (grounded.text, grounded.reason, grounded.citations) == (ABSTENTION, reason, ())


async def test_draft_finds_what_the_question_does_not():
    """The near model's draft has the words of the passage; the far one is shown the draft and the passage."""
    law = Chunk("Article 1195: where a contract becomes excessively onerous, a party may ask to renegotiate.", "code")
    chunks = [law, *animals()]
    drafter = ScriptedModel(["A contract that becomes excessively onerous may be renegotiated."], name="near")
    reviser = ScriptedModel(["A party may ask to renegotiate [1]."], name="far")
    grounding = Grounding(LexicalRetriever(chunks), reviser, min_coverage=0.0)

    grounded = await grounding.revise("My supplier's costs exploded; what are my rights?", drafter)

    assert grounded.is_answered
    assert [c.chunk for c in grounded.citations] == [law]
    assert (
        "<draft>\nA contract that becomes excessively onerous may be renegotiated.\n</draft>" in reviser.queries[0].text
    )
    assert [answer.model for answer in grounded.answers] == ["near", "far"]
    assert not (await grounding.answer("My supplier's costs exploded; what are my rights?")).is_answered


async def test_failing_model_fails_the_answer(zoo):
    """Its error comes out."""
    model = ScriptedModel([UpstreamError("broken", model="m")])

    with pytest.raises(UpstreamError):
        await Grounding(zoo, model).answer("Which animals hunt mice?")


@pytest.mark.parametrize("question", ["", "  ", Query((Message("system", "hi"),))])
async def test_empty_question_is_refused(zoo, question):
    """Before anything is searched."""
    with pytest.raises(RequestError, match="question is empty"):
        await Grounding(zoo, ScriptedModel(["x"])).answer(question)


@pytest.mark.parametrize("option", [{"k": 0}, {"passage_tokens": 0}, {"min_coverage": 2}, {"min_support": -1}])
def test_senseless_limits_are_refused(zoo, option):
    """By name."""
    with pytest.raises(ConfigError, match=next(iter(option))):
        Grounding(zoo, ScriptedModel(["x"]), **option)


@given(st.lists(st.text(alphabet="abc. A", min_size=1, max_size=60), max_size=6), st.integers(1, 30))
def test_passages_fit_their_tokens(texts, tokens):
    """The shown text is within the limit, in the order of the hits, and never empty where there is a hit."""
    hits = [Hit(Chunk(text, str(i)), 1.0) for i, text in enumerate(texts)]

    shown = fit_passages(hits, tokens)

    assert sum(estimate_tokens(hit.chunk.text) for hit in shown) <= tokens
    assert [hit.chunk.source for hit in shown] == [hit.chunk.source for hit in hits][: len(shown)]
    assert bool(shown) == bool(hits)


async def test_compressed_passages_are_shown_and_whole_ones_cited():
    """The model is sent what the question needs; a citation quotes the passage as it stands."""
    fill = " ".join(f"The keeper walked past cage {n} and noted nothing of interest." for n in range(12))
    owls = Chunk(f"Owls turn their heads by 270 degrees. {fill}", "owls")
    model = ScriptedModel(["Owls turn their heads by 270 degrees [1]."])
    grounding = Grounding(
        LexicalRetriever([owls, *animals()]),
        model,
        passage_tokens=40,
        compressor=Compressor(find_embedder("static")),
    )

    grounded = await grounding.answer("By how many degrees do owls turn their heads?")

    prompt = model.queries[0].text
    assert "270 degrees" in prompt
    assert "cage 11" not in prompt
    assert grounded.citations[0].chunk == owls
    assert grounded.citations[0].quote == "Owls turn their heads by 270 degrees."


def test_signals_of_hits():
    """Worked out by hand for two hits."""
    hits = [
        Hit(Chunk("red fish", "a"), 2.0, {"cosine": 0.9, "bm25": 1.0}),
        Hit(Chunk("blue bird", "b"), 1.0, {"cosine": 0.4, "bm25": 3.0}),
    ]

    assert retrieval_signals("red bird sings", hits) == {
        "retrieval_coverage": 2 / 3,
        "retrieval_best_coverage": 1 / 3,
        "retrieval_top_cosine": 0.9,
        "retrieval_top_bm25": 3.0,
        "retrieval_margin": 0.5,
        "retrieval_agreement": 1.0,
    }
    assert retrieval_signals("", []) == {"retrieval_coverage": 0.0, "retrieval_best_coverage": 0.0}


async def test_grounded_model_hands_its_signals_to_scorers(zoo):
    """A tier's scorer sees what the retrieval says, and the answer keeps its citations and its cost."""
    inner = ScriptedModel(["Owls hunt mice at night [1]."], confidence=0.9)
    model = GroundedModel(Grounding(zoo, inner), name="reader")
    query = Query("Which animals hunt mice at night?")

    answer = await model.complete(replace(query, sampling=replace(query.sampling, logprobs=True)))

    assert answer.model == model.card.name == "reader"
    signals = answer_signals(answer)
    assert signals["retrieval_coverage"] == 0.75
    assert signals["mean_logprob"] < 0
    assert answer.extra["citations"][0]["source"].startswith("zoo/")
    events = [event async for event in model.stream(query)]
    assert [type(event) for event in events] == [TextDelta, StreamEnd]


async def test_grounded_model_abstains_without_log_probabilities(zoo):
    """So that no scorer takes the model's sureness for evidence."""
    model = GroundedModel(Grounding(zoo, ScriptedModel(["Elephants trumpet."], confidence=0.99)))
    query = Query("Which animals hunt mice at night?")

    answer = await model.complete(replace(query, sampling=replace(query.sampling, logprobs=True)))

    assert (answer.text, answer.finish_reason, answer.logprobs) == (ABSTENTION, "abstained", None)
    assert answer.signals["grounding_support"] == 0.0
