"""What is asked: sizes of requests, read from a file, and the same in few shapes with their shares."""

from __future__ import annotations

import csv
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.errors import DataError


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of about the same size."""

    shape: Shape  # their means, rounded up
    share: float  # of all requests, in (0, 1]
    label: tuple[int, int]  # the upper edges; the last is open


#: Upper edges of the buckets, in tokens: about doubling, finer where most requests are.
#: Source: after the grid of Griggs et al. 2024, arXiv:2404.14527.
EDGES = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000)


def buckets(requests: Sequence[Shape], edges: Sequence[int] = EDGES) -> list[Bucket]:
    """The requests in buckets by prompt and completion, those that hold none left out.

    Raises:
        DataError: there are no requests.
    """
    if not requests:
        raise DataError("There are no requests to plan for.")
    found: dict[tuple[int, int], list[Shape]] = {}
    for each in requests:
        found.setdefault(label_of(each, edges), []).append(each)
    return [Bucket(_mean(members), len(members) / len(requests), label) for label, members in sorted(found.items())]


def label_of(request: Shape, edges: Sequence[int] = EDGES) -> tuple[int, int]:
    """The bucket that the request belongs to."""
    last = len(edges) - 1
    return (
        edges[min(last, bisect_left(edges, request.prompt_tokens))],
        edges[min(last, bisect_left(edges, request.completion_tokens))],
    )


def read_lengths(path: Path) -> list[Shape]:
    """The sizes in a file of JSON lines or CSV with `prompt_tokens` and `completion_tokens`.

    Raises:
        DataError: it cannot be read, or a row has no such numbers.
    """
    found = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: Iterator[Any] = (
                csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file if line.strip())
            )
            for number, row in enumerate(rows, 1):
                found.append(_shape(row, number, path))
    except OSError as exc:
        raise DataError(f"Cannot read the lengths {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc
    except (ValueError, csv.Error) as exc:
        raise DataError(f"{str(path)!r} is no file of JSON lines or CSV: {exc}.", path=str(path)) from exc
    if not found:
        raise DataError(f"{str(path)!r} holds no requests.", path=str(path))
    return found


def _shape(row: Any, number: int, path: Path) -> Shape:
    try:
        prompt, completion = int(row["prompt_tokens"]), int(row["completion_tokens"])
    except (KeyError, TypeError, ValueError) as exc:
        raise DataError(
            f"{str(path)!r}, row {number}: needs the whole numbers prompt_tokens and completion_tokens, has {row!r}.",
            path=str(path),
        ) from exc
    if prompt < 1 or completion < 1:
        raise DataError(f"{str(path)!r}, row {number}: both counts must be 1 or more, not {row!r}.", path=str(path))
    return Shape(prompt, completion)


def _mean(members: Sequence[Shape]) -> Shape:
    n = len(members)
    return Shape(
        -(-sum(each.prompt_tokens for each in members) // n), -(-sum(each.completion_tokens for each in members) // n)
    )
