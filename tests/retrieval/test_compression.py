"""Compression keeps what a question needs: budgets hold, what must stay stays, less is kept where less is allowed."""

import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, sampled_from

from nearfar.errors import ConfigError, RequestError
from nearfar.types import Chunk

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="bm25s is not installed")
pytest.importorskip("wordllama", reason="wordllama is not installed")

from nearfar.retrieval.compression import (  # noqa: E402
    Compressor,
    Level,
    count_tokens,
    fit_sentences,
    judge_sentences,
    reduced,
)
from nearfar.retrieval.embedders import Remembered, StaticEmbedder  # noqa: E402
from nearfar.retrieval.names import plain  # noqa: E402
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
QUESTION = "When was the painter Anna Roe born?"


@pytest.fixture(scope="module")
def compressor():
    """With the static embedder and the packaged weights."""
    return Compressor(Remembered(StaticEmbedder()))


@settings(max_examples=25, deadline=None)
@given(rate=floats(0.05, 1))
def test_a_budget_is_never_exceeded(compressor, rate):
    """Whatever it is; and what is kept is where it says."""
    found = compressor.compress(QUESTION, PASSAGES, rate=rate)

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


def test_levels_keep_names_digits_and_citations():
    """A telegram loses function words, the last level all but names, numbers and citations; known names go once."""
    said = "It flows for 90 km into the Duke of York Bay, as they found in 1893 [2]."

    assert reduced(said, Level.TELEGRAM) == "flows 90 km Duke of York Bay, found 1893 [2]."
    assert set(reduced(said, Level.NAMES).split()) == {"90", "Duke", "of", "York", "Bay", "1893", "[2]"}
    assert "York" not in reduced(said, Level.NAMES, known={"duke of york bay"})


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
    judged = [
        judge_sentences(question, PASSAGES, [answer], compressor.embedder)
        for question, answer in ((QUESTION, "1951"), ("Where does the Ombra flow?", "Grey Sea"))
    ]

    weights, without = fit_sentences(judged, folds=2)

    assert len(without) == 2
    best = Compressor(compressor.embedder, weights=weights).ranked(QUESTION, PASSAGES)[0]
    assert "1951" in best.chunk.text


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
