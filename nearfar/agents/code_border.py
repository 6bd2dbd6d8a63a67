"""What crosses a sandbox's border: plain values, granted calls and short errors, the same for every runner."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias

from .types import CodeLimits

Function: TypeAlias = Callable[..., Any | Awaitable[Any]]

#: Code above this is no program that a model wrote; parsing it costs before any limit holds.
MAX_CODE_CHARACTERS: Final = 100_000

_MAX_DEPTH: Final = 40
_MAX_VALUES: Final = 1_000_000
_MAX_ERROR: Final = 500

#: Errors of a granted function that the code sees under their own name; every other is a RuntimeError to it.
_SHOWN: Final = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    LookupError,
    ZeroDivisionError,
    TimeoutError,
    OverflowError,
)


class TooLarge(Exception):
    """A value has more in it than may cross."""


class TooManyCalls(Exception):
    """The code called granted functions more often than it may."""


@dataclass(slots=True)
class Grants:
    """The functions that a piece of code may call, and how often it has."""

    functions: Mapping[str, Function]
    limits: CodeLimits
    calls: int = field(default=0, init=False)

    async def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the function gives back, as plain values; its own errors come through.

        Raises:
            TooManyCalls: the limit is reached; nothing ran.
            TooLarge: an argument, or the result, is too large to cross.
            NameError: no such function was granted.
        """
        function = self.functions.get(name)
        if function is None:
            raise NameError(f"name {name!r} is not defined")
        self.calls += 1
        if self.calls > self.limits.calls:
            raise TooManyCalls
        arguments = [plain(each) for each in args]
        named = {key: plain(value) for key, value in kwargs.items()}
        if inspect.iscoroutinefunction(function):
            return plain(await function(*arguments, **named))
        result = await asyncio.to_thread(function, *arguments, **named)
        return plain(await result if inspect.isawaitable(result) else result)


def shown(exc: Exception) -> tuple[str, str]:
    """Type and message under which the code sees the error of a granted function."""
    if isinstance(exc, TooLarge):
        return "ValueError", f"more than {_MAX_VALUES} values and characters"
    kind = next((each.__name__ for each in _SHOWN if type(exc) is each), "RuntimeError")
    message = str(exc) if kind == type(exc).__name__ else f"{type(exc).__name__}: {exc}"
    return kind, message[:_MAX_ERROR]


def plain(value: Any) -> Any:
    """The value as JSON has it: tuples and sets are lists, keys are text, and what JSON cannot say is named in text.

    Raises:
        TooLarge: it has more than a million values and characters; an object that is in it twice counts twice, so that
            one that doubles itself sixty times is not written out.
    """
    return _Plainer().of(value, 0)


class _Plainer:
    def __init__(self) -> None:
        self._room = _MAX_VALUES

    def of(self, value: Any, depth: int) -> Any:
        self._take(1)
        match value:
            case None | bool():
                return value
            case str():
                self._take(len(value))
                return str(value)
            case int():
                self._take(value.bit_length() // 3)
                return int(value)
            case float():
                return float(value) if math.isfinite(value) else str(value)
            case Mapping() if depth < _MAX_DEPTH:
                return {self._key(key, depth): self.of(each, depth + 1) for key, each in value.items()}
            case list() | tuple() | set() | frozenset() if depth < _MAX_DEPTH:
                return [self.of(each, depth + 1) for each in value]
            case bytes():
                self._take(4 * len(value))
                return str(value)
            case complex() | date() | time() | timedelta() | Decimal() | range():
                return str(value)
        return f"<{getattr(value, 'name', None) or type(value).__name__}>"

    def _key(self, key: Any, depth: int) -> str:
        known = self.of(key, depth + 1)
        return known if isinstance(known, str) else json.dumps(known, ensure_ascii=False)

    def _take(self, num: int) -> None:
        self._room -= num
        if self._room < 0:
            raise TooLarge


def fits(value: Any, limits: CodeLimits) -> bool:
    """Whether the plain value, as JSON, is within the limit of output."""
    try:
        return len(json.dumps(value, ensure_ascii=False)) <= limits.output_characters
    except ValueError:  # a number of more digits than Python writes
        return False


def one_line(message: str) -> str:
    """The message as one short line."""
    return " ".join(message.split())[:_MAX_ERROR]
