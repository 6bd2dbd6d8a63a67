"""What every kind of agent keeps to; a test module subclasses `AgentContract` and says what its roles say."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.teams import Says, agent, reading

from nearfar.agents.functions import FunctionTool
from nearfar.agents.graph_agent import Graph
from nearfar.agents.types import Called, Ended, Limits, Observed, Task, Wrote
from nearfar.errors import RequestError, UpstreamUnavailable


class AgentContract:
    """A task that takes one call of `look(name="x")`, and ends in the answer `found x`."""

    graph: Graph
    says: ClassVar[dict[str, Says]]

    def tools(self, done: list[str]) -> list[FunctionTool]:
        """The one tool, which notes that it ran."""

        def look(name: str) -> str:
            """Looks something up."""
            done.append(name)
            return f"found {name}"

        return [reading(look)]

    def team(self, folder: Path, done: list[str], **more: Any) -> Any:
        """The agent at work on the scripted roles."""
        return agent(self.graph, folder, self.tools(done), **{**self.says, **more})

    async def test_ended_is_last_and_once(self, tmp_path: Path) -> None:
        """And the pieces written, joined, are its text."""
        async with self.team(tmp_path, []) as tested:
            events = [event async for event in tested.stream("Look x up.")]

        assert [isinstance(event, Ended) for event in events] == [False] * (len(events) - 1) + [True]
        result = events[-1].result
        assert (result.status, result.text) == ("answered", "found x")
        assert "".join(event.text for event in events if isinstance(event, Wrote)) == result.text

    async def test_a_call_is_announced_before_and_observed_after(self, tmp_path: Path) -> None:
        """Once each, in this order, and it ran once."""
        done: list[str] = []
        async with self.team(tmp_path, done) as tested:
            events = [event async for event in tested.stream("Look x up.")]

        told = [
            (type(event).__name__, event.call.id if isinstance(event, Called) else event.call_id)
            for event in events
            if isinstance(event, Called) or (isinstance(event, Observed) and event.tool == "look")
        ]
        assert [name for name, _ in told] == ["Called", "Observed"]
        assert len({call_id for _, call_id in told}) == 1
        assert done == ["x"]

    async def test_a_stream_that_is_closed_can_be_resumed(self, tmp_path: Path) -> None:
        """Wherever it was closed, the run ends the same, and the call ran once or twice: it only reads."""
        async with self.team(tmp_path, []) as tested:
            length = len([event async for event in tested.stream("Look x up.")])

        for cut in range(1, length):
            done: list[str] = []
            folder = tmp_path / str(cut)
            folder.mkdir()
            async with self.team(folder, done) as tested:
                stream = tested.stream("Look x up.", run_id="one")
                for _ in range(cut):
                    await anext(stream)
                await stream.aclose()
            async with self.team(folder, done, **self.after(cut, done)) as tested:
                result = await tested.resume("one")
            assert (result.status, result.text) == ("answered", "found x"), f"closed after {cut} events"

    def after(self, cut: int, done: list[str]) -> dict[str, Says]:
        """What the roles say after a stop, where it differs; scripts that read the conversation need nothing."""
        return {}

    async def test_a_run_that_failed_goes_on_from_there(self, tmp_path: Path) -> None:
        """The first role's model is down, and then it is not."""
        first = next(iter(self.says))
        down = UpstreamUnavailable("down", model=first)
        async with self.team(tmp_path, [], **{first: [down]}) as tested:
            failed = await tested.run("Look x up.", run_id="one")
        async with self.team(tmp_path, []) as tested:
            result = await tested.resume("one")
            again = await tested.resume("one")

        assert failed.status == "failed"
        assert "down" in failed.reason
        assert result.status == "answered"
        assert again == result

    async def test_no_time_is_an_outcome(self, tmp_path: Path) -> None:
        """A run that may take no time ends before its first step, or after it."""
        async with self.team(tmp_path, []) as tested:
            result = await tested.run(Task("Look x up.", limits=Limits(seconds=1e-9)))

        assert result.status == "out_of_time"

    async def test_ids_and_tasks_are_checked(self, tmp_path: Path) -> None:
        """One run per id, a task with words, and only runs that there are."""
        async with self.team(tmp_path, []) as tested:
            await tested.run("Look x up.", run_id="one")
            with pytest.raises(RequestError, match="already"):
                await tested.run("Look x up.", run_id="one")
            with pytest.raises(RequestError, match="empty"):
                await tested.run("  ")
            with pytest.raises(RequestError, match="no run"):
                await tested.resume("two")
            with pytest.raises(RequestError, match="no approval"):
                await tested.resume("one", {"7": True})
