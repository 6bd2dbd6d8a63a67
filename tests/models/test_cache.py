"""The very same query gets the very same answer, at no cost."""

import asyncio
from dataclasses import fields, replace

import pytest
from contracts.chat_model import ChatModelContract, assert_joined, collect
from hypothesis import given
from hypothesis import strategies as st
from support.obedient import obedient

from nearfar.errors import ConfigError, UpstreamUnavailable
from nearfar.models.cache import CACHE, Cached
from nearfar.store import Store
from nearfar.testing import ScriptedModel
from nearfar.types import (
    Answer,
    Message,
    ModelCard,
    NamedTool,
    Price,
    Query,
    ResponseFormat,
    SamplingOptions,
    TokenLogprob,
    ToolCall,
    ToolSpec,
    Usage,
)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "nearfar.db", [CACHE])
    yield store
    store.close()


@pytest.fixture
def inner():
    """Every answer is another."""
    number = iter(range(1_000_000))
    card = ModelCard("far", "far", price=Price(1, 2), supports_tools=True, supports_logprobs=True, passes_extra=True)
    return ScriptedModel([lambda _: f"answer {next(number)}"], card=card)


class TestCachedKeepsTheContract(ChatModelContract):
    """Whether answers are kept or new."""

    @pytest.fixture
    async def model(self, store):
        model = Cached(ScriptedModel([obedient], confidence=0.9, delay_s=0.01), store)
        yield model
        await model.aclose()


class TestCachedSamplesKeepTheContract(ChatModelContract):
    """Also where random samples are kept."""

    @pytest.fixture
    async def model(self, store):
        card = ModelCard("far", "far", price=Price(1, 2), supports_tools=True)
        model = Cached(ScriptedModel([obedient], card=card), store, keeps_samples=True)
        yield model
        await model.aclose()


async def test_the_second_answer_is_the_first_at_no_cost(inner, store):
    """By either door, and says so."""
    model = Cached(inner, store)

    first = await model.complete(Query("x"))
    second = await model.complete(Query("x"))
    events, third = await collect(model.stream(Query("x")))

    assert_joined(events, third)
    assert first.cost_usd > 0
    assert not first.is_cached
    for again in (second, third):
        assert again == replace(first, cost_usd=0.0, is_cached=True, latency_s=again.latency_s)
    assert len(inner.queries) == 1


async def test_a_streamed_answer_is_kept(inner, store):
    """Once it is whole."""
    model = Cached(inner, store)

    _, first = await collect(model.stream(Query("x")))

    assert (await model.complete(Query("x"))).text == first.text


async def test_a_stream_closed_early_is_not_kept(inner, store):
    """Half an answer is none."""
    model = Cached(inner, store)
    stream = model.stream(Query("x"))
    await anext(stream)
    await stream.aclose()

    assert (await model.complete(Query("x"))).text == "answer 1"


async def test_everything_about_an_answer_comes_back(store):
    """Tool calls, log-probabilities (infinite ones too), reasoning, usage and what the wire added."""
    said = Answer(
        "a b",
        tool_calls=(ToolCall("1", "f", '{"x": 1}'),),
        finish_reason="tool_calls",
        reasoning="hm",
        logprobs=(TokenLogprob("a", -0.1, (("a", -0.1), ("z", float("-inf")))), TokenLogprob(" b", -1 / 3)),
        usage=Usage(3, 2, 1, 1),
        extra={"id": "x", "nested": [1, {"y": None}]},
    )
    model = Cached(ScriptedModel([said]), store)
    first = await model.complete(Query("x"))

    events, second = await collect(model.stream(Query("x")))

    assert_joined(events, second)
    assert second == replace(first, is_cached=True, latency_s=second.latency_s)


ALIKE = (
    Query("x"),
    Query((Message("user", "x"),), model="other-name"),
    Query("x", budget_usd=1.0, deadline_s=5.0, session="s", metadata={"k": "v"}, when_unsure="abstain"),
    Query("x", quality="best", privacy="near"),
)
DIFFERENT = (
    Query("x "),
    Query((Message("system", "x"),)),
    Query((Message("user", "x", name="me"),)),
    Query("x", tools=(ToolSpec("f"),)),
    Query("x", tools=(ToolSpec("f", "does"),)),
    Query("x", tools=(ToolSpec("f"),), tool_choice="required"),
    Query("x", tools=(ToolSpec("required"),), tool_choice=NamedTool("required")),
    Query("x", tools=(ToolSpec("f"),), parallel_tool_calls=False),
    Query("x", response_format=ResponseFormat("text")),
    *(
        Query("x", sampling=SamplingOptions(**{name: value}))
        for name, value in {
            "max_tokens": 5,
            "temperature": 0.0,
            "top_p": 0.5,
            "top_k": 5,
            "min_p": 0.1,
            "seed": 1,
            "stop": ("a",),
            "presence_penalty": 1.0,
            "frequency_penalty": 1.0,
            "logit_bias": {"1": 2.0},
            "logprobs": True,
            "top_logprobs": 2,
            "extra": {"best_of": 2},
        }.items()
    ),
)


def test_every_decoding_option_is_among_the_different_queries():
    """So that a new option cannot be forgotten in the key."""
    plain = SamplingOptions()

    varied = {
        each.name
        for each in fields(SamplingOptions)
        for query in DIFFERENT
        if getattr(query.sampling, each.name) != getattr(plain, each.name)
    }

    assert varied == {each.name for each in fields(SamplingOptions)}


async def test_what_the_answer_depends_on_is_the_key_and_nothing_else(inner, store):
    """A name for the model, a deadline or a session change no answer; an option does."""
    model = Cached(inner, store)

    alike = {(await model.complete(query)).text for query in ALIKE}
    different = [(await model.complete(query)).text for query in DIFFERENT]

    assert alike == {"answer 0"}
    assert len({*alike, *different}) == 1 + len(DIFFERENT)


async def test_models_do_not_answer_for_each_other(store):
    """Not even two of one name, where their identities differ."""
    a = Cached(ScriptedModel(["a"], name="m"), store, identity="http://one")
    b = Cached(ScriptedModel(["b"], name="m"), store, identity="http://two")
    c = Cached(ScriptedModel(["c"], name="n"), store, identity="http://one")

    assert [(await model.complete(Query("x"))).text for model in (a, b, c, a, b, c)] == ["a", "b", "c"] * 2


async def test_random_samples_are_not_kept_unless_asked_for(inner, store):
    """Whoever sets a temperature and no seed wants a new sample each time."""
    sample = Query("x", sampling=SamplingOptions(temperature=0.7))
    seeded = Query("x", sampling=SamplingOptions(temperature=0.7, seed=3))
    plain, keeping = Cached(inner, store), Cached(inner, store, keeps_samples=True)

    texts = [(await plain.complete(sample)).text, (await collect(plain.stream(sample)))[1].text]
    kept = [(await keeping.complete(sample)).text, (await keeping.complete(sample)).text]
    repeated = [(await plain.complete(seeded)).text, (await plain.complete(seeded)).text]

    assert texts[0] != texts[1]
    assert kept[0] == kept[1]
    assert repeated[0] == repeated[1]


@pytest.mark.parametrize(
    "line",
    [
        UpstreamUnavailable("down", model="scripted"),
        Answer("cut", finish_reason="content_filter"),
        Answer("", refusal="I may not"),
    ],
    ids=["error", "filtered", "refused"],
)
async def test_what_is_not_a_whole_answer_is_not_kept(line, store):
    """The next call may do better."""
    model = Cached(ScriptedModel([line, "fine"]), store)

    await asyncio.gather(model.complete(Query("x")), return_exceptions=True)

    answer = await model.complete(Query("x"))
    assert answer.text == "fine"
    assert not answer.is_cached


async def test_kept_answers_grow_old(inner, store):
    """And are then asked for anew."""
    now = [1000.0]
    model = Cached(inner, store, ttl_s=60, clock=lambda: now[0])

    texts = []
    for seconds in (0, 59, 2, 59):
        now[0] += seconds
        texts.append((await model.complete(Query("x"))).text)

    assert texts == ["answer 0", "answer 0", "answer 1", "answer 1"]


async def test_the_oldest_answers_make_room(inner, store):
    """The store does not grow without end."""
    now = iter(range(10_000))
    model = Cached(inner, store, max_entries=5, clock=lambda: float(next(now)))

    for i in range(150):
        await model.complete(Query(str(i)))

    kept = await store.read(lambda db: db.execute("SELECT count(*) FROM cached_answers").fetchone()[0])
    assert kept < 110
    assert (await model.complete(Query("149"))).is_cached
    assert not (await model.complete(Query("0"))).is_cached


async def test_the_same_query_at_once_is_asked_once(store):
    """The others wait for that answer."""
    inner = ScriptedModel(["one"], delay_s=0.02, card=ModelCard("far", "far", price=Price(1, 1)))
    model = Cached(inner, store)

    answers = await asyncio.gather(*(model.complete(Query("x")) for _ in range(20)))

    assert {answer.text for answer in answers} == {"one"}
    assert sum(not answer.is_cached for answer in answers) == 1
    assert sum(answer.cost_usd > 0 for answer in answers) == 1
    assert len(inner.queries) == 1


async def test_a_cancelled_or_failed_first_call_does_not_take_the_others_with_it(store):
    """They ask for themselves."""
    for spoil in ("cancel", "fail"):
        first_line = UpstreamUnavailable("down", model="scripted") if spoil == "fail" else "never seen"
        model = Cached(ScriptedModel([first_line, "fine"], delay_s=0.02), store, identity=spoil)
        calls = [asyncio.create_task(model.complete(Query("x"))) for _ in range(4)]
        await asyncio.sleep(0.01)
        if spoil == "cancel":
            calls[0].cancel()

        done = await asyncio.gather(*calls, return_exceptions=True)

        assert isinstance(done[0], BaseException)
        assert [answer.text for answer in done[1:]] == ["fine"] * 3


async def test_a_cancelled_follower_leaves_the_first_call_alone(store):
    """Its answer comes, and is kept."""
    inner = ScriptedModel(["one"], delay_s=0.02)
    model = Cached(inner, store)
    first, second = (asyncio.create_task(model.complete(Query("x"))) for _ in range(2))
    await asyncio.sleep(0.01)

    second.cancel()
    await asyncio.wait([first, second])

    assert second.cancelled()
    assert first.result().text == "one"
    assert len(inner.queries) == 1


async def test_a_broken_store_costs_the_cache_and_not_the_answer(inner, store, caplog):
    """It is logged."""
    model = Cached(inner, store)
    await store.write(lambda db: db.execute("DROP TABLE cached_answers"))

    texts = [(await model.complete(Query("x"))).text for _ in range(2)]

    assert texts == ["answer 0", "answer 1"]
    assert "the cache could not be read" in caplog.text
    assert "could not be kept" in caplog.text


async def test_an_answer_of_another_version_is_asked_for_anew(inner, store):
    """Bytes that do not decode are no answer."""
    model = Cached(inner, store)
    await model.complete(Query("x"))
    await store.write(lambda db: db.execute("UPDATE cached_answers SET answer = x'81a474657874c3'"))

    assert (await model.complete(Query("x"))).text == "answer 1"


text = st.text(max_size=8)
values = st.recursive(st.none() | st.booleans() | st.integers() | text, lambda inner: st.lists(inner, max_size=3))


@given(
    a=st.dictionaries(text, values, max_size=4),
    prompt=text,
)
async def test_a_key_does_not_depend_on_the_order_of_names(a, prompt):
    """Two clients that write the same options in another order get the same answer."""
    model = Cached(ScriptedModel(["x"]), store=None)
    backwards = dict(reversed(a.items()))

    keys = {
        model._key(Query(prompt, tools=(ToolSpec("f", parameters=order),), sampling=SamplingOptions(extra=order)))
        for order in (a, backwards)
    }

    assert len(keys) == 1


@pytest.mark.parametrize("options", [{"ttl_s": 0}, {"max_entries": 0}])
def test_a_cache_that_keeps_nothing_is_refused(options, store):
    """Leave it out instead."""
    with pytest.raises(ConfigError, match="cache of 'scripted'"):
        Cached(ScriptedModel(["x"]), store, **options)
