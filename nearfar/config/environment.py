"""Where nearfar looks: the variables that it knows, the config file, and the user's folders."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from nearfar.errors import ConfigError

from .source import Section, did_you_mean, variable_name

FILE_NAME = "nearfar.toml"

_FREE_VARIABLES = {
    "NEARFAR_CONFIG": "path of the config file",
    "NEARFAR_HOME": "folder of the store and the keys",
    "NEARFAR_FAR_URL": "an OpenAI-compatible far server, where there is no config file",
    "NEARFAR_FAR_MODEL": "the far model's name",
    "NEARFAR_FAR_KEY": "the far server's key",
    "NEARFAR_API_KEYS": "keys that may ask models and run agents over HTTP, separated by commas",
    "NEARFAR_APPROVER_KEYS": "keys that may allow or deny agents' calls over HTTP, separated by commas",
    "NEARFAR_DEBUG": "show tracebacks",
}


def is_debugging(environ: Mapping[str, str] | None = None) -> bool:
    """Whether NEARFAR_DEBUG asks for tracebacks."""
    return bool((os.environ if environ is None else environ).get("NEARFAR_DEBUG"))


def user_config_path(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's own config file is looked for, whether or not it exists."""
    environ = os.environ if environ is None else environ
    return user_folder(environ, "config") / FILE_NAME


def find_file(path: str | Path | None, env: Mapping[str, str]) -> Path | None:
    """The config file: `path`, or the first of $NEARFAR_CONFIG, ./nearfar.toml and the user's own; None: there is none.

    Raises:
        ConfigError: the one that is named is not there.
    """
    named = path or env.get("NEARFAR_CONFIG")
    if named:
        file = Path(named).expanduser()
        if not file.is_file():
            origin = "" if path else " (from $NEARFAR_CONFIG)"
            raise ConfigError(f"There is no config file {str(file)!r}{origin}. Write one: nearfar init.")
        return file
    return next((file for file in (Path(FILE_NAME), user_config_path(env)) if file.is_file()), None)


def check_variables(env: Mapping[str, str], sections: Mapping[str, type[Section]]) -> None:
    """Returns if no NEARFAR_ variable looks like a misspelt setting; others may belong to somebody else.

    Raises:
        ConfigError: one does.
    """
    valid = [variable_name(name, key) for name, cls in sections.items() for key in cls.model_fields]
    valid = [*_FREE_VARIABLES, *(name for name in valid if name != "NEARFAR_DATA_DIR")]
    begins = tuple(f"NEARFAR_{name.upper()}_" for name in sections)
    for name in env:
        if not name.startswith("NEARFAR_") or name in valid:
            continue
        if name.startswith(begins) or difflib.get_close_matches(name, valid, 1, 0.85):
            raise ConfigError(f"Unknown variable ${name}{did_you_mean(name, valid)}; valid ones: {', '.join(valid)}.")


def user_folder(env: Mapping[str, str], kind: Literal["config", "data"]) -> Path:
    """The platform's folder for a user's files of this kind (XDG base directories on Linux)."""
    home = Path(env.get("HOME") or env.get("USERPROFILE") or Path.home())
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "nearfar"
    if sys.platform == "win32":
        return Path(env.get("LOCALAPPDATA") or home / "AppData" / "Local") / "nearfar"
    if kind == "config":
        return Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "nearfar"
    return Path(env.get("XDG_DATA_HOME") or home / ".local" / "share") / "nearfar"
