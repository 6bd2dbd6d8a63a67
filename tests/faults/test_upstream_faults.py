"""Whatever an upstream does, a query ends in an answer or a clear error, with one record, and leaves nothing behind."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from support.hostile_upstream import FAULTS, HUGE, WORDS, HostileUpstream

from nearfar.errors import (
    MalformedAnswer,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from nearfar.models.deadline import Deadline
from nearfar.models.openai_wire import OpenAIWireModel
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.store import Store
from nearfar.testing import ScriptedModel
from nearfar.types import FREE, Answer, ChatModel, ModelCard, Query, SamplingOptions, StreamEnd, TextDelta

#: What each fault becomes; None: the answer arrives all the same.
ERRORS: dict[str, type[UpstreamError] | None] = {
    "healthy": None,
    "refuse": UpstreamUnavailable,
    "close_before_headers": UpstreamUnavailable,
    "hang_before_headers": UpstreamTimeout,
    "hang_midway": UpstreamTimeout,
    "reset_midway": UpstreamUnavailable,
    "close_midway": UpstreamUnavailable,
    "rate_limited": UpstreamRateLimited,
    "rate_limited_with_retry_after": UpstreamRateLimited,
    "server_error": UpstreamUnavailable,
    "error_in_200": UpstreamUnavailable,
    "error_midway": UpstreamUnavailable,
    "wrong_content_type": MalformedAnswer,
    "broken_json": MalformedAnswer,
    "deep_json": MalformedAnswer,
    "truncated": MalformedAnswer,
    "split_at_every_byte": None,
    "huge_line": MalformedAnswer,
    "invalid_utf8": MalformedAnswer,
    "byte_a_second": UpstreamTimeout,
    "redirect": UpstreamRejected,
    "no_http": MalformedAnswer,
}

#: Failures that the provider cannot charge for: nothing was sent, or it said no.
FREE_OF_CHARGE = {"refuse", "rate_limited", "rate_limited_with_retry_after", "server_error", "redirect"}

#: Failures that only time ends: a silence, and what is never silent for long.
SLOW = {"hang_before_headers": 0.2, "hang_midway": 0.2, "byte_a_second": 0.4}

#: When a model, and a query, must have ended; far more than any of them needs.
GUARD_S = 30.0


@pytest.fixture(scope="module")
def upstream() -> Iterator[HostileUpstream]:
    """One server for all faults."""
    with HostileUpstream() as upstream:
        yield upstream


def num_sockets() -> int:
    """How many sockets this process has open."""
    return sum(_is_socket(link) for link in Path("/proc/self/fd").iterdir())


def _is_socket(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith("socket:")
    except OSError:
        return False  # closed in the meantime


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what happens in another thread, or in the kernel; the guard ends it."""
    async with asyncio.timeout(GUARD_S):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


@asynccontextmanager
async def nothing_left(upstream: HostileUpstream, model: ChatModel | Router) -> AsyncGenerator[None, None]:
    """Checks that the block leaves no request, task or socket; closes what the block used."""
    sockets, tasks = num_sockets(), asyncio.all_tasks()
    yield
    await until(lambda: upstream.num_busy == 0)  # given up at once, not when the model is closed
    await until(lambda: asyncio.all_tasks() <= tasks)
    await model.aclose()
    await until(lambda: num_sockets() <= sockets)
    await until(lambda: asyncio.all_tasks() <= tasks)


def hostile(upstream: HostileUpstream, fault: str, *, read_timeout_s: float | None = None) -> OpenAIWireModel:
    """A near model at a server with this fault; it waits long for all that time need not end."""
    return OpenAIWireModel(
        name=fault,
        url=upstream.url(fault),
        model="m",
        placement="near",
        price=FREE,
        read_timeout_s=read_timeout_s or SLOW.get(fault, GUARD_S),
    )


async def told(model: ChatModel, query: Query, door: str) -> Answer:
    """The answer by either door; a stream's must be what its pieces say."""
    if door == "json":
        return await model.complete(query)
    text = ""
    async with aclosing(model.stream(query)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
            if isinstance(event, StreamEnd):
                assert event.answer.text == text
                return event.answer
    raise AssertionError("the stream ended without its end")


def error_of(fault: str, door: str) -> type[UpstreamError] | None:
    """What the fault becomes by this door: a body may be long where a line may not."""
    return None if (fault, door) == ("huge_line", "json") else ERRORS[fault]


# --- a model alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["json", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_a_clear_error(upstream: HostileUpstream, fault: str, door: str) -> None:
    """Of the right kind, with the model's name and whether it may have cost; or the answer arrives all the same."""
    model: ChatModel = hostile(upstream, fault)
    if fault == "byte_a_second":  # never silent for long, so only the deadline ends it
        model = Deadline(hostile(upstream, fault, read_timeout_s=GUARD_S), 0.3)
    expected = error_of(fault, door)

    async with nothing_left(upstream, model), asyncio.timeout(GUARD_S):
        if expected is None:
            answer = await told(model, Query("Count."), door)
            size = len("".join(WORDS)) + (HUGE - len("three") if fault == "huge_line" else 0)
            assert len(answer.text) == size
            assert answer.usage is not None
            return
        with pytest.raises(UpstreamError) as caught:
            await told(model, Query("Count."), door)

    exc = caught.value
    assert type(exc) is expected
    assert exc.model == fault
    assert exc.may_have_cost is (fault not in FREE_OF_CHARGE)
    assert exc.retry_after_s == (7 if fault == "rate_limited_with_retry_after" else None)
    assert fault in str(exc)
    assert "\n" not in str(exc)


@pytest.mark.parametrize("door", ["json", "stream"])
@pytest.mark.parametrize("fault", ["hang_before_headers", "hang_midway", "byte_a_second"])
async def test_a_caller_that_gives_up_takes_the_connection_along(
    upstream: HostileUpstream, fault: str, door: str
) -> None:
    """Cancelling closes the socket at once, wherever the upstream stands."""
    model = hostile(upstream, fault, read_timeout_s=GUARD_S)

    async with nothing_left(upstream, model):
        call = asyncio.create_task(told(model, Query("Count."), door))
        await until(lambda: upstream.num_busy == 1)
        await asyncio.sleep(0.05)  # into the body, where there is one
        call.cancel()
        await asyncio.wait([call])

    assert call.cancelled()


async def test_a_server_that_never_reads_holds_nobody() -> None:
    """A prompt that the kernel cannot buffer ends with its caller, and the socket is not left to be flushed."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts in the kernel alone
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        model = OpenAIWireModel(name="mute", url=url, model="m", placement="near", read_timeout_s=GUARD_S)
        sockets, tasks = num_sockets(), asyncio.all_tasks()
        for door in ("json", "stream"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await told(model, Query("word " * 4_000_000), door)

        await until(lambda: num_sockets() <= sockets)
        await until(lambda: asyncio.all_tasks() <= tasks)
        await model.aclose()


@pytest.mark.soak
async def test_a_large_request_that_nobody_takes_ends_by_itself() -> None:
    """The slowest upload that is allowed ends it, for aiohttp counts no silence before the whole request is sent."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        model = OpenAIWireModel(name="mute", url=url, model="m", placement="near", read_timeout_s=0.1)
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(UpstreamTimeout, match="fell silent before its answer"):
                await model.complete(Query("x" * 3_000_000))
        await model.aclose()


# --- a cascade -------------------------------------------------------------------------------------------------------

DOORS = ("json", "stream, whole answers", "stream, prefixes")
FAR_ANSWER = "The far model counts to four."


class Cascades:
    """A router with two cascades for each fault: the hostile model before a far one, and the hostile model alone."""

    def __init__(self, upstream: HostileUpstream, folder: Path) -> None:
        self.store = Store(folder / "decisions.db", [DECISIONS])
        self.log = SqliteDecisionLog(self.store)
        far = ScriptedModel([FAR_ANSWER], card=ModelCard("far", "far", price=FREE))
        models = {fault: hostile(upstream, fault) for fault in FAULTS}
        cascades = {}
        for fault, model in models.items():
            near = Tier(model, scorer=MeanProbability(), threshold=0.5, deadline_s=2 * SLOW.get(fault, GUARD_S))
            for commit, door in (("answer", DOORS[1]), ("prefix", DOORS[2])):
                both = (near, Tier(far))
                cascades[f"{fault}, {door}"] = Cascade(both, name=f"{fault}, {door}", commit=commit, prefix_tokens=1)
                name = f"{fault}, {door}, alone"
                cascades[name] = Cascade((near,), name=name, commit=commit, prefix_tokens=1)
        self.router = Router(cascades, {**models, "far": far}, log=self.log)

    async def aclose(self) -> None:
        await self.router.aclose()

    async def ask(self, fault: str, door: str, *, is_alone: bool, session: str | None = None) -> Answer:
        """The answer that a cascade gives by this door; a stream's must be what its pieces say."""
        commit_door = DOORS[1] if door == "json" else door
        name = f"{fault}, {commit_door}" + (", alone" if is_alone else "")
        sampling = SamplingOptions(max_tokens=50)
        query = Query("Count.", model=name, sampling=sampling, deadline_s=GUARD_S, session=session)
        if door == "json":
            return await self.router.answer(query)
        text = ""
        async with aclosing(self.router.stream(query)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    text += event.text
                if isinstance(event, StreamEnd):
                    assert event.answer.text == text
                    return event.answer
        raise AssertionError("the stream ended without its end")


@pytest.fixture
async def cascades(upstream: HostileUpstream, tmp_path: Path) -> AsyncGenerator[Cascades, None]:
    """A router and its log, checked for leaks and for lost records."""
    cascades = Cascades(upstream, tmp_path)
    yield cascades
    cascades.store.close()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_the_next_tier_answers(upstream: HostileUpstream, cascades: Cascades, fault: str, door: str) -> None:
    """Whatever befell the near model, the asker gets an answer, and one record says how."""
    async with nothing_left(upstream, cascades.router), asyncio.timeout(GUARD_S):
        answer = await cascades.ask(fault, door, is_alone=False)

    await cascades.log.flush()
    (decision,) = await cascades.log.select(limit=10)
    assert decision.id == answer.decision_id
    assert decision.status == "answered"
    is_well = error_of(fault, "stream" if door == DOORS[2] else "json") is None  # judged whole, it is asked for whole
    assert (answer.model == "far") is not is_well
    assert answer.text.startswith(WORDS[0]) or answer.text == FAR_ANSWER
    assert [step.verdict for step in decision.steps] == (["accepted"] if is_well else ["failed", "accepted"])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_without_another_tier_the_error_is_clear(
    upstream: HostileUpstream, cascades: Cascades, fault: str, door: str
) -> None:
    """It names the model and the record."""
    is_well = error_of(fault, "json" if door == "json" else "stream") is None

    async with nothing_left(upstream, cascades.router), asyncio.timeout(GUARD_S):
        if is_well:
            decision_id = (await cascades.ask(fault, door, is_alone=True)).decision_id
        else:
            with pytest.raises(UpstreamError) as caught:
                await cascades.ask(fault, door, is_alone=True)
            assert caught.value.model == fault
            decision_id = caught.value.decision_id

    await cascades.log.flush()
    (decision,) = await cascades.log.select(limit=10)
    assert decision.id == decision_id
    assert decision.status == ("answered" if is_well else "failed")


# --- many ------------------------------------------------------------------------------------------------------------


async def test_a_hundred_requests_with_random_faults(upstream: HostileUpstream, cascades: Cascades) -> None:
    """None lost, none hung, one record each."""
    await storm(upstream, cascades, num_requests=100)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_thousand_requests_with_random_faults(
    upstream: HostileUpstream, cascades: Cascades, record_property: Callable[[str, object], None]
) -> None:
    """None lost, none hung, one record each."""
    ends = await storm(upstream, cascades, num_requests=1000)
    for end, count in sorted(ends.items()):
        record_property(end, count)


async def storm(upstream: HostileUpstream, cascades: Cascades, *, num_requests: int) -> Counter[str]:
    """How requests with random faults by random doors end, 32 at a time; the askers of a tenth give up early."""
    chance = random.Random(20261121)
    places = asyncio.Semaphore(32)
    ends: dict[str, str] = {}

    async def ask(session: str, fault: str, door: str, is_alone: bool, patience_s: float | None) -> None:
        async with places:
            try:
                async with asyncio.timeout(patience_s):
                    await cascades.ask(fault, door, is_alone=is_alone, session=session)
            except UpstreamError:
                ends[session] = "failed"
            except TimeoutError:
                ends[session] = "cancelled"
            else:
                ends[session] = "answered"

    async with (
        nothing_left(upstream, cascades.router),
        asyncio.timeout(GUARD_S + num_requests),
        asyncio.TaskGroup() as group,
    ):
        for i in range(num_requests):
            patience_s = chance.choice([0.0, 0.01, 0.1]) if chance.random() < 0.1 else None
            fault, door, is_alone = chance.choice(FAULTS), chance.choice(DOORS), chance.random() < 0.3
            group.create_task(ask(str(i), fault, door, is_alone, patience_s))

    await cascades.log.flush()
    decisions = await cascades.log.select(limit=2 * num_requests)
    statuses = {decision.request["session"]: decision.status for decision in decisions}
    assert len(decisions) == len(statuses) == len(ends) == num_requests
    for session, end in ends.items():
        assert end in (statuses[session], "cancelled")  # who gives up at the last moment leaves an answered record
    assert set(ends.values()) == {"answered", "failed", "cancelled"}
    return Counter(ends.values())
