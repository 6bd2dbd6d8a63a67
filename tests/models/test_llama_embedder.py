"""Embeddings by llama.cpp, of the default weights: any language model has vectors, however good."""

import pytest
from support.weights import smollm2_path

from nearfar.errors import ModelLoadError
from nearfar.models.llama_embedder import LlamaCppEmbedder

np = pytest.importorskip("numpy", reason="vectors are numpy's")


@pytest.fixture(scope="module")
def embedder():
    """Texts of 128 tokens at most."""
    return LlamaCppEmbedder(name="tiny", path=smollm2_path(), context_window=128, query_prompt="query: ")


def test_vectors_have_length_one_and_tell_texts_apart(embedder):
    """The same text has the same vector, another text another."""
    rows = embedder.embed(["Rivers flow to the sea.", "Rivers flow to the sea.", "def f(x): return x + 1"])

    assert rows.shape == (3, embedder.dim)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert rows[0] == pytest.approx(rows[1], abs=1e-3)
    assert rows[0] @ rows[2] < rows[0] @ rows[1] - 0.05


def test_long_and_empty_and_odd_texts_have_vectors(embedder):
    """What is too long is cut; nothing is refused."""
    rows = embedder.embed(["word " * 2000, "", "\ud800"])

    assert np.isfinite(rows).all()
    assert embedder.embed([]).shape == (0, embedder.dim)


def test_query_prompt_makes_another_vector(embedder):
    """And it is part of the name."""
    assert embedder.embed(["tides"])[0] @ embedder.embed_queries(["tides"])[0] < 0.999
    assert "'query: '" in embedder.name


def test_shorter_vectors_are_the_first_numbers():
    """Matryoshka: cut and stretched to length one again."""
    short = LlamaCppEmbedder(name="tiny", path=smollm2_path(), context_window=128, dim=64)

    assert short.embed(["tides"]).shape == (1, 64)
    assert np.linalg.norm(short.embed(["tides"])) == pytest.approx(1, abs=1e-5)


def test_missing_file_is_named(tmp_path):
    """Before anything is loaded."""
    with pytest.raises(ModelLoadError, match="there is no file"):
        LlamaCppEmbedder(name="tiny", path=tmp_path / "none.gguf").embed(["a"])
