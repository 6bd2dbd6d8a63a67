"""API keys: making, hashing and checking them, and keeping secrets out of what is shown. Plain keys are never kept."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, TypeAlias, get_args

from nearfar.errors import ConfigError

_PREFIX = "nf-"
_RANDOM_BYTES = 32
#: The length of `token_urlsafe(32)`: 32 bytes in base64 without padding.
_LEAST_CHARACTERS = 43

#: What a key may do: ask models and cascades; run agents; allow or deny the calls that agents want to make. Every key
#: sees which models there are, the health and the metrics.
Right: TypeAlias = Literal["ask", "run", "approve"]
RIGHTS: tuple[Right, ...] = get_args(Right)
EVERY_RIGHT = frozenset(RIGHTS)
#: Of a key whose maker has not said: whoever lets agents run does not approve their calls as well.
USUAL_RIGHTS: frozenset[Right] = frozenset({"ask", "run"})

_HASH = re.compile(r"[0-9a-f]{64}")
_SECRET = re.compile(
    r"(?i)(?P<scheme>\b(?:bearer|basic)\s+)[^\s\"',;]+"
    r"|(?P<field>\b(?:api[_-]?key|token|password|secret)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"
    r"|\b(?:sk|nf|pk|gsk|hf|xai)[-_][A-Za-z0-9_\-]{12,}"
)


def new_key() -> str:
    """A key with 32 random bytes in it."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_key(key: str) -> str:
    """What is kept of a key: its SHA-256, in hexadecimal. The keys are random, so that no slow hash is needed.

    Raises:
        ConfigError: the key is too short to have 32 random bytes in it.
    """
    if len(key.removeprefix(_PREFIX)) < _LEAST_CHARACTERS:
        raise ConfigError("The key is too short to hold 32 random bytes. Make one: nearfar keys new.")
    return sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """What a gateway knows of a key.

    Raises:
        ConfigError: the hash is not 64 hexadecimal digits, or a right is none.
    """

    sha256: str  # of `hash_key`
    name: str = "key"
    rights: frozenset[Right] = USUAL_RIGHTS

    def __post_init__(self) -> None:
        if not _HASH.fullmatch(self.sha256):
            raise ConfigError(
                f"What is kept of the key {self.name!r} is not a SHA-256 in hexadecimal. Make a key: nearfar keys new."
            )
        if unknown := sorted(self.rights - EVERY_RIGHT):
            known = ", ".join(map(repr, RIGHTS))
            raise ConfigError(f"The key {self.name!r} has the right {unknown[0]!r}; the rights are {known}.")


class KeyRing:
    """Finds the key that a request carries among those that it holds."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = [(bytes.fromhex(key.sha256), key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, authorization: bytes | None) -> Key | None:
        """The key in the `Authorization` header; None: there is none of ours. A wrong one takes as long as a right one.

        One that is held twice has the rights of both.
        """
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return None
        digest = sha256(authorization[7:].strip()).digest()
        found = [key for known, key in self._keys if hmac.compare_digest(digest, known)]
        if len(found) > 1:
            return replace(found[0], rights=frozenset().union(*(key.rights for key in found)))
        return found[0] if found else None


def scrub(text: str) -> str:
    """The text with whatever looks like a key or a token replaced by `***`."""
    return _SECRET.sub(lambda found: f"{found['scheme'] or found['field'] or ''}***", text)
