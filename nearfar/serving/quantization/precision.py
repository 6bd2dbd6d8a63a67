"""Which precision a request asks for: in its body, in its model's name, and in the salt of its prefixes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nearfar.errors import RequestError

#: The field of `vllm_xargs` and of `extra_args`.
FIELD = "bits"


def precision_of(arguments: Mapping[str, Any] | None, precisions: Collection[int]) -> int:
    """The precision that a request's extra arguments ask for.

    Raises:
        RequestError: there is none, or the weights were not stored for it.
    """
    offered = ", ".join(map(str, sorted(precisions)))
    if not arguments or FIELD not in arguments:
        raise RequestError(f'A width is missing; send "vllm_xargs": {{"{FIELD}": b}} with b of {offered}.', param=FIELD)
    asked = arguments[FIELD]
    if isinstance(asked, bool) or not isinstance(asked, int) or asked not in precisions:
        raise RequestError(f"{FIELD} is {asked!r}; this model was stored for {offered}.", param=FIELD)
    return asked


def salt(precision: int, given: str | None = None) -> str:
    """The salt of a request's prefixes: no two precisions share one, whatever salt the client gave."""
    return f"nearfar-bits-{precision}" if given is None else f"nearfar-bits-{precision}:{given}"


def with_precision(page: dict[str, Any], precisions: Collection[int]) -> dict[str, Any]:
    """The body of a completion request with its precision in both places where vLLM looks.

    A model's name may end in @b, which asks for b bits; `vllm_xargs` may say so as well, but nothing else.

    Raises:
        RequestError: no precision is asked for, two are, or it was not stored.
    """
    arguments = page.get("vllm_xargs")
    if arguments is not None and not isinstance(arguments, dict):
        raise RequestError("vllm_xargs is no object.", param="vllm_xargs")
    arguments = dict(arguments or {})
    model = page.get("model")
    if isinstance(model, str) and "@" in model:
        name, _, bits = model.rpartition("@")
        if bits.isascii() and bits.isdigit() and len(bits) <= 2:
            if arguments.setdefault(FIELD, int(bits)) != int(bits):
                raise RequestError(f"model asks for {bits} bits and vllm_xargs for {arguments[FIELD]!r}.", param=FIELD)
            page = page | {"model": name}
    precision = precision_of(arguments, precisions)
    given = page.get("cache_salt")
    if given is not None and not isinstance(given, str):
        raise RequestError("cache_salt is no text.", param="cache_salt")
    return page | {"vllm_xargs": arguments, "cache_salt": salt(precision, given)}
