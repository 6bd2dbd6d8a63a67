"""What is stored is what is read, at every width, and the narrow codes are the tops of the wide ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import DataError
from nearfar.serving.quantization.format import NestedWeights, from_tensors, pack, unpack
from nearfar.serving.quantization.settings import NestedConfig, read_config

widths = st.sets(st.integers(1, 8), min_size=1).map(lambda found: tuple(sorted(found)))


def matrix(seed: int, rows: int, columns: int, stored: tuple[int, ...], group_size: int) -> NestedWeights:
    """A random one."""
    random = np.random.default_rng(seed)
    groups = -(-columns // group_size)
    return NestedWeights.from_codes(
        random.integers(0, 1 << stored[-1], (rows, columns), dtype=np.uint8),
        scales=random.uniform(0.01, 2, (rows, groups)).astype(np.float16),
        zeros=random.integers(-128, 128, (rows, groups)).astype(np.int8),
        refits=random.integers(0, 256, (len(stored) - 1, rows, groups), dtype=np.uint8),
        ranges=random.uniform(-0.5, 1, (len(stored) - 1, 4)).astype(np.float32),
        widths=stored,
        group_size=group_size,
    )


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 70), st.integers(1, 8))
def test_unpacking_gives_back_what_was_packed(seed, rows, columns, width):
    """Whatever the shape, also one that fills no whole byte."""
    codes = np.random.default_rng(seed).integers(0, 1 << width, (rows, columns), dtype=np.uint8)

    planes = pack(codes, width)

    assert planes.shape == (-(-width // 2), rows, -(-columns // 4))
    np.testing.assert_array_equal(unpack(planes, width, columns), codes)


@given(st.integers(0, 2**32), widths, st.integers(1, 5), st.integers(1, 70), st.integers(1, 40))
def test_a_narrow_code_is_the_top_of_the_wide_one(seed, stored, rows, columns, group_size):
    """And is read from the first planes alone."""
    weights = matrix(seed, rows, columns, stored, group_size)

    for width in stored:
        np.testing.assert_array_equal(weights.codes(width), weights.codes(stored[-1]) >> (stored[-1] - width))
        np.testing.assert_array_equal(
            unpack(weights.planes[: -(-width // 2)], width, columns), weights.codes(width), strict=True
        )


@given(st.integers(0, 2**32), widths, st.integers(1, 3), st.integers(1, 30), st.integers(1, 40))
def test_a_weight_is_what_the_specification_says(seed, stored, rows, columns, group_size):
    """Its formula, written out for one weight at a time in double precision."""
    weights = matrix(seed, rows, columns, stored, group_size)

    for place, width in enumerate(stored):
        values = weights.at(width)
        for n in range(rows):
            for k in range(columns):
                group = k // group_size
                slope, offset = 1.0, float(weights.zeros[n, group]) / 256
                if width != stored[-1]:
                    a, alpha, c, gamma = map(float, weights.ranges[place])
                    byte = int(weights.refits[place, n, group])
                    slope, offset = a + alpha * (byte // 16), offset + c + gamma * (byte % 16)
                level = (int(weights.codes(width)[n, k]) + 0.5) / 2**width - 0.5
                expected = float(weights.scales[n, group]) * (slope * level + offset)
                assert values[n, k] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_byte_has_four_columns_lowest_bits_first():
    """The layout of the specification, by hand: code 0b10_01_11_00 is split over four planes."""
    planes = pack(np.array([[0b10011100, 0b00000001, 0, 0b11000000, 0b01010101]], dtype=np.uint8), 8)

    assert planes.tolist() == [
        [[0b11_00_00_10, 0b01]],
        [[0b00_00_00_01, 0b01]],
        [[0b00_00_00_11, 0b01]],
        [[0b00_00_01_00, 0b01]],
    ]


@pytest.mark.parametrize("group_size", [64, 128])
def test_four_widths_take_at_most_seven_percent_more_than_eight_bits_alone(group_size):
    """At the same group size, all scales included."""
    nested = matrix(0, 576, 1536, (2, 4, 6, 8), group_size)
    dedicated = matrix(0, 576, 1536, (8,), group_size)

    assert nested.num_bytes <= 1.07 * dedicated.num_bytes


def test_codes_that_do_not_fit_are_refused():
    """Four bits hold less than 16."""
    with pytest.raises(ValueError, match="16"):
        NestedWeights.from_codes(
            np.full((1, 4), 16, dtype=np.uint8),
            scales=np.ones((1, 1), np.float16),
            zeros=np.zeros((1, 1), np.int8),
            refits=np.zeros((0, 1, 1), np.uint8),
            ranges=np.zeros((0, 4), np.float32),
            widths=(4,),
            group_size=4,
        )


def test_a_width_that_was_not_stored_is_named():
    """With those that were."""
    with pytest.raises(ValueError, match="5 bits were not stored; there are 2, 4"):
        matrix(0, 2, 8, (2, 4), 4).at(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("zeros"), "has no 'zeros'"),
        (lambda tensors: tensors.update(planes=tensors["planes"][:2]), "'planes' is uint8 of shape"),
        (lambda tensors: tensors.update(scales=tensors["scales"].astype(np.float32)), "'scales' is float32"),
        (lambda tensors: tensors.update(scales=tensors["scales"] * np.float16(np.inf)), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_the_matrix_name(change, message):
    """Before anything is computed with them."""
    tensors = matrix(0, 3, 12, (2, 4, 6, 8), 8).tensors()
    change(tensors)

    with pytest.raises(DataError, match=message) as caught:
        from_tensors(tensors, name="layers.0.up", widths=(2, 4, 6, 8), group_size=8, num_columns=12)

    assert "'layers.0.up'" in str(caught.value)


CONFIG = NestedConfig((2, 4, 8), 64, {"a": 128, "b": 64}, {3: {"a": 2, "b": 4}})


def test_a_config_reads_back():
    """And says which width a matrix is read at."""
    again = NestedConfig.from_json(CONFIG.to_json())

    assert again == CONFIG
    assert again.precisions == (2, 3, 4, 8)
    assert [again.width_of("b", bits) for bits in again.precisions] == [2, 4, 4, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2; this nearfar reads 1"),
        ({"quant_method": "gptq"}, "'gptq'"),
        ({"widths": [4, 2]}, "widths are"),
        ({"widths": [4, 9]}, "widths are"),
        ({"widths": [True, 8]}, "no whole number"),
        ({"group_size": 0}, "below 1"),
        ({"group_size": "64"}, "'64'"),
        ({"sparsity": 1}, "'sparsity'"),
        ({"mixes": {"4": {"a": 2, "b": 2}}}, "both a width and a mix"),
        ({"mixes": {"3": {"a": 2}}}, "every matrix"),
        ({"mixes": {"3": {"a": 2, "b": 6}}}, "every matrix"),
        ({"columns": ["a"]}, "cannot be read"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change, message):
    """Each with what is wrong."""
    with pytest.raises(DataError, match=message):
        NestedConfig.from_json(CONFIG.to_json() | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("{", "no JSON"), ("{}", "no quantization_config"), ("[]", "no quantization_config")],
)
def test_a_folder_without_nested_planes_is_named(tmp_path, text, message):
    """With the file that was looked at."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    with pytest.raises(DataError, match=message) as caught:
        read_config(tmp_path)

    assert caught.value.path == str(tmp_path / "config.json")
