"""Keeps runs, the calls that they make and a person's approvals, beside the checkpoints, in SQLite or Postgres.

A call is written down before it is made and its observation after: so that a run that was cut knows what it had begun.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from nearfar.errors import DataError
from nearfar.types import ToolCall

from .types import Observation, RunResult, Task

#: In this order on an empty database; every statement is harmless where it has been run before.
_TABLES = (
    """CREATE TABLE IF NOT EXISTS agent_runs (
        run_id TEXT PRIMARY KEY, agent TEXT NOT NULL, task TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL,
        updated_at DOUBLE PRECISION NOT NULL, status TEXT NOT NULL, result TEXT)""",
    "CREATE INDEX IF NOT EXISTS agent_runs_by_time ON agent_runs (created_at)",
    """CREATE TABLE IF NOT EXISTS agent_calls (
        run_id TEXT NOT NULL, call_id TEXT NOT NULL, step INTEGER NOT NULL, tool TEXT NOT NULL,
        arguments TEXT NOT NULL, is_repeatable INTEGER NOT NULL, begun_at DOUBLE PRECISION NOT NULL,
        times_begun INTEGER NOT NULL, ended_at DOUBLE PRECISION, observation TEXT, PRIMARY KEY (run_id, call_id))""",
    """CREATE TABLE IF NOT EXISTS agent_approvals (
        run_id TEXT NOT NULL, approval_id TEXT NOT NULL, step INTEGER NOT NULL, tool TEXT NOT NULL,
        arguments TEXT NOT NULL, why TEXT NOT NULL, asked_at DOUBLE PRECISION NOT NULL, is_allowed INTEGER,
        answered_at DOUBLE PRECISION, answered_by TEXT, PRIMARY KEY (run_id, approval_id))""",
)
_HAS_ANSWERED_BY = "SELECT answered_by FROM agent_approvals LIMIT 0"

#: The status of a run that works, or was cut while it did.
RUNNING = "running"


class Database(Protocol):
    """Runs one statement at a time, each committed before it returns. Placeholders are `?`."""

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What the statement gives back.

        Raises:
            DataError: the database cannot be read or written.
        """
        ...


async def make_tables(database: Database) -> None:
    """Makes what a journal needs and is not there.

    Raises:
        DataError: the database cannot be written.
    """
    for statement in _TABLES:
        await database.rows(statement)
    try:
        await database.rows(_HAS_ANSWERED_BY)
    except DataError:  # a table of an earlier nearfar
        with suppress(DataError):  # another process may be adding it, too
            await database.rows("ALTER TABLE agent_approvals ADD COLUMN answered_by TEXT")
        await database.rows(_HAS_ANSWERED_BY)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is known of a run without its checkpoints."""

    run_id: str
    agent: str
    task: Task
    created_at: float  # Unix time in seconds
    updated_at: float
    status: str  # a RunStatus, or "running": it works, or was cut while it did
    result: RunResult | None = None  # of its last stretch; None: there was none yet


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call that was begun."""

    call: ToolCall
    step: int
    is_repeatable: bool  # it has no side effects, or having them twice is as having them once
    times_begun: int
    observation: Observation | None = None  # None: it is under way, or was when the process died


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """A call that a person was asked about."""

    approval_id: str
    call: ToolCall
    step: int
    why: str
    is_allowed: bool | None = None  # None: nobody has said
    answered_by: str | None = None  # the gateway key's name; None: it came by another door, or no key was asked for


@dataclass(frozen=True, slots=True)
class Waiting:
    """Calls of one agent's runs that wait for a person."""

    num_calls: int
    since: float  # when the first of them was asked about; Unix time in seconds


@dataclass(frozen=True, slots=True)
class Journal:
    """Runs, calls and approvals in a database."""

    database: Database
    now: Any = field(default=time.time, repr=False)  # Unix time in seconds

    # --- runs --------------------------------------------------------------------------------------------------------

    async def begin_run(self, run_id: str, agent: str, task: Task) -> bool:
        """Notes a new run; False where there is one of this id already."""
        written = await self.database.rows(
            "INSERT INTO agent_runs VALUES (?, ?, ?, ?, ?, ?, NULL) ON CONFLICT (run_id) DO NOTHING RETURNING run_id",
            (run_id, agent, _dump(task), self.now(), self.now(), RUNNING),
        )
        return bool(written)

    async def set_run(self, run_id: str, result: RunResult | None) -> None:
        """Notes how a run's last stretch ended; None: it works again."""
        await self.database.rows(
            "UPDATE agent_runs SET updated_at = ?, status = ?, result = COALESCE(?, result) WHERE run_id = ?",
            (self.now(), result.status if result else RUNNING, _dump(result) if result else None, run_id),
        )

    async def run(self, run_id: str) -> RunRecord | None:
        """The run of this id, or the only one whose id begins so; None: there is none, or several."""
        rows = await self.database.rows(
            f"{_RUNS} WHERE run_id = ? OR run_id LIKE ? ESCAPE '\\' ORDER BY run_id LIMIT 2",
            (run_id, f"{_escaped(run_id)}%"),
        )
        exact = [row for row in rows if row[0] == run_id]
        if exact or len(rows) == 1:
            return _run((exact or rows)[0])
        return None

    async def runs(self, limit: int = 20, *, status: str | None = None) -> list[RunRecord]:
        """The newest runs, newest first; of this status alone, if one is named."""
        where, values = ("", ()) if status is None else (" WHERE status = ?", (status,))
        rows = await self.database.rows(f"{_RUNS}{where} ORDER BY created_at DESC LIMIT ?", (*values, limit))
        return [_run(row) for row in rows]

    # --- calls -------------------------------------------------------------------------------------------------------

    async def begin_call(self, run_id: str, call: ToolCall, *, step: int, is_repeatable: bool) -> CallRecord | None:
        """Notes that a call is about to be made.

        Returns:
            None: go ahead. A record: this call was begun before; with its observation where that is known, and
            otherwise it was cut: make it again only if it is repeatable, after `repeat_call`.
        """
        written = await self.database.rows(
            "INSERT INTO agent_calls VALUES (?, ?, ?, ?, ?, ?, ?, 1, NULL, NULL)"
            " ON CONFLICT (run_id, call_id) DO NOTHING RETURNING call_id",
            (run_id, call.id, step, call.name, call.arguments, int(is_repeatable), self.now()),
        )
        if written:
            return None
        rows = await self.database.rows(f"{_CALLS} WHERE run_id = ? AND call_id = ?", (run_id, call.id))
        return _call(rows[0])

    async def repeat_call(self, run_id: str, call_id: str) -> None:
        """Notes that a call is about to be made once more."""
        await self.database.rows(
            "UPDATE agent_calls SET times_begun = times_begun + 1 WHERE run_id = ? AND call_id = ?", (run_id, call_id)
        )

    async def end_call(self, run_id: str, call_id: str, observation: Observation) -> None:
        """Notes what became of a call."""
        await self.database.rows(
            "UPDATE agent_calls SET ended_at = ?, observation = ? WHERE run_id = ? AND call_id = ?",
            (self.now(), _dump(observation), run_id, call_id),
        )

    async def calls(self, run_id: str) -> list[CallRecord]:
        """The calls that a run has begun, in their order."""
        rows = await self.database.rows(f"{_CALLS} WHERE run_id = ? ORDER BY begun_at, call_id", (run_id,))
        return [_call(row) for row in rows]

    # --- approvals ---------------------------------------------------------------------------------------------------

    async def ask(self, run_id: str, call: ToolCall, *, step: int, why: str) -> bool | None:
        """What a person says of the call; None: the question is noted, and nobody has answered yet."""
        await self.database.rows(
            "INSERT INTO agent_approvals (run_id, approval_id, step, tool, arguments, why, asked_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (run_id, approval_id) DO NOTHING",
            (run_id, call.id, step, call.name, call.arguments, why, self.now()),
        )
        rows = await self.database.rows(
            "SELECT is_allowed FROM agent_approvals WHERE run_id = ? AND approval_id = ?", (run_id, call.id)
        )
        return None if rows[0][0] is None else bool(rows[0][0])

    async def approve(self, run_id: str, approvals: Mapping[str, bool], *, by: str | None = None) -> list[str]:
        """Notes a person's answers, and gives back the ids that no open question has; the first answer stands.

        Args:
            run_id: of the run that asks.
            approvals: whether the call may be made, by approval id.
            by: who says so.
        """
        unknown = []
        for approval_id, is_allowed in approvals.items():
            written = await self.database.rows(
                "UPDATE agent_approvals SET is_allowed = ?, answered_at = ?, answered_by = ?"
                " WHERE run_id = ? AND approval_id = ? AND is_allowed IS NULL RETURNING approval_id",
                (int(is_allowed), self.now(), by, run_id, approval_id),
            )
            if not written:
                unknown.append(approval_id)
        return unknown

    async def approvals(self, run_id: str) -> list[ApprovalRecord]:
        """Everything that a person was asked in a run, in its order."""
        rows = await self.database.rows(
            "SELECT approval_id, step, tool, arguments, why, is_allowed, answered_by FROM agent_approvals"
            " WHERE run_id = ? ORDER BY asked_at, approval_id",
            (run_id,),
        )
        return [
            ApprovalRecord(id_, ToolCall(id_, tool, arguments), step, why, None if said is None else bool(said), by)
            for id_, step, tool, arguments, why, said, by in rows
        ]

    async def waiting(self) -> dict[str, Waiting]:
        """The calls that wait for a person, by agent, of every run that does nothing else."""
        rows = await self.database.rows(
            "SELECT agent, COUNT(*), MIN(asked_at) FROM agent_approvals JOIN agent_runs USING (run_id)"
            " WHERE is_allowed IS NULL AND status = ? GROUP BY agent",
            ("awaiting_approval",),
        )
        return {agent: Waiting(num_calls, since) for agent, num_calls, since in rows}


_RUNS = "SELECT run_id, agent, task, created_at, updated_at, status, result FROM agent_runs"
_CALLS = "SELECT call_id, tool, arguments, step, is_repeatable, times_begun, observation FROM agent_calls"


def _run(row: tuple[Any, ...]) -> RunRecord:
    run_id, agent, task, created_at, updated_at, status, result = row
    return RunRecord(
        run_id,
        agent,
        msgspec.json.decode(task, type=Task),
        created_at,
        updated_at,
        status,
        msgspec.json.decode(result, type=RunResult) if result else None,
    )


def _call(row: tuple[Any, ...]) -> CallRecord:
    call_id, tool, arguments, step, is_repeatable, times_begun, observation = row
    return CallRecord(
        ToolCall(call_id, tool, arguments),
        step,
        bool(is_repeatable),
        times_begun,
        msgspec.json.decode(observation, type=Observation) if observation else None,
    )


def _dump(value: Any) -> str:
    # Not msgspec's encoder: a tool's text may hold lone surrogates, which JSON can escape and UTF-8 cannot hold.
    # And NUL, which Postgres' text cannot hold, is escaped by JSON, too.
    return json.dumps(msgspec.to_builtins(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
