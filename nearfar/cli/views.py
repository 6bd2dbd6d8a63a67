"""How an answer, a plan and a decision are shown, as text and as plain JSON values."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .console import escape, printable, seconds, stdout, table, usd

if TYPE_CHECKING:
    from nearfar.types import Answer, Decision, Routing, SignalCost, Step

_COLOURS = {
    "answered": "green",
    "abstained": "yellow",
    "refused": "yellow",
    "failed": "red",
    "cancelled": "dim",
    "accepted": "green",
    "deferred": "yellow",
}


def answer_json(answer: Answer) -> dict[str, Any]:
    """The answer as one flat object."""
    decision = answer.decision
    shown: dict[str, Any] = {
        "answer": answer.text,
        "status": decision.status if decision else "answered",
        "tier": answer.tier,
        "model": answer.model or None,
        "score": answer.score,
        "threshold": decision.threshold if decision else None,
        "calibrated": decision.is_calibrated if decision else False,
        "reason": decision.reason if decision else None,
        "policy": decision.policy if decision else None,
        "escalations": decision.escalations if decision else 0,
        "cost_usd": decision.cost_usd if decision else answer.cost_usd,
        "cost_estimated": decision.is_cost_estimated if decision else answer.is_cost_estimated,
        "latency_s": _total_s(answer),
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "cached": answer.is_cached,
        "left_machine": bool(decision and decision.departures),
        "decision_id": answer.decision_id,
    }
    if answer.reasoning:
        shown["reasoning"] = answer.reasoning
    if answer.outcome_only:
        shown["outcome_only"] = True
    if answer.correct is not None:
        shown["correct"] = answer.correct
    if decision and decision.status == "refused":
        shown["error"] = refusal(decision)
    return shown


def footer(answer: Answer) -> str:
    """One line on where the answer came from."""
    decision = answer.decision
    if decision is None:
        return f"{answer.model} · {usd(answer.cost_usd)} · {seconds(answer.latency_s)}"
    parts = [_tier_label(decision)]
    told = score_label(decision)
    if told:
        parts.append(told)
    if decision.escalations:
        parts.append(" → ".join(step.tier for step in decision.steps))
    if answer.is_cached:
        parts.append("from the cache")
    if answer.outcome_only:
        parts.append("a recorded outcome without its text")
    parts += [usd(decision.cost_usd, is_estimated=decision.is_cost_estimated), seconds(_total_s(answer))]
    return " · ".join(parts)


def score_label(decision: Decision) -> str:
    """The score against its threshold, in words; "" where there is no score."""
    if decision.score is None:
        return ""
    text = f"score {decision.score:.2f}"
    if decision.threshold is not None:
        text += f" {'≥' if decision.score >= decision.threshold else '<'} {decision.threshold:.2f}"
    return text if decision.is_calibrated else f"{text} uncalibrated"


def refusal(decision: Decision) -> str:
    """Why no tier took the query, in one line."""
    reasons = "; ".join(f"{c.tier}: {c.reason}" for c in decision.candidates if c.reason)
    return f"No tier may take it: {reasons or decision.error or decision.reason}."


def decision_json(decision: Decision) -> dict[str, Any]:
    """The record as plain JSON values."""
    from nearfar.types import plain

    return plain(decision)


def print_decision(decision: Decision) -> None:
    """The whole record, for people."""
    console = stdout()
    colour = _COLOURS[decision.status]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(decision.created_at))
    console.print(f"[bold]{decision.id}[/]  [dim]{when}  {decision.door}[/]")
    console.print(f"[{colour}]{escape(_headline(decision))}[/]")
    question = prompt_of(decision)
    if question:
        console.print(f"[dim]asked[/]     {escape(_clip(question, 400))}")
    said = next((step.text for step in reversed(decision.steps) if step.tier == decision.tier and step.text), "")
    if said:
        console.print(f"[dim]answer[/]    {escape(_clip(said, 400))}")
    console.print()
    _print_steps(decision)
    for label, text in _facts(decision):
        console.print(f"[dim]{label:<9}[/] {escape(text)}", soft_wrap=True)


def _headline(decision: Decision) -> str:
    total = seconds(decision.latency_s.get("total", 0.0))
    cost = usd(decision.cost_usd, is_estimated=decision.is_cost_estimated)
    match decision.status:
        case "answered":
            return f"answered by {_tier_label(decision)} in {total} for {cost}: {_reason(decision)}"
        case "abstained":
            why = _reason(decision) if decision.reason == "abstained_early" else "no tier was sure enough"
            return f"abstained after {total} and {cost}: {why}"
        case "refused":
            return refusal(decision)
        case "cancelled":
            return f"cancelled by the client after {total}"
        case "failed":
            return f"failed after {total}: {decision.error}"


def _reason(decision: Decision) -> str:
    return {
        "confident": "its score reached the threshold",
        "last_tier": "it is the last tier that could take it",
        "remembered": "the memory holds the answer to a question that asks the same",
        "abstained_early": "its score was so low that no further tier was asked",
        "named": "the query named this model",
        "out_of_budget": "the budget allowed no further tier",
        "out_of_time": "there was no time for a further tier",
        "upstream_failed": "the further tiers failed",
        "no_tier": "no tier may take it",
        "cancelled": "cancelled",
    }[decision.reason]


def _print_steps(decision: Decision) -> None:
    rows = []
    for step in decision.steps:
        colour = _COLOURS.get(step.verdict, "red")
        rows.append(
            [
                escape(step.tier),
                step.placement,
                f"[{colour}]{step.verdict}[/]",
                "—" if step.score is None else f"{step.score:.3f}",
                "—" if step.threshold is None else f"{step.threshold:.3f}",
                usd(step.cost_usd, is_estimated=step.is_cost_estimated),
                seconds(step.latency_s),
                _tokens(step),
                escape(step.reason),
            ]
        )
    asked = {step.tier for step in decision.steps}
    rows += [
        [
            escape(c.tier),
            c.placement,
            f"[dim]{'not asked' if c.is_eligible else 'dropped'}[/]",
            "—",
            "—",
            "—",
            "—",
            "—",
            escape(c.reason),
        ]
        for c in decision.candidates
        if not c.is_eligible or (c.reason and c.tier not in asked)
    ]
    if rows:
        numbers = ["score", "threshold", "cost", "time", "tokens"]
        table(["tier", "where", "verdict", *numbers, "why"], rows, right=numbers, wrap=["why"])
        stdout().print()


def _tokens(step: Step) -> str:
    if step.usage is None:
        return "—"
    return f"{step.usage.prompt_tokens}+{step.usage.completion_tokens}"


def _facts(decision: Decision) -> Iterator[tuple[str, str]]:
    for departure in decision.departures:
        sent = f"{_counted(departure.messages, 'message')}, {_counted(departure.characters, 'character')}"
        yield "left", f"{sent} to {departure.model} (sha256 {departure.sha256[:12]}…)"
    if not decision.departures:
        yield "left", "nothing left this machine"
    promise = (
        "calibrated" if decision.is_calibrated else "no outcome has calibrated these scores; see nearfar calibrate"
    )
    yield "policy", f"{decision.policy} · {promise}"
    if decision.routing is not None:
        yield "routing", routing_label(decision.routing)
        for cost in decision.routing.costs:
            yield "asked", _signal_cost(cost)
    for step in decision.steps:
        if step.signals:
            shown = ", ".join(f"{name} {value:.3g}" for name, value in step.signals.items())
            yield "signals", f"{step.tier}: {shown}"
        for cost in step.signal_costs:
            yield "asked", f"{step.tier}: {_signal_cost(cost)}"
    stages = ", ".join(f"{name} {seconds(value)}" for name, value in decision.latency_s.items())
    yield "time", stages


def routing_label(routing: Routing) -> str:
    """Which tier was chosen before any call, by whom and how likely."""
    why = "" if routing.score is None else f": expects {routing.score:+.3f}, threshold {routing.threshold:.3f}"
    why = f": {routing.reason}" if routing.reason else why
    return f"{routing.by} chose {routing.tier} with probability {routing.propensity:.3g}{why}"


def _signal_cost(cost: SignalCost) -> str:
    calls = _counted(cost.calls, "call")
    if cost.usage is not None:
        calls += f" of {_counted(cost.usage.prompt_tokens + cost.usage.completion_tokens, 'token')}"
    took = f"{calls} for {cost.name}, {usd(cost.cost_usd, is_estimated=cost.is_cost_estimated)}"
    return f"{took} in {seconds(cost.latency_s)}" + (f"; missing: {cost.missing}" if cost.missing else "")


def prompt_of(decision: Decision) -> str:
    """The last user message's text; "" where the log does not keep it."""
    for message in reversed(decision.request.get("prompt") or []):
        if message.get("role") == "user":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def short_id(decision_id: str | None) -> str:
    """Enough of a decision's id to find it by: its milliseconds and 16 random bits."""
    return (decision_id or "")[:16]


def one_line(text: str, width: int) -> str:
    """The text on one line of at most `width` characters."""
    text = " ".join(printable(text).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def pretty(value: Any) -> str:
    """A config value as TOML would have it, near enough."""
    return json.dumps(value, ensure_ascii=False)


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"


def _tier_label(decision: Decision) -> str:
    step = next((step for step in reversed(decision.steps) if step.tier == decision.tier), None)
    name = decision.tier or decision.model or "no tier"
    if decision.model and decision.tier and decision.model != decision.tier:
        name = f"{decision.tier} ({decision.model})"
    return f"{step.placement} {name}" if step else name


def _total_s(answer: Answer) -> float:
    decision = answer.decision
    return decision.latency_s.get("total", answer.latency_s) if decision else answer.latency_s
