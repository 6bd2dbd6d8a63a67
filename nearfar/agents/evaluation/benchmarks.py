"""The items of ToolAlpaca, API-Bank and multi-hop question sets, in the layouts of their files.

Items and tools may come in one file or several; a row is known by its fields.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.errors import DataError
from nearfar.types import ToolSpec

from .call_metrics import AnyValue
from .call_text import Call


@dataclass(frozen=True, slots=True)
class CallItem:
    """A request, its tools, and the calls that answer it."""

    id: str
    group: str  # what figures are told apart by: the split, the level, the data set
    text: str
    tools: tuple[ToolSpec, ...]
    gold: tuple[Call, ...]
    gold_answer: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionItem:
    """A question with its gold answers, and the passages that may answer it."""

    id: str
    group: str
    text: str
    golds: tuple[str, ...]
    passages: tuple[tuple[str, str], ...] = ()  # title and text


def read_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The objects of JSONL files, also as .gz; a file that is one JSON list gives its entries.

    Raises:
        DataError: a file cannot be read, or a line is no JSON object.
    """
    for path in paths:
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = raw.decode("utf-8-sig")
        except (OSError, EOFError, UnicodeDecodeError) as exc:
            raise DataError(
                f"Cannot read {str(path)!r}: {exc}. Name a JSONL file, also as .gz.", path=str(path)
            ) from exc
        yield from _rows_of(text, path)


def _rows_of(text: str, path: Path) -> Iterator[dict[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as exc:
            raise DataError(f"{str(path)!r} is no JSON: {exc}.", path=str(path)) from exc
        numbered = list(enumerate(rows, 1))
    else:
        numbered = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except (ValueError, RecursionError) as exc:
                    raise DataError(f"Line {number} of {str(path)!r} is no JSON: {exc}.", path=str(path)) from exc
    for number, row in numbered:
        if not isinstance(row, dict):
            raise DataError(f"Row {number} of {str(path)!r} is no JSON object.", path=str(path))
        yield row


def beside(paths: Sequence[Path], name: str) -> list[Path]:
    """The files, and those of this name (also as .gz) in their folders that are not among them."""
    found = list(paths)
    for folder in dict.fromkeys(path.parent for path in paths):
        for other in (folder / name, folder / f"{name}.gz"):
            if other.is_file() and other not in found:
                found.append(other)
    return found


# --- ToolAlpaca ------------------------------------------------------------------------------------------------------


def read_toolalpaca(rows: Iterable[Mapping[str, Any]]) -> list[CallItem]:
    """ToolAlpaca's evaluation items (Tang et al. 2023, arXiv:2306.05301) with the tools of their APIs.

    A gold value such as `${animeId from searchAnime}` is only known in the run, so any value is right.
    """
    rows = list(rows)
    apis = {row["id"]: _toolalpaca_tools(row) for row in rows if "function_description" in row}
    items = []
    for row in rows:
        if "instruction" not in row or "golden" not in row:
            continue
        split = str(row.get("split", ""))
        api = str(row["id"]).rpartition(":")[0]
        golden = [Call(step["Action"], _loose_object(step.get("Action_Input", "{}"))) for step in row["golden"]]
        items.append(CallItem(row["id"], split or "all", row["instruction"], apis.get(api, ()), tuple(golden)))
    return items


_PLACEHOLDER = re.compile(r'"?\$?\{\s*[A-Za-z][^{}":]*\}?"?')


def _loose_object(text: Any) -> dict[str, Any]:
    """A JSON object that may hold placeholders; where nothing helps, its keys, each with any value."""
    if isinstance(text, Mapping):
        return dict(text)
    marked = _PLACEHOLDER.sub('"\\\\u0000"', str(text))
    for candidate in (str(text), marked):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return {key: _wild(each) for key, each in value.items()}
    return {key: AnyValue() for key in dict.fromkeys(re.findall(r'"(\w+)"\s*:', str(text)))}


def _wild(value: Any) -> Any:
    if isinstance(value, list):
        return [_wild(each) for each in value]
    if isinstance(value, str) and ("\0" in value or _PLACEHOLDER.fullmatch(f'"{value}"')):
        return AnyValue()
    return value


def _toolalpaca_tools(row: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    tools = []
    for name, told in row["function_description"].items():
        if name == "components" or not isinstance(told, str):
            continue
        description, _, rest = told.partition("\nParameters: ")
        try:
            parameters = json.loads(rest.partition("\nOutput:")[0].strip() or "{}")
        except ValueError:
            parameters = {}
        tools.append(ToolSpec(name, description.strip(), _toolalpaca_schema(parameters)))
    return tuple(tools)


_TOLD_TYPES = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "array": "array"}


def _toolalpaca_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of parameters that are told in words: `Required. string. One of: [a, b]. What it is.`"""
    properties: dict[str, Any] = {}
    required = []
    for name, told in parameters.items():
        text = str(told)
        if text.startswith("Required. "):
            required.append(name)
            text = text.removeprefix("Required. ")
        kind, _, description = text.partition(".")
        base = re.split(r"[\[{(]", kind.strip().lower())[0]
        schema: dict[str, Any] = {"type": _TOLD_TYPES.get(base, "object" if base == "object" else "string")}
        if schema["type"] == "array":
            schema["items"] = {"type": "string"}
        if choices := re.match(r"\s*One of: \[([^\]]*)\]\.?", description):
            schema["enum"] = [each.strip() for each in choices[1].split(",")]
            description = description[choices.end() :]
        schema["description"] = description.strip()
        properties[name] = schema
    return {"type": "object", "properties": properties, "required": required}


# --- API-Bank --------------------------------------------------------------------------------------------------------


def read_apibank(rows: Iterable[Mapping[str, Any]]) -> list[CallItem]:
    """API-Bank's dialogues (Li et al. 2023, arXiv:2304.08244): the calls of each, and its last answer.

    The request is what was said before the first call.
    """
    rows = list(rows)
    tools = apibank_tools(rows)
    items = []
    for row in rows:
        if "turns" not in row:
            continue
        turns = row["turns"]
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "API"), len(turns))
        text = "\n".join(f"{turn['role']}: {turn['text']}" for turn in turns[:first])
        gold = [Call(turn["api_name"], turn.get("param_dict") or {}) for turn in turns if turn["role"] == "API"]
        said = [turn["text"] for turn in turns[first:] if turn["role"] == "AI"]
        items.append(
            CallItem(row["id"], f"level {row.get('level')}", text, tools, tuple(gold), said[-1] if said else None)
        )
    return items


_PYTHON_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}


def apibank_tools(rows: Iterable[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    """API-Bank's APIs as tools."""
    return tuple(_apibank_tool(row) for row in rows if "signature" in row)


def _apibank_tool(row: Mapping[str, Any]) -> ToolSpec:
    """An API whose description and parameters stand in Python assignments."""
    told: dict[str, Any] = {}
    try:
        for statement in ast.parse(row.get("info", "")).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                told[statement.targets[0].id] = ast.literal_eval(statement.value)
    except (SyntaxError, ValueError):
        told = {}
    parameters = told.get("input_parameters")
    properties = {}
    for name, each in parameters.items() if isinstance(parameters, dict) else ():
        each = each if isinstance(each, dict) else {"description": str(each)}
        kind = re.split(r"[\[(]", str(each.get("type", "str")).lower())[0]
        schema: dict[str, Any] = {"type": _PYTHON_TYPES.get(kind, "string"), "description": each.get("description", "")}
        if schema["type"] == "array":
            schema["items"] = {"type": "string"}
        properties[name] = schema
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ToolSpec(row["id"], str(told.get("description", "")), schema)


# --- questions -------------------------------------------------------------------------------------------------------


def read_questions(rows: Iterable[Mapping[str, Any]]) -> list[QuestionItem]:
    """Questions with `answer` and, where there are any, `aliases` and `passages`.

    Raises:
        DataError: a row has no id, question or answer.
    """
    items = []
    for row in rows:
        try:
            golds = [str(row["answer"]), *map(str, row.get("aliases") or ())]
            passages = tuple((each.get("title", ""), each.get("text", "")) for each in row.get("passages") or ())
            group = str(row.get("dataset") or str(row["id"]).rpartition("-")[0] or "all")
            items.append(QuestionItem(str(row["id"]), group, row["question"], tuple(golds), passages))
        except (KeyError, TypeError, AttributeError) as exc:
            raise DataError(
                f"Row {row.get('id')!r} is no question: it needs id, question and answer ({exc!r})."
            ) from exc
    return items
