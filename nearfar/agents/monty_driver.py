"""Drives pydantic-monty in a process of its own, for `code_monty`: `python -m nearfar.agents.monty_driver`.

monty keeps the code from the machine. This process keeps our own from monty: what the code gives back or calls with
becomes Python objects here, which may take for ever (the hash of a key that doubles itself sixty times, in monty 1.4),
and is ended from outside.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic_monty import (
    FunctionSnapshot,
    FutureSnapshot,
    Monty,
    MontyComplete,
    MontyError,
    NameLookupSnapshot,
    ResourceLimits,
)

from .code_border import TooLarge, plain

#: How long after its time limit a worker that does not notice it is killed.
_GRACE_S: Final = 0.5

#: Round trips for names that are not there; each is cheap, and this many are no accident.
_MAX_LOOKUPS: Final = 10_000

#: The most address space that this process, and monty's worker, may have.
_MAX_BYTES: Final = 2 * 2**30

#: How monty words the limits that it enforces.
_LIMITS: Final[Mapping[str, str]] = {
    "feed time limit exceeded": "time",
    "memory limit exceeded": "memory",
    "the worker exceeded its memory limit": "memory",
    "maximum recursion depth exceeded": "recursion",
    "suspension limit": "calls",
}


class Driver:
    """Serves requests, one after another, each in a session of its own."""

    def __init__(self) -> None:
        self._in = os.fdopen(os.dup(0), "r", encoding="utf-8", errors="surrogatepass")
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")

    def serve(self) -> None:
        """Answers requests until there are no more."""
        with Monty(
            min_processes=1, max_processes=1, max_checkouts_per_worker=500, feed_duration_limit_grace=_GRACE_S
        ) as pool:
            while line := self._in.readline():
                request = json.loads(line)
                self._send(done=self._run(pool, request))

    def _run(self, pool: Monty, request: Mapping[str, Any]) -> dict[str, Any]:
        limits = request["limits"]
        bounds = ResourceLimits(
            max_feed_duration_secs=limits["seconds"],
            max_memory=limits["memory_bytes"],
            max_recursion_depth=limits["recursion"],
            max_suspensions=3 * limits["calls"] + _MAX_LOOKUPS,
        )
        try:
            with pool.checkout(limits=bounds, os_policy={"sleep": "zero"}) as session:
                self._send(ready=True)
                snapshot = session.feed_start(
                    request["code"], inputs=request["inputs"], print_callback=lambda _, text: self._send(output=text)
                )
                while not isinstance(snapshot, MontyComplete):
                    match snapshot:
                        case FunctionSnapshot(is_os_function=True):
                            snapshot = snapshot.resume_not_handled()
                        case FunctionSnapshot():
                            snapshot = snapshot.resume(self._answer(snapshot, request["functions"]))
                        case NameLookupSnapshot():
                            name = snapshot.variable_name
                            is_granted = name in request["functions"] and snapshot.object_id is None
                            snapshot = snapshot.resume(value=_stand_in(name)) if is_granted else snapshot.resume()
                        case FutureSnapshot():
                            raise AssertionError("no call is answered with a future")
                return {"value": plain(snapshot.output)}
        except TooLarge:
            return {"error": "a value that is too large to give back", "limit": "output"}
        except MontyError as exc:
            message = str(exc)
            return {
                "error": message[:2000],
                "limit": next((_LIMITS[each] for each in _LIMITS if each in message), None),
            }
        except (ValueError, OverflowError, RecursionError, MemoryError) as exc:  # such as 10**5000
            return {"error": f"the value cannot be given back: {exc}"[:2000]}

    def _answer(self, snapshot: FunctionSnapshot, granted: list[str]) -> Any:
        if snapshot.function_name not in granted:
            return {"exc_type": "NameError", "message": f"name {snapshot.function_name!r} is not defined"}
        try:
            args, kwargs = plain(snapshot.args), plain(snapshot.kwargs)
        except TooLarge:
            return {"exc_type": "ValueError", "message": "an argument is too large"}
        self._send(call=str(snapshot.function_name), args=args, kwargs=kwargs)
        answer = json.loads(self._in.readline())
        if "error" in answer:
            kind, message = answer["error"]
            return {"exc_type": kind, "message": message}
        return {"return_value": answer["value"]}

    def _send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def _stand_in(name: str) -> Callable[[], None]:
    """What monty knows a granted function by, where the code names it without calling it: the name alone counts."""

    def stand_in() -> None: ...

    stand_in.__name__ = stand_in.__qualname__ = name
    return stand_in


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.set_int_max_str_digits(0)  # json writes long numbers; the host counts their digits
    Driver().serve()
