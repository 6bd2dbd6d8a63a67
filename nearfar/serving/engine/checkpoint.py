"""What a folder of weights says of itself: how large it is, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nearfar.errors import ConfigError

_LARGEST_HEADER = 100 * 1024 * 1024  # bytes; what the safetensors library itself takes


def weights_bytes(folder: Path) -> int:
    """How many bytes the folder's weights have.

    Raises:
        ConfigError: there are none, a file is missing, or one is cut short.

    Source: the safetensors format: 8 bytes with the header's length, the header, the tensors without a gap.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(_json(index).get("weight_map", {}).values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise ConfigError(f"The checkpoint {str(folder)!r} lacks {missing[0]!r}. Fetch it again.")
    files = sorted(folder.glob("*.safetensors"))
    if files:
        for path in files:
            _header(path)
        return sum(path.stat().st_size for path in files)
    others = [path for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if not others:
        raise ConfigError(f"{str(folder)!r} holds no weights (*.safetensors). Fetch them, or correct the path.")
    return sum(path.stat().st_size for path in others)


def tensor_shapes(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and shape of each tensor of the folder, by name, off the heads of its files.

    Raises:
        ConfigError: a file is broken or cut short.
    """
    return {
        str(name): (str(tensor["dtype"]), tuple(tensor["shape"]))
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in _header(path).items()
    }


def lora_rank(folder: Path) -> int:
    """The rank of the LoRA adapter in the folder.

    Raises:
        ConfigError: it holds none, or a broken one.
    """
    about = folder / "adapter_config.json"
    if not about.is_file():
        raise ConfigError(f"{str(folder)!r} holds no LoRA adapter (adapter_config.json). Name the adapter's folder.")
    rank = _json(about).get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"{str(about)!r} has the rank {rank!r}, which is none. Fetch or train the adapter again.")
    weights_bytes(folder)
    return rank


def _header(path: Path) -> dict[str, Any]:
    """The file's tensors by name, once it is known to be as long as they say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise ConfigError(f"{str(path)!r} is no safetensors file, or is cut short. Fetch it again.")
        try:
            header = {name: tensor for name, tensor in json.loads(file.read(length)).items() if name != "__metadata__"}
            end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            is_described = all("dtype" in tensor and isinstance(tensor["shape"], list) for tensor in header.values())
            if not is_described:
                raise TypeError("a tensor has no dtype or shape")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
            raise ConfigError(f"The header of {str(path)!r} is broken. Fetch the file again.") from exc
    if size != end:
        raise ConfigError(f"{str(path)!r} has {size:,} bytes and should have {end:,}. Fetch it again.")
    return header


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{str(path)!r} cannot be read: {exc}. Fetch it again.") from exc
    if not isinstance(found, dict):
        raise ConfigError(f"{str(path)!r} is no JSON object. Fetch it again.")
    return found
