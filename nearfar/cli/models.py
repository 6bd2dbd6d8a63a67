"""`nearfar models`: which models there are, and fetching the weights of embedded ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as opt
from .console import escape, remark, stderr, stdout, table, write, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.config import Settings

app = typer.Typer(help="List the models; `models get` fetches weights.", invoke_without_command=True)


@app.callback()
def models(context: typer.Context, as_json: opt.JsonOption = False, config: opt.ConfigOption = None) -> int:
    """List the configured models and cascades; `models get` fetches weights."""
    return DONE if context.invoked_subcommand else list_models(as_json=as_json, config=config)


@app.command("list")
def list_models(as_json: opt.JsonOption = False, config: opt.ConfigOption = None) -> int:
    """List the configured models and cascades."""

    async def main() -> int:
        async with opt.opened(config) as wired:
            cards, unavailable = wired.router.cards(), wired.router.unavailable()
            settings = wired.settings
        if as_json:
            import msgspec

            rows = [
                {**msgspec.to_builtins(card), "kind": _kind(settings, name), "unavailable": unavailable.get(name)}
                for name, card in cards.items()
            ]
            cascades = {name: [tier.model for tier in cascade.tiers] for name, cascade in settings.cascades.items()}
            routers = {
                name: {worker: told.model for worker, told in router.workers.items()}
                for name, router in settings.routers.items()
            }
            write_json({"models": rows, "cascades": cascades, "routers": routers})
            return DONE
        shown = []
        for name, card in cards.items():
            price = "unknown"
            if card.price is not None:
                pair = (card.price.prompt_usd_per_mtok, card.price.completion_usd_per_mtok)
                price = f"{pair[0]:g} / {pair[1]:g}" if any(pair) else "free"
            state = f"[yellow]{escape(unavailable[name])}[/]" if name in unavailable else "[green]ready[/]"
            window = f"{card.context_window:,}" if card.context_window else "unknown"
            shown.append([escape(name), _kind(settings, name), card.placement, window, price, state])
        table(
            ["model", "kind", "where", "context", "$ per M tokens", "state"], shown, right=["context", "$ per M tokens"]
        )
        stdout().print()
        for name, cascade in settings.cascades.items():
            tiers = " → ".join(escape(tier.model) for tier in cascade.tiers)
            policy = f"policy {escape(str(cascade.policy.name))}" if cascade.policy else "uncalibrated"
            stdout().print(f"[bold]{escape(name)}[/]  {tiers}  [dim]{policy}[/]")
        for name, router in settings.routers.items():
            workers = ", ".join(f"{escape(worker)} ({escape(told.model)})" for worker, told in router.workers.items())
            stdout().print(f"[bold]{escape(name)}[/]  {escape(router.model)} chooses among {workers}")
        return DONE

    return asyncio.run(main())


@app.command("get")
def get(
    name: Annotated[
        str, typer.Argument(help="`smollm2`, or hf:OWNER/REPO/FILE.gguf from a Hugging Face hub.")
    ] = "smollm2",
    as_json: opt.JsonOption = False,
) -> int:
    """Fetch an embedded model's weights into the user's cache."""
    from nearfar.models import weights

    cache_dir = weights.default_cache_dir()
    path = weights.find(name, cache_dir)
    is_new = path is None
    if path is None:
        with download_bar(name) as progress:
            path = weights.fetch(name, cache_dir=cache_dir, progress=progress)
    if as_json:
        write_json({"name": name, "path": str(path), "bytes": path.stat().st_size, "fetched": is_new})
        return DONE
    remark(f"{name} is {'now' if is_new else 'already'} here ({path.stat().st_size / 1e6:.0f} MB):")
    write(f"{path}\n")
    return DONE


def _kind(settings: Settings, name: str) -> str:
    return settings.models[name.partition("+")[0]].kind


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr for a download; a line where nobody looks."""
    if not sys.stderr.isatty():
        has_begun = False

        def begin(_done: int, total: int | None) -> None:
            nonlocal has_begun
            if not has_begun:
                remark(f"fetching {name}{f' ({total / 1e6:.0f} MB)' if total else ''} …")
            has_begun = True

        yield begin
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("fetching {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=stderr(),
        transient=True,
    )
    task = bar.add_task(name, total=None)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)
