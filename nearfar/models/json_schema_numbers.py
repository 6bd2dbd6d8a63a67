"""Grammars of the numbers that fit a schema: their bounds, their steps, and those that it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Any, NamedTuple

from .grammar import Impossible, Node, Unsupported, either
from .json_schema import same
from .number_grammar import any_number, decimals, integers, listed, multiples


def numbers(rest: Mapping[str, Any], excluded: Sequence[Any], fits: Callable[[Any], bool], *, is_whole: bool) -> Node:
    """The grammar of the numbers within a schema's bounds.

    Args:
        rest: the schema.
        excluded: numbers that are not meant.
        fits: whether a number fits the schema, as jsonschema sees it.
        is_whole: only whole numbers are meant.

    Raises:
        Impossible: there is none.
        Unsupported: none is found that could be listed.
    """
    low, is_above = _limit(rest, "minimum", "exclusiveMinimum", max)
    high, is_below = _limit(rest, "maximum", "exclusiveMaximum", min)
    bounds = _Bounds(low, is_above, high, is_below)
    step = rest.get("multipleOf")
    if step is None:
        return bounds.but(excluded, is_whole=is_whole) if excluded else bounds.node(is_whole=is_whole)
    if not excluded and step == int(step) and (is_whole or isinstance(step, int)):
        return multiples(int(step), *bounds.whole)
    return _steps(_fraction(step), bounds, excluded, fits, is_whole=is_whole)


class _Bounds(NamedTuple):
    """Between which numbers; None: no bound."""

    low: Fraction | None
    is_above: bool  # low itself is left out
    high: Fraction | None
    is_below: bool  # high itself is left out

    @property
    def whole(self) -> tuple[int | None, int | None]:
        """The first and the last whole number within them."""
        return _whole(self.low, self.is_above, up=True), _whole(self.high, self.is_below, up=False)

    def node(self, *, is_whole: bool) -> Node:
        """The numbers within them."""
        if is_whole:
            return integers(*self.whole)
        if self.low is None and self.high is None:
            return any_number()
        return decimals(self.low, self.high, is_above=self.is_above, is_below=self.is_below)

    def but(self, excluded: Sequence[Any], *, is_whole: bool) -> Node:
        """The numbers between those that are not meant."""
        cuts = sorted({_fraction(value) for value in excluded})
        inside = [cut for cut in cuts if self.has(cut)]
        edges = [(self.low, self.is_above), *((cut, True) for cut in inside), (self.high, self.is_below)]
        options = []
        for first, last in pairwise(edges):
            try:
                options.append(_Bounds(*first, *last).node(is_whole=is_whole))
            except Impossible:
                continue
        if not options:
            raise Impossible("no number is within the bounds")
        return either(options)

    def has(self, number: Fraction | int) -> bool:
        """Whether the number is within them, themselves included."""
        return (self.low is None or number >= self.low) and (self.high is None or number <= self.high)


def _steps(
    step: Fraction, bounds: _Bounds, excluded: Sequence[Any], fits: Callable[[Any], bool], *, is_whole: bool
) -> Node:
    """The first multiples that jsonschema takes for such: it divides as floats do."""
    if step <= 0:
        raise Unsupported("'multipleOf' is not above 0")
    if bounds.has(0):
        first = 0
    elif bounds.low is not None:
        first = ceil(bounds.low / step)
    else:
        first = floor((bounds.high or 0) / step) - 200
    found: list[int | float] = []
    for n in range(first, first + 400):
        exact = n * step
        if is_whole and exact.denominator != 1:
            continue
        value = exact.numerator if exact.denominator == 1 else float(exact)
        if fits(value) and not any(same(value, other) for other in excluded):
            found.append(value)
    if not found:
        raise Unsupported("no multiple is found within the bounds")
    return listed(found)


def _limit(rest: Mapping[str, Any], inclusive: str, exclusive: str, tighter: Any) -> tuple[Fraction | None, bool]:
    """A number's bound, and whether it is itself left out."""
    found = [(rest[key], key == exclusive) for key in (inclusive, exclusive) if key in rest]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value, _ in found):
        raise Unsupported(f"{exclusive!r} is not a number")
    bounds = [(_fraction(value), is_open) for value, is_open in found]
    if not bounds:
        return None, False
    bound = tighter(value for value, _ in bounds)
    return bound, any(is_open for value, is_open in bounds if value == bound)


def _whole(bound: Fraction | None, is_open: bool, *, up: bool) -> int | None:
    """The first whole number within the bound."""
    if bound is None:
        return None
    whole = ceil(bound) if up else floor(bound)
    return whole + (1 if up else -1) if is_open and whole == bound else whole


def _fraction(value: float) -> Fraction:
    """The decimal as it is written."""
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))
