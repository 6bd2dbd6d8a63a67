"""Code as a tool: a role writes Python, a sandbox runs it, and what it may call of ours is granted by name."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nearfar.errors import ConfigError
from nearfar.types import ToolSpec

from .code_border import Function
from .types import CodeLimits, CodeResult, CodeRunner, Observation, ToolHints

SandboxName = Literal["monty", "bubblewrap"]

_PARAMETERS: Final = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "Python. The last expression's value is given back."}},
    "required": ["code"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class CodeTool:
    """Runs Python that a role writes.

    Attributes:
        runner: the sandbox; close it with `CodeSource.aclose`.
        functions: what the code may call, by name.
        limits: what a run may use; None: the runner's.
        name: the tool's.
    """

    runner: CodeRunner
    functions: Mapping[str, Function] = field(default_factory=dict)
    limits: CodeLimits | None = None
    name: str = "run_python"

    @property
    def spec(self) -> ToolSpec:
        """What a model is shown."""
        granted = f" It may call {', '.join(self.functions)}." if self.functions else ""
        return ToolSpec(
            self.name,
            "Runs Python without files or network and gives back what it prints and the last expression's value."
            + granted,
            _PARAMETERS,
        )

    @property
    def hints(self) -> ToolHints:
        """Without granted functions the code changes nothing; with some, what they do is their affair."""
        is_pure = not self.functions
        return ToolHints(
            read_only=is_pure or None,
            idempotent=is_pure or None,
            open_world=False if is_pure else None,
            is_trusted=True,
        )

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Runs the code; see `Tool.call`."""
        started = time.perf_counter()
        try:
            result = await self.runner.run(str(arguments["code"]), functions=self.functions, limits=self.limits)
        except ConfigError as exc:  # the sandbox cannot be had: nothing ran, and nothing may run without it
            return Observation(str(exc), "unreachable", latency_s=time.perf_counter() - started)
        return observed(result, time.perf_counter() - started)


class CodeSource:
    """The one tool of a sandbox.

    Args:
        name: what errors and traces call it.
        tool: the tool.
    """

    def __init__(self, name: str, tool: CodeTool) -> None:
        self._name = name
        self._tool = tool

    @property
    def name(self) -> str:
        """What errors and traces call it."""
        return self._name

    async def tools(self) -> list[CodeTool]:
        """The tool."""
        return [self._tool]

    async def aclose(self) -> None:
        """Ends the sandbox's processes. Twice is fine."""
        await self._tool.runner.aclose()


def observed(result: CodeResult, latency_s: float = 0.0) -> Observation:
    """The result as the next role sees it: the output, then the value, then what stopped it."""
    parts = [result.output.rstrip("\n")] if result.output else []
    if result.value is not None:
        parts.append(result.value if isinstance(result.value, str) else json.dumps(result.value, ensure_ascii=False))
    if result.error is not None:
        parts.append(result.error)
    return Observation(
        "\n".join(parts) or "(no output)",
        "result" if result.error is None else "timeout" if result.limit == "time" else "error",
        structured=result.value,
        latency_s=latency_s,
    )


def find_runner(name: SandboxName, *, workers: int = 2, limits: CodeLimits | None = None) -> CodeRunner:
    """The sandbox of this name; never anything weaker than what was asked for.

    Raises:
        ConfigError: it is not here; the message says what to install.
    """
    if name == "bubblewrap":
        from .code_bubblewrap import BubblewrapRunner

        return BubblewrapRunner(workers=workers, limits=limits)
    from .code_monty import MontyRunner

    return MontyRunner(workers=workers, limits=limits)
