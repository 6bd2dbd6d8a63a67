"""Runs inside the sandbox of `code_bubblewrap`, as text given to `python -c`; it imports nothing of nearfar.

It reads a request from standard input and writes messages to standard output, each a line of JSON. Nothing here keeps
the code from anything: the sandbox around the process does. The code may forge every message; the host trusts none.
"""

import ast
import builtins
import io
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

PIECE = 8192  # characters of output in one message
MAX_DEPTH = 40
OWN_FRAMES = 20  # of this file, which the code's limit of recursion does not count


def plain(value: Any, depth: int = 0) -> Any:
    """As `code_border.plain`, on this side."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if depth < MAX_DEPTH:
        if isinstance(value, dict):
            return {key if isinstance(key, str) else str(key): plain(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [plain(each, depth + 1) for each in value]
    return str(value)


class Wire:
    """The messages' way in and out, on descriptors that only this file means to use."""

    def __init__(self) -> None:
        self._reader = os.fdopen(os.dup(0), "r", encoding="utf-8")
        self._writer = os.fdopen(os.dup(1), "w", encoding="utf-8")
        nowhere = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def send(self, **message: Any) -> None:
        """Writes one message."""
        self._writer.write(json.dumps(message) + "\n")
        self._writer.flush()

    def receive(self) -> Any:
        """The host's next message."""
        return json.loads(self._reader.readline())


class Output(io.TextIOBase):
    """What `print` writes to."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Sends the text on, in pieces."""
        for start in range(0, len(text), PIECE):
            self._wire.send(output=text[start : start + PIECE])
        return len(text)


def granted(name: str, wire: Wire) -> Callable[..., Any]:
    """A function that the host answers."""

    def call(*args: Any, **kwargs: Any) -> Any:
        wire.send(call=name, args=plain(args), kwargs=plain(kwargs))
        answer = wire.receive()
        if "error" in answer:
            kind, message = answer["error"]
            raise getattr(builtins, kind)(message)
        return answer["value"]

    call.__name__ = call.__qualname__ = name
    return call


def confine(limits: dict[str, int], user: int | None) -> None:
    """Gives up what the process may do, for good."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def run(code: str, scope: dict[str, Any]) -> dict[str, Any]:
    """What the code came to."""
    try:
        tree = ast.parse(code, "<code>")
        last: ast.expr | None = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = tree.body.pop().value  # type: ignore[attr-defined]  # as the line above says
        exec(compile(tree, "<code>", "exec"), scope)  # noqa: S102 -- this is the sandbox
        if last is None:
            return {}
        return {"value": plain(eval(compile(ast.Expression(last), "<code>", "eval"), scope))}  # noqa: S307
    except BaseException as exc:
        scope.clear()  # what filled the memory must not be in the way of saying so
        limit = "memory" if isinstance(exc, MemoryError) else "recursion" if isinstance(exc, RecursionError) else None
        try:
            error = f"{type(exc).__name__}: {exc}"[:2000]
        except BaseException:
            error = type(exc).__name__
        return {"error": error, "limit": limit}


def main() -> None:
    """Serves one request."""
    wire = Wire()
    request = wire.receive()
    sys.stdout = sys.stderr = Output(wire)
    scope = {"__name__": "__main__", **request["inputs"]}
    scope.update({name: granted(name, wire) for name in request["functions"]})
    confine(request["limits"], request["user"])
    sys.setrecursionlimit(request["recursion"] + OWN_FRAMES)
    wire.send(ready=True)
    wire.send(done=run(request["code"], scope))


main()
