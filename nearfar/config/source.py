"""What settings are read from: one file and one environment. Errors name the line or the variable at fault."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from nearfar.errors import ConfigError

T = TypeVar("T")


class Section(BaseModel):
    """A table of the file; unknown keys were refused before."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


SectionT = TypeVar("SectionT", bound=Section)


class Source:
    """One file and one environment, and where each value that was read came from.

    Attributes:
        path: the file; None: there is none.
        env: the environment.
        needs_keys: a variable with a secret that is not set is an error.
        origins: dotted key → the file's name, a variable or "found".
    """

    def __init__(self, path: Path | None, env: Mapping[str, str], *, needs_keys: bool) -> None:
        self.path = path
        self.env = env
        self.needs_keys = needs_keys
        self.origins: dict[str, str] = {}
        self._text = ""

    # --- tables ------------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any]:
        """The file's tables.

        Raises:
            ConfigError: it cannot be read, or is no TOML.
        """
        if self.path is None:
            return {}
        try:
            self._text = self.path.read_bytes().decode()
            return tomllib.loads(self._text)
        except OSError as exc:
            raise ConfigError(f"Cannot read the config {str(self.path)!r}: {exc.strerror or exc}.") from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(
                f"The config {str(self.path)!r} is not UTF-8 (byte {exc.start}); save it as UTF-8."
            ) from exc
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"The config {str(self.path)!r} is not valid TOML: {exc}.") from exc

    def section(
        self, name: str, cls: type[SectionT], table: Mapping[str, Any], *, defaults: Mapping[str, Any]
    ) -> SectionT:
        """A section of fixed keys: the defaults, the file's values over them, the environment's over those.

        Raises:
            ConfigError: a key or a value is wrong.
        """
        self.check_keys(name, table, cls)
        values = {**defaults, **self.with_paths(table, "path", "dir", "policy", "python")}
        origins = {f"{name}.{key}": self._file_name for key in table}
        for key, field in cls.model_fields.items():
            variable = "NEARFAR_HOME" if (name, key) == ("data", "dir") else variable_name(name, key)
            if self.env.get(variable):
                is_list = isinstance(field.default, tuple)
                values[key] = split(self.env[variable]) if is_list else self.env[variable]
                origins[f"{name}.{key}"] = f"${variable}"
        for key in ("path", "dir"):
            if key in values:
                values[key] = Path(values[key]).expanduser()
        section = self.validate(cls, values, name)
        self.origins.update(origins)
        return section

    def named(
        self, kind: str, tables: Mapping[str, Any], *, origin: str | None = None
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The tables of things that have names: each name, its dotted place and its table.

        Args:
            kind: the section that they stand in.
            tables: by name.
            origin: where they came from; None: the file.

        Raises:
            ConfigError: one is no table, or its name is none.
        """
        for name, table in tables.items():
            where = f"{kind}.{name}"
            self.check_table(where, table, name)
            if not re.fullmatch(r"[A-Za-z0-9][\w.:/@-]*", name):
                raise self.error(f"{name!r} is no name for a model or cascade; use letters, digits and . _ - : /", name)
            self.origins.update({f"{where}.{key}": origin or self._file_name for key in table})
            yield name, where, table

    def with_paths(self, table: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        """The table, these of its keys as paths where they are texts."""
        paths = {key: self.resolve(table[key]) for key in keys if isinstance(table.get(key), str)}
        return {**table, **paths}

    def resolve(self, path: str) -> Path:
        """The path; a relative one is relative to the file that names it."""
        found = Path(path).expanduser()
        return found if self.path is None else self.path.parent.absolute() / found

    def secret(self, variable: str) -> SecretStr | None:
        """What the variable holds; None: nothing."""
        value = self.env.get(variable, "").strip()
        return SecretStr(value) if value else None

    def postgres_url(self, section: str, variable: str | None) -> SecretStr | None:
        """The URL of a section's Postgres, from the variable that the config names; None: it names none.

        Raises:
            ConfigError: the variable is not set.
        """
        if variable is None:
            return None
        url = self.secret(variable)
        if url is None:
            raise self.error(f"{section}.postgres_url_env names ${variable}, which is not set; set it", variable)
        self.origins[f"{section}.postgres_url"] = f"${variable}"
        return url

    # --- checks ------------------------------------------------------------------------------------------------------

    def check_table(self, where: str, table: object, name: str) -> None:
        """Returns if it is a table.

        Raises:
            ConfigError: it is not.
        """
        if not isinstance(table, dict):
            raise self.error(f"{where} must be a table: [{where}]", name)

    def check_keys(self, where: str, table: Mapping[str, Any], cls: type[Section]) -> None:
        """Returns if the section has every key of the table.

        Raises:
            ConfigError: it has one not.
        """
        for key in table:
            if key not in cls.model_fields:
                raise self.unknown(key, cls.model_fields, what="key", where=where)

    def chosen(
        self, where: str, name: str, table: Mapping[str, Any], kinds: Mapping[str, T], *, default: str | None = None
    ) -> tuple[str, T]:
        """The kind that the table says it is of, and what the kinds have for it.

        Raises:
            ConfigError: it says none, or there is no such kind.
        """
        kind = table.get("kind", default)
        if kind is None:
            raise self.error(f"{where} has no kind; set kind to one of {listed(kinds)}", name)
        if not isinstance(kind, str) or kind not in kinds:
            key = "kind" if "kind" in table else name
            raise self.error(f"{where}.kind is {kind!r}{did_you_mean(kind, kinds)}; use one of {listed(kinds)}", key)
        return kind, kinds[kind]

    def check_model(self, user: str, model: str, known: Sequence[str], *, listing: str = "the models are") -> None:
        """Returns if there is the model that somebody names.

        Raises:
            ConfigError: there is not.
        """
        if model not in known:
            raise self.error(
                f"{user} names the model {model!r}, which is not there{did_you_mean(model, known)}; "
                f"{listing} {listed(known)}",
                model,
            )

    def validate(self, cls: type[SectionT], values: Mapping[str, Any], where: str) -> SectionT:
        """The section of these values.

        Raises:
            ConfigError: one is missing or wrong; the first is named.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            problem = exc.errors(include_url=False)[0]
        keys = [str(part) for part in problem["loc"]]
        name = ".".join([where, *keys])
        if problem["type"] == "missing":
            raise self.error(f"{name} is missing; set it", where)
        said = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        shown = "" if "headers" in keys else f", not {problem['input']!r}"
        variable = variable_name(where, keys[0]) if keys else ""
        origin = f" (from ${variable})" if self.env.get(variable) else ""
        raise self.error(f"{name} {said}{shown}{origin}", keys[-1] if keys else where)

    # --- errors ------------------------------------------------------------------------------------------------------

    def unknown(self, name: str, valid: Iterable[str], *, what: str, where: str = "") -> ConfigError:
        """The error of a name that the file uses and nobody knows."""
        valid = list(valid)
        place = f" in [{where}]" if where else ""
        hint = " (keys are not written into the file: name their variable)" if name in {"api_key", "key"} else ""
        text = f"unknown {what} {name!r}{place}{did_you_mean(name, valid)}; valid {what}s: {', '.join(valid)}{hint}"
        return self.error(text, name)

    def error(self, text: str, key: str) -> ConfigError:
        """The error with this text, and the line that sets the key where there is one such line."""
        if self.path is None:
            is_word = text.split(" ", 1)[0].isalpha()
            return ConfigError(f"{text[0].upper() if is_word else text[0]}{text[1:]}.")
        line = _line_of(key, self._text)
        place = f"{str(self.path)!r}, line {line}" if line else repr(str(self.path))
        return ConfigError(f"{place}: {text}.")

    @property
    def _file_name(self) -> str:
        return self.path.name if self.path else "found"


def variable_name(section: str, key: str) -> str:
    """The variable that sets a key of a section."""
    return f"NEARFAR_{section}_{key}".upper()


def split(text: str) -> list[str]:
    """What stands between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def listed(names: Iterable[str]) -> str:
    """The names in quotes, with commas between them."""
    return ", ".join(f'"{name}"' for name in names)


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """The valid name that is most like this one, as a question; "" where none is like it."""
    close = difflib.get_close_matches(str(name), list(valid), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _line_of(key: str, text: str) -> int | None:
    """The only line that sets `key` or opens its table; None where there is none or several."""
    name = re.escape(key)
    pattern = re.compile(rf"""^\s*(?:["']?{name}["']?\s*=|\[[^\]]*\b{name}["']?\s*\])""")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]
    return lines[0] if len(lines) == 1 else None
