"""Readers by a file's kind: text, Markdown, code and records here, HTML and PDF next door."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from .documents import Block, Document, Kind, Lines, Unreadable, decode
from .html_reader import read_html
from .pdf_reader import read_pdf

#: Raised when a reader's output changes, so that what it read before is read anew.
VERSION = 1

_CODE = """
    .bash .bat .c .cc .clj .cpp .cs .css .cu .cuh .dart .el .erl .ex .exs .f90 .go .h .hpp .hs .java .jl .js .jsx .kt
    .lua .m .ml .mm .php .pl .proto .ps1 .r .rb .rs .scala .sh .sql .swift .ts .tsx .vue .zig
"""
_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    **dict.fromkeys((".py", ".pyi"), "python"),
    **dict.fromkeys((".jsonl", ".ndjson"), "records"),
    **dict.fromkeys(_CODE.split(), "code"),
}


def kind_of(name: str) -> Kind:
    """What the file is by its name's ending; text where the ending says nothing."""
    return _KINDS.get(PurePath(name).suffix.lower(), "text")


def read(data: bytes, kind: Kind) -> Document:
    """The document in the bytes.

    Raises:
        Unreadable: broken, binary, or locked by a password.
        ConfigError: the reader's package is not installed.
    """
    if kind == "pdf" or data.startswith(b"%PDF-"):
        return read_pdf(data)
    text, encoding = decode(data)
    metadata = {} if encoding == "utf-8" else {"encoding": encoding}
    if kind == "html":
        return read_html(text, metadata)
    if kind == "records":
        return _read_records(text, metadata)
    blocks = tuple(_BLOCKS[kind](text))
    return Document(text, kind, blocks, metadata)


_PARAGRAPH = re.compile(r"\S(?:.*\S)?(?:\n[^\S\n]*\S.*)*")


def _paragraphs(text: str) -> Iterator[Block]:
    """Runs of lines that are not blank."""
    for match in _PARAGRAPH.finditer(text):
        yield Block(match.start(), match.end())


_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.+?)\s*#*\s*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def _markdown(text: str) -> Iterator[Block]:
    """Paragraphs, lists and fenced code under their headings; a heading goes with what follows it."""
    headings: list[tuple[int, str]] = []
    fence = ""
    start: int | None = None
    end = place = 0
    heading: tuple[int, str] | None

    def path() -> Mapping[str, Any]:
        return {"heading": " › ".join(title for _, title in headings)} if headings else {}

    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        mark = _FENCE.match(bare)
        if fence:
            if mark and mark[1].startswith(fence):
                fence = ""
            end = place + len(bare)
        elif mark:
            fence = mark[1]
            start = place if start is None else start
            end = place + len(bare)
        elif heading := _heading(bare):
            if start is not None:
                yield Block(start, end, path())
            level, title = heading
            headings = [*((known, name) for known, name in headings if known < level), (level, title)]
            start, end = place, place + len(bare)
        elif not bare.strip():
            if start is not None and not _HEADING.match(text, start, end):
                yield Block(start, end, path())
                start = None
        elif start is not None and _UNDERLINE.match(bare) and text.find("\n", start, end) < 0:
            level, title = 1 if "=" in bare else 2, text[start:end].strip()
            headings = [*((known, name) for known, name in headings if known < level), (level, title)]
            end = place + len(bare)
        else:
            start = place if start is None else start
            end = place + len(bare)
        place += len(line)
    if start is not None:
        yield Block(start, end, path())


def _heading(line: str) -> tuple[int, str] | None:
    match = _HEADING.match(line)
    return (len(match[1]), match[2]) if match else None


def _code(text: str) -> Iterator[Block]:
    """Top-level stretches: from a blank line before an unindented one to the next such."""
    start = 0
    for match in re.finditer(r"\n[^\S\n]*\n(?=\S)", text):
        if text[start : match.start()].strip():
            yield Block(start, match.start())
        start = match.end()
    if text[start:].strip():
        yield Block(start, len(text.rstrip()))


def _python(text: str) -> Iterator[Block]:
    """The module's head, every function, every method, and every class up to its first method."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the author's code, not of ours
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield from _code(text)
        return
    lines = Lines(text)
    cuts = sorted(_definitions(tree, ""))
    place, name = 0, ""
    ends = [(lines.start(line), label) for line, label in cuts]
    for start, label in [*ends, (len(text), "")]:
        if text[place:start].strip():
            yield Block(
                place, place + len(text[place:start].rstrip()), {"object": name} if name else {}, None, bool(name)
            )
        place, name = start, label


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[int, str]]:
    """First line and qualified name of every class, method and top-level function, and "" where one ends."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
            yield first, f"{prefix}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, f"{prefix}{child.name}.")
            yield (child.end_lineno or child.lineno) + 1, prefix.removesuffix(".")


#: Where records keep their text and their title, in the order of preference.
_TEXT_FIELDS = ("text", "content", "body", "abstract", "passage", "contents", "answer", "description")
_TITLE_FIELDS = ("title", "name", "question", "headline")


def _read_records(text: str, metadata: Mapping[str, Any]) -> Document:
    """One block a line, each a JSON value: an object's text and title, its other plain fields as metadata."""
    blocks, problems = [], []
    place = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                body, facts = _record(json.loads(line))
            except (ValueError, RecursionError) as exc:
                problems.append(f"line {number} is not JSON: {exc}")
            else:
                blocks.append(Block(place, place + len(line), {"line": number, **facts}, body, stands_alone=True))
        place += len(line) + 1
    if problems and not blocks:
        raise Unreadable(problems[0])
    return Document(text, "records", tuple(blocks), metadata, tuple(problems))


def _record(value: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(value, dict):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), {}
    names = {str(name).lower(): str(name) for name in value}
    body = next((names[name] for name in _TEXT_FIELDS if isinstance(value.get(names.get(name, "")), str)), None)
    title = next((names[name] for name in _TITLE_FIELDS if isinstance(value.get(names.get(name, "")), str)), None)
    if body is None:
        return "\n".join(f"{name}: {_shown(inner)}" for name, inner in value.items()), {}
    facts = {
        name: inner
        for name, inner in value.items()
        if name not in (body, title) and isinstance(inner, str | int | float | bool)
    }
    return value[body], facts | ({"title": value[title]} if title else {})


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_BLOCKS: Mapping[Kind, Callable[[str], Iterator[Block]]] = {
    "text": _paragraphs,
    "markdown": _markdown,
    "code": _code,
    "python": _python,
}
