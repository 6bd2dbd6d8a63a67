"""Labelled answers: what they are, and how they are read from JSONL, CSV and parquet."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import ConfigError, DataError
from nearfar.types import Signals

#: Columns that are taken for signals where nobody says which are: those of `signals.answer_signals`.
SIGNAL_NAMES = (
    "mean_logprob",
    "min_logprob",
    "first_logprob",
    "logprob_q10",
    "logprob_q25",
    "logprob_q50",
    "logprob_q75",
    "logprob_q90",
    "mean_entropy",
    "max_entropy",
    "mean_margin",
    "min_margin",
    "num_tokens",
)

_READ_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """What a tier answered, and whether it was right."""

    signals: Signals
    correct: float  # in [0, 1]
    far_correct: float | None = None  # outcome of the next tier on the same query, in [0, 1]; None: not known


def load_examples(
    path: str | Path, columns: Mapping[str, str] | None = None, *, signals: Sequence[str] | None = None
) -> list[LabelledAnswer]:
    """Labelled answers from JSONL, CSV (both also gzipped) or parquet.

    A row has its outcome in `correct` (true, false or a number in [0, 1]) and, if known, the next tier's in
    `far_correct`. Its signals are an object in `signals` (JSON text in a CSV), or numbers in columns of their names.

    Args:
        columns: the file's name for `correct`, `far_correct` or `signals`, where it is another.
        signals: which columns are signals; None: those that nearfar reads off answers.

    Raises:
        ConfigError: no such file, an unknown ending or key in `columns`, or parquet without pyarrow.
        DataError: not UTF-8, not the format that its name says, a column missing, or a value that is not a number.
    """
    path = Path(path)
    names = {"correct": "correct", "far_correct": "far_correct", "signals": "signals"}
    unknown = sorted(set(columns or {}) - set(names))
    if unknown:
        raise ConfigError(f"No column {unknown[0]!r} to rename; there are {', '.join(map(repr, names))}.")
    names.update(columns or {})
    wanted = tuple(signals) if signals is not None else SIGNAL_NAMES
    examples = [
        _labelled(row, f"{str(path)!r}, row {number}", names, wanted, str(path))
        for number, row in enumerate(read_rows(path), start=1)
    ]
    if not examples:
        raise DataError(f"{str(path)!r} has no rows.", path=str(path))
    return examples


def fingerprint(examples: Iterable[LabelledAnswer]) -> str:
    """SHA-256 of the labelled answers, in order: one canonical JSON array a line."""
    digest = hashlib.sha256()
    for example in examples:
        line = [sorted(example.signals.items()), example.correct, example.far_correct]
        digest.update(msgspec.json.encode(line) + b"\n")
    return digest.hexdigest()


def read_rows(
    path: Path, *, models: Collection[str] | None = None, columns: Collection[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """The rows of a JSONL, CSV (both also gzipped) or parquet file, by column.

    Args:
        path: the file; its ending tells the format.
        models: only rows whose `model` is one of these; None: all.
        columns: the ones that are needed, `model` among them, which spares time on wide parquet; None: all.

    Raises:
        ConfigError: no such file, an unknown ending, or parquet without pyarrow.
        DataError: not UTF-8, or not the format that its name says.
    """
    if not path.is_file():
        raise ConfigError(f"No file {str(path)!r}. Name the labelled answers.")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(path, models, columns)
        elif name.endswith((".jsonl", ".jsonl.gz")):
            yield from _of_models(_read_jsonl(path), models)
        elif name.endswith((".csv", ".csv.gz")):
            with _opened(path) as file:
                yield from _of_models(csv.DictReader(file, strict=True), models)
        else:
            raise ConfigError(f"Cannot read {str(path)!r} by its name. Name it {', '.join(_READ_SUFFIXES)}.")
    except UnicodeDecodeError as exc:
        raise DataError(f"{str(path)!r} is not UTF-8. Save it as UTF-8.", path=str(path)) from exc
    except (OSError, EOFError, csv.Error) as exc:
        raise DataError(f"Cannot read {str(path)!r}: {exc}. Check that the file is whole.", path=str(path)) from exc


def _opened(path: Path) -> Any:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as exc:
                raise DataError(
                    f"{str(path)!r}, line {number} is not a JSON object: {exc}. Mend or remove it.", path=str(path)
                ) from exc


def _of_models(rows: Iterable[Mapping[str, Any]], models: Collection[str] | None) -> Iterator[Mapping[str, Any]]:
    return iter(rows) if models is None else (row for row in rows if row.get("model") in models)


def _read_parquet(
    path: Path, models: Collection[str] | None, columns: Collection[str] | None
) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise ConfigError("Reading parquet needs pyarrow. Install it: pip install 'nearfar[fit]'") from exc
    try:
        with pq.ParquetFile(path) as file:
            has_model = models is not None and "model" in file.schema_arrow.names
            wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(columns=wanted):
                if has_model:
                    batch = batch.filter(pc.is_in(batch["model"], pa.array(models, batch["model"].type)))
                yield from batch.to_pylist()
    except pa.ArrowException as exc:
        raise DataError(f"{str(path)!r} is not a parquet file: {exc}.", path=str(path)) from exc


def _labelled(
    row: Mapping[str, Any], where: str, names: Mapping[str, str], wanted: Sequence[str], path: str
) -> LabelledAnswer:
    def number(value: Any, name: str) -> float:
        try:
            return to_number(value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise DataError(f"{where}: {name!r} is {value!r}, not a number.", path=path) from exc

    def outcome(value: Any, name: str) -> float:
        found = number(value, name)
        if not 0 <= found <= 1:
            raise DataError(f"{where}: {name!r} is {value!r}; outcomes are in [0, 1].", path=path)
        return found

    correct = row.get(names["correct"])
    if correct is None or correct == "":
        has = ", ".join(map(repr, filter(None, row)))
        raise DataError(
            f"{where} has no {names['correct']!r}; it has {has}. Say which column holds the outcome.", path=path
        )
    far = row.get(names["far_correct"])
    cells = row.get(names["signals"])
    if isinstance(cells, str) and cells:
        try:
            cells = msgspec.json.decode(cells)
        except msgspec.DecodeError as exc:
            raise DataError(f"{where}: {names['signals']!r} is not JSON: {exc}.", path=path) from exc
    if cells is None or cells == "":
        cells = {name: row[name] for name in wanted if name in row}
    if not isinstance(cells, dict):
        raise DataError(f"{where}: {names['signals']!r} is {cells!r}, not an object of numbers.", path=path)
    found = {name: number(value, name) for name, value in cells.items() if value is not None and value != ""}
    if not found:
        raise DataError(
            f"{where} has no signals: neither an object in {names['signals']!r} nor columns named "
            f"{', '.join(wanted)}. Say which columns are signals.",
            path=path,
        )
    return LabelledAnswer(
        found,
        outcome(correct, names["correct"]),
        None if far is None or far == "" else outcome(far, names["far_correct"]),
    )


def to_number(value: Any) -> float:
    """A cell as a number; true and false are 1 and 0.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        return float(value.strip().lower() == "true")
    return float(value)
