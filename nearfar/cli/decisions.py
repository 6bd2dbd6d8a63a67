"""`nearfar route`, `explain` and `decisions`: what would be done, and what was done and why."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.errors import DataError, RequestError

from . import options as opt
from .agent import has_run, show_run
from .console import complain, escape, remark, seconds, stdout, table, usd, write_json
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.router.decision_log import SqliteDecisionLog
    from nearfar.types import Decision

_POLL_S = 0.3


class StatusChoice(StrEnum):
    """How a query ended."""

    answered = "answered"
    abstained = "abstained"
    refused = "refused"
    failed = "failed"
    cancelled = "cancelled"


def route(
    prompt: Annotated[
        str | None, typer.Argument(help='The question; "-" or a pipe: from stdin.', show_default=False)
    ] = None,
    model: opt.ModelOption = "auto",
    system: opt.SystemOption = None,
    budget_usd: opt.BudgetOption = None,
    deadline_s: opt.DeadlineOption = None,
    privacy: opt.PrivacyOption = opt.Privacy.any,
    quality: opt.QualityOption = None,
    max_tokens: opt.MaxTokensOption = None,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Show which tiers would be tried, and why; nothing is asked but the model that chooses for a router."""
    given = opt.QueryOptions(model, system, budget_usd, deadline_s, privacy, quality, max_tokens=max_tokens)
    query = given.query(opt.read_prompt(prompt))

    async def main() -> int:
        async with opt.opened(config) as wired:
            opt.refuse_contradictions(wired, query)
            plan = await wired.router.preview(query)
            cards = wired.router.cards()
        bounds = {c.tier: cards[c.model].cost_bound_usd(query) for c in plan.candidates}
        if as_json:
            from nearfar.types import plain

            candidates = [
                {
                    "tier": c.tier,
                    "model": c.model,
                    "placement": c.placement,
                    "eligible": c.is_eligible,
                    "reason": c.reason or None,
                    "cost_bound_usd": bounds[c.tier],
                }
                for c in plan.candidates
            ]
            first = plan.routing.tier if plan.routing else _first(plan.eligible)
            routing = plan.routing and plain(plan.routing)
            write_json({"target": plan.target, "first": first, "routing": routing, "candidates": candidates})
            return DONE
        rows = []
        for number, candidate in enumerate(plan.candidates, 1):
            says = (
                "[green]would be tried[/]"
                if candidate.is_eligible
                else f"[yellow]dropped[/]: {escape(candidate.reason)}"
            )
            bound = bounds[candidate.tier]
            cost = "unknown" if bound is None else f"≤ {usd(bound)}" if bound else "$0"
            rows.append([str(number), escape(candidate.tier), candidate.placement, cost, says])
        table(["", "tier", "where", "cost", "verdict"], rows, right=["cost"], wrap=["verdict"])
        if plan.routing:
            from .views import routing_label

            stdout().print(f"\nbegins at {escape(plan.routing.tier)}: {escape(routing_label(plan.routing))}")
            if plan.routing.probabilities:
                shares = sorted(plan.routing.probabilities.items(), key=lambda pair: -pair[1])
                table(["worker", "probability"], [[escape(n), f"{p:.4f}"] for n, p in shares], right=["probability"])
        return DONE

    return asyncio.run(main())


def explain(
    decision_id: Annotated[
        str, typer.Argument(metavar="ID", help="A decision's or an agent's run's id, or its beginning; `last`.")
    ],
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Show why an answer came from there, and what left the machine; of an agent's run, every step and decision."""

    async def main() -> Decision | None:
        with _log(config) as log:
            if decision_id == "last":
                return next(iter(await log.select(limit=1)), None)
            return await log.get(decision_id)

    decision = asyncio.run(main())
    if decision is None and asyncio.run(has_run(decision_id, config)):
        return show_run(decision_id, as_json=as_json, config=config)
    if decision is None:
        complain(f"There is no decision {decision_id!r}. List them: nearfar decisions.")
        return FAILED
    from .views import decision_json, print_decision

    if as_json:
        write_json(decision_json(decision))
    else:
        print_decision(decision)
    return DONE


def decisions(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the newest.")] = 20,
    status: Annotated[StatusChoice | None, typer.Option("--status", help="Only those that ended so.")] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Only those answered by this tier.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only those answered by this model.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="30m, 12h, 7d, 2026-11-30, or 2026-11-30T12:00.")] = None,
    tail: Annotated[bool, typer.Option("--tail", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write all that match to this JSONL file, oldest first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    config: opt.ConfigOption = None,
) -> int:
    """List the newest decisions; filter, follow or export them."""
    wanted = _Filter(status.value if status else None, tier, model, _since(since) if since else None)

    async def main() -> None:
        with _log(config) as log:
            if export is not None:
                count = await _export(log, wanted, export)
                remark(f"{count:,} decision{'s' if count != 1 else ''} written to {export}")
                return
            after = await log.last_sequence()
            found = await log.select(
                limit=limit, status=status.value if status else None, tier=tier, model=model, since=wanted.since
            )
            found.reverse()
            if not found and not tail and not as_json:
                remark("No decisions match." if wanted != _Filter() else 'No decisions yet. Make one: nearfar ask "…"')
            _show(found, as_json=as_json, has_heading=True)
            while tail:
                sys.stdout.flush()
                async for sequence, decision in log.iterate(after=after):
                    after = sequence
                    if wanted.takes(decision):
                        _show([decision], as_json=as_json, has_heading=False)
                await asyncio.sleep(_POLL_S)

    asyncio.run(main())
    return DONE


class _Filter:
    """Which decisions are wanted."""

    def __init__(
        self, status: str | None = None, tier: str | None = None, model: str | None = None, since: float | None = None
    ) -> None:
        self.since = since
        self._exact = {"status": status, "tier": tier, "model": model}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Filter) and (self.since, self._exact) == (other.since, other._exact)

    __hash__ = None  # type: ignore[assignment]

    def takes(self, decision: Decision) -> bool:
        if self.since is not None and decision.created_at < self.since:
            return False
        return all(value is None or getattr(decision, name) == value for name, value in self._exact.items())


def _first(eligible: tuple[object, ...]) -> str | None:
    return str(getattr(eligible[0], "tier", "")) if eligible else None


@contextmanager
def _log(config: Path | None) -> Iterator[SqliteDecisionLog]:
    """The decision log alone: no model is built to read it."""
    from nearfar.config import Settings
    from nearfar.wiring.records import open_log, open_store

    settings = Settings.load(config, needs_keys=False)
    store = open_store(settings)
    try:
        yield open_log(settings, store)
    finally:
        store.close()


async def _export(log: SqliteDecisionLog, wanted: _Filter, path: Path) -> int:
    import msgspec

    encode = msgspec.json.Encoder().encode
    count = 0
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            async for decision in _matching(log, wanted):
                file.write(encode(decision) + b"\n")
                count += 1
        temporary.replace(path)
    except OSError as exc:
        raise DataError(f"Cannot write {str(path)!r}: {exc.strerror}. Name another file.", path=str(path)) from exc
    finally:
        temporary.unlink(missing_ok=True)
    return count


async def _matching(log: SqliteDecisionLog, wanted: _Filter) -> AsyncIterator[Decision]:
    async for _, decision in log.iterate():
        if wanted.takes(decision):
            yield decision


_STYLES = {"answered": "green", "failed": "red", "cancelled": "dim"}


def _show(found: list[Decision], *, as_json: bool, has_heading: bool) -> None:
    from .views import decision_json, one_line, prompt_of, score_label, short_id

    if as_json:
        for decision in found:
            write_json(decision_json(decision))
        return
    if not found:
        return
    rows = []
    for decision in found:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(decision.created_at))
        style = _STYLES.get(decision.status, "yellow")
        rows.append(
            [
                f"[dim]{when}[/]",
                short_id(decision.id),
                f"[{style}]{decision.status}[/]",
                escape(decision.tier or "—"),
                score_label(decision).removeprefix("score ").replace(" uncalibrated", "*") or "—",
                usd(decision.cost_usd, is_estimated=decision.is_cost_estimated).replace("cost unknown", "?"),
                seconds(decision.latency_s.get("total", 0.0)),
                escape(one_line(prompt_of(decision), max(20, stdout().width - 84))),
            ]
        )
    if has_heading:
        table(["when", "id", "status", "tier", "score", "cost", "time", "asked"], rows, right=["cost", "time"])
        if any(decision.score is not None and not decision.is_calibrated for decision in found):
            remark("* uncalibrated")
        return
    for row in rows:
        stdout().print("  ".join(row), soft_wrap=True)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _since(text: str) -> float:
    """Unix time of a span before now (90s, 30m, 12h, 7d) or of a local date and time.

    Raises:
        RequestError: neither.
    """
    from datetime import datetime

    span = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if span:
        return time.time() - float(span[1]) * _UNITS[span[2]]
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError as exc:
        raise RequestError(f"--since takes 30m, 12h, 7d or 2026-11-30T12:00, not {text!r}.", param="since") from exc
