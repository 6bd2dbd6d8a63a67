"""Queries whose worker is known: how they are read, told apart into parts, and turned into a fitted policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nearfar import __version__
from nearfar.errors import ConfigError, DataError
from nearfar.router.labels import read_rows

from .chooser import FunctionalTokens
from .distribution import LabelCalibration, LabelLogprobs, contextual
from .fitting import MIN_QUERIES, accuracy, fit_calibration
from .policy import TokenPolicy, prompt_sha256
from .prompts import CONTENT_FREE

#: Of ten parts, those that a fit does not see and that its figures are measured on.
_HELD_BACK = 2


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """A query and the worker that should take it."""

    text: str
    worker: str

    @property
    def is_held_back(self) -> bool:
        """Whether figures are measured on it; by a hash of its text, so that copies are on one side."""
        plain = " ".join(self.text.lower().split())
        return int(hashlib.sha256(plain.encode()).hexdigest()[:8], 16) % 10 < _HELD_BACK


def load_labelled(
    path: str | Path, workers: Collection[str], columns: Mapping[str, str] | None = None
) -> list[LabelledQuery]:
    """Labelled queries from JSONL, CSV (both also gzipped) or parquet: the columns `query` and `worker`.

    Args:
        path: the file.
        workers: those that there are.
        columns: the file's name for `query` or `worker`, where it is another.

    Raises:
        ConfigError: no such file, an unknown ending or key in `columns`, or parquet without pyarrow.
        DataError: a column is missing, a query is empty, or a worker is none of `workers`.
    """
    names = {"query": "query", "worker": "worker"}
    unknown = sorted(set(columns or {}) - set(names))
    if unknown:
        raise ConfigError(f"No column {unknown[0]!r} to rename; there are 'query', 'worker'.")
    names.update(columns or {})
    found: list[LabelledQuery] = []
    for number, row in enumerate(read_rows(Path(path), columns=tuple(names.values())), start=1):
        where = f"{str(path)!r}, row {number}"
        text, worker = row.get(names["query"]), row.get(names["worker"])
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where} has no text in {names['query']!r}. Give every row its query.", path=str(path))
        if not isinstance(worker, str) or worker not in workers:
            known = ", ".join(map(repr, workers))
            raise DataError(f"{where}: {names['worker']!r} is {worker!r}; the workers are {known}.", path=str(path))
        found.append(LabelledQuery(text, worker))
    if not found:
        raise DataError(f"{str(path)!r} has no rows.", path=str(path))
    return found


def fingerprint(queries: Sequence[LabelledQuery]) -> str:
    """SHA-256 of the labelled queries, in order."""
    digest = hashlib.sha256()
    for query in queries:
        digest.update(repr((query.text, query.worker)).encode() + b"\n")
    return digest.hexdigest()


async def fit_policy(
    tokens: FunctionalTokens,
    queries: Sequence[LabelledQuery],
    *,
    name: str,
    version: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TokenPolicy:
    """The calibration that fits the queries, with its accuracy on those that were held back from a first fit.

    Every query is one decode step of the choosing model.

    Args:
        tokens: the router.
        queries: with their workers.
        name: the policy's.
        version: of that name.
        progress: told after each query: how many are done, of how many.

    Raises:
        ConfigError: a label is not one token, or scikit-learn is not installed.
        DataError: too few queries, or all of one worker.
        UpstreamError: the choosing model failed.
    """
    if len(queries) < MIN_QUERIES:
        raise DataError(f"{len(queries)} labelled queries; calibrating labels needs {MIN_QUERIES} or more.")
    await tokens.check()
    labels = [worker.label for worker in tokens.graph.workers]
    wanted = [tokens.graph.by_name[query.worker].label for query in queries]
    start = LabelCalibration()
    if tokens.style == "described":
        start = contextual([(await tokens.logprobs(text))[0] for text in CONTENT_FREE], labels)
    rows: list[LabelLogprobs] = []
    for i, query in enumerate(queries, start=1):
        rows.append((await tokens.logprobs(query.text))[0])
        if progress is not None:
            progress(i, len(queries))
    seen = [i for i, query in enumerate(queries) if not query.is_held_back]
    held = [i for i, query in enumerate(queries) if query.is_held_back]
    measured: dict[str, float] = {}
    if held and len(seen) >= MIN_QUERIES and len({wanted[i] for i in seen}) > 1:
        first = fit_calibration([rows[i] for i in seen], labels, [wanted[i] for i in seen], start=start)
        unseen, right = [rows[i] for i in held], [wanted[i] for i in held]
        measured = {
            "n": float(len(held)),
            "accuracy": accuracy(unseen, right, first),
            "accuracy_uncalibrated": accuracy(unseen, right, None),
            "accuracy_before": accuracy(unseen, right, start),
        }
    fitted = fit_calibration(rows, labels, wanted, start=start)
    return TokenPolicy(
        name=name,
        version=version,
        created_at=datetime.now(UTC),
        nearfar_version=__version__,
        model=tokens.model.card.name,
        style=tokens.style,
        labels={worker.name: worker.label for worker in tokens.graph.workers},
        prompt_sha256=prompt_sha256(tokens.graph, tokens.style),
        scale=fitted.scale,
        bias={worker.name: fitted.bias[worker.label] for worker in tokens.graph.workers},
        n=len(queries),
        data_sha256=fingerprint(queries),
        measured=measured,
    )
