"""What the Triton kernels compile to for GPUs, counted on a machine that needs none: registers, spills, instructions.

    .venv-torch/bin/python benchmarks/gpu/instructions.py        after `make .venv-torch/.done`; some minutes

Writes benchmarks/results/gpu_instructions.json, from which docs/kernels.md has its tables and pictures.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provenance import provenance, save

from nearfar.serving.kernels.triton_census import census
from nearfar.serving.kernels.triton_linear import Tile

WIDTHS = (2, 4, 6, 8)
SMALL, NARROW, TALL = Tile(16, 128, 4, 4), Tile(16, 64, 4, 4), Tile(64, 128, 4, 3, is_swapped=True)


def main() -> None:
    """Counts all, and writes."""
    asked = [
        *(((width,), SMALL, capability, 128, True) for capability in (80, 90, 100) for width in WIDTHS),
        *(((width,), SMALL, 90, 128, True) for width in (1, 3, 5, 7)),
        *(((width,), SMALL, 90, 64, True) for width in WIDTHS),
        *(((width,), TALL, 90, 128, True) for width in WIDTHS),
        *(((width,), NARROW, 90, 128, False) for width in WIDTHS),
        (WIDTHS, SMALL, 90, 128, True),
    ]
    found = []
    for widths, tile, capability, group_size, uses_assembly in asked:
        made = census(widths, tile, capability=capability, group_size=group_size, uses_assembly=uses_assembly)
        found.append(
            {
                "widths": widths,
                "tile": asdict(tile),
                "capability": capability,
                "group_size": group_size,
                "uses_assembly": uses_assembly,
                "per_weight": made.per_weight,
                "registers": made.registers,
                "stack_bytes": made.stack_bytes,
                "shared_bytes": made.shared_bytes,
                "loops": made.loops,
            }
        )
        print(widths, tile, f"sm_{capability}", f"{made.per_weight:.2f} instructions per weight", file=sys.stderr)
    head = provenance("python benchmarks/gpu/instructions.py", ["torch", "triton"])
    print(save(head | {"kernels": found}, "gpu_instructions"))


if __name__ == "__main__":
    main()
