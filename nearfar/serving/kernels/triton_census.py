"""What the Triton kernels compile to for a GPU, counted on a machine that has none.

Triton's wheel brings ptxas, cuobjdump and nvdisasm, so registers, spills and the instructions of the main loop are
known before a GPU is at hand.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .triton_gemm import nested_gemm
from .triton_linear import Tile
from .triton_unpacking import BLOCK

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

#: The kernel's arguments that are no constants: type, and whether it is known to be a multiple of 16.
_ARGUMENTS = {
    "x_ptr": ("*fp16", True),
    "row_widths_ptr": ("*i32", True),
    "planes_ptr": ("*i16", True),
    "affine_ptr": ("*i32", True),
    "row_scale_ptr": ("*fp32", True),
    "x_scale_ptr": ("*fp32", True),
    "out_ptr": ("*fp16", True),
    "M": ("i32", False),
    "N": ("i32", True),
    "K": ("i32", True),
    "stride_m": ("i32", True),
    "plane": ("i32", True),
    "groups": ("i32", False),
    "blocks": ("i32", False),
}


@dataclass(frozen=True, slots=True)
class Census:
    """Of one compiled kernel."""

    registers: int  # of a thread
    stack_bytes: int  # of a thread; more than 0 where registers were spilled
    shared_bytes: int  # of a program
    loops: tuple[Mapping[str, float], ...]  # instructions per weight of each main loop, by name, as in the code

    @property
    def per_weight(self) -> float:
        """Instructions of a thread per weight in the longest loop."""
        return max(sum(loop.values()) for loop in self.loops)


def census(
    widths: Sequence[int],
    tile: Tile,
    *,
    capability: int = 90,
    group_size: int = BLOCK,
    is_ragged: bool = False,
    is_scaled: bool = False,
    uses_assembly: bool = True,
) -> Census:
    """Compiles the kernel for rows of `widths` and counts.

    Args:
        widths: that rows may have; several make the kernel that has a loop for each and one for mixed rows.
        tile: whose splits count only as one or more.
        capability: 80, 90 or 100.
        group_size: columns.
        is_ragged: the columns are no multiple of 128.
        is_scaled: inputs were bfloat16.
        uses_assembly: or plain Triton.
    """
    constants = {
        "WIDTHS": sum(1 << width for width in widths),
        "PLACES": sum(place << 4 * width for place, width in enumerate(widths)),
        "GROUP": group_size,
        "RAGGED": is_ragged,
        "SCALED": is_scaled,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.outputs,
        "SWAP": tile.is_swapped,
        "ASM": uses_assembly,
    }
    signature = {name: kind for name, (kind, _) in _ARGUMENTS.items()} | dict.fromkeys(constants, "constexpr")
    if tile.splits > 1:
        signature["out_ptr"] = "*fp32"
    divisible = [["tt.divisibility", 16]]
    attributes = {(place,): divisible for place, (_, is_16) in enumerate(_ARGUMENTS.values()) if is_16}
    compiled = triton.compile(
        ASTSource(fn=nested_gemm, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", binary)
        listing = _run("nvdisasm", "-c", binary)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None or "TRAP" in listing:
        raise RuntimeError(f"Triton {triton.__version__} compiles {tile} to a trap for sm_{capability}")
    weights = BLOCK * tile.outputs / (32 * tile.warps)
    loops = tuple(
        {name: count / weights for name, count in Counter(loop).most_common()}
        for loop in _loops(listing)
        if "HFMA2" in loop or "HMMA" in loop or "HGMMA" in loop
    )
    return Census(int(found[1]), int(found[2]), compiled.metadata.shared, loops)


def _run(tool: str, *arguments: object) -> str:
    command = [str(_TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 -- of Triton's wheel


def _loops(listing: str) -> list[list[str]]:
    """The instructions' names in each innermost loop: what lies between a backward branch and its label."""
    names: list[str] = []
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in listing.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(names)
        code = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)(.*?);", line)
        if code:
            target = re.search(r"`\((\.L_x_\d+)\)", code[2]) if code[1] == "BRA" else None
            names.append(code[1])
            if target and target[1] in labels:
                spans.append((labels[target[1]], len(names)))
    inner = [span for span in spans if not any(a >= span[0] and b <= span[1] and (a, b) != span for a, b in spans)]
    return [names[start:end] for start, end in inner]
