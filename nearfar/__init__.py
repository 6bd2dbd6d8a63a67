"""Answer each query with the cheapest model that is good enough."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearfar.app import Nearfar
    from nearfar.errors import NearfarError
    from nearfar.types import Answer, ChatModel, Decision, Message, Query, SamplingOptions

__version__ = "0.1.0"

__all__ = ["Answer", "ChatModel", "Decision", "Message", "Nearfar", "NearfarError", "Query", "SamplingOptions"]

_HOMES = {"Nearfar": "nearfar.app", "NearfarError": "nearfar.errors"}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, so that `import nearfar` costs next to nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'nearfar' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES.get(name, "nearfar.types")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
