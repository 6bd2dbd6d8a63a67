"""How an agent's run is shown: a tree of steps, with the models' decisions inside them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .console import escape, printable, seconds, stdout, usd
from .views import one_line, score_label, short_id

if TYPE_CHECKING:
    from nearfar.agents.desk import State
    from nearfar.agents.journal import ApprovalRecord, RunRecord
    from nearfar.types import Decision

_COLOURS = {"answered": "green", "failed": "red"}


def print_run(
    record: RunRecord,
    status: str,
    state: State,
    approvals: Sequence[ApprovalRecord],
    decisions: Mapping[str, Decision | None],
) -> None:
    """The whole run, for people."""
    from nearfar.agents.trace import events, spent

    console = stdout()
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created_at))
    console.print(f"[bold]{record.run_id}[/]  [dim]{when}  agent {escape(record.agent)}[/]")
    reason = f": {escape(record.result.reason)}" if record.result and record.result.reason else ""
    used = spent(state.get("trace", []))
    facts = (
        f"{used.model_calls} model calls, {used.tool_calls} tool calls, {used.tokens:,} tokens, {usd(used.cost_usd)}"
    )
    console.print(f"[{_COLOURS.get(status, 'yellow')}]{status}{reason}[/] [dim]{facts}[/]", soft_wrap=True)
    for role in dict.fromkeys(each["role"] for each in state.get("trace", []) if each["event"] == "decided"):
        own = spent(state.get("trace", []), role)
        told = f"{own.model_calls} model calls, {own.tokens:,} tokens, {usd(own.cost_usd)}"
        console.print(f"[dim]{escape(role)}: {told}[/]", soft_wrap=True)
    console.print(f"[dim]task[/]   {escape(one_line(record.task.text, 400))}", soft_wrap=True)
    if state.get("text"):
        console.print(f"[dim]answer[/] {escape(one_line(state['text'], 400))}", soft_wrap=True)
    console.print()
    console.print(_tree(events(state.get("trace", [])), decisions))
    for each in approvals:
        said = {None: "[yellow]waits for a person[/]", True: "allowed", False: "denied"}[each.is_allowed]
        said += f" by {escape(each.answered_by)}" if each.answered_by else ""
        asked = escape(f"{each.call.name} {each.call.arguments}")
        console.print(
            f"[dim]approval {each.approval_id}[/] {asked}: {said} [dim]({escape(each.why)})[/]", soft_wrap=True
        )


def _tree(events: Sequence[Any], decisions: Mapping[str, Decision | None]) -> Any:
    from rich.tree import Tree

    from nearfar.agents.types import Called, Decided, Observed, Planned

    root = Tree("run", hide_root=True, guide_style="dim")
    branch, step = root, -1
    for event in events:
        if event.step != step:
            step = event.step
            branch = root.add(f"[bold]step {step}[/]" if step else "[bold]before anything is read[/]")
        match event:
            case Decided():
                branch.add(_decided(event, decisions.get(event.decision_id or "")))
            case Planned():
                why = f" [dim]{escape(one_line(event.text, 160))}[/]" if event.text else ""
                branch.add(f"plan: {escape(event.next)}{_sure(event.score)}{why}")
            case Called():
                branch.add(f"call: {escape(f'{event.call.name} {event.call.arguments}')}{_sure(event.score)}")
            case Observed():
                seen = event.observation
                text = escape(one_line(printable(seen.text), 240))
                colour = "green" if seen.kind == "result" else "yellow"
                branch.add(f"[{colour}]{seen.kind}[/] [dim]{seconds(seen.latency_s)}[/] {text}")
            case _:
                pass
    return root


def _decided(event: Any, decision: Decision | None) -> str:
    """The role, the models that were tried for it, and what they took."""
    used = f"{event.usage.prompt_tokens}+{event.usage.completion_tokens} tokens, " if event.usage else ""
    if decision is None:
        told = f"[dim]{used}{usd(event.cost_usd)}[/]"
        return f"[cyan]{escape(event.role)}[/] {escape(event.model)}{_sure(event.score)} {told}"
    tiers = " → ".join(f"{step.tier} {step.verdict}" for step in decision.steps) or decision.status
    told = score_label(decision)
    took = seconds(decision.latency_s.get("total", 0.0))
    return (
        f"[cyan]{escape(event.role)}[/] {escape(tiers)}{f' [dim]{told}[/]' if told else ''}{_sure(event.score)}"
        f" [dim]{used}{usd(event.cost_usd)}, {took} · {short_id(decision.id)}[/]"
    )


def _sure(score: float | None) -> str:
    return "" if score is None else f" [dim]({score:.2f})[/]"
