"""An MCP server for the files of one folder, read-only and confined: `python -m nearfar.agents.files_server FOLDER`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

#: Files larger than this are neither read nor searched.
_MAX_FILE_BYTES: Final = 4 * 2**20

#: What one call gives back at most.
_MAX_ENTRIES: Final = 500
_MAX_LINES: Final = 400
_MAX_HITS: Final = 50
_MAX_LINE: Final = 300

_HINTS: Final = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)


class Folder:
    """The regular files under a folder.

    Every part of a path is opened relative to its parent and without following symbolic links, so that neither `..`,
    nor a link, nor a folder that is swapped while a path is being walked leads out.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> str:
        """A file's text.

        Raises:
            ToolError: there is no such file, or it is no text, or too large.
        """
        with self._opened(path) as fd:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise ToolError(f"{path!r} is no file; list_files shows what is in a folder.")
            if facts.st_size > _MAX_FILE_BYTES:
                raise ToolError(f"{path!r} has {facts.st_size} bytes; more than {_MAX_FILE_BYTES} are not read.")
            with os.fdopen(os.dup(fd), "rb") as file:
                data = file.read(_MAX_FILE_BYTES)
        if b"\0" in data:
            raise ToolError(f"{path!r} is binary, not text.")
        return data.decode(errors="replace")

    def entries(self, path: str) -> Iterator[tuple[str, bool]]:
        """What is in a folder and below, by name: the path from the root and whether it is a folder.

        Raises:
            ToolError: there is no such folder.
        """
        with self._opened(path) as fd:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise ToolError(f"{path!r} is no folder; read_file reads a file.")
            prefix = "/".join(_parts(path))
            yield from _walk(fd, f"{prefix}/" if prefix else "")

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in _parts(path):
                # Without O_NONBLOCK, opening a pipe would wait for its writer.
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        except OSError as exc:
            raise ToolError(f"Cannot open {path!r}: {exc.strerror}. Links are not followed.") from exc
        finally:
            os.close(fd)


def make_server(root: Path) -> MCPServer:
    """The server of a folder's files."""
    folder = Folder(root)
    server = MCPServer("nearfar-files", instructions="Read, list and search the text files of one folder.")

    @server.tool(annotations=_HINTS, structured_output=False)
    def list_files(
        path: Annotated[str, Field(description="A folder, relative to the root.")] = ".",
        pattern: Annotated[str, Field(description="Which files, such as *.md; the name alone is matched.")] = "*",
    ) -> str:
        """Lists the files of a folder and of the folders below it."""
        found = (entry for entry, is_folder in folder.entries(path) if not is_folder)
        fitting = (entry for entry in found if fnmatch(entry.rpartition("/")[2], pattern))
        names = list(islice(fitting, _MAX_ENTRIES + 1))
        return _bounded(names, _MAX_ENTRIES, "files") if names else f"No file matches {pattern!r}."

    @server.tool(annotations=_HINTS, structured_output=False)
    def read_file(
        path: Annotated[str, Field(description="A file, relative to the root.")],
        first_line: Annotated[int, Field(description="Where to start.", ge=1)] = 1,
        num_lines: Annotated[int, Field(description="How many lines to read.", ge=1, le=_MAX_LINES)] = _MAX_LINES,
    ) -> str:
        """Reads a text file, or some lines of it."""
        lines = folder.read(path).splitlines()
        if first_line > max(1, len(lines)):
            raise ToolError(f"{path!r} has only {len(lines)} lines.")
        end = first_line - 1 + num_lines
        rest = f"\n… {len(lines) - end} more lines; read on from first_line {end + 1}." if end < len(lines) else ""
        return "\n".join(lines[first_line - 1 : end]) + rest

    @server.tool(annotations=_HINTS, structured_output=False)
    def search_files(
        text: Annotated[
            str, Field(description="What to look for, letter for letter; case does not matter.", min_length=1)
        ],
        pattern: Annotated[str, Field(description="Which files, such as *.md; the name alone is matched.")] = "*",
    ) -> str:
        """Finds the lines that contain a text in the files of the folder."""
        hits: list[str] = []
        wanted = text.casefold()
        for entry, is_folder in folder.entries("."):
            if is_folder or not fnmatch(entry.rpartition("/")[2], pattern):
                continue
            try:
                lines = folder.read(entry).splitlines()
            except ToolError:
                continue  # binary, too large or gone: the search is for text
            hits += [
                f"{entry}:{number}: {line.strip()[:_MAX_LINE]}"
                for number, line in enumerate(lines, 1)
                if wanted in line.casefold()
            ]
            if len(hits) > _MAX_HITS:
                break
        return _bounded(hits, _MAX_HITS, "lines") if hits else f"No line contains {text!r}."

    return server


def _parts(path: str) -> list[str]:
    """The parts of a path below the root.

    Raises:
        ToolError: the path leads elsewhere.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise ToolError(f"{path!r} leads out of the folder; paths are relative to it.")
    return parts


def _walk(fd: int, prefix: str) -> Iterator[tuple[str, bool]]:
    with os.scandir(fd) as found:
        entries = sorted(
            (each.name, each.is_dir(follow_symlinks=False), each.is_file(follow_symlinks=False)) for each in found
        )
    for name, is_folder, is_file in entries:
        if is_file:
            yield prefix + name, False
        elif is_folder:
            yield prefix + name, True
            try:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            except OSError:
                continue  # not ours to read, or gone
            try:
                yield from _walk(inner, f"{prefix}{name}/")
            finally:
                os.close(inner)


def _bounded(lines: list[str], most: int, what: str) -> str:
    rest = [f"… and more {what}; narrow it down."] if len(lines) > most else []
    return "\n".join(lines[:most] + rest)


def main(arguments: list[str]) -> int:
    """Serves until the input ends; the exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.stderr.write("Name one folder that exists: python -m nearfar.agents.files_server FOLDER\n")
        return 2
    make_server(Path(arguments[0]).resolve()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
