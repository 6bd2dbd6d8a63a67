"""The CPU kernel agrees with double precision on the same int8 rows, for every width, shape and instruction set."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")

from nearfar.errors import ConfigError  # noqa: E402
from nearfar.serving.kernels import cpu  # noqa: E402
from nearfar.serving.quantization.format import NestedWeights  # noqa: E402

try:
    EXTENSION = cpu.load()
except ConfigError as exc:
    pytest.skip(f"the CPU kernel cannot run here: {exc}", allow_module_level=True)

WIDTHS = (2, 4, 6, 8)
FLOAT32_STEP = 2.0**-23


@pytest.fixture(params=["avx2", "avx512"])
def instructions(request):
    """Each set that the processor has; the best one afterwards."""
    try:
        EXTENSION.use(request.param)
    except ConfigError as exc:
        pytest.skip(str(exc))
    yield request.param
    EXTENSION.use()


def matrix(rows, columns, widths, group_size, seed):
    """A random one, of every code, sign and size that the format has."""
    random = np.random.default_rng(seed)
    groups = -(-columns // group_size)
    return NestedWeights.from_codes(
        random.integers(0, 1 << widths[-1], (rows, columns), dtype=np.uint8),
        scales=(random.uniform(0.01, 2, (rows, groups)) * random.choice([-1, 1], (rows, groups))).astype(np.float16),
        zeros=random.integers(-128, 128, (rows, groups)).astype(np.int8),
        refits=random.integers(0, 256, (len(widths) - 1, rows, groups), dtype=np.uint8),
        ranges=random.uniform(-0.5, 1, (len(widths) - 1, 4)).astype(np.float32),
        widths=widths,
        group_size=group_size,
    )


def tensors(parts):
    """Matrices above one another, as the operation takes them."""
    found = [{name: torch.from_numpy(array) for name, array in part.tensors().items()} for part in parts]
    return {
        "planes": torch.cat([part["planes"] for part in found], 1),
        "scales": torch.cat([part["scales"] for part in found]),
        "zeros": torch.cat([part["zeros"] for part in found]),
        "refits": torch.cat([part["refits"] for part in found], 1),
        "ranges": torch.stack([part["ranges"] for part in found]),
    }


def packed(parts):
    """Matrices above one another, in the kernel's order."""
    return cpu.pack(
        **tensors(parts),
        part_rows=[part.num_rows for part in parts],
        widths=parts[0].widths,
        group_size=parts[0].group_size,
        num_columns=parts[0].num_columns,
    )


def rows_of(widths):
    """The widths as the operation takes them."""
    return torch.tensor(widths, dtype=torch.int32)


def linear(x, widths, parts, where=None):
    """The kernel's outputs."""
    made = packed(parts) if where is None else where
    return cpu.packed_linear(x, rows_of(widths), made, num_outputs=sum(part.num_rows for part in parts))


def exact(part, width):
    """The matrix in double precision, as the format has it, and the sum of the sizes of what each weight is made of."""
    place = part.widths.index(width)
    slope, offset = np.ones(part.scales.shape), np.zeros(part.scales.shape)
    if place < len(part.widths) - 1:
        a, alpha, c, gamma = part.ranges[place].astype(np.float64)
        slope, offset = a + alpha * (part.refits[place] >> 4), c + gamma * (part.refits[place] & 15)
    group = np.arange(part.num_columns) // part.group_size
    scale, zero = part.scales.astype(np.float64)[:, group], (part.zeros / 256)[:, group]
    slope, offset = slope[:, group], offset[:, group]
    whole = scale * (slope * ((part.codes(width) + 0.5) / 2**width - 0.5) + zero + offset)
    return whole, np.abs(scale) * (np.abs(slope) + np.abs(zero) + np.abs(offset))


def assert_agrees(made, x, widths, parts, tolerance=16 * FLOAT32_STEP):
    """Every output is within `tolerance` of the double-precision product of the same int8 row, per sum of sizes."""
    matrices = {
        width: [np.concatenate(found) for found in zip(*(exact(part, width) for part in parts), strict=True)]
        for width in set(widths)
    }
    for row, width in enumerate(widths):
        rounded = rounded_row(x[row].float().numpy(), parts[0].group_size)
        whole, sizes = matrices[width]
        error = np.abs(made[row].double().numpy() - whole @ rounded)
        assert (error <= tolerance * (sizes @ np.abs(rounded))).all(), width


def rounded_row(values, group_size):
    """Each group of a row in whole steps, of its largest magnitude over 127, in double precision."""
    starts = np.arange(0, len(values), group_size)
    tops = np.maximum.reduceat(np.abs(values), starts).repeat(group_size)[: len(values)]
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(tops > 0, np.rint(values * (np.float32(127) / tops)), 0)
    return codes.astype(np.float64) * (tops / np.float32(127)).astype(np.float64)


@pytest.mark.parametrize(
    ("widths", "columns", "group_size"),
    [
        (WIDTHS, 256, 64),
        (WIDTHS, 208, 64),  # the last group is shorter
        (WIDTHS, 70, 32),  # and its last tile has columns missing
        ((1, 3, 5, 7), 96, 16),
        ((1, 2, 3, 4, 5, 6, 7, 8), 200, 48),
        ((8,), 5, 8),  # one group of less than a tile
        ((3,), 1, 128),
    ],
)
def test_every_row_is_read_at_its_width(instructions, widths, columns, group_size):
    """For batches of one to twenty rows, and stacked matrices whose rows do not fill a tile."""
    parts = [matrix(7, columns, widths, group_size, 1), matrix(33, columns, widths, group_size, 2)]
    where = packed(parts)
    generator = torch.Generator().manual_seed(0)

    for count in range(1, 21):
        x = torch.randn(count, columns, generator=generator)
        asked = [widths[(row * 5 + count) % len(widths)] for row in range(count)]
        assert_agrees(linear(x, asked, parts, where), x, asked, parts)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    group_tiles=st.integers(1, 9),
    widths=st.sets(st.integers(1, 8), min_size=1).map(sorted).map(tuple),
    count=st.integers(1, 18),
    seed=st.integers(0, 1 << 32),
)
def test_any_shape_agrees(rows, columns, group_tiles, widths, count, seed):
    """Whatever does not divide."""
    parts = [matrix(rows, columns, widths, 16 * group_tiles, seed)]
    random = np.random.default_rng(seed)
    x = torch.from_numpy((random.standard_normal((count, columns)) * 10.0 ** random.integers(-6, 6)).astype(np.float32))
    asked = random.choice(widths, count).tolist()

    assert_agrees(linear(x, asked, parts), x, asked, parts)


def test_the_largest_sums_fit(instructions):
    """All codes and all activations at their ends, in the largest group that is taken."""
    columns = 1 << 16
    parts = [
        NestedWeights.from_codes(
            np.full((16, columns), 255, np.uint8),
            scales=np.ones((16, 1), np.float16),
            zeros=np.zeros((16, 1), np.int8),
            refits=np.zeros((3, 16, 1), np.uint8),
            ranges=np.array([[1, 0, 0, 0]] * 3, np.float32),
            widths=WIDTHS,
            group_size=columns,
        )
    ]
    x = torch.stack([torch.ones(columns), -torch.ones(columns)]).repeat(4, 1)
    asked = [2, 2, 4, 4, 6, 6, 8, 8]

    assert_agrees(linear(x, asked, parts), x, asked, parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_output_has_the_type_of_the_input(instructions, dtype):
    """Rounded to the nearest, once."""
    parts = [matrix(40, 128, WIDTHS, 64, 3)]
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    asked = [WIDTHS[row % 4] for row in range(9)]

    made = linear(x, asked, parts)

    assert made.dtype == dtype
    assert torch.equal(made, linear(x.float(), asked, parts).to(dtype))


def test_a_row_answers_alike_in_any_company(instructions):
    """To the last bit: alone, in a mixed batch, in any place of it and with any number of threads."""
    parts = [matrix(50, 192, WIDTHS, 64, 4)]
    where = packed(parts)
    x = torch.randn(30, 192, generator=torch.Generator().manual_seed(0))
    asked = [WIDTHS[row * 7 % 4] for row in range(30)]

    together = linear(x, asked, parts, where)

    for row in range(30):
        assert torch.equal(linear(x[row : row + 1], asked[row : row + 1], parts, where)[0], together[row])
    assert torch.equal(linear(x.flip(0), asked[::-1], parts, where).flip(0), together)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(linear(x, asked, parts, where), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_is_not_finite_is_nan_and_leaves_others_alone(instructions, bad, dtype):
    """Rather than a number that looks right."""
    parts = [matrix(20, 96, WIDTHS, 32, 5)]
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = linear(x, [8, 4, 8], parts)
    x[1, 77] = bad

    made = linear(x, [8, 4, 8], parts)

    assert made[1].isnan().all()
    assert torch.equal(made[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-45])
def test_a_row_of_next_to_nothing_gives_zeros(instructions, size):
    """No step so small has a reciprocal."""
    parts = [matrix(20, 96, WIDTHS, 32, 5)]

    assert torch.equal(linear(torch.full((2, 96), size), [2, 8], parts), torch.zeros(2, 20))


def test_groups_of_next_to_nothing_beside_others_are_read_right(instructions):
    """Zeros, numbers that have no step, and numbers a hundred times larger than their neighbours."""
    parts = [matrix(20, 160, WIDTHS, 32, 5)]
    x = torch.randn(4, 160, generator=torch.Generator().manual_seed(0))
    x[:, 32:64] = 0
    x[1, 64:96] = 1e-35
    x[2, 96:128] *= 100

    assert_agrees(linear(x, [2, 4, 6, 8], parts), x, [2, 4, 6, 8], parts)


def test_offset_and_strided_inputs_are_read_right(instructions):
    """Rows of a slice of a larger tensor, columns apart, and a transposed tensor."""
    parts = [matrix(20, 64, WIDTHS, 32, 6)]
    wide = torch.randn(9, 261, generator=torch.Generator().manual_seed(0))
    asked = [2, 8, 4, 6]

    for x in (wide[1::2, 3:67], wide[1::2, 5:133:2], wide.T[5:69].T[::2][:4], wide[:1, :64].expand(4, 64)):
        assert torch.equal(
            linear(x, asked, parts), linear(x.clone(memory_format=torch.contiguous_format), asked, parts)
        )


def test_no_rows_give_no_outputs():
    """An empty batch is one."""
    parts = [matrix(20, 64, WIDTHS, 32, 6)]

    assert linear(torch.empty(0, 64), [], parts).shape == (0, 20)


def test_packing_keeps_the_number_of_bytes():
    """But for a head, where the shapes are whole tiles; and the planes of a width are the first of the buffer's."""
    part = matrix(256, 512, WIDTHS, 64, 7)
    made = packed([part])

    assert made.numel() - part.num_bytes < 1024
    cut = made.clone()
    start = int(made[88:96].view(torch.int64))
    size = 256 * 512 // 4
    cut[start + 2 * size : start + 4 * size] = 0xAA  # the third and fourth plane
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(linear(x, [2, 4], [part], cut), linear(x, [2, 4], [part], made))
    assert not torch.equal(linear(x, [6, 8], [part], cut), linear(x, [6, 8], [part], made))


def test_what_does_not_fit_is_refused():
    """Rather than read as something else."""
    parts = [matrix(20, 64, WIDTHS, 32, 6)]
    where, x = packed(parts), torch.randn(2, 64)
    damaged = where.clone()
    damaged[0] ^= 1
    call = torch.ops.nearfar.packed_linear

    for arguments, message in [
        ((x, rows_of([2, 5]), where, 20), "width that was not stored"),
        ((x, rows_of([2]), where, 20), "one int32 for each row"),
        ((x, rows_of([2, 8]).long(), where, 20), "one int32 for each row"),
        ((x[:, :63], rows_of([2, 8]), where, 20), "the matrix's columns"),
        ((x[0], rows_of([2]), where, 20), "the matrix's columns"),
        ((x.double(), rows_of([2, 8]), where, 20), "neither float32"),
        ((x, rows_of([2, 8]), where, 21), "another number of outputs"),
        ((x, rows_of([2, 8]), where[:-64], 20), "packed otherwise"),
        ((x, rows_of([2, 8]), where[1:], 20), "aligned tensor of bytes"),
        ((x, rows_of([2, 8]), damaged, 20), "packed otherwise"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(*arguments)
    with pytest.raises(ValueError, match="multiples of 16"):
        packed([matrix(20, 64, WIDTHS, 24, 6)])


def test_the_operation_passes_torchs_own_checks():
    """Schema, fake kernel and tracing."""
    parts = [matrix(20, 64, WIDTHS, 32, 6)]
    arguments = (torch.randn(3, 64), rows_of([2, 8, 8]), packed(parts), 20)

    torch.library.opcheck(torch.ops.nearfar.packed_linear.default, arguments)


INSTALLED = """
import sys
sys.path.insert(0, {folder!r})
import torch
from test_cpu_linear import WIDTHS, assert_agrees, matrix, rows_of, tensors
from nearfar.serving.kernels import cpu
from nearfar.serving.quantization.operation import nested_linear, reference

x, asked = torch.randn(3, 64), [2, 8, 8]
for group_size in (32, 24):
    part = matrix(20, 64, WIDTHS, group_size, 6)
    held = tensors([part])
    more = dict(part_rows=[20], widths=WIDTHS, group_size=group_size)
    before = nested_linear(x, rows_of(asked), **held, **more)
    cpu.install()
    made = nested_linear(x, rows_of(asked), **held, **more)
    if group_size == 32:
        assert_agrees(made, x, asked, [part], 1e-6)
        held["zeros"].add_(1)
        changed = nested_linear(x, rows_of(asked), **held, **more)
        assert torch.allclose(changed, reference(x, rows_of(asked), *held.values(), [20], WIDTHS, 32), rtol=0.1, atol=3)
        assert not torch.equal(changed, made)
        assert not torch.equal(before, made)
        double = nested_linear(x.double(), rows_of(asked), **held, **more)
        assert torch.equal(double, reference(x.double(), rows_of(asked), *held.values(), [20], WIDTHS, 32))
    else:
        assert torch.equal(before, made)
print("done")
"""


def test_installed_it_serves_the_formats_own_operation(tmp_path):
    """In a process of its own: what it can read, again after a change; the reference has the rest."""
    script = INSTALLED.format(folder=__file__.rpartition("/")[0])

    made = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)

    assert (made.returncode, made.stdout) == (0, "done\n"), made.stderr
