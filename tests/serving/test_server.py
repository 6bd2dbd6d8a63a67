"""The gateway as a process: it says where it is, finishes what it began, and leaves nothing unwritten."""

import asyncio
import json
import os
import signal
import socket
import sys

try:
    import resource
except ImportError:  # Windows
    resource = None

import httpx2
import pytest
from support.gateway import gateway, request_bytes, router_of, settings_of, talk

from nearfar.errors import ConfigError
from nearfar.serving.gateway.server import _bind, serving
from nearfar.testing import ScriptedModel

CHAT = "/v1/chat/completions"
HI = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}).encode()

#: A gateway over a model that takes a second, and a decision log whose file is the first argument.
PROGRAM = """
import sys
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
from nearfar.router.router import Router
from nearfar.serving.gateway.server import serve
from nearfar.serving.gateway.settings import GatewaySettings
from nearfar.store import Store
from nearfar.testing import ScriptedModel

model = ScriptedModel(["Hello"], delay_s=float(sys.argv[2]))
store = Store(sys.argv[1], [DECISIONS])
router = Router({"auto": Cascade([Tier(model)], name="auto")}, {}, log=SqliteDecisionLog(store))
settings = GatewaySettings(port=0, shutdown_grace_s=float(sys.argv[3]))
serve(router, settings=settings, announce=lambda line: print(line, flush=True))
store.close()
print("closed", flush=True)
"""


async def start(tmp_path, *, delay_s, grace_s, most_files=None):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        str(tmp_path / "log.sqlite"),
        str(delay_s),
        str(grace_s),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=most_files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most_files // 4, most_files))),
    )
    line = (await process.stdout.readline()).decode()
    return process, line.split()[-1].removesuffix("/v1")


async def statuses(tmp_path):
    from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog
    from nearfar.store import Store

    store = Store(tmp_path / "log.sqlite", [DECISIONS])
    try:
        return [decision.status for decision in await SqliteDecisionLog(store).select()]
    finally:
        store.close()


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopped_gateway_finishes_what_it_began(tmp_path, number):
    """Told to stop, it answers the request in flight, takes no other, writes its log and ends well."""
    process, url = await start(tmp_path, delay_s=1, grace_s=30)
    asking = asyncio.create_task(talk(url, request_bytes(CHAT, HI)))
    await asyncio.sleep(0.3)

    process.send_signal(number)
    reply = await asking
    rest = await process.stdout.read()

    assert reply.startswith(b"HTTP/1.1 200")
    assert b"Hello" in reply
    assert await process.wait() == 0
    assert rest == b"closed\n"
    assert await statuses(tmp_path) == ["answered"]
    with pytest.raises(ConnectionRefusedError):
        await talk(url, request_bytes(CHAT, HI))


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("signals", [1, 2], ids=["grace is over", "asked twice"])
async def test_a_stop_does_not_wait_for_ever(tmp_path, signals, stream):
    """After its grace, or when asked again, it cancels what is in flight; the log and the client are told so."""
    process, url = await start(tmp_path, delay_s=600, grace_s=1 if signals == 1 else 600)
    body = json.dumps({**json.loads(HI), "stream": stream}).encode()
    asking = asyncio.create_task(talk(url, request_bytes(CHAT, body)))
    await asyncio.sleep(0.3)

    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.3)
    reply = await asking

    assert b"200 OK" not in reply
    assert signals == 2 or (reply.startswith(b"HTTP/1.1 503") and b'"code":"stopping"' in reply)
    assert await process.wait() == 0
    assert await statuses(tmp_path) == ["cancelled"]


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
async def test_idle_connections_do_not_keep_others_out(tmp_path):
    """More of them than files may be open: those that want nothing for longest make room."""
    process, url = await start(tmp_path, delay_s=0, grace_s=1, most_files=256)
    host, port = url.removeprefix("http://").split(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(400)]

    reply = await asyncio.wait_for(talk(url, request_bytes(CHAT, HI)), 20)
    for _, writer in idle:
        writer.close()
    process.send_signal(signal.SIGTERM)

    assert reply.startswith(b"HTTP/1.1 200")
    assert await process.wait() == 0


async def test_a_port_that_is_taken_is_named():
    """The error says which, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"'127.0.0.1', port {port}.*--port"):
            async with serving(router_of(ScriptedModel(["Hi"])), settings=settings_of(port=port)):
                pass


@pytest.mark.parametrize("host", ["localhost", "::1"])
async def test_it_listens_where_it_is_told(host):
    """By name, and on IPv6; the address that it gives can be called."""
    try:
        async with (
            gateway(router_of(ScriptedModel(["Hi"])), host=host) as server,
            httpx2.AsyncClient(base_url=server.url, verify=False) as client,
        ):
            reply = await client.get("/health/live")
    except ConfigError as exc:
        pytest.skip(f"this machine has no {host}: {exc}")

    assert reply.json() == {"status": "ok"}


def test_the_listener_names_its_protocol():
    """Or asyncio leaves Nagle's algorithm on for what it accepts, and every reply waits 40 ms for its body."""
    listener = _bind(settings_of())
    try:
        protocol = listener.proto
    finally:
        listener.close()

    assert protocol == socket.IPPROTO_TCP
