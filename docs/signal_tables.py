"""The measured table of signals in routing.md, from the committed results of `benchmarks/signals.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measured_pages import measured

#: What the table has, with the probe that takes the calls.
_ROWS: tuple[tuple[str, str, str | None], ...] = (
    ("mean_logprob", "`mean_logprob`", None),
    ("num_tokens", "`num_tokens`, lower", None),
    ("mean_entropy", "`mean_entropy`, lower", None),
    ("self_consistency/answer", "`self_consistency`, by answer", "samples"),
    ("self_consistency/embedding", "`self_consistency`, by embedding", "samples"),
    ("semantic_entropy/answer", "`semantic_entropy`, by answer, lower", "samples"),
    ("semantic_entropy/embedding", "`semantic_entropy`, by embedding, lower", "samples"),
    ("discrete_semantic_entropy/embedding", "`discrete_semantic_entropy`, by embedding, lower", "samples"),
    ("p_true", "`p_true`", "p_true"),
    ("self_check", "`self_check`", "self_check"),
    ("stated_confidence", "`stated_confidence`", "stated_confidence"),
)


def signal_documents() -> Iterator[tuple[Path, str]]:
    """The page with its table as the results have it; without results it stays as it is."""
    yield measured("routing.md", ("begin: signals", "signals", _table))


def _table(results: Mapping[str, Any]) -> str:
    tasks = list(results["tasks"].values())
    heads = [f"{task['title']}: {task['num_right']} of {task['n']} right" for task in tasks]
    lines = [f"| signal | calls | tokens written | {' | '.join(heads)} |", f"|---|---:|---:|{'---|' * len(tasks)}"]
    for name, label, probe in _ROWS:
        cells = []
        for task in tasks:
            found = next((row for row in task["signals"] if row["signal"] == name), None)
            cells.append("always the same" if found is None else _interval(found["auroc"], found["auroc_interval"]))
        cost = tasks[0]["costs"][probe] if probe else {"calls": 0, "completion_tokens": 0}
        lines.append(f"| {label} | {cost['calls']:.0f} | {cost['completion_tokens']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(value: float, interval: Mapping[str, float]) -> str:
    return f"{value:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"
