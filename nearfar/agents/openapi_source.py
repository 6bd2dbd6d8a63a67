"""Tools of an OpenAPI document (3.0 or 3.1): each operation a tool, its server pinned, its secrets never shown."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote, urlencode, urljoin, urlsplit

from nearfar.errors import ToolSourceError
from nearfar.models.web import Reply, WebClient, WebError
from nearfar.types import ToolSpec

from .openapi_schema import Resolver, Unusable
from .types import Observation, ToolHints

_log = logging.getLogger(__name__)

_MAX_DOCUMENT_BYTES: Final = 8 * 2**20
_MAX_OPERATIONS: Final = 2_000
_MAX_DESCRIPTION: Final = 2_000
_MAX_TEXT: Final = 200_000
_MAX_NAME: Final = 64

_METHODS: Final = ("get", "put", "post", "delete", "head", "patch", "options")

#: Headers that the specification takes from elsewhere, and those that would change whom the request is for.
_OWN_HEADERS: Final = frozenset({"accept", "content-type", "authorization", "host", "content-length", "cookie"})

Place: TypeAlias = Literal["path", "query", "header"]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """Where an argument goes."""

    argument: str  # the tool's argument
    name: str  # its name at the server
    place: Place
    style: str
    explode: bool


@dataclass(frozen=True, slots=True)
class _Credential:
    """A secret, and where it goes."""

    place: Literal["header", "query"]
    name: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenApiTool:
    """One operation."""

    spec: ToolSpec
    hints: ToolHints
    method: str
    path: str
    parameters: tuple[_Parameter, ...]
    body_type: str | None  # the body's media type; None: the operation takes none
    credentials: tuple[_Credential, ...]
    source: OpenApiSource

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Sends the request; see `Tool.call`."""
        started = time.perf_counter()
        seen = await self.source.send(self, arguments)
        return replace(seen, latency_s=time.perf_counter() - started)


class OpenApiSource:
    """The operations of a document as tools; every request goes to the one server that the document, or you, name.

    Args:
        name: what errors and traces call it.
        document: a file or a URL; JSON, or YAML.
        base_url: where requests go; None: the document's first server.
        secrets: by the name of the document's security scheme: the key, the token, or "user:password" for basic.
        allows_private: whether addresses that are not public may be reached.
        timeout_s: for one request.
        prefix: put before the tools' names.
        trusts_hints: whether you vouch that GET reads only, PUT and DELETE are idempotent, and DELETE destroys.
    """

    def __init__(
        self,
        name: str,
        document: str | Path,
        *,
        base_url: str | None = None,
        secrets: Mapping[str, str] | None = None,
        allows_private: bool = False,
        timeout_s: float = 30.0,
        prefix: str = "",
        trusts_hints: bool = False,
    ) -> None:
        self._name = name
        self._document = document
        self._given_base = base_url
        self._secrets = dict(secrets or {})
        self._allows_private = allows_private
        self._timeout_s = timeout_s
        self._prefix = prefix
        self._trusts_hints = trusts_hints
        self._base = ""
        self._client: WebClient | None = None
        self.left_out: Mapping[str, str] = {}  # operations that cannot be offered, and why

    @property
    def name(self) -> str:
        """What errors and traces call it."""
        return self._name

    async def tools(self) -> list[OpenApiTool]:
        """The document's operations; what cannot be offered is in `left_out`.

        Raises:
            ToolSourceError: the document cannot be read, or is none.
        """
        document = await self._read()
        self._base = self._find_base(document)
        await self.aclose()
        self._client = WebClient(self._base, allows_private=self._allows_private, timeout_s=self._timeout_s)
        tools: dict[str, OpenApiTool] = {}
        left_out: dict[str, str] = {}
        resolver = Resolver(document, is_3_0=str(document["openapi"]).startswith("3.0"))
        for path, method, operation, shared in _operations(document, resolver):
            label = f"{method.upper()} {path}"[:200]
            try:
                tool = self._tool(document, resolver, path, method, operation, shared)
                if tool.spec.name in tools:
                    raise Unusable(f"a second operation has the name {tool.spec.name!r}")
            except Unusable as exc:
                left_out[label] = str(exc)
                _log.warning("OpenAPI document %r: %s is left out: %s", self._name, label, exc)
                continue
            tools[tool.spec.name] = tool
            if len(tools) > _MAX_OPERATIONS:
                raise self._error(f"has more than {_MAX_OPERATIONS} operations. Cut it down to those that you need")
        self.left_out = left_out
        return list(tools.values())

    async def send(self, tool: OpenApiTool, arguments: Mapping[str, Any]) -> Observation:
        """What became of the request."""
        if self._client is None:
            return Observation(f"{self._name!r} is closed; nothing was sent.", "unreachable")
        try:
            url, query, headers, body = _request(tool, self._base, arguments)
        except ValueError as exc:
            return Observation(f"{exc} Nothing was sent.", "invalid")
        for each in tool.credentials:
            if each.place == "query":
                query.append((each.name, each.value))
            else:
                headers[each.name] = each.value
        try:
            reply = await self._client.send(tool.method.upper(), url, query=query, headers=headers, body=body)
        except WebError as exc:
            kinds: dict[str, Literal["timeout", "unreachable", "denied"]] = {"timeout": "timeout", "refused": "denied"}
            return Observation(f"{exc}.", kinds.get(exc.kind, "unreachable"))
        return _observation(reply, [each.value for each in tool.credentials])

    async def aclose(self) -> None:
        """Closes the connections. Twice is fine."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    # --- the document ------------------------------------------------------------------------------------------------

    async def _read(self) -> dict[str, Any]:
        text = await self._text()
        try:
            document = json.loads(text)
        except ValueError:
            document = self._yaml(text)
        except RecursionError as exc:
            raise self._error("is nested too deep. Check that it is the right file") from exc
        if not isinstance(document, dict) or not str(document.get("openapi", "")).startswith(("3.0", "3.1")):
            found = document.get("openapi") or document.get("swagger") if isinstance(document, dict) else None
            raise self._error(f"is no OpenAPI 3.0 or 3.1 document (found version {found!r}). Convert it")
        return document

    async def _text(self) -> str:
        if not (isinstance(self._document, str) and self._document.startswith(("http://", "https://"))):
            try:
                data = await asyncio.to_thread(Path(self._document).read_bytes)
            except OSError as exc:
                raise self._error(f"cannot be read: {exc.strerror}: {str(self._document)!r}. Check its path") from exc
            if len(data) > _MAX_DOCUMENT_BYTES:
                raise self._error(f"has more than {_MAX_DOCUMENT_BYTES} bytes. Cut it down to what you need")
            return data.decode(errors="replace")
        client = WebClient(
            self._document,
            allows_private=self._allows_private,
            timeout_s=self._timeout_s,
            max_bytes=_MAX_DOCUMENT_BYTES,
        )
        try:
            reply = await client.send("GET", self._document)
        except WebError as exc:
            raise self._error(f"cannot be fetched: {exc}. {self._leave(exc)}") from exc
        finally:
            await client.aclose()
        if reply.status != 200 or reply.is_cut:
            why = "it is too large" if reply.is_cut else f"HTTP {reply.status}"
            raise self._error(f"cannot be fetched: {why}. Check its URL")
        return reply.body.decode(reply.charset, errors="replace")

    def _yaml(self, text: str) -> Any:
        import yaml

        class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
            """Reads what JSON could say, too: dates stay text."""

        Loader.yaml_implicit_resolvers = {
            first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        try:
            return yaml.load(text, Loader)  # noqa: S506 -- a SafeLoader
        except (yaml.YAMLError, RecursionError, ValueError) as exc:
            raise self._error(f"is neither JSON nor YAML: {str(exc).partition(chr(10))[0]}. Check the file") from exc

    def _find_base(self, document: Mapping[str, Any]) -> str:
        base = self._given_base
        if base is None:
            servers = document.get("servers") or [{"url": "/"}]
            first = servers[0] if isinstance(servers, list) and isinstance(servers[0], dict) else {}
            base = str(first.get("url", "/"))
            variables = first.get("variables")
            for key, variable in variables.items() if isinstance(variables, dict) else ():
                base = base.replace(
                    f"{{{key}}}", str(variable.get("default", "") if isinstance(variable, dict) else "")
                )
            if str(self._document).startswith(("http://", "https://")):
                base = urljoin(str(self._document), base)
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise self._error(
                f"names no server that can be asked ({base!r}). Give its base_url, like 'https://host/v1'"
            )
        return base.rstrip("/")

    def _tool(
        self,
        document: Mapping[str, Any],
        resolver: Resolver,
        path: str,
        method: str,
        operation: Mapping[str, Any],
        shared: Any,
    ) -> OpenApiTool:
        credentials = self._credentials(document, resolver, operation)
        hidden = {(each.place, each.name.lower()) for each in credentials}
        properties: dict[str, Any] = {}
        required: list[str] = []
        parameters: list[_Parameter] = []
        for given in _merged(resolver, shared, operation.get("parameters") or []):
            place, name = given["in"], given["name"]
            if (place, name.lower()) in hidden or (place == "header" and name.lower() in _OWN_HEADERS):
                continue
            is_required = bool(given.get("required")) or place == "path"
            if place not in ("path", "query", "header") or "content" in given:
                if is_required:
                    raise Unusable(f"the parameter {name!r} in {place!r} is not supported")
                continue
            argument = name if name not in properties and name != "body" else f"{name}_{place}"
            schema = resolver.schema(given.get("schema") or {})
            if given.get("description") and isinstance(schema, dict):
                schema = {"description": str(given["description"])[:_MAX_DESCRIPTION], **schema}
            properties[argument] = schema
            required += [argument] if is_required else []
            style = str(given.get("style") or ("form" if place == "query" else "simple"))
            parameters.append(_Parameter(argument, name, place, style, bool(given.get("explode", style == "form"))))
        body_type, body, needs_body = _body(resolver, operation)
        if body_type is not None:
            properties["body"] = body
            required += ["body"] if needs_body else []
        missing = set(re.findall(r"\{([^{}]*)\}", path)) - {each.name for each in parameters if each.place == "path"}
        if missing:
            raise Unusable(f"its path has {min(missing)!r}, which no parameter fills")
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        definitions = resolver.definitions(schema)
        if definitions:
            schema["$defs"] = definitions
        name = re.sub(r"[^A-Za-z0-9-]+", "_", str(operation.get("operationId") or f"{method}_{path}")).strip("_")
        told = " ".join(str(operation[key]) for key in ("summary", "description") if operation.get(key))
        spec = ToolSpec(
            (self._prefix + name)[:_MAX_NAME], told[:_MAX_DESCRIPTION] or f"{method.upper()} {path}", schema
        )
        is_read = method in ("get", "head", "options")
        hints = ToolHints(
            read_only=is_read,
            destructive=None if method == "post" else method in ("delete", "put", "patch"),
            idempotent=is_read or method in ("put", "delete"),
            open_world=True,
            is_trusted=self._trusts_hints,
        )
        return OpenApiTool(spec, hints, method, path, tuple(parameters), body_type, credentials, self)

    def _credentials(
        self, document: Mapping[str, Any], resolver: Resolver, operation: Mapping[str, Any]
    ) -> tuple[_Credential, ...]:
        """The first of the operation's ways to prove who we are for which every secret is here."""
        ways = operation.get("security", document.get("security")) or [{}]
        if not isinstance(ways, list) or not all(isinstance(way, dict) for way in ways):
            raise Unusable("its security is malformed")
        components = document.get("components")
        schemes = components.get("securitySchemes") if isinstance(components, dict) else None
        schemes = schemes if isinstance(schemes, dict) else {}
        for way in ways:
            if all(name in self._secrets for name in way):
                return tuple(_credential(resolver.target(schemes.get(each)), self._secrets[each], each) for each in way)
        wanted = sorted({name for way in ways for name in way})
        raise Unusable(f"it needs the secret for {' or '.join(map(repr, wanted))}; bind it by that name")

    def _leave(self, exc: WebError) -> str:
        return "Allow private addresses if you mean it" if exc.kind == "refused" else "Check its URL"

    def _error(self, what: str) -> ToolSourceError:
        return ToolSourceError(f"OpenAPI document {self._name!r} {what}.", source=self._name)


def _operations(document: Mapping[str, Any], resolver: Resolver) -> Iterator[tuple[str, str, Mapping[str, Any], Any]]:
    paths = document.get("paths")
    for path, item in paths.items() if isinstance(paths, dict) else ():
        try:
            item = resolver.target(item)
        except Unusable:
            continue
        for method in _METHODS:
            if isinstance(operation := item.get(method), dict):
                yield str(path), method, operation, item.get("parameters") or []


def _merged(resolver: Resolver, shared: Any, own: Any) -> list[Mapping[str, Any]]:
    """The parameters; an operation's own take the place of its path's."""
    if not isinstance(shared, list) or not isinstance(own, list):
        raise Unusable("its parameters are no list")
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for each in [*shared, *own]:
        parameter = resolver.target(each)
        if not isinstance(parameter.get("name"), str) or not isinstance(parameter.get("in"), str):
            raise Unusable("a parameter has no name or no place")
        found[parameter["in"], parameter["name"]] = parameter
    return list(found.values())


def _body(resolver: Resolver, operation: Mapping[str, Any]) -> tuple[str | None, Any, bool]:
    """Media type, schema and whether it must be there; no type where there is no body."""
    if "requestBody" not in operation:
        return None, None, False
    body = resolver.target(operation["requestBody"])
    is_required = bool(body.get("required"))
    content = body.get("content")
    for kind, media in content.items() if isinstance(content, dict) else ():
        plain = kind.partition(";")[0].strip().lower()
        if plain in ("application/json", "application/x-www-form-urlencoded", "text/plain") or plain.endswith("+json"):
            return plain, resolver.schema(resolver.target(media).get("schema") or {}), is_required
    if is_required:
        raise Unusable("its body is of no type that is supported (JSON, a form, text)")
    return None, None, False


def _credential(scheme: Mapping[str, Any], secret: str, name: str) -> _Credential:
    if not secret.isascii() or not secret.isprintable():
        raise Unusable(f"the secret for {name!r} has characters that a header cannot hold")
    kind = scheme.get("type")
    if kind == "apiKey" and scheme.get("in") in ("header", "query"):
        return _Credential(scheme["in"], str(scheme.get("name")), secret)
    if kind == "http" and str(scheme.get("scheme")).lower() == "basic":
        return _Credential("header", "Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    if kind in ("oauth2", "openIdConnect") or (kind == "http" and str(scheme.get("scheme")).lower() == "bearer"):
        return _Credential("header", "Authorization", f"Bearer {secret}")
    raise Unusable(f"its security scheme {name!r} is of a kind that is not supported ({kind!r})")


# --- a request -------------------------------------------------------------------------------------------------------


def _request(
    tool: OpenApiTool, base: str, arguments: Mapping[str, Any]
) -> tuple[str, list[tuple[str, str]], dict[str, str], bytes | None]:
    """URL, query, headers and body.

    Raises:
        ValueError: an argument would lead elsewhere.
    """
    path = tool.path
    query: list[tuple[str, str]] = []
    headers = {"Accept": "application/json, text/*;q=0.9, */*;q=0.5"}
    for each in tool.parameters:
        if each.argument not in arguments:
            continue
        value = arguments[each.argument]
        if each.place == "query":
            query += _in_query(each, value)
            continue
        text = _joined(value)
        if each.place == "path":
            if text in ("", ".", ".."):
                raise ValueError(f"{each.argument!r} cannot be {text!r}: it is a part of the path.")
            path = path.replace(f"{{{each.name}}}", quote(text, safe=""))
        else:
            if not text.isprintable() or not text.isascii():
                raise ValueError(f"{each.argument!r} has characters that a header cannot hold.")
            headers[each.name] = text
    body = None
    if tool.body_type is not None and "body" in arguments:
        headers["Content-Type"] = tool.body_type
        body = _encoded(tool.body_type, arguments["body"])
    return f"{base}/{path.lstrip('/')}", query, headers, body


def _in_query(parameter: _Parameter, value: Any) -> list[tuple[str, str]]:
    name = parameter.name
    if isinstance(value, dict):
        if parameter.style == "deepObject":
            return [(f"{name}[{key}]", _text(each)) for key, each in value.items()]
        if parameter.explode:
            return [(key, _text(each)) for key, each in value.items()]
    if isinstance(value, list):
        separator = {"spaceDelimited": " ", "pipeDelimited": "|"}.get(parameter.style, ",")
        if parameter.explode:
            return [(name, _text(each)) for each in value]
        return [(name, separator.join(map(_text, value)))]
    return [(name, _joined(value))]


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, dict):
        return ",".join(f"{key},{_text(each)}" for key, each in value.items())
    return _text(value)


def _text(value: Any) -> str:
    """A scalar as URLs have it; anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _encoded(kind: str, body: Any) -> bytes:
    if kind == "text/plain":
        return _text(body).encode()
    if kind == "application/x-www-form-urlencoded":
        fields = body.items() if isinstance(body, dict) else [("value", body)]
        pairs = [(key, _text(one)) for key, value in fields for one in (value if isinstance(value, list) else [value])]
        return urlencode(pairs).encode()
    return json.dumps(body, ensure_ascii=False).encode()


def _observation(reply: Reply, secrets: Sequence[str]) -> Observation:
    """The answer as the next role sees it; a secret that the server sends back is struck out."""
    is_text = reply.content_type.startswith("text/") or reply.content_type.endswith(
        ("json", "xml", "yaml", "javascript")
    )
    if not is_text and (b"\0" in reply.body or reply.content_type):
        more = "more than " if reply.is_cut else ""
        text = f"[{reply.content_type or 'binary'} of {more}{len(reply.body)} bytes]" if reply.body else ""
        structured = None
    else:
        text = reply.body.decode(reply.charset, errors="replace")
        for secret in secrets:
            for part in (secret, secret.partition(" ")[2]):
                text = text.replace(part, "[secret]") if len(part) >= 4 else text
        structured = _parsed(text) if reply.content_type.endswith("json") and not reply.is_cut else None
    is_truncated = reply.is_cut or len(text) > _MAX_TEXT
    kind: Literal["result", "error"] = "result" if reply.status < 400 else "error"
    shown = text[:_MAX_TEXT] or "(no content)"
    return Observation(
        shown if kind == "result" else f"HTTP {reply.status}: {shown}",
        kind,
        structured=None if is_truncated else structured,
        is_truncated=is_truncated,
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
