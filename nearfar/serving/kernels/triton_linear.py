"""Launches the Triton kernels: checks what it is given, picks the tile, and adds up what was split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from .triton_gemm import add_splits, nested_gemm, scale_rows
from .triton_unpacking import BLOCK
from .triton_weights import TritonWeights

#: Of what the kernels compute and of what tiles mean; timings of another version are not used.
KERNEL_VERSION = 1

#: Whether Triton runs the kernels step by step, on any device: how they are tested without a GPU.
IS_INTERPRETED = not isinstance(nested_gemm, triton.JITFunction)

#: NVIDIA's first architecture with all that the kernels use.
OLDEST = 80


@dataclass(frozen=True, slots=True)
class Tile:
    """How a launch is cut up."""

    rows: int  # of x
    outputs: int
    warps: int
    stages: int  # loads in flight
    splits: int = 1  # of the columns, added up by a second kernel
    is_swapped: bool = False  # the weights are the left operand: fewer instructions from 64 rows of x on


def default_tile(
    rows: int, outputs: int, columns: int, *, capability: int = 90, processors: int = 132, is_mixed: bool = True
) -> Tile:
    """A tile for a shape that was not timed: enough programs for every multiprocessor, and no more splits than that.

    From the kernels' instruction counts (docs/kernels.md), not from timings.
    """
    tile = shapes(rows, capability=capability, is_mixed=is_mixed)[0]
    programs = -(-rows // tile.rows) * -(-outputs // tile.outputs)
    splits = 1
    while programs * splits * 2 <= 2 * processors and -(-columns // BLOCK) // (splits * 2) >= 4:
        splits *= 2
    return replace(tile, splits=splits)


def shapes(rows: int, *, capability: int, is_mixed: bool) -> tuple[Tile, ...]:
    """Tiles that compile to a kernel with all registers in place, the one with the fewest instructions first.

    Args:
        rows: of x.
        capability: of the GPU, as 90. Swapped operands are for 9.0 alone, where the weights go from registers into the
            matrix units: on 8.0 they spill, and on 10.0 Triton 3.6 compiles them to a trap.
        is_mixed: one launch may have several widths, which takes more registers.
    """
    if rows <= 16:
        found = [Tile(16, 128, 4, 4), Tile(16, 128, 8, 4)]
        return tuple(found if is_mixed else [*found, Tile(16, 128, 4, 6), Tile(16, 64, 4, 4), Tile(16, 64, 2, 4)])
    if is_mixed:
        return (Tile(32, 128, 8, 3), Tile(16, 128, 4, 4))
    small = (Tile(32, 128, 4, 3), Tile(32, 64, 4, 4), Tile(16, 128, 4, 4))
    if rows <= 32 or capability // 10 != 9:
        return small
    swapped = (Tile(64, 128, 4, 3, is_swapped=True), Tile(64, 64, 4, 4, is_swapped=True), *small[:2])
    return swapped if rows <= 64 else (Tile(128, 128, 8, 3, is_swapped=True), *swapped)


def capability_of(device: torch.device) -> int:
    """Of an NVIDIA GPU, as 90; 0 for other devices."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return int(10 * major + minor)


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels do not run on a device with inputs of a type; None where they do."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"inputs are {dtype}, and the kernels multiply in float16"
    if IS_INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the device is {device.type!r}, and the kernels run on GPUs"
    if torch.version.hip is None and capability_of(device) < OLDEST:
        return f"the GPU is of sm_{capability_of(device)}, and the kernels need sm_{OLDEST}"
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
        uses_assembly = not IS_INTERPRETED and torch.version.hip is None
    capability = capability_of(device)
    if tile is None:
        processors = torch.cuda.get_device_properties(device).multi_processor_count if capability else 132
        tile = default_tile(
            rows,
            weights.rows,
            weights.columns,
            capability=capability,
            processors=processors,
            is_mixed=len(asked) > 1,
        )
    if tile.is_swapped and capability // 10 not in (0, 9):
        raise ValueError(f"the tile is swapped, and Triton compiles no such kernel for capability {capability}")
    if x.stride(1) != 1:
        x = x.contiguous()
    row_widths = row_widths.contiguous()
    x_scale = row_widths  # not read
    is_scaled = x.dtype == torch.bfloat16
    if is_scaled:
        narrow = x.new_empty(x.shape, dtype=torch.float16)
        x_scale = x.new_empty(rows, dtype=torch.float32)
        scale_rows[(rows,)](x, narrow, x_scale, weights.columns, x.stride(0), BLOCK=4096, num_warps=8)
        x = narrow
    affine = weights.affine
    if len(asked) == 1:  # the kernel is then that of a matrix with this width alone
        affine = affine[weights.widths.index(asked[0]) * weights.groups * weights.rows :]
    splits = min(tile.splits, weights.blocks)
    made = out if splits == 1 else x.new_empty((splits, rows, weights.rows), dtype=torch.float32)
    grid = (-(-rows // tile.rows) * -(-weights.rows // tile.outputs), splits)
    nested_gemm[grid](
        x,
        row_widths,
        weights.words,
        affine,
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
        "PLACES": sum(weights.widths.index(width) << 4 * width for width in asked) if len(asked) > 1 else 0,
        "GROUP": weights.group_size,
        "RAGGED": weights.columns % BLOCK != 0,
        "SCALED": is_scaled,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.outputs,
        "SWAP": tile.is_swapped,
        "ASM": uses_assembly,
    }
