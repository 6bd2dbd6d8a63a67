"""The measured tables of routing.md and routing-measured.md, from the committed results of `benchmarks/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measured_pages import DOCS, RESULTS, filled, result

TABLES = ("routellm_gsm8k", "routellm_mmlu")
CASCADES = ("mmlu_llama3_cascade", "mmlupro_confidence", "routellm_gsm8k")
DULL = "plain tfidf ridge"
_ALSO = "hybrid --also routellm_mmlu"
#: What the attempts at a table are called, where not by its name.
_TITLES = {"design": "judge", "folds": "judge by what it learns from", "signals": "judge by what it reads"}
_DRAWS = {2: "two", 3: "three", 4: "four", 8: "eight other"}
#: Whose attempts were compared in the draws that are not the published one, which comes first.
_COMPARED_ELSEWHERE = ("signals",)


def routing_documents() -> Iterator[tuple[Path, str]]:
    """The pages with their tables as the results have them."""
    pages = {
        "routing.md": {"which router": _which()},
        "routing-measured.md": {
            **{table: _predictive(table) for table in TABLES},
            "curves": _curves(),
            "cascades": "\n\n".join(_cascade(_read(f"cascade_{table}")) for table in CASCADES),
            "attempts": "\n\n".join(_attempts(path) for path in sorted(RESULTS.glob("routing_attempts_*.json"))),
            "logs": _logs(),
            "latency": _latency(),
        },
    }
    for name, sections in pages.items():
        path = DOCS / name
        text = path.read_text()
        for section, made in sections.items():
            text = filled(text, f"begin: {section}", made)
        yield path, text


def _read(name: str) -> dict[str, Any]:
    return result(f"routing_{name}")


def _rows(name: str) -> dict[str, dict[str, Any]]:
    return {row["router"]: row for row in _read(name)["rows"]}


def _span(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _gain(difference: Sequence[float] | None) -> str:
    return f"{difference[0]:+.3f} {_span(difference[1:])}" if difference else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "---:") -> str:
    lines = [header, ["---", *[align] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _apgr(rows: dict[str, dict[str, Any]], name: str) -> str:
    return f"{rows[name]['apgr']:.3f}" if name in rows else "–"


def _which() -> str:
    gsm, mmlu = (_rows(f"predictive_{table}") for table in TABLES)
    llama, pro, sums = (_rows(f"cascade_{table}") for table in CASCADES)
    logs = _read("logs")["log_level_mean_full_recordings"]
    slowest = max(row["median_ms"] for row in _read("latency")["rows"] if row["router"] == "auto")
    return _table(
        ["what there is", "take", "measured", "beside"],
        [
            [
                "outcomes of both models on a few hundred queries, and the choice comes before any call",
                "`nearfar evaluate TABLE … --router auto --save FILE`",
                f"APGR {_apgr(gsm, 'auto')} (GSM8K), {_apgr(mmlu, 'auto')} (MMLU); {slowest:.1f} ms a decision",
                (
                    f"TF-IDF ridge {_apgr(gsm, DULL)}, {_apgr(mmlu, DULL)}; length {_apgr(gsm, 'length')}, "
                    f"{_apgr(mmlu, 'length')}"
                ),
            ],
            [
                "the same with at most 3,000 labels, and `nearfar[minilm]`",
                "`--router auto`, which then embeds the queries",
                f"APGR {_apgr(gsm, 'auto (MiniLM)')} (GSM8K)",
                f"without it {_apgr(gsm, 'auto')}",
            ],
            [
                "a near answer that says how sure it is",
                "`--router auto`, which reads columns called `confidence…`; others by `--signal COLUMN`",
                f"APGR {_apgr(llama, 'hybrid')} (Llama-3 8B to 70B)",
                (
                    f"its confidence alone {_apgr(llama, 'confidence_msp alone')}, the text alone "
                    f"{_apgr(llama, 'auto (text alone)')}"
                ),
            ],
            [
                "and other models' outcomes on other queries of the kind",
                "the same with `--also OTHER`; with `nearfar[minilm]`, up to 6,000 queries are embedded too",
                f"APGR {_apgr(llama, _ALSO)}, {_apgr(llama, f'{_ALSO} (MiniLM)')} with MiniLM (Llama-3 8B to 70B)",
                f"without them {_apgr(llama, 'hybrid')}, {_apgr(llama, 'hybrid (MiniLM)')}",
            ],
            [
                "a near answer whose confidence misleads",
                "`--router auto` with a `--signal` for every signal there is",
                f"APGR {_apgr(pro, 'hybrid')} (MMLU-Pro, 8B to 405B)",
                f"its perplexity alone {_apgr(pro, 'logit_ppl_conf alone')}, chance 0.5",
            ],
            [
                "a near answer that calculates, and no log-probabilities",
                "`--router auto --signal answer_text`, which reads its `response`",
                f"APGR {_apgr(sums, 'hybrid')} (GSM8K)",
                f"the question alone {_apgr(sums, 'auto (text alone)')}",
            ],
            [
                "a small classifier near, a language model far",
                "a cascade with the classifier as its first tier, and past mistakes in the far prompt",
                f"log level: {logs['cascade']:.3f} right, a quarter sent on",
                f"the classifier alone {logs['small_alone']:.3f}, without the mistakes {logs['cascade_plain']:.3f}",
            ],
            ["a data set to be labelled once", "`nearfar.router.chains.annotate`", "–", "–"],
            ["no labels", "a cascade with its uncalibrated score, which ranks and promises nothing", "–", "–"],
        ],
        align="---",
    )


def _predictive(table: str) -> str:
    found = _read(f"predictive_{table}")
    rows = sorted(found["rows"], key=lambda row: -row["apgr"])
    return _table(
        [f"router, `{table}`, n = {found['n']:,}", "APGR", "95 %", "CPT50", "CPT80", "less TF-IDF ridge"],
        [
            [
                f"**{row['router']}**" if row["router"].startswith("auto") else row["router"],
                f"{row['apgr']:.3f}",
                _span(row["intervals"]["apgr"]),
                f"{row['cpt50']:.1f}",
                f"{row['cpt80']:.1f}",
                _gain(row.get(f"apgr_minus_{DULL}")),
            ]
            for row in rows
        ],
    )


def _curves() -> str:
    curves = [_read(path.stem.removeprefix("routing_")) for path in sorted(RESULTS.glob("routing_curve_*.json"))]
    return "\n".join(f"- `{each['table']}`: {_points(each['points'])}" for each in curves)


def _points(points: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{point['apgr']:.3f} {_span(point['interval'])} with {point['n']:,}" for point in points)


def _cascade(found: dict[str, Any]) -> str:
    rows = sorted(found["rows"], key=lambda row: -row["apgr"])
    alone = found.get("against") or f"{found['signals'][0]} alone"
    told = f"`{found['table']}`, {found['weak']} to {found['strong']}, n = {found['n']:,}:"
    made = _table(
        ["score", "APGR", "95 %", f"less {alone}"],
        [
            [
                f"**{row['router']}**" if row["router"].startswith("hybrid") else row["router"],
                f"{row['apgr']:.3f}",
                _span(row["intervals"]["apgr"]),
                _gain(row.get(f"apgr_minus_{alone}")),
            ]
            for row in rows
        ],
    )
    return f"{told}\n\n{made}"


def _attempts(path: Path) -> str:
    name = path.stem.removeprefix("routing_")
    found, table = _read(name), name.removeprefix("attempts_")
    first = 1 if table in _COMPARED_ELSEWHERE else 0
    num_draws = len(found["rows"][0]["draws"]) - first
    header = [
        f"{_TITLES.get(table, table)}, n = {found['n']:,}",
        "APGR",
        "95 %",
        *([f"mean of {_DRAWS[num_draws]} draws of the folds"] if num_draws > 1 else []),
    ]
    made = _table(
        header,
        [
            [
                row["attempt"],
                f"{row['apgr']:.3f}",
                _span(row["interval"]),
                *([f"{sum(row['draws'][first:]) / num_draws:.3f}"] if num_draws > 1 else []),
            ]
            for row in found["rows"]
        ],
    )
    curves = "\n".join(f"- {attempt}: {_points(points)}" for attempt, points in found.get("curves", {}).items())
    return f"{made}\n\nBy the number of labelled queries:\n\n{curves}" if curves else made


def _logs() -> str:
    found, tasks = _read("logs"), {"lp": "log level", "mc": "module"}
    rows = []
    for row in found["rows"]:
        partly = "" if row["num_recorded"] == row["n"] else f" ({row['num_recorded']} recorded)"
        rows.append(
            [
                f"{tasks[row['task']]}, {row['system']}{partly}",
                f"{row['n']}",
                f"{row['sent']:.0%}",
                *(f"{row[name]:.3f}" for name in ("small_alone", "cascade", "cascade_plain", "cascade_replaced")),
                (
                    f"{row['num_with_error_cases']}: {row['plain_where_error_cases_recorded']:.3f} to "
                    f"{row['error_cases_where_recorded']:.3f}"
                ),
            ]
        )
    means = found["log_level_mean_full_recordings"]
    names = ("small_alone", "cascade", "cascade_plain", "cascade_replaced")
    rows.append(
        ["**log level, mean of the fully recorded**", "", "", *(f"**{means[name]:.3f}**" for name in names), ""]
    )
    return _table(
        ["", "n", "sent on", "small alone", "cascade", "plain prompt", "replaced", "error cases, where recorded"], rows
    )


def _latency() -> str:
    return _table(
        ["router", "median", "95 % within", "mean processor time", "times its embedding"],
        [
            [
                f"{row['router']}, `{row['table']}`",
                f"{row['median_ms']:.2f} ms",
                f"{row['p95_ms']:.2f} ms",
                f"{row['mean_processor_ms']:.2f} ms",
                f"{row['times_the_embedding']:.2f}" if "times_the_embedding" in row else "",
            ]
            for row in _read("latency")["rows"]
        ],
    )
