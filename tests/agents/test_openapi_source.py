"""Tools of OpenAPI documents: what is sent to a real server, and what is not sent anywhere."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("jsonschema", reason="needs nearfar[agents]")

import jsonschema
from aiohttp import web
from contracts.tool import ToolContract
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.agents.openapi_source import OpenApiSource
from nearfar.errors import ToolSourceError
from nearfar.models.web import WebClient, WebError, is_public

DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "Pets", "version": "1"},
    "servers": [{"url": "https://pets.example/v1"}],
    "security": [{"key": []}],
    "paths": {
        "/pets/{id}": {
            "parameters": [{"$ref": "#/components/parameters/Id"}],
            "get": {
                "operationId": "pets.get",
                "summary": "Gets a pet.",
                "parameters": [
                    {"name": "fields", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "tags", "in": "query", "explode": False, "schema": {"type": "array"}},
                    {"name": "filter", "in": "query", "style": "deepObject", "schema": {"type": "object"}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                    {"name": "id", "in": "query", "schema": {"type": "boolean"}},
                    {"name": "Authorization", "in": "header", "schema": {"type": "string"}},
                ],
            },
            "delete": {"description": "Takes a pet away.", "security": [{"token": []}, {"key": []}]},
        },
        "/pets": {
            "post": {
                "operationId": "add_pet",
                "security": [{"password": []}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                },
            }
        },
        "/forms": {
            "put": {
                "operationId": "form",
                "security": [],
                "requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}},
            }
        },
        "/echo": {
            "get": {
                "operationId": "echo",
                "security": [],
                "parameters": [{"name": "text", "in": "query", "required": True, "schema": {"type": "string"}}],
            }
        },
        "/fail": {"get": {"operationId": "fail", "security": []}},
        "/stuck": {"get": {"operationId": "stuck", "security": []}},
        "/away": {"get": {"operationId": "away", "security": []}},
        "/around": {"get": {"operationId": "around", "security": []}},
        "/image": {"get": {"operationId": "image", "security": []}},
        "/huge": {"get": {"operationId": "huge", "security": []}},
        "/tell": {"get": {"operationId": "tell"}},
    },
    "components": {
        "parameters": {"Id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}},
        "schemas": {
            "Pet": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parent": {"$ref": "#/components/schemas/Pet"}},
            }
        },
        "securitySchemes": {
            "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
            "token": {"type": "http", "scheme": "bearer"},
            "password": {"type": "http", "scheme": "basic"},
        },
    },
}
SECRETS = {"key": "k-12345678", "password": "ann:swordfish"}


def document(folder, **changes):
    """A file with the document, changed."""
    path = folder / "api.json"
    path.write_text(json.dumps({**DOCUMENT, **changes}))
    return path


class Server:
    """A server that keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[dict[str, object]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Notes the request and answers by its path."""
        body = await request.text()
        self.requests.append(
            {
                "line": f"{request.method} {request.raw_path}",
                "query": list(request.query.items()),
                "headers": dict(request.headers),
                "body": body,
            }
        )
        match request.path.removeprefix("/v1"):
            case "/echo":
                return web.Response(text=request.query["text"])
            case "/fail":
                return web.Response(status=500, text="broken on purpose")
            case "/stuck":
                await asyncio.sleep(600)
            case "/away":
                raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/elsewhere")
            case "/around":
                raise web.HTTPTemporaryRedirect("/v1/echo?text=here")
            case "/image":
                return web.Response(body=b"\x89PNG\0", content_type="image/png")
            case "/huge":
                return web.Response(text="x" * 5_000_000)
            case "/tell":
                return web.Response(text=f"your key is {request.headers['X-Key']}")
        return web.json_response({"ok": True})


@asynccontextmanager
async def served():
    """A real server on a free port."""
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def server():
    """A real server."""
    async with served() as server:
        yield server


@pytest.fixture
async def source(server, tmp_path):
    """The document's tools at the server."""
    source = OpenApiSource(
        "pets", document(tmp_path), base_url=f"{server.url}/v1", secrets=SECRETS, allows_private=True, timeout_s=5
    )
    yield source
    await source.aclose()


async def named(source, name):
    """The source's tool of this name."""
    return next(tool for tool in await source.tools() if tool.spec.name == name)


class TestOperation(ToolContract):
    """An operation keeps to the contract."""

    @pytest.fixture
    async def echo(self, source):
        return await named(source, "echo")

    @pytest.fixture
    async def failing(self, source):
        return await named(source, "fail")

    @pytest.fixture
    async def stuck(self, source):
        return await named(source, "stuck")


async def test_arguments_go_where_the_document_says(source, server):
    """Path, query in its styles, header: and the key beside them, which is no argument."""
    tool = await named(source, "pets_get")

    seen = await tool.call(
        {
            "id": "a/b ?c",
            "fields": ["x", "y z"],
            "tags": ["1", "2"],
            "filter": {"age": 3},
            "X-Trace": "t",
            "id_query": True,
        }
    )

    sent = server.requests[-1]
    assert seen.structured == {"ok": True}
    assert sent["line"].startswith("GET /v1/pets/a%2Fb%20%3Fc?")
    assert sent["query"] == [("fields", "x"), ("fields", "y z"), ("tags", "1,2"), ("filter[age]", "3"), ("id", "true")]
    assert (sent["headers"]["X-Trace"], sent["headers"]["X-Key"]) == ("t", "k-12345678")
    assert set(tool.spec.parameters["properties"]) == {"id", "fields", "tags", "filter", "X-Trace", "id_query"}
    assert "k-12345678" not in repr(tool)


async def test_bodies_are_json_or_forms(source, server):
    """The body is an argument of its own, encoded as the document says; basic credentials go with it."""
    add, form = await named(source, "add_pet"), await named(source, "form")

    await add.call({"body": {"name": "Rex", "parent": {"name": "Bär"}}})
    await form.call({"body": {"a": 1, "b": ["x", "y"]}})

    first, second = server.requests
    assert json.loads(first["body"]) == {"name": "Rex", "parent": {"name": "Bär"}}
    assert first["headers"]["Authorization"] == f"Basic {base64.b64encode(b'ann:swordfish').decode()}"
    assert second["body"] == "a=1&b=x&b=y"
    assert "Authorization" not in second["headers"]


async def test_recursive_schemas_stay_whole(source):
    """A schema that refers to itself is a schema on its own, and validates."""
    schema = (await named(source, "add_pet")).spec.parameters
    validator = jsonschema.Draft202012Validator(schema)

    assert validator.is_valid({"body": {"name": "Rex", "parent": {"name": "Ada"}}})
    assert not validator.is_valid({"body": {"name": "Rex", "parent": {}}})
    assert not validator.is_valid({})


async def test_hints_follow_the_method(source):
    """GET reads, DELETE destroys, POST promises nothing; none is trusted unless the owner says so."""
    tools = {tool.spec.name: tool.hints for tool in await source.tools()}

    assert (tools["pets_get"].read_only, tools["pets_get"].idempotent) == (True, True)
    assert (tools["delete_pets_id"].read_only, tools["delete_pets_id"].destructive) == (False, True)
    assert (tools["add_pet"].destructive, tools["add_pet"].idempotent) == (None, False)
    assert not any(hints.is_trusted for hints in tools.values())


async def test_operation_without_its_secret_is_left_out(tmp_path):
    """What cannot be called is not offered, and the missing secret is named."""
    source = OpenApiSource("pets", document(tmp_path), secrets={"token": "t0k3n"})

    names = {tool.spec.name for tool in await source.tools()}

    assert "delete_pets_id" in names
    assert "pets_get" not in names
    assert "'key'" in source.left_out["GET /pets/{id}"]
    await source.aclose()


async def test_secret_that_comes_back_is_struck_out(source):
    """A server that echoes its key does not tell it to the model."""
    seen = await (await named(source, "tell")).call({})

    assert seen.text == "your key is [secret]"


async def test_redirects_stay_with_the_server(source, server):
    """A redirect within the server is followed; one elsewhere is not, and is told."""
    around = await (await named(source, "around")).call({})
    away = await (await named(source, "away")).call({})

    assert around.text == "here"
    assert away.kind == "denied"
    assert "127.0.0.1:9" in away.text


@pytest.mark.parametrize("value", ["..", ".", ""])
async def test_path_arguments_do_not_climb(source, server, value):
    """A part of a path that leads elsewhere is refused before anything is sent."""
    seen = await (await named(source, "pets_get")).call({"id": value})

    assert seen.kind == "invalid"
    assert server.requests == []


async def test_header_arguments_do_not_break_lines(source, server):
    """No header is smuggled in."""
    seen = await (await named(source, "pets_get")).call({"id": "1", "X-Trace": "a\r\nX-Key: b"})

    assert seen.kind == "invalid"
    assert server.requests == []


async def test_binary_and_huge_answers_are_bounded(source):
    """A picture is named, and 5 MB are cut."""
    image = await (await named(source, "image")).call({})
    huge = await (await named(source, "huge")).call({})

    assert image.text == "[image/png of 5 bytes]"
    assert (len(huge.text), huge.is_truncated) == (200_000, True)


async def test_private_addresses_need_leave(server, tmp_path):
    """Without leave nothing is sent to this machine, by number or by name."""
    for host in ("127.0.0.1", "localhost"):
        port = server.url.rpartition(":")[2]
        source = OpenApiSource("pets", document(tmp_path), base_url=f"http://{host}:{port}/v1", secrets=SECRETS)
        seen = await (await named(source, "echo")).call({"text": "hi"})

        assert seen.kind == "denied"
        assert "no public address" in seen.text
        await source.aclose()
    assert server.requests == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses_that_are_public(address, public):
    """What looks like an address of the internet and is none is seen through."""
    assert is_public(address) is public


async def test_other_origins_are_never_asked(server):
    """The client of one origin sends nothing to another."""
    client = WebClient(server.url, allows_private=True)

    with pytest.raises(WebError, match="nothing was sent"):
        await client.send("GET", "http://127.0.0.1:9/")

    await client.aclose()


async def test_server_that_is_not_there_is_unreachable(tmp_path):
    """A refused connection and a silent server are told apart."""
    source = OpenApiSource("pets", document(tmp_path), base_url="http://127.0.0.1:9", allows_private=True)

    seen = await (await named(source, "echo")).call({"text": "hi"})

    assert seen.kind == "unreachable"
    await source.aclose()


async def test_slow_server_is_a_timeout(server, tmp_path):
    """What takes too long is ended."""
    source = OpenApiSource("pets", document(tmp_path), base_url=f"{server.url}/v1", allows_private=True, timeout_s=0.2)

    seen = await (await named(source, "stuck")).call({})

    assert seen.kind == "timeout"
    await source.aclose()


async def test_yaml_of_3_0_is_read(tmp_path):
    """YAML, nullable and exclusive limits of 3.0 become JSON Schema; the file's server is used."""
    (tmp_path / "api.yaml").write_text(
        """
openapi: 3.0.3
servers: [{url: "https://{region}.example/api/", variables: {region: {default: eu}}}]
paths:
  /rooms:
    get:
      operationId: find rooms
      parameters:
        - {name: size, in: query, schema: {type: integer, minimum: 0, exclusiveMinimum: true, nullable: true}}
        - {name: since, in: query, schema: {type: string, enum: [2024-01-01]}}
"""
    )
    source = OpenApiSource("rooms", tmp_path / "api.yaml")

    (tool,) = await source.tools()

    assert tool.spec.name == "find_rooms"
    assert tool.spec.parameters["properties"] == {
        "size": {"type": ["integer", "null"], "exclusiveMinimum": 0},
        "since": {"type": "string", "enum": ["2024-01-01"]},
    }
    await source.aclose()


async def test_document_behind_a_url_is_fetched(tmp_path):
    """Its relative server is taken from where it came."""

    async def describe(_: web.Request) -> web.Response:
        return web.json_response({**DOCUMENT, "servers": [{"url": "/v1"}]})

    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=request.query["text"])

    described = web.Application()
    described.router.add_get("/api/openapi.json", describe)
    described.router.add_get("/v1/echo", echo)
    runner = web.AppRunner(described)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/openapi.json"
    source = OpenApiSource("pets", url, allows_private=True)

    seen = await (await named(source, "echo")).call({"text": "hi"})
    with pytest.raises(ToolSourceError, match="Allow private addresses"):
        await OpenApiSource("pets", url).tools()

    assert seen.text == "hi"
    await source.aclose()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{not: [valid", "neither JSON nor YAML"),
        ("[]", "no OpenAPI"),
        ('{"swagger": "2.0"}', "'2.0'"),
        ('{"openapi": "3.1.0", "paths": {}}', "names no server"),
        ('{"openapi": "3.1.0", "servers": [{"url": "ftp://x"}]}', "names no server"),
        ("[" * 100_000, "nested too deep|neither JSON nor YAML"),
    ],
)
async def test_document_that_is_none_says_why(tmp_path, text, told):
    """Each is one line with the fix."""
    (tmp_path / "api").write_text(text)

    with pytest.raises(ToolSourceError, match=told) as caught:
        await OpenApiSource("odd", tmp_path / "api").tools()

    assert "\n" not in str(caught.value)


async def test_missing_document_says_where(tmp_path):
    """The path is in the message."""
    with pytest.raises(ToolSourceError, match="Check its path"):
        await OpenApiSource("odd", tmp_path / "nothing.json").tools()


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        ({"parameters": [{"name": "a", "in": "cookie", "required": True}]}, "'cookie'"),
        ({"requestBody": {"required": True, "content": {"multipart/form-data": {}}}}, "no type that is supported"),
        ({"parameters": [{"name": "a", "in": "query", "schema": {"type": "integr"}}]}, "invalid"),
        ({"parameters": [{"name": "a", "in": "query", "schema": {"$ref": "other.yaml#/A"}}]}, "another document"),
        ({"parameters": [{"name": "a", "in": "query", "schema": {"$ref": "#/components/no"}}]}, "not there"),
        ({"parameters": [{"$ref": "#/paths/~1x/get/parameters/0"}]}, "circle"),
        ({"security": [{"key": []}]}, "'key'"),
    ],
)
async def test_operation_that_cannot_be_offered_is_told(tmp_path, operation, why):
    """One operation that cannot be used does not take the others with it."""
    paths = {"/x": {"get": operation}, "/ok": {"get": {"operationId": "ok"}}}
    source = OpenApiSource("api", document(tmp_path, paths=paths, security=[]))

    tools = await source.tools()

    assert [tool.spec.name for tool in tools] == ["ok"]
    assert why in source.left_out["GET /x"]
    await source.aclose()


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "#/paths", "object", "path", "$ref"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$ref", "name", "in", "schema", "type", "properties", "required", "content", "get", "a"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def _places(value, path=()):
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        yield from _places(each, (*path, key))


_PLACES = [path for path in _places(DOCUMENT) if path]


@settings(max_examples=60)
@given(place=st.sampled_from(_PLACES), value=_json)
def test_malformed_documents_never_crash(place, value, tmp_path_factory):
    """Whatever stands at any place of the document: tools with valid schemas, or one line."""
    changed = json.loads(json.dumps(DOCUMENT))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(changed))
    source = OpenApiSource("fuzzed", path, secrets=SECRETS)

    async def load():
        try:
            return await source.tools()
        except ToolSourceError:
            return []
        finally:
            await source.aclose()

    for tool in asyncio.run(load()):
        jsonschema.Draft202012Validator.check_schema(tool.spec.parameters)
