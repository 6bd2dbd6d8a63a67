"""Python's own documentation as a collection: every passage stands where it says."""

import ast
import functools
import inspect
from pathlib import Path

import pytest

from nearfar.retrieval.collection import Collection
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.python_docs import index_python, library_files
from nearfar.retrieval.writing import CollectionWriter

pytest.importorskip("bm25s", reason="needs nearfar[retrieval]")
pytest.importorskip("faiss", reason="needs nearfar[retrieval]")
pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A few modules and the topics, indexed."""
    folder = tmp_path_factory.mktemp("docs") / "python"
    wanted = {"pydoc_data.topics", "functools", "collections", "textwrap"}
    files = {file: module for file, module in library_files().items() if module in wanted}
    assert set(files.values()) == wanted
    embedder = StaticEmbedder()
    with CollectionWriter(folder, embedder) as writer:
        assert index_python(writer, files).added == len(files)
        assert index_python(writer, files).unchanged == len(files)
    with Collection(folder, embedder) as opened:
        yield opened


def test_private_modules_and_tests_are_left_out():
    """What is indexed is what users are meant to read."""
    modules = set(library_files().values())

    assert {"json", "json.decoder", "pydoc_data.topics", "asyncio.events"} <= modules
    assert not [module for module in modules if "._" in module or module.startswith("_") or ".test" in module]


def test_docstring_is_found_with_its_object_file_and_line(collection):
    """A person who opens the file at the line sees the object."""
    chunk = collection.search("Which decorator keeps recent results of a function in a cache?", k=1)[0].chunk

    _, number = inspect.getsourcelines(functools.lru_cache)
    assert chunk.metadata["module"] == "functools"
    assert chunk.metadata["object"] == "functools.lru_cache"
    assert (chunk.source, chunk.metadata["line"]) == (inspect.getsourcefile(functools.lru_cache), number)
    assert chunk.text.startswith("functools.lru_cache(maxsize=128, typed=False)\n\nLeast-recently-used cache")


def test_topics_are_found_with_the_line_of_their_paragraph(collection):
    """Although the file writes each of a topic's lines as a literal or two of its own."""
    chunk = collection.search("str.rpartition: split the string at the last occurrence", k=1)[0].chunk
    lines = Path(chunk.source).read_text().splitlines()

    assert chunk.metadata["object"] == "pydoc_data.topics.topics['string-methods']"
    assert "str.rpartition(sep)" in lines[chunk.metadata["line"] - 1]


def test_every_passage_begins_on_its_line(collection):
    """For all of the topics: the line's literal has the passage's first word."""
    source = next(source for source in collection.sources() if source.endswith("topics.py"))
    lines = Path(source).read_text().splitlines()

    chunks = collection.chunks(source)

    assert len(chunks) > 500
    starts = [chunk for chunk, before in zip(chunks[1:], chunks, strict=False) if chunk.start != before.start]
    for chunk in starts:
        number = chunk.metadata["line"]
        near = "".join(lines[number - 1 : number + 1]).replace(
            "\\'", "'"
        )  # the word may be cut by the file's own lines
        assert ast.unparse(ast.Constant(chunk.text.split()[0]))[1:-1].strip("\"'\\") in near
