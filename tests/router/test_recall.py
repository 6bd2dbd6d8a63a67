"""A memory in front of cascades: who is answered from it, who is not, and what the decision says."""

from dataclasses import replace

import pytest
from support.gateway import MemoryLog

from nearfar.errors import DataError, NearfarError, UpstreamUnavailable
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.recall import Recall
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import (
    Answer,
    Memo,
    Message,
    Query,
    Recollection,
    ResponseFormat,
    SamplingOptions,
    Scope,
    StreamEnd,
    StreamStart,
    TextDelta,
    ToolCall,
    ToolSpec,
)


class DictMemory:
    """Recalls the very same question in the very same scope."""

    def __init__(self) -> None:
        self.memos: dict[tuple[str, Scope], Memo] = {}

    async def recall(self, question: str, scope: Scope) -> Recollection | None:
        memo = self.memos.get((question, scope))
        return None if memo is None else Recollection(memo, 0.9, 0.8, True, 60.0)

    async def remember(self, memo: Memo, scope: Scope) -> None:
        self.memos[memo.question, scope] = memo


class BrokenMemory:
    """A memory whose file, or whose embedder, is gone."""

    def __init__(self, error: NearfarError) -> None:
        self._error = error

    async def recall(self, question: str, scope: Scope) -> Recollection | None:
        raise self._error

    async def remember(self, memo: Memo, scope: Scope) -> None:
        raise self._error


ASKED = Query("Capital of France?")


def router_over(model, memory, *, log=None, per_user=True, policy="p@1"):
    """One cascade and its model behind a memory."""
    cascade = Cascade([Tier(model)], name="auto", policy=policy)
    models = {model.card.name: model}
    return Router({"auto": cascade}, models, log=log, recall=Recall(memory, per_user=per_user))


async def test_second_time_is_answered_from_memory_and_says_so():
    """At no cost, with whose answer it was, how sure the match is, and the first decision."""
    model, log = ScriptedModel(["Paris"]), MemoryLog()
    router = router_over(model, DictMemory(), log=log)

    first = await router.answer(ASKED)
    second = await router.answer(ASKED)

    assert (first.is_cached, second.is_cached, second.text) == (False, True, "Paris")
    assert len(model.queries) == 1
    decision = second.decision
    assert decision is log.decisions[1]
    assert (decision.reason, decision.status, decision.tier, decision.model) == (
        "remembered",
        "answered",
        "memory",
        "scripted",
    )
    assert (decision.score, decision.threshold, decision.is_calibrated, decision.cost_usd) == (0.9, 0.8, True, 0.0)
    assert first.decision_id in decision.steps[0].reason
    assert decision.departures == ()


async def test_streams_are_remembered_and_recalled():
    """The deltas of a remembered stream are its text."""
    model = ScriptedModel(["Paris on the Seine"])
    router = router_over(model, DictMemory())

    for _ in range(2):
        events = [event async for event in router.stream(ASKED)]
        assert isinstance(events[0], StreamStart)
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Paris on the Seine"
        assert isinstance(events[-1], StreamEnd)

    assert len(model.queries) == 1
    assert events[0].tier == "memory"


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, privacy="near"),
        replace(ASKED, metadata={"user": "bob"}),
        replace(ASKED, when_unsure="abstain"),
        replace(ASKED, uses_memory=False),
        replace(ASKED, wants_signals=True),
        replace(ASKED, prompt=(Message("system", "Answer in French."), Message("user", "Capital of France?"))),
        replace(ASKED, prompt=(Message("user", "Hi"), Message("assistant", "Hi"), Message("user", ASKED.text))),
        replace(ASKED, model="scripted"),
        replace(ASKED, tools=(ToolSpec("look_up"),)),
        replace(ASKED, response_format=ResponseFormat("json_object")),
        replace(ASKED, sampling=SamplingOptions(temperature=1.0)),
        replace(ASKED, sampling=SamplingOptions(stop=("a",))),
        replace(ASKED, sampling=SamplingOptions(max_tokens=1)),
    ],
)
async def test_whoever_asks_otherwise_is_answered_afresh(other):
    """Another user, privacy, context or shape of the answer is another question."""
    model = ScriptedModel(["Paris, on the Seine", "afresh"])
    router = router_over(model, DictMemory())
    await router.answer(replace(ASKED, metadata={"user": "ann"}))
    await router.answer(ASKED)

    answer = await router.answer(other)

    assert not answer.is_cached
    assert len(model.queries) == 3


@pytest.mark.parametrize(
    "same",
    [
        replace(ASKED, sampling=SamplingOptions(temperature=0.0, seed=3, max_tokens=100)),
        replace(ASKED, budget_usd=0.0),
        replace(ASKED, session="another", metadata={"purpose": "test"}),
        replace(ASKED, response_format=ResponseFormat("text")),
    ],
)
async def test_what_does_not_touch_the_answer_is_answered_from_memory(same):
    """Limits that it keeps, and notes about the query."""
    router = router_over(ScriptedModel(["Paris"]), DictMemory())
    await router.answer(ASKED)

    assert (await router.answer(same)).is_cached


async def test_another_policy_has_another_memory():
    """Its promise is another."""
    memory = DictMemory()
    await router_over(ScriptedModel(["Paris"]), memory).answer(ASKED)

    assert not (await router_over(ScriptedModel(["Paris!"]), memory, policy="p@2").answer(ASKED)).is_cached


async def test_users_share_only_where_they_are_told_to():
    """And even then, not across privacy labels."""
    router = router_over(ScriptedModel(["Paris"]), DictMemory(), per_user=False)
    await router.answer(replace(ASKED, metadata={"user": "ann"}))

    assert (await router.answer(replace(ASKED, metadata={"user": "bob"}))).is_cached
    assert not (await router.answer(replace(ASKED, privacy="near"))).is_cached


@pytest.mark.parametrize(
    "line",
    [
        Answer("Par", finish_reason="length"),
        Answer("", refusal="no"),
        Answer("x", tool_calls=(ToolCall("1", "f", "{}"),), finish_reason="tool_calls"),
        "  ",
    ],
)
async def test_what_is_no_whole_answer_is_not_remembered(line):
    """A refusal, a cut answer, a call of a tool, silence."""
    memory = DictMemory()

    await router_over(ScriptedModel([line]), memory).answer(ASKED)

    assert memory.memos == {}


async def test_answer_keeps_the_versions_of_its_sources():
    """So that a change of one of them can take it back."""
    memory = DictMemory()
    model = ScriptedModel([Answer("Paris", extra={"sources": {"atlas.pdf": "abc"}})])

    await router_over(model, memory).answer(ASKED)

    assert [memo.sources for memo in memory.memos.values()] == [{"atlas.pdf": "abc"}]


@pytest.mark.parametrize("error", [DataError("gone"), UpstreamUnavailable("gone", model="embedder")])
async def test_broken_memory_costs_no_answer(caplog, error):
    """It is reported, and the cascade is asked."""
    router = router_over(ScriptedModel(["Paris"]), BrokenMemory(error))

    assert (await router.answer(ASKED)).text == "Paris"
    assert "the memory could not be read" in caplog.text
    assert "was not remembered" in caplog.text
