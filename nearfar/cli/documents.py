"""`nearfar index` and `nearfar search`: documents into collections, and passages out of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import DataError, RequestError
from nearfar.retrieval.places import hit_json, place

from . import options as opt
from .console import complain, escape, one_line, printable, remark, seconds, stderr, stdout, table, write, write_json
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.config import Settings
    from nearfar.retrieval.indexing import Progress, Report
    from nearfar.types import Filter, Hit

#: Failures that are shown one by one; the rest is counted.
_NUM_SHOWN = 20


class By(StrEnum):
    """What passages are found by."""

    hybrid = "hybrid"
    words = "words"
    vectors = "vectors"


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The collection's name.", show_default=False)]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="FIELD=VALUE",
        help='Only passages whose metadata says so; several times: all of it. "source=/a/folder/*" is a prefix.',
    ),
]


def index(
    name: Annotated[str | None, typer.Argument(help="The collection; made if need be.", show_default=False)] = None,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="Files and folders.", show_default=False)
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option("--embedder", help="static, minilm, one of the config, or none; the config's unless told."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="PATTERN", help="Leave out what matches, in .gitignore's syntax; repeatable."
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", min=1, help="Larger files are listed as failures.")
    ] = 100_000_000,
    max_chars: Annotated[
        int | None, typer.Option("--max-chars", min=100, help="The longest passage (default: the config's, 1000).")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="SOURCE", help="Delete documents by path or name; a folder: all under it."),
    ] = None,
    reembed: Annotated[
        bool, typer.Option("--reembed", help="Embed everything anew, with --embedder or the config's.")
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Say what there is, and what failed.")] = False,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Index documents, to be searched and to answer from.

    Text, Markdown, HTML, PDF, code and JSONL; folders without what .gitignore and .nearfarignore leave out.
    Run it again after changes: only what changed is read, and what has vanished is deleted.
    """
    from nearfar.config import Settings

    settings = Settings.load(config, needs_keys=False)
    if show_list or name is None:
        return _list(settings, name, as_json=as_json)
    if not paths and not remove and not reembed:
        return _repair(settings, name, as_json=as_json)
    report = _index(settings, name, paths or [], embedder, exclude or [], max_bytes, max_chars, remove or [], reembed)
    if as_json:
        write_json(_report_json(name, report))
    return _conclude(name, report)


def _index(
    settings: Settings,
    name: str,
    paths: list[Path],
    embedder: str | None,
    exclude: list[str],
    max_bytes: int,
    max_chars: int | None,
    remove: list[str],
    reembeds: bool,
) -> Report:
    from nearfar.retrieval.chunking import Chunking
    from nearfar.retrieval.folders import check_paths
    from nearfar.retrieval.indexing import Report, index_paths
    from nearfar.wiring.documents import open_collection_writer

    check_paths(paths)
    if reembeds and embedder is None:
        embedder = settings.retrieval.embedder
    writer = open_collection_writer(settings, name, embedder=embedder, creates=bool(paths), reembeds=reembeds)
    with writer, _told_of_interruption(name), _progress_bar() as show:
        report = Report()
        for source in remove:
            known = set(writer.sources_under(str(Path(source).absolute())))
            report.deleted += writer.delete(sorted(known | {source}))
        if paths:
            done = index_paths(
                writer,
                paths,
                chunking=Chunking(max_chars or settings.retrieval.max_chars),
                exclude=exclude,
                max_bytes=max_bytes,
                on_progress=show,
            )
            done.deleted += report.deleted
            return done
        writer.finish()
    if remove and not report.deleted:
        raise RequestError(
            f"The collection {name!r} has no document {remove[0]!r}; what it has: nearfar index {name} --list --json"
        )
    return report


@contextmanager
def _told_of_interruption(name: str) -> Iterator[None]:
    """Says what Ctrl-C costs."""
    try:
        yield
    except KeyboardInterrupt:
        remark(f"Interrupted: what is in {name!r} is kept; the same command goes on with the rest.", style="")
        raise


def _repair(settings: Settings, name: str, *, as_json: bool) -> int:
    """Brings the indexes up to date with the documents."""
    from nearfar.wiring.documents import open_collection_writer

    with open_collection_writer(settings, name, creates=False) as writer:
        writer.finish()
    return _list(settings, name, as_json=as_json)


def _conclude(name: str, report: Report) -> int:
    parts = [
        f"{count:,} {what}"
        for what, count in (
            ("added", report.added),
            ("changed", report.changed),
            ("unchanged", report.unchanged),
            ("deleted", report.deleted),
            ("not text", len(report.skipped)),
        )
        if count
    ]
    remark(
        f"{name}: {', '.join(parts) or 'nothing to do'} · {report.num_chunks:,} passages · {seconds(report.elapsed_s)}",
        style="",
    )
    if not report.failures:
        return DONE
    for source, reason in report.failures[:_NUM_SHOWN]:
        remark(f"  {one_line(source)} {one_line(reason)}", style="")
    hidden = len(report.failures) - _NUM_SHOWN
    more = f"; {hidden:,} more: nearfar index {name} --list" if hidden > 0 else ""
    complain(f"{len(report.failures):,} could not be read{more}. Everything else is indexed.")
    return FAILED


def _report_json(name: str, report: Report) -> dict[str, Any]:
    return {
        "collection": name,
        "added": report.added,
        "changed": report.changed,
        "unchanged": report.unchanged,
        "deleted": report.deleted,
        "passages": report.num_chunks,
        "bytes": report.num_bytes,
        "skipped": [{"source": source, "reason": reason} for source, reason in report.skipped],
        "failures": [{"source": source, "reason": reason} for source, reason in report.failures],
        "elapsed_s": report.elapsed_s,
    }


def _list(settings: Settings, name: str | None, *, as_json: bool) -> int:
    """The collections, or one with its documents and failures."""
    from nearfar.retrieval.collection import Collection
    from nearfar.wiring.documents import collection_folder, collection_names

    names = collection_names(settings) if name is None else [name]
    found = []
    damaged: list[tuple[str, DataError]] = []
    for each in names:
        try:
            with Collection(collection_folder(settings, each)) as collection:
                found.append((collection.statistics(), collection.sources() if name is not None else []))
        except DataError as exc:
            if name is not None:
                raise
            damaged.append((each, exc))
    if as_json:
        pages = [
            {
                "collection": facts.name,
                "embedder": facts.embedder,
                "dim": facts.dim,
                "documents": facts.num_documents,
                "passages": facts.num_chunks,
                "bytes": facts.num_bytes,
                "failures": [{"source": source, "reason": reason} for source, reason in facts.failures],
                **({"sources": sources} if name is not None else {}),
            }
            for facts, sources in found
        ]
        pages += [{"collection": each, "error": str(error)} for each, error in damaged]
        write_json(pages if name is None else pages[0])
        return FAILED if damaged else DONE
    if not found and not damaged:
        remark("There is no collection yet. Make one: nearfar index NAME PATH", style="")
        return DONE
    rows = [
        [
            facts.name,
            f"{facts.num_documents:,}",
            f"{facts.num_chunks:,}",
            f"{facts.num_bytes / 1e6:,.1f} MB",
            escape(facts.embedder or "none"),
            f"{len(facts.failures):,}",
        ]
        for facts, _ in found
    ]
    numbers = ("documents", "passages", "on disk", "failed")
    table(("collection", "documents", "passages", "on disk", "embedder", "failed"), rows, right=numbers)
    if name is not None:
        for source, reason in found[0][0].failures:
            stdout().print(f"  {one_line(source)} {one_line(reason)}", markup=False)
    for _, error in damaged:
        complain(str(error))
    return FAILED if damaged else DONE


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None] | None]:
    """A bar on stderr; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[file]}[/]"),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
        refresh_per_second=5,
    )
    task = bar.add_task("", total=None, file="")

    def show(progress: Progress) -> None:
        name = escape(Path(progress.name).name[-30:])
        file = name if progress.done < progress.total else "making the indexes …"
        bar.update(task, total=progress.total, completed=progress.done, file=file)

    with bar:
        yield show


def search(
    name: NameArgument,
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=1000, help="How many passages.")] = 5,
    where: WhereOption = None,
    by: Annotated[
        By | None, typer.Option("--by", help="hybrid, words or vectors (default: hybrid where there are vectors).")
    ] = None,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Find passages in a collection, and where they stand."""
    from nearfar.config import Settings
    from nearfar.wiring.documents import open_collection

    if not query.strip():
        raise RequestError(f'The query is empty; say what to look for: nearfar search {name} "who may write?"')
    settings = Settings.load(config, needs_keys=False)
    with open_collection(settings, name) as collection:
        hits = collection.search(query, k=k, filter=read_filter(where), mode=by.value if by else None)
        is_empty = not hits and not collection.statistics().num_chunks
    if as_json:
        for hit in hits:
            write_json(hit_json(hit))
    else:
        _show(hits)
    if is_empty:
        remark(f"{name!r} is empty. Put something into it: nearfar index {name} PATH", style="")
    elif not hits:
        remark(f"Nothing in {name!r} has anything of it.", style="")
    return DONE if hits else FAILED


def read_filter(where: list[str] | None) -> Filter | None:
    """The filter that the options say.

    Raises:
        RequestError: one of them is not FIELD=VALUE.
    """
    import json

    wanted: dict[str, list[Any]] = {}
    for condition in where or []:
        field, equals, value = condition.partition("=")
        if not equals or not field:
            raise RequestError(f"--where takes FIELD=VALUE, not {condition!r}.")
        values: list[Any] = [value]
        try:
            number = json.loads(value)
        except ValueError:
            pass
        else:
            if isinstance(number, int | float):
                values.append(number)
        wanted.setdefault(field, []).extend(values)
    return wanted or None


def _show(hits: list[Hit]) -> None:
    for number, hit in enumerate(hits, 1):
        about = hit.chunk.metadata.get("object") or hit.chunk.metadata.get("heading") or hit.chunk.metadata.get("title")
        title = f" [bold]{escape(str(about))}[/]" if about else ""
        stdout().print(f"[cyan]{number}.[/] [dim]{escape(one_line(place(hit)))}[/]{title}", soft_wrap=True)
        lines = [line for line in printable(hit.chunk.text).splitlines() if line.strip()]
        for line in lines[:6]:
            write(f"   {line}\n")
        if len(lines) > 6:
            stdout().print(f"   [dim]… {len(lines) - 6} more lines[/]")
        write("\n")
