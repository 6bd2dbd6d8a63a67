"""Runs the calls that roles make: valid, allowed, in time, bounded, and every failure an observation."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from nearfar.errors import ConfigError
from nearfar.models.tool_prompt import arguments_grammar
from nearfar.types import ToolCall, ToolSpec

from .call_checking import CallChecker, unfit
from .policy import ToolPolicy, Verdict
from .secrets import SecretBindings
from .types import Observation, Tool, ToolHints, ToolSource
from .untrusted import bounded

_GRACE_S = 1.0  # for a tool to end once it was told to


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """What one call may take.

    Attributes:
        seconds: for one attempt.
        characters: of the observation that is kept.
        attempts: at a call that failed before or without an answer, where calling twice does no harm.
    """

    seconds: float = 30.0
    characters: int = 16_000
    attempts: int = 2

    def __post_init__(self) -> None:
        for option in ("seconds", "characters", "attempts"):
            if getattr(self, option) <= 0:
                raise ConfigError(f"{option} of a tool is {getattr(self, option)!r}. Set it above 0")


class Toolbox:
    """The tools that an agent has, and the only way to them.

    A call runs if its arguments are JSON that fits the tool's schema and the policy, or a person, allows it. Whatever
    happens is an `Observation`; `run` raises nothing but cancellation.

    A call is tried again only after a timeout or an unreachable server, and only if its tool is read-only or idempotent
    by hints that the owner vouches for.

    Args:
        tools: what there is; names differ.
        policy: which calls run; None: what only reads runs, the rest asks.
        secrets: arguments that the model does not see.
        limits: by tool name or pattern, as in a policy; the rest has the defaults.

    Attributes:
        refused: the tools that were left out, by name, and why.
        narrowed: of tools that are there, by name, what fits their schema and no near model can be made to write:
            optional arguments and alternatives that no grammar can say, each with the reason.

    Raises:
        ConfigError: two tools have one name, or a secret is bound to what is not there.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        policy: ToolPolicy | None = None,
        *,
        secrets: SecretBindings | None = None,
        limits: Mapping[str, ToolLimits] | None = None,
    ) -> None:
        self._policy = policy or ToolPolicy()
        self._secrets = secrets or SecretBindings()
        self._limits = dict(limits or {})
        self._entries: dict[str, _Entry] = {}
        self.refused: dict[str, str] = {}
        self.narrowed: dict[str, tuple[str, ...]] = {}
        for tool in tools:
            name = tool.spec.name
            if name in self._entries or name in self.refused:
                raise ConfigError(f"two tools are named {name!r}. Rename one, or give its source another name")
            spec = self._secrets.hidden(tool.spec)
            if why := unfit(spec):
                self.refused[name] = why
                continue
            if left_out := arguments_grammar(spec).left_out:
                self.narrowed[name] = left_out
            self._entries[name] = _Entry(tool, spec, tool.hints)
        if missing := sorted(self._secrets.arguments.keys() - self._entries.keys() - self.refused.keys()):
            raise ConfigError(f"secrets are bound to the tool {missing[0]!r}, which is not there. Correct the binding")
        self._checker = CallChecker(entry.spec for entry in self._entries.values())

    @classmethod
    async def load(
        cls,
        sources: Sequence[ToolSource],
        policy: ToolPolicy | None = None,
        *,
        secrets: SecretBindings | None = None,
        limits: Mapping[str, ToolLimits] | None = None,
    ) -> Toolbox:
        """The tools of all sources.

        Raises:
            ToolSourceError: a source cannot be reached, or says what cannot be understood.
            ConfigError: as the constructor.
        """
        found = await asyncio.gather(*(source.tools() for source in sources))
        return cls((tool for tools in found for tool in tools), policy, secrets=secrets, limits=limits)

    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools as a model sees them: without those that the policy denies, and without secret arguments."""
        return tuple(entry.spec for name, entry in self._entries.items() if self._verdict(name, entry).action != "deny")

    def __contains__(self, name: str) -> bool:
        """Whether there is a tool of this name, allowed or not."""
        return name in self._entries

    def hints(self, name: str) -> ToolHints:
        """What the tool is said to do; nothing where there is no such tool."""
        return self._entries[name].hints if name in self._entries else ToolHints()

    def is_repeatable(self, name: str) -> bool:
        """Whether calling twice does what calling once does, by hints that the owner vouches for."""
        hints = self.hints(name)
        return hints.is_trusted and bool(hints.read_only or hints.idempotent)

    def check(self, call: ToolCall) -> Verdict:
        """What the policy says of the call. An invalid one is denied, with the reason that `run` would give."""
        problem = self.problem(call)
        if problem is not None:
            return Verdict("deny", problem)
        return self._verdict(call.name, self._entries[call.name])

    def problem(self, call: ToolCall) -> str | None:
        """Why the call is not valid: which field and why; None: it is."""
        arguments = self._arguments(call)
        return arguments if isinstance(arguments, str) else None

    async def run(self, call: ToolCall, approved: bool = False) -> Observation:
        """What became of the call.

        Args:
            call: as the model wrote it.
            approved: a person has said yes; without that, what the policy would ask about does not run.
        """
        arguments = self._arguments(call)
        if isinstance(arguments, str):
            return Observation(arguments, "invalid", attempts=0)
        entry = self._entries[call.name]
        verdict = self._verdict(call.name, entry)
        if verdict.action == "deny":
            return Observation(f"{verdict.why}; nothing ran", "denied", attempts=0)
        if verdict.action == "ask" and not approved:
            return Observation(f"{verdict.why}, and nobody has allowed it; nothing ran", "denied", attempts=0)
        limits = self._limits_of(call.name)
        start = time.perf_counter()
        attempts = 0
        while True:
            attempts += 1
            observation = await self._once(call.name, entry, arguments, limits)
            is_lost = observation.kind in ("timeout", "unreachable")
            if not is_lost or attempts >= limits.attempts or not self.is_repeatable(call.name):
                break
        return replace(self._bounded(observation, limits), latency_s=time.perf_counter() - start, attempts=attempts)

    async def run_all(self, calls: Sequence[ToolCall], approved: Iterable[str] = ()) -> list[Observation]:
        """What became of calls that do not depend on each other, all at once, in their order.

        Args:
            calls: as the model wrote them.
            approved: the ids of those that a person allowed.
        """
        allowed = frozenset(approved)
        return list(await asyncio.gather(*(self.run(call, call.id in allowed) for call in calls)))

    def redacted(self, value: Any) -> Any:
        """A text or plain JSON values without the secrets, for logs and traces."""
        return self._secrets.redacted(value)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _verdict(self, name: str, entry: _Entry) -> Verdict:
        return self._policy.verdict(name, entry.hints)

    def _limits_of(self, name: str) -> ToolLimits:
        if name in self._limits:
            return self._limits[name]
        patterns = sorted(self._limits, key=lambda pattern: (-len(pattern), pattern))
        return next((self._limits[pattern] for pattern in patterns if fnmatchcase(name, pattern)), ToolLimits())

    def _arguments(self, call: ToolCall) -> dict[str, Any] | str:
        """The call's arguments, or why they are none."""
        if call.name in self.refused:
            return f"the tool {call.name!r} cannot be used: {self.refused[call.name]}"
        arguments = self._checker.arguments(call)
        if isinstance(arguments, dict) and (taken := sorted(self._secrets.bound(call.name) & arguments.keys())):
            return f"{call.name!r} has no argument {taken[0]!r}: leave it out"
        return arguments

    async def _once(self, name: str, entry: _Entry, arguments: Mapping[str, Any], limits: ToolLimits) -> Observation:
        """One attempt. A tool that does not end when it is told to is left behind."""
        given = self._secrets.injected(name, arguments)
        task = asyncio.ensure_future(entry.tool.call(given))
        try:
            done, _ = await asyncio.wait({task}, timeout=limits.seconds)
            if not done:
                await _ended(task)
                return Observation(f"{name!r} did not answer within {limits.seconds:g} s", "timeout")
        except asyncio.CancelledError:
            await _ended(task)
            raise
        if task.cancelled():
            return Observation(f"{name!r} was cancelled from within", "error")
        if (error := task.exception()) is not None:
            return Observation(f"{type(error).__name__}: {error}", "error")
        return task.result()

    def _bounded(self, observation: Observation, limits: ToolLimits) -> Observation:
        """The observation without secrets, within the limit."""
        room = self._secrets.longest  # so that no secret is cut in two before it is found
        text = observation.text
        if len(text) > 2 * (limits.characters + room):
            kept = limits.characters + room
            text = f"{text[:kept]}{text[-kept:]}"
            left_out = len(observation.text) - 2 * kept
        else:
            left_out = 0
        text, is_cut = bounded(self._secrets.redacted(text), limits.characters, left_out=left_out)
        structured = observation.structured
        if structured is not None and _is_larger(structured, limits.characters):
            structured = None
        return replace(
            observation,
            text=text,
            structured=self._secrets.redacted(structured),
            is_truncated=observation.is_truncated or is_cut,
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    tool: Tool
    spec: ToolSpec  # as the model sees it
    hints: ToolHints


async def _ended(task: asyncio.Future[Any]) -> None:
    """Tells the task to end and waits a little; a late exception of its is taken, so that nothing is printed."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    task.cancel()
    await asyncio.wait({task}, timeout=_GRACE_S)


def _is_larger(value: Any, limit: int) -> bool:
    """Whether the JSON of `value` has more than `limit` characters, without writing more than that."""
    size = 0
    try:
        for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
            size += len(piece)
            if size > limit:
                return True
    except (TypeError, ValueError, RecursionError):
        return True
    return False
