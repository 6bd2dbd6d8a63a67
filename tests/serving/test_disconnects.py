"""A client that goes away frees its upstream, at real sockets on both sides."""

import asyncio
import json

import pytest
from support.gateway import MemoryLog, gateway, request_bytes, router_of
from support.openai_server import OpenAIServer

from nearfar.models.openai_wire import OpenAIWireModel
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, StreamEnd, TextDelta

CHAT = "/v1/chat/completions"


async def until(condition):
    """Waits until it holds; the test's own timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # the condition is another thread's, or another process's
        await asyncio.sleep(0.01)


def body_of(path, *, stream):
    asked = {"input": "Hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "Hi"}]}
    return json.dumps({"model": "auto", "stream": stream, **asked}).encode()


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_upstream_call(path, stream):
    """The upstream sees its connection close, the decision says cancelled, and nothing stays in flight."""
    log = MemoryLog()
    upstream = OpenAIServer([Answer("word " * 10_000)], delay_s=0.05 if stream else 60)
    tasks = len(asyncio.all_tasks())

    with upstream:
        model = OpenAIWireModel(name="far", url=upstream.base_url, model="m", placement="far")
        async with gateway(router_of(model, log=log)) as server:
            host, port = server.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request_bytes(path, body_of(path, stream=stream)))
            if stream:
                await reader.readuntil(b"word")
            await until(lambda: upstream.num_open == 1)
            writer.transport.abort()
            await until(lambda: upstream.num_open == 0)
            await until(lambda: log.decisions)
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                metrics = await reader.read()
                writer.close()

    assert [decision.status for decision in log.decisions] == ["cancelled"]
    assert b"nearfar_requests_in_flight 0.0" in metrics
    assert b'status="cancelled"' in metrics
    assert len(asyncio.all_tasks()) == tasks


async def test_a_client_that_leaves_before_the_first_token_cancels_too():
    """Nothing was sent yet, and nobody is left to send it to."""
    log = MemoryLog()

    async with gateway(router_of(ScriptedModel(["Hi"], delay_s=600), log=log)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_bytes(CHAT, body_of(CHAT, stream=True)))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await until(lambda: log.decisions)

    assert log.decisions[0].status == "cancelled"


class Endless(ScriptedModel):
    """Writes for ever, as fast as it is read."""

    written = 0

    async def stream(self, query):
        while True:
            self.written += 1
            yield TextDelta("x" * 10_000)
            await asyncio.sleep(0)
        yield StreamEnd(Answer())


async def test_a_client_that_does_not_read_holds_the_model_back():
    """What is not read is not produced: memory stays bounded, and the deadline ends it."""
    log = MemoryLog()
    model = Endless(["unused"])
    body = json.dumps({**json.loads(body_of(CHAT, stream=True)), "nearfar": {"deadline_s": 1}}).encode()

    async with gateway(router_of(model, log=log)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(request_bytes(CHAT, body))
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()
        await until(lambda: log.decisions)
        writer.transport.abort()

    assert model.written < 3_000  # 30 MB: what two socket buffers hold, and not what a second can write
    assert len(log.decisions) == 1
