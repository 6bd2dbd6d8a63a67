"""The talk with a process that runs code: lines of JSON, each bounded, none trusted; the same for every sandbox.

The process gets a request and says `ready`; then come what the code prints (`output`), what it calls (`call`, which is
answered), and what it came to (`done`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

from .code_border import Grants, TooLarge, TooManyCalls, fits, one_line, plain, shown
from .processes import has_exited, kill
from .types import CodeLimits, CodeResult

#: How long a process may take to say that it is ready.
_START_S: Final = 20.0


#: The limits that a process itself keeps, and may say that it kept.
_TOLD: Final = ("time", "memory", "recursion", "output", "calls")


def line_limit(limits: CodeLimits) -> int:
    """The longest line that may come, in bytes: the output's limit in JSON's longest letters, or what a call needs."""
    return max(2**21, 8 * limits.output_characters)


class NotReady(Exception):
    """The process did not say that it is ready; the message is what it said instead."""


class Conversation:
    """One piece of code in one process.

    Attributes:
        is_over: the process has said what the code came to; it may be asked again.
    """

    def __init__(self, process: asyncio.subprocess.Process, limits: CodeLimits, grants: Grants) -> None:
        self._process = process
        self._limits = limits
        self._grants = grants
        self._output: list[str] = []
        self._room = limits.output_characters
        self._seconds = 0.0
        self.is_over = False

    async def start(self, code: str, inputs: Mapping[str, Any], **more: Any) -> None:
        """Hands the code over, and waits until the process is ready.

        Raises:
            NotReady: it is not.
        """
        given = {name: plain(value) for name, value in inputs.items()}
        request = {"code": code, "inputs": given, "functions": list(self._grants.functions), **more}
        message = None
        with contextlib.suppress(TimeoutError, ConnectionError, _TooLong):
            async with asyncio.timeout(_START_S):
                await self._send(request)
                message = await self._receive()
        if not isinstance(message, dict) or "ready" not in message:
            raise NotReady(await self._last_words())

    async def result(self) -> CodeResult:
        """What became of the code; answers its calls on the way."""
        while True:
            started = time.perf_counter()
            try:
                async with asyncio.timeout(self._limits.seconds - self._seconds):
                    message = await self._receive()
            except TimeoutError:
                self._seconds = self._limits.seconds
                return self._ended(error=f"not done within {self._limits.seconds:g} s", limit="time")
            except _TooLong:
                return self._too_much()
            self._seconds += time.perf_counter() - started
            match message:
                case {"output": str(text)}:
                    self._output.append(text[: self._room])
                    if len(text) > self._room:
                        return self._too_much()
                    self._room -= len(text)
                case {"call": str(name), "args": list(args), "kwargs": dict(kwargs)}:
                    try:
                        answer = {"value": await self._grants.call(name, args, kwargs)}
                    except TooManyCalls:
                        return self._ended(
                            error=f"more than {self._limits.calls} calls of granted functions", limit="calls"
                        )
                    except Exception as exc:  # whatever a granted function raises is the code's to handle
                        answer = {"error": shown(exc)}
                    with contextlib.suppress(ConnectionError):
                        await self._send(answer)
                case {"done": {"error": str(error)} as done}:
                    self.is_over = True
                    limit = done.get("limit")
                    return self._ended(error=one_line(error), limit=limit if limit in _TOLD else None)
                case {"done": dict(done)}:
                    self.is_over = True
                    try:
                        value = plain(done.get("value"))  # a forged one may hold NaN, which is no JSON
                    except TooLarge:
                        return self._too_much()
                    return self._ended(value=value) if fits(value, self._limits) else self._too_much()
                case None:
                    return self._ended(error=await self._death())
                case _:
                    return self._ended(error="the code wrote what is no message of the sandbox")

    async def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(message)}\n".encode())
        await self._process.stdin.drain()

    async def _receive(self) -> Any:
        """The next message; None: there is none any more."""
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError as exc:
            raise _TooLong from exc
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return {}

    async def _death(self) -> str:
        await has_exited(self._process, _START_S)
        code = self._process.returncode or 0
        number = code - 128 if code > 128 else 0  # bubblewrap's way to tell of a signal
        with contextlib.suppress(ValueError):
            return f"the interpreter was ended by {signal.Signals(number).name}"
        return f"the interpreter ended with exit code {code}"

    async def _last_words(self) -> str:
        assert self._process.stderr is not None
        kill(self._process)
        return one_line((await self._process.stderr.read(2_000)).decode(errors="replace"))

    def _too_much(self) -> CodeResult:
        return self._ended(error=f"more than {self._limits.output_characters} characters of output", limit="output")

    def _ended(
        self,
        *,
        value: Any = None,
        error: str | None = None,
        limit: Literal["time", "memory", "recursion", "output", "calls"] | None = None,
    ) -> CodeResult:
        return CodeResult(value, "".join(self._output), error, limit, self._seconds)


class _TooLong(Exception):
    """A message has no end within the bound."""
