"""Shuts the doors of a vLLM server that nearfar does not use, inside that server; imports the standard library alone.

vLLM asks for its key under /v1 only, and serves SageMaker's /invocations, adapters' loading and more without it.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_OPEN = frozenset({("GET", "/health"), ("GET", "/version")})
_WITH_KEY = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/tokenize"),
        ("POST", "/sleep"),
        ("POST", "/wake_up"),
        ("GET", "/is_sleeping"),
    }
)


class Guard:
    """ASGI middleware: requests with the key to the few doors that are used pass, all others are refused."""

    def __init__(self, app: _App) -> None:
        self._app = app
        self._key = _digest(f"Bearer {os.environ['VLLM_API_KEY']}".encode())

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Passes or refuses one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif (problem := self._problem(scope)) is not None:
            await _refuse(send, *problem)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: _Message) -> tuple[int, str] | None:
        door = (scope["method"], scope["path"])
        if door in _OPEN:
            return None
        if door not in _WITH_KEY:
            return 404, "nearfar keeps this door shut."
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not hmac.compare_digest(_digest(given[0]), self._key):
            return 401, "The key is missing or wrong."
        return None


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


async def _refuse(send: _Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
