"""Events that come at once leave together, and none waits for the next."""

import asyncio

import pytest

from nearfar.serving.gateway.streams import GONE, CancelWhenGone, EventStream, FlushedBeforeWaiting


class Wire:
    """What an ASGI server was sent, body by body."""

    def __init__(self):
        self.bodies = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.has_body = asyncio.Event()

    async def send(self, message):
        await self.is_open.wait()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.has_body.set()


async def relay(events, wire):
    stream = EventStream(wire.send, heartbeat_s=60)
    await stream.start([])
    try:
        async for event in FlushedBeforeWaiting(events, stream):
            stream.put(event)
        await stream.finish()
    finally:
        stream.close()


async def test_what_comes_at_once_leaves_together():
    """Two bursts are two sends, however many events each has."""

    async def bursts():
        for _ in range(2):
            for piece in (b"a", b"b", b"c"):
                yield piece
            await asyncio.sleep(0)

    wire = Wire()
    await relay(bursts(), wire)

    assert wire.bodies == [b"abc", b"abc", b""]


async def test_nothing_waits_for_what_comes_later():
    """An event is out before the next one is waited for."""
    wire = Wire()
    later = asyncio.Event()

    async def events():
        yield b"now"
        await later.wait()
        yield b"later"

    task = asyncio.create_task(relay(events(), wire))
    await wire.has_body.wait()
    before = list(wire.bodies)
    later.set()
    await task

    assert before == [b"now"]
    assert wire.bodies == [b"now", b"later"]


async def test_an_error_reaches_the_reader_after_what_came_before():
    """What was gathered is kept, and the generator's error is the reader's."""
    wire = Wire()

    async def events():
        yield b"one"
        await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await relay(events(), wire)

    assert wire.bodies == [b"one"]


@pytest.mark.parametrize("is_stuck", [False, True])
async def test_cancelling_the_reader_cancels_the_generator(is_stuck):
    """Whether it waits for the next event or for the client, the generator is told, and may clean up."""
    wire = Wire()
    ended = []

    async def events():
        try:
            yield b"one"
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append("cancelled")
            raise

    if is_stuck:
        wire.is_open.clear()
    stream = EventStream(wire.send, heartbeat_s=60)

    async def read():
        async for event in FlushedBeforeWaiting(source, stream):
            stream.put(event)

    source = events()
    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stream.close()

    assert ended == ["cancelled"]
    with pytest.raises(StopAsyncIteration):
        await anext(source)


async def test_a_generator_may_finish_in_spite_of_a_cancellation():
    """One that turns a cancellation into an event of its own has that event delivered."""
    wire = Wire()

    async def events():
        yield b"one"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            yield b"timed out"

    task = asyncio.create_task(relay(events(), wire))
    await wire.has_body.wait()
    task.cancel()
    await task

    assert b"".join(wire.bodies) == b"onetimed out"


@pytest.mark.parametrize("tells", [False, True], ids=["asked", "told"])
async def test_a_task_ends_quietly_when_its_client_goes(tells):
    """Whether the server tells by itself, as ours does, or has to be asked for events, as any other."""
    gone = asyncio.Event()
    listeners = set()
    scope = {"extensions": {GONE: listeners}} if tells else {}
    begun = asyncio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def handle():
        with CancelWhenGone(scope, receive) as watch:
            begun.set()
            await asyncio.sleep(60)
        return watch.is_gone

    task = asyncio.create_task(handle())
    await begun.wait()
    gone.set()
    for call in tuple(listeners):
        call()

    assert await task
    assert not listeners


async def test_a_cancellation_that_is_not_the_clients_is_passed_on():
    """A server that shuts down cancels its tasks; that is no client's doing."""

    async def handle():
        with CancelWhenGone({"extensions": {GONE: set()}}, asyncio.Event().wait):
            await asyncio.sleep(60)

    task = asyncio.create_task(handle())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
