"""`nearfar outcome` and `nearfar replay`: how good answers were, and what another policy would have done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.errors import ConfigError, DataError, RequestError

from . import options as opt
from .console import escape, remark, stdout, table, usd, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.router.outcomes import OutcomeLog
    from nearfar.router.replay import Replayed, Rerouted
    from nearfar.types import Decision, Embedder


def outcome(
    decision_id: Annotated[str, typer.Argument(metavar="ID", help="A decision's id, or its beginning.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="right, wrong, or a number in [0, 1].")],
    source: Annotated[str, typer.Option("--source", help="Who says so; each source has one say.")] = "user",
    right: Annotated[
        str | None,
        typer.Option(
            "--right",
            metavar="TEXT",
            help='What would have been right: kept for tiers with error_cases = "told".',
            show_default=False,
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why it was wrong; with --right.", show_default=False)
    ] = "",
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Say how good a decision's answer turned out to be."""
    from nearfar.router.outcomes import WORDS

    try:
        number = WORDS.get(value.strip().lower())
        number = float(value) if number is None else number
    except ValueError as exc:
        raise RequestError(
            f"The outcome is {value!r}; say right, wrong, or a number in [0, 1].", param="value"
        ) from exc
    if right is not None and number >= 0.5:
        raise RequestError("--right says what a wrong answer should have been; this one was right.", param="value")
    if reason and right is None:
        raise RequestError("--reason says why an answer was wrong; say with --right what is right.", param="value")

    with _outcomes(config) as log:
        found = asyncio.run(log.record(decision_id, number, source=source))
    if right is not None:
        asyncio.run(_keep(config, found.decision_id, right, reason))
    if as_json:
        write_json(found)
    else:
        remark(f"{found.decision_id}: {found.value:g} by {found.source}")
    return DONE


def replay(
    policy: Annotated[Path | None, typer.Option("--policy", help="A policy's file.", show_default=False)] = None,
    router: Annotated[Path | None, typer.Option("--router", help="A router's file.", show_default=False)] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Of the router; without it: the threshold for each share of queries."),
    ] = None,
    cascade: Annotated[str, typer.Option("--cascade", help="Whose tiers the router chooses between.")] = "auto",
    changed: Annotated[bool, typer.Option("--changed", help="List only decisions that would differ.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="List at most so many of the newest.")] = 20,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Show what another policy or router would have done with the logged queries, where that is known.

    Nothing is asked. Where a policy defers to a tier that was not asked at the time, its answer is not known; where it
    gives another answer than was given, its outcome is not. A router's mean outcome is estimated from the decisions
    that were routed with a known probability.
    """
    if (policy is None) == (router is None):
        raise ConfigError("Name what to replay: --policy FILE or --router FILE.")
    if router is not None:
        return _replay_router(router, threshold, cascade, changed, limit, as_json, config)
    if threshold is not None:
        raise ConfigError("--threshold is a router's; a policy has its own.")
    assert policy is not None
    from nearfar.router.policies import Policy
    from nearfar.router.replay import replay as one

    loaded = Policy.load(policy)

    async def main(log: OutcomeLog) -> list[Replayed]:
        found = [one(decision, loaded, judged) async for decision, judged in log.judged()]
        return [each for each in found if each is not None]

    with _outcomes(config) as log:
        found = asyncio.run(main(log))
    shown = [each for each in found if not (changed and each.is_same)][-limit or len(found) :] if limit else []
    if as_json:
        write_json({"policy": loaded.label, "summary": _summary(found), "decisions": shown})
        return DONE
    _print(found, shown, loaded.label)
    return DONE


#: Shares of queries that thresholds are shown for.
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def _replay_router(
    path: Path, threshold: float | None, cascade: str, changed: bool, limit: int, as_json: bool, config: Path | None
) -> int:
    from nearfar.config import Settings
    from nearfar.router.live import load_router
    from nearfar.router.predictive import RoutingQuery
    from nearfar.router.replay import asked, estimate, reroute, thresholds

    settings = Settings.load(config, needs_keys=False).cascades.get(cascade)
    if settings is None:
        raise ConfigError(f"There is no cascade {cascade!r}.")
    embedder = settings.embedder

    def make() -> Embedder:
        from nearfar.retrieval.embedders import find_embedder

        return find_embedder(embedder)

    loaded, label, _, _ = load_router(path, embedder=make)

    async def main(log: OutcomeLog) -> list[tuple[Decision, float | None]]:
        return [pair async for pair in log.judged() if pair[0].target == cascade]

    with _outcomes(config) as log:
        judged = asyncio.run(main(log))
    if threshold is None:
        texts = [text for decision, _ in judged if (text := asked(decision)) is not None]
        found = thresholds(loaded.predict([RoutingQuery(text) for text in texts]) if texts else [], _SHARES)
        if as_json:
            write_json(
                {"router": label, "n": len(texts), "thresholds": [{"share": s, "threshold": t} for s, t in found]}
            )
            return DONE
        table(
            ["sent to the strong tier", "threshold"], [[f"{s:.0%}", f"{t:.4g}"] for s, t in found], right=["threshold"]
        )
        remark(f"of {len(texts):,} logged queries; take one: nearfar replay --router {path} --threshold T")
        return DONE
    names = [tier.name or tier.model for tier in settings.tiers]
    chosen = settings.router
    weak, strong = (chosen and chosen.weak) or names[0], (chosen and chosen.strong) or names[-1]
    rows = reroute(judged, loaded, weak=weak, strong=strong, threshold=threshold)
    summary: dict[str, object] = {
        "n": len(rows),
        "same": sum(each.is_same for each in rows),
        "strong_share": sum(each.tier == strong for each in rows) / len(rows) if rows else None,
        "judged": sum(each.outcome is not None for each in rows),
        "estimate": None,
        "why_not": None,
    }
    try:
        summary["estimate"] = estimate(judged, rows)
    except DataError as exc:
        summary["why_not"] = str(exc)
    shown = [each for each in rows if not (changed and each.is_same)][-limit:] if limit else []
    if as_json:
        write_json({"router": label, "threshold": threshold, "summary": summary, "decisions": shown})
        return DONE
    _print_rerouted(shown, summary)
    return DONE


def _print_rerouted(shown: list[Rerouted], summary: dict[str, object]) -> None:
    from nearfar.router.off_policy import Estimate

    from .views import short_id

    if not summary["n"]:
        remark("No logged decision was routed between these tiers, with its text kept.")
        return
    if shown:
        rows = [
            [short_id(each.decision_id), escape(each.was_tier), escape(each.tier), f"{each.score:.3f}"]
            for each in shown
        ]
        table(["id", "was", "would be", "score"], rows, right=["score"])
        stdout().print()
    lines = [("routed decisions", f"{summary['n']:,}"), ("the same tier", f"{summary['same']:,}")]
    lines.append(("strong tier", f"{summary['strong_share']:.0%}"))
    found = summary["estimate"]
    if isinstance(found, Estimate):
        low, high = found.interval.low, found.interval.high
        lines.append(
            ("outcome", f"{found.value:.3f} [{low:.3f}, {high:.3f}], doubly robust on {found.n:,} judged ones")
        )
    else:
        lines.append(("outcome", f"not known: {summary['why_not']}"))
    for name, value in lines:
        stdout().print(f"[dim]{name:<18}[/]", end="")
        stdout().print(value, markup=False)


@contextmanager
def _outcomes(config: Path | None) -> Iterator[OutcomeLog]:
    """The outcomes and their decisions alone: no model is built to read them."""
    from nearfar.config import Settings
    from nearfar.router.outcomes import OutcomeLog
    from nearfar.wiring.learning import open_learning
    from nearfar.wiring.records import open_log, open_store

    settings = Settings.load(config, needs_keys=False)
    store = open_store(settings)
    try:
        yield OutcomeLog(store, open_log(settings, store), open_learning(settings, store))
    finally:
        store.close()


async def _keep(config: Path | None, decision_id: str, right: str, reason: str) -> None:
    """Keeps the decision's mistake beside what is right."""
    from nearfar.config import Settings
    from nearfar.wiring.learning import keep_mistake
    from nearfar.wiring.records import open_log, open_store

    settings = Settings.load(config, needs_keys=False)
    store = open_store(settings)
    try:
        decision = await open_log(settings, store).get(decision_id)
        assert decision is not None  # its outcome has just been recorded
        await keep_mistake(settings, store, decision, right=right, reason=reason)
    finally:
        store.close()


def _summary(found: list[Replayed]) -> dict[str, object]:
    known = [each for each in found if each.is_known]
    judged = [each.outcome for each in known if each.outcome is not None]
    both = [
        (each.was_cost_usd, each.cost_usd)
        for each in known
        if each.was_cost_usd is not None and each.cost_usd is not None
    ]
    return {
        "n": len(found),
        "same": sum(each.is_same for each in found),
        "other": sum(each.is_known and not each.is_same for each in found),
        "unknown": len(found) - len(known),
        "judged": len(judged),
        "mean_outcome": fmean(judged) if judged else None,
        "cost_usd_was": sum(was for was, _ in both) if both else None,
        "cost_usd": sum(cost for _, cost in both) if both else None,
        "costs_known": len(both),
    }


def _print(found: list[Replayed], shown: list[Replayed], label: str) -> None:
    from .views import short_id

    if not found:
        remark(f"No logged decision has a tier of {label}.")
        return
    rows = [
        [short_id(each.decision_id), escape(each.was_tier or "—"), escape(each.tier or "not known"), escape(each.why)]
        for each in shown
    ]
    if rows:
        table(["id", "was", "would be", "because"], rows, wrap=["because"])
        stdout().print()
    facts = _summary(found)
    lines = [
        ("decisions", f"{facts['n']:,}"),
        ("the same tier", f"{facts['same']:,}"),
        ("another tier", f"{facts['other']:,}"),
        ("not known", f"{facts['unknown']:,}: a tier would have been asked that was not"),
    ]
    if facts["mean_outcome"] is not None:
        lines.append(
            ("outcome", f"{facts['mean_outcome']:.3f} on {facts['judged']:,} judged answers that stay the same")
        )
    was, cost = facts["cost_usd_was"], facts["cost_usd"]
    if isinstance(was, float | int) and isinstance(cost, float | int):
        lines.append(
            ("cost", f"{usd(cost)} instead of {usd(was)}, on {facts['costs_known']:,} decisions that are known")
        )
    for name, value in lines:
        stdout().print(f"[dim]{name:<16}[/]", end="")
        stdout().print(value, markup=False)
