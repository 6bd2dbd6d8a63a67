"""`nearfar memory`: what is remembered, forgetting it, and from which likeness on two questions ask the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.errors import RequestError

from . import options as opt
from .console import remark, write, write_json
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.retrieval.memory import SqliteMemory
    from nearfar.retrieval.postgres import PostgresMemory

app = typer.Typer(help="See and forget remembered answers; fit when two questions ask the same.", no_args_is_help=True)


@app.command("show")
def show(as_json: opt.JsonOption = False, config: opt.ConfigOption = None) -> int:
    """Say how much is remembered."""

    async def main() -> int:
        async with _opened(config) as memory:
            stats = await memory.stats()
        if as_json:
            write_json(asdict(stats))
        else:
            write(f"{stats.memos:,} answers in {stats.scopes:,} scopes, resting on {stats.sources:,} sources\n")
        return DONE

    return asyncio.run(main())


@app.command("forget")
def forget(
    user: Annotated[str | None, typer.Option("--user", help="Only what was answered to this user.")] = None,
    question: Annotated[str | None, typer.Option("--question", help="Only the answers to this very question.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that is remembered.")] = False,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Delete remembered answers: a user's, a question's, or all."""
    if everything == (user is not None or question is not None):
        raise RequestError("Say what to forget: --user, --question, or --all alone.")

    async def main() -> int:
        async with _opened(config) as memory:
            num_deleted = await memory.forget(user=user, question=question)
        if as_json:
            write_json({"forgotten": num_deleted})
        else:
            write(f"{num_deleted:,} answers forgotten\n")
        return DONE

    return asyncio.run(main())


@app.command("calibrate")
def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="PAIRS", help="JSONL: `question`, `remembered` and `same`, one pair a line.")
    ],
    alpha: Annotated[
        float, typer.Option("--alpha", help="The largest share of wrong answers among the recalled.")
    ] = 0.05,
    delta: Annotated[float, typer.Option("--delta", help="The probability with which the promise may fail.")] = 0.1,
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy's file.")] = Path("memory.policy.json"),
    as_json: opt.JsonOption = False,
) -> int:
    """Fit from which likeness on a memory may take two questions for the same.

    The pairs should come as questions will: each with the remembered question that looks most like it, those that
    look alike and ask something else among them. Name the file in the config: memory.policy.
    """
    from nearfar.retrieval.matching import MatchPolicy, read_pairs
    from nearfar.router.guarantees import AcceptedError

    policy = MatchPolicy.fit(read_pairs(source), AcceptedError(alpha, delta))
    policy.save(out)
    guarantee = policy.guarantee or {}
    if as_json:
        write_json({**asdict(policy), "path": str(out)})
    elif policy.threshold is None:
        needed = guarantee.get("needed_n")
        hint = f" About {needed:,} pairs would do." if needed else ""
        remark(f"Nothing can be promised: {guarantee.get('reason')}.{hint}", style="")
    else:
        write(
            f"recalled from likeness {policy.threshold:.3f}: at most {alpha:.1%} wrong, with confidence "
            f"{1 - delta:.0%}; {policy.hit_rate:.0%} of these {policy.n:,} pairs are recalled\n"
        )
    remark(f"written to {out}")
    return DONE if policy.threshold is not None else FAILED


@asynccontextmanager
async def _opened(config: Path | None) -> AsyncIterator[SqliteMemory | PostgresMemory]:
    """The memory that the config names, whether or not it is enabled."""
    from nearfar.config import Settings
    from nearfar.wiring.memory import open_memory
    from nearfar.wiring.records import open_store

    settings = Settings.load(config, needs_keys=False)
    store = open_store(settings)
    try:
        memory = open_memory(settings, store)
        try:
            yield memory
        finally:
            memory.close()
    finally:
        store.close()
