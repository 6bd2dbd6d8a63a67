"""`nearfar agent evaluate`: how well agents plan, call and answer, on items whose right calls or answers are known."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import ConfigError, DataError, RequestError

from . import options as opt
from .console import escape, remark, stdout, table, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.agents.evaluation.answers import Recorded, Report
    from nearfar.agents.evaluation.role_caller import RoleCaller
    from nearfar.config import Settings
    from nearfar.config.agents import AgentSettings
    from nearfar.wiring import Wired


class Benchmark(StrEnum):
    """Which items the files hold."""

    bfcl = "bfcl"
    toolalpaca = "toolalpaca"
    apibank = "apibank"
    multihop = "multihop"


class Reading(StrEnum):
    """How a text is read for calls."""

    strict = "strict"
    lenient = "lenient"


def evaluate(
    benchmark: Annotated[Benchmark, typer.Argument(help="Which items the files hold.", show_default=False)],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Items as JSONL, also as .gz.", show_default=False)
    ],
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            "-a",
            help="structured, plain, or one of the config's agents; of kind alpha-umi but for multihop.",
        ),
    ] = "structured",
    model: opt.ModelOption = "auto",
    answers: Annotated[
        Path | None,
        typer.Option("--answers", help="Score these recorded answers (id and calls, answer or result); ask no model."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="The first so many of each file.")] = None,
    reading: Annotated[
        Reading | None,
        typer.Option("--reading", help="Of BFCL texts: strict as the leaderboard reads (default), or lenient."),
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the answers as JSONL, for --answers.")] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=10, help="Of the bootstrap.")] = 1000,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Measure an agent on BFCL, ToolAlpaca, API-Bank or multi-hop questions, or score recorded answers.

    BFCL's verdicts are those of the leaderboard's checker; ToolAlpaca and API-Bank give α-UMi's metrics, multi-hop
    questions exact match and F1. The tools of ToolAlpaca and API-Bank are read from apis.jsonl beside the file.
    """
    items = _items(benchmark, files, limit)
    if not items:
        raise DataError(f"The files hold no {benchmark} items; see nearfar agent evaluate --help.", path=str(files[0]))
    if answers is not None:
        from nearfar.agents.evaluation.answers import read_answers
        from nearfar.agents.evaluation.benchmarks import read_rows

        given = read_answers(read_rows([answers]))
    else:
        given = asyncio.run(_asked(benchmark, items, agent, model, save, config))
    report = _scored(benchmark, items, given, reading, resamples)
    if as_json:
        write_json(_as_json(report, None if answers else agent))
        return DONE
    _print(report)
    return DONE


def _items(benchmark: Benchmark, files: list[Path], limit: int | None) -> list[Any]:
    from nearfar.agents.evaluation.benchmarks import beside, read_apibank, read_questions, read_rows, read_toolalpaca

    found: list[Any] = []
    left_out = 0
    for file in files:
        if benchmark is Benchmark.bfcl:
            from nearfar.agents.evaluation.bfcl import read_item

            read = [read_item(row) for row in read_rows([file])]
            left_out += sum(item is None for item in read)
            items: list[Any] = [item for item in read if item is not None]
        elif benchmark is Benchmark.multihop:
            items = list(read_questions(read_rows([file])))
        else:
            reader = read_toolalpaca if benchmark is Benchmark.toolalpaca else read_apibank
            items = list(reader(read_rows(beside([file], "apis.jsonl"))))
        found += items[:limit]
    if left_out:
        remark(f"note: {left_out} items of several turns or other kinds are left out")
    return list({item.id: item for item in found}.values())


async def _asked(
    benchmark: Benchmark, items: list[Any], agent: str, model: str, save: Path | None, config: Path | None
) -> dict[str, Recorded]:
    """The answers of the agent, kept in `save` as they come."""
    from contextlib import AsyncExitStack

    from nearfar.agents.evaluation.answering import answered, by_agent, by_roles, plain, structured

    async with AsyncExitStack() as stack:
        wired = await stack.enter_async_context(opt.opened(config))
        if agent == "plain":
            answering = plain(wired.router, model)
        elif agent == "structured" and benchmark is not Benchmark.multihop:
            answering = structured(_structured_caller(wired.router, model))
        elif benchmark is Benchmark.multihop and agent in wired.settings.agents:
            from nearfar.wiring.agents import open_agent, open_runs

            store = await stack.enter_async_context(await open_runs(wired.settings))
            opened = open_agent(wired, wired.settings.agents[agent], agent, store)
            answering = by_agent(await stack.enter_async_context(opened))
        elif benchmark is not Benchmark.multihop and agent in _callers(wired.settings):
            answering = by_roles(_role_caller(wired, wired.settings.agents[agent]))
        else:
            others = wired.settings.agents if benchmark is Benchmark.multihop else _callers(wired.settings)
            names = [*(["plain"] if benchmark is Benchmark.multihop else ["structured", "plain"]), *others]
            raise RequestError(f"No agent {agent!r} answers {benchmark} items; name one of {', '.join(names)}.")
        if save is None:
            return await answered(items, answering)
        try:
            file = stack.enter_context(save.open("w", encoding="utf-8"))
        except OSError as exc:
            raise DataError(f"Cannot write {str(save)!r}: {exc.strerror or exc}.", path=str(save)) from exc
        return await answered(items, answering, lambda name, each: print(_line(name, each), file=file, flush=True))


def _structured_caller(responder: Any, model: str) -> Any:
    try:
        from nearfar.retrieval.embedders import find_embedder

        embedder = find_embedder("static")
    except ImportError as exc:
        raise ConfigError(f"The tool index needs {exc.name}. Install it: pip install 'nearfar[retrieval]'") from exc
    from nearfar.agents.evaluation.structured_caller import StructuredCaller

    return StructuredCaller(responder, model, embedder)


def _callers(settings: Settings) -> list[str]:
    """The agents whose planner and caller can be asked without running any tool."""
    return [name for name, agent in settings.agents.items() if agent.kind == "alpha-umi"]


def _role_caller(wired: Wired, agent: AgentSettings) -> RoleCaller:
    from nearfar.agents.alpha_umi import AlphaUmi
    from nearfar.agents.evaluation.role_caller import RoleCaller
    from nearfar.wiring.agents import build_roles

    return RoleCaller(wired.router, AlphaUmi(rationale=agent.rationale), build_roles(wired, agent, AlphaUmi.roles))


def _line(name: str, answer: Recorded) -> str:
    import json

    key = "answer" if isinstance(answer.value, str) else "calls"
    row = {"id": name, key: answer.value, "tokens": answer.tokens, "model_calls": answer.model_calls}
    if answer.signals:
        row["signals"] = dict(answer.signals)
    return json.dumps(row, ensure_ascii=False)


def _scored(
    benchmark: Benchmark, items: list[Any], given: dict[str, Recorded], reading: Reading | None, resamples: int
) -> Report:
    from nearfar.agents.evaluation.answers import score_bfcl, score_calls, score_questions

    if benchmark is Benchmark.bfcl:
        how = Reading.strict if reading is None else reading
        return score_bfcl(items, given, reading=how.value, resamples=resamples)
    if benchmark is Benchmark.multihop:
        return score_questions(items, given, resamples=resamples)
    return score_calls(benchmark.value, items, given, resamples=resamples)


def _as_json(report: Report, agent: str | None) -> dict[str, Any]:
    def flat(figures: Any) -> dict[str, Any]:
        return {
            **{name: found.value for name, found in figures.items()},
            "intervals": {name: [found.low, found.high] for name, found in figures.items()},
        }

    return {
        "benchmark": report.benchmark,
        "agent": agent,
        "n": report.n,
        "missing": report.missing,
        **flat(report.figures),
        "groups": {group: {"n": n, **flat(figures)} for group, (n, figures) in report.groups.items()},
        "items": list(report.items),
    }


def _print(report: Report) -> None:
    names = list(report.figures)
    told = [name for name in names if name != "macro_ast"]
    rows = [
        [escape(group), str(n), *(_shown(figures.get(name)) for name in told)]
        for group, (n, figures) in report.groups.items()
    ]
    rows.append(["all", str(report.n), *(_shown(report.figures[name]) for name in told)])
    heads = [name.replace("_", " ") for name in told]
    table(["", "n", *heads], rows, right=["n"])
    if macro := report.figures.get("macro_ast"):
        stdout().print(f"\nmacro average over the AST categories: {_shown(macro)}", markup=False)
    if report.missing:
        remark(f"note: {report.missing} items have no answer and count as wrong")


def _shown(found: Any) -> str:
    if found is None:
        return "–"
    digits = 3 if abs(found.value) <= 1 else 0
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} – {found.high:.{digits}f})"
