"""`nearfar batch`: a file of records, answered."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as opt
from .console import complain, remark, seconds, stderr, usd, write_json
from .run import DONE, FAILED, INTERRUPTED

if TYPE_CHECKING:
    from nearfar.batch import BatchReport, Progress

_BATCH = "The batch"


def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="JSONL or CSV: a `prompt` or `messages` each.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="JSONL or CSV, in the order of IN.")],
    budget_usd: Annotated[
        float | None,
        typer.Option(
            "--budget-usd", min=0, help="The most that all records may cost; stops before.", rich_help_panel=_BATCH
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-j", min=1, help="Records in flight.", rich_help_panel=_BATCH)
    ] = 8,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask the refused and failed again.", rich_help_panel=_BATCH)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew; drop earlier results.", rich_help_panel=_BATCH)
    ] = False,
    prompt_field: Annotated[
        str, typer.Option("--prompt-field", help="The field with the prompts.", rich_help_panel=_BATCH)
    ] = "prompt",
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="A field to carry over (repeatable).", rich_help_panel=_BATCH)
    ] = None,
    signals: Annotated[
        bool,
        typer.Option("--signals", help="Add the first tier's signals, for calibrate.", rich_help_panel=_BATCH),
    ] = False,
    model: opt.ModelOption = "auto",
    system: opt.SystemOption = None,
    deadline_s: opt.DeadlineOption = None,
    privacy: opt.PrivacyOption = opt.Privacy.any,
    quality: opt.QualityOption = None,
    abstain: opt.AbstainOption = False,
    max_tokens: opt.MaxTokensOption = None,
    temperature: opt.TemperatureOption = None,
    seed: opt.SeedOption = None,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Answer a file of records, in order; resumable.

    Run it again to go on after any interruption; no finished record is paid for twice.

    A record's own fields (model, system, max_tokens, budget_usd, privacy, …) go before the options.
    """
    given = opt.QueryOptions(model, system, None, deadline_s, privacy, quality, abstain, max_tokens, temperature, seed)

    async def main() -> BatchReport:
        from nearfar.batch import run_batch

        async with opt.opened(config) as wired:
            template = given.query(None)
            opt.refuse_contradictions(wired, template)
            wired.router.plan(given.query("?"))  # an unknown model or option is said before any record
            with _stop_on_signals() as stop, _progress_bar() as show:
                return await run_batch(
                    wired.router,
                    source,
                    target,
                    template=template,
                    concurrency=concurrency,
                    budget_usd=budget_usd,
                    prompt_field=prompt_field,
                    keep=keep or (),
                    has_signals=signals,
                    retry_failed=retry_failed,
                    force=force,
                    stop=stop,
                    on_progress=show,
                )

    report = asyncio.run(main())
    if as_json:
        write_json(_as_json(report))
    return _conclude(report)


def _as_json(report: BatchReport) -> dict[str, object]:
    return {
        "records": report.total,
        "done": report.done,
        **report.counts,
        "resumed": report.resumed,
        "cost_usd": report.cost_usd,
        "elapsed_s": report.elapsed_s,
        "stopped_by": report.stopped_by,
        "output": str(report.output) if report.stopped_by is None else None,
        "journal": str(report.journal) if report.journal else None,
    }


def _conclude(report: BatchReport) -> int:
    counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items() if count) or "nothing done"
    fresh = report.done - report.resumed
    speed = fresh / report.elapsed_s if report.elapsed_s > 0 else 0.0
    rate = f" · {speed:,.{0 if speed >= 10 else 1}f} records/s" if speed else ""
    resumed = f" · {report.resumed:,} from an earlier run" if report.resumed else ""
    cost = f"{'at least ' if report.has_unknown_cost else ''}{usd(report.cost_usd)}"
    remark(f"{counts} of {report.total:,} · {cost} · {seconds(report.elapsed_s)}{rate}{resumed}", style="")
    left = report.total - report.done
    if report.stopped_by == "interrupt":
        complain(f"Stopped with {left:,} records to go; run the same command to go on. Done so far: {report.journal}")
        return INTERRUPTED
    if report.stopped_by == "budget":
        complain(
            f"The budget does not cover the next of {left:,} records to go; run the same command with a larger "
            f"--budget-usd to go on. Done so far: {report.journal}"
        )
        return FAILED
    remark(f"results in {report.output}", style="")
    if report.num_bad:
        retry = "" if report.num_bad == report.counts["invalid"] else "; ask them again: --retry-failed"
        complain(f"{report.num_bad:,} records have no answer; their `error` says why{retry}")
        return FAILED
    return DONE


@contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """Set by the first Ctrl-C or SIGTERM; the second cancels what is in flight."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def handle() -> None:
        if stop.is_set():
            task.cancel()
            return
        stop.set()
        remark("finishing the records in flight; again to drop them")

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, handle)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None] | None]:
    """A bar on stderr, drawn a few times a second; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[cost]}[/] [red]{task.fields[bad]}[/]"),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
        refresh_per_second=5,
    )
    task = bar.add_task("", total=None, cost="", bad="")

    def show(progress: Progress) -> None:
        bad = f"{progress.num_bad:,} bad" if progress.num_bad else ""
        bar.update(task, total=progress.total, completed=progress.done, cost=usd(progress.cost_usd), bad=bad)

    with bar:
        yield show
