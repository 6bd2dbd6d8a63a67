"""More queries out of one, sentences out of passages, and hits that differ."""

import pytest

from nearfar.testing import ScriptedModel
from nearfar.types import Chunk, Hit

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="bm25s is not installed")
pytest.importorskip("wordllama", reason="wordllama is not installed")

from nearfar.retrieval.diversity import diverse  # noqa: E402
from nearfar.retrieval.embedders import Remembered, StaticEmbedder  # noqa: E402
from nearfar.retrieval.expansion import (  # noqa: E402
    ExpandedSearch,
    IterativeSearch,
    bridge_names,
    decompose,
    expand,
    feedback_query,
)
from nearfar.retrieval.focus import focus  # noqa: E402
from nearfar.retrieval.passages import LexicalRetriever  # noqa: E402

TEXTS = {
    "Anna Roe": "Anna Roe is a painter who was born in Velda.",
    "Velda": "Velda lies on the Ombra, and is known for cheese.",
    "Ombra": "The Ombra ends in the Grey Sea.",
    "Paint": "A painter needs a brush, an easel and a canvas.",
}
CHUNKS = [Chunk(text, title, 0, len(text), {"title": title}, id=title) for title, text in TEXTS.items()]


@pytest.fixture(scope="module")
def embedder():
    """The static one, loaded once."""
    return Remembered(StaticEmbedder())


@pytest.fixture(scope="module")
def retriever():
    """By words alone."""
    return LexicalRetriever(CHUNKS)


def ids(found):
    """What was found, in order."""
    return [hit.chunk.id for hit in found]


def test_feedback_adds_words_of_the_first_hits(retriever):
    """That the query has not; nothing found, nothing added."""
    query = "easel canvas"

    said = feedback_query(query, retriever.search(query), num_words=2)

    assert said.startswith(query)
    assert set(said.split()[2:]) <= {"painter", "needs", "brush"}
    assert feedback_query(query, []) == query


def test_bridge_names_lead_on(retriever):
    """Names of the hits, neither the query's nor the passage's own title."""
    assert bridge_names("Where was Anna Roe born?", retriever.search("Anna Roe")) == ["velda"]


async def test_steps_without_a_model_reach_a_passage_that_shares_no_word(retriever):
    """From the painter to her town to its river."""
    query = "Anna Roe birthplace"
    assert "Velda" not in ids(retriever.search(query))

    found = await IterativeSearch(retriever).search(query, k=4)

    assert {"Anna Roe", "Velda", "Ombra"} <= set(ids(found))


async def test_steps_with_a_model_end_when_it_is_done(retriever):
    """It sees what was found, and says what to search."""
    model = ScriptedModel(["Ombra", "DONE", "never asked"])

    found = await IterativeSearch(retriever, model, steps=5).search("Anna Roe birthplace", k=4)

    assert "Ombra" in ids(found)
    assert len(model.queries) == 2
    assert "born in Velda" in model.queries[0].text


async def test_a_model_rewrites_and_splits():
    """Lists lose their marks and repeats; silence leaves the query."""
    model = ScriptedModel(["1. a river\n- A river\n* its mouth\n"])

    assert await expand(model, "q?") == ["q?", "a river", "its mouth"]
    assert await decompose(model, "q?") == ["a river", "its mouth"]
    assert await decompose(ScriptedModel([""]), "q?") == ["q?"]


async def test_wordings_are_searched_together(retriever):
    """What any of them finds is found, with a model and without."""
    with_model = await ExpandedSearch(retriever, ScriptedModel(["cheese"])).search("easel")

    assert set(ids(with_model)) == {"Paint", "Velda"}
    assert "Anna Roe" in ids(await ExpandedSearch(retriever).search("easel"))
    assert ids(await ExpandedSearch(retriever).search("easel", filter={"source": "Paint"})) == ["Paint"]


def test_focus_keeps_the_sentence_and_its_place(embedder):
    """The chunk is the sentence where it stands in the document, with its neighbours where they are asked for."""
    text = "Cats purr. The volcano erupted in May. Bread is baked early."
    hit = Hit(Chunk(text, "doc", 100, 100 + len(text)), 1.0)

    found = focus("When did the volcano erupt?", [hit], embedder, k=1)
    wider = focus("When did the volcano erupt?", [hit], embedder, k=1, around=1)

    assert found[0].chunk.text == "The volcano erupted in May."
    assert text[found[0].chunk.start - 100 : found[0].chunk.end - 100] == found[0].chunk.text
    assert wider[0].chunk.text == text
    assert focus("q", [], embedder, k=3) == []


def test_diverse_hits_are_not_twins(embedder):
    """A copy of the best comes after something else; at 1 the order stays."""
    texts = ("The volcano erupted.", "The volcano erupted!", "Bread is baked early.")
    hits = [Hit(Chunk(text, id=text), 1 - place / 10) for place, text in enumerate(texts)]

    assert ids(diverse(hits, embedder, k=2, relevance=0.3)) == [texts[0], texts[2]]
    assert diverse(hits, embedder, k=3, relevance=1) == hits
    assert diverse([], embedder, k=3) == []
    with pytest.raises(ValueError, match="share"):
        diverse(hits, embedder, k=1, relevance=2)
