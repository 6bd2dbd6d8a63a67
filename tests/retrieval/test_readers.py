"""Readers and chunks: what is read of each kind, and where every chunk stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pdf import pdf_of

from nearfar.retrieval.chunking import Chunking, chunks
from nearfar.retrieval.documents import Unreadable, decode
from nearfar.retrieval.readers import kind_of, read


def cut(text, kind="text", max_chars=100):
    """The chunks of a text."""
    return chunks(read(text.encode(errors="surrogatepass"), kind), "a.txt", Chunking(max_chars))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=600)


@pytest.mark.parametrize("kind", ["text", "markdown", "code", "python"])
@given(texts)
def test_every_character_is_in_exactly_one_chunk(kind, text):
    """Chunks are the document's own text, in order, and only white space is in none of them."""
    made = cut(text, kind)

    place = 0
    for chunk in made:
        assert chunk.text == text[chunk.start : chunk.end]
        assert len(chunk.text) <= 100
        assert not text[place : chunk.start].strip()
        assert chunk.metadata["line"] == text[: chunk.start].count("\n") + 1
        place = chunk.end
    assert not text[place:].strip()


@given(texts)
def test_any_text_can_be_read_as_html(text):
    """As a browser would, whatever it is."""
    assert all(0 <= chunk.start <= chunk.end <= len(text) for chunk in cut(text, "html"))


@given(texts)
def test_any_text_is_records_or_has_problems(text):
    """Every line that is not blank is a chunk, an empty record, or a problem."""
    try:
        document = read(text.encode(), "records")
    except Unreadable:
        return
    lines = [line for line in text.split("\n") if line.strip()]
    assert len(document.blocks) + len(document.problems) == len(lines)


@given(st.binary(max_size=500))
def test_any_bytes_are_text_or_refused(data):
    """Nothing else can happen."""
    try:
        text, encoding = decode(data)
    except Unreadable:
        return
    assert isinstance(text, str)
    assert encoding in {"utf-8", "utf-16", "utf-32", "mixed", "windows-1252"}


def test_long_paragraphs_are_cut_between_sentences():
    """And a word is never cut where there is a better place."""
    made = cut("The first sentence is here. " * 5 + "The last one ends.")

    assert all(chunk.text.endswith(".") for chunk in made)


def test_markdown_chunks_know_their_headings_and_keep_code_whole():
    """A fence's own lines are neither headings nor paragraphs."""
    made = cut(
        "# Guide\n\nIntro.\n\n## Install\n\n```sh\n# not a heading\n\npip install x\n```\n\nUse\n---\n\nRun it.",
        "markdown",
    )

    assert [(chunk.metadata.get("heading"), chunk.text.split("\n")[0]) for chunk in made] == [
        ("Guide", "# Guide"),
        ("Guide › Install", "## Install"),
        ("Guide › Use", "Use"),
    ]
    assert "# not a heading\n\npip install x" in made[1].text


def test_python_chunks_are_functions_and_methods():
    """Each with its qualified name; broken code is cut at blank lines."""
    head = '"""Doc."""\nimport os\n\n\nclass A:\n    """A."""\n\n    x = 1\n\n'
    source = head + "    @property\n    def f(self):\n        return 1\n\n\ndef g():\n    pass\n"

    made = cut(source, "python")

    assert [(chunk.metadata.get("object"), chunk.metadata["line"]) for chunk in made] == [
        (None, 1),
        ("A", 5),
        ("A.f", 10),
        ("g", 15),
    ]
    assert [chunk.text for chunk in cut("def f(:\n  pass\n\nx = 1", "python")] == ["def f(:\n  pass\n\nx = 1"]


def test_html_is_what_a_browser_shows():
    """Scripts are not shown, headings are kept, and the place is the markup's."""
    page = (
        "<html><head><title>Owls &amp; co</title><style>p{}</style></head><body><h1>Birds</h1><script>x()</script>"
        "<p>Owls   hunt\nat <b>night</b>.</p><h2>Eggs</h2><ul><li>Hens lay eggs.</li></ul><p>unclosed"
    )

    made = cut(page, "html")

    assert [(chunk.metadata["heading"], chunk.text) for chunk in made] == [
        ("Birds", "Birds\nOwls hunt at night."),
        ("Birds › Eggs", "Eggs\nHens lay eggs.\nunclosed"),
    ]
    assert made[0].metadata["title"] == "Owls & co"
    assert page[made[0].start :].startswith("Birds</h1>")
    assert page[: made[0].end].endswith("</b>.")


def test_records_have_their_fields():
    """One chunk a record: its text, its title, and its plain fields as metadata; bad lines are listed."""
    lines = '{"title": "T", "text": "body", "year": 2020, "tags": ["x"]}\nnot json\n"just text"\n{"a": 1, "b": [2]}\n\n'

    document = read(lines.encode(), "records")
    made = chunks(document, "r.jsonl")

    assert [chunk.text for chunk in made] == ["body", "just text", "a: 1\nb: [2]"]
    assert made[0].metadata == {"line": 1, "title": "T", "year": 2020}
    assert [chunk.metadata["line"] for chunk in made] == [1, 3, 4]
    assert lines[made[1].start : made[1].end] == '"just text"'
    assert document.problems[0].startswith("line 2 is not JSON")


def test_pdf_pages_are_numbered():
    """Every chunk says its page."""
    pytest.importorskip("pypdfium2", reason="needs nearfar[retrieval]")

    document = read(pdf_of(["Cats purr.", "", "Dogs bark."]), "pdf")
    made = chunks(document, "a.pdf")

    assert [(chunk.text, chunk.metadata["page"]) for chunk in made] == [("Cats purr.", 1), ("Dogs bark.", 3)]
    assert document.text[made[1].start : made[1].end] == "Dogs bark."


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "broken PDF"),
        (b"%PDF-1.7 and then nothing", "broken PDF"),
        (pdf_of(["Cats purr."])[:150], "broken PDF"),
        (pdf_of([""]), "no text"),
    ],
)
def test_bad_pdfs_are_refused_with_the_reason(data, reason):
    """Empty, cut off, or scanned."""
    pytest.importorskip("pypdfium2", reason="needs nearfar[retrieval]")

    with pytest.raises(Unreadable, match=reason):
        read(data, "pdf")


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("naïve".encode(), "naïve", "utf-8"),
        ("naïve".encode("utf-8-sig"), "naïve", "utf-8"),
        ("naïve".encode("utf-16"), "naïve", "utf-16"),
        ("naïve".encode("cp1252"), "naïve", "windows-1252"),
        ("naïve\n".encode() + "größer".encode("cp1252"), "naïve\ngrößer", "mixed"),
    ],
)
def test_encodings_are_found_out(data, text, encoding):
    """By mark, by content, line by line."""
    assert decode(data) == (text, encoding)


@pytest.mark.parametrize("data", [b"\x7fELF\0\0", b"text\0more", bytes(range(256)) * 4, b"\xff\xfe\xff"])
def test_binary_is_refused(data):
    """It is no text."""
    with pytest.raises(Unreadable):
        decode(data)


def test_kinds_follow_the_name():
    """And text is what nobody knows."""
    names = ["A.MD", "b.html", "c.pdf", "d.py", "e.rs", "f.jsonl", "README", "g.weird"]

    assert [kind_of(name) for name in names] == [
        *("markdown", "html", "pdf", "python", "code", "records", "text", "text"),
    ]
