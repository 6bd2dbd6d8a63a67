"""Launches the Triton kernels: checks what it is given, picks the tile, and adds up what was split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .triton_gemm import add_splits, nested_gemm, scale_rows
from .triton_unpacking import BLOCK
from .triton_weights import TritonWeights

#: Of what the kernels compute and of what tiles mean; timings of another version are not used.
KERNEL_VERSION = 1

#: NVIDIA's first architecture with all that the kernels use.
OLDEST = (8, 0)


@dataclass(frozen=True, slots=True)
class Tile:
    """How a launch is cut up."""

    rows: int  # of x
    outputs: int
    warps: int
    stages: int  # loads in flight
    splits: int = 1  # of the columns, added up by a second kernel
    is_swapped: bool = False  # the weights are the left operand: fewer instructions from 64 rows of x on


def default_tile(rows: int, outputs: int, columns: int, processors: int = 132) -> Tile:
    """A tile for a shape that was not timed: enough programs for every multiprocessor, and no more splits than that.

    From the kernels' instruction counts (docs/kernels.md), not from timings.
    """
    tile = (
        Tile(16, 128, 4, 4)
        if rows <= 16
        else Tile(32, 128, 4, 3)
        if rows <= 32
        else Tile(64, 128, 4, 3, is_swapped=True)
    )
    programs = -(-rows // tile.rows) * -(-outputs // tile.outputs)
    splits = 1
    while programs * splits * 2 <= 2 * processors and -(-columns // BLOCK) // (splits * 2) >= 4:
        splits *= 2
    return Tile(tile.rows, tile.outputs, tile.warps, tile.stages, splits, tile.is_swapped)


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels do not run on a device with inputs of a type; None where they do."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"inputs are {dtype}, and the kernels multiply in float16"
    if triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"the device is {device.type!r}, and the kernels run on GPUs"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        return f"the GPU has compute capability {torch.cuda.get_device_capability(device)}; the kernels need {OLDEST}"
    return None


def nested_matmul(
    x: Tensor,
    row_widths: Tensor,
    weights: TritonWeights,
    *,
    present: Sequence[int] | None = None,
    tile: Tile | None = None,
    out: Tensor | None = None,
    uses_assembly: bool | None = None,
) -> Tensor:
    """Each row of `x` times the matrix at the row's width: (rows, outputs) of x's type.

    Nothing waits for the device, and what is launched depends on shapes alone, so a graph can capture it and find other
    widths in `row_widths` when it is replayed.

    Args:
        x: (rows, columns), float16 or bfloat16, of any strides.
        row_widths: (rows,) of int32 on x's device. A row with a width that is not stored, or not in `present`, is NaN.
        weights: of `repack`, on x's device.
        present: the widths that rows may have, where the caller knows: the kernel is then made for these alone.
        tile: a measured one; `default_tile` otherwise.
        out: where the result goes.
        uses_assembly: False for plain Triton; by default where the GPU is NVIDIA's.

    Raises:
        ValueError: shapes, types or devices do not fit, or the kernels do not run here.
    """
    rows, device = len(x), x.device
    if x.dim() != 2 or x.shape[1] != weights.columns:
        raise ValueError(f"x is {tuple(x.shape)}; the matrix takes {weights.columns} columns")
    if row_widths.shape != x.shape[:1] or row_widths.dtype != torch.int32:
        raise ValueError(f"row_widths is {row_widths.dtype} of {tuple(row_widths.shape)}; give one int32 per row of x")
    if not device == row_widths.device == weights.words.device:
        raise ValueError(f"x is on {device}, row_widths on {row_widths.device}, the matrix on {weights.words.device}")
    why = unsupported(device, x.dtype)
    if why is not None:
        raise ValueError(f"{why}; use the operation's reference")
    asked = tuple(weights.widths if present is None else sorted(set(present)))
    if not asked or not set(asked) <= set(weights.widths):
        raise ValueError(f"present is {list(asked)}; the widths are {list(weights.widths)}")
    if out is None:
        out = x.new_empty((rows, weights.rows))
    elif out.shape != (rows, weights.rows) or not out.is_contiguous() or out.device != device:
        raise ValueError(f"out is {tuple(out.shape)}; give {(rows, weights.rows)}, contiguous and on {device}")
    if rows == 0:
        return out
    if uses_assembly is None:
        uses_assembly = not triton.knobs.runtime.interpret and torch.version.hip is None
    if tile is None:
        processors = 132 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count
        tile = default_tile(rows, weights.rows, weights.columns, processors)
    if x.stride(1) != 1:
        x = x.contiguous()
    x_scale = row_widths  # not read
    is_scaled = x.dtype == torch.bfloat16
    if is_scaled:
        narrow = x.new_empty(x.shape, dtype=torch.float16)
        x_scale = x.new_empty(rows, dtype=torch.float32)
        scale_rows[(rows,)](x, narrow, x_scale, weights.columns, x.stride(0), BLOCK=4096, num_warps=8)
        x = narrow
    splits = min(tile.splits, weights.blocks)
    made = out if splits == 1 else x.new_empty((splits, rows, weights.rows), dtype=torch.float32)
    grid = (-(-rows // tile.rows) * -(-weights.rows // tile.outputs), splits)
    nested_gemm[grid](
        x,
        row_widths,
        weights.words,
        weights.affine,
        weights.row_scale,
        x_scale,
        made,
        rows,
        weights.rows,
        weights.columns,
        x.stride(0),
        weights.plane,
        weights.groups,
        weights.blocks,
        **constants(weights, asked, tile, is_scaled=is_scaled, uses_assembly=uses_assembly),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        count = rows * weights.rows
        add_splits[(-(-count // 1024),)](made, out, count, SPLIT=splits, BLOCK=1024)
    return out


def constants(
    weights: TritonWeights,
    asked: Sequence[int],
    tile: Tile,
    *,
    is_scaled: bool,
    uses_assembly: bool,
) -> dict[str, int | bool]:
    """What the kernel is compiled for."""
    return {
        "WIDTHS": sum(1 << width for width in asked),
        "PLACES": sum(place << 4 * width for place, width in enumerate(weights.widths)),
        "GROUP": weights.group_size,
        "RAGGED": weights.columns % BLOCK != 0,
        "SCALED": is_scaled,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.outputs,
        "SWAP": tile.is_swapped,
        "ASM": uses_assembly,
    }
