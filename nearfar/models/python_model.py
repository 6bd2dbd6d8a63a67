"""Any Python callable as a `ChatModel`: a classifier, a rule, a look-up; and the callable that a config names."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from nearfar.errors import ConfigError, NearfarError, UnsupportedOption, UpstreamError
from nearfar.types import (
    FREE,
    Answer,
    ModelCard,
    Placement,
    Price,
    Query,
    Signals,
    StreamEnd,
    StreamEvent,
    TextDelta,
    Usage,
    estimate_tokens,
)

#: What a callable may give: a text, a text with signals such as {"confidence": 0.9}, or a whole answer.
Said: TypeAlias = str | tuple[str, Mapping[str, float]] | Answer
Callee: TypeAlias = Callable[[Query], Said | Awaitable[Said]]

#: The signal that scores a callable's answers where no policy does: a probability in [0, 1].
CONFIDENCE = "confidence"


class PythonModel:
    """A model whose answers a Python callable gives.

    A plain function runs in a thread, so that it may compute; a coroutine function runs in the event loop. Decoding
    options do not reach what is no language model and do nothing; tools, response formats and log-probabilities are
    refused.

    Args:
        function: from the query to a text, a text with signals, or an answer.
        name: the model's name.
        placement: where it runs; "far" if it asks somebody else's computer.
        price: per token as estimated from the texts; free unless told.
    """

    def __init__(
        self, function: Callee, *, name: str, placement: Placement = "near", price: Price | None = FREE
    ) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - its kind is asked for, not whether it is there
        )
        self.card = ModelCard(name, placement, price=price, passes_extra=True)

    async def complete(self, query: Query) -> Answer:
        """What the callable says.

        Raises:
            UnsupportedOption: tools, a response format or log-probabilities were asked for.
            UpstreamError: the callable raised, or gave something that is no answer.
        """
        for param, why in self.card.unmet(query).items():
            raise UnsupportedOption(f"{self.card.name!r} cannot take {param!r}: it {why}.", param=param)
        start = time.perf_counter()
        try:
            said: Any = self._function(query) if self._is_async else await asyncio.to_thread(self._function, query)
            if inspect.isawaitable(said):
                said = await said
        except NearfarError:
            raise
        except Exception as exc:  # whatever a user's code raises, the next tier may answer
            raise UpstreamError(f"{self.card.name!r} raised {exc!r}. Mend its callable.", model=self.card.name) from exc
        answer = self._answer(said, query)
        return replace(answer, model=self.card.name, latency_s=time.perf_counter() - start)

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """What the callable says, in one piece."""
        answer = await self.complete(query)
        if answer.text:
            yield TextDelta(answer.text)
        yield StreamEnd(answer)

    def unavailable(self) -> str | None:
        """Never."""
        return None

    async def aclose(self) -> None:
        """Holds nothing."""

    def _answer(self, said: Any, query: Query) -> Answer:
        if isinstance(said, Answer):
            answer = said
        elif isinstance(said, str):
            answer = Answer(said)
        elif isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], str) and isinstance(said[1], Mapping):
            answer = Answer(said[0], signals=self._signals(said[1]))
        else:
            raise UpstreamError(
                f"{self.card.name!r} gave {type(said).__name__}; return a text, (text, signals) or an Answer.",
                model=self.card.name,
            )
        usage = answer.usage
        if usage is None:
            prompt_tokens = sum(estimate_tokens(message.text) for message in query.messages)
            usage = Usage(prompt_tokens, estimate_tokens(answer.text), is_estimated=True)
        price, cost_usd = self.card.price, answer.cost_usd
        if cost_usd is None and price is not None:
            cost_usd = price.cost_usd(usage)
        return replace(answer, usage=usage, cost_usd=cost_usd)

    def _signals(self, found: Mapping[str, Any]) -> Signals:
        signals = {}
        for name, value in found.items():
            try:
                signals[str(name)] = float(value)
            except (TypeError, ValueError):
                signals[str(name)] = float("nan")
            if not isfinite(signals[str(name)]):
                raise UpstreamError(
                    f"{self.card.name!r} gave the signal {name!r} as {value!r}, which is no number. Leave it out.",
                    model=self.card.name,
                )
        return signals


def load_callable(path: str, folder: Path) -> Callee:
    """The callable at "package.module:name" or "file.py:name"; a class is made into an object without arguments.

    Args:
        path: what the config says.
        folder: that a file's path is relative to.

    Raises:
        ConfigError: it is not there, cannot be imported, or cannot be called.
    """
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise ConfigError(f"The callable is {path!r}; write it as 'package.module:name' or 'file.py:name'.")
    try:
        found: Any = _module(where, folder)
        for part in name.split("."):
            found = getattr(found, part)
        if isinstance(found, type):
            found = found()
    except Exception as exc:  # the user's module may fail in any way
        raise ConfigError(f"Cannot load the callable {path!r}: {exc!r}. Mend it, or name another.") from exc
    if not callable(found):
        raise ConfigError(f"{path!r} is {type(found).__name__}, which cannot be called. Name a function or a class.")
    return found  # type: ignore[no-any-return] # what it gives is checked when it is called


def _module(where: str, folder: Path) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    file = folder / where
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {str(file)!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
