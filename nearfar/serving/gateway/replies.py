"""Raw ASGI: reading a request's body within limits, and sending a whole reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from math import ceil
from typing import Any, TypeAlias
from urllib.parse import quote

from nearfar.types import Decision, StreamStart

from .problems import Problem, invalid

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")

#: The extension of our server's scope that sends a whole reply at once: status, header lines and body; it says whether
#: it did.
WHOLE = "nearfar.whole"
SendWhole: TypeAlias = Callable[[int, bytes, bytes], bool]


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes | Problem | None:
    """The request's body; a problem where it is longer than `limit` bytes, None where the client went away."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        return _too_large(limit)
    event = await receive()
    if event["type"] == "http.disconnect":
        return None
    body: bytes = event.get("body", b"")
    if len(body) > limit:
        return _too_large(limit)
    if not event.get("more_body", False):
        return body
    parts = [body]
    total = len(body)
    while event.get("more_body", False):
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        part = event.get("body", b"")
        total += len(part)
        if total > limit:
            return _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    return invalid(f"The body is longer than {limit} bytes, the limit of this gateway.", code="too_large", status=413)


async def send_reply(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """Sends a whole reply."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, problem: Problem) -> None:
    """Sends an error."""
    headers: Headers = [JSON, *problem.headers]
    if problem.decision_id is not None:
        headers += id_headers(problem.decision_id)
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", str(max(0, ceil(problem.retry_after_s))).encode()))
    if problem.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if problem.should_retry else b"false"))
    await send_reply(send, problem.status, headers, problem.body())


async def send_answer(send: Send, send_whole: SendWhole | None, decision: Decision, body: bytes) -> None:
    """Sends an answer as JSON, at once where the server can."""
    headers = [JSON, *decision_headers(decision)]
    if send_whole is None or not send_whole(
        200, b"".join([name + b": " + value + b"\r\n" for name, value in headers]), body
    ):
        await send_reply(send, 200, headers, body)


@lru_cache(256)  # the config's tiers
def _quoted(tier: str) -> bytes:
    return quote(tier, safe=" /:@+,").encode()


def id_headers(decision_id: str) -> Headers:
    """The headers that name the decision; OpenAI clients show the second as the request's id."""
    text = decision_id.encode()
    return [(b"x-nearfar-decision-id", text), (b"x-request-id", text)]


def decision_headers(source: Decision | StreamStart) -> Headers:
    """The headers that say who answers and how sure that is."""
    headers = id_headers(source.id if isinstance(source, Decision) else source.decision_id)
    if source.tier is not None:
        headers.append((b"x-nearfar-tier", _quoted(source.tier)))
    if source.score is not None:
        headers.append((b"x-nearfar-score", f"{source.score:.4f}".encode()))
    return headers
