"""Tools and JSON shapes for models that know neither: a system prompt, a grammar, and a reader of what comes back.

The prompt and its markers are those of the Hermes function-calling format, which many small models were trained on.
The grammar is llguidance's dialect of Lark, which llama.cpp takes; it holds the model to a call that parses and fits
the tool's schema. Knows nothing of llama.cpp itself.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.types import Message, NamedTool, Query, ResponseFormat, ToolCall, ToolSpec

from . import gbnf

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

#: Calls that one answer may hold where the query allows several at once; a small model may not know when to end.
MAX_PARALLEL_CALLS = 8

_HEADER = "%llguidance {}\n"

_PROMPT = """\
You can call functions. They are, one JSON object per line:
<tools>
{tools}
</tools>
To call a function, write this and nothing else:
<tool_call>
{{"name": "<function name>", "arguments": {{<arguments as JSON>}}}}
</tool_call>"""

_AUTO = "Call a function only if it helps to answer; otherwise answer in words."


# --- the prompt ------------------------------------------------------------------------------------------------------


def offered_tools(query: Query) -> tuple[ToolSpec, ...]:
    """The tools that the model may call under the query's `tool_choice`.

    Raises:
        RequestError: `tool_choice` names a tool that is not there, or forces a call where there are no tools.
    """
    choice = query.tool_choice
    if choice == "none":
        return ()
    if isinstance(choice, NamedTool):
        chosen = tuple(tool for tool in query.tools if tool.name == choice.name)
        if not chosen:
            raise RequestError(f"tool_choice names {choice.name!r}, which is not among the tools", param="tool_choice")
        return chosen
    if choice == "required" and not query.tools:
        raise RequestError("tool_choice is 'required' and there are no tools", param="tool_choice")
    return query.tools


def template_messages(query: Query) -> list[dict[str, str]]:
    """The conversation in roles that every chat template takes, with the tools told in the system message."""
    turns: list[dict[str, str]] = []
    results: list[str] = []
    for message in query.messages:
        if message.role == "tool":
            results.append(f"<tool_response>\n{message.text}\n</tool_response>")
            continue
        if results:
            turns.append({"role": "user", "content": "\n".join(results)})
            results = []
        turns.append(_turn(message))
    if results:
        turns.append({"role": "user", "content": "\n".join(results)})
    if prompt := _tools_prompt(query):
        if turns and turns[0]["role"] == "system":
            turns[0] = {"role": "system", "content": f"{turns[0]['content']}\n\n{prompt}"}
        else:
            turns.insert(0, {"role": "system", "content": prompt})
    return turns


def _turn(message: Message) -> dict[str, str]:
    if message.role == "assistant" and message.tool_calls:
        calls = [
            f'{OPEN}\n{{"name": {_dump(call.name)}, "arguments": {call.arguments or "{}"}}}\n{CLOSE}'
            for call in message.tool_calls
        ]
        return {"role": "assistant", "content": "\n".join([message.text, *calls] if message.text else calls)}
    return {"role": "system" if message.role == "developer" else message.role, "content": message.text}


def _tools_prompt(query: Query) -> str:
    if not offered_tools(query):
        return ""
    lines = [
        _dump({"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)})
        for tool in query.tools
    ]
    prompt = _PROMPT.format(tools="\n".join(lines))
    if isinstance(query.tool_choice, NamedTool):
        return f"{prompt}\nCall {query.tool_choice.name} now."
    return f"{prompt}\n{'Call a function now.' if query.tool_choice == 'required' else _AUTO}"


# --- the grammar -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """What holds the model to the query's tools and response format."""

    grammar: str | None = None  # None: it may write anything
    schemas: tuple[tuple[str, str], ...] = ()  # the JSON Schemas inside, and the query's field that each came from


def shape_of(query: Query) -> Shape:
    """The grammar for the query's tools and response format.

    A model library may drop a grammar that it cannot compile, so try the schemas first; see `probe`.

    Raises:
        RequestError: a schema is missing, a grammar is not GBNF, or `tool_choice` names no tool.
        UnsupportedOption: a grammar and tools were asked for together.
    """
    form = query.response_format
    tools = offered_tools(query)
    if form and form.kind == "grammar":
        if tools:
            raise UnsupportedOption("a grammar cannot be kept while tools may be called", param="response_format")
        return Shape(_checked(form.grammar))
    if form and form.kind == "choice":
        if tools:
            raise UnsupportedOption("a choice cannot be kept while tools may be called", param="response_format")
        if not form.choices or not all(form.choices):
            raise RequestError("a choice needs texts to choose from, none of them empty", param="response_format")
        return Shape(gbnf.choice(form.choices))
    answer = _answer_schema(form) if form else None
    if not tools:
        if answer is None:
            return Shape()
        return Shape(f"{_HEADER}start: answer\nanswer: %json {answer}", ((answer, "response_format"),))
    calls_schema = _guided(_call_schema(tools), strict=any(tool.strict for tool in tools))
    schemas = ((calls_schema, "tools"),)
    call = f'call: "{OPEN}\\n" json "\\n{CLOSE}"\njson: %json {calls_schema}'
    calls = f'call ("\\n" call){{0,{MAX_PARALLEL_CALLS - 1}}}' if query.parallel_tool_calls else "call"
    if is_forced(query):
        return Shape(f"{_HEADER}start: {calls}\n{call}", schemas)
    if answer is not None:
        start = f"start: answer | {calls}\nanswer: %json {answer}"
        return Shape(f"{_HEADER}{start}\n{call}", (*schemas, (answer, "response_format")))
    text = f"TEXT: /(?s:.+)/ & ~/(?s:.*{OPEN}.*)/"
    return Shape(f"{_HEADER}start: TEXT | TEXT? {calls}\n{text}\n{call}", schemas)


def is_forced(query: Query) -> bool:
    """Whether the model must call a tool."""
    return query.tool_choice == "required" or isinstance(query.tool_choice, NamedTool)


def probe(schema: str) -> str:
    """A grammar whose first character is U+0001 if `schema` compiles; no model writes that unless it is made to."""
    return f'{_HEADER}start: "\\u0001" json\njson: %json {schema}'


def _checked(grammar: str | None) -> str:
    try:
        gbnf.check(grammar or "")
    except ValueError as exc:
        raise RequestError(f"the grammar is not GBNF: {exc}", param="response_format") from exc
    return grammar or ""


def _answer_schema(form: ResponseFormat) -> str | None:
    if form.kind == "json_object":
        return _guided({"type": "object"}, strict=True)
    if form.kind != "json_schema":
        return None
    if not isinstance(form.schema, Mapping):
        raise RequestError("response_format 'json_schema' needs a schema object", param="response_format")
    return _guided(_closed(form.schema), strict=bool(form.strict))


def _call_schema(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """A schema of one call to any of `tools`. Each tool's parameters become a definition, and their refs follow."""
    definitions: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        where = f"#/$defs/tool{i}"
        definitions[f"tool{i}"] = _moved(_parameters(tool), where)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": {"$ref": where}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions}


def _parameters(tool: ToolSpec) -> Mapping[str, Any]:
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return _closed(tool.parameters)


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """`schema` without undeclared properties at its top, where it leaves them open: a small model rambles in them."""
    open_ends = {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"}
    unions = {"allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas"}
    properties = schema.get("properties")
    if properties is None or (open_ends | unions) & schema.keys() or set(schema.get("required", ())) - set(properties):
        return schema
    return {**schema, "additionalProperties": False}


def _moved(schema: Any, where: str) -> Any:
    """`schema` with its references to itself pointing below `where`."""
    if isinstance(schema, Mapping):
        return {
            key: f"{where}{value[1:]}"
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, where)
            for key, value in schema.items()
            if key not in ("$schema", "$id")
        }
    return [_moved(item, where) for item in schema] if isinstance(schema, list | tuple) else schema


def _guided(schema: Mapping[str, Any], *, strict: bool) -> str:
    """The schema as llguidance reads it: one space after separators, and keywords that it cannot enforce are errors
    where the client asked for strictness and hints where not, as in OpenAI's API."""
    guidance = {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "coerce_one_of": True,
        "lenient": not strict,
    }
    return _dump({**schema, "x-guidance": guidance})


# --- the reader ------------------------------------------------------------------------------------------------------


class CallReader:
    """Splits what the model writes into text and calls, as it comes.

    Text is handed on at once, save for an end that may turn out to be the opening marker. A call is handed on when it
    is whole; one that never gets whole (the token limit) is dropped, since broken arguments are worse than none.
    """

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._names = {tool.name for tool in tools}
        self._held = ""
        self._is_inside = False
        self._is_after_call = False
        self.calls: list[ToolCall] = []

    @property
    def is_cut_off(self) -> bool:
        """Whether a call was begun and not finished."""
        return self._is_inside

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """The text and the calls that are complete with this piece."""
        self._held += text
        out: list[str] = []
        calls: list[ToolCall] = []
        while True:
            if self._is_inside:
                call = self._take_call()
                if call is None:
                    break
                calls.append(call)
            else:
                if self._is_after_call:  # blanks between calls are the grammar's, not the model's text
                    self._held = self._held.lstrip()
                    self._is_after_call = not self._held
                before, marker, after = self._held.partition(OPEN)
                if not marker:
                    keep = _overlap(self._held, OPEN)
                    out.append(self._held[: len(self._held) - keep])
                    self._held = self._held[len(self._held) - keep :]
                    break
                out.append(before)
                self._held = after
                self._is_inside = True
        self.calls += calls
        return "".join(out), calls

    def finish(self) -> str:
        """The text that was held back, once the model has ended."""
        return "" if self._is_inside else self._held

    def _take_call(self) -> ToolCall | None:
        """The call at the front of what is held, once its closing marker is there; a marker inside a string is not."""
        at = self._held.find(CLOSE)
        while at >= 0:
            call = self._parsed(self._held[:at])
            if call is not None:
                self._held = self._held[at + len(CLOSE) :]
                self._is_inside = False
                self._is_after_call = True
                return call
            at = self._held.find(CLOSE, at + 1)
        return None

    def _parsed(self, text: str) -> ToolCall | None:
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("name") not in self._names or "arguments" not in value:
            return None
        return ToolCall(f"call_{secrets.token_hex(12)}", value["name"], _dump(value["arguments"]))


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
