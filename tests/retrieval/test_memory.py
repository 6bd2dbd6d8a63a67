"""The memory in SQLite: the contract, and what is its own."""

from dataclasses import replace

import pytest
from contracts.memory import ANN, FRANCE, MemoryContract
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ConfigError
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.matching import MatchPolicy
from nearfar.retrieval.memory import MEMORY, SqliteMemory
from nearfar.retrieval.shelf import Shelf
from nearfar.store import Store

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")
pytest.importorskip("Stemmer", reason="needs nearfar[retrieval]")


@pytest.fixture(scope="module")
def static():
    """The embedder that needs no torch."""
    return StaticEmbedder()


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    store = Store(tmp_path / "nearfar.db", [MEMORY])
    yield store
    store.close()


class TestSqliteMemory(MemoryContract):
    """In one file."""

    @pytest.fixture
    def make_memory(self, store, static):
        """Over the one store."""
        return lambda **options: SqliteMemory(store, static, **options)


async def test_memos_survive_the_process(tmp_path, static):
    """What was remembered is there after a restart, and what was forgotten is not."""
    policy = MatchPolicy(0.5)
    store = Store(tmp_path / "nearfar.db", [MEMORY])
    memory = SqliteMemory(store, static, policy=policy)
    await memory.remember(FRANCE, ANN)
    await memory.remember(replace(FRANCE, question="Who wrote Emma?"), ANN)
    await memory.forget(question="Who wrote Emma?")
    store.close()

    store = Store(tmp_path / "nearfar.db", [MEMORY])
    memory = SqliteMemory(store, static, policy=policy)

    assert await memory.recall("what's the capital of france", ANN) is not None
    assert await memory.recall("Who wrote Emma?", ANN) is None
    store.close()


async def test_vectors_of_another_embedder_are_not_compared(store, static):
    """After a change of the embedder the very same question is still recalled, and no other wording."""

    class Renamed(StaticEmbedder):
        @property
        def name(self) -> str:
            return "another"

    await SqliteMemory(store, static).remember(FRANCE, ANN)
    memory = SqliteMemory(store, Renamed(), policy=MatchPolicy(0.1))

    assert await memory.recall("what's the capital of france", ANN) is None
    assert await memory.recall(FRANCE.question, ANN) is not None


@pytest.mark.parametrize("options", [{"ttl_s": 0}, {"ttl_s": float("nan")}, {"ttl_s": float("inf")}, {"max_memos": 0}])
def test_senseless_limits_are_refused(store, static, options):
    """With the settings to change."""
    with pytest.raises(ConfigError, match=r"memory\.ttl_s"):
        SqliteMemory(store, static, **options)


rows = st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), max_size=40)


@given(rows, st.sets(st.integers(1, 40)), st.lists(st.integers(-2, 2), min_size=3, max_size=3))
def test_shelf_ranks_as_a_sort_does(vectors, gone, query):
    """Whatever was added and dropped, the rest comes by its product with the query, ties by age."""
    matrix = np.asarray(vectors, np.float32).reshape(-1, 3)
    asked = np.asarray(query, np.float32)
    shelf = Shelf(3)
    half = len(vectors) // 2
    shelf.add((i + 1, matrix[i].tobytes()) for i in range(half))
    shelf.add((i + 1, matrix[i].tobytes()) for i in range(half, len(vectors)))
    for row_id in gone:
        shelf.drop(row_id)

    products = {i + 1: float(matrix[i] @ asked) for i in range(len(vectors)) if i + 1 not in gone}
    expected = sorted((i for i in products if products[i] > 0), key=lambda i: (-products[i], i))
    assert [row_id for row_id, _ in shelf.nearest(asked)] == expected
    assert len(shelf) == len(products)
