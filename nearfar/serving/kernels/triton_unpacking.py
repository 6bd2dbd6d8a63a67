"""Where the Triton kernels keep each two-bit field of a word, and the assembly that turns words into numbers.

Pure Python: the kernels, the repacking and the tests all read the layout from here.

A word of 16 bits has eight fields of one plane. Field j of plane p sits at bit (2j + 2 - 2p) mod 16, so that the
planes' fields of one weight are side by side, and a mask and an OR put them together with no shift. Bits 0 to 9 of the
result, seen as a float16, are a subnormal number; one fused multiply-add makes it exact and adds what the group adds.
In the word with its two bytes swapped, fields 4 to 7 are where fields 0 to 3 were, and so are the few that wrapped.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Fields of a word, words of a row in a block, and weights of a row in a block: field j of word r is column 16 j + r.
FIELDS, WORDS, BLOCK = 8, 16, 128

#: Unpacked weights are 2^-5 of what they stand for: so the largest multiplier, 2^15, is a float16.
UNPACKED_EXPONENT = -5


def position(plane: int, field: int) -> int:
    """The lowest bit of a field in its word, in 0 to 14."""
    return (2 * field + 2 - 2 * plane) % 16


@dataclass(frozen=True, slots=True)
class Term:
    """One multiply-add: fields of some planes, masked out of their words and merged, times a power of two."""

    is_swapped: bool  # taken from the words with their bytes swapped
    masks: tuple[tuple[int, int], ...]  # plane, and the bits of its word
    exponent: int  # of the multiplier


def terms(width: int, field: int) -> tuple[Term, ...]:
    """How the weights of a field are made from ceil(width / 2) words: the sum of these, the smallest first.

    Together they are 2^-5 · q / 2^width, with q the code of `width` bits.
    """
    upper, low = divmod(field, FIELDS // 2)
    straight, wrapped = [], []
    for plane in range(-(-width // 2)):
        bits = 3 if 2 * plane + 2 <= width else 2  # the last plane of an odd width has one bit in use, its upper
        place = 2 * low + 2 - 2 * plane
        if place >= 0:
            straight.append((plane, bits << place))
        else:
            wrapped.append((plane, bits << place + 8))
    found = [Term(bool(upper), tuple(straight), 15 - 2 * low)]
    if wrapped:
        found.insert(0, Term(not upper, tuple(wrapped), 7 - 2 * low))
    return tuple(found)


def assembly(width: int, field: int) -> str:
    """PTX for two weights at a time: operands 1 to n are the words of n planes, n + 1 the group's addend, 0 the result.

    Every instruction works on two 16-bit halves; 0xea is the truth table of (a & b) | c.
    """
    planes = -(-width // 2)
    body: list[str] = []
    swapped: set[int] = set()
    addend = f"${planes + 1}"
    parts = terms(width, field)
    for place, term in enumerate(parts):
        for order, (plane, mask) in enumerate(term.masks):
            word = f"${plane + 1}"
            if term.is_swapped:
                if plane not in swapped:
                    swapped.add(plane)
                    body.append(f"prmt.b32 s{plane}, {word}, 0, 0x2301;")
                word = f"s{plane}"
            both = f"0x{mask << 16 | mask:08x}"
            body.append(f"and.b32 m, {word}, {both};" if order == 0 else f"lop3.b32 m, {word}, {both}, m, 0xea;")
        factor = term.exponent + 15 << 10
        body.append(f"mov.b32 f, 0x{factor << 16 | factor:08x};")
        out = "$0" if place == len(parts) - 1 else "a"
        body.append(f"fma.rn.f16x2 {out}, m, f, {addend};")
        addend = "a"
    return "{ .reg .b32 m, f, a, s0, s1, s2, s3; " + " ".join(body) + " }"


def constraints(width: int) -> str:
    """The operands of `assembly`: all 32-bit registers."""
    return "=r" + ",r" * (-(-width // 2) + 1)
