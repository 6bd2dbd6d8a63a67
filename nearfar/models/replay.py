"""Recorded answers of real models, given again to the questions that they were recorded for."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import re
import time
import zlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from nearfar.errors import ConfigError, DataError, UnsupportedOption, UpstreamRejected
from nearfar.types import (
    Answer,
    ModelCard,
    Placement,
    Price,
    Query,
    StreamEnd,
    StreamEvent,
    TextDelta,
    Usage,
    estimate_tokens,
)

#: What a table may tell, by our names; `columns` maps them to the table's.
COLUMNS = ("query", "model", "response", "correct", "cost", "latency_ms", "prompt_tokens", "completion_tokens")

_NUMBERS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


@dataclass(slots=True)
class Outcome:
    """What a model once said to one question, and how good it was."""

    response: str | None  # None: the table records no text
    correct: float | None  # in [0, 1], the mean over repeated rows; None: not known
    cost_usd: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    num_graded: int = 0  # rows that `correct` is the mean of


class OutcomeTable:
    """Outcomes by model and question; a question is found by its text, however its white space is broken.

    Rows that repeat a model and a question are one outcome: the mean of `correct`, and else the first row's.
    Questions are kept as hashes, so that a table of 100,000 rows with answers takes about their texts' size.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], *, path: str = "") -> None:
        """Reads rows that have `COLUMNS` for keys; what is missing is unknown.

        Raises:
            DataError: a row has no query or model, or a number that is none; it is named.
        """
        self.path = path
        self._outcomes: dict[str, dict[bytes, Outcome]] = {}
        for number, row in enumerate(rows, start=1):
            try:
                self._add(row)
            except (TypeError, ValueError) as exc:
                raise DataError(f"Row {number} of {path or 'the table'!r}: {exc}.", path=path) from exc

    @classmethod
    def load(cls, path: str | Path, columns: Mapping[str, str] | None = None) -> OutcomeTable:
        """The table in a file: .parquet, .jsonl or .csv, the last two also with .gz.

        Args:
            path: the file.
            columns: our name to the table's, for columns that are named otherwise.

        Raises:
            ConfigError: `columns` has a name that is none of `COLUMNS`, or pyarrow is missing.
            DataError: the file cannot be read, or lacks the needed columns.
        """
        path = Path(path)
        if unknown := set(columns or {}) - set(COLUMNS):
            raise ConfigError(f"columns has {min(unknown)!r}; it can map {', '.join(COLUMNS)}.")
        names = {name: (columns or {}).get(name, name) for name in COLUMNS}
        kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
        reader = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}.get(kind)
        if reader is None:
            raise DataError(f"{str(path)!r} is no outcome table: name a .parquet, .jsonl or .csv file.", path=str(path))
        try:
            return cls(reader(path, names, columns or {}), path=str(path))
        except OSError as exc:
            raise DataError(f"Cannot read {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc
        except (EOFError, zlib.error, csv.Error) as exc:
            raise DataError(f"{str(path)!r} is broken: {exc}. Get it again.", path=str(path)) from exc
        except UnicodeDecodeError as exc:
            raise DataError(
                f"{str(path)!r} is not UTF-8 (byte {exc.start}): save it as UTF-8.", path=str(path)
            ) from exc

    def __len__(self) -> int:
        return sum(len(outcomes) for outcomes in self._outcomes.values())

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the table has outcomes of, sorted."""
        return tuple(sorted(self._outcomes))

    def find(self, model: str, question: str) -> Outcome | None:
        """What `model` said to `question`; None: that is not recorded."""
        return self._outcomes.get(model, {}).get(_key(question))

    def longest_answer(self, model: str) -> int | None:
        """Tokens of the model's longest answer, estimated where they are not recorded; None: no answer tells."""
        known = (answer_tokens(outcome) for outcome in self._outcomes.get(model, {}).values())
        return max((tokens for tokens in known if tokens is not None), default=None)

    def _add(self, row: Mapping[str, Any]) -> None:
        question, model = row.get("query"), row.get("model")
        if not isinstance(question, str) or not isinstance(model, str):
            raise TypeError("query and model must be texts")
        correct = _number(row, "correct")
        if correct is not None and not 0 <= correct <= 1:
            raise ValueError(f"correct must be in [0, 1], not {correct:g}")
        response = row.get("response")
        if not isinstance(response, str | None):
            raise TypeError("response must be a text")
        outcome = Outcome(
            response,
            correct,
            _number(row, "cost"),
            _number(row, "latency_ms"),
            _count(row, "prompt_tokens"),
            _count(row, "completion_tokens"),
            num_graded=int(correct is not None),
        )
        known = self._outcomes.setdefault(model, {}).setdefault(_key(question), outcome)
        if known is not outcome and correct is not None:
            known.num_graded += 1
            known.correct = (known.correct or 0.0) + (correct - (known.correct or 0.0)) / known.num_graded


class ReplayModel:
    """Gives a model's recorded answers, and answers nothing that is not recorded.

    Decoding options do not change what was recorded; each answer says so (`extra["recorded"]`, and the card's
    `is_recording`). A row without a text gives an empty answer, marked `outcome_only`. The cost is the recorded one,
    else the price of the recorded or estimated tokens. Recorded time is told in `extra["latency_ms"]`, not waited.

    Args:
        table: the outcomes.
        name: the model's name in the config.
        model: its name in the table.
        placement: where the recorded model ran; what is near is free to ask, what is far is not.
        price: of the recorded model.
        context_window: tokens; None: unknown.
        assumed_output_tokens: an answer's length where the table has neither its text nor its tokens.

    Raises:
        ConfigError: the table has no such model.
    """

    def __init__(
        self,
        table: OutcomeTable,
        *,
        name: str,
        model: str,
        placement: Placement,
        price: Price | None = None,
        context_window: int | None = None,
        assumed_output_tokens: int = 256,
    ) -> None:
        if model not in table.models:
            raise ConfigError(
                f"{name!r} replays {model!r}, which {table.path or 'its table'!r} has no rows of; it has "
                f"{', '.join(map(repr, table.models[:20])) or 'no model at all'}."
            )
        self._table = table
        self._model = model
        self._assumed_output_tokens = assumed_output_tokens
        self.card = ModelCard(
            name,
            placement,
            context_window=context_window,
            max_output_tokens=max(table.longest_answer(model) or assumed_output_tokens, 1),
            price=price,
            is_recording=True,
        )

    async def complete(self, query: Query) -> Answer:
        """The recorded answer.

        Raises:
            UnsupportedOption: tools, a response format, log-probabilities: a recording has none.
            UpstreamRejected: the question is not recorded.
        """
        start = time.perf_counter()
        name = self.card.name
        for param, why in self.card.unmet(query).items():
            raise UnsupportedOption(
                f"{name!r} cannot take {param!r}: it replays recorded answers and {why}.", param=param
            )
        outcome = self._table.find(self._model, query.text)
        if outcome is None:
            raise UpstreamRejected(
                f"{name!r} replays {self._table.path or 'a table'!r}, where {_excerpt(query.text)!r} is not recorded. "
                "Ask a recorded question, or another model.",
                model=name,
            )
        usage = self._usage(query, outcome)
        price, cost_usd = self.card.price, outcome.cost_usd
        if cost_usd is None and price is not None:
            cost_usd = price.cost_usd(usage)
        extra: dict[str, Any] = {"recorded": True}
        if outcome.latency_ms is not None:
            extra["latency_ms"] = outcome.latency_ms
        return Answer(
            outcome.response or "",
            name,
            usage=usage,
            cost_usd=cost_usd,
            is_cost_estimated=cost_usd is not None and outcome.cost_usd is None and usage.is_estimated,
            latency_s=time.perf_counter() - start,
            outcome_only=outcome.response is None,
            correct=outcome.correct,
            extra=extra,
        )

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The recorded answer, word by word."""
        answer = await self.complete(query)
        for word in re.findall(r"\s*\S+|\s+$", answer.text):
            yield TextDelta(word)
        yield StreamEnd(answer)

    def unavailable(self) -> str | None:
        """Never."""
        return None

    async def aclose(self) -> None:
        """Holds nothing."""

    def _usage(self, query: Query, outcome: Outcome) -> Usage:
        prompt_tokens = outcome.prompt_tokens
        if prompt_tokens is None:
            prompt_tokens = sum(estimate_tokens(message.text) for message in query.messages)
        completion_tokens = answer_tokens(outcome)
        if completion_tokens is None:
            completion_tokens = self._assumed_output_tokens
        is_estimated = outcome.prompt_tokens is None or outcome.completion_tokens is None
        return Usage(prompt_tokens, completion_tokens, is_estimated=is_estimated)


def answer_tokens(outcome: Outcome) -> int | None:
    """The answer's tokens, estimated from its text where they are not recorded; None: nothing tells."""
    if outcome.completion_tokens is not None:
        return outcome.completion_tokens
    return None if outcome.response is None else estimate_tokens(outcome.response)


def _key(question: str) -> bytes:
    return hashlib.blake2b(" ".join(question.split()).encode(errors="surrogatepass"), digest_size=16).digest()


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """A number ≥ 0; None where there is none."""
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().lower() in _NUMBERS:
        return _NUMBERS[value.strip().lower()]
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if math.isnan(number):
        return None
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a number ≥ 0, not {value!r}")
    return number


def _count(row: Mapping[str, Any], name: str) -> int | None:
    number = _number(row, name)
    return None if number is None else round(number)


def _check(path: Path, found: Iterable[str], names: Mapping[str, str], columns: Mapping[str, str]) -> None:
    """That the table has a question, a model and something to say about the answer, and all that was mapped.

    Raises:
        DataError: it has not; the message names the columns that it has.
    """
    has = list(found)
    missing = [
        theirs
        for name, theirs in names.items()
        if theirs not in has and (name in columns or name in ("query", "model"))
    ]
    if not missing and not {names["response"], names["correct"]} & set(has):
        missing = ["response or correct"]
    if missing:
        raise DataError(
            f"{str(path)!r} has no column {', '.join(missing)}; it has {', '.join(has) or 'none'}. Map the names, as "
            'in columns = {query = "question"}.',
            path=str(path),
        )


def _parquet(path: Path, names: Mapping[str, str], columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise ConfigError(f"Reading {str(path)!r} needs pyarrow: pip install 'nearfar[fit]'.") from exc
    path.open("rb").close()  # a missing file is an OSError with its reason
    try:
        with pq.ParquetFile(path) as file:
            has = file.schema_arrow.names
            _check(path, has, names, columns)
            wanted = {theirs: name for name, theirs in names.items() if theirs in has}
            for batch in file.iter_batches(batch_size=4096, columns=list(wanted)):
                for row in batch.to_pylist():
                    yield {wanted[theirs]: value for theirs, value in row.items()}
    except pa.ArrowException as exc:
        raise DataError(f"{str(path)!r} is not a parquet file: {_first_line(exc)}", path=str(path)) from exc


def _jsonl(path: Path, names: Mapping[str, str], columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    is_checked = False
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = decode(line)
            except (msgspec.DecodeError, msgspec.ValidationError) as exc:
                raise DataError(f"Line {number} of {str(path)!r} is no JSON object: {exc}.", path=str(path)) from exc
            if not is_checked:
                _check(path, row, names, columns)
                is_checked = True
            yield {name: row.get(theirs) for name, theirs in names.items()}


def _csv(path: Path, names: Mapping[str, str], columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    with _opened(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text)
        _check(path, reader.fieldnames or (), names, columns)
        for row in reader:
            yield {name: row.get(theirs) for name, theirs in names.items()}


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value] # GzipFile


def _first_line(exc: BaseException) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__
