"""The Triton kernels as the backend of `nearfar::nested_linear` on CUDA devices."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
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
    if why is None and not _is_capturing(x) and not agrees(x.device, x.dtype, tuple(widths), group_size):
        why = f"on {x.device} the kernels do not give what the reference gives; please report it"
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
def agrees(
    device: torch.device,
    dtype: torch.dtype,
    widths: tuple[int, ...],
    group_size: int,
    multiply: Callable[[Tensor, Tensor, TritonWeights], Tensor] = nested_matmul,
) -> bool:
    """Whether the kernels give what float64 gives, on a small random matrix with few and with many rows.

    Asked once before they are trusted with a kind of matrix: a compiler or a GPU that no test ran with may be wrong.
    """
    random = torch.Generator().manual_seed(0)
    rows, columns = 40, 2 * max(128, group_size)
    groups, lower = columns // group_size, len(widths) - 1
    planes = torch.randint(0, 256, (-(-widths[-1] // 2), rows, columns // 4), generator=random, dtype=torch.uint8)
    scales = torch.rand((rows, groups), generator=random).half() + 0.5
    zeros = torch.randint(-20, 20, (rows, groups), generator=random, dtype=torch.int8)
    refits = torch.randint(0, 256, (lower, rows, groups), generator=random, dtype=torch.uint8)
    ranges = torch.tensor([[[0.8, 0.02, -0.02, 0.002]] * lower]).view(1, lower, 4)
    tensors = (planes, scales, zeros, refits, ranges)
    weights = repack(
        *(tensor.to(device) for tensor in tensors),
        part_rows=[rows],
        widths=widths,
        group_size=group_size,
        columns=columns,
    )
    exact = {
        width: operation.dequantize(
            *tensors,
            part_rows=[rows],
            widths=widths,
            group_size=group_size,
            width=width,
            num_columns=columns,
            dtype=torch.float64,
        )
        for width in widths
    }
    for count in (5, 20):
        x = torch.randn((count, columns), generator=random).to(dtype)
        asked = [widths[row % len(widths)] for row in range(count)]
        made = multiply(x.to(device), torch.tensor(asked, dtype=torch.int32, device=device), weights).double().cpu()
        for row, width in enumerate(asked):
            off = (made[row] - exact[width] @ x[row].double()).abs()
            # Of the sum of the magnitudes: float16 keeps 11 bits, bfloat16 8.
            allowed = (2e-3 if dtype == torch.float16 else 8e-3) * (exact[width].abs() @ x[row].double().abs())
            if not bool((off <= allowed).all()):
                return False
    return True


def _is_capturing(x: Tensor) -> bool:
    """Whether a graph is being captured, in which nothing may wait for the device."""
    return bool(x.is_cuda and torch.cuda.is_current_stream_capturing())


@cache
def _tiles(device: torch.device, folder: Path | None = None) -> TileCache:
    """What was timed on the device's kind of GPU."""
    return TileCache.open(gpu_name(device), folder)


@cache
def _warn(why: str) -> None:
    warnings.warn(f"nested planes are read by the slow reference: {why}", RuntimeWarning, stacklevel=3)
