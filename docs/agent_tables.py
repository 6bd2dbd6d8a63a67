"""The measured tables of agents-measured.md, from the committed results of `benchmarks/bfcl*.py` and `agents_*.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "agents-measured.md"
RESULTS = ROOT / "benchmarks" / "results"

_KINDS = {
    "gold": "gold answers as text",
    "gold_values": "gold answers as JSON values",
    "damaged": "answers made from gold ones",
    "relevance": "answers where only relevance is asked",
    "model": "answers that SmolLM2 wrote",
}
_SETS = {
    "bfcl_several_tools": "BFCL, several functions",
    "bfcl_all": "BFCL, all with gold calls",
    "toolalpaca": "ToolAlpaca",
}


def agent_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the results have them; a table without results stays as it is."""
    text = PAGE.read_text()
    for name, table in _TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            before, rest = text.split(f"<!-- begin: {name} -->", 1)
            after = rest.split("<!-- end -->", 1)[1]
            made = table(json.loads(path.read_text()))
            text = f"{before}<!-- begin: {name} -->\n{made}\n<!-- end -->{after}"
    yield PAGE, text


def _bfcl(results: Mapping[str, Any]) -> str:
    lines = [
        f"{results['n']} items; {results['model']}.",
        "",
        "| category | n | plain prompt, read leniently | as the leaderboard reads it | structured | difference |",
        "|---|---:|---|---|---|---|",
    ]
    for category, found in results["categories"].items():
        lines.append(f"| `{category}` | {found['n']} | {_row(found)} | {_signed(found['difference'])} |")
    difference = _signed(results["macro_ast_difference"])
    lines.append(f"| **macro average over the AST categories** | | {_row(results['macro_ast'])} | **{difference}** |")
    plain, small = results["cost"]["plain"], results["cost"]["structured"]
    plain_cost, small_cost = (
        f"{cost['tokens_per_item']:,.0f} in {cost['model_calls_per_item']:.1f} model calls" for cost in (plain, small)
    )
    told = f"Tokens per item, prompt and answer: {plain_cost} with the plain prompt, {small_cost} in small steps."
    return "\n".join([*lines, "", told])


def _row(found: Mapping[str, Any]) -> str:
    return " | ".join(_interval(found[name]) for name in ("plain", "plain_strict", "structured"))


def _parity(results: Mapping[str, Any]) -> str:
    lines = ["| answers | n | same verdict | right for the official checker |", "|---|---:|---:|---:|"]
    for name, label in _KINDS.items():
        if name in results["kinds"]:
            lines.append(_parity_row(label, results["kinds"][name]))
    languages = {"python": "Python", "java": "Java", "javascript": "JavaScript"}
    told = [
        _parity_row(f"all with gold calls in {label}", results["languages"][name]) for name, label in languages.items()
    ]
    return "\n".join([*lines, *told])


def _parity_row(label: str, found: Mapping[str, Any]) -> str:
    return f"| {label} | {found['n']:,} | {found['same_verdict']:.2%} | {found['official_right']:,} |"


def _roles(results: Mapping[str, Any]) -> str:
    lines = [
        "| plans | n | right | AUROC of the score | least sure quarter from gold | random quarter | gain |",
        "|---|---:|---|---|---|---|---|",
    ]
    for name, label in _SETS.items():
        found = results["sets"][name]
        cells = [_interval(found[key]) for key in ("accuracy", "auroc", "escalated_least_sure", "escalated_random")]
        lines.append(f"| {label} | {found['n']} | {' | '.join(cells)} | {_signed(found['gain_over_random'])} |")
    return "\n".join(lines)


def _interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.2f} ({low:.2f} – {high:.2f})"


def _signed(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:+.2f} ({low:+.2f} to {high:+.2f})"


_TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "bfcl": _bfcl,
    "bfcl_parity": _parity,
    "agents_roles": _roles,
}
