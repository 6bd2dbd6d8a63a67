"""`nearfar tools`: index tools, find those that a request needs, measure how well they are found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from nearfar.errors import RequestError

from . import options as opt
from .console import escape, remark, seconds, stdout, table, waiting, write_json
from .evaluate_retrieval import as_interval, best_embedder, remark_on_seen, stage_as_json, write_rankings
from .run import DONE

if TYPE_CHECKING:
    from nearfar.retrieval.tool_report import ToolReport
    from nearfar.types import Embedder, Hit

app = typer.Typer(help="Find the tools that a request needs.", no_args_is_help=True)

EmbedderOption: TypeAlias = Annotated[
    str | None, typer.Option("--embedder", help="minilm or static (default: minilm where it is installed).")
]
OwnEmbedderOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--embedder", help="minilm or static (default: the index's own; for a new one minilm where it is installed)."
    ),
]
FolderOption: TypeAlias = Annotated[Path, typer.Option("--index", help="The index's folder.")]
ToolsArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="TOOLS",
        help="JSONL, maybe gzipped: id (or name), text (or description), parameters.",
        show_default=False,
    ),
]

_FOLDER = Path("nearfar-tools")


@app.command("index")
def index(
    tools: ToolsArgument,
    examples: Annotated[
        Path | None, typer.Option("--examples", help="Requests and what they needed, JSONL: text, tools.")
    ] = None,
    folder: FolderOption = _FOLDER,
    add: Annotated[bool, typer.Option("--add", help="Add to the index that is there.")] = False,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A tool to forget (repeatable).")] = None,
    embedder: OwnEmbedderOption = None,
    as_json: opt.JsonOption = False,
) -> int:
    """Index tools by what they say of themselves and by what they were used for."""
    from nearfar.retrieval.tools import ToolIndex, read_tools, read_uses

    changes = bool(add or remove)
    found = _embedder_of(folder, embedder) if changes else best_embedder(embedder)
    made = ToolIndex.load(folder, found) if changes else ToolIndex(found)
    made.add(read_tools(tools))
    for name in remove or ():
        made.remove(name)
    if examples:
        made.learn(read_uses(examples, known=made.names))
    with waiting(f"embedding and fitting with {found.name}"):
        is_fitted = made.fit()
        made.save(folder)
    facts = {"tools": len(made), "examples": made.num_examples, "is_fitted": is_fitted, "folder": str(folder)}
    if as_json:
        write_json(facts)
    else:
        remark(f"{len(made):,} tools and {made.num_examples:,} examples in {str(folder)!r}")
    return DONE


@app.command("search")
def search(
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="What is to be done.", show_default=False)],
    folder: FolderOption = _FOLDER,
    k: Annotated[int, typer.Option("-k", min=1, help="At most so many tools.")] = 5,
    embedder: OwnEmbedderOption = None,
    as_json: opt.JsonOption = False,
) -> int:
    """Show the tools that a request most likely needs."""
    from nearfar.retrieval.tools import ToolIndex

    if not request.strip():
        raise RequestError('The request is empty; say what is to be done: nearfar tools search "add two numbers"')
    hits = ToolIndex.load(folder, _embedder_of(folder, embedder)).search(request, k=k)
    if as_json:
        write_json([_hit_as_json(hit) for hit in hits])
        return DONE
    rows = [[escape(hit.chunk.id), f"{hit.score:.3f}", escape(hit.chunk.text)] for hit in hits]
    table(["tool", "score", "what it does"], rows, right=["score"], wrap=["what it does"])
    return DONE


@app.command("evaluate")
def evaluate(
    tools: ToolsArgument,
    queries: Annotated[
        Path, typer.Argument(metavar="QUERIES", help="Requests to measure on, JSONL: text, tools.", show_default=False)
    ],
    train: Annotated[Path | None, typer.Option("--train", help="Requests to learn from, JSONL: text, tools.")] = None,
    embedder: EmbedderOption = None,
    resamples: Annotated[int, typer.Option("--resamples", min=10, help="Of the bootstrap.")] = 1000,
    rankings: Annotated[
        Path | None, typer.Option("--rankings", help="Write each request's ranked tools as JSONL.")
    ] = None,
    as_json: opt.JsonOption = False,
) -> int:
    """Measure how well the tools of requests are found.

    Without --train only the descriptions tell. The tools and the requests are embedded first.
    """
    from nearfar.retrieval.tool_report import search_and_measure
    from nearfar.retrieval.tools import read_tools, read_uses

    specs = read_tools(tools)
    known = [tool.name for tool in specs]
    asked = read_uses(queries, known=known)
    examples = read_uses(train, known=known) if train else []
    remark_on_seen([use.text for use in asked], [use.text for use in examples])
    found = best_embedder(embedder)
    with waiting(f"embedding {len(asked) + len(examples):,} requests with {found.name}"):
        report = search_and_measure(specs, asked, examples, found, resamples=resamples)
    if rankings:
        write_rankings(rankings, report.rankings)
    if as_json:
        write_json(_as_json(report))
    else:
        _print(report)
    return DONE


def _embedder_of(folder: Path, name: str | None) -> Embedder:
    """The named embedder, or else the one that the index was made with."""
    from nearfar.retrieval.embedders import key_of
    from nearfar.retrieval.tools import ToolIndex

    return best_embedder(name or key_of(ToolIndex.made_with(folder)))


def _hit_as_json(hit: Hit) -> dict[str, Any]:
    return {"tool": hit.chunk.id, "score": hit.score, "description": hit.chunk.text, "signals": dict(hit.signals)}


def _as_json(report: ToolReport) -> dict[str, Any]:
    best = report.best
    return {
        **{name: found.value for name, found in best.figures.items()},
        "intervals": {name: as_interval(found) for name, found in best.figures.items()},
        "pipeline": best.name,
        "latency_s": best.latency_s,
        "queries": report.requests,
        "tools": report.tools,
        "train_queries": report.examples,
        "embedder": report.embedder,
        "index_s": report.index_s,
        "stages": [stage_as_json(stage) for stage in report.stages],
    }


def _print(report: ToolReport) -> None:
    stdout().print(
        f"{report.requests:,} requests for {report.tools:,} tools, {report.examples:,} to learn from\n", markup=False
    )
    rows = []
    for stage in report.stages:
        first = stage.figures["recall@1"]
        shown = (f"{stage.figures[name].value:.3f}" for name in ("recall@3", "recall@5", "recall@10", "ndcg@10"))
        rows.append(
            [
                escape(stage.name),
                f"{first.value:.3f}",
                f"{first.low:.3f} – {first.high:.3f}",
                *shown,
                seconds(stage.latency_s),
            ]
        )
    columns = ["", "R@1", "95 %", "R@3", "R@5", "R@10", "nDCG@10", "a request"]
    table(columns, rows, right=["R@1", "R@3", "R@5", "R@10", "nDCG@10", "a request"])
    remark(f"indexed and fitted in {seconds(report.index_s)} with {report.embedder}")
