"""Labelled queries, and what is learned from them about the passages: a passage is also what it was the answer to."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import DataError
from nearfar.types import Chunk, Embedder, Hit

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query and how relevant which chunks are to it."""

    id: str
    text: str
    relevant: Mapping[str, float]  # by chunk id; the rest is not


class UsageMemory:
    """Which queries each chunk was relevant to: the idea of Tool2Vec (arXiv:2409.02141), of passages.

    Args:
        queries: labelled ones.
        embedder: of queries.
    """

    def __init__(self, queries: Sequence[JudgedQuery], embedder: Embedder) -> None:
        self._queries = tuple(queries)
        self._embedder = embedder
        self._vectors: NDArray[float32] = embedder.embed_queries([query.text for query in queries])

    def likeness(self, query: str, *, but: str | None = None) -> dict[str, float]:
        """The cosine to the likest labelled query, of every chunk that was relevant to one.

        Args:
            query: what is searched.
            but: the id of a labelled query that must not be looked at, so that a reranker is fitted on a memory as
                ignorant of its examples as it will be of new queries.
        """
        cosines = self._vectors @ self._embedder.embed_queries([query])[0]
        found: dict[str, float] = {}
        for labelled, cosine in zip(self._queries, cosines.tolist(), strict=True):
            if labelled.id != but:
                for name, gain in labelled.relevant.items():
                    if gain > 0 and cosine > found.get(name, -1.0):
                        found[name] = cosine
        return found


def with_usage(hits: Sequence[Hit], likeness: Mapping[str, float]) -> list[Hit]:
    """The hits with their likeness under three signals.

    "usage" is the cosine to the likest query of the hit; "usage_near" and "usage_same" are what of it exceeds 0.6 (the
    same subject) and 0.8 (the same question in other words), so that a linear score can bend.
    """
    found = []
    for hit in hits:
        cosine = max(0.0, likeness.get(hit.chunk.id, 0.0))
        usage = {"usage": cosine, "usage_near": max(0.0, cosine - 0.6), "usage_same": max(0.0, cosine - 0.8)}
        found.append(replace(hit, signals={**hit.signals, **usage}))
    return found


def read_corpus(folder: Path) -> list[Chunk]:
    """The documents of FOLDER/corpus.jsonl or corpus.jsonl.gz, whole: `id`, `text` and, where there is one, `title`.

    Raises:
        DataError: there is no such file, or a line is not a document.
    """
    path = existing(folder / "corpus.jsonl")
    found: dict[str, Chunk] = {}
    for number, row in rows(path):
        if "id" not in row or not isinstance(row.get("text"), str):
            raise broken_line(path, number, "a document needs `id` and `text`")
        name = str(row["id"])
        if name in found:
            raise broken_line(path, number, f"there is another document {name!r} before it")
        title = row.get("title")
        metadata = {"title": title} if isinstance(title, str) and title else {}
        found[name] = Chunk(row["text"], name, 0, len(row["text"]), metadata, id=name)
    if not found:
        raise DataError(f"{str(path)!r} has no documents.", path=str(path))
    return list(found.values())


def read_queries(path: Path, *, known: Mapping[str, int] | None = None) -> list[JudgedQuery]:
    """The labelled queries of a JSONL file, also gzipped: `text` and `qrels` (document id to gain), maybe `id`.

    Args:
        path: with or without .gz.
        known: ids of the documents that there are; a query none of whose relevant documents is there is an error.

    Raises:
        DataError: there is no such file, a line is not a labelled query, or it has no known relevant document.
    """
    path = existing(path)
    found = []
    for number, row in rows(path):
        labels = row.get("qrels")
        if not isinstance(row.get("text"), str) or not row["text"].strip() or not isinstance(labels, dict):
            raise broken_line(path, number, "a query needs `text` and `qrels`")
        try:
            gains = {str(name): float(gain) for name, gain in labels.items()}
        except (TypeError, ValueError) as exc:
            raise broken_line(path, number, "the gains in `qrels` are numbers") from exc
        if not all(map(isfinite, gains.values())):
            raise broken_line(path, number, "the gains in `qrels` are finite")
        relevant = {name: gain for name, gain in gains.items() if gain > 0}
        if known is not None and not any(name in known for name in relevant):
            raise broken_line(path, number, "none of the documents in `qrels` is in the corpus")
        found.append(JudgedQuery(str(row.get("id", number)), row["text"], relevant))
    if not found:
        raise DataError(f"{str(path)!r} has no queries.", path=str(path))
    return found


def existing(path: Path) -> Path:
    """The file, or its gzipped twin.

    Raises:
        DataError: there is neither.
    """
    packed = path.with_name(path.name + ".gz")
    if path.is_file():
        return path
    if packed.is_file():
        return packed
    raise DataError(f"There is no {str(path)!r}, nor {packed.name!r} beside it.", path=str(path))


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, also gzipped, with their line numbers.

    Raises:
        DataError: the file cannot be read, or a line is no object.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as exc:
        raise DataError(f"Cannot read {str(path)!r}: {exc}.", path=str(path)) from exc
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise broken_line(path, number, "not JSON") from exc
            if not isinstance(row, dict):
                raise broken_line(path, number, "not an object")
            yield number, row


def broken_line(path: Path, number: int, why: str) -> DataError:
    """The error that names a line and what is wrong with it."""
    return DataError(f"Line {number} of {str(path)!r} cannot be used: {why}.", path=str(path))
