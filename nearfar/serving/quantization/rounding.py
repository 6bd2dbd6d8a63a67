"""Chooses one code for each weight that serves every width at once, by what the layer's inputs make of the errors.

Every width keeps a copy of the matrix that makes up for its own errors so far, column by column as in GPTQ; a code is
the one whose tops are together nearest to all of them. Between two passes, the scales and offsets of every width are
fitted anew to the codes, which is the alternation of AnyBCQ with a second-order objective.

Source: Frantar et al. 2022, arXiv:2210.17323 (GPTQ), for the columns and the Cholesky factor; Park et al. 2025,
arXiv:2510.10467 (AnyBCQ), for the alternation; the joint choice is ours, see docs/decisions/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .format import REFIT_STEPS, ZERO_STEPS, NestedWeights, check_widths

#: How much an error counts at each width; a code is moved out of its cell for a narrow width's sake where that takes
#: more off this sum than it adds. Chosen by reasoning and one random matrix, not tuned on text.
EMPHASIS = {1: 0.004, 2: 0.016, 3: 0.06, 4: 1.0, 5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0}

#: Passes over the columns, with a fit before the first and after each.
PASSES = 1

#: Added to the diagonal, in parts of its mean; GPTQ's default.
_DAMPING = 0.01

#: Shares of the range of a group's weights that are tried as its range.
_SHRINKS = tuple(1 - 0.04 * step for step in range(11))

#: Of a weight: a group's range, at most twice as much, is a float16.
_LARGEST = 32_000.0

#: Columns whose errors are passed on together.
_BLOCK = 64

#: How strongly a fit holds on to what was before, in parts of the diagonal.
_RIDGE = 1e-3

#: Bytes of the largest intermediate of a fit.
_FIT_BYTES = 64 << 20


@dataclass(slots=True)
class _Grid:
    """What the codes of a matrix are worth: scales and offsets, each in float32 of shape (widths, rows, groups)."""

    scales: Tensor  # (rows, groups)
    zeros: Tensor  # (rows, groups), whole numbers
    refits: Tensor  # (widths - 1, rows, groups), bytes
    ranges: Tensor  # (widths - 1, 4)

    def affine(self, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Slope of the levels and offset, both in weights: (widths, rows, groups)."""
        slopes, offsets = [], []
        for place in range(len(widths)):
            slope, offset = torch.ones_like(self.scales), self.zeros / ZERO_STEPS
            if place < len(widths) - 1:
                base, step, base_offset, step_offset = self.ranges[place]
                slope = base + step * (self.refits[place] >> 4)
                offset = offset + base_offset + step_offset * (self.refits[place] & 15)
            slopes.append(self.scales * slope)
            offsets.append(self.scales * offset)
        return torch.stack(slopes), torch.stack(offsets)


def round_matrix(
    weight: Tensor,
    second_moments: Tensor | None,
    *,
    widths: Sequence[int],
    group_size: int,
    emphasis: Callable[[int], float] = EMPHASIS.__getitem__,
    passes: int = PASSES,
) -> NestedWeights:
    """The nested planes of a matrix.

    Args:
        weight: shape (num_rows, num_columns).
        second_moments: of the layer's inputs, the sum of x·xᵀ, shape (num_columns, num_columns); None: as if the
            inputs were independent and alike.
        widths: ascending, each in 1 to 8.
        group_size: columns that share a scale.
        emphasis: how much an error counts, by width.
        passes: over the columns.

    Raises:
        ValueError: the widths are none, or the weights or moments are not finite.
    """
    check_widths(widths)
    num_columns = weight.shape[1]
    padding = -num_columns % group_size
    matrix = torch.nn.functional.pad(weight.detach().float(), (0, padding))
    moments = torch.eye(num_columns) if second_moments is None else second_moments.detach().float()
    if not (torch.isfinite(matrix).all() and torch.isfinite(moments).all()):
        raise ValueError("weights or inputs are not finite")
    if float(matrix.abs().max()) > _LARGEST:
        raise ValueError(f"a weight is larger than {_LARGEST:.0f}, which the format does not hold")
    moments = torch.nn.functional.pad(moments, (0, padding, 0, padding))
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean().clamp(min=1e-12))
    weighing = torch.tensor([emphasis(width) for width in widths])
    grid, codes = _start(matrix, moments.diagonal(), widths, group_size, weighing)
    second_order = second_moments is not None
    for _ in range(passes if second_order else 1):
        if second_order:
            codes = _one_pass(matrix, moments, grid, widths, group_size, weighing)
        grid = _fit(matrix, moments, codes, grid, widths, group_size)
    return NestedWeights.from_codes(
        codes[:, :num_columns].to(torch.uint8).numpy(),
        scales=grid.scales.to(torch.float16).numpy(),
        zeros=grid.zeros.to(torch.int8).numpy(),
        refits=grid.refits.to(torch.uint8).numpy(),
        ranges=grid.ranges.numpy().astype(np.float32),
        widths=widths,
        group_size=group_size,
    )


def output_error(weight: Tensor, approximation: Tensor, second_moments: Tensor) -> float:
    """The summed squared error of the layer's outputs over that of its outputs; 0 is exact."""
    error = weight - approximation
    return float(((error @ second_moments) * error).sum() / ((weight @ second_moments) * weight).sum())


def _levels(codes: Tensor, width: int, top: int) -> Tensor:
    """What codes of `top` bits stand for at `width` bits, in a group's range: in -½ to ½."""
    return ((codes >> (top - width)).float() + 0.5) / (1 << width) - 0.5


def _start(
    matrix: Tensor, importance: Tensor, widths: Sequence[int], group_size: int, weighing: Tensor
) -> tuple[_Grid, Tensor]:
    """Ranges that lose least where each weight is rounded by itself, and the codes that it is rounded to."""
    top = widths[-1]
    rows, columns = matrix.shape
    grouped = matrix.view(rows, -1, group_size)
    weight_of = importance.view(1, -1, group_size)
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    best_error = torch.full(low.shape, torch.inf)
    best_scales, best_zeros = torch.ones_like(low), torch.zeros_like(low)
    best_codes = torch.zeros(grouped.shape, dtype=torch.int32)
    for shrink in _SHRINKS:
        scales, zeros = _storable((high - low) * shrink / (1 - 2.0**-top), (high + low) / 2)
        codes = _nearest(grouped, scales[:, :, None], (scales * zeros / ZERO_STEPS)[:, :, None], top)
        error = torch.zeros_like(low)
        for factor, width in zip(weighing, widths, strict=True):
            value = scales[:, :, None] * (_levels(codes, width, top) + zeros[:, :, None] / ZERO_STEPS)
            error += factor * ((grouped - value).square() * weight_of).sum(2)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best_scales, best_zeros = torch.where(is_better, scales, best_scales), torch.where(is_better, zeros, best_zeros)
        best_codes = torch.where(is_better[:, :, None], codes, best_codes)
    refits, ranges = [], []
    for width in widths[:-1]:
        slope, offset = _line(_levels(best_codes, width, top), grouped, weight_of)
        packed, found = _storable_refit(slope / best_scales, offset / best_scales - best_zeros / ZERO_STEPS)
        refits.append(packed)
        ranges.append(found)
    return _grid(best_scales, best_zeros, refits, ranges), best_codes.view(rows, columns)


def _grid(scales: Tensor, zeros: Tensor, refits: Sequence[Tensor], ranges: Sequence[Tensor]) -> _Grid:
    return _Grid(
        scales,
        zeros,
        torch.stack(list(refits)) if refits else torch.zeros((0, *scales.shape), dtype=torch.int32),
        torch.stack(list(ranges)) if ranges else torch.zeros((0, 4)),
    )


def _nearest(values: Tensor, scales: Tensor, offsets: Tensor, width: int) -> Tensor:
    """The codes whose levels are nearest."""
    steps = ((values - offsets) / scales + 0.5) * (1 << width) - 0.5
    return steps.round_().clamp_(0, (1 << width) - 1).to(torch.int32)


def _storable(scales: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges and middles as the format can hold them."""
    scales = scales.clamp(2e-7, 65504.0).to(torch.float16).float()
    return scales, (middles / scales * ZERO_STEPS).round().clamp(-128, 127)


def _line(levels: Tensor, values: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of each group that lose least, weight by weight; slope 1 per range where levels do not vary."""
    total = importance.sum(2).expand(levels.shape[:2])
    mean_level = (levels * importance).sum(2) / total
    mean_value = (values * importance).sum(2) / total
    centred = levels - mean_level[:, :, None]
    spread = (centred.square() * importance).sum(2)
    slope = (centred * (values - mean_value[:, :, None]) * importance).sum(2) / spread.clamp(min=1e-20)
    span = values.amax(2) - values.amin(2)
    slope = torch.where(spread > 1e-12 * total, slope, span).clamp(min=0)
    return slope, mean_value - slope * mean_level


def _storable_refit(slopes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and offsets, both in parts of a group's range, as a byte each and the four numbers that all share."""
    halves, ranges = [], []
    for values in (slopes, offsets):
        low, high = _span(values)
        step = torch.clamp((high - low) / (REFIT_STEPS - 1), min=1e-9)
        halves.append(((values - low) / step).round().clamp(0, REFIT_STEPS - 1).to(torch.int32))
        ranges += [low, step]
    return halves[0] << 4 | halves[1], torch.stack(ranges)


def _span(values: Tensor) -> tuple[Tensor, Tensor]:
    """Between which values the steps lie: what is rarer than one in 500 on each side is cut off."""
    flat = values.flatten().sort().values
    cut = len(flat) // 500
    return flat[cut], flat[len(flat) - 1 - cut]


def _one_pass(
    matrix: Tensor, moments: Tensor, grid: _Grid, widths: Sequence[int], group_size: int, weighing: Tensor
) -> Tensor:
    """Codes, column by column, those of the strongest inputs first."""
    top, count = widths[-1], len(widths)
    rows, columns = matrix.shape
    order = moments.diagonal().argsort(descending=True)
    factor = _inverse_factor(moments[order][:, order])
    slopes, offsets = grid.affine(widths)
    group_of = (order // group_size).tolist()
    wanted = matrix[:, order].expand(count, rows, columns).clone()
    codes = torch.empty((rows, columns), dtype=torch.int32)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block, inner = wanted[:, :, start:stop], factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for at in range(stop - start):
            group = group_of[start + at]
            chosen, values = _choose(block[:, :, at], slopes[:, :, group], offsets[:, :, group], widths, weighing)
            codes[:, start + at] = chosen
            error = (block[:, :, at] - values) / inner[at, at]
            errors[:, :, at] = error
            block[:, :, at + 1 :] -= error[:, :, None] * inner[at, at + 1 :]
        if stop < columns:
            wanted[:, :, stop:] -= errors @ factor[start:stop, stop:]
    back = torch.empty_like(order)
    back[order] = torch.arange(columns)
    assert int(codes.max()) < 1 << top
    return codes[:, back]


def _choose(
    wanted: Tensor, slopes: Tensor, offsets: Tensor, widths: Sequence[int], weighing: Tensor
) -> tuple[Tensor, Tensor]:
    """The code that is nearest to what all widths want, and what it is worth at each of them.

    Tried are the code nearest to what the widest one wants, and the nearest codes in the cells to both sides of its
    own, at every narrower width.
    """
    top = widths[-1]
    nearest = _nearest(wanted[-1], slopes[-1], offsets[-1], top)
    tried = [nearest]
    for width in widths[:-1]:
        shift = top - width
        first = nearest >> shift << shift
        tried += [(first - 1).clamp(min=0), (first + (1 << shift)).clamp(max=(1 << top) - 1)]
    candidates = torch.stack(tried)  # (candidates, rows)
    values = torch.stack(
        [slopes[place] * _levels(candidates, width, top) + offsets[place] for place, width in enumerate(widths)]
    )  # (widths, candidates, rows)
    if len(tried) == 1:
        return nearest, values[:, 0]
    cost = ((wanted[:, None] - values).square() * weighing[:, None, None]).sum(0)
    best = cost.argmin(0, keepdim=True)
    return candidates.gather(0, best)[0], values.gather(1, best.expand(len(widths), 1, -1))[:, 0]


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, with as much damping as it takes."""
    damping = 0.0
    mean = float(moments.diagonal().mean())
    while True:
        damped = moments.double() + damping * mean * torch.eye(len(moments), dtype=torch.float64)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return upper.float()
        damping = max(2 * damping, _DAMPING)


def _fit(matrix: Tensor, moments: Tensor, codes: Tensor, grid: _Grid, widths: Sequence[int], group_size: int) -> _Grid:
    """Scales and offsets of every width, fitted to the codes; a width's offsets after its rounded scales."""
    top = widths[-1]
    target = matrix @ moments
    before_slopes, before_offsets = grid.affine(widths)
    before = before_slopes[-1], before_offsets[-1]
    slopes, offsets = _solve(_levels(codes, top, top), moments, target, before, group_size)
    is_sane = (slopes > 0.5 * grid.scales) & (slopes < 2 * grid.scales)
    scales, zeros = _storable(torch.where(is_sane, slopes, before[0]), torch.where(is_sane, offsets, before[1]))
    refits, ranges = [], []
    for place, width in enumerate(widths[:-1]):
        levels = _levels(codes, width, top)
        before = before_slopes[place], before_offsets[place]
        slopes, offsets = _solve(levels, moments, target, before, group_size)
        packed, found = _storable_refit(slopes / scales, offsets / scales - zeros / ZERO_STEPS)
        rounded = scales * (found[0] + found[1] * (packed >> 4))
        value = levels.view(*rounded.shape, group_size) * rounded[:, :, None]
        offsets = _solve_offsets(value.flatten(1), moments, target, offsets, group_size)
        again, found_again = _storable_refit(rounded, offsets / scales - zeros / ZERO_STEPS)
        refits.append((packed & 240) | (again & 15))
        ranges.append(torch.cat([found[:2], found_again[2:]]))
    return _grid(scales, zeros, refits, ranges)


def _by_group(moments: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The moments summed over columns of a group: (columns, groups); and over both: (groups, groups)."""
    half = moments.view(len(moments), -1, group_size).sum(2)
    return half, half.view(-1, group_size, half.shape[1]).sum(1)


def _solve(
    levels: Tensor, moments: Tensor, target: Tensor, before: tuple[Tensor, Tensor], group_size: int
) -> tuple[Tensor, Tensor]:
    """Slopes and offsets of all groups of a row together, so that the row's outputs lose least: (rows, groups) each.

    What the inputs leave open stays as it was `before`.

    Args:
        levels: of each weight, (rows, columns).
        moments: (columns, columns).
        target: the weights times the moments, (rows, columns).
        group_size: columns.
    """
    rows, columns = levels.shape
    groups = columns // group_size
    half, both = _by_group(moments, group_size)
    found = torch.empty((rows, 2 * groups))
    step = max(1, _FIT_BYTES // (4 * columns * groups))
    for start in range(0, rows, step):
        part = levels[start : start + step].view(-1, groups, group_size)
        count = len(part)
        spread = torch.einsum("chk,rhk->rch", moments.view(columns, groups, group_size), part)
        normal = torch.empty((count, 2 * groups, 2 * groups))
        normal[:, :groups, :groups] = (
            (part.reshape(count, columns, 1) * spread).view(count, groups, group_size, groups).sum(2)
        )
        cross = (part.reshape(count, columns, 1) * half).view(count, groups, group_size, groups).sum(2)
        normal[:, :groups, groups:] = cross
        normal[:, groups:, :groups] = cross.transpose(1, 2)
        normal[:, groups:, groups:] = both
        wanted = target[start : start + step].view(count, groups, group_size)
        right = torch.cat([(wanted * part).sum(2), wanted.sum(2)], 1)
        was = torch.cat([part_before[start : start + step] for part_before in before], 1)
        right -= (normal @ was[:, :, None])[:, :, 0]
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal += _RIDGE * diagonal + 1e-9 * diagonal.mean(1, keepdim=True) + 1e-30
        found[start : start + step] = was + torch.linalg.solve(normal, right)
    return found[:, :groups], found[:, groups:]


def _solve_offsets(values: Tensor, moments: Tensor, target: Tensor, before: Tensor, group_size: int) -> Tensor:
    """Offsets of all groups of a row together where the rest of each weight is `values`: (rows, groups)."""
    _, both = _by_group(moments, group_size)
    missing = (target - values @ moments).view(len(values), -1, group_size).sum(2) - before @ both
    both = both + torch.diag(_RIDGE * both.diagonal() + 1e-30)
    return before + torch.linalg.solve(both, missing.T).T
