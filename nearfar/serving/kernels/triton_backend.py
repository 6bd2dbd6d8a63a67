"""The Triton kernels as the backend of `nearfar::nested_linear` on CUDA devices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nearfar.serving.quantization import operation

from .triton_linear import nested_matmul, unsupported
from .triton_tuning import TileCache, gpu_name
from .triton_weights import TritonWeights, refusal, repack

_LIBRARY = torch.library.Library("nearfar", "FRAGMENT")
_LIBRARY.define(
    "blocked_linear(Tensor x, Tensor row_widths, Tensor words, Tensor affine, Tensor row_scale, int[] widths, "
    "int group_size) -> Tensor"
)


def _shape(
    x: Tensor,
    row_widths: Tensor,
    words: Tensor,
    affine: Tensor,
    row_scale: Tensor,
    widths: Sequence[int],
    group_size: int,
) -> Tensor:
    return x.new_empty((x.shape[0], row_scale.shape[0]))


torch.library.register_fake("nearfar::blocked_linear", _shape, lib=_LIBRARY)


def _run(
    x: Tensor,
    row_widths: Tensor,
    words: Tensor,
    affine: Tensor,
    row_scale: Tensor,
    widths: Sequence[int],
    group_size: int,
) -> Tensor:
    weights = TritonWeights(words, affine, row_scale, tuple(widths), group_size, len(row_scale), x.shape[1])
    return nested_matmul(x, row_widths, weights, tile=_tiles(x.device).find(weights, len(x), widths))


_LIBRARY.impl("blocked_linear", _run, "CompositeExplicitAutograd")


def blocked_linear(x: Tensor, row_widths: Tensor, weights: TritonWeights) -> Tensor:
    """`nested_matmul` at the tile that was timed for the shape, as one operation that torch.compile leaves alone."""
    return torch.ops.nearfar.blocked_linear(
        x, row_widths, weights.words, weights.affine, weights.row_scale, list(weights.widths), weights.group_size
    )


@cache
def install() -> torch.library.Library:
    """Makes the kernels the backend of `nearfar::nested_linear` on CUDA devices; see `linear`."""
    library = torch.library.Library("nearfar", "IMPL")
    library.impl("nested_linear", linear, "CUDA")
    return library


def linear(
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
    """The operation by the kernels; by its reference, with one warning, where they do not read the matrix or the input.

    A matrix is repacked when it is first read, which doubles its memory, and kept for as long as its planes live and
    none of its tensors is written to. Who owns the tensors calls `repack` and `blocked_linear`, and lets them go. A row
    of a width that is not stored is NaN, since to look at the widths would be to wait for the device.
    """
    tensors = (planes, scales, zeros, refits, ranges)
    if x.dim() != 2 or row_widths.shape != x.shape[:1]:
        raise ValueError(f"x is {tuple(x.shape)} and row_widths {tuple(row_widths.shape)}; one width per row")
    columns = x.shape[1]
    why = unsupported(x.device, x.dtype) or refusal(
        widths=widths, group_size=group_size, rows=planes.shape[1], columns=columns
    )
    if why is None and any(tensor.is_inference() for tensor in tensors):
        why = "the weights are inference tensors, whose changes nobody can see"
    if why is not None:
        _warn(why)
        return operation.reference(x, row_widths, *tensors, part_rows, widths, group_size)
    state = (
        *((tensor.data_ptr(), tensor._version) for tensor in tensors),
        tuple(part_rows),
        tuple(widths),
        group_size,
        columns,
    )
    known = _REPACKED.get(planes)
    if known is None or known[0] != state:
        weights = repack(*tensors, part_rows=part_rows, widths=widths, group_size=group_size, columns=columns)
        known = _REPACKED[planes] = (state, weights)
    return blocked_linear(x, row_widths.to(torch.int32), known[1])


_REPACKED = WeakTensorKeyDictionary()


@cache
def _tiles(device: torch.device, folder: Path | None = None) -> TileCache:
    """What was timed on the device's kind of GPU."""
    return TileCache.open(gpu_name(device), folder)


@cache
def _warn(why: str) -> None:
    warnings.warn(f"nested planes are read by the slow reference: {why}", RuntimeWarning, stacklevel=3)
