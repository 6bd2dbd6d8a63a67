"""Engines that share a memory budget, each a real process."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from support.engines import QUICK, adapter, starts, stub_engine, stub_spec

from nearfar.errors import ModelLoadError, RequestError, UnsupportedOption, UpstreamRejected, UpstreamTimeout
from nearfar.models.retry import Retried
from nearfar.serving.engine.fleet import Fleet
from nearfar.serving.engine.model import EngineModel
from nearfar.serving.engine.process import members
from nearfar.serving.engine.records import Records
from nearfar.types import Query, ResponseFormat, SamplingOptions, ToolSpec

UNIT = 1000


@asynccontextmanager
async def fleet_of(tmp_path, *specs, budget=None, gpu_bytes=None, patience=QUICK):
    """A fleet of the specs and what makes its models, all closed afterwards."""
    engines = [stub_engine(tmp_path, spec, patience, gpu_bytes=gpu_bytes) for spec in specs]
    fleet = Fleet(engines, records=Records(tmp_path / "engines"), budget_bytes=budget)
    models = []

    def model_of(engine, **options):
        models.append(EngineModel(fleet, engine, **options))
        return models[-1]

    try:
        yield fleet, model_of
    finally:
        for model in models:
            await model.aclose()
        await fleet.aclose()


async def test_two_models_and_three_adapters_take_turns_in_room_for_one_and_a_half(tmp_path):
    """Thirty mixed requests at once are all answered by the model that was asked, and never two are in memory."""
    loras = {name: adapter(tmp_path / name) for name in ("red", "green", "blue")}
    first = stub_spec(tmp_path, "a", memory_bytes=UNIT, loras={"red": loras["red"], "green": loras["green"]})
    second = stub_spec(tmp_path, "b", memory_bytes=UNIT, loras={"blue": loras["blue"]})
    async with fleet_of(tmp_path, first, second, budget=UNIT * 3 // 2) as (fleet, model_of):
        pairs = [("a", None), ("a", "red"), ("a", "green"), ("b", None), ("b", "blue")]
        models = [model_of(engine, adapter=lora) for engine, lora in pairs]
        most = 0

        async def watch():
            nonlocal most
            while True:
                most = max(most, sum(engine.pid is not None for engine in fleet.engines.values()))
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        asked = [models[i % len(models)] for i in range(30)]
        answers = await asyncio.gather(*(model.complete(Query("Hi")) for model in asked))
        watching.cancel()

        assert [answer.text.split()[0] for answer in answers] == [model.card.name for model in asked]
        assert [model.card.name for model in models] == ["a", "a+red", "a+green", "b", "b+blue"]
        assert most == 1
        assert fleet.evictions == ["a"]


async def test_the_least_recently_used_is_evicted(tmp_path):
    """With room for two of three, the one that was asked longest ago goes."""
    specs = [stub_spec(tmp_path, name, memory_bytes=UNIT) for name in "abc"]
    async with fleet_of(tmp_path, *specs, budget=2 * UNIT) as (fleet, model_of):
        models = {name: model_of(name) for name in "abc"}
        for name in "abacb":
            await models[name].complete(Query("Hi"))

        assert fleet.evictions == ["b", "a"]
        assert fleet.resident == ["c", "b"]


async def test_a_request_in_flight_is_answered_before_its_engine_goes(tmp_path):
    """An eviction waits for the slow answer; both requests are served."""
    specs = [stub_spec(tmp_path, name, memory_bytes=UNIT) for name in "ab"]
    async with fleet_of(tmp_path, *specs, budget=UNIT) as (_fleet, model_of):
        first, second = model_of("a"), model_of("b")
        (tmp_path / "state-a" / "slow").touch()
        await first.complete(Query("Hi"))

        slow = asyncio.create_task(first.complete(Query("Hi")))
        await asyncio.sleep(0.1)
        quick = await second.complete(Query("Hi"))

        assert slow.done()
        assert (await slow).text.startswith("a ")
        assert quick.text.startswith("b ")


async def test_a_cancelled_request_leaves_the_fleet_in_order(tmp_path):
    """Whoever gives up while an engine loads takes nothing from those who wait."""
    specs = [stub_spec(tmp_path, name, memory_bytes=UNIT) for name in "ab"]
    async with fleet_of(tmp_path, *specs, budget=UNIT) as (_fleet, model_of):
        models = {name: model_of(name) for name in "ab"}
        await models["a"].complete(Query("Hi"))

        waiting = [asyncio.create_task(models["b"].complete(Query("Hi"))) for _ in range(4)]
        await asyncio.sleep(0.02)
        waiting[0].cancel()
        waiting[2].cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)

        assert [isinstance(each, asyncio.CancelledError) for each in answers] == [True, False, True, False]
        assert answers[1].text.startswith("b ")
        assert (await models["a"].complete(Query("Hi"))).text.startswith("a ")


async def test_a_deadline_that_loading_does_not_meet_is_a_timeout(tmp_path):
    """Nothing was sent, and the reason says what helps."""
    async with fleet_of(tmp_path, stub_spec(tmp_path, fault="never")) as (_fleet, model_of):
        with pytest.raises(UpstreamTimeout, match=r"nearfar engine up near") as caught:
            await model_of("near").complete(Query("Hi", deadline_s=0.2))

        assert not caught.value.was_sent


async def test_an_engine_that_does_not_fit_is_refused(tmp_path):
    """More than the whole budget is no matter of eviction."""
    async with fleet_of(tmp_path, stub_spec(tmp_path, memory_bytes=2 * UNIT), budget=UNIT) as (_fleet, model_of):
        with pytest.raises(ModelLoadError, match=r"engines\.memory_gib"):
            await model_of("near").complete(Query("Hi"))


async def test_a_model_given_up_says_so_and_starts_nothing_more(tmp_path):
    """After a failure that will not pass, the plan sees the reason and further requests are refused at once."""
    async with fleet_of(tmp_path, stub_spec(tmp_path, fault="import")) as (_fleet, model_of):
        model = model_of("near")
        for _ in range(3):
            with pytest.raises(ModelLoadError, match="xgrammar"):
                await model.complete(Query("Hi"))

        assert "xgrammar" in model.unavailable()
        assert starts(tmp_path) == 1


async def test_a_request_that_meets_a_killed_server_is_answered_by_the_next(tmp_path):
    """With the retries that the wiring adds, kill -9 under load loses no request."""
    async with fleet_of(tmp_path, stub_spec(tmp_path)) as (fleet, model_of):
        model = Retried(model_of("near"), 3, first_wait_s=0.02)
        await model.complete(Query("Hi"))
        (tmp_path / "state-near" / "slow").touch()

        asked = [asyncio.create_task(model.complete(Query("Hi"))) for _ in range(8)]
        await asyncio.sleep(0.2)
        await fleet.engines["near"]._process.kill()
        answers = await asyncio.gather(*asked)

        assert {answer.text for answer in answers} == {f"near {fleet.engines['near'].pid}"}


async def test_a_query_that_kills_servers_is_not_sent_on_and_on(tmp_path):
    """It kills two, the second while no other suspect is asked; those beside it are answered."""
    async with fleet_of(tmp_path, stub_spec(tmp_path)) as (_fleet, model_of):
        model = Retried(model_of("near"), 3, first_wait_s=0.02)
        await model.complete(Query("Hi"))
        (tmp_path / "state-near" / "slow").touch()

        innocent = [asyncio.create_task(model.complete(Query(f"Hi {i}"))) for i in range(4)]
        await asyncio.sleep(0.2)
        with pytest.raises(UpstreamRejected, match="died 2 times while it answered this request") as caught:
            await model.complete(Query("poison"))
        answers = await asyncio.gather(*innocent)
        with pytest.raises(UpstreamRejected, match="not sent again"):
            await model.complete(Query("poison"))
        await model.complete(Query("Hi"))

        assert caught.value.status == 400
        assert all(answer.text.startswith("near ") for answer in answers)
        assert starts(tmp_path) == 3


async def test_a_stream_that_kills_servers_is_not_sent_on_and_on(tmp_path):
    """As for whole answers."""
    async with fleet_of(tmp_path, stub_spec(tmp_path)) as (_fleet, model_of):
        model = Retried(model_of("near"), 3, first_wait_s=0.02)
        with pytest.raises(UpstreamRejected, match="not sent again"):
            async for _ in model.stream(Query("poison")):
                pass

        assert (await model.complete(Query("Hi"))).text.startswith("near ")
        assert starts(tmp_path) == 3


async def test_a_stuck_server_that_says_it_is_well_is_restarted(tmp_path):
    """Once a request heard nothing, one of our own tells whether anybody is answered."""
    patience = replace(QUICK, silence_s=0.3)
    async with fleet_of(tmp_path, stub_spec(tmp_path), patience=patience) as (fleet, model_of):
        model = model_of("near", read_timeout_s=0.3)
        await model.complete(Query("Hi"))

        with pytest.raises(UpstreamTimeout):
            await model.complete(Query("wedge"))
        while fleet.engines["near"].restarts == 0:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)
        answer = await model.complete(Query("Hi"))

        assert answer.text.startswith("near ")
        assert "answered no request any more" in fleet.engines["near"].failure.reason


async def test_a_stuck_server_that_another_process_looks_after_is_restarted(tmp_path):
    """Whoever uses it ends it, and its owner starts the next."""
    patience = replace(QUICK, silence_s=0.3)
    spec = stub_spec(tmp_path)
    owner = stub_engine(tmp_path, spec, patience)
    owner.begin()
    await owner.ready()
    async with fleet_of(tmp_path, spec, patience=patience) as (fleet, model_of):
        model = model_of("near", read_timeout_s=0.3)
        await model.complete(Query("Hi"))
        assert not fleet.engines["near"].is_owner

        with pytest.raises(UpstreamTimeout):
            await model.complete(Query("wedge"))
        while owner.restarts == 0:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)
        answer = await Retried(model, 3, first_wait_s=0.02).complete(Query("Hi"))

        assert answer.text == f"near {owner.pid}"
    await owner.stop(drain_s=0)


async def test_a_slow_answer_is_no_reason_to_restart(tmp_path):
    """A server that answers the trial lives on, and so does what it is asked to do."""
    patience = replace(QUICK, silence_s=5)
    async with fleet_of(tmp_path, stub_spec(tmp_path), patience=patience) as (fleet, model_of):
        model = model_of("near", read_timeout_s=0.2)
        await model.complete(Query("Hi"))
        (tmp_path / "state-near" / "slow").touch()

        with pytest.raises(UpstreamTimeout):
            await model.complete(Query("Hi"))
        while fleet.engines["near"]._is_doubted:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)
        (tmp_path / "state-near" / "slow").unlink()
        await model.complete(Query("Hi"))

        assert starts(tmp_path) == 1


async def test_answers_carry_the_load_and_a_full_queue_is_a_reason(tmp_path):
    """A router sees the queue, and may leave the tier out."""
    async with fleet_of(tmp_path, stub_spec(tmp_path)) as (_fleet, model_of):
        model = model_of("near", max_queue=1)
        await model.complete(Query("Hi"))
        (tmp_path / "state-near" / "slow").touch()
        assert model.unavailable() is None

        asking = asyncio.create_task(model.complete(Query("Hi")))
        while (why := model.unavailable()) is None:  # noqa: ASYNC110 - the engine's look at its metrics
            await asyncio.sleep(0.01)
        answer = await asking

        assert why == "its engine has 1 requests, and max_queue is 1"
        assert answer.signals["engine_queue"] in (0, 1)  # it may have been looked at since
        assert answer.signals["engine_kv_cache_use"] == 0.25


async def test_a_query_that_no_engine_can_take_loads_none(tmp_path):
    """Tools without a parser for them, fields that the model sets itself, and shapes that would make vLLM stumble."""
    async with fleet_of(tmp_path, stub_spec(tmp_path)) as (_fleet, model_of):
        model = model_of("near", extra={"cache_salt": "x"})

        with pytest.raises(UnsupportedOption, match="tools"):
            await model.complete(Query("Hi", tools=(ToolSpec("now"),)))
        with pytest.raises(UnsupportedOption, match="cache_salt"):
            await model.complete(Query("Hi", sampling=SamplingOptions(extra={"cache_salt": "y"})))

        for shape in (
            ResponseFormat("grammar", grammar="root ::= [z-a]"),
            ResponseFormat("json_schema", schema={"allOf": [{"$ref": "#"}]}),
        ):
            with pytest.raises(RequestError, match=f"held to the {shape.kind}"):
                await model.complete(Query("Hi", response_format=shape))

        assert starts(tmp_path) == 0
        assert model.card.unmet(Query("Hi", response_format=ResponseFormat("json_schema", schema={}))) == {}


async def test_closing_a_model_stops_its_engine_and_no_other(tmp_path):
    """An adapter's closing leaves the weights that it shares."""
    specs = [stub_spec(tmp_path, "a", loras={"red": adapter(tmp_path / "red")}), stub_spec(tmp_path, "b")]
    async with fleet_of(tmp_path, *specs) as (fleet, model_of):
        first, red, second = model_of("a"), model_of("a", adapter="red"), model_of("b")
        for model in (first, red, second):
            await model.complete(Query("Hi"))
        pid = fleet.engines["a"].pid

        await red.aclose()
        assert fleet.resident == ["a", "b"]
        await first.aclose()

        assert members(pid) == []
        assert fleet.resident == ["b"]


async def test_an_engine_that_sleeps_keeps_its_process(tmp_path):
    """On a GPU an eviction may be a sleep, and the next turn a waking in the same process."""
    specs = [stub_spec(tmp_path, name, memory_bytes=UNIT, sleeps=True) for name in "ab"]
    async with fleet_of(tmp_path, *specs, budget=UNIT, gpu_bytes=UNIT) as (fleet, model_of):
        first, second = model_of("a"), model_of("b")
        before = await first.complete(Query("Hi"))
        await second.complete(Query("Hi"))
        assert fleet.engines["a"].state == "asleep"
        after = await first.complete(Query("Hi"))

        assert after.text == before.text
        assert (tmp_path / "state-a" / "sleeps").read_text().splitlines() == ["/sleep?level=1", "/wake_up"]


async def test_sleep_without_a_gpu_is_refused(tmp_path):
    """Before anything is started."""
    async with fleet_of(tmp_path, stub_spec(tmp_path, sleeps=True)) as (_fleet, model_of):
        with pytest.raises(ModelLoadError, match=r"sleep needs a GPU"):
            await model_of("near").complete(Query("Hi"))

        assert starts(tmp_path) == 0
