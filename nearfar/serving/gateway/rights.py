"""Who has asked: the key of a request, kept in its scope, and what it may not do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .keys import EVERY_RIGHT, Key, Right
from .problems import Problem
from .replies import Scope

_KEY = "nearfar.key"

_DOINGS: Mapping[Right, str] = {
    "ask": "ask models",
    "run": "run agents",
    "approve": "allow or deny the calls of agents",
}


def admit(scope: Scope, key: Key) -> None:
    """Keeps the key that the request carries."""
    scope[_KEY] = key


def asker(scope: Mapping[str, Any]) -> str | None:
    """The name of the request's key; None: this gateway asks for none."""
    key: Key | None = scope.get(_KEY)
    return None if key is None else key.name


def missing(scope: Mapping[str, Any], *rights: Right) -> Problem | None:
    """Why the request may do none of these; None: it may do one of them."""
    key: Key | None = scope.get(_KEY)
    has = EVERY_RIGHT if key is None else key.rights
    if not has.isdisjoint(rights):
        return None
    message = f"This key may not {_DOINGS[rights[0]]}. Make one that may: nearfar keys new NAME --may {rights[0]}"
    return Problem(403, message, "permission_error", "not_permitted")
