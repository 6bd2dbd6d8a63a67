"""The measured tables of the pages on retrieval and tools, from the committed results of `benchmarks/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measured_pages import DOCS, filled, result


def retrieval_documents() -> Iterator[tuple[Path, str]]:
    """The pages with their tables as the result has them."""
    found = result("retrieval") | {"scale": result("retrieval_scale")}
    found["compression"]["untouched"] = found.get("untouched")
    tables = {
        "scifact": _scifact, "multi-hop": _multi_hop, "compression": _compression, "speech": _speech, "tools": _tools,
        "scale": _scale,
    }  # fmt: skip
    for name in ("retrieval-quality.md", "tools.md", "retrieval.md"):
        path = DOCS / name
        text = path.read_text()
        for key, table in tables.items():
            mark, part = f"measured: {key}", found.get(key.replace("-", "_"))
            if f"<!-- {mark} -->" in text and part is not None:
                text = filled(text, mark, "\n".join(table(part)))
        yield path, text


def _cell(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _gain(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _scifact(part: Mapping[str, Any]) -> list[str]:
    fresh = part["ndcg@10 where no training query has the documents"]
    lines = [
        "| stage | nDCG@10 | over the stage before | R@10 | R@100 | ms a query |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {stage['name']} | {_cell(stage['ndcg@10'])} | {_gain(stage['ndcg@10_gain'])} "
        f"| {stage['recall@10']['value']:.3f} | {stage['recall@100']['value']:.3f} | {stage['latency_ms']:.0f} |"
        for stage in part["stages"]
    ]
    about = (
        f"On the {fresh['all']['n']} queries whose documents no labelled query has, the scores added reach "
        f"{_cell(fresh['scores added'])} and the whole {_cell(fresh['all'])}: what labelled queries found helps only "
        "where the same documents are asked for again."
    )
    size = f"n = {part['queries']} queries over {part['documents']:,} documents"
    return [*lines, "", f"{size}, {part['train_queries']} labelled queries.", about]


def _multi_hop(part: Mapping[str, Any]) -> list[str]:
    sets = [name for name in part if isinstance(part[name], dict)]
    ways = list(part[sets[0]]["recall@5"])
    lines = ["| R@5 | " + " | ".join(f"`{name}`" for name in sets) + " |", "| --- |" + " --- |" * len(sets)]
    lines += [f"| {way} | " + " | ".join(_cell(part[name]["recall@5"][way]) for name in sets) + " |" for way in ways]
    lines.append("| questions | " + " | ".join(str(part[name]["questions"]) for name in sets) + " |")
    lines.append("| passages | " + " | ".join(f"{part[name]['passages']:,}" for name in sets) + " |")
    lines.append("| ms a question | " + " | ".join(f"{part[name]['latency_ms']:.0f}" for name in sets) + " |")
    return lines


def _compression(part: Mapping[str, Any]) -> list[str]:
    half, fifth = part["0.5"], part["0.2"]
    lines = [f"| the answer survives, n = {part['questions']} | half the tokens | a fifth |", "| --- | --- | --- |"]
    lines += [
        f"| {name} | {_cell(found)} | {_cell(fifth['answer survives'][name])} |"
        for name, found in half["answer survives"].items()
        if "," not in name
    ]
    seen_not = [half["answer survives"]["nearfar, unseen half"], fifth["answer survives"]["nearfar, unseen half"]]
    lines.append(f"| nearfar, on the {seen_not[0]['n']} other questions | {' | '.join(map(_cell, seen_not))} |")
    if alone := part.get("untouched"):
        cells = f"{_cell(alone['0.5'])} | {_cell(alone['0.2'])}"
        lines.append(f"| … all weights fitted on the one half, {alone['fitted on']} questions, alone | {cells} |")
    lines.append(f"| tokens a second of processor time | {half['tokens_per_s']:,.0f} | {fifth['tokens_per_s']:,.0f} |")
    free = part["no budget"]
    kept = f"Without a budget {_cell(free['rate'])} of the tokens are kept"
    return [*lines, "", f"{kept}, and the answer in {_cell(free['answer survives'])} of the cases."]


_SPEECH = {
    "the quote": "the longest quote",
    "numbers and names": "all numbers and names",
    "four fifths of the words": "four fifths of the words",
}


def _speech(part: Mapping[str, Any]) -> list[str]:
    columns = [
        (part[rate][f"{measure}, unseen half"], f"{about}, {share}")
        for measure, about in _SPEECH.items()
        for rate, share in (("0.5", "half"), ("0.2", "a fifth"))
    ]
    ways = sorted(columns[0][0], key=lambda name: not name.startswith("nearfar"))
    lines = [f"| the answer keeps | {' | '.join(title for _, title in columns)} |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {name} | {' | '.join(_cell(found[name]) for found, _ in columns)} |" for name in ways]
    counts = " | ".join(str(found["nearfar"]["n"]) for found, _ in columns)
    return [*lines, f"| questions that have it | {counts} |"]


def _tools(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "| examples | way | R@1 | R@5 | nDCG@10 | ms a request |",
        "| --- | --- | --- | --- | --- | ---: |",
    ]
    for name in ("no examples", "a tenth", "all"):
        for stage in part[name]["stages"]:
            cells = " | ".join(_cell(stage[figure]) for figure in ("recall@1", "recall@5", "ndcg@10"))
            lines.append(f"| {part[name]['examples']:,} | {stage['name']} | {cells} | {stage['latency_ms']:.1f} |")
    new = part["a new tool with five examples"]
    about = (
        "Twenty tools in turn were left out of a fitted index and added live with five examples: R@1 "
        f"{_cell(new['recall@1'])}, R@5 {_cell(new['recall@5'])}; R@1 of other tools' requests changes by "
        f"{_gain(new['recall@1 of others, change'])}."
    )
    return [*lines, "", f"n = {part['requests']:,} requests for {part['tools']} tools.", about]


def _scale(part: Mapping[str, Any]) -> list[str]:
    sizes = part["sizes"]
    rows: list[tuple[str, Any]] = [
        ("time to put them, s", lambda built, _: f"{built['put_s']:,.0f}"),
        ("time to index them, s", lambda built, _: f"{built['index_s']:,.0f}"),
        ("recall@10", lambda _, found: _span(found["recall_at_10"], found["recall_at_10_interval"])),
        ("a search, median ms (95 % within)", lambda _, found: _times(found["search_ms"])),
        ("… the fastest of five rounds", lambda _, found: _times(found["search_best_ms"])),
        ("… processor time, mean ms", lambda _, found: f"{found['search_cpu_ms']:.1f}"),
        ("opening, s (median of nine)", lambda _, found: f"{found['open_s']:.2f}"),
        ("resident memory, MB", lambda _, found: f"{found['memory_mb']:,.0f}"),
        ("vectors on disk, MB", lambda _, found: f"{found['disk_mb']['vectors']:,.0f}"),
        ("words on disk, MB", lambda _, found: f"{found['disk_mb']['words']:,.0f}"),
        ("database, MB", lambda _, found: f"{found['disk_mb']['database']:,.0f}"),
    ]
    lines = [f"| passages | {' | '.join(f'{int(size):,}' for size in sizes)} |", "| --- |" + " ---: |" * len(sizes)]
    for name, told in rows:
        cells = (told(facts["build"], facts["measure"]) for facts in sizes.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _span(value: float, interval: list[float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _times(found: Mapping[str, float]) -> str:
    return f"{found['p50']:.1f} ({found['p95']:.1f})"
