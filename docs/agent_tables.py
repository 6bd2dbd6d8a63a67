"""The measured tables of agents-measured.md, from the committed results of `benchmarks/bfcl*.py` and `agents_*.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from measured_pages import measured, share, signed

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
_ROLE_SETS = {
    "planner": {"bfcl": "BFCL, several functions", "toolalpaca": "ToolAlpaca"},
    "caller": {"bfcl": "BFCL, one call"},
}
_FIGURES = {
    "plan_accuracy": "ToolAlpaca, plan accuracy",
    "action_em": "ToolAlpaca, action exact match",
    "argument_f1": "ToolAlpaca, argument F1",
    "all_right": "ToolAlpaca, all calls right",
}
_SOURCES = {
    "apibank": "API-Bank",
    "metatool_multi": "MetaTool's for several tools",
    "metatool_single": "MetaTool's for one",
}
_DEVICES = {"cpu": "one CPU core, shared", "cuda": "one GPU"}


def agent_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the results have them; a table without results stays as it is."""
    yield measured("agents-measured.md", *((f"begin: {name}", name, table) for name, table in _TABLES.items()))


def _bfcl(results: Mapping[str, Any]) -> str:
    trained = results.get("adapters", {"categories": {}})
    heads = ["plain prompt, read leniently", "as the leaderboard reads it", "structured"]
    heads += ["structured, trained caller"] if trained["categories"] else []

    def row(found: Mapping[str, Any], beside: Mapping[str, Any] | None) -> str:
        cells = [share(found[name]) for name in ("plain", "plain_strict", "structured")]
        if trained["categories"]:
            cells.append(_beside(beside, found.get("n", results["n"])))
        return " | ".join(cells)

    lines = [
        f"{results['n']} items; {results['model']}.",
        "",
        f"| category | n | {' | '.join(heads)} | structured less plain |",
        f"|---|---:|{'---|' * (len(heads) + 1)}",
    ]
    for category, found in results["categories"].items():
        cells = row(found, trained["categories"].get(category))
        lines.append(f"| `{category}` | {found['n']} | {cells} | {signed(found['difference'])} |")
    cells, difference = row(results["macro_ast"], trained.get("macro_ast")), signed(results["macro_ast_difference"])
    lines.append(f"| **macro average over the AST categories** | | {cells} | **{difference}** |")
    plain, small = results["cost"]["plain"], results["cost"]["structured"]
    plain_cost, small_cost = (
        f"{cost['tokens_per_item']:,.0f} in {cost['model_calls_per_item']:.1f} model calls" for cost in (plain, small)
    )
    lines += [
        "",
        f"Tokens per item, prompt and answer: {plain_cost} with the plain prompt, {small_cost} in small steps.",
    ]
    if "macro_ast" in trained:
        gain, n = signed(trained["macro_ast"]["difference"]), trained["macro_ast"]["n"]
        lines.append(f"The caller's adapter changes the macro average by {gain}, on the same {n} items.")
    return "\n".join(lines)


def _beside(found: Mapping[str, Any] | None, n: int) -> str:
    if found is None:
        return "–"
    return share(found["adapters"]) + ("" if found["n"] == n else f", n = {found['n']}")


def _training(results: Mapping[str, Any]) -> str:
    trained, toolalpaca, bfcl = results["trained"], results["toolalpaca"], results["bfcl"]

    def row(label: str, n: int, found: Mapping[str, Any]) -> str:
        cells = (share(found["base"]), share(found["adapters"]), signed(found["difference"]))
        return f"| {label} | {n} | {' | '.join(cells)} |"

    lines = ["| | n | the model as it is | with its roles' adapters | difference |", "|---|---:|---|---|---|"]
    lines += [row(label, toolalpaca["n"], toolalpaca[name]) for name, label in _FIGURES.items()]
    lines += [row(f"BFCL, `{name}`", found["n"], found) for name, found in bfcl["categories"].items()]
    if "macro_ast" in bfcl:
        found = bfcl["macro_ast"]
        lines.append(row("**BFCL, macro average over the AST categories**", found["n"], found))
    losses = ["| role | turns | untrained | after the backbone | after its own stage |", "|---|---:|---:|---:|---:|"]
    backbone, *stages = trained["stages"]
    for stage in stages:
        name = stage["name"]
        values = (trained["untrained"][name], backbone["validation"][name], stage["validation"][name])
        losses.append(f"| {name} | {stage['num_turns']:,} | {' | '.join(f'{value:.2f}' for value in values)} |")
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in results["gguf_bytes"].items())
    tasks = ", ".join(f"{n:,} of {_SOURCES[name]}" for name, n in trained["tasks"].items())
    told = (
        f"Trained on {sum(trained['tasks'].values()):,} tasks ({tasks}) in {trained['seconds'] / 60:.0f} minutes of "
        f"{_DEVICES.get(trained['device'], trained['device'])}; each adapter has {trained['num_parameters']:,} numbers "
        f"({sizes})."
    )
    return "\n".join(
        [told, "Nats per token of turns that were held back:", "", *losses, "", f"{results['model']}:", "", *lines]
    )


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
        cells = [share(found[key]) for key in ("accuracy", "auroc", "escalated_least_sure", "escalated_random")]
        lines.append(f"| {label} | {found['n']} | {' | '.join(cells)} | {signed(found['gain_over_random'])} |")
    return "\n".join(lines)


def _role_scores(results: Mapping[str, Any]) -> str:
    heads = ["who, on what", "n", "right", "AUROC of the score", "of the model's own probabilities"]
    heads += ["least sure quarter from gold", "random quarter", "gain"]
    lines = [f"{results['model']}.", "", f"| {' | '.join(heads)} |", "|---|---:|---|---|---|---|---|---|"]
    listed = []
    for role, sets in results["roles"].items():
        for name, label in _ROLE_SETS[role].items():
            for kind, found in sets.get(name, {}).items():
                keys = ("accuracy", "auroc", "auroc_of_own_probabilities", "escalated_least_sure", "escalated_random")
                cells = " | ".join(share(found[key]) for key in keys)
                who = f"{role}{' with its adapter' if kind == 'adapters' else ''}, {label}"
                lines.append(f"| {who} | {found['n']} | {cells} | {signed(found['gain_over_random'])} |")
                if "accuracy_of_first_listed" in found:
                    listed.append(f"{found['accuracy_of_first_listed']:.2f} ({who.removeprefix(role).lstrip(', ')})")
    return "\n".join([*lines, "", f"What the planner lists first is right for {', '.join(listed)}."])


_TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "bfcl": _bfcl,
    "bfcl_parity": _parity,
    "agents_roles": _roles,
    "agents_role_scores": _role_scores,
    "agents_training": _training,
}
