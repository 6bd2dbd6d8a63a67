"""Results of tools are cut shorter until a question fits; the question itself, and what fits, is left alone."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from hypothesis import given
from hypothesis import strategies as st
from support.teams import agent, arguments, plan, reading

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.fitting import Fitting
from nearfar.agents.types import Observation
from nearfar.agents.untrusted import quoted
from nearfar.errors import ContextTooLong
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Message, ModelCard, Query, StreamEnd, StreamEvent


def asked(*results: str, task: str = "Sum up.") -> Query:
    """A question with results in it."""
    shown = "\n".join(quoted("look", Observation(result)) for result in results)
    return Query((Message("system", "You sum up."), Message("user", f"{shown}\nTask: {task}")), model="small")


def small(room: int, heard: list[Query]) -> Router:
    """A model that takes so many characters, and says how many it was given."""

    def say(query: Query) -> Answer:
        if (length := sum(len(message.text) for message in query.messages)) > room:
            raise ContextTooLong("too long", model="small", status=400)
        heard.append(query)
        return Answer(str(length))

    return Router({}, {"small": ScriptedModel([say], name="small")})


async def told_by(stream: AsyncGenerator[StreamEvent, None]) -> list[StreamEvent]:
    """All of its events."""
    async with aclosing(stream) as events:
        return [event async for event in events]


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=3), st.integers(2_500, 30_000))
async def test_what_is_asked_fits_and_keeps_the_task(lengths: list[int], room: int) -> None:
    """Whatever the results' lengths: the task is whole, every result is still there, and none is cut without need."""
    heard: list[Query] = []
    query = asked(*("x" * length for length in lengths))

    answer = await Fitting(small(room, heard)).answer(query)

    whole = sum(len(message.text) for message in query.messages)
    assert int(answer.text) <= room
    assert heard[0].messages[-1].text.endswith("\nTask: Sum up.")
    assert heard[0].messages[-1].text.count("\n</data ") == len(lengths)
    assert (heard[0] == query) == (whole <= room)
    assert ("characters left out" in heard[0].messages[-1].text) == (whole > room)


async def test_a_stream_fits_as_well() -> None:
    """Nothing is told before the form that fits."""
    heard: list[Query] = []

    told = await told_by(Fitting(small(3_000, heard)).stream(asked("x" * 16_000)))

    assert isinstance(told[-1], StreamEnd)
    assert len(heard) == 1
    assert int(told[-1].answer.text) <= 3_000


async def test_a_model_that_is_ruled_out_by_its_window_is_asked_with_less() -> None:
    """Where the router knows the window, nothing is sent that does not fit."""
    card = ModelCard("small", "near", context_window=2_000)
    router = Router({}, {"small": ScriptedModel(["fits"], card=card)})

    whole = await Fitting(router).answer(asked("words and more words " * 800))
    told = await told_by(Fitting(router).stream(asked("words and more words " * 800)))

    assert whole.text == "fits"
    assert isinstance(told[-1], StreamEnd)
    assert told[-1].answer.text == "fits"


@pytest.mark.parametrize("door", ["answer", "stream"])
async def test_a_task_that_is_too_long_is_not_cut(door: str) -> None:
    """It says what is to be done: the error comes through."""
    fitting = Fitting(small(1_000, []))
    query = asked("x", task="y" * 5_000)

    with pytest.raises(ContextTooLong):
        await (fitting.answer(query) if door == "answer" else told_by(fitting.stream(query)))


async def test_a_hundred_megabytes_are_read_by_a_small_model(tmp_path: Path) -> None:
    """The run is answered, and the observation that is kept is the toolbox's."""

    def look() -> str:
        """Looks."""
        return "word " * 20_000_000

    def summarize(query: Query) -> str:
        if sum(len(message.text) for message in query.messages) > 6_000:
            raise ContextTooLong("too long", model="summarizer", status=400)
        return "Words, mostly."

    said = {"planner": ['{"calls": []}', plan("call look"), plan("answer")], "caller": [arguments()]}
    async with agent(AlphaUmi(), tmp_path, [reading(look)], **said, summarizer=[summarize]) as clerk:
        result = await clerk.run("What does it say?")
        (call,) = await clerk.store.journal.calls(result.run_id)

    assert (result.status, result.text) == ("answered", "Words, mostly.")
    assert call.observation is not None
    assert len(call.observation.text) > 16_000
