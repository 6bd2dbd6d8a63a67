"""What hostile or broken clients send: each gets an error or a closed connection, and the next client is served."""

import asyncio
import json
import socket

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gateway import gateway, gateway_thread, request_bytes, router_of, talk

from nearfar.testing import ScriptedModel

CHAT = "/v1/chat/completions"
HI = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}).encode()


async def is_alive(url):
    reply = await talk(url, request_bytes(CHAT, HI))
    return reply.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\x00" * 100, 400),
        (b"\xff\xfe\xfd", 400),
        (b'{"messages":', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"messages":[' + b'{"role":"user","content":"a"},' * 10_000 + b"1]}", 400),
        (HI, 200),
    ],
)
async def test_garbage_is_a_client_error(body, status):
    """Nothing that a body holds is a server's error, and the gateway goes on."""
    async with gateway(router_of(ScriptedModel(["Hi"]))) as server:
        reply = await talk(server.url, request_bytes(CHAT, body))
        alive = await is_alive(server.url)

    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert alive


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["messages", "model", "tools", "stop", "stream", "response_format", "tool_choice", "nearfar", "input", "n"]
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), JSON, max_size=4), max_size=3
)
BODIES = st.binary(max_size=200) | st.builds(
    lambda fields, messages: json.dumps({**fields, "messages": messages}).encode(),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=12), JSON, max_size=6),
    MESSAGES | JSON,
)


@pytest.fixture(scope="module")
def client():
    with gateway_thread(router_of(ScriptedModel(["Hi"]))) as url, httpx2.Client(base_url=url, verify=False) as found:
        yield found


@given(body=BODIES, path=st.sampled_from([CHAT, "/v1/responses", "/v1/route"]))
@settings(max_examples=300, deadline=None)
def test_no_body_is_a_fault_of_ours(client, body, path):
    """Whatever JSON or bytes come: an answer, or a client's error in OpenAI's shape; never a 500."""
    reply = client.post(path, content=body, headers={"content-type": "application/json"})

    assert reply.status_code in {200, 400, 402, 404}, reply.text
    if reply.status_code != 200:
        assert set(reply.json()["error"]) >= {"message", "type", "param", "code"}


async def test_a_body_that_says_it_is_huge_is_not_read():
    """The declared length is enough to refuse it."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % CHAT.encode()

    async with gateway(router_of(ScriptedModel(["Hi"])), receive_timeout_s=0.2) as server:
        reply = await talk(server.url, head + b"Content-Length: 99999999999\r\n\r\n{")
        alive = await is_alive(server.url)

    assert reply.startswith(b"HTTP/1.1 413")
    assert b'"code":"too_large"' in reply
    assert alive


async def test_a_body_that_hides_its_length_is_counted():
    """A chunked body is refused once it is over the limit, wherever its chunks end."""
    head = (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    ) % CHAT.encode()
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"

    async with gateway(router_of(ScriptedModel(["Hi"])), max_body_bytes=10_000, receive_timeout_s=0.2) as server:
        reply = await talk(server.url, head, *[chunk] * 5, pause_s=0.01)
        alive = await is_alive(server.url)

    assert reply.startswith(b"HTTP/1.1 413")
    assert alive


async def test_a_body_of_exactly_the_limit_is_read():
    """The limit is the most that is taken, not the least that is refused."""
    async with gateway(router_of(ScriptedModel(["Hi"])), max_body_bytes=len(HI)) as server:
        fits = await talk(server.url, request_bytes(CHAT, HI))
        too_long = await talk(server.url, request_bytes(CHAT, HI + b" "))

    assert fits.startswith(b"HTTP/1.1 200")
    assert too_long.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="nothing"),
        pytest.param([b"POST /v1/chat/completions HTTP/1.1\r\nHost: lo"], id="half a head"),
        pytest.param([request_bytes(CHAT, HI)[:-10]], id="half a body"),
    ],
)
async def test_whoever_never_finishes_is_shown_the_door(pieces):
    """A connection whose request does not arrive in time is closed with 408, and holds nothing."""
    async with gateway(router_of(ScriptedModel(["Hi"])), receive_timeout_s=0.2) as server:
        reply = await talk(server.url, *pieces)
        alive = await is_alive(server.url)

    assert reply.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"code":"request_timeout"' in reply
    assert alive


async def test_dripping_does_not_win_time():
    """A byte now and then does not begin the time anew (slow loris)."""
    drops = [request_bytes(CHAT, HI)[i : i + 1] for i in range(100)]

    async with gateway(router_of(ScriptedModel(["Hi"])), receive_timeout_s=0.3) as server:
        reply = await asyncio.wait_for(talk(server.url, *drops, pause_s=0.05), 30)

    assert reply == b"" or reply.startswith(b"HTTP/1.1 408")


async def test_a_reply_that_nobody_takes_is_let_go():
    """Else whoever reads nothing keeps megabytes of ours for as long as it likes."""
    body = json.dumps({"model": "auto", "input": "Hi", "instructions": "x" * 14_000_000}).encode()

    async with gateway(router_of(ScriptedModel(["Hi"])), receive_timeout_s=0.5) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            client.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(client, request_bytes("/v1/responses", body))
            async with asyncio.timeout(30):
                while server._server.server_state.connections:  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(0.05)
        alive = await is_alive(server.url)

    assert alive


async def test_a_slow_reader_gets_its_whole_reply():
    """As long as it takes some of it now and then."""
    text = "x" * 12_000_000

    async with gateway(router_of(ScriptedModel([text])), receive_timeout_s=1.0) as server:
        host, port = server.url.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        size = 0
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.connect((host, int(port)))
            client.setblocking(False)
            await loop.sock_sendall(client, request_bytes(CHAT, HI))
            begun = loop.time()
            while part := await loop.sock_recv(client, 1_000_000):
                size += len(part)
                await asyncio.sleep(0.01 if loop.time() - begun > 2.5 else 0.2)

    assert size > len(text)


async def test_an_error_repeats_little_of_what_was_sent():
    """A name of megabytes is not told back."""
    body = json.dumps({"model": "m" * 5_000_000, "messages": [{"role": "user", "content": "Hi"}]}).encode()

    async with gateway(router_of(ScriptedModel(["Hi"]))) as server:
        reply = await talk(server.url, request_bytes(CHAT, body))

    assert reply.startswith(b"HTTP/1.1 404")
    assert len(reply) < 10_000


async def test_an_endless_head_is_cut_off():
    """Headers are bounded in all, however they are split."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"

    async with gateway(router_of(ScriptedModel(["Hi"])), max_header_bytes=4096) as server:
        reply = await talk(server.url, head, *[b"X-Pad: %b\r\n" % (b"a" * 500)] * 20, pause_s=0.01)
        alive = await is_alive(server.url)

    assert reply == b"" or reply.startswith(b"HTTP/1.1 431")
    assert alive


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused(raw):
    """TLS, other versions, smuggled lengths, control characters: 4xx or a closed connection."""
    async with gateway(router_of(ScriptedModel(["Hi"])), receive_timeout_s=0.3) as server:
        reply = await talk(server.url, raw)
        alive = await is_alive(server.url)

    assert reply == b"" or reply.startswith(b"HTTP/1.1 4")
    assert alive


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
    ],
)
async def test_only_plain_json_is_taken(headers, status):
    """Other types and compressed bodies are refused by name."""
    async with (
        gateway(router_of(ScriptedModel(["Hi"]))) as server,
        httpx2.AsyncClient(base_url=server.url, verify=False) as client,
    ):
        reply = await client.post(CHAT, content=HI, headers=headers)

    assert reply.status_code == status


async def test_requests_in_one_packet_are_answered_in_order():
    """Pipelined requests each get their own reply."""
    first = request_bytes(CHAT, HI).replace(b"Connection: close\r\n", b"")

    async with gateway(router_of(ScriptedModel(["One", "Two"]))) as server:
        reply = await talk(server.url, first + request_bytes(CHAT, HI))

    assert reply.count(b"HTTP/1.1 200") == 2
    assert reply.index(b'"One"') < reply.index(b'"Two"')
