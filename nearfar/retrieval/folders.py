"""Which files are to be indexed: folders walked as git would, without what is ignored, hidden or a link."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nearfar.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

#: Files of patterns, read in every folder; both have .gitignore's syntax.
IGNORE_FILES = (".gitignore", ".nearfarignore")

#: `*`, `**` or more: five in a pattern take pathspec 45 s for a name of 120 characters, four take 2 s, three .2 s.
_WILDCARD = re.compile(r"\*+")
_MOST_WILDCARDS = 4


def check_paths(paths: Iterable[Path]) -> None:
    """Does nothing if there is a file or a folder of each name.

    Raises:
        DataError: there is not.
    """
    for path in paths:
        if not (path.is_file() or path.is_dir()):
            raise DataError(f"There is no file or folder {str(path)!r}. Check the path.", path=str(path))


def walk(root: Path, *, exclude: Sequence[str] = (), unread: dict[Path, str] | None = None) -> Iterator[Path]:
    """The files under a folder, or the file itself, in a fixed order.

    Left out are hidden files and folders, links, what is no regular file, and what .gitignore or .nearfarignore files
    say, those of the folders above up to the repository's included.

    Args:
        root: an absolute path.
        exclude: more patterns, relative to the root.
        unread: where the folders go that cannot be listed, each with why, in words that follow its name.

    Raises:
        DataError: there is no such file or folder.
        ConfigError: pathspec is not installed, or a pattern of yours, or of a folder above, has too many wildcards.
    """
    if root.is_file():
        yield root
        return
    check_paths([root])
    specs = [*_above(root), (root, _spec(exclude))]
    yield from _walk(root, specs, {} if unread is None else unread)


def _walk(folder: Path, specs: Sequence[tuple[Path, GitIgnoreSpec]], unread: dict[Path, str]) -> Iterator[Path]:
    levels = [_entries(folder, specs, unread)]  # not by recursion: folders may be deeper than Python's stack
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
            continue
        path, specs_there = found
        if specs_there is None:
            yield path
        else:
            levels.append(_entries(path, specs_there, unread))


def _entries(
    folder: Path, specs: Sequence[tuple[Path, GitIgnoreSpec]], unread: dict[Path, str]
) -> Iterator[tuple[Path, Sequence[tuple[Path, GitIgnoreSpec]] | None]]:
    """What the folder has that is not left out; a folder with the patterns that hold in it."""
    try:
        specs = [*specs, *_specs_in(folder)]
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        unread[folder] = "is a folder that may not be listed"
        return
    except _Costly as exc:  # without the pattern, what it hides would be found
        unread[folder] = f"is left out: {exc}"
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if _is_ignored(path, specs, is_folder=is_folder):
            continue
        if is_folder:
            yield path, specs
        elif entry.is_file(follow_symlinks=False):
            yield path, None


def _is_ignored(path: Path, specs: Sequence[tuple[Path, GitIgnoreSpec]], *, is_folder: bool) -> bool:
    """What the nearest file of patterns that says anything about the path says."""
    for base, spec in reversed(specs):
        name = path.relative_to(base).as_posix()
        verdict = spec.check_file(f"{name}/" if is_folder else name).include
        if verdict is not None:
            return verdict
    return False


def _above(root: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """The patterns of the folders above, outermost first, if the root is inside a git repository."""
    for depth, folder in enumerate([root, *root.parents]):
        if (folder / ".git").exists():
            between = [root, *root.parents][1 : depth + 1]
            return [spec for parent in reversed(between) for spec in _specs_in(parent)]
    return []


def _specs_in(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    found = []
    for name in IGNORE_FILES:
        path = folder / name
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # nor does git follow a link; a pipe would wait
                continue
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        found.append((folder, _spec(lines)))
    return found


class _Costly(ConfigError):
    """A pattern that may be matched for hours: each wildcard multiplies the time by the length of the name."""


def _spec(lines: Sequence[str]) -> GitIgnoreSpec:
    for line in lines:
        if not line.startswith("#") and len(_WILDCARD.findall(line)) > _MOST_WILDCARDS:
            raise _Costly(f"the ignore pattern {line[:100]!r} has more than {_MOST_WILDCARDS} wildcards; split it")
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as exc:
        raise ConfigError("Ignore rules need pathspec. Install it: pip install 'nearfar[retrieval]'") from exc
    return GitIgnoreSpec.from_lines(lines)
