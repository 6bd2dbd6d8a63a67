"""Compression keeps what a question needs: budgets hold, what must stay stays, less is kept where less is allowed."""

import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, floats, lists, sampled_from

from nearfar.errors import ConfigError, RequestError
from nearfar.types import Chunk

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="bm25s is not installed")
pytest.importorskip("wordllama", reason="wordllama is not installed")

from nearfar.retrieval.compression import Answered, Compressor, Level, count_tokens, fit_compression  # noqa: E402
from nearfar.retrieval.embedders import Remembered, StaticEmbedder  # noqa: E402
from nearfar.retrieval.names import plain  # noqa: E402
from nearfar.retrieval.sentence_ranking import bridged  # noqa: E402
from nearfar.retrieval.spans import judge_spans, span_hits, spans  # noqa: E402
from nearfar.retrieval.word_dropping import MeaningValues, TokenClassifier, drop_words  # noqa: E402

PASSAGES = [
    Chunk(text, title, 0, len(text), {"title": title})
    for title, text in (
        ("Anna Roe", "Anna Roe is a painter. She was born in Velda in 1951. Her brother sold wine and was very rich."),
        ("Velda", "Velda is a town on the river Ombra. It is known for its cheese, which is made in caves."),
        ("Ombra", "The Ombra is a river. It flows for 90 km into the Grey Sea, as the survey of 1893 found [2]."),
        ("Cheese", "Cheese is made of milk. It has been eaten for a long time, and people still like it very much."),
    )
]
UNTITLED = [Chunk(each.text, "one.txt", 0, len(each.text)) for each in PASSAGES]
QUESTION = "When was the painter Anna Roe born?"


@pytest.fixture(scope="module")
def compressor():
    """With the static embedder and the packaged weights."""
    return Compressor(Remembered(StaticEmbedder()))


@settings(max_examples=40, deadline=None)
@given(rate=floats(0.05, 1), passages=sampled_from([PASSAGES, UNTITLED]), keeps_digits=booleans())
def test_a_budget_is_never_exceeded(compressor, rate, passages, keeps_digits):
    """Whatever it is; and what is kept is where it says."""
    found = compressor.compress(QUESTION, passages, rate=rate, keeps_digits=keeps_digits)

    assert found.tokens <= max(1, rate * found.original_tokens)
    assert found.tokens == count_tokens(found.text)
    for piece in found.pieces:
        whole = piece.chunk.text[piece.start : piece.end]
        left = iter(plain(whole).split())
        assert all(word in left for word in plain(piece.text).split())  # a subsequence
        assert piece.level is not Level.WHOLE or piece.text == whole


def test_the_answer_stays_at_a_third(compressor):
    """And its passage's title stands over it."""
    found = compressor.compress(QUESTION, PASSAGES, rate=0.34)

    assert "1951" in found.text
    assert "Anna Roe: " in found.text


WEATHER = "The weather was {} on day {}, and nobody had much to say about it."
ADJECTIVES = ("mild", "grey", "wet", "fair", "dry", "cool")


@pytest.mark.parametrize("cut", ["\n", None])
def test_a_long_document_keeps_what_answers_however_it_is_cut(compressor, cut):
    """One passage, or one per sentence: the sentence that answers is among the first of two hundred."""
    told = [WEATHER.format(ADJECTIVES[day % 6], day) for day in range(200)]
    told[120] = "Mayor Ines Calder opened the new bridge over the Ombra with a short speech."
    text = "\n".join(told)
    parts = [text] if cut is None else text.split(cut)
    passages = [Chunk(part, "diary.txt", 0, len(part)) for part in parts]

    ranked = compressor.ranked("Who opened the new bridge?", passages)
    found = compressor.compress("Who opened the new bridge?", passages, rate=0.1)

    assert told[120] in [hit.chunk.text for hit in ranked[:3]]
    assert told[120] in found.text
    whole = compressor.ranked("Who opened the new bridge?", [Chunk(text, "diary.txt", 0, len(text))])
    assert [hit.chunk.text for hit in ranked] == [hit.chunk.text for hit in whole]


def test_all_is_kept_where_all_may_be(compressor):
    """In the passages' order."""
    found = compressor.compress(QUESTION, PASSAGES, tokens=10_000)

    assert found.text == "\n".join(f"{chunk.metadata['title']}: {chunk.text}" for chunk in PASSAGES)
    assert found.rate == 1


def test_without_a_budget_the_belief_decides(compressor):
    """A question that one passage answers keeps less than all."""
    found = compressor.compress(QUESTION, PASSAGES)

    assert "1951" in found.text
    assert found.rate < 1
    assert all(piece.level is Level.WHOLE for piece in found.pieces)


def test_forced_phrases_stay(compressor):
    """Though the question does not need them."""
    found = compressor.compress(QUESTION, PASSAGES, rate=0.4, forced=["made of milk"])

    assert "Cheese is made of milk." in found.text


def test_digits_come_first_where_they_must_stay(compressor):
    """Though a question asks for something else."""
    numbers = {"1951", "90", "1893"}
    ways = {
        keeps: compressor.compress("Who likes cheese?", PASSAGES, rate=0.3, keeps_digits=keeps).text
        for keeps in (False, True)
    }

    assert numbers <= set(plain(ways[True]).split())
    assert not numbers <= set(plain(ways[False]).split())


@pytest.mark.parametrize(
    ("said", "runs"),
    [
        (
            "It flows for 90 km into the Duke of York Bay, as they found in 1893 [2].",
            ["flows", "90 km", "Duke of York Bay", "found", "1893", "[2]"],
        ),
        ("Born in Lima, Peru, on March 3, 1951, she painted.", ["Born", "Lima, Peru", "March 3, 1951", "painted"]),
        ("She used an iPhone (her first).", ["used", "iPhone", "first"]),
        ("a 16th - century play by the Academy for Wine", ["16th - century play", "Academy for Wine"]),
        ("In 1988 The Owls were heard", ["1988 The Owls", "heard"]),
    ],
)
def test_runs_belong_together(said, runs):
    """Names with their small words, places and dates whole, numbers with what they count."""
    assert [said[span.start : span.end] for span in spans(said)] == runs


@given(
    lists(sampled_from(["Anna", "of", "the", "7", "km", "(", ")", ",", "1893.", "ate", "“Ü", "-", "\t"]), max_size=12)
)
def test_runs_are_in_order_and_apart(parts):
    """And none is empty, whatever the text."""
    text = " ".join(parts)
    found = spans(text)

    assert all(text[span.start : span.end].strip() for span in found)
    ends = [0, *(span.end for span in found)]
    assert all(before <= span.start for before, span in zip(ends, found, strict=False))


def test_a_bridge_leads_to_another_passage(compressor):
    """A name that a good sentence has and the question has not; nothing leads from a document to itself."""
    told = {
        "The Mill": "The part of Vera Moss in The Mill is played by Ida Lund.",
        "Late Harvest": "Late Harvest is a play with Ida Lund and her husband Tom Berg.",
        "Barley": "Barley is a grain that is grown in cool lands.",
    }
    passages = [Chunk(text, title, 0, len(text), {"title": title}) for title, text in told.items()]
    question = "Who is the husband of the actress who plays Vera Moss?"

    ranked = compressor.ranked(question, passages)
    hits = bridged(question, passages, sorted(ranked, key=lambda hit: "Vera Moss" not in hit.chunk.text))
    bridges = {hit.chunk.metadata["passage"]: hit.signals["bridge_name"] for hit in hits}

    assert bridges[1] > 0 == bridges[2]
    alone = bridged(question, passages[:1], compressor.ranked(question, passages[:1]))
    assert [hit.signals["bridges"] for hit in alone] == [0]


def test_an_answer_of_several_runs_is_all_of_them(compressor):
    """Where no single run has it; a run that has it is enough."""
    ranked = compressor.ranked(QUESTION, PASSAGES)
    hits = span_hits(QUESTION, PASSAGES, ranked)
    texts = {hit.chunk.id: hit.chunk.text for hit in hits}

    for answer, runs in (
        ("very rich", {"very rich"}),
        ("sold wine and was very rich", {"brother sold wine", "very rich"}),
    ):
        judged = judge_spans(hits, ranked, [answer])
        assert {texts[id_] for id_ in judged.relevant} <= runs


def test_impossible_budgets_are_named(compressor):
    """In one line."""
    with pytest.raises(RequestError, match="not both"):
        compressor.compress(QUESTION, PASSAGES, rate=0.5, tokens=5)
    with pytest.raises(RequestError, match=r"1\.5"):
        compressor.compress(QUESTION, PASSAGES, rate=1.5)
    with pytest.raises(RequestError, match="0 tokens"):
        compressor.compress(QUESTION, PASSAGES, tokens=0)
    assert compressor.compress(QUESTION, [], rate=0.5).text == ""


def test_weights_are_fitted_on_answers(compressor):
    """A question's own fold is left out of one of the fits."""
    asked = ((QUESTION, "1951"), ("Where does the Ombra flow?", "Grey Sea"), ("What is cheese made of?", "milk"))
    examples = [Answered(question, PASSAGES, [answer]) for question, answer in asked]

    weights, without = fit_compression(examples, compressor.embedder, folds=3)

    assert len(without) == 3
    fitted = Compressor(compressor.embedder, weights=weights)
    assert "1951" in fitted.ranked(QUESTION, PASSAGES)[0].chunk.text
    assert "1951" in fitted.compress(QUESTION, PASSAGES, rate=0.2).text
    assert without[0] != weights


@given(rate=floats(0.1, 1), forced=sampled_from(["cheese", "Caves", "ombra"]))
@settings(max_examples=20, deadline=None)
def test_dropped_words_leave_the_rest_in_order(compressor, rate, forced):
    """Forced words and digits stay, whatever the rate; at 1 nothing goes."""
    text = "The river Ombra flows past the caves in 1893. People make cheese there, for 90 years."
    values = MeaningValues(compressor.embedder)

    left = drop_words(text, rate, values, forced=[forced])

    words = iter(text.split())
    assert all(word in words for word in left.split())  # a subsequence
    assert forced.lower() in left.lower()
    assert {"1893.", "90"} <= set(left.split())
    assert drop_words(text, 1, values) == text


def test_words_that_say_nothing_go_first(compressor):
    """The vector hardly moves without them."""
    left = drop_words("the volcano of the island erupted", 0.5, MeaningValues(compressor.embedder))

    assert set(left.split()) == {"volcano", "island", "erupted"}


def test_a_classifier_that_is_not_there_is_named():
    """With what to install or to give."""
    with pytest.raises(ConfigError, match=r"transformers|no weights"):
        TokenClassifier("/nonexistent/model")
