"""A matrix in the order that the CPU kernel reads it in, and the operation `nearfar::packed_linear` on it.

The planes keep their bytes: the dwords of 16 outputs lie beside one another, so that a register is 16 outputs by 16
columns. Each plane is one stretch of memory; b bits read the first ceil(b / 2) of them and nothing of the others.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nearfar.serving.quantization import operation

from .extension import load

_TILE = 16  # outputs, and columns
_ALIGNMENT = 64
_MAGIC = 0x31305F7261666E65
_HEAD = struct.Struct("<23q")
_TYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Above this, the sum of a group's products may not fit into 32 bits: 2^16 · 255 · 127 < 2^31.
_LARGEST_GROUP = 1 << 16

_LIBRARY = torch.library.Library("nearfar", "FRAGMENT")
_LIBRARY.define("packed_linear(Tensor x, Tensor row_widths, Tensor packed, int num_outputs) -> Tensor")


def _shape(x: Tensor, row_widths: Tensor, packed: Tensor, num_outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], num_outputs))


torch.library.register_fake("nearfar::packed_linear", _shape, lib=_LIBRARY)


def is_supported(num_columns: int, group_size: int) -> bool:
    """Whether the kernel reads groups like these: of whole tiles, or one for all columns."""
    return group_size <= _LARGEST_GROUP and (group_size % _TILE == 0 or group_size >= num_columns)


def pack(
    planes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    refits: Tensor,
    ranges: Tensor,
    *,
    part_rows: Sequence[int],
    widths: Sequence[int],
    group_size: int,
    num_columns: int,
) -> Tensor:
    """All of a matrix in one tensor of bytes, in the kernel's order; the arguments are the operation's.

    Raises:
        ValueError: the kernel cannot read groups of this size.
    """
    if not is_supported(num_columns, group_size):
        raise ValueError(f"group_size is {group_size!r}; the CPU kernel reads multiples of {_TILE}")
    lower, parts = len(widths) - 1, len(part_rows)
    num_planes = -(-widths[-1] // 2)
    tiles = -(-num_columns // _TILE)
    group_tiles = min(-(-group_size // _TILE), tiles)
    groups = -(-tiles // group_tiles)
    part_blocks = [-(-rows // _TILE) for rows in part_rows]
    blocks = sum(part_blocks)
    places, block, row = [], 0, 0
    for rows, count in zip(part_rows, part_blocks, strict=True):
        places += [block, row]
        block, row = block + count, row + rows
    places += [block, row]

    sizes = [8 * len(places), 16 * parts * lower]
    sizes += [num_planes * blocks * tiles * 64, 2 * blocks * groups * _TILE, blocks * groups * _TILE]
    sizes += [lower * blocks * groups * _TILE]
    at, end = [], -(-_HEAD.size // _ALIGNMENT) * _ALIGNMENT
    for size in sizes:
        at.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    packed = torch.zeros(end, dtype=torch.uint8)

    def into(place: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        return packed[at[place] : at[place] + sizes[place]].view(dtype).view(*shape)

    head = _HEAD.pack(
        _MAGIC, end, row, num_columns, group_tiles, groups, len(widths), parts, blocks, *at, *widths,
        *[0] * (8 - len(widths)),
    )  # fmt: skip
    packed[: _HEAD.size] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    into(0, torch.int64, (len(places),)).copy_(torch.tensor(places))
    into(1, torch.float32, (parts, lower, 4)).copy_(ranges)
    to_planes = into(2, torch.int32, (num_planes, blocks, tiles, _TILE))
    to_scales = into(3, torch.float16, (blocks, groups, _TILE))
    to_zeros = into(4, torch.int8, (blocks, groups, _TILE))
    to_refits = into(5, torch.uint8, (lower, blocks, groups, _TILE))
    first = block = 0
    for rows, count in zip(part_rows, part_blocks, strict=True):
        here, there = slice(first, first + rows), slice(block, block + count)
        codes = planes[:num_planes, here]
        whole = codes.new_zeros((num_planes, count * _TILE, tiles * 4))
        whole[:, :rows, : codes.shape[2]] = codes
        to_planes[:, there] = whole.view(torch.int32).view(num_planes, count, _TILE, tiles).transpose(2, 3)
        to_scales[there] = _blocked(scales[here], count)
        to_zeros[there] = _blocked(zeros[here], count)
        for place in range(lower):
            to_refits[place, there] = _blocked(refits[place, here], count)
        first, block = first + rows, block + count
    return packed


def _blocked(values: Tensor, blocks: int) -> Tensor:
    """(rows, groups) as (blocks, groups, 16), with zeros below."""
    whole = values.new_zeros((blocks * _TILE, values.shape[1]))
    whole[: len(values)] = values
    return whole.view(blocks, _TILE, -1).transpose(1, 2)


def packed_linear(x: Tensor, row_widths: Tensor, packed: Tensor, *, num_outputs: int) -> Tensor:
    """Each row of `x`, (rows, columns), times a packed matrix at the row's width: (rows, num_outputs) of x's type.

    A row is rounded to int8 first, each group of columns in steps of its largest magnitude over 127. A row's result
    does not depend on the other rows, to the last bit. A row with a NaN or an infinity is NaN throughout. `load` must
    have been called.

    Raises:
        RuntimeError: the tensors do not fit together, or a row asks for a width that was not stored.
    """
    return torch.ops.nearfar.packed_linear(x, row_widths, packed, num_outputs)


@cache
def install() -> torch.library.Library:
    """Makes the kernel the backend of `nearfar::nested_linear` on CPUs; what it cannot read stays with the reference.

    A matrix is packed when it is first read, which doubles its memory, and kept packed for as long as its planes live
    and none of its tensors is written to. Who owns the tensors calls `pack` and `packed_linear`, and lets them go.

    Raises:
        ConfigError: the kernel cannot run here; the reference stays.
    """
    load()
    library = torch.library.Library("nearfar", "IMPL")
    packed_by_planes = WeakTensorKeyDictionary()

    def run(
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
        tensors = (planes, scales, zeros, refits, ranges)
        is_fitting = x.dim() == 2 and x.dtype in _TYPES and is_supported(x.shape[1], group_size)
        if not is_fitting or any(tensor.is_inference() for tensor in tensors):  # whose changes nobody can see
            return operation.reference(x, row_widths, *tensors, part_rows, widths, group_size)
        state = (
            *((tensor.data_ptr(), tensor._version) for tensor in tensors),
            tuple(part_rows),
            tuple(widths),
            group_size,
        )
        known = packed_by_planes.get(planes)
        if known is None or known[0] != (state, x.shape[1]):
            packed = pack(*tensors, part_rows=part_rows, widths=widths, group_size=group_size, num_columns=x.shape[1])
            known = packed_by_planes[planes] = ((state, x.shape[1]), packed)
        return packed_linear(x, row_widths, known[1], num_outputs=planes.shape[1])

    library.impl("nested_linear", run, "CPU")
    return library
