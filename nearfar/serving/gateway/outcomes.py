"""`POST /v1/outcomes`: how good an answer turned out to be, in this wire's clothes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from nearfar.errors import RequestError
from nearfar.router.outcomes import WORDS, Outcome

from .schemas import convert, parse_object

#: A query's field to where this wire has it.
PARAM_NAMES: Mapping[str, str] = {"id": "decision_id"}

_encode = msgspec.json.Encoder().encode


class OutcomeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body."""

    decision_id: Annotated[str, Meta(pattern="^[0-9a-f]{28}$")]  # whole: a beginning could be another's
    value: bool | float | str
    source: Annotated[str, Meta(min_length=1, max_length=64)] = "user"


@dataclass(frozen=True, slots=True)
class Told:
    """An outcome that somebody tells."""

    decision_id: str
    value: float  # in [0, 1]
    source: str


def parse_outcome(body: bytes) -> Told:
    """What the body says.

    Raises:
        RequestError: it is not what `OutcomeRequest` says, or its value is none.
    """
    asked = convert(parse_object(body), OutcomeRequest)
    value = asked.value
    if isinstance(value, str):
        word = WORDS.get(value.strip().lower())
        if word is None:
            known = ", ".join(WORDS)
            raise RequestError(
                f"`value`: {value!r} is no outcome; send a number in [0, 1], a truth value or a word: {known}.",
                param="value",
            )
        value = word
    return Told(asked.decision_id, float(value), asked.source)


def outcome_body(outcome: Outcome) -> bytes:
    """The reply."""
    return _encode({"object": "nearfar.outcome", **msgspec.to_builtins(outcome)})
