"""Things that requests name: each loaded when it is first asked for, and what goes wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from nearfar.errors import ConfigError, NearfarError, UnknownModel

from .problems import Problem, problem_of

T = TypeVar("T")


class ByName(Generic[T]):
    """What a request's `model` may be.

    Args:
        what: what they are, in a word.
        names: of all there are, besides "default".
        default: which of them "default" is.
        load: gives the thing of a name, or raises `ConfigError`.
    """

    def __init__(self, what: str, names: Collection[str], default: str, load: Callable[[str], T]) -> None:
        self._what = what
        self._names = tuple(names)
        self._default = default
        self._load = load
        self._loaded: dict[str, T] = {}
        self._lock = asyncio.Lock()  # two requests must not load the same weights twice

    async def get(self, model: str) -> T:
        """The thing of this name.

        Raises:
            UnknownModel: there is none.
            ConfigError: what it needs is not installed.
        """
        name = self._default if model == "default" else model
        if name not in self._names:
            known = ", ".join(["default", *self._names])
            raise UnknownModel(f"There is no {self._what} {model!r}. There are: {known}.", model=model)
        async with self._lock:
            if name not in self._loaded:
                self._loaded[name] = await asyncio.to_thread(self._load, name)
        return self._loaded[name]


def failure(exc: NearfarError) -> Problem:
    """The HTTP error of a request that could not be served."""
    if isinstance(exc, ConfigError):  # an extra that is not installed, weights that are not here
        return Problem(503, str(exc), "server_error", "model_unavailable", should_retry=False)
    return problem_of(exc, {})
