"""Runs a model's code in pydantic-monty, an interpreter of a subset of Python that has no way to the machine at all."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from nearfar.errors import ConfigError

from .code_border import MAX_CODE_CHARACTERS, Function, Grants
from .code_conversation import Conversation, NotReady, line_limit
from .processes import end, signal_group
from .types import CodeLimits, CodeResult

#: A driver is replaced after so many runs: whatever one could leave behind is bounded.
_RUNS_PER_DRIVER: Final = 500


class MontyRunner:
    """Runs code in monty's worker processes; each run has a session of its own, and no session sees another.

    Functions are granted by name; the code calls them without `await`, whatever they are here. There is no file, no
    network, no clock that waits, and nothing to import but what monty has itself. Use it in one event loop.

    Args:
        workers: how many pieces of code run at once.
        limits: where a run names none.
    """

    def __init__(self, *, workers: int = 2, limits: CodeLimits | None = None) -> None:
        self._limits = limits or CodeLimits()
        self._turns = asyncio.Semaphore(workers)
        self._idle: list[_Driver] = []

    @property
    def name(self) -> str:
        """Which sandbox it is."""
        return "monty"

    async def run(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        functions: Mapping[str, Function] | None = None,
        limits: CodeLimits | None = None,
    ) -> CodeResult:
        """See `CodeRunner.run`.

        Raises:
            ConfigError: pydantic-monty is not installed, or does not start.
        """
        limits = limits or self._limits
        if len(code) > MAX_CODE_CHARACTERS:
            return CodeResult(error=f"the code has more than {MAX_CODE_CHARACTERS} characters")
        async with self._turns:
            driver = self._idle.pop() if self._idle else _Driver(await _started(limits))
            talk = Conversation(driver.process, limits, Grants(functions or {}, limits))
            try:
                await talk.start(code, inputs or {}, limits=asdict(limits))
                return await talk.result()
            except NotReady as exc:
                why = str(exc) or "it said nothing"
                raise ConfigError(
                    f"pydantic-monty does not start: {why}. Install it: pip install 'nearfar[agents]'"
                ) from exc
            finally:
                driver.runs += 1
                if talk.is_over and driver.runs < _RUNS_PER_DRIVER:
                    self._idle.append(driver)
                else:
                    await driver.end()

    async def aclose(self) -> None:
        """Ends the workers. Twice is fine."""
        while self._idle:
            await self._idle.pop().end()


class _Driver:
    """A process of `monty_driver`, and how often it ran."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.runs = 0

    async def end(self) -> None:
        """Ends it with its worker."""
        signal_group(self.process.pid, signal.SIGKILL)
        await end(self.process)


async def _started(limits: CodeLimits) -> asyncio.subprocess.Process:
    # In a process of its own, and through monty's blocking side: its async side aborts the whole process at exit
    # every few times (7 of 25 here; pyo3-async-runtimes' threads outlive the interpreter).
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nearfar.agents.monty_driver",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        limit=line_limit(limits),
        start_new_session=True,  # the worker is ended with it
    )
