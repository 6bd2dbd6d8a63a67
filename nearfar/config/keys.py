"""The gateway's keys on disk, hashed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nearfar.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is kept of a gateway key."""

    sha256: str
    name: str
    created_at: str  # ISO 8601
    rights: tuple[str, ...] = ("ask", "run")  # those of keys that were made before there were rights


def read_keys(path: Path) -> tuple[StoredKey, ...]:
    """The gateway keys in the file; none where there is no file.

    Raises:
        ConfigError: the file is not what `write_keys` wrote.
    """
    try:
        found = (StoredKey(**key) for key in json.loads(path.read_text(encoding="utf-8"))["keys"])
        return tuple(replace(key, rights=tuple(key.rights)) for key in found)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"Cannot read the gateway's keys in {str(path)!r}: {exc!r}. Remove it and make new ones."
        ) from exc


def write_keys(path: Path, keys: Iterable[StoredKey]) -> None:
    """Writes the keys' hashes, whole or not at all, readable by the owner alone.

    Raises:
        ConfigError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=2)
        temporary.replace(path)
    except OSError as exc:
        raise ConfigError(f"Cannot write the gateway's keys to {str(path)!r}: {exc.strerror}.") from exc
