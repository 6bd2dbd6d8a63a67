"""Retrievers over chunks in memory, and their fusion: one contract."""

import pytest
from contracts.retriever import RetrieverContract, animals

from nearfar.retrieval.bm25 import BM25
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.fusion import Fused
from nearfar.retrieval.passages import DenseRetriever, LexicalRetriever

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="needs nearfar[retrieval]")
pytest.importorskip("faiss", reason="needs nearfar[retrieval]")
pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")


@pytest.fixture(scope="module")
def static():
    """The embedder that needs no torch."""
    return StaticEmbedder()


class TestLexicalRetriever(RetrieverContract):
    """By words."""

    def make_retriever(self, chunks):
        """BM25."""
        return LexicalRetriever(chunks)


class TestDenseRetriever(RetrieverContract):
    """By vectors."""

    def make_retriever(self, chunks):
        """Cosines."""
        return DenseRetriever(chunks, StaticEmbedder())


class TestFused(RetrieverContract):
    """By both."""

    def make_retriever(self, chunks):
        """Reciprocal ranks."""
        return Fused((LexicalRetriever(chunks), DenseRetriever(chunks, StaticEmbedder())))


def test_fused_hits_keep_the_signals_of_both(static):
    """What each retriever saw stays readable."""
    fused = Fused((LexicalRetriever(animals()), DenseRetriever(animals(), static)))

    assert set(fused.search("hunt mice")[0].signals) == {"bm25", "cosine"}


def test_order_of_fused_retrievers_makes_no_difference(static):
    """Neither ranks nor scores depend on who was asked first."""
    parts = LexicalRetriever(animals()), DenseRetriever(animals(), static), LexicalRetriever(animals(), k1=0.1)

    assert Fused(parts).search("hunt mice") == Fused(parts).search("hunt mice")
    forth, back = Fused(parts).search("hunt at night"), Fused(parts[::-1]).search("hunt at night")
    assert [(hit.chunk, hit.score) for hit in forth] == [(hit.chunk, hit.score) for hit in back]


def test_scores_are_lucenes():
    """The formula, worked out by hand for one word in two of three texts."""
    index = BM25.build(["red fish", "blue fish swims", "green bird"], k1=1.2, b=0.75)
    average = (2 + 3 + 2) / 3
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = [idf / (1 + 1.2 * (0.25 + 0.75 * length / average)) for length in (2, 3)]

    assert index.scores("fish")[:2] == pytest.approx(expected, rel=1e-5)
    assert index.scores("fish")[2] == 0


def test_parts_score_as_their_whole():
    """With the whole's frequencies and texts of one length, an index of a part gives the scores of the whole."""
    texts = ["red fish", "blue fish", "green bird", "red bird"]
    whole, part = BM25.build(texts), BM25.build(texts[:2])

    scores = part.scores("red fish", frequencies=whole.frequencies("red fish"), num_texts=len(texts))

    assert scores == pytest.approx(whole.scores("red fish")[:2], rel=1e-5)


def test_saved_index_is_the_same(tmp_path):
    """Loading gives what was saved, mapped from the disk."""
    index = BM25.build(["red fish", "blue fish swims", "green bird"])
    index.save(tmp_path / "bm25")

    again = BM25.load(tmp_path / "bm25")

    assert again.scores("blue bird") == pytest.approx(index.scores("blue bird"))
    assert len(again) == 3
