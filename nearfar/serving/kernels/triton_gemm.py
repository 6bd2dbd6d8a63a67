# ruff: noqa: N803, N806, SIM102, SIM108 -- Triton's own: capitals for sizes, an if that the compiler decides
"""The Triton kernels: rows of a batch through one matrix of nested planes, each row at its own width.

Needs Triton alone. `triton_weights` makes what is read here; `triton_tuning` chooses the tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_unpacking import FIELDS, assembly, constraints

_ASSEMBLY = tl.constexpr(
    tuple(assembly(width, field) if width else "" for width in range(9) for field in range(FIELDS))
)
_CONSTRAINTS = tl.constexpr(tuple(constraints(width) for width in range(9)))


@triton.jit
def _swapped(word):
    """The word with its two bytes swapped."""
    return ((word >> 8) & 0xFF) | (word << 8)


@triton.jit
def _unpacked(p0, p1, p2, p3, addend, W: tl.constexpr, J: tl.constexpr, ASM: tl.constexpr):
    """Field J of the words at W bits, in float16: 2^-5 · q / 2^W + addend."""
    if ASM:
        text: tl.constexpr = _ASSEMBLY[W * 8 + J]
        operands: tl.constexpr = _CONSTRAINTS[W]
        if W <= 2:
            made = tl.inline_asm_elementwise(text, operands, [p0, addend], dtype=tl.float16, is_pure=True, pack=2)
        elif W <= 4:
            made = tl.inline_asm_elementwise(text, operands, [p0, p1, addend], dtype=tl.float16, is_pure=True, pack=2)
        elif W <= 6:
            made = tl.inline_asm_elementwise(
                text, operands, [p0, p1, p2, addend], dtype=tl.float16, is_pure=True, pack=2
            )
        else:
            made = tl.inline_asm_elementwise(
                text, operands, [p0, p1, p2, p3, addend], dtype=tl.float16, is_pure=True, pack=2
            )
    else:
        # The same steps in plain Triton, for the interpreter and for other vendors.
        if J >= 4:
            s2, s3 = p2, p3
            p0, p1, p2, p3 = _swapped(p0), _swapped(p1), _swapped(p2), _swapped(p3)
        else:
            s2, s3 = _swapped(p2), _swapped(p3)
        high = p0 & ((3 if W >= 2 else 2) << (2 * (J % 4) + 2))
        low = p0 & 0
        if W > 2:
            high |= p1 & ((3 if W >= 4 else 2) << (2 * (J % 4)))
        if W > 4:
            if J % 4 >= 1:
                high |= p2 & ((3 if W >= 6 else 2) << (2 * (J % 4) - 2))
            else:
                low |= s2 & ((3 if W >= 6 else 2) << (2 * (J % 4) + 6))
        if W > 6:
            if J % 4 >= 2:
                high |= p3 & ((3 if W >= 8 else 2) << (2 * (J % 4) - 4))
            else:
                low |= s3 & ((3 if W >= 8 else 2) << (2 * (J % 4) + 4))
        if (W > 4 and J % 4 == 0) or (W > 6 and J % 4 == 1):
            addend = low.to(tl.float16, bitcast=True) * (1 << (7 - 2 * (J % 4))) + addend
        made = high.to(tl.float16, bitcast=True) * (1 << (15 - 2 * (J % 4))) + addend
    return made


@triton.jit
def _group(affine_ptr, block, N, offs_n, S: tl.constexpr, GROUP: tl.constexpr):
    """Factor (float32) and addend (float16) of each row of weights, in part S of a block."""
    row = block // (GROUP // 128) if GROUP >= 128 else block * (128 // GROUP) + S
    both = tl.load(affine_ptr + row * N + offs_n)
    factor = (both & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    addend = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return factor, addend


@triton.jit
def _accumulate(
    acc,
    x_at,
    row_widths,
    columns,
    words_at,
    affine_ptr,
    offs_n,
    first,
    last,
    N,
    K,
    plane,
    groups,
    W: tl.constexpr,
    WIDTHS: tl.constexpr,
    PLACES: tl.constexpr,
    GROUP: tl.constexpr,
    RAGGED: tl.constexpr,
    SWAP: tl.constexpr,
    ASM: tl.constexpr,
):
    """`acc` and the blocks from `first` to `last`: all rows at W bits or, with W 0, each at its own of WIDTHS."""
    MIXED: tl.constexpr = W == 0
    PER: tl.constexpr = 8 if GROUP >= 128 else GROUP // 16
    for block in range(first, last):
        words = words_at + block * (N * 16)
        p0 = tl.load(words)
        p1, p2, p3 = p0, p0, p0
        if (WIDTHS if MIXED else 1 << W) >> 3:
            p1 = tl.load(words + plane)
        if (WIDTHS if MIXED else 1 << W) >> 5:
            p2 = tl.load(words + 2 * plane)
        if (WIDTHS if MIXED else 1 << W) >> 7:
            p3 = tl.load(words + 3 * plane)
        for s in tl.static_range(8 // PER):
            for w in tl.static_range(1, 9):
                if ((WIDTHS if MIXED else 1 << W) >> w) & 1:
                    factor, addend = _group(
                        affine_ptr + ((PLACES >> (4 * w)) & 15) * groups * N, block, N, offs_n, s, GROUP
                    )
                    spread = tl.broadcast_to(tl.expand_dims(addend, 1 if SWAP else 0), p0.shape)
                    part = tl.zeros(acc.shape, tl.float32)
                    for j in tl.static_range(PER):
                        start = block * 128 + (s * PER + j) * 16
                        if RAGGED:
                            x = tl.load(x_at + start, mask=columns + start < K, other=0.0)
                        else:
                            x = tl.load(x_at + start)
                        made = _unpacked(p0, p1, p2, p3, spread, w, s * PER + j, ASM)
                        part = tl.dot(made, x, part) if SWAP else tl.dot(x, made, part)
                    scaled = part * tl.expand_dims(factor, 1 if SWAP else 0)
                    acc = tl.where(row_widths == w, acc + scaled, acc) if MIXED else acc + scaled
    return acc


@triton.jit(do_not_specialize=["M", "groups", "blocks"])
def nested_gemm(
    x_ptr,
    row_widths_ptr,
    planes_ptr,
    affine_ptr,
    row_scale_ptr,
    x_scale_ptr,
    out_ptr,
    M,
    N,
    K,
    stride_m,
    plane,
    groups,
    blocks,
    WIDTHS: tl.constexpr,
    PLACES: tl.constexpr,
    GROUP: tl.constexpr,
    RAGGED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SWAP: tl.constexpr,
    ASM: tl.constexpr,
):
    """One tile of outputs, or with several programs on the grid's second axis its share of the blocks, for
    `add_splits`.

    Bit w of WIDTHS says that a row may have w bits, and digit w of PLACES, in base 16, where the factors of w bits are.
    With several widths a tile whose rows all have one takes the loop for that width, and any other tile the loop for
    all. A row of another width is NaN. With SWAP the weights are the left operand.
    """
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    first_n = (pid // tiles_m) * BLOCK_N
    first_m = (pid % tiles_m) * BLOCK_M
    offs_n = first_n + tl.arange(0, BLOCK_N)
    own_m = first_m + tl.arange(0, BLOCK_M)
    offs_m = tl.minimum(own_m, M - 1)  # rows past the last are read as the last, and not written
    lanes = tl.arange(0, 16)
    m_axis: tl.constexpr = 0 if SWAP else 1
    n_axis: tl.constexpr = 1 if SWAP else 0
    words_at = planes_ptr + tl.expand_dims(offs_n, n_axis) * 16 + tl.expand_dims(lanes, m_axis)
    columns = tl.expand_dims(lanes, n_axis)
    x_at = x_ptr + tl.expand_dims(offs_m, m_axis).to(tl.int64) * stride_m + columns
    widths = tl.load(row_widths_ptr + offs_m)
    row_widths = tl.expand_dims(widths, m_axis)
    share = tl.cdiv(blocks, tl.num_programs(1))
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, blocks)
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    is_read = tl.zeros((BLOCK_M,), tl.int1)
    for w in tl.static_range(1, 9):
        if (WIDTHS >> w) & 1:
            is_read |= widths == w
    if WIDTHS & (WIDTHS - 1):
        low = tl.min(widths)
        high = tl.max(widths)
        if low == high:
            for w in tl.static_range(1, 9):
                if (WIDTHS >> w) & 1:
                    if low == w:
                        acc = _accumulate(
                            acc, x_at, row_widths, columns, words_at, affine_ptr, offs_n, first, last, N, K, plane,
                            groups, w, WIDTHS, PLACES, GROUP, RAGGED, SWAP, ASM,
                        )  # fmt: skip
        else:
            acc = _accumulate(
                acc, x_at, row_widths, columns, words_at, affine_ptr, offs_n, first, last, N, K, plane,
                groups, 0, WIDTHS, PLACES, GROUP, RAGGED, SWAP, ASM,
            )  # fmt: skip
    else:
        for w in tl.static_range(1, 9):
            if (WIDTHS >> w) & 1:
                acc = _accumulate(
                    acc, x_at, row_widths, columns, words_at, affine_ptr, offs_n, first, last, N, K, plane,
                    groups, w, WIDTHS, PLACES, GROUP, RAGGED, SWAP, ASM,
                )  # fmt: skip
    scale = tl.load(row_scale_ptr + offs_n, mask=offs_n < N, other=0.0)
    acc = acc * tl.expand_dims(scale, n_axis)
    if SCALED:
        acc = acc * tl.expand_dims(tl.load(x_scale_ptr + offs_m), m_axis)
    acc = tl.where(tl.expand_dims(is_read, m_axis), acc, float("nan"))
    at_m = tl.expand_dims(own_m, m_axis)
    at_n = tl.expand_dims(offs_n, n_axis)
    place = (tl.program_id(1) * M + at_m).to(tl.int64) * N + at_n
    tl.store(out_ptr + place, acc.to(out_ptr.dtype.element_ty), mask=(at_m < M) & (at_n < N))


@triton.jit(do_not_specialize=["count"])
def add_splits(parts_ptr, out_ptr, count, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of SPLIT parts of `count` numbers, always in the same order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT):
        acc += tl.load(parts_ptr + split * count.to(tl.int64) + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scale_rows(x_ptr, out_ptr, scale_ptr, K, stride_m, BLOCK: tl.constexpr):
    """A row in float16, divided by the power of two that brings its largest number below 2^14; NaN and Inf stay.

    bfloat16 has numbers that float16 lacks; what is rounded away here is below 2^-38 of the row's largest.
    """
    row = tl.program_id(0)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.abs(tl.load(x_ptr + row * stride_m + at, mask=at < K, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, tl.where(x < float("inf"), x, 0.0))
    # 2^exponent is above the largest: the exponent bits of a float32, plus one
    bits = tl.max(largest).to(tl.int32, bitcast=True) >> 23
    bits = tl.maximum(bits, 14)
    scale = ((bits - 13) << 23).to(tl.float32, bitcast=True)
    inverse = ((267 - bits) << 23).to(tl.float32, bitcast=True)
    tl.store(scale_ptr + row, scale)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride_m + at, mask=at < K, other=0.0).to(tl.float32) * inverse
        tl.store(out_ptr + row * K + at, x.to(tl.float16), mask=at < K)
