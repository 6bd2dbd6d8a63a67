"""Past mistakes of a model that are listed in a file, found by the likeness of their questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import anyio.to_thread

from nearfar.errors import ConfigError, DataError
from nearfar.types import Embedder, ErrorCase

_NEEDED = ("question", "wrong", "right")
_FIELDS = (*_NEEDED, "reason", "model")


class ListedErrors:
    """`ErrorCases` in memory, compared one by one: for thousands of them, not for millions.

    A question that comes back finds its own case, with its solution: leave the questions that you measure on out of the
    list.

    Args:
        cases: what went wrong.
        embedder: what makes questions comparable.
    """

    def __init__(self, cases: Sequence[ErrorCase], embedder: Embedder) -> None:
        self.cases = tuple(cases)
        self._embedder = embedder
        self._vectors: Any = embedder.embed([case.question for case in self.cases])

    @classmethod
    def load(cls, path: str | Path, embedder: Embedder) -> Self:
        """The cases of a JSONL file, each an object with `question`, `wrong`, `right`, perhaps `reason` and `model`.

        Raises:
            ConfigError: the file cannot be read.
            DataError: a line is no such object, or there is none.
        """
        return cls(_read(Path(path)), embedder)

    async def similar(self, question: str, k: int) -> list[tuple[ErrorCase, float]]:
        """At most `k` cases with the cosine of their questions to this one, likest first; ties keep their order."""
        if not self.cases or k < 1:
            return []
        return await anyio.to_thread.run_sync(self._similar, question, k)

    def _similar(self, question: str, k: int) -> list[tuple[ErrorCase, float]]:
        import numpy as np

        cosines = self._vectors @ self._embedder.embed_queries([question])[0]
        likest = np.argsort(-cosines, kind="stable")[:k].tolist()
        return [(self.cases[i], float(cosines[i])) for i in likest]


def _read(path: Path) -> list[ErrorCase]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise ConfigError(f"Cannot read the error cases {str(path)!r}: {exc.strerror or exc}.") from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"{str(path)!r} is not UTF-8: {exc.reason}.", path=str(path)) from exc
    cases = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise DataError(f"{str(path)!r}, line {number}: not JSON: {exc}.", path=str(path)) from exc
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) and row[name] for name in _NEEDED):
            raise DataError(
                f"{str(path)!r}, line {number}: an error case is an object with the texts 'question', 'wrong' and "
                "'right'.",
                path=str(path),
            )
        cases.append(ErrorCase(**{name: str(row.get(name) or "") for name in _FIELDS}))
    if not cases:
        raise DataError(f"{str(path)!r} has no error cases. Write one object a line, or leave the setting out.")
    return cases
