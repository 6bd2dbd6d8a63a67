"""The operation `nearfar::nested_linear`: rows of a batch through one matrix, each row at its own width.

Backends register themselves for a device; the reference here runs wherever torch does, one width after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .format import PER_BYTE, PLANE_BITS, ZERO_STEPS

#: What the operation takes. `row_widths` is int32, one width per row of `x`, on the device of `x`, so that it can be a
#: buffer of fixed place that a captured graph reads. `part_rows` are the rows of the matrices that were stacked, and
#: `ranges` has (parts, widths - 1, 4).
SCHEMA = (
    "(Tensor x, Tensor row_widths, Tensor planes, Tensor scales, Tensor zeros, Tensor refits, Tensor ranges, "
    "int[] part_rows, int[] widths, int group_size) -> Tensor"
)

_LIBRARY = torch.library.Library("nearfar", "DEF")
_LIBRARY.define("nested_linear" + SCHEMA)


def dequantize(
    planes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    refits: Tensor,
    ranges: Tensor,
    *,
    part_rows: Sequence[int],
    widths: Sequence[int],
    group_size: int,
    width: int,
    num_columns: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The matrix at `width` bits, (rows, columns), as docs/quantization.md has it."""
    rows = planes.shape[1]
    used = -(-width // PLANE_BITS)
    codes = torch.empty((rows, planes.shape[2], PER_BYTE), dtype=torch.uint8, device=planes.device)
    for place in range(PER_BYTE):
        field = (planes[0] >> PLANE_BITS * place) & 3
        for plane in range(1, used):
            field = field << PLANE_BITS | (planes[plane] >> PLANE_BITS * place) & 3
        codes[:, :, place] = field
    if width % PLANE_BITS:
        codes >>= 1
    whole = scales.float()
    slope = torch.ones_like(whole)
    offset = zeros.float() / ZERO_STEPS
    at = list(widths).index(width)
    if at < len(widths) - 1:
        shared = torch.repeat_interleave(
            ranges[:, at], torch.tensor(list(part_rows), device=ranges.device), dim=0, output_size=rows
        )
        slope = shared[:, 0:1] + shared[:, 1:2] * (refits[at] >> 4)
        offset = offset + shared[:, 2:3] + shared[:, 3:4] * (refits[at] & 15)
    step = 1 / (1 << width)
    shift = whole * (slope * (step / 2 - 0.5) + offset)
    factor = whole * slope * step
    flat = codes.view(rows, -1)[:, :num_columns]
    if num_columns % group_size == 0:
        values = flat.view(rows, -1, group_size) * factor[:, :, None] + shift[:, :, None]
        return values.view(rows, num_columns).to(dtype)
    group = torch.arange(num_columns, device=planes.device) // group_size
    return (flat * factor[:, group] + shift[:, group]).to(dtype)


def reference(
    x: Tensor,
    row_widths: Tensor,
    planes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    refits: Tensor,
    ranges: Tensor,
    part_rows: Sequence[int],
    widths: Sequence[int],
    group_size: int,
) -> Tensor:
    """The operation in torch alone, one width after the other."""
    if x.dim() != 2 or row_widths.shape != x.shape[:1]:
        raise ValueError(f"x is {tuple(x.shape)} and row_widths {tuple(row_widths.shape)}; one width per row")
    out = x.new_empty((x.shape[0], planes.shape[1]))
    wanted = row_widths.unique().tolist()
    if not set(wanted) <= set(widths):
        raise ValueError(f"rows ask for widths {wanted}; there are {list(widths)}")
    for width in wanted:
        matrix = dequantize(
            planes,
            scales,
            zeros,
            refits,
            ranges,
            part_rows=part_rows,
            widths=widths,
            group_size=group_size,
            width=width,
            num_columns=x.shape[1],
            dtype=x.dtype,
        )
        if len(wanted) == 1:
            return torch.nn.functional.linear(x, matrix)
        rows = (row_widths == width).nonzero()[:, 0]
        out[rows] = torch.nn.functional.linear(x[rows], matrix)
    return out


def _shape(
    x: Tensor,
    row_widths: Tensor,
    planes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    refits: Tensor,
    ranges: Tensor,
    part_rows: Sequence[int],
    widths: Sequence[int],
    group_size: int,
) -> Tensor:
    return x.new_empty((x.shape[0], planes.shape[1]))


_LIBRARY.impl("nested_linear", reference, "CompositeExplicitAutograd")
torch.library.register_fake("nearfar::nested_linear", _shape, lib=_LIBRARY)


def nested_linear(
    x: Tensor,
    row_widths: Tensor,
    planes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    refits: Tensor,
    ranges: Tensor,
    *,
    part_rows: Sequence[int],
    widths: Sequence[int],
    group_size: int,
) -> Tensor:
    """Each row of `x`, (rows, columns), times the matrix at the row's width: (rows, outputs) of x's type.

    The tensors are those of the format, for matrices that may be stacked by rows; see `SCHEMA`. A row's width must be
    one of `widths`.
    """
    return torch.ops.nearfar.nested_linear(
        x, row_widths, planes, scales, zeros, refits, ranges, list(part_rows), list(widths), group_size
    )
