"""Decides whether a call may run: allow, ask a person, or deny; by the owner's rules, then by what a tool says it does.

MCP's specification says it of its annotations: "clients should never make tool use decisions based on ToolAnnotations
received from untrusted servers". So a hint from elsewhere only raises care; one that this machine's owner stands behind
(`ToolHints.is_trusted`) may lower it; an explicit rule is above both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from nearfar.errors import ConfigError

from .types import ToolHints

Action: TypeAlias = Literal["allow", "ask", "deny"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy says of a call, and why in words that a person is shown."""

    action: Action
    why: str


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """What each tool may do without a person.

    Attributes:
        rules: actions by tool name, or by pattern (`files.*`). A name goes before patterns, a long pattern before a
            short one.
        unsaid: the action for tools that no rule names and whose hints do not settle it.

    Raises:
        ConfigError: an action is none of allow, ask and deny.
    """

    rules: Mapping[str, Action] = field(default_factory=dict)
    unsaid: Action = "ask"

    def __post_init__(self) -> None:
        for name, action in {**self.rules, "unsaid": self.unsaid}.items():
            if action not in get_args(Action):
                raise ConfigError(f"the policy of {name!r} is {action!r}. Use one of: {', '.join(get_args(Action))}")

    def verdict(self, tool: str, hints: ToolHints) -> Verdict:
        """The action for a call of `tool`."""
        if tool in self.rules:
            return Verdict(self.rules[tool], f"the policy says {self.rules[tool]} for {tool!r}")
        for pattern in sorted(self.rules, key=lambda pattern: (-len(pattern), pattern)):
            if fnmatchcase(tool, pattern):
                return Verdict(self.rules[pattern], f"the policy says {self.rules[pattern]} for {pattern!r}")
        return self._by_hints(tool, hints)

    def _by_hints(self, tool: str, hints: ToolHints) -> Verdict:
        careful: Action = "deny" if self.unsaid == "deny" else "ask"
        if hints.destructive:
            return Verdict(careful, f"{tool!r} says that it changes or deletes things")
        if hints.open_world:
            return Verdict(careful, f"{tool!r} says that it reaches the outside world")
        if hints.read_only and hints.is_trusted:
            return Verdict("allow", f"{tool!r} only reads")
        if hints.read_only is False:
            return Verdict(careful, f"{tool!r} says that it does more than read")
        if hints.read_only:
            return Verdict(self.unsaid, f"{tool!r} says that it only reads, and nobody here vouches for that")
        return Verdict(self.unsaid, f"{tool!r} does not say what it changes")
