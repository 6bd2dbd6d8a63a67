"""Puts secrets into calls after the model has written them, and takes them out of everything that comes back."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from nearfar.errors import ConfigError
from nearfar.types import ToolSpec

#: `secret:NAME`, also inside other text: `Bearer secret:TOKEN`.
_REFERENCE = re.compile(r"secret:([A-Za-z_][A-Za-z0-9_]*)")

#: Shorter ones would be found everywhere in ordinary text.
_LEAST_LENGTH = 6


@dataclass(frozen=True, slots=True)
class SecretBindings:
    """Which arguments of which tools are secrets.

    The model never sees such an argument: it is not in the tool's schema, and a call that names it is not valid.

    Attributes:
        arguments: by tool, by argument, what it is set to: `{"search": {"key": "secret:SEARCH_KEY"}}`.
        values: the secrets by name.

    Raises:
        ConfigError: a binding names no secret or an unknown one, or a secret is too short to be kept out of texts.
    """

    arguments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if len(value) < _LEAST_LENGTH:
                raise ConfigError(f"the secret {name!r} is shorter than {_LEAST_LENGTH} characters. Use a longer one")
        for tool, bound in self.arguments.items():
            for argument, template in bound.items():
                names = _REFERENCE.findall(template)
                if not names:
                    raise ConfigError(f"{argument!r} of {tool!r} is bound to no secret. Write it as 'secret:NAME'")
                for name in names:
                    if name not in self.values:
                        raise ConfigError(
                            f"{argument!r} of {tool!r} is bound to the secret {name!r}, which is not there. Set it"
                        )

    def bound(self, tool: str) -> frozenset[str]:
        """The arguments of `tool` that are secrets."""
        return frozenset(self.arguments.get(tool, {}))

    def hidden(self, spec: ToolSpec) -> ToolSpec:
        """The tool as the model sees it.

        Raises:
            ConfigError: a bound argument is not among the tool's.
        """
        bound = self.bound(spec.name)
        if not bound:
            return spec
        properties = spec.parameters.get("properties", {})
        if missing := sorted(bound - properties.keys()):
            raise ConfigError(f"{spec.name!r} has no argument {missing[0]!r} to put a secret in. Correct the binding")
        parameters = {
            **spec.parameters,
            "properties": {name: schema for name, schema in properties.items() if name not in bound},
        }
        if "required" in parameters:
            parameters["required"] = [name for name in parameters["required"] if name not in bound]
        return ToolSpec(spec.name, spec.description, parameters, spec.strict)

    def injected(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with the secrets in their places."""
        bound = self.arguments.get(tool, {})
        return {
            **arguments,
            **{name: _REFERENCE.sub(lambda match: self.values[match[1]], template) for name, template in bound.items()},
        }

    def redacted(self, value: Any) -> Any:
        """Plain JSON values, or a text, with `[secret NAME]` in each secret's place; also where it is encoded."""
        if not self.values:
            return value
        if isinstance(value, str):
            for name, form in self._forms():
                value = value.replace(form, f"[secret {name}]")
            return value
        if isinstance(value, Mapping):
            return {self.redacted(key): self.redacted(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.redacted(item) for item in value]
        return value

    @property
    def longest(self) -> int:
        """Characters of the longest form of a secret: what is cut must be cut this much later than it is shown."""
        return max((len(form) for _, form in self._forms()), default=0)

    def _forms(self) -> Iterator[tuple[str, str]]:
        """Each secret as it is, in JSON, in a URL and in base64 (wherever it may stand in what was encoded)."""
        forms: list[tuple[str, str]] = []
        for name, value in self.values.items():
            raw = value.encode()
            written = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
            written |= {quote(value), quote(value, safe=""), raw.hex()}
            for shift in range(3):  # the bytes before it decide how its own are grouped
                first = -(-shift * 8 // 6)  # sextets that hold bits of those bytes
                whole = (shift + len(raw)) * 8 // 6  # sextets with no bit of what follows
                for encode in (base64.b64encode, base64.urlsafe_b64encode):
                    written.add(encode(b"\0" * shift + raw).decode()[first:whole])
            forms += [(name, form) for form in written if len(form) >= _LEAST_LENGTH]
        yield from sorted(forms, key=lambda pair: (-len(pair[1]), pair))
