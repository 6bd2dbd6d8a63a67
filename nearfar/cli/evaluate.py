"""`nearfar evaluate`: how good a router or a signal is on recorded outcomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import ConfigError, DataError

from . import options as opt
from .console import remark, stdout, table, waiting, write_json
from .run import DONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nearfar.router.predictive import PredictiveRouter, RoutingExample
    from nearfar.router.routing_report import Figures, RoutingReport, Scored
    from nearfar.types import Embedder

#: Queries up to which `auto` embeds them with MiniLM by itself: vectors trained on other texts help where labels are
#: few, and little where there are ten times as many (benchmarks/routing.py); on two cores so many take about a minute.
_FEW_QUERIES = 3000

#: The same for a near answer's judge, to which a vector tells more, and which comes after a call that costs far more.
_FEW_JUDGED_QUERIES = 6000

#: Stands for no signal at all.
_NO_SIGNAL = "none"


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(metavar="TABLE", help="Outcomes, one row per query and model: JSONL, CSV or parquet."),
    ],
    weak: Annotated[str, typer.Option("--weak", help="The cheaper model, as the table names it.")],
    strong: Annotated[str, typer.Option("--strong", help="The better model, as the table names it.")],
    router: Annotated[
        str | None,
        typer.Option("--router", help="auto, tfidf-ridge, forest, boosting, ridge, logistic, knn, hybrid, …"),
    ] = None,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            help="A column of the weak answer, higher for surer (repeatable with a router); answer_text: what the text "
            "of its `response` tells; none: the query alone (default for auto: the columns called confidence…).",
        ),
    ] = None,
    train: Annotated[
        Path | None, typer.Option("--train", help="Fit on this table (default: cross-validation in TABLE).")
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            help="Outcomes of any models on other queries, which tell hybrid what is hard (repeatable); questions of "
            "TABLE are left out.",
        ),
    ] = None,
    value: Annotated[str, typer.Option("--value", help="The column that says how good an answer was.")] = "correct",
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only rows of this `dataset`.")] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="Texts by `query_id`, where TABLE has none.")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            "--embedder",
            help="static, minilm or none, for routers that embed "
            "(default: none; for auto on at most 3,000 queries, or 6,000 with signals, minilm where it is installed).",
        ),
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=10, help="Of the bootstrap.")] = 300,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="Write query_id,score; higher: to the strong model.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with plots.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write the router, fitted on --train or on all of TABLE.")
    ] = None,
    as_json: opt.JsonOption = False,
) -> int:
    """Measure a router or a signal on recorded outcomes.

    APGR is the share of the gap between the models that is recovered, averaged over all shares of strong calls; a
    random choice has 0.5.
    """
    from nearfar.router.routing_report import load_also, load_with_texts, report
    from nearfar.router.routing_table import ANSWER_TEXT

    signals = () if signal == [_NO_SIGNAL] else tuple(signal or ())
    found_signals = _confidences(source, train, weak) if router == "auto" and not signal else ()
    signals += found_signals
    if router is None and len(signals) != 1:
        raise ConfigError("Say what to measure: --router NAME, such as auto, or one --signal COLUMN.")
    if ANSWER_TEXT in signals and (router is None or questions is not None):
        raise ConfigError(
            f"{ANSWER_TEXT} is many signals of an answer and its question: it needs a --router, and the texts in the "
            "table's own column 'query'."
        )
    if router is None and (train or save or also):
        raise ConfigError("A signal is measured as it is; --train, --also and --save need a --router.")

    def load(path: Path) -> Any:
        return load_with_texts(
            path, weak=weak, strong=strong, value=value, dataset=dataset, signals=signals, questions=questions
        )

    rows = load(source)
    train_rows = load(train) if train else None
    num_queries = len(rows) + len(train_rows or ())
    found_embedder = _embedder(embedder or _default_embedder(router, signals, num_queries))
    with waiting("fitting and measuring"):
        others = load_also(also or (), rows, value=value)
        scored, fitted = _scored(rows, train_rows, router, signals, found_embedder, others)
        if found_signals:
            named = ", ".join(map(repr, found_signals))
            note = f"The weak answer's {named} are read too; the query alone decides with --signal {_NO_SIGNAL}."
            scored = replace(scored, notes=(*scored.notes, note))
        measured = report(scored, table=source.name, weak=weak, strong=strong, resamples=resamples)
    if scores:
        _write_scores(scores, scored)
    if save and fitted is not None:
        _save(fitted, save, weak, strong, train_rows if train_rows is not None else rows, found_embedder)
    if html:
        from .evaluation_page import render

        _write_text(html, render(measured))
    if as_json:
        write_json(_as_json(measured))
        return DONE
    _print(measured)
    for path, what in ((scores, "scores"), (html, "page"), (save, "router")):
        if path:
            remark(f"{what} written to {path}")
    return DONE


def _confidences(source: Path, train: Path | None, weak: str) -> tuple[str, ...]:
    """The confidences that the weak model's answers have in the table, and in the one to train on."""
    from nearfar.router.routing_table import confidence_columns

    found = confidence_columns(source, weak)
    taught = confidence_columns(train, weak) if train and found else found
    return tuple(name for name in found if name in taught)


def _default_embedder(router: str | None, signals: Sequence[str], num_queries: int) -> str:
    from nearfar.retrieval.embedders import is_minilm_installed

    few = _FEW_JUDGED_QUERIES if signals else _FEW_QUERIES
    return "minilm" if router == "auto" and num_queries <= few and is_minilm_installed() else "none"


def _embedder(name: str) -> Embedder | None:
    if name == "none":
        return None
    from nearfar.retrieval.embedders import Remembered, find_embedder

    return Remembered(find_embedder(name))


def _scored(
    rows: Any,
    train: Any,
    router: str | None,
    signals: tuple[str, ...],
    embedder: Embedder | None,
    also: Sequence[Sequence[RoutingExample]],
) -> tuple[Scored, PredictiveRouter | None]:
    from nearfar.router.predictive import make
    from nearfar.router.routing_report import score_by_router, score_by_signal
    from nearfar.router.routing_table import signal_names

    if router is None:
        return score_by_signal(rows, signals[0]), None
    made = make(router, embedder=embedder, signals=signal_names(signals, rows if train is None else train), also=also)
    scored = score_by_router(rows, made, train=train)
    if embedder is not None and made.is_embedding_based:
        scored = replace(scored, how=f"{scored.how}, texts embedded by {embedder.name}")
    return scored, made


def _save(router: PredictiveRouter, path: Path, weak: str, strong: str, rows: Any, embedder: Embedder | None) -> None:
    from nearfar.router.predictive.files import save
    from nearfar.router.routing_report import as_examples

    examples = as_examples(rows)
    save(router.fit(examples), path, weak=weak, strong=strong, examples=examples, embedder=embedder)


def _write_scores(path: Path, scored: Scored) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["query_id", "score"])
    writer.writerows([row.query_id, repr(score)] for row, score in zip(scored.rows, scored.scores, strict=True))
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise DataError(f"Cannot write {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc


def _as_json(report: RoutingReport) -> dict[str, Any]:
    """The report's figures; what is not a number (never reached, no gap) is null."""
    import msgspec

    shown: dict[str, Any] = _finite(msgspec.to_builtins(report))
    figures, baselines = shown.pop("figures"), shown.pop("baselines")
    return {
        "router": figures["name"],
        **figures["metrics"],
        "aiq": figures["aiq"],
        "intervals": figures["intervals"],
        **shown,
        "matched_cost": figures["matched"],
        "curve": [[point["deferred"], point["quality"]] for point in figures["curve"]],
        "baselines": {
            each["name"]: {**each["metrics"], "aiq": each["aiq"], "intervals": each["intervals"]} for each in baselines
        },
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _print(report: RoutingReport) -> None:
    console = stdout()
    console.print(
        f"{report.figures.name} on {report.n:,} queries of {report.table}, {report.how}\n"
        f"weak   {report.weak}  quality {report.weak_quality:.3f}\n"
        f"strong {report.strong}  quality {report.strong_quality:.3f}\n",
        markup=False,
    )
    rows = [_row(each) for each in (report.figures, *report.baselines)]
    table(["", "APGR", "95 %", "CPT50", "CPT80", "AUDC", "AIQ"], rows, right=["APGR", "CPT50", "CPT80", "AUDC", "AIQ"])
    console.print()
    for difference in report.differences:
        low, high = difference.interval.low, difference.interval.high
        console.print(
            f"APGR less {difference.to}'s: {difference.apgr:+.3f}  (95 %: {low:+.3f} to {high:+.3f})", markup=False
        )
    for matched in report.figures.matched:
        cost = (
            "is not reached" if matched.cost != matched.cost else f"spares {matched.saved:.0%} of always-strong's cost"
        )
        console.print(f"{matched.share:.0%} of the strong model's quality {cost}", markup=False)
    console.print(f"[dim]cost: {report.costs}[/]")
    for note in report.notes:
        remark(f"note: {note}")


def _row(figures: Figures) -> list[str]:
    metrics, interval = figures.metrics, figures.intervals["apgr"]
    shown = [
        figures.name,
        f"{metrics.apgr:.3f}",
        f"{interval.low:.3f} – {interval.high:.3f}",
        f"{metrics.cpt50:.1f}",
        f"{metrics.cpt80:.1f}",
        f"{metrics.audc:.4f}",
        f"{figures.aiq:.4f}",
    ]
    return ["–" if cell in ("nan", "nan – nan") else cell for cell in shown]
