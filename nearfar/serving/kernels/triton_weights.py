"""A matrix as the Triton kernels read it, made once from the tensors of the format.

Knows the format by `docs/quantization.md` and nothing else of nearfar, so that a machine with torch and Triton alone
can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .triton_unpacking import BLOCK, FIELDS, UNPACKED_EXPONENT, WORDS, position

#: Rows that a tile may read past a matrix's last one; what they make is not written.
SLACK = 256


@dataclass(frozen=True, slots=True)
class TritonWeights:
    """The planes in blocks of 128 columns, and for each width and group a factor and an addend.

    A weight of group g in row n is, at b bits, row_scale[n] · factor · (2^-5 · q / 2^b + addend).
    """

    words: Tensor  # int16, (planes, blocks, rows, 16) one after the other, and slack
    affine: Tensor  # int32, (widths, groups, rows) and slack: factor in the lower half, addend in the upper, as float16
    row_scale: Tensor  # float32, (rows,)
    widths: tuple[int, ...]  # ascending
    group_size: int
    rows: int
    columns: int

    @property
    def blocks(self) -> int:
        """Of 128 columns; the last one is filled up."""
        return -(-self.columns // BLOCK)

    @property
    def groups(self) -> int:
        """Of a row, with those that fill up its last block."""
        return self.blocks * max(1, BLOCK // self.group_size) // max(1, self.group_size // BLOCK) + (
            self.blocks % max(1, self.group_size // BLOCK) > 0
        )

    @property
    def plane(self) -> int:
        """Words of a plane."""
        return self.blocks * self.rows * WORDS

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.words, self.affine, self.row_scale))

    def read_bytes(self, width: int) -> int:
        """Of what is read at `width` bits: planes, factors and addends."""
        return 2 * self.plane * -(-width // 2) + 4 * self.groups * self.rows + 4 * self.rows


def refusal(*, widths: Sequence[int], group_size: int, rows: int, columns: int) -> str | None:
    """Why no kernel reads such a matrix; None where one does."""
    if group_size < WORDS or (BLOCK % group_size and group_size % BLOCK):
        return f"groups of {group_size!r} columns are not 16, 32, 64 or a multiple of 128"
    if rows < 1 or columns < 1:
        return f"a matrix of {rows} rows and {columns} columns is empty"
    if not widths or list(widths) != sorted(set(widths)) or not 1 <= widths[0] <= widths[-1] <= 8:
        return f"widths are {list(widths)!r}, not some of 1 to 8, ascending"
    if max(rows + SLACK, 128) * (columns + BLOCK) // 8 * -(-widths[-1] // 2) >= 1 << 31:
        return f"a matrix of {rows} rows and {columns} columns has more words than 32 bits count"
    return None


def repack(
    planes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    refits: Tensor,
    ranges: Tensor,
    *,
    part_rows: Sequence[int],
    widths: Sequence[int],
    group_size: int,
    columns: int,
) -> TritonWeights:
    """The matrix of the format's tensors, which are those of the operation; takes no more planes than are stored.

    Raises:
        ValueError: no kernel reads it; the reason is `refusal`'s.
    """
    rows = planes.shape[1]
    why = refusal(widths=widths, group_size=group_size, rows=rows, columns=columns)
    if why is not None:
        raise ValueError(f"{why}; use the operation's reference")
    blocks = -(-columns // BLOCK)
    made = TritonWeights(
        words=planes.new_zeros(len(planes) * blocks * rows * WORDS + SLACK * WORDS, dtype=torch.int16),
        affine=planes.new_zeros(0, dtype=torch.int32),
        row_scale=planes.new_zeros(0, dtype=torch.float32),
        widths=tuple(widths),
        group_size=group_size,
        rows=rows,
        columns=columns,
    )
    for plane in range(len(planes)):
        made.words[plane * made.plane : (plane + 1) * made.plane] = _words(planes[plane], plane, columns).flatten()
    affine, row_scale = _affine(scales, zeros, refits, ranges, part_rows=part_rows, widths=widths)
    kept = affine.new_zeros(len(widths) * made.groups * rows + SLACK, dtype=torch.int32)
    kept[:-SLACK].view(len(widths), made.groups, rows)[:, : affine.shape[1]] = affine
    return TritonWeights(made.words, kept, row_scale, made.widths, group_size, rows, columns)


def _words(plane: Tensor, number: int, columns: int) -> Tensor:
    """(blocks, rows, 16) of int16: field j of word r of a block is its column 16 j + r."""
    rows, blocks = plane.shape[0], -(-columns // BLOCK)
    fields = torch.stack([(plane >> 2 * place) & 3 for place in range(4)], dim=2).view(rows, -1)
    filled = fields.new_zeros((rows, blocks * BLOCK))
    filled[:, : min(columns, fields.shape[1])] = fields[:, :columns]
    in_blocks = filled.view(rows, blocks, FIELDS, WORDS)
    words = torch.zeros((rows, blocks, WORDS), dtype=torch.int32, device=plane.device)
    for field in range(FIELDS):
        words |= in_blocks[:, :, field].to(torch.int32) << position(number, field)
    return words.to(torch.int16).transpose(0, 1)


def _affine(
    scales: Tensor, zeros: Tensor, refits: Tensor, ranges: Tensor, *, part_rows: Sequence[int], widths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Factor and addend of each width and group as one int32, (widths, groups, rows), and the rows' scales.

    The docs have a weight as S · (A · ((q + ½) / 2^b - ½) + Z / 256 + C): that is F · (q / 2^b + R) with F = S · A and
    R = (A · (2^-(b+1) - ½) + Z / 256 + C) / A. Where |R| would be above 2^12, F is raised to what makes it 2^12, which
    changes the weight by 2^-12 of itself.
    """
    whole = scales.double()
    middle = zeros.double() / 256
    part = torch.repeat_interleave(
        torch.arange(len(part_rows), device=scales.device),
        torch.tensor(list(part_rows), device=scales.device),
        output_size=len(scales),
    )
    factors, shifts = [], []
    for place, width in enumerate(widths):
        slope, offset = torch.ones_like(whole), middle
        if place < len(widths) - 1:
            shared = ranges[part, place].double()
            slope = shared[:, 0:1] + shared[:, 1:2] * (refits[place] >> 4)
            offset = middle + shared[:, 2:3] + shared[:, 3:4] * (refits[place] & 15)
        factors.append(whole * slope)
        shifts.append(whole * (slope * (0.5 ** (width + 1) - 0.5) + offset))
    factor, shift = torch.stack(factors), torch.stack(shifts)
    factor = torch.where(shift.abs() > 4096 * factor.abs(), shift / 4096, factor)
    largest = factor.abs().amax(dim=(0, 2))
    exponent = torch.where(largest > 0, torch.ceil(torch.log2(largest)), torch.zeros_like(largest))
    unit = torch.exp2(exponent)
    # Factors are at most 2^10 after this, so that small ones beside a large one are no subnormal numbers.
    kept = (factor / unit[:, None] * 1024).half()
    # The addend makes up for the factor's rounding, so that a whole group is not off to one side.
    actual = kept.double() / 1024 * unit[:, None]
    addend = torch.where(actual != 0, shift / actual, torch.zeros_like(shift)) * 2.0**UNPACKED_EXPONENT
    both = (kept.view(torch.int16).to(torch.int32) & 0xFFFF) | (addend.half().view(torch.int16).to(torch.int32) << 16)
    return both.transpose(1, 2).contiguous(), (unit / 1024 * 2.0**-UNPACKED_EXPONENT).float()
