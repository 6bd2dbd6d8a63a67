"""Nested planes on a GPU beside cuBLAS and dedicated low-bit kernels: eight minutes, torch and Triton alone.

    python benchmarks/gpu/nested_gemm.py --out results

First the ceilings: a copy of 1 GiB and a matrix product of 8192 x 8192 x 8192. Then every shape and number of rows:
each kernel's result is held against float64, into a poisoned output, and only then timed: replays of a graph whose
calls go through buffers larger than the second-level cache. Ours are timed on a few tiles first; they are compiled
beforehand, in as many processes as there are processors. A baseline that cannot be loaded, or is wrong, is listed with
the reason. When the budget is spent, what is left is listed as skipped. The table comes last; the folder gets
`nested_gemm.json`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
import triton
from torch import Tensor

KERNELS = Path(__file__).resolve().parents[2] / "nearfar" / "serving" / "kernels"

#: Columns and outputs, as the shapes of x @ W.
SHAPES = ((4096, 14336), (14336, 4096), (4096, 4096), (2048, 2048))
ROWS = (1, 8, 16, 32, 64, 128)
WIDTHS = (2, 3, 4, 6, 8)
GROUP = 128

#: Of |result - float64| over the sum of the magnitudes that were added up: float16 rounds the weights, and the result.
TOLERANCE = 2e-3


def kernels(name: str) -> ModuleType:
    """A module of the kernels' folder, loaded by path: nearfar need not be installed."""
    if "nested_kernels" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "nested_kernels", KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["nested_kernels"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"nested_kernels.{name}")


class Timer(Protocol):
    """Says how long calls take that follow one another."""

    def __call__(self, calls: Sequence[Callable[[], object]]) -> float:
        """Seconds of one call."""
        ...


@dataclass
class GraphTimer:
    """The median of replays of a graph that runs all calls, over the number of calls."""

    replays: int = 15
    calls_at_least: int = 20

    def __call__(self, calls: Sequence[Callable[[], object]]) -> float:
        """Seconds of one call."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        rounds = -(-self.calls_at_least // len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        for _ in range(3):
            graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(self.replays + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize()
        took = [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks)]
        return statistics.median(took) / (rounds * len(calls))


@dataclass
class Cell:
    """One kernel at one shape and number of rows."""

    kernel: str
    columns: int
    outputs: int
    rows: int
    status: str  # "timed", or why it was not
    time_us: float | None = None
    error: float | None = None  # see TOLERANCE
    read_bytes: int | None = None  # of the weights and what belongs to them
    copy_share: float | None = None  # of the bandwidth of a copy
    over_cublas: float | None = None
    tile: dict[str, Any] | None = None


@dataclass
class Product:
    """One way to multiply, on several copies of its weights."""

    kernel: str
    read_bytes: int
    calls: list[Callable[[Tensor, Tensor], object]]  # x, and where the result goes
    exact: Tensor  # (columns, outputs) in float64, or (widths, columns, outputs)
    row_places: Tensor | None = None  # which of `exact` each row takes
    tile: dict[str, Any] | None = None


@dataclass
class Nested:
    """A random matrix in the format, and what it is worth at each width."""

    tensors: dict[str, Tensor]
    columns: int
    outputs: int
    widths: tuple[int, ...] = WIDTHS
    group: int = GROUP
    exact: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def random(cls, columns: int, outputs: int, device: torch.device) -> Nested:
        """Codes, ranges and corrections as a quantizer might have made them."""
        groups = -(-columns // GROUP)
        generator = torch.Generator(device=device).manual_seed(columns * 7 + outputs)

        def whole(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.randint(low, high, shape, generator=generator, device=device, dtype=torch.int32).to(dtype)

        lower = len(WIDTHS) - 1
        spread = torch.rand((outputs, groups), generator=generator, device=device)
        tensors = {
            "planes": whole(0, 256, (4, outputs, -(-columns // 4)), torch.uint8),
            "scales": (0.05 + 0.1 * spread).half(),
            "zeros": whole(-20, 20, (outputs, groups), torch.int8),
            "refits": whole(0, 256, (lower, outputs, groups), torch.uint8),
            "ranges": torch.tensor([[[0.8, 0.02, -0.02, 0.002]] * lower], device=device),
        }
        return cls(tensors, columns, outputs)

    def at(self, width: int) -> Tensor:
        """(columns, outputs) in float64, as docs/quantization.md defines it."""
        if width not in self.exact:
            planes = self.tensors["planes"]
            codes = torch.zeros((self.outputs, planes.shape[2], 4), dtype=torch.int32, device=planes.device)
            for plane in range(4):
                for place in range(4):
                    codes[:, :, place] |= (planes[plane] >> 2 * place & 3).int() << 6 - 2 * plane
            code = (codes.view(self.outputs, -1)[:, : self.columns] >> 8 - width).double()
            scale, middle = self.tensors["scales"].double(), self.tensors["zeros"].double() / 256
            slope, offset = torch.ones_like(scale), middle
            place = self.widths.index(width)
            if place < len(self.widths) - 1:
                a, step, c, further = self.tensors["ranges"][0, place].double()
                refit = self.tensors["refits"][place]
                slope, offset = a + step * (refit >> 4), middle + c + further * (refit & 15)
            group = torch.arange(self.columns, device=planes.device) // self.group
            value = scale[:, group] * (slope[:, group] * ((code + 0.5) / 2**width - 0.5) + offset[:, group])
            self.exact[width] = value.t().contiguous()
        return self.exact[width]


@dataclass
class Bench:
    """What all cells share."""

    device: torch.device
    timer: Timer
    clock: Callable[[], float]
    budget_s: float
    cache_bytes: int
    started_s: float = 0.0
    copy_bytes_s: float = 0.0
    cells: list[Cell] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    uses_assembly: bool | None = None
    capability: int = 0
    best: dict[tuple[Any, ...], Any] = field(default_factory=dict)  # tiles, by shape, rows and width

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.clock() - self.started_s > self.budget_s

    def copies(self, read_bytes: int) -> int:
        """How many buffers of a size are more than twice the cache, so that no call finds its own there."""
        return max(2, min(128, 1 + math.ceil(2 * self.cache_bytes / read_bytes)))

    def measure(self, product: Product, x: Tensor) -> None:
        """Checks, times and notes one cell."""
        cell = Cell(product.kernel, x.shape[1], product.exact.shape[-1], len(x), "timed")
        cell.read_bytes, cell.tile = product.read_bytes, product.tile
        self.cells.append(cell)
        if self.is_over:
            cell.status = "skipped: the budget is spent"
            return
        try:
            out = torch.full((len(x), cell.outputs), float("nan"), dtype=x.dtype, device=x.device)
            made = product.calls[-1](x, out)
            cell.error = error(made if isinstance(made, Tensor) else out, x, product)
            if not cell.error <= TOLERANCE:
                cell.status = f"wrong: off by {cell.error:.1e} of what is added up"
                return
            took_s = self.timer([lambda call=call: call(x, out) for call in product.calls])  # type: ignore[misc]
        except Exception as exc:  # a baseline may fail in any way, and none may end the run
            cell.status = f"failed: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"[:200]
            return
        cell.time_us = took_s * 1e6
        cell.copy_share = product.read_bytes / took_s / self.copy_bytes_s


def error(made: Tensor, x: Tensor, product: Product) -> float:
    """The largest difference to float64 over the sum of the magnitudes added up; inf where one is not finite."""
    exact = product.exact if product.row_places is not None else product.exact[None]
    places = (
        torch.zeros(len(x), dtype=torch.long, device=x.device) if product.row_places is None else product.row_places
    )
    worst = 0.0
    for place in places.unique().tolist():
        rows = places == place
        true = x[rows].double() @ exact[place]
        off = (made[rows].double() - true).abs() / (x[rows].double().abs() @ exact[place].abs())
        worst = max(worst, float(off.max()) if bool(off.isfinite().all()) else math.inf)
    return worst


def ceilings(bench: Bench, *, is_small: bool) -> dict[str, float]:
    """Bytes a second of a copy, read and written, and operations a second of a matrix product."""
    size = 1 << (20 if is_small else 29)
    side = 256 if is_small else 8192
    source, left, right = (
        torch.randn(shape, device=bench.device, dtype=torch.float32).half()
        for shape in (size, (side, side), (side, side))
    )
    target, out = torch.empty_like(source), torch.empty_like(left)
    copy_s = bench.timer([lambda: target.copy_(source)] * 2)
    product_s = bench.timer([lambda: torch.mm(left, right, out=out)] * 2)
    bench.copy_bytes_s = 2 * source.numel() * source.element_size() / copy_s
    return {"copy_bytes_s": bench.copy_bytes_s, "matmul_flops": 2 * side**3 / product_s}


def cublas(bench: Bench, nested: Nested) -> Product:
    """The matrix in float16, outputs by columns as torch's layers keep it."""
    dense = nested.at(WIDTHS[-1]).t().contiguous().half()
    buffers = [dense] + [dense.clone() for _ in range(bench.copies(2 * dense.numel()) - 1)]
    calls = [lambda x, out, buffer=buffer: torch.mm(x, buffer.t(), out=out) for buffer in buffers]
    return Product("cuBLAS fp16", 2 * dense.numel(), calls, dense.t().double())


@dataclass(frozen=True)
class Ours:
    """One of our kernels: what is stored, what rows have, what the launch is told."""

    name: str
    stored: tuple[int, ...]
    rows: tuple[int, ...]  # the widths of rows, in turn
    told: tuple[int, ...] | None  # None: the kernel finds the rows' widths out
    uses_assembly: bool = True


def ours() -> tuple[Ours, ...]:
    """Nested planes at each width, told and not, those of one width alone, mixed rows, and plain Triton."""
    return (
        *(Ours(f"nested w{width}", WIDTHS, (width,), (width,)) for width in WIDTHS),
        Ours("nested mixed", WIDTHS, WIDTHS, None),
        *(Ours(f"nested w{width}, found out", WIDTHS, (width,), None) for width in WIDTHS),
        *(Ours(f"plain Triton w{width}", WIDTHS, (width,), (width,), False) for width in (4, 8)),
        *(Ours(f"dedicated w{width}", (width,), (width,), (width,)) for width in WIDTHS),
    )


def packed(nested: Nested, stored: tuple[int, ...]) -> Any:
    """The matrix as the kernels read it; with one width, a matrix of that width alone with the same values."""
    weights = kernels("triton_weights").repack(
        **nested.tensors, part_rows=[nested.outputs], widths=WIDTHS, group_size=GROUP, columns=nested.columns
    )
    if stored == WIDTHS:
        return weights
    (width,) = stored
    one = weights.groups * weights.rows
    place = WIDTHS.index(width)
    slack = kernels("triton_weights").SLACK
    words = torch.cat([weights.words[: -(-width // 2) * weights.plane], weights.words[-slack * 16 :]])
    affine = torch.cat([weights.affine[place * one : (place + 1) * one], weights.affine[-slack:]])
    return type(weights)(words, affine, weights.row_scale, stored, GROUP, weights.rows, weights.columns)


def clone(weights: Any) -> Any:
    """Other memory with the same contents."""
    return type(weights)(
        weights.words.clone(),
        weights.affine.clone(),
        weights.row_scale.clone(),
        weights.widths,
        weights.group_size,
        weights.rows,
        weights.columns,
    )


def tiles(bench: Bench, rows: int, shape: tuple[int, int], kind: Ours) -> tuple[Any, ...]:
    """The candidates of one kernel; what is compared with a nested width gets the tile that was best for that."""
    if kind.told and (kind.stored, kind.uses_assembly) != (WIDTHS, True) and (*shape, rows, kind.told) in bench.best:
        return (bench.best[*shape, rows, kind.told],)
    candidates = kernels("triton_tuning").candidates
    return tuple(candidates(rows, shape[0], capability=bench.capability, is_mixed=kind.told is None))


def product(bench: Bench, nested: Nested, kind: Ours, buffers: Sequence[Any], x: Tensor) -> Product:
    """One of ours at the fastest of its tiles."""
    linear = kernels("triton_linear")
    asked = [kind.rows[row % len(kind.rows)] for row in range(len(x))]
    row_widths = torch.tensor(asked, dtype=torch.int32, device=x.device)
    options: dict[str, Any] = {"present": kind.told, "uses_assembly": bench.uses_assembly and kind.uses_assembly}

    def calls(tile: Any) -> list[Callable[[Tensor, Tensor], object]]:
        return [
            lambda x, out, buffer=buffer: linear.nested_matmul(x, row_widths, buffer, tile=tile, out=out, **options)
            for buffer in buffers
        ]

    best, least_s = None, math.inf
    out = torch.empty((len(x), nested.outputs), dtype=x.dtype, device=x.device)
    reasons = []
    for tile in tiles(bench, len(x), (nested.columns, nested.outputs), kind):
        if best is not None and bench.is_over:
            break
        try:
            took_s = bench.timer([lambda call=call: call(x, out) for call in calls(tile)])  # type: ignore[misc]
        except Exception as exc:  # a tile may ask for more than a GPU has
            reasons.append(f"{type(exc).__name__}: {exc}")
            continue
        if took_s < least_s:
            best, least_s = tile, took_s
    if best is None:
        raise RuntimeError(f"no tile runs: {reasons[0] if reasons else 'there is none'}")
    if kind.told:
        bench.best.setdefault((nested.columns, nested.outputs, len(x), kind.told), best)
    places = sorted(set(asked))
    return Product(
        kind.name,
        buffers[0].read_bytes(max(asked)),
        calls(best),
        torch.stack([nested.at(width) for width in places]),
        torch.tensor([places.index(width) for width in asked], device=x.device),
        asdict(best),
    )


def vllm_products(bench: Bench, columns: int, outputs: int) -> Iterator[tuple[str, Callable[[], Product]]]:
    """vLLM's kernels for 4 and 8 bits in symmetric groups, by one interface; each may say that it cannot."""
    for name, module in (("Marlin", "marlin"), ("Machete", "machete"), ("Humming", "humming")):
        for bits in (4, 8):
            yield (
                f"{name} w{bits}",
                lambda name=name, module=module, bits=bits: _vllm_product(  # type: ignore[misc]
                    bench, f"{name} w{bits}", f"{name}LinearKernel", module, bits, columns, outputs
                ),
            )


def _vllm_product(bench: Bench, name: str, kind: str, module: str, bits: int, columns: int, outputs: int) -> Product:
    folder = "vllm.model_executor.kernels.linear.mixed_precision"
    chosen = getattr(importlib.import_module(f"{folder}.{module}"), kind)
    config_type = importlib.import_module(f"{folder}.MPLinearKernel").MPLinearLayerConfig
    parameter = importlib.import_module("vllm.model_executor.parameter")
    scalar_types = importlib.import_module("vllm.scalar_type").scalar_types
    config = config_type(
        full_weight_shape=(columns, outputs),
        partition_weight_shape=(columns, outputs),
        weight_type=scalar_types.uint4b8 if bits == 4 else scalar_types.uint8b128,
        act_type=torch.float16,
        group_size=GROUP,
        zero_points=False,
    )
    can, why = chosen.can_implement(config)
    if not can:
        raise RuntimeError(why)
    _alone_in_vllm()
    generator = torch.Generator(device=bench.device).manual_seed(bits)
    per_word, middle = 32 // bits, 1 << (bits - 1)
    codes = torch.randint(0, 1 << bits, (columns, outputs), generator=generator, device=bench.device)
    shifts = (torch.arange(per_word, device=bench.device) * bits)[None, :, None]
    words = (codes.view(columns // per_word, per_word, outputs) << shifts).sum(1)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    scales = (0.001 + 0.001 * torch.rand((columns // GROUP, outputs), device=bench.device)).half()
    exact = (codes - middle).double() * scales.double().repeat_interleave(GROUP, 0)
    read_bytes = columns * outputs * bits // 8 + 2 * scales.numel()

    def unused(*_: Any) -> None:
        raise RuntimeError("nothing is loaded")

    def layer() -> Callable[[Tensor, Tensor], object]:
        module = torch.nn.Module()
        places = {"input_dim": 0, "output_dim": 1, "weight_loader": unused}
        module.register_parameter(
            "weight_packed",
            parameter.PackedvLLMParameter(data=words.clone(), packed_dim=0, packed_factor=per_word, **places),
        )
        module.register_parameter("weight_scale", parameter.GroupQuantScaleParameter(data=scales.clone(), **places))
        kernel = chosen(config, w_q_param_name="weight_packed", w_s_param_name="weight_scale")
        kernel.process_weights_after_loading(module)
        return lambda x, out: kernel.apply_weights(module, x)

    return Product(name, read_bytes, [layer() for _ in range(bench.copies(read_bytes))], exact)


def _alone_in_vllm() -> None:
    """Makes vLLM's groups for a single process, which its parameters ask for."""
    state = importlib.import_module("vllm.distributed.parallel_state")
    if not state.model_parallel_is_initialized():
        vllm_config = importlib.import_module("vllm.config")
        with vllm_config.set_current_vllm_config(vllm_config.VllmConfig()):
            state.init_distributed_environment(1, 0, "tcp://127.0.0.1:29577", 0, "gloo")
            state.initialize_model_parallel(1, 1)


def precompile(jobs: Sequence[tuple[Any, ...]]) -> None:
    """Compiles kernels into Triton's cache on disk, as many at a time as there are processors."""
    if jobs:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1, 16), mp_context=context) as pool:
            list(pool.map(_compile, jobs, chunksize=1))


def _compile(job: tuple[Any, ...]) -> None:
    """One kernel, by a launch on a small matrix that Triton compiles for in the same way."""
    kind, tile, rows = job
    device = torch.device("cuda")
    nested = Nested.random(1024, 256, device)
    weights = packed(nested, kind.stored)
    x = torch.zeros((rows, 1024), device=device).half()
    row_widths = torch.full((rows,), kind.rows[0], dtype=torch.int32, device=device)
    try:
        kernels("triton_linear").nested_matmul(
            x, row_widths, weights, present=kind.told, tile=tile, uses_assembly=kind.uses_assembly
        )
        torch.cuda.synchronize()
    except Exception:  # the run says so where it needs the tile
        return


def jobs_for(bench: Bench, rows: Sequence[int]) -> list[tuple[Any, ...]]:
    """Each kernel once: neither the split nor what else is stored changes what is compiled."""
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for kind in ours():
        for count in rows:
            for tile in tiles(bench, count, SHAPES[0], kind):
                key = (kind.told, kind.uses_assembly, replace(tile, splits=1), tile.splits > 1)
                found.setdefault(key, (kind, tile, count))
    return sorted(found.values(), key=lambda job: job[0].told is not None)


def shape(bench: Bench, columns: int, outputs: int, rows: Sequence[int]) -> None:
    """All cells of one shape."""
    nested = Nested.random(columns, outputs, bench.device)
    generator = torch.Generator(device=bench.device).manual_seed(0)
    inputs = {count: torch.randn((count, columns), generator=generator, device=bench.device).half() for count in rows}
    base = cublas(bench, nested)
    for x in inputs.values():
        bench.measure(base, x)
    del base
    for name, make in vllm_products(bench, columns, outputs):
        if bench.is_over:
            bench.missing.setdefault(name, "skipped: the budget is spent")
            continue
        try:
            found = make()
        except Exception as exc:  # not installed, not for this GPU, of another version: none may end the run
            bench.missing.setdefault(
                name, f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"[:200]
            )
            continue
        for x in inputs.values():
            bench.measure(found, x)
        del found
    buffers: dict[tuple[int, ...], list[Any]] = {}
    for kind in ours():
        if kind.stored not in buffers:
            buffers.clear()
            first = packed(nested, kind.stored)
            smallest = first.read_bytes(min(kind.stored))
            buffers[kind.stored] = [first] + [clone(first) for _ in range(bench.copies(smallest) - 1)]
        for x in inputs.values():
            if bench.is_over:
                bench.cells.append(Cell(kind.name, columns, outputs, len(x), "skipped: the budget is spent"))
                continue
            try:
                made = product(bench, nested, kind, buffers[kind.stored], x)
            except Exception as exc:  # said in the table
                bench.cells.append(Cell(kind.name, columns, outputs, len(x), f"failed: {exc}"[:200]))
                continue
            bench.measure(made, x)


def compare(cells: Sequence[Cell]) -> None:
    """Fills in how much faster than cuBLAS each cell is."""
    base = {(cell.columns, cell.outputs, cell.rows): cell.time_us for cell in cells if cell.kernel == "cuBLAS fp16"}
    for cell in cells:
        against = base.get((cell.columns, cell.outputs, cell.rows))
        if cell.time_us is not None and against is not None:
            cell.over_cublas = against / cell.time_us


def table(bench: Bench, found: dict[str, float], rows: Sequence[int]) -> str:
    """Times over cuBLAS' for each shape, and what is missing."""
    head = (
        f"copy {found['copy_bytes_s'] / 1e12:.2f} TB/s, product {found['matmul_flops'] / 1e12:.0f} TFLOP/s; "
        "speed over cuBLAS fp16 (its microseconds), by rows"
    )
    lines = [head]
    for columns, outputs in dict.fromkeys((cell.columns, cell.outputs) for cell in bench.cells):
        here = [cell for cell in bench.cells if (cell.columns, cell.outputs) == (columns, outputs)]
        lines.append(f"\n{f'{columns} x {outputs}':22}" + "".join(f"{f'M={count}':>9}" for count in rows))
        for kernel in dict.fromkeys(cell.kernel for cell in here):
            by_rows = {cell.rows: cell for cell in here if cell.kernel == kernel}
            shown = []
            for count in rows:
                cell = by_rows.get(count)
                if cell is None or cell.time_us is None:
                    shown.append("-" if cell is None else cell.status.split(":")[0])
                elif kernel == "cuBLAS fp16":
                    shown.append(f"({cell.time_us:.1f})")
                else:
                    shown.append(f"{cell.over_cublas:.2f}" if cell.over_cublas else f"{cell.time_us:.1f} us")
            lines.append(f"{kernel:22}" + "".join(f"{one:>9}" for one in shown))
    reasons = dict.fromkeys(
        f"{cell.kernel}: {cell.status}" for cell in bench.cells if cell.status.startswith(("failed", "wrong"))
    )
    lines += ["", *(f"{name}: {why}" for name, why in bench.missing.items()), *reasons]
    return "\n".join(lines)


def main(
    arguments: Sequence[str] | None = None,
    *,
    timer: Timer | None = None,
    clock: Callable[[], float] = time.monotonic,
    device: str = "cuda",
) -> Path:
    """Runs, prints the table, and returns the path of the JSON. Without a GPU, `timer` and `device` stand in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for nested_gemm.json")
    parser.add_argument("--budget", type=float, default=440, metavar="SECONDS", help="what is left after it is skipped")
    parser.add_argument(
        "--shapes", default=",".join(f"{a}x{b}" for a, b in SHAPES), help="columns x outputs, and so on"
    )
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="of x")
    options = parser.parse_args(arguments)
    shapes = [tuple(int(side) for side in one.split("x")) for one in options.shapes.split(",")]
    rows = [int(count) for count in options.rows.split(",")]
    if timer is None and not torch.cuda.is_available():
        sys.exit("skipped: torch finds no GPU here")
    started_s = clock()
    on_gpu = device == "cuda"
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    bench = Bench(
        torch.device(device),
        GraphTimer() if timer is None else timer,
        clock,
        options.budget,
        properties.L2_cache_size if properties else 1 << 12,
        started_s,
        uses_assembly=on_gpu and torch.version.hip is None,
        capability=kernels("triton_linear").capability_of(torch.device(device)),
    )
    found = ceilings(bench, is_small=not on_gpu)
    if on_gpu:
        try:
            precompile(jobs_for(bench, rows))
        except Exception as exc:  # a process was killed, say: then each kernel is compiled when it is first needed
            bench.missing["compiling beforehand"] = f"{type(exc).__name__}: {exc}"[:200]
    compiled_s = clock() - started_s
    for columns, outputs in shapes:
        shape(bench, columns, outputs, rows)
    compare(bench.cells)
    results = {
        "command": f"python benchmarks/gpu/nested_gemm.py --out OUT --shapes {options.shapes} --rows {options.rows}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(0) if on_gpu else None,
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()},
        "kernel_version": kernels("triton_linear").KERNEL_VERSION,
        "timer": type(bench.timer).__name__,
        "group_size": GROUP,
        "widths": WIDTHS,
        "tolerance": TOLERANCE,
        "ceilings": found,
        "compiled_s": compiled_s,
        "took_s": clock() - started_s,
        "missing": bench.missing,
        "cells": [asdict(cell) for cell in bench.cells],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = Path(options.out) / "nested_gemm.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(table(bench, found, rows))
    return path


if __name__ == "__main__":
    main()
