"""Model folders on disk: tensors by name out of safetensors files, and shards that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import ConfigError, DataError

from .format import TENSORS, NestedWeights, from_tensors
from .settings import NestedConfig, read_config

if TYPE_CHECKING:
    import torch

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

#: Where a file keeps the CRC-32 of each tensor's bytes, as JSON.
_SUMS = "crc32"

#: Bytes that are summed at once.
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder's tensors. Reads one at a time, off the file."""

    folder: Path
    files: Mapping[str, str]  # by tensor

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Finds the tensors of a folder.

        Raises:
            ConfigError: safetensors is not installed, or the folder holds none.
            DataError: a file is damaged, cut off or missing.
        """
        index = folder / _INDEX
        if index.exists():
            try:
                files = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise DataError(f"{str(index)!r} is no index of tensors: {exc}.", path=str(index)) from exc
            for file in sorted(set(files.values())):
                if Path(file).name != file or not (folder / file).is_file():
                    raise DataError(
                        f"{str(folder)!r} lacks {file!r}, which its index names; fetch it again.", path=str(folder)
                    )
            for file in sorted(set(files.values())):
                there = names(folder / file)
                for name, place in files.items():
                    if place == file and name not in there:
                        raise DataError(f"{str(folder / file)!r} lacks {name!r}; fetch it again.", path=str(folder))
            return cls(folder, files)
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {str(folder)!r}; give that of a Hugging Face model in safetensors.")
        if not (folder / _SINGLE).is_file():
            raise ConfigError(
                f"{str(folder)!r} holds no {_SINGLE!r}; give the folder of a Hugging Face model in safetensors."
            )
        return cls(folder, dict.fromkeys(names(folder / _SINGLE), _SINGLE))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor.

        Raises:
            DataError: there is none of this name.
        """
        if name not in self.files:
            raise DataError(f"{str(self.folder)!r} has no tensor {name!r}.", path=str(self.folder))
        with _reading(self.folder / self.files[name], "pt") as file:
            return file.get_tensor(name)

    def nested(self, matrix: str, config: NestedConfig) -> NestedWeights:
        """The nested planes of a matrix.

        Raises:
            DataError: a tensor is missing, or does not fit the config.
        """
        tensors = {}
        for part in TENSORS:
            name = f"{matrix}.{part}"
            if name in self.files:
                with _reading(self.folder / self.files[name], "numpy") as file:
                    tensors[part] = file.get_tensor(name)
        return from_tensors(
            tensors,
            name=matrix,
            widths=config.widths,
            group_size=config.group_size,
            num_columns=config.columns[matrix],
        )


@dataclass(frozen=True, slots=True)
class NestedCheckpoint:
    """A folder of nested planes that were checked: every matrix that the config names is there and fits it."""

    config: NestedConfig
    tensors: Checkpoint

    @classmethod
    def open(cls, folder: Path) -> NestedCheckpoint:
        """Opens and checks a folder.

        Raises:
            ConfigError: safetensors is not installed, or the folder holds none.
            DataError: a file is damaged, or its config does not describe it.
        """
        config = read_config(folder)
        opened = cls(config, Checkpoint.open(folder))
        check_sums(folder)
        for name in config.columns:
            opened.matrix(name)
        return opened

    def matrix(self, name: str) -> NestedWeights:
        """One matrix, at every width."""
        return self.tensors.nested(name, self.config)


def names(path: Path) -> frozenset[str]:
    """The tensors of a file.

    Raises:
        DataError: it is damaged or cut off.
    """
    with _reading(path, "numpy") as file:
        return frozenset(file.keys())


def notes(path: Path) -> Mapping[str, str]:
    """What was written beside the tensors of a file."""
    with _reading(path, "numpy") as file:
        return dict(file.metadata() or {})


def check_sums(folder: Path) -> None:
    """Sees that the folder's tensors are, byte for byte, what was written; files without sums pass.

    Reads the files once, about a second for each 2 GB.

    Raises:
        DataError: a tensor is not.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                start = 8 + int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(start - 8))
                for name, wanted in json.loads(header.get("__metadata__", {}).get(_SUMS, "{}")).items():
                    begin, end = header[name]["data_offsets"]
                    file.seek(start + begin)
                    found = 0
                    for at in range(begin, end, _PIECE):
                        found = zlib.crc32(file.read(min(_PIECE, end - at)), found)
                    if found != wanted:
                        raise DataError(
                            f"{name!r} in {str(path)!r} is not what was written; fetch the file again, or quantize the "
                            "model again.",
                            path=str(path),
                        )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise DataError(f"{str(path)!r} is damaged or cut off: {exc}. Fetch it again.", path=str(path)) from exc


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor], beside: Mapping[str, str]) -> None:
    """Writes a file that is there whole or not at all, with a sum of each tensor's bytes for `check_sums`.

    Raises:
        DataError: it cannot be written; the disk may be full.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    sums = {name: zlib.crc32(tensor.flatten().view(torch.uint8).numpy()) for name, tensor in tensors.items()}
    partial = path.with_suffix(".partial")
    try:
        save_file(dict(tensors), partial, metadata={**beside, _SUMS: json.dumps(sums)})
        partial.replace(path)
    except (OSError, SafetensorError) as exc:
        partial.unlink(missing_ok=True)
        raise _unwritable(path, exc) from exc


def copy_file(source: Path, path: Path) -> None:
    """Copies a small file, which is there whole or not at all.

    Raises:
        DataError: it cannot be written; the disk may be full.
    """
    partial = path.with_suffix(".partial")
    try:
        shutil.copyfile(source, partial)
        partial.replace(path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise _unwritable(path, exc) from exc


def write_json(path: Path, page: Any) -> None:
    """Writes a file of JSON that is there whole or not at all.

    Raises:
        DataError: it cannot be written; the disk may be full.
    """
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(page, indent=1) + "\n")
        partial.replace(path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise _unwritable(path, exc) from exc


def _unwritable(path: Path, exc: Exception) -> DataError:
    is_full = getattr(exc, "errno", None) == errno.ENOSPC or "No space left" in str(exc)
    why = "the disk is full" if is_full else str(exc)
    return DataError(
        f"{str(path)!r} cannot be written: {why}. Make room and run the same command again: what is done is kept.",
        path=str(path),
    )


@contextmanager
def _reading(path: Path, framework: str) -> Iterator[Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as exc:
        raise ConfigError(
            "Reading model folders needs safetensors. Install it: pip install 'nearfar[quantize]'"
        ) from exc
    try:
        opened = safe_open(path, framework=framework)
    except (OSError, SafetensorError) as exc:
        raise DataError(f"{str(path)!r} is damaged or cut off: {exc}. Fetch it again.", path=str(path)) from exc
    with opened as file:
        yield file
