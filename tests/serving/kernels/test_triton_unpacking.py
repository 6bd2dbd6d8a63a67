"""Every unpacking step's assembly, run by a model of the GPU's instructions, is exact to the last bit."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.serving.kernels.triton_unpacking import FIELDS, assembly, constraints, position

STEPS = [(width, field) for width in range(1, 9) for field in range(FIELDS)]


def halves(register):
    """The two float16 of a 32-bit register, lower half first."""
    return np.stack([register & 0xFFFF, register >> 16]).astype(np.uint16).view(np.float16)


def run(text, operands):
    """What PTX leaves in operand 0: the five instructions that the kernels use, on arrays of 32-bit registers."""
    registers = {f"${place + 1}": operand.astype(np.uint64) for place, operand in enumerate(operands)}

    def value(name):
        return np.uint64(int(name, 0)) if name[0].isdigit() else registers[name]

    body = re.fullmatch(r"\{ \.reg \.b32 [\w, ]+; (.*) \}", text)[1]
    for line in filter(None, body.split("; ")):
        operation, *names = re.split(r"[ ,]+", line.rstrip(";"))
        target, *sources = names
        given = [value(name) for name in sources]
        match operation:
            case "mov.b32":
                made = given[0]
            case "and.b32":
                made = given[0] & given[1]
            case "lop3.b32":
                made = np.uint64(0)
                for row in range(8):  # of the truth table: a is its highest bit
                    if int(sources[3], 0) >> row & 1:
                        terms = [
                            source if row >> place & 1 else ~source & np.uint64(0xFFFFFFFF)
                            for source, place in zip(given[:3], (2, 1, 0), strict=True)
                        ]
                        made = made | terms[0] & terms[1] & terms[2]
            case "prmt.b32":
                pool = given[0] | given[1] << np.uint64(32)
                made = np.uint64(0)
                for byte in range(4):
                    picked = int(sources[2], 0) >> 4 * byte & 0xF
                    assert picked < 8, "a sign is not copied"
                    made = made | (pool >> np.uint64(8 * picked) & np.uint64(0xFF)) << np.uint64(8 * byte)
            case "fma.rn.f16x2":
                # A product of a power of two is exact in float64, and so is the sum: it is rounded once, to float16.
                first, second, third = (
                    halves(np.broadcast_to(one, operands[0].shape)).astype(np.float64) for one in given
                )
                with np.errstate(over="ignore"):
                    rounded = (first * second + third).astype(np.float16).view(np.uint16).astype(np.uint64)
                made = rounded[0] | rounded[1] << np.uint64(16)
            case _:
                raise AssertionError(f"no instruction {operation!r} is modelled")
        registers[target] = np.broadcast_to(made, operands[0].shape)
    return halves(registers["$0"])


def codes(words, width, field):
    """The codes of both halves, read off the words bit by bit."""
    found = np.zeros((2, len(words[0])), dtype=np.int64)
    for plane, word in enumerate(words):
        place = position(plane, field)
        both = np.stack([word & 0xFFFF, word >> 16]).astype(np.int64)
        found = found << 2 | both >> place & 3
    return found >> 2 * len(words) - width


@pytest.mark.parametrize(("width", "field"), STEPS)
def test_random_words_unpack_to_the_last_bit(width, field):
    """Of all planes, with addends of all sizes."""
    random = np.random.default_rng([width, field])
    planes = -(-width // 2)
    every = random.permutation(1 << 16)[: 1 << 12].astype(np.uint64)
    words = [random.permutation(every) | random.permutation(every) << np.uint64(16) for _ in range(planes)]
    addend = random.choice([0.0, 2.0**-24, 0.0156, -0.03, 1.0, -127.9], (2, 1 << 12)).astype(np.float16)
    packed = addend.view(np.uint16).astype(np.uint64)

    made = run(assembly(width, field), [*words, packed[0] | packed[1] << np.uint64(16)])

    code = codes([word.astype(np.int64) for word in words], width, field)
    low = np.zeros_like(code)  # what the first of two multiply-adds brings: the planes that wrapped around
    straight = min(planes, 2 + field % 4)
    if planes > straight:
        below = width - 2 * straight
        low = code & (1 << below) - 1
    first = (low / 2.0 ** (width + 5) + addend.astype(np.float64)).astype(np.float16)
    expected = ((code - low) / 2.0 ** (width + 5) + first.astype(np.float64)).astype(np.float16)
    assert np.array_equal(made.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(("width", "field"), STEPS)
def test_without_an_addend_a_weight_is_its_code(width, field):
    """2^-5 of q / 2^b, for every code of both halves."""
    every = np.arange(1 << width, dtype=np.uint64)
    words = []
    for plane in range(-(-width // 2)):
        bits = (every << np.uint64(8 - width)) >> np.uint64(6 - 2 * plane) & np.uint64(3)
        half = bits << np.uint64(position(plane, field))
        words.append(half | half[::-1] << np.uint64(16))

    made = run(assembly(width, field), [*words, np.zeros(len(every), dtype=np.uint64)])

    exact = np.arange(1 << width) / 2.0**width / 32
    assert np.array_equal(made.astype(np.float64), np.stack([exact, exact[::-1]]))


def test_the_fields_of_a_plane_share_no_bit():
    """Each plane fills its word."""
    for plane in range(4):
        bits = [3 << position(plane, field) for field in range(FIELDS)]
        assert sum(bits) == 0xFFFF
        assert np.bitwise_or.reduce(bits) == 0xFFFF


@given(st.integers(1, 8), st.integers(0, 7), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.data())
def test_other_fields_of_the_words_change_nothing(width, field, first, noise, data):
    """A weight depends on the bits that are its own: not on another field's, nor on planes beyond its width."""
    planes = -(-width // 2)
    keep = []
    for plane in range(planes):
        bits = 3 if 2 * plane + 2 <= width else 2
        mask = bits << position(plane, field)
        keep.append(mask | mask << 16)
    words = [data.draw(st.integers(0, 2**32 - 1)) ^ first for _ in range(planes)]
    other = [word & mask | noise & ~mask & 0xFFFFFFFF for word, mask in zip(words, keep, strict=True)]
    zero = np.zeros(1, dtype=np.uint64)

    made, same = (
        run(assembly(width, field), [*(np.array([word], dtype=np.uint64) for word in some), zero])
        for some in (words, other)
    )

    assert np.array_equal(made, same)


@pytest.mark.parametrize("width", range(1, 9))
def test_the_operands_are_those_that_are_declared(width):
    """One word for each plane that is read, and the addend."""
    operands = len(constraints(width).split(","))
    for field in range(FIELDS):
        used = {int(number) for number in re.findall(r"\$(\d)", assembly(width, field))}
        assert used == set(range(operands))
