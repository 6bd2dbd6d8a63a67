"""What the kernels compile to for GPUs that this machine does not have: registers, spills, instructions per weight."""

import json
import os
import subprocess
import sys

import pytest
from support.triton_interpreter import triton

from nearfar.serving.kernels.triton_linear import shapes

if not triton.__version__.startswith("3.6."):
    pytest.skip(f"the limits are of Triton 3.6, and this is {triton.__version__}", allow_module_level=True)

# In a process of its own, since the tests beside it run Triton's interpreter.
SCRIPT = """
import json, sys
from nearfar.serving.kernels.triton_census import census
from nearfar.serving.kernels.triton_linear import Tile
for line in sys.stdin:
    asked = json.loads(line)
    made = census(asked.pop("widths"), Tile(*asked.pop("tile")), **asked)
    print(json.dumps([made.registers, made.stack_bytes, made.shared_bytes, made.loops]), flush=True)
"""

PROTOTYPE = {2: 2.39, 4: 3.12, 6: 3.91, 8: 5.02}  # instructions per weight, sm_90, 16 x 128
PLAIN = {2: 6.1, 4: 9.3, 6: 12.0, 8: 14.9}  # without assembly, 16 x 64
ON_HAND = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes of shared memory that a program may have


@pytest.fixture(scope="module")
def count():
    """Counts one kernel."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def ask(widths, tile, stack_bytes=0, **more):
            process.stdin.write(json.dumps({"widths": widths, "tile": tile, **more}) + "\n")
            process.stdin.flush()
            registers, stack, shared, loops = json.loads(process.stdout.readline())
            assert stack <= stack_bytes, "registers were spilled"
            assert shared <= ON_HAND[more.get("capability", 90)]
            return registers, [sum(loop.values()) for loop in loops], loops

        yield ask
        process.stdin.close()


@pytest.mark.parametrize(
    ("capability", "width"),
    [
        *((90, width) for width in PROTOTYPE),
        *((capability, 8) for capability in (80, 100)),
        *(pytest.param(capability, width, marks=pytest.mark.soak) for capability in (80, 100) for width in (2, 4, 6)),
    ],
)
def test_no_more_instructions_than_the_prototype(count, capability, width):
    """On a tile of 16 x 128, on every architecture, though the prototype's numbers are sm_90's; no spills."""
    registers, loops, (loop,) = count([width], [16, 128, 4, 4], capability=capability)

    assert loops[0] <= PROTOTYPE[width]
    assert registers <= 168  # three programs of 128 threads on a multiprocessor
    assert loop["LOP3"] <= width / 4 + 0.1  # one for each plane and two weights
    assert loop["HMMA"] == 0.25


@pytest.mark.parametrize("width", [3, *(pytest.param(width, marks=pytest.mark.soak) for width in (1, 5, 7))])
def test_odd_widths_cost_what_the_next_even_one_does(count, width):
    """They mask one bit more away."""
    _, loops, _ = count([width], [16, 128, 4, 4])

    assert loops[0] <= PROTOTYPE[width + 1]


@pytest.mark.parametrize("width", [2, 4, 6, 8])
def test_plain_triton_is_no_slower_than_the_prototypes(count, width):
    """For other vendors, and to compare with; on 16 x 64."""
    _, loops, _ = count([width], [16, 64, 4, 4], uses_assembly=False)

    assert loops[0] <= PLAIN[width]


def test_a_mixed_batch_shares_what_it_loads_and_merges(count):
    """All four widths cost less than the sum of their own kernels, and less than copying 8 bits allows."""
    _, loops, kinds = count([2, 4, 6, 8], [16, 128, 4, 4])

    assert len(loops) == 5
    assert max(loops) <= 8.0
    mixed = kinds[loops.index(max(loops))]
    assert mixed["LOP3"] <= 2.1  # as many as 8 bits alone
    assert sorted(loops)[:4] <= [limit + 0.75 for limit in PROTOTYPE.values()]


SHAPES = {
    (capability, is_mixed): sorted(
        {
            (tile.rows, tile.outputs, tile.warps, tile.stages, is_last, tile.is_swapped)
            for rows in (1, 32, 64, 128)
            for is_last, tile in enumerate(shapes(rows, capability=capability, is_mixed=is_mixed))
            if not is_last
        }
    )
    for capability in (80, 90, 100)
    for is_mixed in (False, True)
}


@pytest.mark.parametrize(
    ("capability", "is_mixed", "tile"),
    [
        pytest.param(capability, is_mixed, [*tile[:4], 2, tile[5]], marks=() if capability == 90 else pytest.mark.soak)
        for (capability, is_mixed), found in SHAPES.items()
        for tile in found
    ],
)
def test_default_tiles_compile_without_spills(count, capability, is_mixed, tile):
    """On each architecture, at the widest width or all of them, with inputs that were bfloat16 and ragged columns."""
    widths = [2, 4, 6, 8] if is_mixed else [8]

    # With all widths four registers may be kept in memory: beside 500 instructions of a loop they cost nothing.
    more = {"stack_bytes": 16 * is_mixed, "is_scaled": True, "is_ragged": True}
    registers, loops, _ = count(widths, tile, capability=capability, **more)

    assert registers <= 255
    assert max(loops) <= 12
