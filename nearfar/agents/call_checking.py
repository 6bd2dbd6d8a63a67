"""Says whether a call is valid: a tool that is there, and arguments that fit its schema; or which field does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from jsonschema.exceptions import ValidationError, best_match
from referencing.exceptions import Unresolvable

from nearfar.models.json_schema import SchemaRefused, schema_validator
from nearfar.models.tool_prompt import arguments_grammar
from nearfar.types import ToolCall, ToolSpec

_MAX_COMPLAINTS = 5
_MAX_COMPLAINT = 300  # characters


class CallChecker:
    """Checks calls against the schemas of tools.

    Args:
        specs: the tools.
    """

    def __init__(self, specs: Iterable[ToolSpec]) -> None:
        self._validators: dict[str, Any] = {}
        self._refused: dict[str, str] = {}
        for spec in specs:
            try:
                self._validators[spec.name] = _validator(json.dumps(spec.parameters))
            except SchemaRefused as exc:
                self._refused[spec.name] = str(exc)

    def problem(self, call: ToolCall) -> str | None:
        """Why the call is not valid: which field and why; None: it is."""
        arguments = self.arguments(call)
        return arguments if isinstance(arguments, str) else None

    def arguments(self, call: ToolCall) -> dict[str, Any] | str:
        """The call's arguments, or why they are none."""
        if call.name in self._refused:
            return f"the tool {call.name!r} cannot be used: its schema cannot be checked: {self._refused[call.name]}"
        validator = self._validators.get(call.name)
        if validator is None:
            return self._unknown(call.name)
        try:
            arguments = json.loads(call.arguments or "{}", parse_constant=_refuse, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as exc:
            return f"the arguments of {call.name!r} are not JSON: {exc}"[:_MAX_COMPLAINT]
        if not isinstance(arguments, dict):
            return f"the arguments of {call.name!r} are not a JSON object"
        try:
            complaints = [_complaint(error) for error in _errors(validator, arguments)]
        except RecursionError:
            return f"the arguments of {call.name!r} are nested too deeply"
        except Unresolvable as exc:
            return f"the schema of {call.name!r} refers to what is not in it: {exc}"[:_MAX_COMPLAINT]
        if complaints:
            return f"the arguments of {call.name!r} do not fit its schema: {'; '.join(complaints)}"
        return arguments

    def _unknown(self, name: str) -> str:
        near = get_close_matches(name, self._validators, n=3) or list(self._validators)[:10]
        return f"there is no tool {name[:100]!r}. " + (f"There is: {', '.join(near)}" if near else "There is none")


def unfit(spec: ToolSpec) -> str | None:
    """Why the tool cannot be offered: its name is none, or no model can be held to its schema; None: it can."""
    if not spec.name or len(spec.name) > 128 or not spec.name.isprintable():
        return "its name is empty, too long or not printable"
    if spec.parameters.get("type", "object") != "object":
        return f"its schema is of {spec.parameters.get('type')!r} and not of an object"
    try:
        arguments_grammar(spec)
    except (SchemaRefused, TypeError) as exc:  # TypeError: what is in it is no JSON
        return f"no model can be held to its schema: {exc}"[:_MAX_COMPLAINT]
    return None


@lru_cache(maxsize=1024)
def _validator(parameters: str) -> Any:
    return schema_validator(json.loads(parameters))


def _errors(validator: Any, arguments: Mapping[str, Any]) -> list[ValidationError]:
    errors = sorted(validator.iter_errors(arguments), key=lambda error: [str(part) for part in error.absolute_path])
    return [best_match([error]) or error for error in errors[:_MAX_COMPLAINTS]]


def _complaint(error: ValidationError) -> str:
    """Which field, and why."""
    path = error.json_path.removeprefix("$").removeprefix(".") or "the object"
    message = error.message
    if len(message) > _MAX_COMPLAINT:  # it quotes the value
        message = f"{message[: _MAX_COMPLAINT // 2]} … {message[-_MAX_COMPLAINT // 2 :]}"
    return f"{path}: {message}"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found
