"""The records of a JSONL or CSV file, one at a time, each a query or what is wrong with it."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from nearfar.errors import ConfigError, DataError
from nearfar.types import ContentPart, Message, Modality, Query, Role, SamplingOptions, ToolCall

from .results import COLUMNS


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """A record of the input; what it leaves out comes from the template."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    id: str | int | None = None
    model: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    budget_usd: float | None = None
    deadline_s: float | None = None
    privacy: Literal["any", "near"] | None = None
    quality: str | None = None
    session: str | None = None
    when_unsure: Literal["best", "abstain"] | None = None
    metadata: dict[str, str] | None = None


FIELDS = Record.__struct_fields__


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record, or what is wrong with it."""

    index: int  # from 0
    line: int  # from 1
    id: str | int | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    make_query: Callable[[Query], Query] | None = None
    problem: str | None = None


class Input:
    """The records of a JSONL or CSV file, one at a time."""

    def __init__(self, path: Path, *, prompt_field: str, keep: tuple[str, ...]) -> None:
        self.path = path
        self.keep = keep
        self._prompt_field = prompt_field
        self.is_csv = is_csv(path)
        clash = next((name for name in keep if name == prompt_field or name in COLUMNS), None)
        if clash:
            raise ConfigError(f"The field {clash!r} cannot be kept: the result has one of that name or uses it.")
        if not path.is_file():
            raise ConfigError(f"There is no file {str(path)!r}. Name the records: JSONL or CSV.")

    def scan(self) -> tuple[str, int]:
        """The file's SHA-256 and how many records it holds."""
        try:
            with self.path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return sha256, sum(1 for _ in self._rows())
        except OSError as exc:
            raise DataError(f"Cannot read {str(self.path)!r}: {exc.strerror}.", path=str(self.path)) from exc

    def __iter__(self) -> Iterator[Parsed]:
        for index, (line, row) in enumerate(self._rows()):
            yield self._parse(index, line, row)

    def _rows(self) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
        return self._csv_rows() if self.is_csv else self._json_rows()

    def _json_rows(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, text

    def _csv_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        csv.field_size_limit(sys.maxsize)
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            self._check_columns(columns)
            for row in reader:
                yield reader.line_num, row

    def _check_columns(self, columns: Sequence[str]) -> None:
        """Refuses a CSV whose columns cannot be records, before anything is asked."""
        has = ", ".join(repr(column) for column in columns) or "nothing"
        if self._prompt_field not in columns and "messages" not in columns:
            raise DataError(
                f"{str(self.path)!r} has no column {self._prompt_field!r}; it has {has}. "
                "Name the one with the prompts: --prompt-field NAME.",
                path=str(self.path),
            )
        missing = next((name for name in self.keep if name not in columns), None)
        if missing:
            raise DataError(f"{str(self.path)!r} has no column {missing!r} to keep; it has {has}.", path=str(self.path))
        for column in columns:
            if column not in FIELDS and column not in self.keep and column != self._prompt_field:
                raise DataError(
                    f"{str(self.path)!r} has a column {column!r} that nearfar does not know. Carry it over into the "
                    f"results: --keep {column!r}, or remove it. Known: {', '.join(FIELDS)}.",
                    path=str(self.path),
                )

    def _parse(self, index: int, line: int, row: bytes | dict[str, Any]) -> Parsed:
        record_id: str | int | None = None
        kept: dict[str, Any] = {}
        try:
            values = _decoded(row)
            found = values.get("id")
            record_id = found if isinstance(found, str | int) and not isinstance(found, bool) else None
            kept = {name: values.pop(name) for name in self.keep if name in values}
            if self._prompt_field != "prompt" and self._prompt_field in values:
                values["prompt"] = values.pop(self._prompt_field)
            unknown = next((name for name in values if name not in FIELDS), None)
            if unknown is not None:
                raise ValueError(
                    f"unknown field {unknown!r}; carry it over with --keep {unknown}, or remove it "
                    f"(known: {', '.join(FIELDS)})"
                )
            record = msgspec.convert(values, Record, strict=not self.is_csv)
            messages = _messages(record)
        except ValueError as exc:  # msgspec's errors are ValueErrors
            return Parsed(index, line, record_id, kept, problem=f"line {line}: {exc}.")
        return Parsed(index, line, record_id, kept, lambda template: _query(record, messages, template))


def _decoded(row: bytes | dict[str, Any]) -> dict[str, Any]:
    """The record's fields.

    Raises:
        ValueError: not UTF-8, not JSON, or a CSV row of another length.
    """
    if isinstance(row, bytes):
        try:
            text = row.decode()
        except UnicodeDecodeError as exc:
            raise ValueError(f"not UTF-8 (byte {exc.start} of the line); convert the file to UTF-8") from exc
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError as exc:
            raise ValueError(f"not a JSON object: {exc}") from exc
    if None in row or None in row.values():
        raise ValueError("has more or fewer cells than the header")
    values = {name: cell for name, cell in row.items() if cell != ""}
    for name, cell in values.items():
        if any("\ud800" <= character <= "\udfff" for character in cell):
            raise ValueError(f"{name!r} is not UTF-8; convert the file to UTF-8")
        if name in {"messages", "metadata"}:
            try:
                values[name] = msgspec.json.decode(cell)
            except msgspec.DecodeError as exc:
                raise ValueError(f"{name!r} is not JSON: {exc}") from exc
    return values


def _messages(record: Record) -> tuple[Message, ...]:
    if record.prompt is not None and record.messages is not None:
        raise ValueError("has both prompt and messages; keep one")
    if record.prompt is not None:
        if not record.prompt.strip():
            raise ValueError("the prompt is empty")
        asked: tuple[Message, ...] = (Message("user", record.prompt),)
    elif record.messages:
        asked = tuple(_message(message) for message in record.messages)
    else:
        raise ValueError("has neither prompt nor messages")
    return (Message("system", record.system), *asked) if record.system else asked


class _WireFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class _WireCall(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    function: _WireFunction
    type: Literal["function"] = "function"


class _WireMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message in OpenAI's shape."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[_WireCall] = []
    tool_call_id: str | None = None
    name: str | None = None


_MODALITIES: Mapping[str, Modality] = {"text": "text", "image_url": "image", "input_audio": "audio", "file": "file"}


def _message(wire: dict[str, Any]) -> Message:
    message = msgspec.convert(wire, _WireMessage)
    content = message.content or ""
    return Message(
        message.role,
        content if isinstance(content, str) else tuple(_part(part) for part in content),
        tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls),
        message.tool_call_id,
        message.name,
    )


def _part(part: dict[str, Any]) -> ContentPart:
    kind = _MODALITIES.get(part.get("type", ""))
    if kind is None:
        raise ValueError(f"unknown content part {part.get('type')!r}; use one of {', '.join(_MODALITIES)}")
    if kind != "text":
        return ContentPart(kind, wire=part)
    if not isinstance(part.get("text"), str):
        raise ValueError("a text part has no text")
    return ContentPart("text", part["text"])


def _query(record: Record, messages: tuple[Message, ...], template: Query) -> Query:
    own = {name: value for name in FIELDS if (value := getattr(record, name)) is not None}
    if isinstance(own.get("stop"), str):
        own["stop"] = (own["stop"],)
    elif "stop" in own:
        own["stop"] = tuple(own["stop"])
    sampling = {name: value for name, value in own.items() if name in SamplingOptions.__struct_fields__}
    rest = {name: value for name, value in own.items() if name in _QUERY_FIELDS}
    return replace(
        template, prompt=(*template.messages, *messages), sampling=replace(template.sampling, **sampling), **rest
    )


_QUERY_FIELDS = frozenset(
    {"model", "budget_usd", "deadline_s", "privacy", "quality", "session", "when_unsure", "metadata"}
)


def is_csv(path: Path) -> bool:
    """Whether the file is CSV and not JSONL, by its name.

    Raises:
        ConfigError: the name says neither.
    """
    suffix = path.suffix.lower()
    if suffix not in {".jsonl", ".ndjson", ".csv"}:
        raise ConfigError(f"Cannot tell the format of {str(path)!r} by its name. Name it .jsonl or .csv.")
    return suffix == ".csv"
