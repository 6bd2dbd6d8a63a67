"""nearfar as an MCP server, asked by the SDK's own client: in process, over HTTP and over pipes."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("mcp", reason="needs nearfar[agents]")

from mcp import Client, StdioServerParameters
from support.gateway import MemoryLog, router_of

from nearfar.agents.mcp_server import Doors, make_server, serve_http
from nearfar.errors import RequestError, UpstreamUnavailable
from nearfar.testing import ScriptedModel

CONFIG = """
[models.near]
kind = "replay"
table = "table.jsonl"
model = "small"
placement = "near"
[data]
dir = "data"
"""
ROW = {"query": "capital of France?", "model": "small", "response": "Paris", "correct": 1}


def server_of(*script, collections=("handbook",)):
    """A server whose router asks a scripted model, and whose search tells what it was asked."""
    log = MemoryLog()
    router = router_of(ScriptedModel(script), log=log)

    async def search(name, query, num_passages):
        if name not in collections:
            raise RequestError(f"No collection {name!r}.\nMake it.", param="docs")
        return [{"text": f"{query} in {name}", "place": "a.md:1"}][:num_passages]

    async def explain(decision_id):
        return next(({"id": each.id, "door": each.door} for each in log.decisions if each.id == decision_id), None)

    return make_server(Doors(router, lambda: list(collections), search, explain))


async def test_questions_are_answered_and_explained():
    """The answer comes with its decision, and the decision with the door that it came through."""
    async with Client(server_of("Paris")) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        asked = await client.call_tool("ask", {"question": "Capital of France?", "system": "Be short."})
        decision = asked.structured_content["decision_id"]
        explained = await client.call_tool("explain", {"decision_id": decision})

    assert set(tools) == {"ask", "search", "explain"}
    assert tools["search"].annotations.read_only_hint
    assert asked.structured_content["answer"] == "Paris"
    assert asked.structured_content["status"] == "answered"
    assert json.loads(explained.content[0].text) == {"id": decision, "door": "mcp"}


async def test_what_goes_wrong_is_told_in_one_line():
    """A failing model, an unknown model, collection or decision: each an error that the client's model can read."""
    async with Client(server_of(UpstreamUnavailable("it is\ndown", model="scripted"))) as client:
        ends = [
            await client.call_tool("ask", {"question": "hello"}),
            await client.call_tool("ask", {"question": "hello", "model": "nobody"}),
            await client.call_tool("search", {"query": "x", "collection": "other"}),
            await client.call_tool("explain", {"decision_id": "nothing"}),
            await client.call_tool("ask", {"question": ""}),
        ]

    assert [each.is_error for each in ends] == [True] * 5
    told = [each.content[0].text for each in ends]
    assert "it is down" in told[0]
    assert "nobody" in told[1]
    assert "No collection 'other'. Make it." in told[2]
    assert "'nothing'" in told[3]


async def test_the_only_collection_need_not_be_named():
    """With one collection it is searched; with several the client is told their names."""
    async with Client(server_of("x")) as client:
        one = await client.call_tool("search", {"query": "leave", "num_passages": 1})
    async with Client(server_of("x", collections=("a", "b"))) as client:
        several = await client.call_tool("search", {"query": "leave"})

    assert one.structured_content["passages"][0]["text"] == "leave in handbook"
    assert several.is_error
    assert "'a', 'b'" in several.content[0].text


async def test_address_of_others_is_refused():
    """A server without keys is served to this machine alone."""
    with pytest.raises(ValueError, match="no loopback"):
        await serve_http(server_of("x"), host="0.0.0.0", port=0, announce=print)


@pytest.fixture
def folder(tmp_path):
    """A folder with a config whose model replays one answer."""
    (tmp_path / "nearfar.toml").write_text(CONFIG)
    (tmp_path / "table.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path


async def test_command_serves_over_pipes(folder):
    """What an editor starts: `nearfar mcp`, spoken to by the SDK's client."""
    server = StdioServerParameters(command=sys.executable, args=["-m", "nearfar.cli", "mcp"], cwd=folder)

    async with Client(server) as client:
        asked = await client.call_tool("ask", {"question": "capital of France?"})
        explained = await client.call_tool("explain", {"decision_id": asked.structured_content["decision_id"]})

    assert asked.structured_content["answer"] == "Paris"
    assert json.loads(explained.content[0].text)["door"] == "mcp"


async def test_command_serves_over_http(folder):
    """`nearfar mcp --port 0` says its URL, and serves it until it is interrupted."""
    command = [sys.executable, "-m", "nearfar.cli", "mcp", "--port", "0"]
    environment = {**os.environ, "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, stderr=asyncio.subprocess.PIPE
    )
    url = (await process.stderr.readline()).decode().split()[-1]
    async with Client(url) as client:
        asked = await client.call_tool("ask", {"question": "capital of France?"})
    process.terminate()
    await process.communicate()

    assert asked.structured_content["answer"] == "Paris"


def test_command_refuses_to_serve_others(folder):
    """An address that others reach is refused with the way out."""
    command = [sys.executable, "-m", "nearfar.cli", "mcp", "--port", "0", "--host", "0.0.0.0"]

    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "no keys" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
