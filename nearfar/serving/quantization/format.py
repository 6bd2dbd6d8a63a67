"""The nested bit-plane format: what one weight matrix is stored as, and what it is worth at each width.

Knows nothing of files, models or torch. `docs/quantization.md` is the specification; this is its reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import DataError

#: The tensors of one matrix, by the last part of their names.
TENSORS = ("planes", "scales", "zeros", "refits", "ranges")

#: Bits of a plane, and weights of one byte of it.
PLANE_BITS, PER_BYTE = 2, 4

#: Steps of a refit's scale, and of its offset: each has half a byte.
REFIT_STEPS = 16

#: The steps of `zeros` in a group's range.
ZERO_STEPS = 256


@dataclass(frozen=True, slots=True)
class NestedWeights:
    """One matrix of shape (num_rows, num_columns), at every width in `widths`.

    With b a width, B the largest one and q the b-bit code, a weight of group g in row n is worth

        scales[n, g] · (A · ((q + ½) / 2^b - ½) + zeros[n, g] / 256 + C)

    with A = 1 and C = 0 where b = B; else A = a + α·hi and C = c + γ·lo, where (a, α, c, γ) = ranges[i], hi and lo are
    the halves of the byte refits[i, n, g], and i is the place of b in `widths`.
    """

    planes: NDArray[np.uint8]  # (ceil(B / 2), num_rows, ceil(num_columns / 4)): plane p has bits 7-2p and 6-2p
    scales: NDArray[np.float16]  # (num_rows, num_groups): the range of a group
    zeros: NDArray[np.int8]  # (num_rows, num_groups): the range's middle, in 1/256 of it
    refits: NDArray[np.uint8]  # (len(widths) - 1, num_rows, num_groups)
    ranges: NDArray[np.float32]  # (len(widths) - 1, 4)
    widths: tuple[int, ...]  # ascending, each in 1 to 8
    group_size: int  # columns; the last group of a row may be shorter
    num_columns: int

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not fit together."""
        check_widths(self.widths)
        expected = shapes(
            self.planes.shape[1] if self.planes.ndim == 3 else 0,
            self.num_columns,
            widths=self.widths,
            group_size=self.group_size,
        )
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name!r} is {array.dtype} of shape {array.shape}; {dtype} of shape {shape} belongs there"
                )

    @classmethod
    def from_codes(
        cls,
        codes: NDArray[np.uint8],
        *,
        scales: NDArray[np.float16],
        zeros: NDArray[np.int8],
        refits: NDArray[np.uint8],
        ranges: NDArray[np.float32],
        widths: Sequence[int],
        group_size: int,
    ) -> NestedWeights:
        """Packs codes of the largest width, shape (num_rows, num_columns)."""
        top = widths[-1]
        if codes.size and int(codes.max()) >> top:
            raise ValueError(f"a code is {int(codes.max())}; {top} bits hold less than {1 << top}")
        return cls(
            planes=pack(codes, top),
            scales=scales,
            zeros=zeros,
            refits=refits,
            ranges=ranges,
            widths=tuple(widths),
            group_size=group_size,
            num_columns=codes.shape[1],
        )

    @property
    def num_rows(self) -> int:
        """Outputs of the layer."""
        return int(self.planes.shape[1])

    @property
    def num_bytes(self) -> int:
        """Of all that is stored."""
        return sum(getattr(self, name).nbytes for name in TENSORS)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What is written, by the last part of its name."""
        return {name: getattr(self, name) for name in TENSORS}

    def codes(self, width: int) -> NDArray[np.uint8]:
        """The codes of `width` bits: the top bits of every wider code. Reads the first ceil(width / 2) planes."""
        self._place(width)
        return unpack(self.planes, width, self.num_columns)

    def at(self, width: int) -> NDArray[np.float32]:
        """The matrix at `width` bits, shape (num_rows, num_columns)."""
        scale, offset = self.affine(width)
        group = np.arange(self.num_columns) // self.group_size
        return self.codes(width) * scale[:, group] + offset[:, group]

    def affine(self, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and offset of each group, so that a weight is scale · code + offset; both (num_rows, num_groups)."""
        scales = self.scales.astype(np.float32)
        zeros = self.zeros.astype(np.float32) / np.float32(ZERO_STEPS)
        slope = np.ones_like(scales)
        place = self._place(width)
        if place < len(self.widths) - 1:
            base, step, base_offset, step_offset = self.ranges[place]
            slope = base + step * (self.refits[place] >> 4).astype(np.float32)
            zeros = zeros + base_offset + step_offset * (self.refits[place] & 15).astype(np.float32)
        step = np.float32(1 / (1 << width))
        return scales * slope * step, scales * (slope * (step / 2 - np.float32(0.5)) + zeros)

    def _place(self, width: int) -> int:
        if width not in self.widths:
            raise ValueError(f"{width!r} bits were not stored; there are {', '.join(map(str, self.widths))}")
        return self.widths.index(width)


def check_widths(widths: Sequence[int]) -> None:
    """Raises ValueError unless the widths ascend, each in 1 to 8."""
    if not widths or list(widths) != sorted(set(widths)) or not 1 <= widths[0] <= widths[-1] <= 8:
        raise ValueError(f"widths are {list(widths)!r}; give one or more of 1 to 8, ascending")


def num_groups(num_columns: int, group_size: int) -> int:
    """Groups of a row; the last one may be shorter."""
    return -(-num_columns // group_size)


def shapes(
    num_rows: int, num_columns: int, *, widths: Sequence[int], group_size: int
) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each tensor of a matrix."""
    groups, lower = num_groups(num_columns, group_size), len(widths) - 1
    return {
        "planes": (
            (-(-widths[-1] // PLANE_BITS), num_rows, -(-num_columns // PER_BYTE)),
            np.dtype(np.uint8),
        ),
        "scales": ((num_rows, groups), np.dtype(np.float16)),
        "zeros": ((num_rows, groups), np.dtype(np.int8)),
        "refits": ((lower, num_rows, groups), np.dtype(np.uint8)),
        "ranges": ((lower, 4), np.dtype(np.float32)),
    }


def pack(codes: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Planes of two bits, the top bits first.

    Args:
        codes: shape (num_rows, num_columns), below 2^width.
        width: of the codes.

    Returns:
        Shape (ceil(width / 2), num_rows, ceil(num_columns / 4)). Byte i of a row has columns 4i to 4i+3, the first in
        its lowest two bits; what is left of the last byte is 0.
    """
    num_rows, num_columns = codes.shape
    padded = np.zeros((num_rows, -(-num_columns // PER_BYTE) * PER_BYTE), dtype=np.uint8)
    padded[:, :num_columns] = codes << (8 - width)
    fields = padded.reshape(num_rows, -1, PER_BYTE)
    shifts = np.arange(PER_BYTE, dtype=np.uint8) * PLANE_BITS
    planes = [
        np.bitwise_or.reduce(((fields >> (6 - PLANE_BITS * plane)) & 3) << shifts, axis=2)
        for plane in range(-(-width // PLANE_BITS))
    ]
    return np.stack(planes).astype(np.uint8)


def unpack(planes: NDArray[np.uint8], width: int, num_columns: int) -> NDArray[np.uint8]:
    """Codes of `width` bits, shape (num_rows, num_columns), from the first ceil(width / 2) planes."""
    shifts = np.arange(PER_BYTE, dtype=np.uint8) * PLANE_BITS
    codes = np.zeros((*planes.shape[1:], PER_BYTE), dtype=np.uint8)
    for plane in range(-(-width // PLANE_BITS)):
        codes |= ((planes[plane][:, :, None] >> shifts) & 3) << (6 - PLANE_BITS * plane)
    flat = codes.reshape(planes.shape[1], -1)[:, :num_columns]
    return np.ascontiguousarray(flat >> (8 - width))


def from_tensors(
    tensors: Mapping[str, NDArray[Any]], *, name: str, widths: Sequence[int], group_size: int, num_columns: int
) -> NestedWeights:
    """The matrix of a checkpoint's tensors.

    Raises:
        DataError: a tensor is missing or has another shape or type than the matrix's others ask for, or a scale is
            not finite; `name` is the matrix's.
    """
    missing = [part for part in TENSORS if part not in tensors]
    if missing:
        raise DataError(f"{name!r} has no {missing[0]!r}; the checkpoint is incomplete, quantize the model again.")
    try:
        weights = NestedWeights(
            **{part: tensors[part] for part in TENSORS},
            widths=tuple(widths),
            group_size=group_size,
            num_columns=num_columns,
        )
    except ValueError as exc:
        raise DataError(f"{name!r} does not fit its config: {exc}. Quantize the model again.") from exc
    if not (np.isfinite(weights.scales).all() and np.isfinite(weights.ranges).all()):
        raise DataError(f"{name!r} has scales that are not finite; the checkpoint is damaged, fetch it again.")
    return weights
