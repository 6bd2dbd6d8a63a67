"""API keys: making, hashing and checking them, and keeping secrets out of what is shown. Plain keys are never kept."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable
from hashlib import sha256

from nearfar.errors import ConfigError

_PREFIX = "nf-"
_RANDOM_BYTES = 32
#: The length of `token_urlsafe(32)`: 32 bytes in base64 without padding.
_LEAST_CHARACTERS = 43

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


class KeyRing:
    """Says whether a key is one of those whose hashes it holds.

    Raises:
        ConfigError: a hash is not 64 hexadecimal digits.
    """

    def __init__(self, hashes: Iterable[str]) -> None:
        self._digests: list[bytes] = []
        for i, text in enumerate(hashes):
            if not _HASH.fullmatch(text):
                raise ConfigError(f"key_hashes[{i}] is not a SHA-256 in hexadecimal. Make a key: nearfar keys new.")
            self._digests.append(bytes.fromhex(text))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admits(self, authorization: bytes | None) -> bool:
        """Whether the `Authorization` header carries a key of ours; a wrong key takes as long as a right one."""
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return False
        digest = sha256(authorization[7:].strip()).digest()
        is_ours = False
        for known in self._digests:
            is_ours |= hmac.compare_digest(digest, known)
        return is_ours


def scrub(text: str) -> str:
    """The text with whatever looks like a key or a token replaced by `***`."""
    return _SECRET.sub(lambda found: f"{found['scheme'] or found['field'] or ''}***", text)
