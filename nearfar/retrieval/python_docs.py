"""The running Python's own documentation as a collection: docstrings of its library and the topics of `help()`."""

from __future__ import annotations

import ast
import hashlib
import io
import re
import sys
import sysconfig
import tokenize
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nearfar.types import Chunk

from .chunking import Chunking, chunks
from .database import DocumentRecord
from .documents import Block, Document, Lines
from .indexing import Progress, Report
from .writing import CollectionWriter

#: Raised when a file would be read otherwise.
_READING = "python-docs-2"

_LEFT_OUT = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "__pycache__", "pydoc_data"]
)


def library_files() -> dict[Path, str]:
    """The library's public modules that are written in Python, and their names; `pydoc_data.topics` is the first."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {root / "pydoc_data" / "topics.py": "pydoc_data.topics"}
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in _LEFT_OUT:
            continue
        single = root / f"{name}.py"
        for file in [single] if single.is_file() else sorted((root / name).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if not _LEFT_OUT.intersection(parts) and not any(part.startswith("_") for part in parts):
                files[file] = ".".join(parts)
    return {file: module for file, module in files.items() if file.is_file()}


def index_python(
    writer: CollectionWriter,
    files: dict[Path, str] | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """What was done to make the collection hold the documentation; each passage names its module, object and line.

    Args:
        writer: of the collection; its `finish` is called.
        files: modules by file; None: `library_files()`.
        on_progress: called after every file.
    """
    report = Report()
    found = library_files() if files is None else files
    for number, (file, module) in enumerate(found.items(), 1):
        status = file.stat()
        known = writer.document(str(file))
        reading = f"{_READING} {module}"
        if known and (known.num_bytes, known.modified_ns, known.reading) == (
            status.st_size,
            status.st_mtime_ns,
            reading,
        ):
            report.unchanged += 1
        else:
            data = file.read_bytes()
            made = _passages(data, module, str(file))
            record = DocumentRecord(
                str(file), hashlib.sha256(data).hexdigest(), "", len(data), status.st_mtime_ns, reading
            )
            writer.put(record, made)
            report.num_chunks += len(made)
            report.num_bytes += len(data)
            report.added += 1
        if on_progress:
            on_progress(Progress(number, len(found), str(file)))
    report.deleted = writer.delete(sorted(set(writer.sources()) - set(map(str, found))))
    writer.finish()
    return report


def _passages(data: bytes, module: str, source: str) -> list[Chunk]:
    text = data.decode(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    if module == "pydoc_data.topics":
        blocks = tuple(_topics(tree, text, module))
    else:
        blocks = tuple(_docstrings(tree, Lines(text), module))
    return chunks(Document(text, "python", blocks), source, Chunking())


def _docstrings(tree: ast.Module, lines: Lines, module: str) -> Iterator[Block]:
    """One block for every public object with a docstring, under its signature."""
    for node, name in _objects(tree, ""):
        doc = ast.get_docstring(node)
        if not doc:
            continue
        head = node.body[0]
        line = 1 if isinstance(node, ast.Module) else node.lineno
        shown = f"{module}.{name}" if name else module
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            shown += f"({ast.unparse(node.args)})"
        place = {"module": module, "object": f"{module}.{name}" if name else module, "line": line}
        yield Block(lines.start(line), lines.start((head.end_lineno or line) + 1), place, f"{shown}\n\n{doc}", True)


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _objects(node: _Documented, prefix: str) -> Iterator[tuple[_Documented, str]]:
    """The module, its public classes and functions, and their public methods, with their qualified names."""
    yield node, prefix.removesuffix(".")
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from _objects(child, f"{prefix}{child.name}.")
            else:
                yield child, f"{prefix}{child.name}"


def _topics(tree: ast.Module, text: str, module: str) -> Iterator[Block]:
    """Every paragraph of every topic, with the line of the file that it begins on."""
    lines = Lines(text)
    strings = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.STRING]
    starts = [token.start for token in strings]
    for table in ast.walk(tree):
        if not isinstance(table, ast.Dict):
            continue
        for key, value in zip(table.keys, table.values, strict=True):
            if not (isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str)):
                continue
            first = bisect_left(starts, (value.lineno, 0)) + (key.lineno == value.lineno)
            last = bisect_right(starts, (value.end_lineno or value.lineno, 1 << 30))
            numbers = list(_line_numbers(strings[first:last]))
            for match in _ENTRY.finditer(value.value):
                line, end = numbers[match.start()], numbers[match.end() - 1]
                place = {"module": module, "object": f"{module}.topics[{str(key.value)!r}]", "line": line}
                yield Block(lines.start(line), lines.start(end + 1), place, match.group())


#: A paragraph; a single line goes with an indented paragraph after it, as a signature does.
_ENTRY = re.compile(r"(?:(?P<indent>[ ]*)\S[^\n]*\n\n(?=(?P=indent)[ ]+\S))?[^\n](?:.|\n(?!\n))*")


def _line_numbers(strings: Sequence[tokenize.TokenInfo]) -> Iterator[int]:
    """The line of each character of the strings' joined value."""
    for token in strings:
        line = token.start[0]
        is_long = token.end[0] > line
        for character in ast.literal_eval(token.string):
            yield line
            line += is_long and character == "\n"
