"""Grammars of JSON values of any kind, and of entries in their order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from .grammar import ANY as ANY_CHARACTER
from .grammar import NOTHING, Node, Repeated, either, optional, sequence
from .number_grammar import any_number
from .text_grammar import as_json, json_string

MAX_EXTRA: Final = 8  # properties of free names
MAX_KEY: Final = 40  # characters of such a name


@cache
def any_value(depth: int) -> Node:
    """Any JSON value, arrays and objects nested so deeply."""
    options: list[Node | str] = [json_string(), any_number(), "true", "false", "null"]
    if depth:
        inner = any_value(depth - 1)
        pair = sequence(as_json(Repeated(ANY_CHARACTER, 1, MAX_KEY)), ": ", inner)
        options.append(sequence("[", optional(sequence(inner, Repeated(sequence(", ", inner), 0, MAX_EXTRA - 1))), "]"))
        options.append(sequence("{", optional(sequence(pair, Repeated(sequence(", ", pair), 0, MAX_EXTRA - 1))), "}"))
    return either(options)


def listing(
    entries: Sequence[tuple[Node, bool]],
    free: Node | None,
    free_least: int,
    free_most: int,
    most: int | None,
    *,
    least: int = 0,
) -> Node:
    """Entries in their order with ", " between them, those that are not required left out at will; free ones last.

    Args:
        entries: each with whether it is required.
        free: what may follow, again and again; None: nothing.
        free_least: how often at least.
        free_most: how often at most.
        most: entries in all, but for the free ones, which `free_most` bounds; None: all.
        least: entries in all.
    """
    required_after = [0] * (len(entries) + 1)
    for i in reversed(range(len(entries))):
        required_after[i] = required_after[i + 1] + entries[i][1]
    top = len(entries) if most is None else most
    counts = top < len(entries) or least > 0
    more = None if free is None or free_most == 0 else sequence(", ", free)
    following: dict[tuple[int, bool], Node] = {}  # by how many entries were used, and whether there is none before
    for used in range(len(entries) + 1) if counts else (0,):
        following[used, False] = NOTHING if more is None else Repeated(more, free_least, free_most)
    if free is None or more is None:
        following[0, True] = NOTHING
    else:
        whole = sequence(free, Repeated(more, max(0, free_least - 1), free_most - 1))
        following[0, True] = whole if free_least else optional(whole)
    for i in reversed(range(len(entries))):
        entry, is_required = entries[i]
        here: dict[tuple[int, bool], Node] = {}
        for used in range(i + 1) if counts else (0,):
            for is_first in (False, True) if used == 0 else (False,):
                after = following.get((used + counts, False))
                options: list[Node] = []
                if after is not None and used + 1 + required_after[i + 1] <= top:
                    options.append(sequence("" if is_first else ", ", entry, after))
                without_it = following.get((used, is_first))
                if without_it is not None and not is_required and (used + len(entries) - i - 1 >= least or not counts):
                    options.append(without_it)
                if options:
                    here[used, is_first] = either(options)
        following = here
    return following[0, True]
