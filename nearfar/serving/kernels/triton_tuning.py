"""Which tile is fastest for a shape: timed on the GPU at hand, and kept on disk.

A file of timings names the kernels' version, Triton's and the GPU; one that names others is not read, and written anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from .triton_linear import KERNEL_VERSION, Tile, capability_of, nested_matmul, shapes
from .triton_unpacking import BLOCK
from .triton_weights import TritonWeights

#: Seconds that a call takes.
Timer = Callable[[Callable[[], object]], float]


def default_folder() -> Path:
    """Where timings are kept: the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nearfar" / "kernels"


def gpu_name(device: torch.device) -> str:
    """What timings are kept under: one name for all GPUs of a kind."""
    if device.type != "cuda":
        return str(device.type)
    return f"{torch.cuda.get_device_name(device)} sm_{capability_of(device)}"


def candidates(rows: int, columns: int, *, capability: int = 90, is_mixed: bool = False) -> tuple[Tile, ...]:
    """Tiles worth timing: `shapes`, each with its columns whole and in parts."""
    blocks = -(-columns // BLOCK)
    splits = [count for count in (1, 2, 4, 8) if count == 1 or blocks // count >= 4]
    return tuple(
        replace(tile, splits=count)
        for tile in shapes(rows, capability=capability, is_mixed=is_mixed)
        for count in splits
    )


@dataclass(slots=True)
class TileCache:
    """The fastest known tiles of one kind of GPU."""

    path: Path
    gpu: str
    tiles: dict[str, Tile] = field(default_factory=dict)

    @classmethod
    def open(cls, gpu: str, folder: Path | None = None) -> TileCache:
        """What is on disk for `gpu`; empty where nothing is, or what another version wrote, or it cannot be read."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-").lower()
        cache = cls((default_folder() if folder is None else folder) / f"{name}.json", gpu)
        cache.tiles = cache._read()
        return cache

    def find(self, weights: TritonWeights, rows: int, widths: Sequence[int]) -> Tile | None:
        """The tile for a shape, if it was timed."""
        return self.tiles.get(shape_key(weights, rows, widths))

    def keep(self, weights: TritonWeights, rows: int, widths: Sequence[int], tile: Tile) -> None:
        """Writes a shape's tile beside what other processes wrote; a folder that cannot be written is let be."""
        key = shape_key(weights, rows, widths)
        self.tiles[key] = tile
        page = self._head() | {"tiles": {name: astuple(one) for name, one in (self._read() | {key: tile}).items()}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(page, indent=1) + "\n")
            partial.replace(self.path)
        except OSError:
            return  # the tile is known to this process all the same

    def _head(self) -> dict[str, Any]:
        return {"kernel_version": KERNEL_VERSION, "triton": triton.__version__, "gpu": self.gpu}

    def _read(self) -> dict[str, Tile]:
        try:
            page = json.loads(self.path.read_text())
            if {name: page.get(name) for name in self._head()} != self._head():
                return {}
            found = {str(name): Tile(*tile) for name, tile in page["tiles"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {name: tile for name, tile in found.items() if _is_whole(tile)}


def shape_key(weights: TritonWeights, rows: int, widths: Sequence[int]) -> str:
    """Rows count in powers of two: the next one above."""
    bits = "+".join(map(str, widths))
    return f"{weights.rows}x{weights.columns} g{weights.group_size} b{bits} m{1 << max(rows - 1, 0).bit_length()}"


def tune(
    weights: TritonWeights,
    rows: int,
    *,
    timer: Timer,
    cache: TileCache,
    present: Sequence[int] | None = None,
    tiles: Iterable[Tile] | None = None,
    launch: Callable[[Tile], object] | None = None,
) -> Tile:
    """The fastest tile for a shape, out of the cache or timed now and kept; candidates that fail are left out.

    Args:
        weights: the matrix.
        rows: of x.
        timer: see `Timer`; called with what launches one candidate.
        cache: of this GPU.
        present: the widths that rows have; all that are stored by default.
        tiles: the candidates.
        launch: runs a tile; by default on random rows, in turn at the present widths.

    Raises:
        RuntimeError: no candidate runs.
    """
    widths = tuple(weights.widths if present is None else sorted(set(present)))
    known = cache.find(weights, rows, widths)
    if known is not None:
        return known
    run = _launcher(weights, rows, widths) if launch is None else launch
    best: tuple[float, Tile] | None = None
    failed: Exception | None = None
    if tiles is None:
        tiles = candidates(
            rows, weights.columns, capability=capability_of(weights.words.device), is_mixed=len(widths) > 1
        )
    for tile in tiles:
        try:
            run(tile)  # compiles
            took_s = timer(lambda tile=tile: run(tile))  # type: ignore[misc]
        except (RuntimeError, triton.CompilationError, triton.OutOfResources) as exc:
            failed = exc
            continue
        if best is None or took_s < best[0]:
            best = took_s, tile
    if best is None:
        raise RuntimeError(f"no tile runs for {shape_key(weights, rows, widths)!r}: {failed}")
    cache.keep(weights, rows, widths, best[1])
    return best[1]


def _launcher(weights: TritonWeights, rows: int, widths: Sequence[int]) -> Callable[[Tile], Tensor]:
    device = weights.words.device
    x = torch.randn((rows, weights.columns), device=device).to(torch.float16)
    asked = [widths[row % len(widths)] for row in range(rows)]
    row_widths = torch.tensor(asked, dtype=torch.int32, device=device)
    out = x.new_empty((rows, weights.rows))
    return lambda tile: nested_matmul(x, row_widths, weights, present=widths, tile=tile, out=out)


def _is_whole(tile: Tile) -> bool:
    """Whether what a file says is a tile that can be launched."""
    sizes: tuple[object, ...] = (tile.rows, tile.outputs, tile.warps, tile.stages, tile.splits)
    if not all(type(size) is int and 1 <= size <= 256 for size in sizes) or type(tile.is_swapped) is not bool:
        return False
    powers = (tile.rows, tile.outputs, tile.warps)
    return tile.rows >= 16 and tile.outputs >= 16 and all(size & (size - 1) == 0 for size in powers)
