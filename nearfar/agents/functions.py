"""Makes tools of typed Python functions: the schema from their hints, the words from their docstrings."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
import json
import re
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, to_jsonable_python

from nearfar.errors import ConfigError
from nearfar.types import ToolSpec

from .types import Observation, Tool, ToolHints
from .untrusted import binary_note

_T = TypeVar("_T")

_ARGUMENTS = re.compile(r"^(?:Args|Arguments|Parameters):\s*$")
_SECTION = re.compile(r"^[A-Z][A-Za-z ]*:\s*$")
_ARGUMENT = re.compile(r"^(\s+)\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


class FunctionTool:
    """A Python function, sync or async, as a tool.

    The description is the docstring up to its first section; the `Args:` section describes the arguments. A sync
    function runs in a thread of its own, since it may block; one that hangs is left behind and does not keep the
    process alive. What it raises is an observation that names the exception's type and message, never its traceback.

    Args:
        function: every parameter has a name, and a hint that pydantic understands; one without a hint takes any JSON.
        name: None: the function's own.
        description: None: the docstring's.
        hints: what it does; the owner says it, so it is trusted.

    Raises:
        ConfigError: the signature cannot be said in a JSON Schema.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        hints: ToolHints | None = None,
    ) -> None:
        self._function = function
        self._name: str = name or getattr(function, "__name__", None) or type(function).__name__
        told, arguments = _described(inspect.getdoc(function) or "")
        self._parameters, self._positional = _parameters(function, self._name)
        self._model = _model(self._name, self._parameters, arguments)
        self._spec = ToolSpec(self._name, told if description is None else description, self._schema())
        self._hints = dataclasses.replace(hints or ToolHints(), is_trusted=True)
        self._is_async = inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        return self._spec

    @property
    def hints(self) -> ToolHints:
        """What the owner says that it does."""
        return self._hints

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """What the function gives back, or how it failed."""
        try:
            values = self._model.model_validate(dict(arguments))
        except ValidationError as exc:
            return Observation(_complaint(exc), "invalid")
        by_name = {
            parameter.name: getattr(values, field)
            for field, parameter in self._parameters.items()
            if field in values.model_fields_set
        }
        positional = [by_name.pop(name) for name in self._positional if name in by_name]
        run = partial(self._function, *positional, **by_name)
        try:
            value = await run() if self._is_async else await _in_own_thread(run)
            if inspect.isawaitable(value):  # a sync function that hands out a coroutine
                value = await value
            return _observed(value)
        except Exception as exc:
            return Observation(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__, "error")
        except SystemExit as exc:
            return Observation(f"the tool tried to end the process: SystemExit({exc.code!r})", "error")

    def _schema(self) -> dict[str, Any]:
        try:
            schema = self._model.model_json_schema(by_alias=True, schema_generator=_Untitled)
        except PydanticUserError as exc:
            first = str(exc).partition("\n")[0]
            raise ConfigError(f"{self._name!r} has a hint that no JSON Schema can say: {first}. Change it") from exc
        return {key: value for key, value in schema.items() if key not in ("title", "description")}


@dataclass(frozen=True, slots=True)
class PythonTools:
    """A source of tools that are there already."""

    name: str
    offered: Sequence[Tool]

    async def tools(self) -> list[Tool]:
        """All of them."""
        return list(self.offered)

    async def aclose(self) -> None:
        """Holds nothing."""


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes of names: they cost tokens and tell nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _parameters(function: Callable[..., Any], name: str) -> tuple[dict[str, inspect.Parameter], list[str]]:
    """The parameters by the field that each gets in the model, with resolved hints; and which are positional only."""
    try:
        found = inspect.signature(function).parameters.values()
        target = function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__
        hints = typing.get_type_hints(getattr(target, "__func__", target), include_extras=True)
    except (NameError, TypeError, ValueError) as exc:
        raise ConfigError(f"the signature of {name!r} cannot be read: {exc}. Correct its hints") from exc
    parameters: dict[str, inspect.Parameter] = {}
    for i, parameter in enumerate(found):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"{name!r} takes {parameter}, which has no schema. Give each argument a name")
        parameters[f"p{i}"] = parameter.replace(annotation=hints.get(parameter.name, Any))
    positional = [each.name for each in parameters.values() if each.kind is each.POSITIONAL_ONLY]
    return parameters, positional


def _model(name: str, parameters: Mapping[str, inspect.Parameter], told: Mapping[str, str]) -> type[BaseModel]:
    """A pydantic model of the arguments; its fields have names of their own, since `schema` or `_x` may not be one."""
    fields: dict[str, Any] = {}
    for field, parameter in parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        description = told.get(parameter.name)
        fields[field] = (
            parameter.annotation,
            Field(default, alias=parameter.name, description=description)
            if description
            else Field(default, alias=parameter.name),
        )
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    try:
        return create_model("Arguments", __config__=config, **fields)
    except PydanticUserError as exc:
        first = str(exc).partition("\n")[0]
        raise ConfigError(f"{name!r} has a hint that no JSON Schema can say: {first}. Change it") from exc


def _described(doc: str) -> tuple[str, dict[str, str]]:
    """The docstring's words before its first section, and what its `Args:` section says of each argument."""
    told: list[str] = []
    arguments: dict[str, str] = {}
    section: str | None = None
    current, indent = "", 0
    for line in doc.splitlines():
        if _SECTION.match(line):
            section = "args" if _ARGUMENTS.match(line) else "other"
            current = ""
        elif section is None:
            told.append(line)
        elif section == "args" and (match := _ARGUMENT.match(line)) and (not current or len(match[1]) <= indent):
            current, indent = match[2], len(match[1])
            arguments[current] = match[3].strip()
        elif section == "args" and current and line.strip():
            arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    return "\n".join(told).strip(), arguments


def _complaint(exc: ValidationError) -> str:
    """Which arguments do not fit, and why."""
    errors = exc.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, error['loc'])) or 'arguments'}: {error['msg']}" for error in errors[:5])


def _observed(value: Any) -> Observation:
    """The function's value as text, and as JSON values where it has such."""
    if isinstance(value, Observation):
        return value
    if value is None:
        return Observation("done")
    if isinstance(value, str):
        return Observation(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return Observation(binary_note(value))
    try:
        plain = to_jsonable_python(value)
    except (PydanticSerializationError, ValueError, RecursionError):
        return Observation(str(value))
    return Observation(json.dumps(plain, ensure_ascii=False), structured=plain)


async def _in_own_thread(work: Callable[[], _T]) -> _T:
    """What `work` gives back, from a daemon thread: neither a pool nor the process's end waits for one that hangs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def run() -> None:
        try:
            value = context.run(work)
        except StopIteration as exc:  # a future cannot carry it
            outcome: tuple[Callable[[Any], None], Any] = (future.set_exception, RuntimeError(f"StopIteration: {exc}"))
        except BaseException as exc:
            outcome = (future.set_exception, exc)
        else:
            outcome = (future.set_result, value)
        try:
            loop.call_soon_threadsafe(settle, *outcome)
        except RuntimeError:  # the loop is gone, and with it whoever waited
            return

    threading.Thread(target=run, name="nearfar-tool", daemon=True).start()
    return await future
