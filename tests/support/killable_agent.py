"""A process that runs agents in children, kills them at random moments, and resumes them until they have ended.

    python killable_agent.py PLACE FOLDER NUM_KILLS SEED

PLACE is a SQLite file or a Postgres URL. Everything is imported once; every child is a fork with its own connections,
and dies by SIGKILL. In FOLDER, `effects` has a line for all that a tool did outside the process, and `said` has a JSON
list for all that the children reached, asked and answered. The last line on stdout is what came out.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from support.teams import call, plan, reading

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.checkpoints import RunStore, open_postgres, open_sqlite
from nearfar.agents.functions import FunctionTool
from nearfar.agents.graph_agent import GraphAgent, Team
from nearfar.agents.policy import ToolPolicy
from nearfar.agents.roles import Role
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import ToolHints
from nearfar.errors import RequestError
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Query

#: The calls of every run: a read, effects that may be had once, one that takes a person, one that is idempotent.
CALLS = ("look", "append", "pay", "append", "set", "pay", "append")

#: Kills of one run, after which it is left to end.
_KILLS_PER_RUN = 4

_SCOPE = json.dumps(
    {
        "calls": [
            {"tool": name, "arguments": {"number": number}, "from_data": []}
            for number, name in enumerate(CALLS)
            if name != "look"
        ]
    }
)


def _note(path: Path, line: str) -> None:
    """A line at the end of the file, at once and whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def _tools(folder: Path, run_id: str) -> list[FunctionTool]:
    def look() -> str:
        """Looks."""
        return "nothing new"

    def append(number: int) -> str:
        """Appends a line."""
        time.sleep(0.002)
        _note(folder / "effects", f"{run_id} append {number}")
        time.sleep(0.002)
        return f"appended {number}"

    def pay(number: int) -> str:
        """Pays."""
        _note(folder / "effects", f"{run_id} pay {number}")
        return f"paid {number}"

    def set(number: int) -> str:  # noqa: A001 - the name of a tool
        """Sets a number."""
        _note(folder / "effects", f"{run_id} set {number}")
        return f"set to {number}"

    return [reading(look), FunctionTool(append), FunctionTool(pay), FunctionTool(set, hints=ToolHints(idempotent=True))]


def _steps(query: Query) -> int:
    """How many calls the role is told of."""
    return sum(message.text.count("\n</data ") for message in query.messages)


def _planner(query: Query) -> str:
    if "Before anything is read" in query.messages[0].text:
        return _SCOPE
    done = _steps(query)
    return plan(f"call {CALLS[done]}") if done < len(CALLS) else plan("answer")


def _caller(query: Query) -> Answer | str:
    number = _steps(query)
    arguments = {} if CALLS[number] == "look" else {"number": number}
    return call(CALLS[number], **arguments) if query.tools else json.dumps(arguments)


async def _opened(place: str) -> RunStore:
    return await (open_postgres(place) if "://" in place else open_sqlite(Path(place)))


async def work(place: str, folder: Path, run_id: str) -> None:
    """Begins or resumes the run, answers what a person would, and goes on to the end."""
    models = {
        "planner": ScriptedModel([_planner], name="planner"),
        "caller": ScriptedModel([_caller], name="caller"),
        "summarizer": ScriptedModel(["Done."], name="summarizer"),
    }
    roles = {name: Role(name, name, reads_logprobs=False) for name in models}
    policy = ToolPolicy({"append": "allow", "set": "allow"})
    async with await _opened(place) as store:
        team = Team(Router({}, models), Toolbox(_tools(folder, run_id), policy), store)
        agent = GraphAgent("killable", AlphaUmi(), team, roles=roles)
        approvals: dict[str, bool] = {}
        while True:
            try:
                known = await store.journal.run(run_id)
                result = await (agent.resume(run_id, approvals) if known else agent.run("Go.", run_id=run_id))
            except RequestError as exc:
                if "another process" not in str(exc):
                    raise
                await asyncio.sleep(0.01)  # Postgres has not yet heard that the last one died
                continue
            _note(folder / "said", json.dumps([run_id, "reached", result.status, result.reason]))
            if result.status != "awaiting_approval":
                return
            open_ones = [each for each in await store.journal.approvals(run_id) if each.is_allowed is None]
            approvals = {each.approval_id: True for each in open_ones}
            for each in open_ones:
                _note(folder / "said", json.dumps([run_id, "asked", each.approval_id]))
            assert not await store.journal.approve(run_id, approvals)
            for each in open_ones:
                _note(folder / "said", json.dumps([run_id, "answered", each.approval_id]))
            approvals = {}


async def calls_of(place: str, run_id: str) -> list[dict[str, Any]]:
    """What the journal knows of a run's calls."""
    async with await _opened(place) as store:
        return [
            {
                "tool": each.call.name,
                "arguments": json.loads(each.call.arguments),
                "kind": each.observation.kind if each.observation else None,
                "times_begun": each.times_begun,
            }
            for each in await store.journal.calls(run_id)
        ]


def main(place: str, folder: Path, num_kills: int, seed: int) -> None:
    """Kills until so many kills have hit a run at work; the time between start and kill follows how long runs take."""
    chance = random.Random(seed)
    longest = 0.4  # seconds that a whole run takes, about; adapted below
    kills = 0
    runs: list[str] = []
    while kills < num_kills:
        run_id = f"run{len(runs):04d}"
        runs.append(run_id)
        hits = 0
        while True:
            is_last = hits == _KILLS_PER_RUN or kills == num_kills
            start = time.monotonic()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    asyncio.run(work(place, folder, run_id))
                    code = 0
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            if not is_last:
                time.sleep(chance.uniform(0, longest))
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                kills, hits = kills + 1, hits + 1
                continue
            assert os.WEXITSTATUS(status) == 0, f"{run_id} failed"
            if hits == 0:
                longest = 0.5 * longest + 0.5 * (time.monotonic() - start)
            break
    found = {run_id: asyncio.run(calls_of(place, run_id)) for run_id in runs}
    print(json.dumps({"kills": kills, "runs": found}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
