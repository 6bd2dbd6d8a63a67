"""The measured tables of code.md, from the committed results of `benchmarks/sandbox.py` and `benchmarks/craft.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured_pages import measured


def code_documents() -> Iterator[tuple[Path, str]]:
    """The page with its tables as the results have them."""
    yield measured(
        "code.md", ("measured: sandboxes", "sandbox", _sandbox), ("measured: crafted tools", "craft", _craft)
    )


def _sandbox(result: dict[str, Any]) -> str:
    lines = [
        "| | attacks | got out | not stopped | longest run | most memory of a process | first run | later runs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    left = []
    for name, row in result["runners"].items():
        if "skipped" in row:
            lines.append(f"| `{name}` | not here | | | | | | |")
            continue
        lines.append(
            f"| `{name}` | {row['attacks']} | {len(row['got_out'])} | {len(row['not_stopped'])} | "
            f"{row['longest_s']:.2f} s of {row['time_limit_s']:.1f} | {row['peak_of_any_process_mib']:.0f} MiB | "
            f"{row['latency']['first_s'] * 1000:.0f} ms | {row['latency']['median_s'] * 1000:.1f} ms |"
        )
        gone = row["left_behind"]
        left.append(
            f"`{name}`: {row['sessions']:,} sessions left {gone['descriptors']} descriptors, {gone['processes']} "
            f"processes and {gone['memory_bytes'] / 2**20:.1f} MiB."
        )
    told = "Times are long: the two cores were shared with much other work."
    return "\n".join([*lines, "", *left, told])


def _craft(result: dict[str, Any]) -> str:
    library, held, test = result["library"], result["held_out"], result["test"]
    several, solved = library["of_two_problems_or_more"], library["problems_in_those"]
    made = (
        f"On GSM8K, of {library['problems']:,} training problems: {library['made']:,} functions made, "
        f"{library['verified']:,} verified, {library['kept']:,} kept as different; {several:,} of them solve two "
        f"problems or more, {solved:,} problems together."
    )
    covered = (
        f"Of {held['formula_in_library']['n']:,} problems kept out, {_percent(held['formula_in_library'])} need a "
        f"formula that the library has; it is found first for {_percent(held['formula_found_first'])} and among three "
        f"for {_percent(held['formula_among_three'])}."
    )
    right = (
        f"On test problems the best tool, its arguments bound by rule, is right for "
        f"{_percent(test['best_tool_bound_by_rule'])}; one of the three best, with some order of the question's "
        f"numbers, for {_percent(test['any_of_three_with_any_arguments'])} of "
        f"{test['any_of_three_with_any_arguments']['n']}."
    )
    lines = [made, covered, right, ""]
    lines += [
        "| text by | n | text alone | tool alone | tool where it fits | answered by a tool | gain |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    rows = [(f"{name} (recorded)", row) for name, row in result["recorded"].items()]
    if small := result.get("smollm2"):
        rows.append(("SmolLM2-135M", small["steering"]))
    for name, row in rows:
        gain = row["steered_minus_text"]
        lines.append(
            f"| {name} | {row['text']['n']} | {_percent(row['text'])} | {_percent(row['code'])} | "
            f"{_percent(row['steered'])} | {_percent(row['answered_by_code'])} | "
            f"{gain['mean'] * 100:+.1f} [{gain['low'] * 100:+.1f}, {gain['high'] * 100:+.1f}] points |"
        )
    if small:
        maker = small["as_maker"]
        told = (
            f"SmolLM2 on {small['questions']} questions: {_percent(small['text'])} in text, "
            f"{_percent(small['best_tool_with_arguments_by_model'])} by the best tool with arguments that it chose "
            f"among the question's numbers under a grammar. As a maker, of {maker['problems']} solved problems it "
            f"wrote {maker['made']} functions with a call, of which {maker['kept']} stood the test."
        )
        lines += ["", told]
    return "\n".join(lines)


def _percent(share: dict[str, Any]) -> str:
    return f"{share['share'] * 100:.1f} % [{share['low'] * 100:.1f}, {share['high'] * 100:.1f}]"
