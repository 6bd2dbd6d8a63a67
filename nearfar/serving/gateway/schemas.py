"""Request bodies at the edge: JSON to checked values, with the path of the field at fault; shared by both wires."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.types import ContentPart, NamedTool, ResponseFormat, ToolChoice, ToolSpec

T = TypeVar("T")

#: Nobody nests a JSON Schema or a tool's arguments deeper; what is deeper is meant to exhaust a stack.
MAX_DEPTH = 64

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
UnitInterval = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]

_decode = msgspec.json.Decoder().decode
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_UNKNOWN = re.compile(r"contains unknown field `(.*)`", re.DOTALL)

#: A query's field to where this wire has it, for errors that the router finds.
CONSTRAINT_NAMES: Mapping[str, str] = {
    "budget_usd": "nearfar.budget_usd",
    "deadline_s": "nearfar.deadline_s",
    "quality": "nearfar.quality",
    "privacy": "nearfar.privacy",
    "docs": "nearfar.docs",
    "signals": "nearfar.signals",
}


class Constraints(Struct, kw_only=True):
    """The body's `nearfar` field: what the query may cost, take and reveal."""

    budget_usd: NotNegative | None = None
    deadline_s: Positive | None = None
    privacy: Literal["any", "near"] | None = None
    quality: str | None = None
    session: str | None = None
    when_unsure: Literal["best", "abstain"] | None = None
    memory: bool | None = None
    docs: str | None = None
    passages: Annotated[int, Meta(ge=1, le=50)] | None = None
    signals: list[str] | None = None


NO_CONSTRAINTS = Constraints()


class StreamOptions(Struct, forbid_unknown_fields=True):
    """The body's `stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def parse_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        RequestError: it is none, is not UTF-8, or is nested deeper than `MAX_DEPTH`.
    """
    try:
        value = _decode(body)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestError(f"The body is not JSON in UTF-8: {exc}.") from exc
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    return value


def _too_deep() -> RequestError:
    return RequestError(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _depth(value: object) -> int:
    depth = 0
    level: list[object] = [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(child for child in item.values() if isinstance(child, dict | list))
            elif isinstance(item, list):
                below.extend(child for child in item if isinstance(child, dict | list))
        level = below
    return depth


def convert(value: object, kind: type[T], *, at: str = "") -> T:
    """The value as a `kind`.

    Args:
        at: where in the body the value stands.

    Raises:
        RequestError: it is none; `param` is the path of what is wrong.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        found = _PLACE.match(str(exc))
        what, path = (found["what"], found["path"]) if found else (str(exc), None)
        missing, unknown = _MISSING.search(what), _UNKNOWN.search(what)
        parts = [part for part in (at, path, missing and missing[1], unknown and unknown[1]) if part]
        param = ".".join(parts).replace(".[", "[") or None
        if unknown:
            raise UnsupportedOption(
                f"`{param}` is not known here, and nothing is dropped in silence. Leave it out.", param=param
            ) from exc
        place = f"`{param}`: " if param else ""
        raise RequestError(f"{place}{what[:1].lower()}{what[1:]}.", param=param) from exc


def constraints(body: Mapping[str, Any]) -> Constraints:
    """The body's `nearfar` field.

    Raises:
        RequestError: a key of it is unknown or its value wrong.
    """
    value = body.get("nearfar")
    if value is None:
        return NO_CONSTRAINTS
    if isinstance(value, dict):
        refuse_unknown(value, Constraints.__struct_fields__, at="nearfar")
    return convert(value, Constraints, at="nearfar")


def refuse_unknown(value: Mapping[str, Any], known: Collection[str], *, at: str) -> None:
    """Refuses by name the first key of `value` that is not known; null stands for absent.

    Raises:
        UnsupportedOption: with the key's path in `param`.
    """
    for key, item in value.items():
        if key not in known and item is not None:
            valid = ", ".join(sorted(known))
            raise UnsupportedOption(f"Unknown key {key!r} in `{at}`. Valid keys: {valid}.", param=f"{at}.{key}")


def unknown_fields(body: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields that nearfar does not know, to be passed to a model that takes them; null stands for absent."""
    return {key: value for key, value in body.items() if key not in known and value is not None}


def refuse_fields(body: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Refuses by name a field that nearfar knows and cannot honour, unless it is null, false or empty.

    Raises:
        UnsupportedOption: with the field in `param`.
    """
    for field, reason in reasons.items():
        if body.get(field):
            raise UnsupportedOption(f"`{field}` is not supported: {reason}.", param=field)


#: Fields that say who asks and how to bill or cache it: kept with the decision, and not sent to any model.
NOTES = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier")


def notes(body: Mapping[str, Any]) -> dict[str, str]:
    """The query's metadata: the body's `metadata`, and what it notes beside it.

    Raises:
        RequestError: a value is no string.
    """
    metadata = body.get("metadata")
    found = dict(convert(metadata, dict[str, str], at="metadata")) if metadata is not None else {}
    for name in NOTES:
        value = body.get(name)
        if value is not None:
            found.setdefault(name, convert(value, str, at=name))
    return found


def check_service_tier(body: Mapping[str, Any]) -> None:
    """Refuses a tier that would have to be bought.

    Raises:
        UnsupportedOption: it is neither "auto" nor "default".
    """
    if body.get("service_tier") not in {None, "auto", "default"}:
        raise UnsupportedOption(
            f"`service_tier` {body['service_tier']!r} is not supported; leave it out, or use 'auto'.",
            param="service_tier",
        )


def check_stream_options(options: StreamOptions | None, *, stream: bool) -> None:
    """Refuses stream options that cannot be honoured.

    Raises:
        RequestError: the request does not stream, or asks for padding.
    """
    if options is None:
        return
    if not stream:
        raise RequestError("`stream_options` needs `stream` set to true.", param="stream_options")
    if options.include_obfuscation:
        raise UnsupportedOption(
            "`stream_options.include_obfuscation` is not supported; leave it out.",
            param="stream_options.include_obfuscation",
        )


class JsonSchemaFormat(Struct, forbid_unknown_fields=True):
    """A named JSON Schema."""

    name: str = "answer"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


def response_format(kind: object, schema: JsonSchemaFormat | None, grammar: object, *, at: str) -> ResponseFormat:
    """The shape of the answer's text.

    Raises:
        RequestError: the kind is unknown, or lacks its schema or grammar.
    """
    if kind == "text" or kind == "json_object":
        return ResponseFormat(kind)
    if kind == "json_schema":
        if schema is None or schema.schema is None:
            raise RequestError(f"`{at}` of type 'json_schema' needs a schema.", param=at)
        wanted = schema.schema
        if schema.description and "description" not in wanted:
            wanted = {**wanted, "description": schema.description}
        return ResponseFormat("json_schema", schema=wanted, name=schema.name, strict=schema.strict)
    if kind == "grammar":
        if not isinstance(grammar, str) or not grammar.strip():
            raise RequestError(f"`{at}` of type 'grammar' needs a GBNF grammar in `{at}.grammar`.", param=at)
        return ResponseFormat("grammar", grammar=grammar)
    raise UnsupportedOption(
        f"`{at}.type` {kind!r} is not supported. Valid: text, json_object, json_schema, grammar.", param=f"{at}.type"
    )


class FunctionSpec(Struct, forbid_unknown_fields=True):
    """A function tool."""

    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def to_tool(self) -> ToolSpec:
        """The tool as queries have it."""
        return ToolSpec(self.name, self.description or "", self.parameters or {}, self.strict)


def refuse_tool_type(kind: object, *, at: str) -> None:
    """Refuses by name a tool that is no function.

    Raises:
        UnsupportedOption: always, unless `kind` is "function".
    """
    if kind != "function":
        raise UnsupportedOption(
            f"`{at}.type` {kind!r} is not supported; only 'function' tools are.", param=f"{at}.type"
        )


def tool_choice(value: object, name: object) -> ToolChoice | None:
    """Which tool must or may be called.

    Args:
        value: as the client sent it.
        name: the named function's name, where `value` names one.

    Raises:
        RequestError: it is none of the ways to choose.
    """
    if value is None or value == "auto" or value == "none" or value == "required":
        return value
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(name, str):
        refuse_unknown(value, ("type", "function", "name"), at="tool_choice")
        if isinstance(function := value.get("function"), dict):
            refuse_unknown(function, ("name",), at="tool_choice.function")
        return NamedTool(name)
    raise UnsupportedOption(
        "`tool_choice` must be 'auto', 'none', 'required' or a named function; other forms are not supported.",
        param="tool_choice",
    )


def text_of(part: Mapping[str, Any], *, at: str) -> ContentPart:
    """A text part.

    Raises:
        RequestError: its text is none, or it says more than nearfar understands.
    """
    refuse_unknown(part, ("type", "text", "annotations", "logprobs"), at=at)
    return ContentPart("text", convert(part.get("text"), str, at=f"{at}.text"))
