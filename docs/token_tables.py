"""The measured tables of functional-tokens.md, from the committed result of `benchmarks/functional_tokens.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_pages import measured


def token_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the result has them."""
    yield measured("functional-tokens.md", ("measured: functional tokens", "functional_tokens", _measured))


def _measured(result: dict[str, Any]) -> str:
    n = result["n"]
    intro = (
        f"Choice among 14 workers, fitted on {n['fit']:,} queries, measured on {n['held_back']:,} that nothing was "
        "fitted on, or as many of them as n says, drawn at random. Intervals are 95 % of a bootstrap; the difference "
        "is on the same queries."
    )
    lines = [intro, "", "| who chooses | n | right | interval | less TF-IDF's |", "|---|---:|---:|---|---|"]
    for name, row in result["accuracy"].items():
        gap = row.get("minus_tfidf")
        shown = "" if gap is None else f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]"
        low, high = row["interval"]
        lines.append(f"| {name} | {row['n']} | {row['accuracy']:.3f} | [{low:.3f}, {high:.3f}] | {shown} |")
    for kind, cost in result["cost"].items():
        times = result["latency_median_s"].get(kind)
        took = (
            ""
            if times is None
            else (
                f" Median {times['prompt_and_one_token_s'] * 1000:.0f} ms for a new prompt and one token, "
                f"{times['choice_s'] * 1000:.0f} ms for a choice whose prompt is computed, "
                f"{times['one_token_s'] * 1000:.0f} ms for a plain token there, on two cores with a load of "
                f"{times['load_average']:.0f}."
            )
        )
        tokens = ", ".join(map(str, cost["completion_tokens"]))
        lines += ["", (
            f"{kind}: {tokens} token decoded per choice; the prompt has {cost['mean_prompt_tokens']:.0f} tokens, of "
            f"which {cost['mean_tokens_computed']:.0f} are computed and the rest are there from the query before.{took}"
        )]  # fmt: skip
    if result["agreement_with_vllm"]:
        lines += ["", *_agreement(result["agreement_with_vllm"])]
    adapter = result["adapter"]
    if adapter.get("gguf_bytes"):
        passes = "one pass" if adapter["epochs"] == 1 else f"{adapter['epochs']} passes"
        size = f"{adapter['num_parameters']:,} numbers, {adapter['gguf_bytes'] / 1e6:.1f} MB"
        lines += ["", f"The adapter: {size}, after {passes} over the queries on one core."]
    return "\n".join(lines)


def _agreement(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """llama.cpp's distributions beside vLLM's."""
    yield (
        "llama.cpp, from the GGUF, beside vLLM on a CPU, from the same weights dequantized: the first of the queries "
        "held back, in the table's order."
    )
    yield ""
    yield "| | n | same worker | right | total variation: mean | 95 % within | at most | labels not shown |"
    yield "|---|---:|---:|---|---:|---:|---:|---:|"
    for name, facts in found.items():
        right = " and ".join(f"{each:.3f}" for each in facts["accuracy"])
        yield (
            f"| {name.rpartition('_')[0]}, {facts['server']} | {facts['n']} | {facts['same_worker']:.1%} | {right} | "
            f"{facts['total_variation_mean']:.3f} | {facts['total_variation_p95']:.3f} | "
            f"{facts['total_variation_max']:.3f} | {facts['labels_not_shown']} |"
        )
