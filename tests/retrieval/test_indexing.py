"""Indexing files: only what changed, whatever the folder holds, and a list of what could not be read."""

import os
import sys
from pathlib import Path

import pytest
from support.pdf import pdf_of

from nearfar.errors import DataError
from nearfar.retrieval.chunking import Chunking
from nearfar.retrieval.collection import Collection
from nearfar.retrieval.folders import walk
from nearfar.retrieval.indexing import index_paths
from nearfar.retrieval.writing import CollectionWriter

for module in ("numpy", "bm25s", "Stemmer", "pathspec", "pypdfium2"):
    pytest.importorskip(module, reason="needs nearfar[retrieval]")


@pytest.fixture
def folder(tmp_path):
    """A folder with files in it."""
    return write(
        tmp_path / "files", {"a.txt": "Cats purr.", "sub/b.md": "# Dogs\n\nDogs bark.", "c.py": "def owl(): pass"}
    )


def write(folder, files, *, at=1e9):
    """Makes the files, of a time that is old enough to be trusted."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (at, at))
    return folder


def index(collection, *paths, **options):
    """One run by words alone."""
    with CollectionWriter(collection, None) as writer:
        return index_paths(writer, paths, **options)


def counts(report):
    """What the run did."""
    return report.added, report.changed, report.unchanged, report.deleted


def names(collection):
    """The indexed files."""
    with Collection(collection) as opened:
        return {Path(source).name for source in opened.sources()}


def test_second_run_does_only_what_changed(folder, tmp_path):
    """New, changed, touched, and vanished files, each as what it is."""
    zoo = tmp_path / "zoo"
    assert counts(index(zoo, folder)) == (3, 0, 0, 0)
    assert counts(index(zoo, folder)) == (0, 0, 3, 0)

    write(folder, {"a.txt": "Cats hiss.", "d.txt": "Hens lay eggs."}, at=1.1e9)
    (folder / "c.py").unlink()
    os.utime(folder / "sub" / "b.md")

    assert counts(index(zoo, folder)) == (1, 1, 1, 1)
    assert names(zoo) == {"a.txt", "b.md", "d.txt"}
    with Collection(zoo) as collection:
        assert collection.search("cats")[0].chunk.text == "Cats hiss."
        assert collection.search("owl purr") == []


def test_other_chunk_length_reads_everything_anew(folder, tmp_path):
    """The text is the same and its chunks are not."""
    index(tmp_path / "zoo", folder)

    assert counts(index(tmp_path / "zoo", folder, chunking=Chunking(200))) == (0, 3, 0, 0)


def test_other_roots_are_left_alone(folder, tmp_path):
    """What comes from elsewhere has not vanished; one file's deletion is not its neighbours'."""
    other = write(tmp_path / "other", {"x.txt": "Foxes yelp."})
    index(tmp_path / "zoo", folder, other)
    (other / "x.txt").unlink()

    assert counts(index(tmp_path / "zoo", folder)) == (0, 0, 3, 0)
    assert counts(index(tmp_path / "zoo", other)) == (0, 0, 0, 1)


def test_bad_files_are_listed_and_the_rest_is_done(folder, tmp_path):
    """Broken, locked, too large, binary, odd: nothing stops the run."""
    write(
        folder,
        {
            "broken.pdf": b"%PDF-1.4 broken",
            "scan.pdf": pdf_of([""]),
            "good.pdf": pdf_of(["Trout swim."]),
            "binary.bin": b"\0\1\2",
            "empty.txt": "",
            "blank.md": " \n\n ",
            "mixed.txt": "naïve\n".encode() + "größer".encode("cp1252"),
            "bad.jsonl": '{"text": "fine"}\n{broken',
            "deep.jsonl": "[" * 100_000,
        },
    )
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(1 << 30)  # a gigabyte of nothing
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)

    report = index(tmp_path / "zoo", folder)

    failures = {Path(source).name: reason for source, reason in report.failures}
    assert set(failures) == {"broken.pdf", "scan.pdf", "huge.txt", "bad.jsonl", "deep.jsonl"}
    assert "more than the limit" in failures["huge.txt"]
    assert [Path(source).name for source, _ in report.skipped] == ["binary.bin"]
    assert {"good.pdf", "empty.txt", "blank.md", "mixed.txt", "bad.jsonl", "a.txt"} <= names(tmp_path / "zoo")
    with Collection(tmp_path / "zoo") as collection:
        assert dict(collection.statistics().failures).keys() == dict(report.failures).keys()
        assert collection.search("trout")[0].chunk.metadata["page"] == 1
        assert collection.search("größer")[0].chunk.metadata["encoding"] == "mixed"
    (folder / "broken.pdf").write_bytes(pdf_of(["Mended."]))
    assert "broken.pdf" not in {Path(source).name for source, _ in index(tmp_path / "zoo", folder).failures}


def test_broken_lines_are_told_until_they_are_mended(folder, tmp_path):
    """As one failure a file, also where it is not read anew; a limit that is lifted again leaves nothing behind."""
    lines = ['{"text": "fine"}', *["{broken"] * 5]
    bad = write(folder, {"bad.jsonl": "\n".join(lines)}) / "bad.jsonl"

    first = index(tmp_path / "zoo", folder)
    second = index(tmp_path / "zoo", folder)
    narrow = index(tmp_path / "zoo", folder, max_bytes=5)
    third = index(tmp_path / "zoo", folder)
    write(folder, {"bad.jsonl": lines[0]}, at=1.1e9)

    assert [source for source, _ in first.failures] == [str(bad)]
    assert "line 2 is not JSON" in first.failures[0][1]
    assert first.failures[0][1].endswith("and 2 more")
    assert len(narrow.failures) == 4
    assert second.failures == third.failures == first.failures
    assert index(tmp_path / "zoo", folder).failures == []


def test_binary_file_that_is_named_is_a_failure(folder, tmp_path):
    """In a folder it is passed over; by itself it was meant."""
    write(folder, {"binary.bin": b"\0\1\2"})

    report = index(tmp_path / "zoo", folder / "binary.bin")

    assert report.failures == [(str(folder / "binary.bin"), "is binary")]


def test_missing_path_is_an_error_before_anything(tmp_path):
    """And nothing is deleted for it."""
    with pytest.raises(DataError, match="no file or folder"):
        index(tmp_path / "zoo", tmp_path / "none")


def test_ignore_files_are_gits(tmp_path):
    """Patterns, negations, folders, nested files, those above up to the repository, and ours."""
    root = write(
        tmp_path / "repo",
        {
            ".gitignore": "*.log\n/build/\nsub/secret*\n",
            ".git/config": "x",
            "keep.txt": "x",
            "a.log": "x",
            "build/out.txt": "x",
            "sub/build/in.txt": "x",
            "sub/secret.txt": "x",
            "sub/.gitignore": "!special.log\n*.tmp\n",
            "sub/special.log": "x",
            "sub/b.tmp": "x",
            "sub/.nearfarignore": "private/\n",
            "sub/private/p.txt": "x",
            ".hidden/h.txt": "x",
            ".env": "KEY=1",
        },
    )

    def seen(start, **options):
        return {path.relative_to(root).as_posix() for path in walk(start, **options)}

    assert seen(root) == {"keep.txt", "sub/build/in.txt", "sub/special.log"}
    assert seen(root / "sub") == {"sub/build/in.txt", "sub/special.log"}
    assert seen(root, exclude=["sub/"]) == {"keep.txt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_folder_that_may_not_be_listed_keeps_its_documents(folder, tmp_path):
    """It is listed as a failure, and what is in it has not vanished."""
    index(tmp_path / "zoo", folder)
    (folder / "sub").chmod(0)
    try:
        report = index(tmp_path / "zoo", folder)
    finally:
        (folder / "sub").chmod(0o700)

    assert report.deleted == 0
    assert report.failures[0][1] == "is a folder that may not be listed"


def test_progress_is_told_file_by_file(folder, tmp_path):
    """Up to the total."""
    told = []

    index(tmp_path / "zoo", folder, on_progress=told.append)

    assert [(progress.done, progress.total) for progress in told] == [(1, 3), (2, 3), (3, 3)]


def test_odd_names_are_names(tmp_path):
    """Line breaks, percent signs, other scripts, and bytes that are no UTF-8."""
    odd = ["with\nbreak.txt", "100%.txt", "файл.txt", "a'b\".txt"]
    folder = write(tmp_path / "files", dict.fromkeys(odd, "Cats purr."))
    if sys.platform == "linux":
        Path(os.fsdecode(os.fsencode(str(folder)) + b"/\xff.txt")).write_text("Cats purr.")

    report = index(tmp_path / "zoo", folder)

    assert report.added + len(report.failures) == len(list(folder.iterdir()))
    assert set(odd) <= names(tmp_path / "zoo")
    assert counts(index(tmp_path / "zoo", folder))[:2] == (0, 0)
