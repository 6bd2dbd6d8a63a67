"""Tools and JSON shapes for models that know neither: a system prompt, a grammar, and a reader of what comes back.

The prompt and its markers are those of the Hermes function-calling format, which many small models were trained on.
Calls are held by a grammar of ours, in GBNF: it takes no call that does not fit its tool's schema, and what the token
limit cuts off is finished by it. An answer's JSON shape, and a client's own grammar, are llguidance's, in its dialect
of Lark. Knows nothing of llama.cpp itself.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.types import Message, NamedTool, Query, ResponseFormat, ToolCall, ToolSpec

from . import gbnf, grammar
from .grammar import ANY, Chars, Node, Repeated, Text, accepts, completed, ranges_of, sequence, without
from .json_schema import SchemaRefused
from .json_schema_grammar import SchemaGrammar, schema_grammar

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

#: Calls that one answer may hold where the query allows several at once; a small model may not know when to end.
MAX_PARALLEL_CALLS = 8

_HEADER = "%llguidance {}\n"

#: Elements that a JSON Schema may ask an array to have. llguidance prepares for each: a billion took 20 GB.
_MAX_ITEMS = 10_000

#: A schema that llguidance holds a model to within seconds; it gives up longer ones in silence, in mid-answer.
_MAX_SCHEMA_CHARACTERS = 64 * 1024

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
class Probe:
    """Tells whether llguidance can compile a shape: llama.cpp drops one that it cannot, in silence."""

    grammar: str  # whose first character is U+0001, which no model writes unless it is made to
    why: str  # it is refused, else
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class Shape:
    """What holds the model to the query's tools and response format."""

    grammar: str | None = None  # None: it may write anything
    probes: tuple[Probe, ...] = ()
    call: Node | None = None  # the JSON of one call; None: none may be made
    own: gbnf.Grammar | None = None  # the query's own grammar


def shape_of(query: Query) -> Shape:
    """The grammar for the query's tools and response format.

    A model library may drop a grammar that it cannot compile, so try the probes first.

    Raises:
        RequestError: a schema is missing or cannot be kept to, a grammar is not GBNF, or `tool_choice` names no tool.
        UnsupportedOption: a grammar and tools were asked for together.
    """
    form = query.response_format
    tools = offered_tools(query)
    if form and form.kind == "grammar":
        if tools:
            raise UnsupportedOption("a grammar cannot be kept while tools may be called", param="response_format")
        return _own_grammar(form.grammar or "")
    if form and form.kind == "choice":
        if tools:
            raise UnsupportedOption("a choice cannot be kept while tools may be called", param="response_format")
        if not form.choices or not all(form.choices):
            raise RequestError("a choice needs texts to choose from, none of them empty", param="response_format")
        return Shape(gbnf.choice(form.choices))
    if not tools:
        answer = _answer_schema(form) if form else None
        if answer is None:
            return Shape()
        return _held_to("answer", f"answer: %json {answer}", _NO_SCHEMA)
    call = call_grammar(tools)
    calls = _calls(call, query)
    if is_forced(query):
        return _calling(calls, call, tools)
    if form and form.kind != "text":
        return _calling(grammar.either([_answer_node(form), calls]), call, tools)
    words = text_without_marker()
    return _calling(grammar.either([words, sequence(grammar.optional(words), calls)]), call, tools)


def _calling(node: Node, call: Node, tools: Sequence[ToolSpec]) -> Shape:
    """The shape of an answer with calls; one with clients' regular expressions is no matter for llama.cpp's engine.

    The rest of our grammars can be read in one way alone, and that engine is the faster by far.
    """
    text = grammar.gbnf(node)
    if not any('"pattern' in _dump(tool.parameters) for tool in tools):
        return Shape(text, call=call)
    try:
        held = _held_to("root", gbnf.Grammar(text).lark(), "the tools' patterns: they are too large")
    except ValueError as exc:
        raise RequestError(f"no model can be held to the tools' patterns: {exc}", param="tools") from exc
    return replace(held, call=call, probes=tuple(replace(probe, param="tools") for probe in held.probes))


def call_grammar(tools: Sequence[ToolSpec]) -> Node:
    """The JSON of one call of any of the tools, with arguments that fit.

    Raises:
        RequestError: a tool's schema cannot be kept to; the message says which and why.
    """
    calls = []
    for tool in tools:
        try:
            calls.append((f'{_dump(tool.name)}, "arguments": ', arguments_grammar(tool).node))
        except SchemaRefused as exc:
            why = f"no model can be held to the schema of the tool {tool.name!r}: {exc}"
            raise RequestError(why, param="tools") from exc
    return sequence('{"name": ', grammar.by_prefix(calls), "}")


def arguments_grammar(tool: ToolSpec) -> SchemaGrammar:
    """The JSON of the tool's arguments.

    Raises:
        SchemaRefused: the tool's schema cannot be kept to.
    """
    return _cached_grammar(_dump(tool.parameters))


@lru_cache(maxsize=1024)
def _cached_grammar(parameters: str) -> SchemaGrammar:
    return schema_grammar(json.loads(parameters) or {"type": "object", "properties": {}}, is_object=True)


def _marked(call: Node) -> Node:
    return sequence(f"{OPEN}\n", call, f"\n{CLOSE}")


def _calls(call: Node, query: Query) -> Node:
    one = _marked(call)
    if not query.parallel_tool_calls:
        return one
    return sequence(one, Repeated(sequence("\n", one), 0, MAX_PARALLEL_CALLS - 1))


@cache
def text_without_marker() -> Node:
    """Any text, not empty, in which no call begins.

    The marker's first character stands nowhere else in it, so a beginning of it is harmless before another beginning,
    before a character that does not go on with it, and at the end.
    """
    first, rest = OPEN[0], OPEN[1:]
    begun = Repeated(grammar.either(Text(OPEN[:length]) for length in range(1, len(OPEN))), 1, None)
    broken = [
        sequence(OPEN[: 1 + i], Chars(without(ANY.ranges, ranges_of((ord(c), ord(c)) for c in (first, following)))))
        for i, following in enumerate(rest)
    ]
    plain = Chars(without(ANY.ranges, ((ord(first), ord(first)),)))
    piece = grammar.either([plain, sequence(grammar.optional(begun), grammar.either(broken))])
    return grammar.either([sequence(Repeated(piece, 1, None), grammar.optional(begun)), begun])


def _answer_node(form: ResponseFormat) -> Node:
    """The JSON that the answer may be where it is no call."""
    schema: Any = {"type": "object"}
    if form.kind == "json_schema":
        if not isinstance(form.schema, Mapping):
            raise RequestError("response_format 'json_schema' needs a schema object", param="response_format")
        schema = form.schema
    try:
        return schema_grammar(schema).node
    except SchemaRefused as exc:
        if not form.strict:
            return schema_grammar({"type": "object"}).node
        raise RequestError(f"no model can be held to the JSON schema: {exc}", param="response_format") from exc


def is_forced(query: Query) -> bool:
    """Whether the model must call a tool."""
    return query.tool_choice == "required" or isinstance(query.tool_choice, NamedTool)


_NO_SCHEMA = (
    "the JSON schema: it is not valid, or it is strict and uses keywords that cannot be enforced (not, if, "
    "uniqueItems, minProperties …)"
)
_NO_GRAMMAR = "the grammar: it names a token that the model has not, or is too large"


def _held_to(rule: str, rules: str, why: str) -> Shape:
    """What these rules of Lark allow, from `rule` on."""
    return Shape(f"{_HEADER}start: {rule}\n{rules}", (Probe(f'{_HEADER}start: "\\u0001" {rule}\n{rules}', why),))


def _own_grammar(grammar: str) -> Shape:
    try:
        own = gbnf.Grammar(grammar)
        return replace(_held_to("root", own.lark(), _NO_GRAMMAR), own=own)
    except ValueError as exc:
        raise RequestError(f"the grammar cannot be used as GBNF: {exc}", param="response_format") from exc


def _answer_schema(form: ResponseFormat) -> str | None:
    if form.kind == "json_object":
        return _guided({"type": "object"}, strict=True)
    if form.kind != "json_schema":
        return None
    if not isinstance(form.schema, Mapping):
        raise RequestError("response_format 'json_schema' needs a schema object", param="response_format")
    return _guided(_closed(form.schema), strict=bool(form.strict))


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """`schema` without undeclared properties at its top, where it leaves them open: a small model rambles in them."""
    open_ends = {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"}
    unions = {"allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas"}
    properties = schema.get("properties")
    if properties is None or (open_ends | unions) & schema.keys() or set(schema.get("required", ())) - set(properties):
        return schema
    return {**schema, "additionalProperties": False}


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
    try:
        text = _dump({**_bounded(schema), "x-guidance": guidance})
    except RecursionError:
        raise RequestError("the JSON schema is nested too deeply", param="response_format") from None
    if len(text) > _MAX_SCHEMA_CHARACTERS:
        raise RequestError(
            f"the JSON schema has {len(text)} characters; a model can be held to {_MAX_SCHEMA_CHARACTERS}",
            param="response_format",
        )
    return text


def _bounded(schema: Any, key: str = "") -> Any:
    """The schema without bounds that no answer reaches, for they cost as much as if one did.

    Raises:
        RequestError: it asks for more elements than an answer can have.
    """
    if key in ("const", "enum", "default", "examples"):
        return schema
    if isinstance(schema, list):
        return [_bounded(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    least = schema.get("minItems")
    if isinstance(least, int | float) and least > _MAX_ITEMS:
        raise RequestError(
            f"the JSON schema asks for an array of {least} elements; a model can be held to {_MAX_ITEMS}",
            param="response_format",
        )
    most = schema.get("maxItems")
    is_beyond = isinstance(most, int | float) and most > _MAX_ITEMS
    return {name: _bounded(value, name) for name, value in schema.items() if not (is_beyond and name == "maxItems")}


# --- the reader ------------------------------------------------------------------------------------------------------


class CallReader:
    """Splits what the model writes into text and calls, as it comes.

    Text is handed on at once, save for an end that may turn out to be the opening marker. A call is handed on when it
    is whole and in the grammar; one that never gets whole (the token limit) can be finished.

    Args:
        call: the grammar of a call's JSON.
    """

    def __init__(self, call: Node) -> None:
        self._call = call
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

    def finish_call(self) -> tuple[ToolCall, int]:
        """The call that was begun, or has to be made, finished in the shortest way; and the characters that took.

        Every beginning that the grammar lets through has such an end, so this is always a valid call.
        """
        begun = self._held if self._is_inside else self._held.removeprefix(OPEN)
        is_marker = not self._is_inside and OPEN.startswith(begun)
        text, taken = completed(sequence("\n", self._call, "\n"), "" if is_marker else begun)
        call = self._parsed(text)
        assert call is not None  # completed() gives a text of the grammar
        self._held, self._is_inside = "", False
        self.calls.append(call)
        return call, len(text.strip()) - len(text[:taken].strip())

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
        written = text.strip("\n")
        try:
            value = json.loads(written)
        except ValueError:
            return None
        if not accepts(self._call, written):
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
