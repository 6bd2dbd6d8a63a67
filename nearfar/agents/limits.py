"""Says when a run has used what it may, and when it goes round in circles."""

from __future__ import annotations

from dataclasses import replace

from nearfar.types import ToolCall

from .trace import Trace, spent, times_made
from .types import Limits, RunStatus


def reached(limits: Limits, trace: Trace, *, step: int, elapsed_s: float) -> tuple[RunStatus, str] | None:
    """The first limit that is reached, and in words; None: the run may go on.

    Args:
        limits: of the run.
        trace: what was done so far.
        step: the number of the step that would come, from 1.
        elapsed_s: seconds of work, without what passed while nothing worked on the run.
    """
    used = spent(trace)
    if step > limits.steps:
        return "out_of_steps", f"{limits.steps} steps were made, and there is no answer yet"
    if elapsed_s >= limits.seconds:
        return "out_of_time", f"{elapsed_s:.1f} s of {limits.seconds:g} s are used"
    if limits.tokens is not None and used.tokens >= limits.tokens:
        return "out_of_tokens", f"{used.tokens:,} tokens of {limits.tokens:,} are used"
    if limits.usd is not None:
        if used.cost_usd is None:
            return "out_of_money", f"what a model cost is unknown, and the run may cost ${limits.usd:g}"
        if used.cost_usd > limits.usd or (used.cost_usd and used.cost_usd >= limits.usd):
            return "out_of_money", f"${used.cost_usd:.6f} of ${limits.usd:g} are spent"
    return None


def loop(limits: Limits, trace: Trace, call: ToolCall) -> str | None:
    """Why the call would be a loop; None: it is none."""
    times = times_made(trace, call)
    if times < limits.repeats:
        return None
    return f"{call.name!r} was called {times} times with the same arguments"


def lowered(
    limits: Limits,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    tokens: int | None = None,
    usd: float | None = None,
) -> Limits:
    """The limits, and less wherever less is asked for; None: nothing is."""
    return replace(
        limits,
        steps=min(limits.steps, steps or limits.steps),
        seconds=min(limits.seconds, seconds or limits.seconds),
        tokens=min((each for each in (limits.tokens, tokens) if each is not None), default=None),
        usd=min((each for each in (limits.usd, usd) if each is not None), default=None),
    )
