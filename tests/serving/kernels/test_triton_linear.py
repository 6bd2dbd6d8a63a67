"""The Triton kernels agree with double precision, in Triton's interpreter: every width, shape and mixture of rows."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")

import support.triton_interpreter  # noqa: E402, F401 -- skips where there is none, and comes first
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from nearfar.serving.kernels.triton_backend import agrees, blocked_linear, install, linear  # noqa: E402
from nearfar.serving.kernels.triton_linear import Tile, default_tile, nested_matmul, shapes, unsupported  # noqa: E402
from nearfar.serving.kernels.triton_weights import refusal, repack  # noqa: E402
from nearfar.serving.quantization.format import NestedWeights  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # the interpreter's own
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),  # numpy, of the NaN that tests send
]

SMALL = Tile(16, 16, 4, 2)
FLOAT16_STEP, BFLOAT16_STEP = 2.0**-11, 2.0**-8


def matrix(random, rows, columns, widths, group_size):
    """A random one, like those that the quantizer makes and unlike them."""
    groups = -(-columns // group_size)
    return NestedWeights.from_codes(
        random.integers(0, 1 << widths[-1], (rows, columns), dtype=np.uint8),
        scales=random.uniform(0.001, 2, (rows, groups)).astype(np.float16),
        zeros=random.integers(-128, 128, (rows, groups)).astype(np.int8),
        refits=random.integers(0, 256, (len(widths) - 1, rows, groups), dtype=np.uint8),
        ranges=random.uniform(-0.5, 1, (len(widths) - 1, 4)).astype(np.float32),
        widths=widths,
        group_size=group_size,
    )


def tensors(weights):
    """Of one matrix, as the operation takes them."""
    made = {name: torch.from_numpy(array) for name, array in weights.tensors().items()}
    return made | {"ranges": made["ranges"][None]}


def packed(weights):
    """Of one matrix, as the kernels read it."""
    return repack(
        **tensors(weights),
        part_rows=[weights.num_rows],
        widths=weights.widths,
        group_size=weights.group_size,
        columns=weights.num_columns,
    )


def poisoned(x, weights):
    """An output that nothing was written to yet."""
    return torch.full((len(x), weights.num_rows), float("nan"), dtype=x.dtype)


def reach(weights, width):
    """What the groups' ranges span, and how far from zero they lie: what float16 rounds is no larger."""
    scale, offset = (np.abs(part).astype(np.float64) for part in weights.affine(width))
    return (scale * 2.0**width + offset).repeat(weights.group_size, 1)[:, : weights.num_columns]


def check(made, x, row_widths, weights, step):
    """Every number within the rounding of its weights to float16, and of the result to its own type."""
    for row, width in enumerate(row_widths.tolist()):
        exact = weights.at(width).astype(np.float64) @ x[row].double().numpy()
        # A group's factor, its addend and the unpacked weight are each rounded once.
        bound = 3 * FLOAT16_STEP * (reach(weights, width) @ x[row].abs().double().numpy()) + step * np.abs(exact)
        assert (np.abs(made[row].double().numpy() - exact) <= bound + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("widths", "rows", "columns", "group_size", "tile"),
    [
        ((2, 4, 6, 8), 40, 128, 64, Tile(16, 32, 4, 3)),
        ((2, 4, 6, 8), 17, 300, 128, Tile(16, 16, 4, 3, splits=2)),
        ((1, 3, 5, 7), 17, 128, 32, SMALL),
        ((1, 2, 3, 4, 5, 6, 7, 8), 20, 200, 16, Tile(16, 32, 4, 3, is_swapped=True)),
        ((8,), 20, 520, 256, Tile(16, 32, 4, 2, splits=4)),
        ((3,), 5, 9, 16, SMALL),
    ],
)
def test_rows_are_multiplied_at_their_widths(widths, rows, columns, group_size, tile, dtype):
    """Mixed rows and each width alone, over ragged shapes, into poisoned outputs, from fresh random numbers."""
    random = np.random.default_rng()
    weights = matrix(random, rows, columns, widths, group_size)
    ready = packed(weights)
    num = int(random.integers(1, 20))
    x = torch.from_numpy(random.standard_normal((num, columns))).to(dtype)
    mixed = torch.tensor([widths[i % len(widths)] for i in range(num)], dtype=torch.int32)

    for row_widths in (mixed, *(torch.full_like(mixed, width) for width in random.choice(widths, 1))):
        for present in (None, sorted({*row_widths.tolist()})):
            made = nested_matmul(x, row_widths, ready, present=present, tile=tile, out=poisoned(x, weights))
            check(made, x, row_widths, weights, FLOAT16_STEP if dtype == torch.float16 else BFLOAT16_STEP)


@given(st.data())
@settings(max_examples=12)
def test_any_shape_width_and_mixture(data):
    """Down to one row, one output, one column."""
    widths = tuple(sorted(data.draw(st.sets(st.integers(1, 8), min_size=1, max_size=4))))
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 200))
    group_size = data.draw(st.sampled_from([16, 32, 64, 128, 256]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weights = matrix(random, rows, columns, widths, group_size)
    num = data.draw(st.integers(1, 20))
    x = torch.from_numpy(random.standard_normal((num, columns))).half()
    row_widths = torch.tensor(random.choice(widths, num), dtype=torch.int32)
    tile = Tile(16, 16, 4, 2, data.draw(st.sampled_from([1, 2])), data.draw(st.booleans()))

    made = nested_matmul(x, row_widths, packed(weights), tile=tile, out=poisoned(x, weights))

    check(made, x, row_widths, weights, FLOAT16_STEP)


@pytest.mark.parametrize("width", range(1, 9))
def test_weights_are_the_formats_own(width):
    """Rows of the identity give the matrix back, at every width that can be stored."""
    weights = matrix(np.random.default_rng(width), 24, 130, tuple(range(1, 9)), 32)
    x = torch.eye(130, dtype=torch.float16)[::9]

    made = nested_matmul(
        x, torch.full((len(x),), width, dtype=torch.int32), packed(weights), tile=SMALL, out=poisoned(x, weights)
    )

    check(made, x, torch.full((len(x),), width), weights, FLOAT16_STEP)


def test_a_row_answers_alike_in_any_company():
    """To the last bit: mixed with other widths, in another place, beside rows that are NaN."""
    weights = matrix(np.random.default_rng(0), 33, 256, (2, 4, 8), 64)
    ready = packed(weights)
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(0)).half()
    x[5] = float("nan")
    mixed = nested_matmul(x, torch.tensor([2, 8, 4, 8, 2, 4], dtype=torch.int32), ready, tile=SMALL)

    alone = nested_matmul(x[[3, 1]], torch.tensor([8, 8], dtype=torch.int32), ready, present=[8], tile=SMALL)

    assert torch.equal(mixed[[3, 1]], alone)
    assert mixed[5].isnan().all()
    assert mixed[:5].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_infinities_stay_in_their_row(dtype):
    """And no finite number is made of them."""
    weights = matrix(np.random.default_rng(0), 16, 128, (4, 8), 64)
    x = torch.randn(3, 128).to(dtype)
    x[1, 7] = float("inf")
    x[1, 99] = float("-inf")

    made = nested_matmul(x, torch.tensor([4, 8, 8], dtype=torch.int32), packed(weights), tile=SMALL)

    assert not made[1].isfinite().any()
    assert made[[0, 2]].isfinite().all()


def test_bfloat16_beyond_float16_is_read():
    """Rows of 10^30 and of 10^-30 beside each other."""
    weights = matrix(np.random.default_rng(1), 16, 128, (8,), 128)
    x = torch.randn(4, 128).bfloat16() * torch.tensor([[1e30], [1e-30], [0.0], [1.0]]).bfloat16()
    row_widths = torch.full((4,), 8, dtype=torch.int32)

    made = nested_matmul(x, row_widths, packed(weights), tile=SMALL)

    exact = x.double().numpy() @ weights.at(8).astype(np.float64).T
    for row in range(4):
        bound = 0.02 * np.abs(exact[row]).max()
        assert (np.abs(made[row].double().numpy() - exact[row]) <= bound).all()


def test_groups_far_from_zero_and_of_no_range_are_read():
    """Ranges of zero, tiny ones beside large ones in a row, and scales refitted to almost nothing."""
    weights = matrix(np.random.default_rng(2), 8, 256, (2, 8), 64)
    weights.scales[:, 0] = 0
    weights.scales[:, 1] = 6e-5
    weights.scales[:, 2] = 6e4
    weights.ranges[0] = (0, 0, 0.4, 0.01)
    x = torch.randn(2, 256).half() * 2.0**-12

    made = nested_matmul(x, torch.tensor([2, 8], dtype=torch.int32), packed(weights), tile=SMALL)

    check(made, x, torch.tensor([2, 8]), weights, FLOAT16_STEP)


def test_a_strided_and_offset_input_is_read_right():
    """The rows of a slice of a larger tensor, and columns that lie apart."""
    weights = matrix(np.random.default_rng(3), 16, 64, (2, 8), 32)
    ready = packed(weights)
    wide = torch.randn(9, 300).half()
    row_widths = torch.tensor([2, 8, 2, 8], dtype=torch.int32)

    for x in (wide[1::2, 3:67], wide[1::2, 1:129:2]):
        made = nested_matmul(x, row_widths, ready, tile=SMALL)
        assert torch.equal(made, nested_matmul(x.contiguous(), row_widths, ready, tile=SMALL))
    spread = torch.tensor([2, 0, 8, 0, 2, 0, 8, 0], dtype=torch.int32)[::2]
    assert torch.equal(made, nested_matmul(x, spread, ready, tile=SMALL))


def test_a_width_that_is_not_stored_makes_its_row_nan():
    """Never a number of another width; its neighbours are as they were."""
    weights = matrix(np.random.default_rng(4), 16, 64, (2, 4, 8), 32)
    x = torch.randn(3, 64).half()

    made = nested_matmul(x, torch.tensor([4, 5, 8], dtype=torch.int32), packed(weights), tile=SMALL)
    promised = nested_matmul(x, torch.tensor([4, 8, 4], dtype=torch.int32), packed(weights), present=[4], tile=SMALL)

    assert made[1].isnan().all()
    assert made[[0, 2]].isfinite().all()
    assert promised[1].isnan().all()
    assert torch.equal(promised[0], made[0])


def test_the_sum_of_splits_is_the_same_every_time():
    """To the last bit."""
    weights = matrix(np.random.default_rng(5), 16, 640, (8,), 64)
    ready, x = packed(weights), torch.randn(5, 640).half()
    row_widths = torch.full((5,), 8, dtype=torch.int32)
    tile = Tile(16, 16, 4, 2, splits=3)

    first, second = (nested_matmul(x, row_widths, ready, tile=tile) for _ in range(2))

    assert torch.equal(first, second)


def test_stacked_matrices_keep_their_own_ranges():
    """As query, key and value do."""
    random = np.random.default_rng(6)
    parts = [matrix(random, rows, 128, (2, 8), 64) for rows in (7, 3)]
    both = [tensors(part) for part in parts]
    ready = repack(
        torch.cat([part["planes"] for part in both], 1),
        torch.cat([part["scales"] for part in both]),
        torch.cat([part["zeros"] for part in both]),
        torch.cat([part["refits"] for part in both], 1),
        torch.cat([part["ranges"] for part in both]),
        part_rows=[7, 3],
        widths=(2, 8),
        group_size=64,
        columns=128,
    )
    x = torch.randn(2, 128).half()
    row_widths = torch.tensor([2, 8], dtype=torch.int32)

    made = nested_matmul(x, row_widths, ready, tile=SMALL)

    check(made[:, :7], x, row_widths, parts[0], FLOAT16_STEP)
    check(made[:, 7:], x, row_widths, parts[1], FLOAT16_STEP)


def test_the_default_tile_reads_a_real_layer():
    """Of a small model, with the tile that a GPU of 132 multiprocessors gets."""
    weights = matrix(np.random.default_rng(7), 192, 576, (2, 8), 64)
    x = torch.randn(2, 576).half()
    row_widths = torch.tensor([2, 8], dtype=torch.int32)

    made = nested_matmul(x, row_widths, packed(weights), out=poisoned(x, weights))

    check(made, x, row_widths, weights, FLOAT16_STEP)
    assert default_tile(2, 192, 576).splits == 1
    assert default_tile(1, 4096, 14336).splits > 1


@pytest.mark.parametrize("capability", [80, 86, 89, 100, 120])
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 65, 128, 1000])
def test_only_hopper_swaps_the_operands(capability, rows):
    """Elsewhere the kernel spills or is a trap."""
    for is_mixed in (False, True):
        found = shapes(rows, capability=capability, is_mixed=is_mixed)
        assert not any(tile.is_swapped for tile in found)
        assert found[0].rows <= 32
    assert shapes(128, capability=90, is_mixed=False)[0].is_swapped


def test_the_backend_is_the_operation():
    """It repacks once, again when a tensor changes, and takes the reference where the kernels cannot read."""
    weights = matrix(np.random.default_rng(8), 16, 96, (2, 8), 32)
    arguments, x = tensors(weights), torch.randn(2, 96).half()
    row_widths = torch.tensor([2, 8], dtype=torch.int32)

    made = linear(x, row_widths, *arguments.values(), [16], [2, 8], 32)

    check(made, x, row_widths, weights, FLOAT16_STEP)
    arguments["scales"].zero_()
    assert (linear(x, row_widths, *arguments.values(), [16], [2, 8], 32) == 0).all()
    with pytest.warns(RuntimeWarning, match="float32"):
        exact = linear(x.float(), row_widths, *arguments.values(), [16], [2, 8], 32)
    assert (exact == 0).all()


def test_the_backend_reads_odd_groups_by_the_reference():
    """With a warning that says why."""
    weights = matrix(np.random.default_rng(9), 16, 96, (2, 8), 24)
    x, row_widths = torch.randn(2, 96).half(), torch.tensor([2, 8], dtype=torch.int32)

    with pytest.warns(RuntimeWarning, match="groups of 24 columns"):
        made = linear(x, row_widths, *tensors(weights).values(), [16], [2, 8], 24)

    check(made, x, row_widths, weights, FLOAT16_STEP)


def test_kernels_that_disagree_with_the_reference_are_not_trusted():
    """On a device whose compiler goes wrong in one row, in one width, or everywhere."""
    device = torch.device("cpu")

    def off_in_one_row(x, row_widths, weights):
        made = nested_matmul(x, row_widths, weights)
        made[-1] *= 1.02
        return made

    def off_at_one_width(x, row_widths, weights):
        return nested_matmul(x, row_widths.where(row_widths != 2, 8), weights)

    def nothing(x, row_widths, weights):
        return x.new_full((len(x), weights.rows), float("nan"))

    assert agrees(device, torch.float16, (2, 8), 64)
    for broken in (off_in_one_row, off_at_one_width, nothing):
        assert not agrees(device, torch.float16, (2, 8), 64, broken)


def test_the_backend_is_registered_for_cuda():
    """And the operation on repacked weights passes torch's own checks."""
    install()
    assert torch._C._dispatch_has_kernel_for_dispatch_key("nearfar::nested_linear", "CUDA")
    ready = packed(matrix(np.random.default_rng(10), 16, 64, (2, 8), 32))
    x, row_widths = torch.randn(2, 64).half(), torch.tensor([2, 8], dtype=torch.int32)

    assert blocked_linear(x, row_widths, ready).shape == (2, 16)
    torch.library.opcheck(
        torch.ops.nearfar.blocked_linear.default,
        (x, row_widths, ready.words, ready.affine, ready.row_scale, [2, 8], 32),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 63).half()}, "x is .2, 63.; the matrix takes 64 columns"),
        ({"x": torch.zeros(2, 64)}, "inputs are torch.float32"),
        ({"row_widths": torch.zeros(3, dtype=torch.int32)}, "one int32 per row"),
        ({"row_widths": torch.zeros(2, dtype=torch.int64)}, "one int32 per row"),
        ({"present": [3]}, "present is .3.; the widths are .2, 8."),
        ({"present": []}, "present is"),
        ({"out": torch.zeros(16, 2).half()}, "out is .16, 2."),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    """Before anything is launched."""
    weights = packed(matrix(np.random.default_rng(0), 16, 64, (2, 8), 32))
    given = {"x": torch.zeros(2, 64).half(), "row_widths": torch.full((2,), 2, dtype=torch.int32)} | change

    with pytest.raises(ValueError, match=message):
        nested_matmul(given.pop("x"), given.pop("row_widths"), weights, tile=SMALL, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 48}, "groups of 48"),
        ({"group_size": 8}, "groups of 8"),
        ({"group_size": 192}, "groups of 192"),
        ({"rows": 0}, "empty"),
        ({"widths": (4, 2)}, "widths are"),
        ({"widths": (0, 4)}, "widths are"),
        ({"rows": 1 << 20, "columns": 1 << 16}, "more words than 32 bits count"),
    ],
)
def test_matrices_that_no_kernel_reads_are_told_from_others(change, message):
    """With the reason."""
    fits = {"widths": (2, 8), "group_size": 64, "rows": 64, "columns": 64}

    assert refusal(**fits) is None
    assert message in refusal(**fits | change)


def test_no_rows_and_no_gpu():
    """No rows are no launch; outside the interpreter a CPU is not read as a GPU."""
    weights = packed(matrix(np.random.default_rng(0), 16, 64, (2, 8), 32))

    assert nested_matmul(torch.zeros(0, 64).half(), torch.zeros(0, dtype=torch.int32), weights).shape == (0, 16)
    assert unsupported(torch.device("cpu"), torch.float16) is None


def test_planes_take_the_bytes_of_the_format():
    """Where the columns are whole blocks; factors and addends take four bytes for each group and width."""
    weights = matrix(np.random.default_rng(0), 64, 1024, (2, 4, 6, 8), 128)
    ready = packed(weights)

    assert 4 * 2 * ready.plane == weights.planes.nbytes
    assert ready.read_bytes(2) == weights.planes[0].nbytes + 4 * 64 * 8 + 4 * 64
    assert ready.groups == 8
