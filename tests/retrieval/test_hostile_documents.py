"""Files that are made to harm, or change while they are read: each is one line of the report, the rest is indexed."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import hostile

from nearfar.errors import ConfigError
from nearfar.retrieval.chunking import Chunking
from nearfar.retrieval.collection import Collection
from nearfar.retrieval.documents import Unreadable
from nearfar.retrieval.folders import walk
from nearfar.retrieval.indexing import index_paths
from nearfar.retrieval.reading import MEMORY_BYTES, MEMORY_PER_BYTE, ReadingProcess
from nearfar.retrieval.writing import CollectionWriter

for module in ("numpy", "bm25s", "Stemmer", "pathspec", "pypdfium2"):
    pytest.importorskip(module, reason="needs nearfar[retrieval]")

GOOD = "Cats purr, and owls hoot."

#: What takes for ever, or as good as: more than a minute where nobody ends it.
ENDLESS = {
    "pages.pdf": hostile.million_pages(),
    "comments.html": b"<!--" * 250_000,
}
#: What cannot be read, and says so at once.
BROKEN = {
    "cut.pdf": hostile.cut_off(),
    "deep.jsonl": b"[" * 200_000,
}
#: What looks bad and is read.
ODD = {
    "minus.py": b"x = " + b"-" * 200_000 + b"1",
    "rules.md": b"---\n" * 100_000,
    "fence.md": b"```\n" + b"\n" * 200_000 + b"words",
    "heading.md": b"# " + b"h" * 500_000 + b"\n\n" + b"some words\n\n" * 20_000,
    "field.jsonl": b'{"text": "' + b"word " * 40_000 + b'", "note": "' + b"n" * 500_000 + b'"}',
    "half a letter.jsonl": b'{"text": "\\ud800 purrs"}',
    "a\nnewline.txt": b"words",
}
#: What is no text.
BINARY = {"noise.txt": bytes(range(256)) * 100, "report.docx": hostile.zip_bomb(), "table.xlsx": hostile.zip_bomb()}


def indexed(folder, tmp_path, **options):
    """The report of one run by words alone, and the names of what is in the collection."""
    with CollectionWriter(tmp_path / "zoo", None) as writer:
        report = index_paths(writer, [folder], **options)
    with Collection(tmp_path / "zoo") as collection:
        return report, {Path(source).name for source in collection.sources()}


def written(folder, files):
    """The files, and good ones before and after them in the order of names."""
    folder.mkdir()
    for name, content in {**files, "0.txt": GOOD.encode(), "zz.txt": GOOD.encode()}.items():
        (folder / name).write_bytes(content)
    return folder


@contextmanager
def deep(folder, depth):
    """Folders in folders, which are gone afterwards: pytest's own cleaning is recursive."""
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        yield
    finally:
        spare = folder.with_name("spare")
        while (folder / "d").is_dir():
            (folder / "d").rename(spare)
            folder.rmdir()
            spare.rename(folder)
        folder.rmdir()


def test_hostile_files_are_a_line_each_and_the_rest_is_indexed(tmp_path):
    """What is endless is given up, what is broken says why, what is odd is read, what is no text is left out."""
    files = {**ENDLESS, **BROKEN, **ODD, **BINARY}
    folder = written(tmp_path / "files", files)

    report, names = indexed(folder, tmp_path, max_seconds=3.0)

    failures = {Path(source).name: reason for source, reason in report.failures}
    assert failures.keys() == ENDLESS.keys() | BROKEN.keys()
    assert all("s to read, which is given up" in failures[name] for name in ENDLESS)
    assert not any("\n" in reason for reason in failures.values())
    assert {Path(source).name for source, _ in report.skipped} == set(BINARY)
    assert names == {"0.txt", "zz.txt", *ODD}


def test_what_every_passage_repeats_is_bounded(tmp_path):
    """A heading, or a field of a record, of half a million letters is not written twenty thousand times."""
    files = {name: ODD[name] for name in ("heading.md", "field.jsonl")}
    folder = written(tmp_path / "files", files)

    report, _ = indexed(folder, tmp_path)

    assert report.failures == []
    assert report.num_chunks > 400
    assert sum(path.stat().st_size for path in (tmp_path / "zoo").rglob("*") if path.is_file()) < 20e6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_links_and_depths_stop_nobody(tmp_path):
    """A pipe among the files, or in place of .gitignore, a link to itself, folders deeper than Python's stack."""
    folder = written(tmp_path / "files", {})
    os.mkfifo(folder / "pipe.txt")
    os.mkfifo(folder / ".gitignore")
    (folder / "sub").mkdir()
    (folder / "sub" / ".gitignore").symlink_to("/dev/zero")
    (folder / "sub" / "found.txt").write_text(GOOD)
    (folder / "loop").symlink_to(folder)
    (folder / "itself.txt").symlink_to(folder / "itself.txt")
    with deep(folder / "d", 1_200):
        report, names = indexed(folder, tmp_path)

    assert names == {"0.txt", "zz.txt", "found.txt"}
    assert report.failures == []


@pytest.mark.parametrize("pattern", ["*a*a*a*a*a*a*b", "**/a/**/a/**/a/**/a/**/a/b"])
def test_ignore_patterns_that_take_for_ever_leave_their_folder_out(tmp_path, pattern):
    """Matching one may take hours; without it, what it hides would be indexed."""
    folder = written(tmp_path / "files", {})
    (folder / "sub").mkdir()
    (folder / "sub" / ".gitignore").write_text(f"# a*b*c*d*e*f\n{pattern}\n")
    (folder / "sub" / ("a" * 200)).write_text(GOOD)

    report, names = indexed(folder, tmp_path)

    assert [Path(source).name for source, _ in report.failures] == ["sub"]
    assert f"the ignore pattern {pattern!r} has more than 4 wildcards" in report.failures[0][1]
    assert names == {"0.txt", "zz.txt"}
    with pytest.raises(ConfigError, match="has more than 4 wildcards"):
        list(walk(folder, exclude=[pattern]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_files_that_change_as_they_are_read_are_a_line_each(tmp_path):
    """One vanishes, one becomes a pipe, one grows past the limit; all after the folder was listed."""
    folder = written(tmp_path / "files", dict.fromkeys(("gone.txt", "grows.txt", "pipe.txt"), b"words"))

    def change(progress):
        if progress.name.endswith("0.txt"):
            (folder / "gone.txt").unlink()
            (folder / "pipe.txt").unlink()
            os.mkfifo(folder / "pipe.txt")
            (folder / "grows.txt").write_bytes(b"words " * 1_000)

    report, names = indexed(folder, tmp_path, max_bytes=1_000, on_progress=change)

    failures = {Path(source).name: reason for source, reason in report.failures}
    assert failures == {
        "gone.txt": "cannot be read: No such file or directory",
        "grows.txt": "has 6,000 bytes, more than the limit of 1,000: --max-bytes",
        "pipe.txt": "is no regular file any more",
    }
    assert names == {"0.txt", "zz.txt"}


def test_a_pdf_may_hold_no_more_text_than_a_file(tmp_path):
    """However small it is itself."""
    folder = written(tmp_path / "files", {"bomb.pdf": hostile.decompression_bomb(1)})

    report, names = indexed(folder, tmp_path, max_bytes=20_000)

    assert [Path(source).name for source, _ in report.failures] == ["bomb.pdf"]
    assert "characters of text, more than the limit of 20,000: --max-bytes" in report.failures[0][1]
    assert names == {"0.txt", "zz.txt"}


def test_a_reader_that_was_ended_is_followed_by_another():
    """The next document is read as if nothing had been."""
    with ReadingProcess(seconds=1.0) as reading:
        with pytest.raises(Unreadable, match="which is given up"):
            reading.chunks(ENDLESS["comments.html"], "html", "x", Chunking(), max_characters=10**9)
        made, problems = reading.chunks(GOOD.encode(), "text", "a.txt", Chunking(), max_characters=10**9)

    assert [(chunk.text, chunk.source) for chunk in made] == [(GOOD, "a.txt")]
    assert problems == ()


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("pdf", hostile.decompression_bomb()),
        ("pdf", hostile.endless_tree()),
        ("pdf", hostile.nested_objects()),
        ("html", b"<a" * 500_000),
        ("html", b"<![CDATA[" * 200_000),
        ("records", b"[" * 50_000_000),
        ("text", b"a\n\n" * 30_000_000),
    ],
    ids=["decompression", "endless tree", "nested objects", "tags", "cdata", "brackets", "paragraphs"],
)
def test_no_document_takes_more_than_it_may(kind, data):
    """Time is kept from outside, memory by the kernel: never more than the limit, whatever is in the document."""
    with ReadingProcess(seconds=20.0) as reading, pytest.raises(Unreadable):
        reading.chunks(data, kind, "x", Chunking(), max_characters=100_000_000)

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < MEMORY_BYTES + MEMORY_PER_BYTE * 100_000_000
