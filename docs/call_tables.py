"""The measured table of calls.md, from the committed result of `benchmarks/constrained_calls.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measured_pages import measured

_KINDS = {"bfcl": "BFCL's functions", "fuzzed": "fuzzed schemas", "200 tools": "200 tools at once", "all": "all"}


def call_documents() -> Iterator[tuple[Path, str]]:
    """The page with its table as the result has it; without a result it stays as it is."""
    yield measured("calls.md", ("measured: calls", "constrained_calls", _table))


def _table(result: Mapping[str, Any]) -> str:
    told = "SmolLM2-135M at temperature 1, held to one of these schemas and cut off after 8 to 40 tokens"
    lines = [
        f"{told} (`benchmarks/constrained_calls.py`):",
        "",
        "| | calls | invalid | finished after the limit |",
        "| --- | ---: | ---: | ---: |",
    ]
    for kind, name in _KINDS.items():
        if kind in result["by_kind"]:
            found = result["by_kind"][kind]
            cells = (found[key] for key in ("calls", "invalid", "finished_after_the_limit"))
            lines.append(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    if not result["by_kind"]["all"]["invalid"]:
        below = f"{result['invalid_rate_below']:.2%}"
        lines += ["", f"So fewer than {below} of such calls are invalid, with 95 % confidence (the rule of three)."]
    cost = result["overhead"]
    held, free, built = cost["tokens_per_s_held"], cost["tokens_per_s_free"], cost["grammar_ms"]["median"]
    lines += [
        "",
        f"Held, the model decodes {held:.1f} tokens/s, free {free:.1f} (medians, one thread).",
        f"A grammar takes {built:.0f} ms to build, once for every set of tools.",
    ]
    return "\n".join(lines)
