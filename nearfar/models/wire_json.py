"""What servers' JSON may not be: unreadable, or counts that cannot be."""

from __future__ import annotations

from typing import Final

import msgspec

from nearfar.types import Usage

#: What msgspec raises for bytes that are no JSON, no UTF-8, not of the form, or nested deeper than the stack.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: No answer has more tokens; what claims to would break a budget's arithmetic.
_MAX_TOKENS: Final = 2**40


def checked_usage(
    prompt_tokens: int, completion_tokens: int, *, cached_tokens: int = 0, reasoning_tokens: int = 0
) -> Usage | None:
    """The usage that a server states; None, which is unknown, where it cannot be: below 0, or beyond all reason.

    A negative count would give money back to a budget. More cached tokens than the prompt has are as many as it has.
    """
    counts = (prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens)
    if min(counts) < 0 or max(counts) > _MAX_TOKENS:
        return None
    return Usage(prompt_tokens, completion_tokens, min(cached_tokens, prompt_tokens), reasoning_tokens)
