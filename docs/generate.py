"""Writes the documents that are made from something else: the command reference and the measured tables.

    python docs/generate.py            write them
    python docs/generate.py --check    fail if one is not what it would be

A number in the README stands in a committed result of `benchmarks/`, and this script copies it.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from agent_tables import agent_documents
from budget_tables import budget_documents
from call_tables import call_documents
from capacity_tables import capacity_documents
from code_tables import code_documents
from cpu_kernel_tables import cpu_kernel_documents
from gpu_kernel_tables import gpu_kernel_documents
from guarantee_tables import guarantee_documents
from measured_pages import DOCS, ROOT, filled, has_result, result
from quantization_tables import quantization_documents
from retrieval_tables import retrieval_documents
from routing_tables import routing_documents
from signal_tables import signal_documents
from token_tables import token_documents
from typer.models import ArgumentInfo, ParameterInfo

from nearfar.cli.app import app

#: What the README's table stands behind.
MARK = "measured: written by docs/generate.py"


def main() -> int:
    """Writes or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    is_check = parser.parse_args().check
    stale = []
    for path, text in documents():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not is_check:
            path.write_text(text)
    if is_check and stale:
        print(f"Out of date: {', '.join(stale)}. Run: make docs", file=sys.stderr)
        return 1
    return 0


def documents() -> Iterator[tuple[Path, str]]:
    """Each generated document with its text."""
    yield DOCS / "cli.md", cli_reference()
    yield from gpu_kernel_documents()
    yield from guarantee_documents()
    yield from agent_documents()
    yield from budget_documents()
    yield from call_documents()
    yield from capacity_documents()
    yield from code_documents()
    yield from cpu_kernel_documents()
    yield from retrieval_documents()
    yield from routing_documents()
    yield from quantization_documents()
    yield from signal_documents()
    yield from token_documents()
    readme = ROOT / "README.md"
    yield readme, filled(readme.read_text(), MARK, measured())
    yield (
        DOCS / "index.md",
        readme.read_text()
        .replace("](docs/", "](")
        .replace("](benchmarks/", "](https://github.com/nearfar/nearfar/blob/main/benchmarks/"),
    )


# --- commands --------------------------------------------------------------------------------------------------------


def cli_reference() -> str:
    """Every command's usage, arguments and options as Markdown, from the functions' own annotations."""
    parts = [
        "# Commands",
        "<!-- Written by docs/generate.py. -->",
        "Results go to stdout and progress to stderr; `--json` gives one object for programs.",
        "Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted.",
    ]
    parts += [_section(callback, path) for path, callback in _commands(app, "nearfar")]
    return "\n\n".join(parts) + "\n"


def _commands(group: typer.Typer, path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        if command.callback is not None:
            yield f"{path} {command.name or command.callback.__name__}", command.callback
    for child in group.registered_groups:
        if child.typer_instance is not None:
            name = f"{path} {child.name}"
            root = child.typer_instance.registered_callback
            if root is not None and root.callback is not None and root.invoke_without_command is True:
                yield name, root.callback
            yield from _commands(child.typer_instance, name)


def _section(callback: Callable[..., Any], path: str) -> str:
    parameters = inspect.signature(callback).parameters
    hints = get_type_hints(callback, include_extras=True)
    usage, rows = ["$", path, "[OPTIONS]"], []
    for name, parameter in parameters.items():
        annotation = hints[name]
        found = [extra for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, ParameterInfo)]
        if not found or found[0].hidden:
            continue
        info = found[0]
        if isinstance(info, ArgumentInfo):
            shown = info.metavar or name.upper()
            usage.append(shown if parameter.default is inspect.Parameter.empty else f"[{shown}]")
        else:
            # In an annotation the first declared name stands where a default would.
            named = (info.default, *(info.param_decls or ()))
            declared = [part for part in named if isinstance(part, str) and part.startswith("-")]
            shown = ", ".join(declared or [f"--{name.replace('_', '-')}"])
        rows.append(f"| `{shown}` | {_description(info, annotation, parameter.default)} |")
    help_text = " ".join((inspect.getdoc(callback) or "").split())
    lines = [f"## `{path}`", "", help_text, "", "```console", " ".join(usage), "```"]
    return "\n".join([*lines, "", "| | |", "|---|---|", *rows] if rows else lines)


def _description(info: ParameterInfo, annotation: Any, default: Any) -> str:
    text = " ".join((info.help or "").split())
    kind = get_args(annotation)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        text += " One of " + ", ".join(f"`{choice.value}`" for choice in kind) + "."
    if default not in (None, False, inspect.Parameter.empty, ""):
        text += f" Default: `{default.value if isinstance(default, Enum) else default}`."
    return text.strip().replace("|", "\\|")


# --- figures ---------------------------------------------------------------------------------------------------------


def measured() -> str:
    """The README's table, from the committed results."""
    lines = ["| what | measured | conditions |", "|---|---|---|"]
    for name, rows in (
        ("routing_predictive_routellm_mmlu", _predictive_rows),
        ("routing_cascade_mmlu_llama3_cascade", _cascade_rows),
        ("guarantees_500", _guarantee_rows),
        ("cpu_nested_gemm", _kernel_rows),
        ("main", _main_rows),
        ("gateway", _gateway_rows),
        ("startup", _startup_rows),
        ("batch", _batch_rows),
    ):
        if has_result(name):
            lines += [f"| {' | '.join(row)} |" for row in rows(result(name))]
    return "\n".join(lines)


def _predictive_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    others = {"plain tfidf ridge": "TF-IDF with ridge", "random": "random"}
    yield from _routing_rows(result, "Mixtral 8x7B or GPT-4 from the question alone (MMLU)", "auto", others)


def _cascade_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    others = {result["against"]: "its confidence alone", "random": "random"}
    yield from _routing_rows(result, "Llama 3 8B, then 70B where it is unsure (MMLU)", "hybrid", others)


def _routing_rows(
    result: dict[str, Any], title: str, router: str, others: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    by_name = {row["router"]: row for row in result["rows"]}
    sent = {name: f"{by_name[name]['cpt50']:.0f} %" for name in (router, *others)}
    beside = ", ".join(f"{called} {sent[name]}" for name, called in others.items())
    low, high = by_name[router]["intervals"]["apgr"]
    yield (
        f"{title}: queries sent to the larger one for half of its gain",
        f"{sent[router]}; {beside}",
        f"{result['n']:,} questions, out of fold; APGR {by_name[router]['apgr']:.3f} ({low:.3f} to {high:.3f})",
    )


def _guarantee_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    found = result["accepted_error"]["summary"]
    own, plug_in = found["nearfar"], found["plug-in"]
    yield (
        "Promise that accepted answers are wrong at most α, allowed to fail in 10 % of draws: fails in the worst cell",
        f"in {own['most_broken']:.1%}; the threshold that looks right on the labels in {plug_in['most_broken']:.0%}",
        f"{own['cells']} cells of {len(result['tables'])} tables, α and δ; {result['splits']} draws each",
    )


def _kernel_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    height, width = result["shape"]
    for cell in result["cells"]:
        if (cell["kernel"], cell["rows"]) == ("nested 4 bits", 1):
            ratios = ", ".join(f"{name} {ratio:.1f} ×" for name, ratio in cell["median_ratio_of_time_to"].items())
            yield (
                f"Nested weights at 4 bits, one token, {height:,} × {width:,}: how many times as long others take",
                ratios,
                f"{result['threads']} threads, {result['instructions']}; medians of {result['rounds']} rounds",
            )


def _main_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for workload in result["workloads"].values():
        by_name = {system["name"]: system for system in workload["systems"]}
        cascade, near, far, chance = (
            by_name[name] for name in ("cascade", "near alone", "far alone", "random at the same share")
        )
        score = workload["score"]
        interval = score["auroc_interval"]
        auroc = "not defined" if score["auroc"] is None else f"{score['auroc']:.2f}"
        if score["auroc"] is not None and interval["low"] is not None:
            auroc += f" ({interval['low']:.2f} to {interval['high']:.2f})"
        others = (("near alone", near), ("far alone", far), ("random at the same share", chance))
        beside = ", ".join(f"{name} {system['accuracy']:.1%}" for name, system in others)
        yield (
            f"{workload['title']}: accuracy of the cascade",
            f"{cascade['accuracy']:.1%} with {cascade['share_near']:.0%} answered near; {beside}",
            f"{workload['n']} questions, SmolLM2 live; {workload['far']['title']}",
        )
        yield f"{workload['title']}: AUROC of the score", auroc, "calibrated on other questions; 95 % interval"


def _gateway_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    comparison = result["comparison"]
    loads = {name: each for name, each in comparison.items() if isinstance(each, dict)}
    conditions = f"medians of {result['runs']} interleaved runs, mock upstream, decision log on"
    for field, what, form in (
        ("throughput_over_passthrough", "throughput over a bare Starlette + aiohttp pass-through", "{:.2f} ×"),
        ("added_p50_over_passthrough", "median latency added, over what the pass-through adds", "{:.1f} ×"),
        ("throughput_over_litellm", "throughput over LiteLLM's proxy", "{:.1f} ×"),
    ):
        shown = [
            f"{name}: {form.format(each[field])}"
            if each[field] > 0
            else f"{name}: {each['added_p50_s'] * 1e3:.2f} ms, where the pass-through adds nothing"
            for name, each in loads.items()
            if field in each
        ]
        if shown:
            yield f"gateway: {what}", "; ".join(shown), conditions
    if "peak_rss_bytes" in comparison:
        yield "gateway: peak memory without a model", f"{comparison['peak_rss_bytes'] / 1e6:.0f} MB", conditions


def _startup_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for what, ratio in result["ratios"].items():
        yield what, f"{ratio:.2f} ×", f"medians of {result['runs']} runs"


def _batch_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    largest = max(result["runs"], key=lambda run: run["records"])
    smallest = min(result["runs"], key=lambda run: run["records"])
    yield (
        f"batch of {largest['records']:,} replayed records",
        f"{largest['records_per_s']:,.0f} records a second, peak {largest['peak_rss_mb']:.0f} MB",
        f"peak at {smallest['records']:,} records: {smallest['peak_rss_mb']:.0f} MB",
    )


if __name__ == "__main__":
    sys.exit(main())
