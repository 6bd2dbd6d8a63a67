"""The GPU tables and pictures of kernels.md, from the committed counts of what the kernels compile to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_pages import DOCS, has_result, measured, result

#: Bytes a second of a copy, counting what is read and written; assumed until the benchmark has run on a GPU.
COPY = {"H100": 3.0e12, "H200": 4.3e12}

#: Instructions that all threads together start in a second: 132 multiprocessors, 128 lanes each, 1.755 GHz.
ISSUE = 132 * 128 * 1.755e9

GROUP = 128
PROTOTYPE = {2: 2.39, 4: 3.12, 6: 3.91, 8: 5.02}
WIDTHS = tuple(PROTOTYPE)


def gpu_kernel_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables, and the pictures beside it."""
    yield measured("kernels.md", ("counted: GPU kernels", "gpu_instructions", _tables))
    if has_result("gpu_instructions"):
        counts = result("gpu_instructions")
        yield DOCS / "gpu-issue.svg", _issue_picture(counts)
        yield DOCS / "gpu-roofline.svg", _roofline_picture(counts)


def read_bytes(width: int) -> float:
    """Of a weight: its planes, and four bytes for each group."""
    return 2 * -(-width // 2) / 8 + 4 / GROUP


def allowed(width: int, gpu: str) -> float:
    """Instructions per weight that can be started while its bytes are copied."""
    return read_bytes(width) / COPY[gpu] * ISSUE


def _find(result: dict[str, Any], widths: tuple[int, ...], **wanted: Any) -> dict[str, Any]:
    usual = {"capability": 90, "group_size": GROUP, "uses_assembly": True, "rows": 16, "outputs": 128} | wanted
    for kernel in result["kernels"]:
        facts = kernel | kernel["tile"]
        if tuple(kernel["widths"]) == widths and all(facts[name] == value for name, value in usual.items()):
            return dict(kernel)
    raise KeyError(widths)


def _tables(result: dict[str, Any]) -> str:
    intro = (
        f"Counted in what Triton {result['versions']['triton']} compiles, main loop, tile of 16 rows and 128 outputs, "
        "no register spilled; threads' instructions per weight. "
        "What is allowed is what the GPU can start while the weight's bytes, group of 128 included, are copied."
    )
    heads = [
        "sm_80",
        "sm_90",
        "sm_100",
        "registers, sm_90",
        "prototype, sm_90",
        "groups of 64",
        "plain Triton, 16 × 64",
    ]
    lines = [
        intro,
        "",
        "| bits | " + " | ".join([*heads, "allowed, H100", "allowed, H200"]) + " |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for width in WIDTHS:
        by_gpu = [_find(result, (width,), capability=capability)["per_weight"] for capability in (80, 90, 100)]
        cells = [
            *(f"{count:.2f}" for count in by_gpu),
            f"{_find(result, (width,))['registers']}",
            f"{PROTOTYPE[width]:.2f}",
            f"{_find(result, (width,), group_size=64)['per_weight']:.2f}",
            f"{_find(result, (width,), uses_assembly=False, outputs=64)['per_weight']:.2f}",
            f"{allowed(width, 'H100'):.2f}",
            f"{allowed(width, 'H200'):.2f}",
        ]
        lines.append(f"| {width} | " + " | ".join(cells) + " |")
    mixed = _find(result, WIDTHS)
    tall = ", ".join(f"{_find(result, (width,), rows=64)['per_weight']:.2f}" for width in WIDTHS)
    odd = ", ".join(f"{_find(result, (width,))['per_weight']:.2f}" for width in (1, 3, 5, 7))
    others = (
        f"Rows of 2, 4, 6 and 8 bits in one tile take {mixed['per_weight']:.2f} instructions per weight and "
        f"{mixed['registers']} registers; 1, 3, 5 and 7 bits alone take {odd}. "
        f"For 64 rows, with the weights as the left operand (sm_90), it is {tall}."
    )
    kinds = ["masks and merges (LOP3)", "multiply-adds (HFMA2)", "byte swaps (PRMT)", "matrix (HMMA)", "factors (FFMA)"]
    lines += [
        "",
        others,
        "",
        "What fills the loop at sm_90, per weight:",
        "",
        "| bits | " + " | ".join([*kinds, "all else"]) + " |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for width in WIDTHS:
        kernel = _find(result, (width,))
        loop = kernel["loops"][0]
        named = [loop.get(name, 0.0) for name in ("LOP3", "HFMA2", "PRMT", "HMMA", "FFMA")]
        rest = kernel["per_weight"] - sum(named)
        lines.append(f"| {width} | " + " | ".join(f"{count:.2f}" for count in [*named, rest]) + " |")
    return "\n".join(lines)


def _issue_picture(result: dict[str, Any]) -> str:
    """Instructions per weight over bits, beside what each GPU allows."""
    x = {width: 70 + 75 * place for place, width in enumerate((0, *WIDTHS))}
    top = 16.0

    def y(count: float) -> float:
        return 300 - 270 * count / top

    body = [_line(70, y(count), 390, y(count), "#ddd") for count in range(0, 17, 4)]
    body += [_text(60, y(count) + 4, f"{count}", "end") for count in range(0, 17, 4)]
    body += [_text(x[width], 320, f"{width} bits", "middle") for width in WIDTHS]
    for gpu, color, dash in (("H100", "#1f77b4", ""), ("H200", "#1f77b4", "5 4")):
        points = " ".join(f"{x[width]},{y(allowed(width, gpu)):.1f}" for width in WIDTHS)
        body.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-dasharray="{dash}"/>')
        body.append(_text(378, y(allowed(8, gpu)) + 4, f"copying, {gpu}", "start", color))
    series = (
        ("ours", "#2ca02c", lambda width: _find(result, (width,))["per_weight"]),
        ("prototype", "#999", PROTOTYPE.__getitem__),
        ("plain Triton", "#d62728", lambda w: _find(result, (w,), uses_assembly=False, outputs=64)["per_weight"]),
    )
    for name, color, count in series:
        body += [f'<circle cx="{x[width]}" cy="{y(count(width)):.1f}" r="4" fill="{color}"/>' for width in WIDTHS]
        body.append(_text(378, y(count(8)) + 4, name, "start", color))
    return _picture(500, 335, "Instructions per weight, and what a GPU can start while it copies the weight", body)


def _roofline_picture(result: dict[str, Any]) -> str:
    """How long a matrix of 4096 x 14336 takes at least, by bytes and by instructions, as bars."""
    weights = 4096 * 14336
    dense = 2 * weights / COPY["H100"] * 1e6
    body = []
    rows = [("float16", dense, 0.0)] + [
        (
            f"{width} bits",
            read_bytes(width) * weights / COPY["H100"] * 1e6,
            _find(result, (width,))["per_weight"] * weights / ISSUE * 1e6,
        )
        for width in reversed(WIDTHS)
    ]
    scale = 300 / dense
    for place, (name, by_bytes, by_instructions) in enumerate(rows):
        at = 30 + 44 * place
        body.append(_text(70, at + 20, name, "end"))
        body.append(f'<rect x="80" y="{at}" width="{by_bytes * scale:.1f}" height="14" fill="#1f77b4"/>')
        body.append(_text(85 + by_bytes * scale, at + 12, f"{by_bytes:.1f} µs to copy", "start", "#1f77b4"))
        if by_instructions:
            body.append(
                f'<rect x="80" y="{at + 16}" width="{by_instructions * scale:.1f}" height="14" fill="#2ca02c"/>'
            )
            text = f"{by_instructions:.1f} µs to start the instructions"
            body.append(_text(85 + by_instructions * scale, at + 28, text, "start", "#2ca02c"))
    return _picture(520, 260, "Least time of a 4096 × 14336 matrix on an H100, by what could bound it", body)


def _line(x0: float, y0: float, x1: float, y1: float, color: str) -> str:
    return f'<line x1="{x0}" y1="{y0:.1f}" x2="{x1}" y2="{y1:.1f}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def _picture(width: int, height: int, title: str, body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="sans-serif" font-size="12">'
    )
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, f"<title>{title}</title>", background, *body, "</svg>"]) + "\n"
