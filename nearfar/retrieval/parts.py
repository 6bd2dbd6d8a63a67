"""Parts of a collection's indexes on disk: written whole or not at all, mapped into memory, never changed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from nearfar.errors import DataError

from .bm25 import BM25
from .dense import Dense

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

PartKind: TypeAlias = Literal["bm25", "dense"]

_MANIFEST = "part.json"


@dataclass(frozen=True, slots=True)
class Part:
    """An index over some chunks of a collection; position i in it is the chunk `ids[i]`."""

    ids: NDArray[int64]  # ascending
    index: BM25 | Dense


def write_part(folder: Path, part: Part) -> str:
    """The new part's name; once it is returned, the part is on disk.

    Raises:
        DataError: it cannot be written; nothing is left of it.
    """
    kind = "bm25" if isinstance(part.index, BM25) else "dense"
    name = f"{kind}-{int(part.ids[0])}-{int(part.ids[-1])}-{secrets.token_hex(4)}"
    temporary = folder / f".{name}"
    try:
        temporary.mkdir(parents=True)
        _write(temporary, part)
        temporary.rename(folder / name)
        _sync(folder)
    except (OSError, RuntimeError) as exc:  # faiss says RuntimeError for what the disk refuses
        shutil.rmtree(temporary, ignore_errors=True)
        reason = (exc.strerror or str(exc)) if isinstance(exc, OSError) else "the disk refused it"
        raise DataError(
            f"Cannot write an index into {str(folder)!r}: {reason}. Make room, then run the same command again; the "
            "documents are kept.",
            path=str(folder),
        ) from exc
    return name


def _write(folder: Path, part: Part) -> None:
    import numpy as np

    np.save(folder / "ids.npy", part.ids)
    if isinstance(part.index, BM25):
        part.index.save(folder)
    else:
        part.index.save(folder / "index.faiss")
    files = sorted(folder.iterdir())
    manifest = {file.name: file.stat().st_size for file in files}
    (folder / _MANIFEST).write_text(json.dumps(manifest))
    for file in (*files, folder / _MANIFEST, folder):
        _sync(file)


def is_whole(folder: Path) -> bool:
    """Whether the part's folder has all the bytes that were written into it."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in manifest.items())
    except (OSError, ValueError):
        return False


def read_part(folder: Path, *, mapped: bool = True) -> Part:
    """The part in the folder, mapped into memory, or read whole so that it can be changed.

    Raises:
        FileNotFoundError: it was replaced by another meanwhile.
        DataError: it is damaged.
    """
    import numpy as np

    is_words = folder.name.startswith("bm25-")
    try:
        ids = np.load(folder / "ids.npy", mmap_mode="r").view(np.ndarray)
        index = BM25.load(folder) if is_words else Dense.load(folder / "index.faiss", mapped=mapped)
    except (ValueError, EOFError, IndexError) as exc:  # numpy says these for what is no array
        raise DataError(
            f"The index {str(folder)!r} is damaged. Run nearfar index again: it is made anew from the documents.",
            path=str(folder),
        ) from exc
    return Part(ids, index)


def is_readable(folder: Path) -> bool:
    """Whether the part is whole and can be opened; bytes that were changed inside of it are not noticed."""
    if not is_whole(folder):
        return False
    try:
        read_part(folder)
    except (DataError, OSError):
        return False
    return True


def remove_parts(folder: Path, *, keep: frozenset[str]) -> None:
    """Removes every part, whole or half-written, but those to be kept."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name not in keep:
            shutil.rmtree(entry, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
