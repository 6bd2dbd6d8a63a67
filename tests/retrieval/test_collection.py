"""Collections on disk: one contract with the retrievers in memory, and what only a disk can do."""

import pytest
from contracts.retriever import RetrieverContract

from nearfar.retrieval.collection import Collection
from nearfar.retrieval.database import DocumentRecord
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.writing import CollectionWriter

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
