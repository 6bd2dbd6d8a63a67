"""What `quantization_config` in a model's `config.json` says of nested planes; what cannot be read is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearfar.errors import DataError

from .format import check_widths, shapes

#: The name that vLLM finds the plugin by.
METHOD = "nearfar_nested"

#: Of the format; a reader refuses any other.
VERSION = 1


@dataclass(frozen=True, slots=True)
class NestedConfig:
    """How a folder's matrices are stored.

    `mixes` are further precisions, between the widths: for each one, the width of every matrix by name.
    """

    widths: tuple[int, ...]  # ascending
    group_size: int
    columns: Mapping[str, int]  # of each matrix that is stored as planes, by its name
    mixes: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    @property
    def precisions(self) -> tuple[int, ...]:
        """What a request may ask for, ascending."""
        return tuple(sorted({*self.widths, *self.mixes}))

    def width_of(self, matrix: str, precision: int) -> int:
        """The bits at which a matrix is read where a request asks for `precision`."""
        if precision in self.mixes:
            return self.mixes[precision][matrix]
        return precision

    def to_json(self) -> dict[str, Any]:
        """For `config.json`."""
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "widths": list(self.widths),
            "group_size": self.group_size,
            "columns": dict(self.columns),
            "mixes": {str(bits): dict(widths) for bits, widths in self.mixes.items()},
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> NestedConfig:
        """Reads what `to_json` wrote.

        Raises:
            DataError: it is another method's or version's, has unknown or missing keys, or contradicts itself.
        """
        if page.get("quant_method") != METHOD:
            raise DataError(f"quant_method is {page.get('quant_method')!r}; nested planes say {METHOD!r}.")
        if page.get("version") != VERSION:
            raise DataError(
                f"The weights have format version {page.get('version')!r}; this nearfar reads {VERSION}. "
                "Quantize the model again, or install the nearfar that wrote it."
            )
        keys = {"quant_method", "version", "widths", "group_size", "columns", "mixes"}
        if set(page) != keys:
            wrong = sorted(set(page) ^ keys)
            raise DataError(f"quantization_config has or lacks {wrong[0]!r}; it holds {', '.join(sorted(keys))}.")
        try:
            config = cls(
                widths=tuple(_whole(width) for width in page["widths"]),
                group_size=_whole(page["group_size"]),
                columns={str(name): _whole(count) for name, count in page["columns"].items()},
                mixes={
                    int(bits): {str(name): _whole(width) for name, width in widths.items()}
                    for bits, widths in page["mixes"].items()
                },
            )
            check_widths(config.widths)
        except (TypeError, ValueError, AttributeError) as exc:
            raise DataError(f"quantization_config cannot be read: {exc}.") from exc
        if config.group_size < 1 or any(count < 1 for count in config.columns.values()):
            raise DataError("quantization_config has a group_size or a matrix's columns below 1.")
        for bits, widths in config.mixes.items():
            if bits in config.widths:
                raise DataError(f"Precision {bits} is both a width and a mix in quantization_config.")
            if set(widths) != set(config.columns) or not set(widths.values()) <= set(config.widths):
                raise DataError(f"The mix {bits} in quantization_config does not give every matrix a stored width.")
        return config


def read_config(folder: Path) -> NestedConfig:
    """What the folder's `config.json` says.

    Raises:
        DataError: there is no such file, it is no JSON, or it describes no nested planes of this version.
    """
    path = folder / "config.json"
    try:
        page = json.loads(path.read_text())
    except OSError as exc:
        raise DataError(f"{str(path)!r} cannot be read: {exc.strerror}.", path=str(path)) from exc
    except ValueError as exc:
        raise DataError(f"{str(path)!r} is no JSON: {exc}.", path=str(path)) from exc
    block = page.get("quantization_config") if isinstance(page, dict) else None
    if not isinstance(block, dict):
        raise DataError(
            f"{str(path)!r} has no quantization_config; make nested planes with `nearfar quantize`.", path=str(path)
        )
    try:
        return NestedConfig.from_json(block)
    except DataError as exc:
        raise DataError(f"{str(path)!r}: {exc}", path=str(path)) from exc


#: The format's types, as safetensors calls them.
_TYPES = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32"}


def check_shapes(config: NestedConfig, found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Sees that every tensor which the config promises is there, and fits it.

    Args:
        config: of a folder.
        found: the type, as safetensors calls it, and the shape of each of its tensors, by name.

    Raises:
        DataError: one is missing, or of another type or shape.
    """
    for matrix, columns in config.columns.items():
        planes = found.get(f"{matrix}.planes", ("", ()))[1]
        num_rows = planes[1] if len(planes) == 3 else 0
        expected = shapes(num_rows, columns, widths=config.widths, group_size=config.group_size)
        for part, (shape, dtype) in expected.items():
            name, wanted = f"{matrix}.{part}", (_TYPES[dtype.name], shape)
            if name not in found:
                raise DataError(f"The weights lack {name!r}, which config.json names; quantize the model again.")
            if found[name] != wanted:
                raise DataError(
                    f"{name!r} is {found[name][0]} of shape {found[name][1]}, and config.json asks for {wanted[0]} of "
                    f"shape {wanted[1]}; quantize the model again."
                )


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value
