"""The operation agrees with the format's reference in double precision, row by row, and traces."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")

from nearfar.serving.quantization.format import NestedWeights  # noqa: E402
from nearfar.serving.quantization.operation import dequantize, nested_linear  # noqa: E402


def matrix(rows, columns, widths, group_size, seed=0):
    """A random one."""
    random = np.random.default_rng(seed)
    groups = -(-columns // group_size)
    return NestedWeights.from_codes(
        random.integers(0, 1 << widths[-1], (rows, columns), dtype=np.uint8),
        scales=random.uniform(0.01, 2, (rows, groups)).astype(np.float16),
        zeros=random.integers(-128, 128, (rows, groups)).astype(np.int8),
        refits=random.integers(0, 256, (len(widths) - 1, rows, groups), dtype=np.uint8),
        ranges=random.uniform(-0.5, 1, (len(widths) - 1, 4)).astype(np.float32),
        widths=widths,
        group_size=group_size,
    )


def stacked(parts):
    """The tensors of matrices above one another, as the operation takes them."""
    tensors = [{name: torch.from_numpy(array) for name, array in part.tensors().items()} for part in parts]
    return {
        "planes": torch.cat([part["planes"] for part in tensors], 1),
        "scales": torch.cat([part["scales"] for part in tensors]),
        "zeros": torch.cat([part["zeros"] for part in tensors]),
        "refits": torch.cat([part["refits"] for part in tensors], 1),
        "ranges": torch.stack([part["ranges"] for part in tensors]),
    }


@pytest.mark.parametrize(
    ("widths", "columns", "group_size"),
    [((2, 4, 6, 8), 128, 64), ((2, 4, 6, 8), 70, 32), ((1, 3, 5, 7), 33, 16), ((8,), 5, 8), ((3,), 9, 4)],
)
def test_every_row_is_read_at_its_width(widths, columns, group_size):
    """Also where matrices are stacked that have ranges of their own."""
    parts = [matrix(7, columns, widths, group_size, 1), matrix(3, columns, widths, group_size, 2)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, columns, generator=generator)
    row_widths = torch.tensor([widths[i % len(widths)] for i in range(11)], dtype=torch.int32)

    made = nested_linear(x, row_widths, **stacked(parts), part_rows=[7, 3], widths=widths, group_size=group_size)

    for row, width in enumerate(row_widths.tolist()):
        whole = np.concatenate([part.at(width) for part in parts]).astype(np.float64)
        exact = whole @ x[row].double().numpy()
        bound = 1e-5 * (np.abs(whole) @ x[row].abs().double().numpy())
        assert (np.abs(made[row].double().numpy() - exact) <= bound).all()


def test_a_row_answers_alike_in_any_company():
    """A width's rows are computed apart from the others'."""
    weights = stacked([matrix(16, 64, (2, 4, 8), 32)])
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    more = {"part_rows": [16], "widths": (2, 4, 8), "group_size": 32}

    mixed = nested_linear(x, torch.tensor([2, 8, 4, 8, 2, 4], dtype=torch.int32), **weights, **more)
    eights = nested_linear(x[[1, 3]], torch.tensor([8, 8], dtype=torch.int32), **weights, **more)

    assert torch.equal(mixed[[1, 3]], eights)


def test_the_operation_passes_torchs_own_checks():
    """Schema, fake kernel and tracing."""
    weights = stacked([matrix(8, 64, (2, 8), 32)])
    x, row_widths = torch.randn(3, 64), torch.tensor([2, 8, 8], dtype=torch.int32)
    arguments = (x, row_widths, *weights.values(), [8], [2, 8], 32)

    torch.library.opcheck(torch.ops.nearfar.nested_linear.default, arguments)


def test_the_operation_is_one_node_of_a_compiled_graph():
    """With the widths read at run time: the same graph serves other ones."""
    weights = stacked([matrix(8, 64, (2, 8), 32)])

    def layer(x, row_widths):
        return nested_linear(x, row_widths, **weights, part_rows=[8], widths=(2, 8), group_size=32) + 1

    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(3, 64)
    for widths in ([2, 8, 8], [8, 2, 2]):
        asked = torch.tensor(widths, dtype=torch.int32)
        assert torch.equal(compiled(x, asked), layer(x, asked))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_output_has_the_type_of_the_input(dtype):
    """And differs from float32 by its rounding alone."""
    weights = stacked([matrix(8, 64, (2, 8), 32)])
    x = torch.randn(3, 64, dtype=dtype)
    row_widths = torch.full((3,), 8, dtype=torch.int32)
    more = {"part_rows": [8], "widths": (2, 8), "group_size": 32}

    made = nested_linear(x, row_widths, **weights, **more)

    assert made.dtype == dtype
    exact = nested_linear(x.float(), row_widths, **weights, **more)
    assert torch.allclose(made.float(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize(("row_widths", "message"), [([2, 4, 8], "rows ask for widths"), ([2, 8], "one width per row")])
def test_widths_that_do_not_fit_are_refused(row_widths, message):
    """Rather than read as something else."""
    weights = stacked([matrix(8, 64, (2, 8), 32)])

    with pytest.raises(ValueError, match=message):
        nested_linear(
            torch.randn(3, 64),
            torch.tensor(row_widths, dtype=torch.int32),
            **weights,
            part_rows=[8],
            widths=(2, 8),
            group_size=32,
        )


def test_an_offset_and_strided_input_is_read_right():
    """The rows of a slice of a larger tensor."""
    weights = stacked([matrix(8, 64, (2, 8), 32)])
    wide = torch.randn(9, 130)
    x = wide[1::2, 3:67]
    row_widths = torch.tensor([2, 8, 2, 8], dtype=torch.int32)
    more = {"part_rows": [8], "widths": (2, 8), "group_size": 32}

    assert torch.allclose(
        nested_linear(x, row_widths, **weights, **more), nested_linear(x.contiguous(), row_widths, **weights, **more)
    )


def test_dequantizing_is_the_formats_own():
    """To the last bits of float32, at every width."""
    weights = matrix(9, 100, (2, 4, 6, 8), 32)

    for width in weights.widths:
        made = dequantize(
            **stacked([weights]), part_rows=[9], widths=weights.widths, group_size=32, width=width, num_columns=100
        )
        np.testing.assert_allclose(made.numpy(), weights.at(width), rtol=1e-5, atol=1e-6)
