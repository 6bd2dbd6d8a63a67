"""Signals that a query itself asks for: their names, and the probes that read them of any model's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nearfar.errors import RequestError

from .live import probes
from .sampled_signals import Probe

#: What a query may ask for: the signals of `TierSettings.signals` that need nothing but the answer and its model.
ASKABLE: Final = (
    "span",
    "answer_text",
    "query",
    "self_consistency",
    "semantic_entropy",
    "p_true",
    "self_check",
    "stated_confidence",
)


def asked_probes(names: Sequence[str]) -> tuple[Probe, ...]:
    """The probes that read the signals of these names, free ones first, with their settings' defaults.

    Raises:
        RequestError: a name is none of `ASKABLE`.
    """
    unknown = next((name for name in names if name not in ASKABLE), None)
    if unknown is not None:
        raise RequestError(
            f"There is no signal {unknown!r} to ask for. Valid signals: {', '.join(ASKABLE)}.", param="signals"
        )
    return probes(names)
