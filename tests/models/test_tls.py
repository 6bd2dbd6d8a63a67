"""Models behind TLS: a private authority is trusted by name, anything else is refused before a byte of the query."""

import asyncio
import json
import os
import ssl
import sys

import pytest
import trustme

KEY = "sk-secret-0123456789abcdef"
REPLIES = {
    "openai": {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}]
    },
    "anthropic": {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "Paris"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 1},
    },
}


@pytest.fixture(scope="module")
def authority():
    """Nobody trusts it who is not told to."""
    return trustme.CA()


async def ask(kind, certificate, authority, tmp_path, *, is_trusted):
    """What `nearfar ask` says of a model behind a server with this certificate, and how much the server has read."""
    read = []

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:")
        read.append(head + await reader.readexactly(length))
        body = json.dumps(REPLIES[kind]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    config = tmp_path / "nearfar.toml"
    config.write_text(
        f"""
        [models.m]
        kind = "{kind}"
        url = "https://localhost:{port}/v1"
        model = "m"
        max_output_tokens = 9
        api_key_env = "MODEL_KEY"
        attempts = 1
        [cascades.auto]
        tiers = ["m"]
        [data]
        dir = "{tmp_path / "data"}"
        """
    )
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    environ = {**os.environ, "MODEL_KEY": KEY} | ({"SSL_CERT_FILE": str(bundle)} if is_trusted else {})
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nearfar.cli", "ask", "Capital of France?", "--config", str(config),
        env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asking.communicate()
    server.close()
    return asking.returncode, out.decode(), err.decode(), b"".join(read)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_private_authority_is_trusted_by_its_file(kind, authority, tmp_path):
    code, out, err, read = await ask(kind, authority.issue_cert("localhost"), authority, tmp_path, is_trusted=True)

    assert (code, out.strip().splitlines()[0]) == (0, "Paris"), err
    assert KEY.encode() in read


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("name", ["localhost", "other.example"])
async def test_nothing_is_said_to_a_server_that_cannot_prove_its_name(kind, name, authority, tmp_path):
    """An unknown authority, and a known one's certificate for another host."""
    is_trusted = name != "localhost"

    code, out, err, read = await ask(kind, authority.issue_cert(name), authority, tmp_path, is_trusted=is_trusted)

    assert (code, out, read) == (1, "", b"")
    assert "SSL_CERT_FILE" in err
    assert KEY not in err
