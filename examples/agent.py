"""Have a task done with tools: an embedded planner, caller and summarizer, and two Python functions."""

import asyncio
import tempfile
from pathlib import Path

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.calculator import calculator
from nearfar.agents.checkpoints import open_sqlite
from nearfar.agents.examples import BUILT_IN
from nearfar.agents.functions import FunctionTool
from nearfar.agents.graph_agent import GraphAgent, Team
from nearfar.agents.roles import Role
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Called, Limits, Observed, Task, ToolHints
from nearfar.config import Settings
from nearfar.wiring import build


def read_file(path: str) -> str:
    """Reads a text file, or some lines of it."""
    return {"trip.txt": "The hotel costs 95 euros a night. We stay 3 nights."}.get(path, "There is no such file.")


async def main() -> None:
    """Runs it, and prints what happens."""
    wired = build(Settings.load())
    tools = Toolbox([FunctionTool(read_file, hints=ToolHints(read_only=True)), calculator()])
    roles = {name: Role(name, "smollm2", max_tokens=64) for name in AlphaUmi.roles}
    with tempfile.TemporaryDirectory() as folder:
        async with await open_sqlite(Path(folder) / "agents.db") as store:
            agent = GraphAgent("example", AlphaUmi(BUILT_IN), Team(wired.router, tools, store), roles=roles)
            task = Task("Read trip.txt and work out what the hotel costs in total.", limits=Limits(steps=6))
            async for event in agent.stream(task, run_id="trip"):
                if isinstance(event, Called):
                    print(event.call.name, event.call.arguments)
                elif isinstance(event, Observed):
                    print("  ", event.observation.text)
            print((await agent.resume("trip")).status)
    await wired.aclose()


asyncio.run(main())
