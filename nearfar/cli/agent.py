"""`nearfar agent`: tasks done with tools, watched as they are done, and gone on with after a stop or a question."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import RequestError

from . import options as opt
from .agent_evaluate import evaluate
from .console import complain, escape, printable, remark, seconds, table, usd, write, write_json
from .run import DONE, FAILED, INTERRUPTED

if TYPE_CHECKING:
    from nearfar.agents.checkpoints import RunStore
    from nearfar.agents.graph_agent import GraphAgent
    from nearfar.agents.types import AgentEvent, NeedsApproval, RunResult
    from nearfar.config import Settings
    from nearfar.config.agents import AgentSettings
    from nearfar.wiring import Wired

#: The agent that there is without any in the config.
DEFAULT = "default"

app = typer.Typer(
    help="Have tasks done with tools: planned, called, answered; stopped and resumed.", no_args_is_help=True
)
app.command("evaluate")(evaluate)

AgentOption = Annotated[
    str | None,
    typer.Option(
        "--agent", "-a", help="One of the config's agents (default: the only one, or files, calculator and --docs)."
    ),
]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Whose files the default agent reads (default: this folder).")
]
DocsOption = Annotated[str | None, typer.Option("--docs", help="The collection that the default agent searches.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.", show_default=False)]


@app.command("run")
def run(
    task: Annotated[str | None, typer.Argument(help='The task; "-" or a pipe: from stdin.', show_default=False)] = None,
    agent: AgentOption = None,
    folder: FolderOption = None,
    docs: DocsOption = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model's or a cascade's name, for every role.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="The most steps.")] = None,
    max_seconds: Annotated[float | None, typer.Option("--seconds", min=0.1, help="The most time.")] = None,
    budget_usd: Annotated[float | None, typer.Option("--budget-usd", min=0, help="The most money.")] = None,
    privacy: opt.PrivacyOption = opt.Privacy.any,
    run_id: Annotated[str | None, typer.Option("--id", help="The run's id (default: a new one).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every event as JSON, one a line.")] = False,
    config: opt.ConfigOption = None,
) -> int:
    """Do a task with tools; each step is told on stderr, the answer on stdout.

    Ctrl-C leaves a run that `nearfar agent resume` goes on with.
    """
    from nearfar.agents.runs import new_run_id
    from nearfar.agents.types import Limits, Task

    text = opt.read_prompt(task)
    chosen = run_id or new_run_id()

    async def main() -> int:
        async with _opened(config) as (wired, store):
            name, settings = _chosen(wired.settings, agent, folder, docs, model)
            limits = Limits(settings.steps, settings.seconds, settings.tokens, settings.usd, settings.repeats)
            limits = replace(
                limits,
                steps=steps or limits.steps,
                seconds=max_seconds or limits.seconds,
                usd=limits.usd if budget_usd is None else budget_usd,
            )
            async with _team(wired, settings, name, store) as team:
                todo = Task(text, privacy=privacy.value, limits=limits)
                return await _follow(team, store, team.stream(todo, run_id=chosen), as_json=as_json)

    return _interruptible(main, chosen)


@app.command("resume")
def resume(
    run_id: RunArgument,
    folder: FolderOption = None,
    docs: DocsOption = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="For every role of the default agent.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every event as JSON, one a line.")] = False,
    config: opt.ConfigOption = None,
) -> int:
    """Go on with a run that was stopped, was killed, failed, or waits for a person.

    No call with side effects is made twice.
    """

    from nearfar.agents.runs import find_run

    async def main() -> int:
        async with _opened(config) as (wired, store):
            record = await find_run(store, run_id)
            agent = None if record.agent == DEFAULT else record.agent
            name, settings = _chosen(wired.settings, agent, folder, docs, model, is_default=agent is None)
            async with _team(wired, settings, name, store) as team:
                return await _follow(team, store, team.stream_resumed(record.run_id), as_json=as_json)

    return _interruptible(main, run_id)


@app.command("approve")
def approve(
    run_id: RunArgument,
    approval_id: Annotated[
        str | None, typer.Argument(metavar="APPROVAL", help="Which call (default: the only one).", show_default=False)
    ] = None,
    deny: Annotated[bool, typer.Option("--deny", help="Say no; the planner is told so.")] = False,
    config: opt.ConfigOption = None,
) -> int:
    """Allow, or deny, a call that a run waits with; then `nearfar agent resume` goes on."""

    from nearfar.agents.runs import find_run

    async def main() -> int:
        async with _runs(config) as store:
            record = await find_run(store, run_id)
            waiting = [each for each in await store.journal.approvals(record.run_id) if each.is_allowed is None]
            wanted = [each for each in waiting if approval_id in (None, each.approval_id)]
            if not wanted:
                complain(f"The run {record.run_id!r} waits for no such approval. See: nearfar agent show {run_id}")
                return FAILED
            if len(wanted) > 1:
                ids = ", ".join(each.approval_id for each in wanted)
                complain(f"The run waits for {len(wanted)} approvals; name one: {ids}.")
                return FAILED
            if await store.journal.approve(record.run_id, {wanted[0].approval_id: not deny}):
                complain(f"Somebody has answered that just now. See: nearfar agent show {run_id}")
                return FAILED
            verb = "denied" if deny else "allowed"
            remark(f"{verb}: {printable(_call_text(wanted[0].call))} · nearfar agent resume {record.run_id}", style="")
            return DONE

    return asyncio.run(main())


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    config: opt.ConfigOption = None,
) -> int:
    """List runs, newest first."""

    from nearfar.agents.runs import record_json, status_of

    async def main() -> int:
        async with _runs(config) as store:
            records = await store.journal.runs(limit)
            shown = [(record, await status_of(store, record)) for record in records]
        if as_json:
            for record, status in shown:
                write_json(record_json(record, status))
            return DONE
        if not shown:
            remark('There is no run yet. Begin one: nearfar agent run "…"', style="")
            return DONE
        rows = [
            [
                f"[dim]{time.strftime('%m-%d %H:%M:%S', time.localtime(record.created_at))}[/]",
                record.run_id,
                escape(record.agent),
                f"[{_STYLES.get(status, 'yellow')}]{status}[/]",
                str(record.result.tool_calls) if record.result else "—",
                escape(" ".join(record.task.text.split())[:80]),
            ]
            for record, status in shown
        ]
        table(["when", "run", "agent", "status", "calls", "task"], rows, right=["calls"])
        return DONE

    return asyncio.run(main())


@app.command("show")
def show(run_id: RunArgument, as_json: opt.JsonOption = False, config: opt.ConfigOption = None) -> int:
    """Show a run's plans, calls, observations and decisions, and what it waits for."""
    return show_run(run_id, as_json=as_json, config=config)


def show_run(run_id: str, *, as_json: bool, config: Path | None) -> int:
    """Prints the run; the exit code."""
    from .agent_view import print_run

    async def main() -> int:
        from nearfar.agents.runs import decisions_of, find_run, run_json, saved_state, status_of
        from nearfar.config import Settings
        from nearfar.wiring.records import open_log, open_store

        async with _runs(config) as store:
            record = await find_run(store, run_id)
            status = await status_of(store, record)
            state = await saved_state(store, record.run_id)
            approvals = await store.journal.approvals(record.run_id)
        settings = Settings.load(config, needs_keys=False)
        log_store = open_store(settings)
        try:
            decisions = await decisions_of(state, open_log(settings, log_store).get)
        finally:
            log_store.close()
        if as_json:
            write_json(run_json(record, status, state, approvals, decisions))
        else:
            print_run(record, status, state, approvals, decisions)
        return DONE

    return asyncio.run(main())


async def has_run(run_id: str, config: Path | None) -> bool:
    """Whether there is such a run."""
    from nearfar.config import Settings

    if not Settings.load(config, needs_keys=False).runs_path.exists():
        return False
    async with _runs(config) as store:
        return await store.journal.run(run_id) is not None


# --- inside ----------------------------------------------------------------------------------------------------------

_STYLES = {"answered": "green", "failed": "red", "stopped": "yellow", "running": "cyan"}


@asynccontextmanager
async def _runs(config: Path | None) -> AsyncIterator[RunStore]:
    from nearfar.config import Settings
    from nearfar.wiring.agents import open_runs

    async with await open_runs(Settings.load(config, needs_keys=False)) as store:
        yield store


@asynccontextmanager
async def _opened(config: Path | None) -> AsyncIterator[tuple[Wired, RunStore]]:
    from nearfar.wiring.agents import open_runs

    async with opt.opened(config) as wired, await open_runs(wired.settings) as store:
        yield wired, store


@asynccontextmanager
async def _team(wired: Wired, settings: AgentSettings, name: str, store: RunStore) -> AsyncIterator[GraphAgent]:
    from nearfar.wiring.agents import open_agent

    async with open_agent(wired, settings, name, store) as agent:
        yield agent


def _chosen(
    settings: Settings,
    name: str | None,
    folder: Path | None,
    docs: str | None,
    model: str | None,
    *,
    is_default: bool = False,
) -> tuple[str, AgentSettings]:
    """The agent's name and settings.

    Raises:
        RequestError: there is none of this name, or several and none is named.
    """
    from nearfar.config.agents import AgentSettings, RoleSettings

    if name is None and len(settings.agents) == 1 and folder is None and docs is None and not is_default:
        name = next(iter(settings.agents))
    if name is None:
        tools: dict[str, Any] = {
            "files": {"kind": "files", "folder": (folder or Path()).absolute(), "only": ("read_file",)},
            "calculator": {"kind": "calculator"},
        }
        if docs is not None:
            tools["documents"] = {"kind": "documents", "collection": docs}
        return DEFAULT, AgentSettings.model_validate({"tools": tools, **({"model": model} if model else {})})
    if name not in settings.agents:
        known = ", ".join(map(repr, settings.agents)) or "none"
        raise RequestError(f"There is no agent {name!r}; the config has {known}. Add one: [agents.{name}]")
    found = settings.agents[name]
    if folder is not None or docs is not None:
        raise RequestError(f"--folder and --docs are the default agent's; the tools of {name!r} are in the config.")
    if model is None:
        return name, found
    roles = {role: told.model_copy(update={"model": model}) for role, told in found.roles.items()}
    return name, found.model_copy(update={"model": model, "roles": dict[str, RoleSettings](roles)})


def _interruptible(main: Callable[[], Any], run_id: str) -> int:
    try:
        return int(asyncio.run(main()))
    except KeyboardInterrupt:
        remark(f"stopped; go on: nearfar agent resume {run_id}", style="")
        return INTERRUPTED


async def _follow(
    agent: GraphAgent, store: RunStore, stream: AsyncGenerator[AgentEvent, None], *, as_json: bool
) -> int:
    """Tells of every event, asks what a person must say, and goes on until the run ends or nobody can be asked."""
    from nearfar.agents.types import Ended, NeedsApproval

    while True:
        result: RunResult | None = None
        asked: list[NeedsApproval] = []
        async with aclosing(stream) as events:
            async for event in events:
                _tell(event, as_json=as_json)
                if isinstance(event, NeedsApproval):
                    asked.append(event)
                elif isinstance(event, Ended):
                    result = event.result
        assert result is not None  # a stream ends with Ended or raises
        if result.status != "awaiting_approval" or as_json or not sys.stdin.isatty():
            return _conclude(result, as_json=as_json)
        approvals = {each.approval_id: typer.confirm("Allow it?", err=True) for each in asked}
        if not approvals:
            return _conclude(result, as_json=as_json)
        stream = agent.stream_resumed(result.run_id, approvals)


def _tell(event: AgentEvent, *, as_json: bool) -> None:
    from nearfar.agents.runs import event_json, line_of
    from nearfar.agents.types import Called, NeedsApproval, Wrote

    if as_json:
        write_json(event_json(event))
        return
    line = printable(line_of(event))
    match event:
        case Wrote():
            write(printable(event.text))
        case Called():
            remark(line, style="")
        case NeedsApproval():
            remark(line, style="yellow")
        case _ if line:
            remark(line)


def _conclude(result: RunResult, *, as_json: bool) -> int:
    if not as_json:
        if result.text:
            write("\n")
        facts = [
            f"{result.model_calls} model calls",
            f"{result.tool_calls} tool calls",
            usd(result.cost_usd),
            seconds(result.latency_s),
        ]
        if result.usage is not None:
            facts.insert(2, f"{result.usage.prompt_tokens + result.usage.completion_tokens:,} tokens")
        remark(f"{result.status} · {' · '.join(facts)} · nearfar explain {result.run_id}")
        if result.status == "awaiting_approval":
            remark(f"allow it: nearfar agent approve {result.run_id} · then: nearfar agent resume {result.run_id}")
    if result.status == "answered":
        return DONE
    if result.status != "awaiting_approval":
        complain(f"{result.status.replace('_', ' ')}: {printable(result.reason)}")
    return FAILED


def _call_text(call: Any) -> str:
    return f"{call.name} {call.arguments}"
