"""The life of a query: plan, try, judge, commit, record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import fields, replace
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import (
    BudgetExceeded,
    CircuitOpen,
    ConfigError,
    DataError,
    MalformedAnswer,
    RequestError,
    UnknownModel,
    UnsupportedOption,
    UpstreamError,
    UpstreamUnavailable,
)
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.router import Router
from nearfar.router.run import ABSTENTION
from nearfar.router.scorers import MeanProbability
from nearfar.testing import ScriptedModel
from nearfar.types import (
    FREE,
    Answer,
    ContentPart,
    Decision,
    Message,
    ModelCard,
    NamedTool,
    Price,
    Query,
    SamplingOptions,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolSpec,
    Usage,
)

PRICE = Price(1.0, 2.0)


class ListLog:
    """A decision log in memory."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def submit(self, decision: Decision) -> None:
        self.decisions.append(decision)

    async def flush(self) -> None:
        return None


class BrokenLog(ListLog):
    """A decision log on a full disk."""

    async def flush(self) -> None:
        raise DataError("disk full")


def near(*script: str | Answer | BaseException, confidence: float | None = 0.5, **options: float) -> ScriptedModel:
    return ScriptedModel(script or ["near says so"], name="near", confidence=confidence, **options)


def far(*script: str | Answer | BaseException, **options: object) -> ScriptedModel:
    card = ModelCard("far", "far", price=PRICE, max_output_tokens=100, supports_tools=True, **options)  # type: ignore[arg-type]
    return ScriptedModel(script or ["far says so"], card=card)


def cascade_of(*models: ScriptedModel, threshold: float = 0.8, **options: object) -> tuple[Router, ListLog]:
    tiers = [
        Tier(model, scorer=MeanProbability(), threshold=threshold) if model.card.placement == "near" else Tier(model)
        for model in models
    ]
    log_ = ListLog()
    cascade = Cascade(tiers, name="auto", **options)  # type: ignore[arg-type]
    return Router({"auto": cascade}, {model.card.name: model for model in models}, log=log_), log_


async def drain(events: AsyncGenerator[StreamEvent, None]) -> list[StreamEvent]:
    async with aclosing(events):
        return [event async for event in events]


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_unsure_near_tier_escalates():
    """A score below the threshold hands the query to the next tier."""
    router, log_ = cascade_of(near("Lyon?", confidence=0.2), far("Paris"), threshold=0.6)

    answer = await router.answer(Query("Capital of France?"))

    assert answer.text == "Paris"
    assert answer.tier == "far"
    [decision] = log_.decisions
    assert decision == answer.decision
    assert [step.verdict for step in decision.steps] == ["deferred", "accepted"]
    assert decision.steps[0].score == pytest.approx(0.2)
    assert decision.reason == "last_tier"
    assert decision.escalations == 1


async def test_sure_near_tier_answers_and_nothing_leaves():
    """A score that reaches the threshold ends the cascade, and the record shows that nothing left the machine."""
    second = far()
    router, log_ = cascade_of(near("Paris", confidence=0.9), second)

    answer = await router.answer(Query("Capital of France?"))

    assert (answer.text, answer.tier) == ("Paris", "near")
    assert answer.score == pytest.approx(0.9)
    assert log_.decisions[0].reason == "confident"
    assert log_.decisions[0].departures == ()
    assert second.queries == []


async def test_what_left_is_recorded():
    """A far call is recorded with what was sent, by length and hash."""
    router, log_ = cascade_of(near(confidence=0.1), far())

    await router.answer(Query("secret"))

    [departure] = log_.decisions[0].departures
    assert (departure.model, departure.messages) == ("far", 1)
    assert len(departure.sha256) == 64


async def test_logprobs_that_only_the_router_asked_for_stay_inside():
    """The router's own need for log-probabilities does not change what the asker sees."""
    router, _ = cascade_of(near(confidence=0.9), far())

    plain = await router.answer(Query("q"))
    asked = await router.answer(Query("q", sampling=SamplingOptions(logprobs=True)))

    assert plain.logprobs is None
    assert asked.logprobs is not None
    assert asked.logprobs[0].logprob == pytest.approx(log(0.9))


async def test_a_failing_tier_is_followed_by_the_next():
    """An upstream failure is a step of the record, and the next tier answers."""
    router, log_ = cascade_of(near(UpstreamUnavailable("down", model="near", status=500)), far("far"))

    answer = await router.answer(Query("q"))

    assert answer.text == "far"
    assert [step.verdict for step in log_.decisions[0].steps] == ["failed", "accepted"]


@pytest.mark.parametrize("streams", [False, True])
async def test_the_best_answer_so_far_is_given_when_the_far_tier_fails(streams: bool):
    """An unsure near answer is better than an error, and the decision says why it was given."""
    router, log_ = cascade_of(near("maybe", confidence=0.3), far(UpstreamUnavailable("down", model="far")))

    if streams:
        events = await drain(router.stream(Query("q")))
        assert isinstance(events[-1], StreamEnd)
        answer = events[-1].answer
        assert text_of(events) == "maybe"
    else:
        answer = await router.answer(Query("q"))

    assert (answer.text, answer.tier) == ("maybe", "near")
    [decision] = log_.decisions
    assert (decision.status, decision.reason) == ("answered", "upstream_failed")


async def test_abstention_when_the_query_asks_for_it():
    """An asker who prefers no answer to an unsure one gets none."""
    router, log_ = cascade_of(near("maybe", confidence=0.3))

    answer = await router.answer(Query("q", when_unsure="abstain"))

    assert (answer.text, answer.finish_reason) == (ABSTENTION, "abstained")
    assert log_.decisions[0].status == "abstained"
    assert log_.decisions[0].steps[0].text == "maybe"


@pytest.mark.parametrize("streams", [False, True])
async def test_an_error_where_every_tier_failed(streams: bool):
    """With no answer at all the last failure is raised, and it names the decision record."""
    router, log_ = cascade_of(
        near(UpstreamUnavailable("one", model="near")), far(UpstreamUnavailable("two", model="far"))
    )

    with pytest.raises(UpstreamError, match="two") as failure:
        await (drain(router.stream(Query("q"))) if streams else router.answer(Query("q")))

    [decision] = log_.decisions
    assert failure.value.decision_id == decision.id
    assert decision.status == "failed"


async def test_private_queries_never_reach_a_far_tier():
    """With privacy "near" a far tier is dropped, however unsure the near one is."""
    second = far()
    router, log_ = cascade_of(near("unsure", confidence=0.1), second)

    answer = await router.answer(Query("q", privacy="near"))

    assert answer.text == "unsure"
    assert second.queries == []
    assert "privacy" in log_.decisions[0].candidates[1].reason


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (Query("q", privacy="near"), "privacy"),
        (Query("q", budget_usd=0.0), "budget"),
        (Query("q", response_format=None, sampling=SamplingOptions(extra={"foo": 1})), "foo"),
        (Query((Message("user", (ContentPart("image", wire={}),)),)), "image"),
        (Query("x" * 9000), "context"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_a_query_that_no_tier_may_take_is_refused_with_the_reason(query: Query, why: str, streams: bool):
    """A refusal is an answer with a decision, not an exception, and says why for each tier."""
    router, log_ = cascade_of(far(context_window=1000))

    if streams:
        [event] = await drain(router.stream(query))
        assert isinstance(event, StreamEnd)
        answer = event.answer
    else:
        answer = await router.answer(query)

    assert (answer.text, answer.finish_reason) == ("", "refused")
    assert why in (answer.refusal or "")
    [decision] = log_.decisions
    assert decision.status == "refused"
    assert decision.reason == ("out_of_budget" if why == "budget" else "no_tier")


async def test_an_unknown_price_is_unknown_and_not_zero():
    """A query with a budget refuses a model without a price; one without a budget uses it, at unknown cost."""
    model = ScriptedModel(["a"], card=ModelCard("far", "far", max_output_tokens=10))
    router = Router({"auto": Cascade([Tier(model)], name="auto")}, {})

    refused = await router.answer(Query("q", budget_usd=1.0))
    free = await router.answer(Query("q"))

    assert "price" in (refused.refusal or "")
    assert free.decision is not None
    assert free.decision.cost_usd is None


async def test_a_budget_bounds_what_is_asked_for():
    """Under a budget the model is told the most that it may write, so that the reservation holds."""
    model = far()
    router, _ = cascade_of(model)

    await router.answer(Query("q", budget_usd=1.0))

    assert model.queries[0].sampling.max_tokens == 100


async def test_a_small_budget_shortens_the_answer_and_a_tiny_one_refuses_it():
    """Where the query leaves the length open, money sets it, down to the shortest answer worth paying for."""
    card = ModelCard("far", "far", price=Price(1.0, 10.0), max_output_tokens=100_000)
    model = ScriptedModel(["a"], card=card)
    router = Router({"auto": Cascade([Tier(model)], name="auto")}, {})

    await router.answer(Query("q", budget_usd=0.01))
    refused = await router.answer(Query("q", budget_usd=0.002))
    own = await router.answer(Query("q", budget_usd=0.01, sampling=SamplingOptions(max_tokens=2000)))

    [sent] = model.queries
    assert sent.sampling.max_tokens is not None
    assert 900 < sent.sampling.max_tokens < 1000
    assert (card.cost_bound_usd(sent) or 1) <= 0.01
    for answer in (refused, own):
        assert answer.decision is not None
        assert (answer.decision.status, answer.decision.reason) == ("refused", "out_of_budget")
        assert answer.decision.candidates[0].param == "budget_usd"


async def test_the_draft_is_paid_for_too():
    """A draft lengthens the prompt, and the budget counts it."""
    card = ModelCard("far", "far", price=Price(1000.0, 0.0), max_output_tokens=10)
    second = ScriptedModel(["a"], card=card)
    tiers = [Tier(near("long " * 500, confidence=0.1), scorer=MeanProbability()), Tier(second, wants_draft=True)]
    router = Router({"auto": Cascade(tiers, name="auto")}, {})

    answer = await router.answer(Query("q", budget_usd=0.5))

    assert second.queries == []
    assert answer.decision is not None
    assert answer.decision.reason == "out_of_budget"


async def test_a_server_that_was_never_reached_has_seen_nothing():
    """A refused connection is no departure; one that broke later is."""
    refused, log_ = cascade_of(far(UpstreamUnavailable("refused", model="far", was_sent=False)))
    broken, other_log = cascade_of(far(UpstreamUnavailable("broke", model="far")))

    for router in (refused, broken):
        with pytest.raises(UpstreamUnavailable):
            await router.answer(Query("hello"))

    assert log_.decisions[0].departures == ()
    assert [departure.characters for departure in other_log.decisions[0].departures] == [5]


async def test_logprobs_of_a_tool_call_that_only_the_router_wanted_are_no_event():
    """A delta without text that carried the router's log-probabilities is not passed on."""

    class Calling(ScriptedModel):
        async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
            yield TextDelta("", (TokenLogprob("{", -0.1),))
            async with aclosing(super().stream(query)) as events:
                async for event in events:
                    yield event

    call = Answer(tool_calls=(ToolCall("c", "add", "{}"),), finish_reason="tool_calls")
    model = Calling([call], confidence=0.9)
    router = Router({"auto": Cascade([Tier(model, scorer=MeanProbability())], name="auto")}, {})

    plain = await drain(router.stream(Query("q")))
    asked = await drain(router.stream(Query("q", sampling=SamplingOptions(logprobs=True))))

    assert not [event for event in plain if isinstance(event, TextDelta)]
    assert [event for event in asked if isinstance(event, TextDelta)]


@given(
    near_cost=st.floats(0, 0.01),
    far_cost=st.floats(0, 0.01),
    budget=st.floats(0, 0.03),
)
def test_a_query_never_costs_more_than_its_budget(near_cost: float, far_cost: float, budget: float):
    """Whatever the tiers charge within their declared bounds, the total stays inside the query's budget."""

    def paid(name: str, cost: float) -> ScriptedModel:
        # The output bound of one token at `cost` per token makes the declared bound exactly what it charges.
        card = ModelCard(name, "near", price=Price(0.0, cost * 1e6), max_output_tokens=1, supports_logprobs=True)
        return ScriptedModel([Answer("a", usage=Usage(1, 1), cost_usd=cost)], card=card)

    tiers = [Tier(paid("one", near_cost), scorer=MeanProbability()), Tier(paid("two", far_cost))]
    router = Router({"auto": Cascade(tiers, name="auto")}, {})

    answer = asyncio.run(router.answer(Query("q", budget_usd=budget)))

    assert answer.decision is not None
    assert answer.decision.cost_usd is not None
    assert answer.decision.cost_usd <= budget


async def test_a_spent_shared_budget_is_an_outcome():
    """A wrapper that refuses for money ends in a refusal, or in the best answer so far where there is one."""
    alone, _ = cascade_of(far(BudgetExceeded("spent")))
    after_near, log_ = cascade_of(near("maybe", confidence=0.1), far(BudgetExceeded("spent")))

    refused = await alone.answer(Query("q"))
    best = await after_near.answer(Query("q"))

    assert refused.decision is not None
    assert (refused.decision.status, refused.decision.reason) == ("refused", "out_of_budget")
    assert best.text == "maybe"
    assert log_.decisions[0].reason == "out_of_budget"
    assert log_.decisions[0].departures == ()


@pytest.mark.parametrize("streams", [False, True])
async def test_the_deadline_gives_the_best_answer_so_far(streams: bool):
    """When time runs out in the far tier the near answer is given, inside the deadline."""
    slow = far("slow")
    slow._delay_s = 30
    router, log_ = cascade_of(near("quick", confidence=0.1), slow)

    async with asyncio.timeout(5):
        query = Query("q", deadline_s=0.2)
        if streams:
            events = await drain(router.stream(query))
            assert text_of(events) == "quick"
        else:
            assert (await router.answer(query)).text == "quick"

    assert log_.decisions[0].reason == "out_of_time"
    assert [(step.tier, step.verdict) for step in log_.decisions[0].steps] == [("far", "failed"), ("near", "accepted")]


async def test_the_draft_goes_along_where_the_tier_asks_for_it():
    """A tier that wants a draft sees the near answer beside the question."""
    second = far()
    tiers = [Tier(near("my draft", confidence=0.1), scorer=MeanProbability()), Tier(second, wants_draft=True)]
    router = Router({"auto": Cascade(tiers, name="auto")}, {})

    await router.answer(Query("q"))

    assert "my draft" in second.queries[0].messages[-1].text
    assert second.queries[0].messages[0].text == "q"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer("", finish_reason="stop"), "empty"),
        (Answer("I can't", refusal="no"), "declined"),
        (Answer("blocked", finish_reason="content_filter"), "declined"),
    ],
)
async def test_flawed_near_answers_defer_whatever_their_score(answer: Answer, why: str):
    """An empty, refused or filtered answer is never final while a further tier can take the query."""
    router, log_ = cascade_of(near(answer), far("better"), threshold=0.0)

    assert (await router.answer(Query("q"))).text == "better"

    assert why in log_.decisions[0].steps[0].reason


async def test_a_tier_without_a_score_defers():
    """No signals means unsure: the query goes on."""
    router, log_ = cascade_of(near("who knows", confidence=None), far("far"), threshold=0.0)

    assert (await router.answer(Query("q"))).text == "far"

    assert "no score" in log_.decisions[0].steps[0].reason


async def test_nothing_is_streamed_before_the_whole_answer_is_judged():
    """With commit="answer" no word of a deferring tier is ever sent."""
    router, _ = cascade_of(near("wrong wrong", confidence=0.1), far("right"))

    events = await drain(router.stream(Query("q")))

    assert isinstance(events[0], StreamStart)
    assert events[0].tier == "far"
    assert text_of(events) == "right"
    assert isinstance(events[-1], StreamEnd)


async def test_commit_on_a_prefix_streams_on_once_the_prefix_is_sure():
    """With commit="prefix" a sure beginning is sent before the end is known."""
    model = near(" ".join(["word"] * 50), confidence=0.9)
    router, log_ = cascade_of(model, far(), commit="prefix", prefix_tokens=4)

    events = await drain(router.stream(Query("q")))

    start = events[0]
    assert isinstance(start, StreamStart)
    assert start.score == pytest.approx(0.9)
    assert len([event for event in events if isinstance(event, TextDelta)]) == 50
    assert log_.decisions[0].reason == "confident"


async def test_commit_on_a_prefix_escalates_an_unsure_beginning():
    """With commit="prefix" an unsure beginning is dropped unseen and the next tier answers."""
    router, log_ = cascade_of(near("a b c d e f g h", confidence=0.1), far("right"), commit="prefix", prefix_tokens=4)

    events = await drain(router.stream(Query("q")))

    assert text_of(events) == "right"
    assert [step.verdict for step in log_.decisions[0].steps] == ["deferred", "accepted"]


async def test_a_prefix_dropped_early_is_finished_when_the_far_tier_fails():
    """The best answer so far is a whole one, also where the near tier was stopped after its prefix."""
    router, log_ = cascade_of(
        near("a b c d e f g h", confidence=0.1),
        far(UpstreamUnavailable("down", model="far")),
        commit="prefix",
        prefix_tokens=4,
    )

    events = await drain(router.stream(Query("q")))

    assert text_of(events) == "a b c d e f g h"
    assert log_.decisions[0].reason == "upstream_failed"


@pytest.mark.parametrize("words", ["", "one", "one two three"])
async def test_an_answer_shorter_than_the_prefix_is_judged_whole(words: str):
    """A short answer is judged at its end; an unsure or empty one is not sent."""
    router, _ = cascade_of(near(words, confidence=0.1), far("right"), commit="prefix", prefix_tokens=16)

    assert text_of(await drain(router.stream(Query("q")))) == "right"


class Breaking(ScriptedModel):
    """Streams half of its text and then breaks, as often as it is told to."""

    def __init__(self, text: str, breaks: int, card: ModelCard) -> None:
        super().__init__([text], card=card)
        self.breaks = breaks

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        seen = 0
        async with aclosing(super().stream(query)) as events:
            async for event in events:
                if self.breaks and seen == 2:
                    self.breaks -= 1
                    raise MalformedAnswer("broke off", model=self.card.name, may_have_cost=True)
                seen += 1
                yield event


async def test_a_stream_that_breaks_after_the_commit_is_continued():
    """What was sent stays; the next tier is given it and goes on."""
    card = ModelCard("one", "far", price=PRICE, max_output_tokens=10)
    heir = ScriptedModel([" and the rest"], card=replace(card, name="two"))
    broken = Breaking("the first part is long", 1, card)
    tiers = [Tier(broken), Tier(heir)]
    router = Router({"auto": Cascade([tiers[0]], name="auto")}, {"two": heir})

    alone = await drain(router.stream(Query("q")))

    assert text_of(alone) == "the first" + "the first part is long"  # the same model goes on where nobody else can
    assert "Continue" in broken.queries[-1].messages[-1].text
    assert broken.queries[-1].messages[-2] == Message("assistant", "the first")


async def test_a_stream_that_breaks_for_good_raises_and_is_recorded_once():
    """A stream that nobody can continue ends in the error, with one record that has the text sent so far."""
    card = ModelCard("one", "far", price=PRICE, max_output_tokens=10)
    log_ = ListLog()
    router = Router({"auto": Cascade([Tier(Breaking("a b c d", 9, card))], name="auto")}, {}, log=log_)

    with pytest.raises(MalformedAnswer):
        await drain(router.stream(Query("q")))

    [decision] = log_.decisions
    assert decision.status == "failed"
    assert decision.cost_usd is not None
    assert decision.steps[0].text == "a b"
    assert decision.is_cost_estimated


@pytest.mark.parametrize("streams", [False, True])
async def test_cancelling_leaves_a_record(streams: bool):
    """An asker who goes away leaves a decision with status cancelled, at the cost that was reserved."""
    model = far("slow")
    model._delay_s = 30
    router, log_ = cascade_of(model)

    task = asyncio.ensure_future(drain(router.stream(Query("q"))) if streams else router.answer(Query("q")))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    [decision] = log_.decisions
    assert decision.status == "cancelled"
    assert decision.is_cost_estimated
    assert decision.cost_usd is not None
    assert decision.cost_usd > 0


async def test_closing_the_stream_in_the_middle_leaves_a_record():
    """A stream closed after its first word is a cancelled query."""
    router, log_ = cascade_of(far("one two three"))

    events = router.stream(Query("q"))
    await anext(events)
    await anext(events)
    await events.aclose()

    assert [decision.status for decision in log_.decisions] == ["cancelled"]


async def test_the_record_is_written_before_the_answer_is_complete():
    """The log has the decision when the last event arrives."""
    router, log_ = cascade_of(far("one two"))

    async with aclosing(router.stream(Query("q"))) as events:
        async for event in events:
            assert len(log_.decisions) == (1 if isinstance(event, StreamEnd) else 0)


async def test_a_log_that_cannot_be_written_does_not_take_the_answer_away():
    """A full disk is reported by the router; the asker still gets the answer."""
    router = Router({"auto": Cascade([Tier(far("fine"))], name="auto")}, {}, log=BrokenLog())

    assert (await router.answer(Query("q"))).text == "fine"

    assert router.log_failure == "disk full"


async def test_a_model_may_be_named():
    """A model's name is a cascade of one, scored as in the cascade where it is a tier."""
    router, log_ = cascade_of(near("a", confidence=0.3), far("b"))

    answer = await router.answer(Query("q", model="near"))

    assert (answer.text, answer.tier) == ("a", "near")
    assert answer.score == pytest.approx(0.3)
    assert log_.decisions[0].reason == "named"
    assert router.targets() == {"auto": "cascade", "near": "model", "far": "model"}


async def test_a_breaker_that_opened_meanwhile_sends_nothing():
    """A call that the breaker refused is a failed step and no departure."""
    router, log_ = cascade_of(near("a", confidence=0.1), far(CircuitOpen("open", model="far", was_sent=False)))

    assert (await router.answer(Query("q"))).text == "a"

    assert log_.decisions[0].departures == ()


async def test_tool_calls_pass_through():
    """A call that the model wants made arrives as events and in the answer."""
    call = ToolCall("c1", "add", '{"a": 1}')
    router, _ = cascade_of(far(Answer(tool_calls=(call,), finish_reason="tool_calls")))
    query = Query("q", tools=(ToolSpec("add"),))

    events = await drain(router.stream(query))
    answer = await router.answer(query)

    assert answer.tool_calls == (call,)
    assert [type(event).__name__ for event in events] == ["StreamStart", "ToolCallDelta", "StreamEnd"]


async def test_an_option_that_every_tier_refuses_is_the_asker_s_error():
    """UnsupportedOption at the call is raised with its parameter, and recorded as refused."""
    router, log_ = cascade_of(far(UnsupportedOption("no seed", param="seed")))

    with pytest.raises(UnsupportedOption) as failure:
        await router.answer(Query("q", sampling=SamplingOptions(seed=1)))

    assert failure.value.param == "seed"
    assert log_.decisions[0].status == "refused"
    assert log_.decisions[0].departures == ()


@pytest.mark.parametrize(
    ("query", "param"),
    [
        (Query(()), "messages"),
        (Query("   "), "messages"),
        (Query("q", budget_usd=-1), "budget_usd"),
        (Query("q", budget_usd=float("nan")), "budget_usd"),
        (Query("q", deadline_s=0), "deadline_s"),
        (Query("q", sampling=SamplingOptions(max_tokens=0)), "max_tokens"),
        (Query("q", sampling=SamplingOptions(temperature=3)), "temperature"),
        (Query("q", sampling=SamplingOptions(top_logprobs=5)), "top_logprobs"),
        (Query("q", tool_choice="required"), "tool_choice"),
        (Query("q", tools=(ToolSpec("a"),), tool_choice=NamedTool("b")), "tool_choice"),
        (Query("q", tools=(ToolSpec("a"), ToolSpec("a"))), "tools"),
        (Query("q", quality="gold"), "quality"),
    ],
)
async def test_queries_that_contradict_themselves_are_refused_by_name(query: Query, param: str):
    """A query that no model could take is an error that names the field."""
    router, log_ = cascade_of(near())

    with pytest.raises(RequestError) as failure:
        await router.answer(query)

    assert failure.value.param == param
    assert log_.decisions == []


async def test_an_unknown_model_is_named_with_what_there_is():
    """A wrong name is answered with the right ones."""
    router, _ = cascade_of(near())

    with pytest.raises(UnknownModel, match="There are: auto, near"):
        await router.answer(Query("q", model="gpt-9"))


async def test_a_quality_names_a_variant_of_the_cascade():
    """A query that names a policy is answered under that policy's thresholds."""
    model, second = near("a", confidence=0.7), far("b")
    strict = Cascade(
        [Tier(model, scorer=MeanProbability(), threshold=0.9), Tier(second)], name="auto", policy="strict@1"
    )
    lax = Cascade(
        [Tier(model, scorer=MeanProbability(), threshold=0.5), Tier(second)],
        name="auto",
        policy="lax@1",
        variants={"strict": strict},
    )
    router = Router({"auto": lax}, {})

    first = await router.answer(Query("q"))
    answer = await router.answer(Query("q", quality="strict"))

    assert (first.text, answer.text) == ("a", "b")
    assert answer.decision is not None
    assert answer.decision.policy == "strict@1"


@pytest.mark.parametrize("tiers", [[], ["near", "near"]])
def test_cascades_without_tiers_or_with_doubles_are_config_errors(tiers: list[str]):
    """A cascade needs tiers of different names."""
    with pytest.raises(ConfigError):
        Cascade([Tier(ScriptedModel(["a"], name=name)) for name in tiers], name="auto")


unit = st.floats(0.01, 1)


@given(confidences=st.lists(unit, min_size=1, max_size=8), a=unit, b=unit)
def test_raising_the_threshold_never_escalates_less(confidences: list[float], a: float, b: float):
    """Escalations grow with the threshold, whatever the scores."""

    async def escalated(threshold: float) -> int:
        count = 0
        for confidence in confidences:
            router, _ = cascade_of(near("a", confidence=confidence), far("b"), threshold=threshold)
            count += (await router.answer(Query("q"))).tier == "far"
        return count

    low, high = sorted((a, b))

    assert asyncio.run(escalated(low)) <= asyncio.run(escalated(high))


async def test_many_tiers_are_tried_in_order():
    """A cascade of any length goes on until one tier is sure."""
    models = [ScriptedModel([f"answer {i}"], name=f"m{i}", confidence=0.1 + 0.2 * i) for i in range(5)]
    tiers = [Tier(model, scorer=MeanProbability(), threshold=0.6) for model in models]
    router = Router({"auto": Cascade(tiers, name="auto")}, {})

    answer = await router.answer(Query("q"))

    assert answer.tier == "m3"
    assert answer.decision is not None
    assert answer.decision.escalations == 3
    assert FREE.cost_usd(Usage(1, 1)) == 0


async def test_whatever_a_model_says_of_its_answer_comes_with_it():
    """The router adds what it knows, and drops nothing."""
    said = Answer(
        "text",
        "far",
        (ToolCall("1", "f", "{}"),),
        "tool_calls",
        "thoughts",
        "no",
        (TokenLogprob("text", -0.1),),
        Usage(1, 2),
        0.5,
        True,
        1.0,
        True,
        True,
        1.0,
        {"more": 1},
        None,
        {"sure": 0.9},
    )
    router, _ = cascade_of(far(said, supports_logprobs=True))

    given = await router.answer(Query("?", sampling=SamplingOptions(logprobs=True)))

    decided = {"decision", "latency_s", "cost_usd", "is_cost_estimated"}
    for each in fields(Answer):
        default = Answer.__dataclass_fields__[each.name].default
        assert each.name == "decision" or getattr(said, each.name) != default, "say something of every field"
        if each.name not in decided:
            assert getattr(given, each.name) == getattr(said, each.name), each.name


# --- tiers whose policy accepts nothing ------------------------------------------------------------------------------


def useless_then(second: ScriptedModel, *, wants_draft: bool = False) -> tuple[Router, ScriptedModel]:
    first = near("near says so", confidence=0.99)
    tiers = [
        Tier(first, scorer=MeanProbability(), accepts_nothing=True),
        Tier(second, wants_draft=wants_draft),
    ]
    return Router({"auto": Cascade(tiers, name="auto")}, {"near": first, "far": second}, log=ListLog()), first


@pytest.mark.parametrize("streams", [False, True])
async def test_a_tier_whose_answers_are_always_thrown_away_is_not_asked(streams: bool):
    """It would cost its time and change nothing; the record says so."""
    router, first = useless_then(far("far says so"))

    if streams:
        events = await drain(router.stream(Query("Hello?")))
        assert isinstance(events[-1], StreamEnd)
        answer = events[-1].answer
    else:
        answer = await router.answer(Query("Hello?"))

    assert (answer.text, answer.tier) == ("far says so", "far")
    assert first.queries == []
    assert answer.decision is not None
    assert "accepts no answer" in answer.decision.candidates[0].reason


async def test_a_tier_whose_answers_are_always_thrown_away_stands_in_where_the_others_fail():
    """Its answer is better than none."""
    router, _ = useless_then(far(UpstreamUnavailable("far is down", model="far")))

    answer = await router.answer(Query("Hello?"))

    assert (answer.text, answer.tier) == ("near says so", "near")
    assert answer.decision is not None
    assert [step.verdict for step in answer.decision.steps] == ["failed", "accepted"]


async def test_a_tier_whose_draft_is_wanted_is_asked_though_its_answer_is_never_final():
    """The next tier is given what it said."""
    second = far("far says so")
    router, first = useless_then(second, wants_draft=True)

    answer = await router.answer(Query("Hello?"))

    assert answer.tier == "far"
    assert len(first.queries) == 1
    assert "near says so" in second.queries[0].messages[-1].text


@pytest.mark.parametrize(
    "query",
    [
        Query("a\ud800b"),
        Query("Hi", sampling=SamplingOptions(stop=("\udfff",))),
        Query("Hi", metadata={"note": "\udcff"}),
        Query("Hi", tools=(ToolSpec("f", "\udcff"),)),
    ],
    ids=["prompt", "stop", "metadata", "tool"],
)
async def test_half_a_character_is_refused(query: Query) -> None:
    """Neither a wire nor the log could hold it, and one lost record makes the log count as failed."""
    router, log = cascade_of(near("Hi"))

    with pytest.raises(RequestError, match="no character"):
        await router.answer(query)
    with pytest.raises(RequestError, match="no character"):
        router.stream(query)

    assert log.decisions == []
