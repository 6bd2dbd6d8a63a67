"""Tools of an MCP server, as a child process or behind a URL; whatever the server does is an observation."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx2
import jsonschema
import mcp_types
from anyio import BrokenResourceError, ClosedResourceError
from jsonschema.validators import validator_for
from mcp import Client
from mcp.client import IncomingMessage
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from nearfar.errors import ToolSourceError
from nearfar.types import ToolSpec

from .mcp_transports import MAX_MESSAGE_BYTES, HttpServer, StdioServer, Wire
from .types import Observation, ToolHints

__all__ = ["HttpServer", "McpSource", "McpTool", "StdioServer"]

_log = logging.getLogger(__name__)
# The SDK logs what hostile servers send, with tracebacks; it is told in observations instead.
logging.getLogger("mcp").addHandler(logging.NullHandler())

#: A server that lists more than this has no end, or none that a model could choose from.
_MAX_TOOLS: Final = 2_000
_MAX_PAGES: Final = 100

#: A result's text is cut here; what a model can read is less, and the toolbox's affair.
_MAX_TEXT: Final = 200_000
_MAX_DESCRIPTION: Final = 4_000
_MAX_SCHEMA_CHARACTERS: Final = 100_000

#: The names that every provider's wire takes (OpenAI's rule is the strictest).
_UNFIT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME: Final = 64

#: What the SDK raises where a server, or the way to it, fails.
_FAILURES: Final = (
    MCPError,
    ValidationError,  # an answer that the protocol does not know
    RuntimeError,  # a structured result that the tool's own output schema forbids
    ClosedResourceError,
    BrokenResourceError,
    httpx2.HTTPError,
    OSError,
    ValueError,
)

#: What the HTTP transport calls a session that the server has forgotten (JSON-RPC has no code of its own for it).
_FORGOTTEN: Final = "Session terminated"


@dataclass(frozen=True, slots=True)
class McpTool:
    """One tool of a server, as it was listed."""

    spec: ToolSpec
    hints: ToolHints
    server_name: str  # the tool's name at its server; spec.name has only letters that every model's wire takes
    fingerprint: str
    source: McpSource

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Runs it; see `Tool.call`."""
        started = time.perf_counter()
        seen = await self.source.call(self, arguments)
        return replace(seen, latency_s=time.perf_counter() - started)


class McpSource:
    """The tools of one server; it is started, or reached, at the first need.

    A server that died is started again once before the next call; if no call succeeds after that, it stays down.
    A tool that has changed since it was listed (another description, schema or annotation: what was shown to a person
    for approval is not what would run) is not called. Use it in one event loop, and close it there.

    Args:
        name: what errors and traces call it.
        server: how to reach it.
        connect_timeout_s: for the start and the handshake, and for listing.
        call_timeout_s: for one call.
        relist_s: how long a listing is believed; a server that announces a change is believed at once.
        max_message_bytes: a server that sends a larger message is cut off.
        prefix: put before the tools' names, where two servers have tools of the same name.
        trusts_hints: whether you vouch for what the server says of its tools.
    """

    def __init__(
        self,
        name: str,
        server: StdioServer | HttpServer,
        *,
        connect_timeout_s: float = 20.0,
        call_timeout_s: float = 60.0,
        relist_s: float = 30.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        prefix: str = "",
        trusts_hints: bool = False,
    ) -> None:
        self._prefix = prefix
        self._trusts_hints = trusts_hints
        self._name = name
        self._server = server
        self._connect_timeout_s = connect_timeout_s
        self._call_timeout_s = call_timeout_s
        self._relist_s = relist_s
        self._max_message_bytes = max_message_bytes
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()
        self._listing = asyncio.Lock()
        self._has_restart = True
        self._has_started = False
        self._fingerprints: dict[str, str] = {}  # by the server's name of the tool
        self._listed_at = float("-inf")
        self.left_out: Mapping[str, str] = {}  # tools that cannot be offered, and why

    @property
    def name(self) -> str:
        """What errors and traces call it."""
        return self._name

    async def tools(self) -> list[McpTool]:
        """What the server offers just now; what it offers and cannot be used is in `left_out`.

        Raises:
            ToolSourceError: it cannot be reached, or lists what cannot be understood.
        """
        async with self._listing:
            definitions = await self._definitions()
        tools: dict[str, McpTool] = {}
        left_out: dict[str, str] = {}
        for each in definitions:
            try:
                tool = self._checked(each)
            except ValueError as exc:
                left_out[each.name[:200]] = str(exc)
                continue
            if tool.spec.name in tools:
                left_out[each.name[:200]] = f"a second tool has the name {tool.spec.name!r}"
                continue
            tools[tool.spec.name] = tool
        for tool_name, why in left_out.items():
            _log.warning("MCP server %r: the tool %r is left out: %s", self._name, tool_name, why)
        self.left_out = left_out
        return list(tools.values())

    async def call(self, tool: McpTool, arguments: Mapping[str, Any]) -> Observation:
        """What became of the call."""
        try:
            connection = await self._connected()
            await self._relist_if_due()
        except ToolSourceError as exc:
            return Observation(str(exc), "unreachable")
        if (now := self._fingerprints.get(tool.server_name)) != tool.fingerprint:
            what = "no longer offers" if now is None else "has changed"
            return Observation(f"The server {self._name!r} {what} {tool.server_name!r}; nothing ran.", "error")
        try:
            async with asyncio.timeout(self._call_timeout_s):
                result = await connection.client.call_tool(tool.server_name, dict(arguments))
        except TimeoutError:
            return Observation(
                f"{tool.server_name!r} gave no result within {self._call_timeout_s:g} s; it may still have an effect.",
                "timeout",
            )
        except _FAILURES as exc:
            return await self._failed(connection, tool, exc)
        self._has_restart = True
        return _observation(result)

    async def aclose(self) -> None:
        """Ends the server's process, or closes the connection. Twice is fine."""
        async with self._opening:
            await self._drop()

    # --- the connection ----------------------------------------------------------------------------------------------

    async def _connected(self) -> _Connection:
        async with self._opening:
            if self._connection is not None and not self._connection.has_ended:
                return self._connection
            epitaph = self._connection.epitaph() if self._connection else ""
            await self._drop()
            if self._has_started and not self._has_restart:
                ended = f" ({epitaph})" if epitaph else ""
                raise self._error(f"went away again after it was started anew{ended}. Run it by hand to see why")
            self._has_restart = not self._has_started
            self._has_started = True
            self._listed_at = float("-inf")
            wire = Wire(self._server, max_message_bytes=self._max_message_bytes, read_timeout_s=self._call_timeout_s)
            connection = _Connection(wire, self._on_message)
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await connection.open()
            except FileNotFoundError as exc:
                raise self._error(
                    f"cannot be started: {exc.strerror}: {exc.filename!r}. Install it or correct its command"
                ) from exc
            except TimeoutError as exc:
                await connection.aclose()
                raise self._error(
                    f"did not greet within {self._connect_timeout_s:g} s. Check that it speaks MCP"
                ) from exc
            except _FAILURES as exc:
                await connection.aclose()
                why = connection.epitaph() or _line(exc)
                raise self._error(f"cannot be reached: {why}. Check its command or URL") from exc
            self._connection = connection
            return connection

    async def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.aclose()

    async def _on_message(self, message: IncomingMessage) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._listed_at = float("-inf")

    async def _failed(self, connection: _Connection, tool: McpTool, exc: Exception) -> Observation:
        """What the next role hears; a connection that ended is dropped, so that the next call opens one."""
        if isinstance(exc, MCPError) and exc.code == mcp_types.REQUEST_TIMEOUT:
            return Observation(f"{tool.server_name!r}: {_line(exc)}", "timeout")
        is_gone = isinstance(exc, ClosedResourceError | BrokenResourceError | httpx2.HTTPError | OSError) or (
            isinstance(exc, MCPError) and (exc.code == mcp_types.CONNECTION_CLOSED or exc.message == _FORGOTTEN)
        )
        if is_gone or connection.has_ended:
            connection.has_ended = True
            why = connection.epitaph() or _line(exc)
            async with self._opening:
                if self._connection is connection:
                    await self._drop()
            return Observation(
                f"The server {self._name!r} went away during {tool.server_name!r}: {why}. "
                "Whether the call had an effect is unknown.",
                "unreachable",
            )
        if isinstance(exc, ValidationError):
            return Observation(f"{tool.server_name!r} answered what MCP does not know: {_line(exc)}", "error")
        return Observation(f"{tool.server_name!r} failed: {_line(exc)}", "error")

    # --- the listing -------------------------------------------------------------------------------------------------

    async def _relist_if_due(self) -> None:
        async with self._listing:
            if time.monotonic() - self._listed_at > self._relist_s:
                await self._definitions()

    async def _definitions(self) -> list[mcp_types.Tool]:
        """Every page of the listing; sets the fingerprints that calls are held against."""
        connection = await self._connected()
        found: list[mcp_types.Tool] = []
        cursor: str | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                for _ in range(_MAX_PAGES):
                    page = await connection.client.list_tools(cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if cursor is None or len(found) > _MAX_TOOLS:
                        break
        except TimeoutError as exc:
            raise self._error(f"did not list its tools within {self._connect_timeout_s:g} s. Restart it") from exc
        except _FAILURES as exc:
            why = connection.epitaph() or _line(exc)
            raise self._error(f"lists what cannot be understood: {why}. Update it or take it out") from exc
        if cursor is not None:
            raise self._error(f"lists more than {_MAX_TOOLS} tools or {_MAX_PAGES} pages. Take it out, or split it")
        self._fingerprints = {each.name: _fingerprint(each) for each in found}
        self._listed_at = time.monotonic()
        return found

    def _checked(self, tool: mcp_types.Tool) -> McpTool:
        """The tool as ours.

        Raises:
            ValueError: why it cannot be offered.
        """
        fit = _UNFIT_IN_NAMES.sub("_", tool.name)
        if not fit.strip("_-"):
            raise ValueError("its name has no letter that a model's wire takes")
        schema = _checked_schema(tool.input_schema)
        said = tool.annotations or mcp_types.ToolAnnotations()
        hints = ToolHints(
            said.read_only_hint,
            said.destructive_hint,
            said.idempotent_hint,
            said.open_world_hint,
            is_trusted=self._trusts_hints,
        )
        spec = ToolSpec((self._prefix + fit)[:_MAX_NAME], (tool.description or "")[:_MAX_DESCRIPTION], schema)
        return McpTool(spec, hints, tool.name, _fingerprint(tool), self)

    def _error(self, what: str) -> ToolSourceError:
        return ToolSourceError(f"MCP server {self._name!r} {what}.", source=self._name)


class _Connection:
    """A client, held open by a task of its own: the SDK's contexts must be left by the task that entered them."""

    def __init__(self, wire: Wire, on_message: Any) -> None:
        self._wire = wire
        self._on_message = on_message
        self._closing = asyncio.Event()
        self._opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._holder: asyncio.Task[None] | None = None
        self._is_broken = False

    @property
    def client(self) -> Client:
        """The open client."""
        return self._opened.result()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come through it."""
        return self._is_broken or self._wire.has_ended or self._holder is None or self._holder.done()

    @has_ended.setter
    def has_ended(self, value: bool) -> None:
        self._is_broken = value

    def epitaph(self) -> str:
        """How the server ended, in words; "" where nothing is known."""
        return self._wire.epitaph()

    async def open(self) -> None:
        """Connects and shakes hands."""
        self._holder = asyncio.create_task(self._hold())
        await asyncio.shield(self._opened)

    async def aclose(self) -> None:
        """Disconnects; twice is fine."""
        self._closing.set()
        if self._holder is not None:
            if not self._opened.done():
                self._holder.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(self._holder, return_exceptions=True)
        if self._opened.done() and not self._opened.cancelled():
            self._opened.exception()  # it has been told, or nobody waits for it any more

    async def _hold(self) -> None:
        try:
            # The SDK's cache would hide that a server changed its tools.
            async with Client(self._wire.connect(), cache=None, message_handler=self._on_message) as client:
                self._opened.set_result(client)
                await self._closing.wait()
        except BaseException as exc:
            if self._opened.done():
                return  # calls under way are told by the SDK that the connection is closed
            leaf: BaseException = exc
            while isinstance(leaf, BaseExceptionGroup):
                leaf = leaf.exceptions[0]
            if isinstance(leaf, asyncio.CancelledError):
                self._opened.cancel()
                raise
            self._opened.set_exception(leaf)


# --- what a server says ----------------------------------------------------------------------------------------------


def _checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an arguments object.

    Raises:
        ValueError: why it is none.
    """
    schema = dict(schema)
    if schema.setdefault("type", "object") != "object":
        raise ValueError(f"its input schema is of type {schema['type']!r}, not of an object")
    try:
        if len(json.dumps(schema)) > _MAX_SCHEMA_CHARACTERS:
            raise ValueError(f"its input schema has more than {_MAX_SCHEMA_CHARACTERS} characters")
        validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as exc:
        raise ValueError(f"its input schema is invalid: {_line(exc)}") from exc
    except RecursionError as exc:
        raise ValueError("its input schema is nested too deep") from exc
    if elsewhere := _foreign_reference(schema):
        raise ValueError(f"its input schema refers elsewhere, to {elsewhere[:200]!r}")
    return schema


def _foreign_reference(schema: Any) -> str | None:
    """A `$ref` that leaves the schema; None: there is none. Nobody may make us fetch a URL."""
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            for key in ("$ref", "$dynamicRef"):
                if isinstance(target := each.get(key), str) and not target.startswith("#"):
                    return target
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return None


def _fingerprint(tool: mcp_types.Tool) -> str:
    shown = tool.model_dump_json(include={"name", "description", "input_schema", "annotations"})
    return hashlib.sha256(shown.encode(errors="surrogatepass")).hexdigest()


def _observation(result: mcp_types.CallToolResult) -> Observation:
    text = "\n".join(map(_text_of, result.content))
    structured = result.structured_content
    if not text and structured is not None:
        text = json.dumps(structured, ensure_ascii=False)
    is_truncated = len(text) > _MAX_TEXT
    return Observation(
        text[:_MAX_TEXT] or "(no result)",
        "error" if result.is_error else "result",
        structured=None if is_truncated else structured,
        is_truncated=is_truncated,
    )


def _text_of(content: mcp_types.ContentBlock) -> str:
    """The content as text; what is no text is named with its type and size."""
    match content:
        case mcp_types.TextContent():
            return content.text
        case mcp_types.EmbeddedResource(resource=mcp_types.TextResourceContents() as resource):
            return resource.text
        case mcp_types.EmbeddedResource(resource=mcp_types.BlobResourceContents() as resource):
            return f"[{resource.mime_type or 'binary'} of {_num_bytes(resource.blob)} bytes at {resource.uri}]"
        case mcp_types.ResourceLink():
            return f"[resource {content.name!r} at {content.uri}]"
        case mcp_types.ImageContent() | mcp_types.AudioContent():
            return f"[{content.mime_type} of {_num_bytes(content.data)} bytes]"
        case _:
            raise AssertionError(content)  # mypy does not see that a resource is text or a blob


def _num_bytes(base64_text: str) -> int:
    return len(base64_text) * 3 // 4 - base64_text[-2:].count("=")


def _line(exc: BaseException) -> str:
    """The exception in one line, bounded."""
    if isinstance(exc, ValidationError):
        first = exc.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]
    message = str(exc).strip().partition("\n")[0]
    return (message or type(exc).__name__)[:300]
