"""Collections on disk: one contract with the retrievers in memory, and what only a disk can do."""

import itertools
import shutil
import sqlite3
import subprocess
import sys

import pytest
from contracts.retriever import RetrieverContract, animals
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import DataError
from nearfar.retrieval.collection import Collection
from nearfar.retrieval.database import DocumentRecord, PartRecord
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.writing import CollectionWriter, groups
from nearfar.types import Chunk

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="needs nearfar[retrieval]")
pytest.importorskip("faiss", reason="needs nearfar[retrieval]")
pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")

STATIC = StaticEmbedder()


def put(writer, chunks):
    """Each chunk as a document of its own."""
    for chunk in chunks:
        writer.put(DocumentRecord(chunk.source, chunk.sha256), [chunk])


class TestSealed(RetrieverContract):
    """Indexes on disk."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        """Where the collection is."""
        self._folder = tmp_path / "zoo"

    def make_retriever(self, chunks):
        """One part a kind."""
        with CollectionWriter(self._folder, STATIC) as writer:
            put(writer, chunks)
            writer.finish()
        return Collection(self._folder, STATIC)


class TestUnsealed(TestSealed):
    """Committed and not indexed yet, as after a kill."""

    def make_retriever(self, chunks):
        """No part at all."""
        with CollectionWriter(self._folder, STATIC) as writer:
            put(writer, chunks)
            writer.flush()
        return Collection(self._folder, STATIC)


class TestByWordsAlone(TestSealed):
    """Without an embedder."""

    def make_retriever(self, chunks):
        """BM25 alone."""
        with CollectionWriter(self._folder, None) as writer:
            put(writer, chunks)
            writer.finish()
        return Collection(self._folder)


@pytest.fixture
def folder(tmp_path):
    """Where a collection is to be."""
    return tmp_path / "zoo"


def fill(folder, chunks, embedder=STATIC):
    """A finished collection of one document a chunk."""
    with CollectionWriter(folder, embedder) as writer:
        put(writer, chunks)
        writer.finish()


def sources(hits):
    """Where the hits are from, sorted."""
    return sorted(hit.chunk.source for hit in hits)


def numbered(first, last):
    """Documents of a few words each, one of them its own."""
    return [Chunk(f"entry word{number} among many entries", f"doc{number}") for number in range(first, last)]


def test_changed_document_replaces_itself(folder):
    """What it said before is found no more, and what it says now is."""
    fill(folder, animals())
    fill(folder, [Chunk("Cats chase laser pointers.", "zoo/cats.txt")])

    with Collection(folder, STATIC) as collection:
        assert collection.search("laser pointers", k=1)[0].chunk.text == "Cats chase laser pointers."
        assert all("purr" not in hit.chunk.text for hit in collection.search("purr content", k=50))
        assert collection.statistics().num_documents == 5


def test_deleted_document_is_found_at_once_no_more(folder):
    """By nobody who has the collection open, before any index has been made anew."""
    fill(folder, animals())
    with Collection(folder, STATIC) as reader, CollectionWriter(folder, STATIC) as writer:
        assert reader.search("lay eggs perch", k=1)[0].chunk.source == "zoo/hens.txt"

        assert writer.delete(["zoo/hens.txt", "zoo/nobody.txt"]) == 1

        assert "zoo/hens.txt" not in sources(reader.search("lay eggs perch", k=50))


def test_nothing_of_a_deleted_document_is_left_on_disk(folder):
    """Neither its text in the database or its log, nor its words in an index, nor its vector in another."""
    secret = Chunk("The passphrase is xyzzyplugh, says Marmalade.", "secret.txt", metadata={"owner": "Quillfeather"})
    fill(folder, [*animals(), *numbered(0, 50), secret])
    vector = STATIC.embed([secret.text])[0]
    assert is_on_disk(folder, b"xyzzyplugh")

    with CollectionWriter(folder, STATIC) as writer:
        writer.delete(["secret.txt"])
        writer.finish()

    for trace in (b"xyzzyplugh", b"Marmalade", b"marmalad", b"Quillfeather", b"secret.txt"):
        assert not is_on_disk(folder, trace)
    assert not is_on_disk(folder, vector.tobytes()[:64])
    assert not is_on_disk(folder, vector.astype(np.float16).tobytes()[:32])


def is_on_disk(folder, trace):
    """Whether any file of the collection has these bytes."""
    return any(trace in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_many_small_runs_make_few_parts(folder):
    """The newest parts are joined, and scores are those of one index."""
    for first in range(0, 64, 4):
        fill(folder, numbered(first, first + 4))
    parts = list((folder / "parts").iterdir())
    fill(folder.with_name("whole"), numbered(0, 64))

    assert len(parts) <= 2 * 7
    with Collection(folder, STATIC) as grown, Collection(folder.with_name("whole"), STATIC) as whole:
        for query in ("word7", "word63 entries", "many"):
            ours, theirs = grown.search(query, k=5, mode="words"), whole.search(query, k=5, mode="words")
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], rel=1e-4)


def test_open_collection_sees_what_others_write(folder):
    """A reader that was there before finds new documents after."""
    fill(folder, animals())
    with Collection(folder, STATIC) as reader:
        fill(folder, [Chunk("Axolotls regrow their limbs.", "zoo/axolotl.txt")])

        found = [reader.search("axolotls regrow limbs", k=1)[0].chunk.source for _ in range(200)]

    assert found[-1] == "zoo/axolotl.txt"


def test_two_writers_at_once_are_refused(folder):
    """The second is told so, and the first goes on."""
    with CollectionWriter(folder, STATIC) as first:
        with pytest.raises(DataError, match="Another process is writing"):
            CollectionWriter(folder, STATIC)
        put(first, animals())
        first.finish()

    with Collection(folder, STATIC) as collection:
        assert collection.statistics().num_documents == 5


class OtherEmbedder:
    """The first words' lengths: nobody's idea of meaning."""

    def __init__(self, name="lengths", dim=4):
        self.name, self.dim = name, dim

    def embed(self, texts):
        """One row per text."""
        rows = np.array([[len(word) for word in text.split()[: self.dim]] + [1] * self.dim for text in texts], object)
        rows = np.array([row[: self.dim] for row in rows.tolist()] if len(texts) else [], np.float32)
        rows = rows.reshape(-1, self.dim)
        return rows / np.maximum(1e-9, np.linalg.norm(rows, axis=1, keepdims=True))

    embed_queries = embed


@pytest.mark.parametrize("other", [OtherEmbedder("wordllama"), OtherEmbedder(STATIC.name, 8)])
def test_other_embedder_is_refused_by_name(folder, other):
    """Vectors of another model, or of another length, have nothing to do with these."""
    fill(folder, animals())

    for opened in (Collection, CollectionWriter):
        with pytest.raises(DataError, match=r"was made with the embedder 'wordllama-256.*--reembed"):
            opened(folder, other)
    with pytest.raises(DataError, match="has vectors of 'wordllama"):
        CollectionWriter(folder, None)


def test_reembedding_changes_every_vector_and_no_text(folder):
    """And goes on where it was interrupted."""
    fill(folder, animals())
    CollectionWriter(folder, OtherEmbedder(), reembeds=True).close()  # begun, and killed

    with CollectionWriter(folder, OtherEmbedder()) as writer:
        writer.finish()

    with Collection(folder, OtherEmbedder()) as collection:
        hits = collection.search("Cats purr when they", k=1, mode="vectors")
        assert hits[0].chunk == animals()[0]
        assert hits[0].score == pytest.approx(1, abs=1e-3)


def test_newer_collection_is_refused(folder):
    """A later nearfar's tables are not touched."""
    fill(folder, animals())
    with sqlite3.connect(folder / "collection.db") as database:
        database.execute("UPDATE schema_versions SET version = 99")
    database.close()

    with pytest.raises(DataError, match="written by a newer nearfar"):
        Collection(folder, STATIC)


def test_dropped_vectors_leave_words(folder):
    """Without an embedder the text stays, its vectors go; and an embedder can come back."""
    fill(folder, animals())
    with pytest.raises(DataError, match="--reembed --embedder none"):
        CollectionWriter(folder, None)

    with CollectionWriter(folder, None, reembeds=True) as writer:
        writer.finish()

    assert not list((folder / "parts").glob("dense-*"))
    with Collection(folder) as collection:
        assert collection.statistics().embedder is None
        assert collection.search("bark at strangers", k=1)[0].chunk.source == "zoo/dogs.txt"
    with CollectionWriter(folder, STATIC, reembeds=True) as writer:
        writer.finish()
    with Collection(folder, STATIC) as collection:
        assert collection.search("bark at strangers", k=1, mode="vectors")[0].chunk.source == "zoo/dogs.txt"


@pytest.mark.parametrize("damage", ["noise", "no database"])
def test_damaged_database_says_what_to_remove(folder, damage):
    """Neither a reader nor a writer takes it for a full disk."""
    fill(folder, numbered(0, 300))
    database = folder / "collection.db"
    content = database.read_bytes()
    noise = content[:200] + b"\xa5" * (len(content) - 200)
    database.write_bytes(noise if damage == "noise" else b"no database at all")

    for opened in (lambda: Collection(folder, STATIC), lambda: CollectionWriter(folder, STATIC)):
        with pytest.raises(DataError, match=r"'zoo' is damaged: .* Remove its folder"):
            opened()


@pytest.mark.parametrize("file", ["index.faiss", "ids.npy", "points.npy", "word_ends.npy", "num_texts.npy"])
def test_noise_in_a_part_is_searched_around_and_repaired(folder, file):
    """A file of the right size with other bytes."""
    fill(folder, animals())
    broken = next((folder / "parts").glob(f"*/{file}")).parent
    (broken / file).write_bytes(b"\xa5" * (broken / file).stat().st_size)

    with Collection(folder, STATIC) as collection:
        assert collection.search("bark at strangers", k=1)[0].chunk.source == "zoo/dogs.txt"
    fill(folder, [])

    assert not broken.exists()
    with Collection(folder, STATIC) as collection:
        assert collection.search("bark at strangers", k=1)[0].chunk.source == "zoo/dogs.txt"


@pytest.mark.parametrize("damage", ["missing", "short", "empty folder"])
def test_damaged_part_is_searched_around_and_repaired(folder, damage):
    """Searching goes on from the database; the next writer makes the part anew."""
    fill(folder, animals())
    part = next((folder / "parts").glob("bm25-*"))
    if damage == "missing":
        shutil.rmtree(part)
    else:
        files = list(part.iterdir()) if damage == "empty folder" else [part / "points.npy"]
        for file in files:
            if damage == "short":
                file.write_bytes(file.read_bytes()[:-4])
            else:
                file.unlink()

    with Collection(folder, STATIC) as collection:
        assert collection.search("bark at strangers", k=1)[0].chunk.source == "zoo/dogs.txt"
    fill(folder, [])

    assert len(list((folder / "parts").glob("bm25-*"))) == 1
    with Collection(folder, STATIC) as collection:
        assert collection.search("bark at strangers", k=1)[0].chunk.source == "zoo/dogs.txt"


def test_full_disk_is_an_error_and_costs_nothing(folder):
    """What was committed stays; the same run succeeds once there is room."""
    fill(folder, animals())
    script = """
import resource, sys
from pathlib import Path
from nearfar.errors import DataError
from nearfar.retrieval.database import DocumentRecord, PartRecord
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.writing import CollectionWriter
from nearfar.types import Chunk

folder = Path(sys.argv[1])
with CollectionWriter(folder, StaticEmbedder()) as writer:
    size = (folder / "collection.db").stat().st_size + 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        for number in range(2000):
            writer.put(DocumentRecord(f"doc{number}", "x"), [Chunk(f"entry number {number} " * 40, f"doc{number}")])
        writer.finish()
    except DataError as exc:
        print(exc)
"""
    said = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)

    assert "Cannot" in said.stdout
    assert "\n" not in said.stdout.strip()
    with Collection(folder, STATIC) as collection:
        assert collection.search("bark at strangers", k=1)[0].chunk.source == "zoo/dogs.txt"
        left = collection.statistics().num_documents
    fill(folder, numbered(0, 50))
    with Collection(folder, STATIC) as collection:
        assert collection.statistics().num_documents >= left
        assert collection.search("word7", k=1, mode="words")[0].chunk.text.startswith("entry word7 ")


def test_missing_collection_says_how_to_make_it(folder):
    """Neither reading nor writing without leave makes one."""
    for opened in (lambda: Collection(folder), lambda: CollectionWriter(folder, None, creates=False)):
        with pytest.raises(DataError, match="nearfar index zoo PATH"):
            opened()
    assert not folder.exists()


@given(st.lists(st.integers(1, 5000), max_size=12))
def test_groups_keep_order_and_double(sizes):
    """Whatever sizes the parts have, no neighbours are left that should be one."""
    records = [PartRecord(str(i), "dense", i, i, size) for i, size in enumerate(sizes)]

    found = groups(records)

    assert [record for group in found for record in group] == records
    totals = [sum(record.num_chunks for record in group) for group in found]
    assert all(older > 2 * newer for older, newer in itertools.pairwise(totals))
