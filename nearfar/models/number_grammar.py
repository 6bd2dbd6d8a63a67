"""Grammars of JSON numbers within bounds, digit by digit."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from math import ceil, floor

from .grammar import NOTHING, Chars, Impossible, Node, Repeated, Text, Unsupported, either, optional, sequence

#: Digits of a number without bounds: what a double keeps exactly.
_DIGITS = 15
_FRACTION_DIGITS = 6  # of a number with bounds, unless the bounds have more
_MAX_LISTED = 200
_MAX_REMAINDERS = 64

DIGIT = Chars(((ord("0"), ord("9")),))
_LEADING = Chars(((ord("1"), ord("9")),))


@cache
def any_number() -> Node:
    """A JSON number: up to 15 digits before and after the point, and an exponent of two."""
    whole = either(["0", sequence(_LEADING, Repeated(DIGIT, 0, _DIGITS - 1))])
    fraction = sequence(".", Repeated(DIGIT, 1, _DIGITS))
    exponent = sequence("e", either(["", "-", "+"]), Repeated(DIGIT, 1, 2))
    return sequence(optional(Text("-")), whole, optional(fraction), optional(exponent))


def integers(low: int | None = None, high: int | None = None) -> Node:
    """The whole numbers from `low` to `high`; without a bound, of up to 15 digits or one more than the other bound's.

    Raises:
        Impossible: there is none.
    """
    return _decimals(*_limits(low, high, _DIGITS), 0)


def decimals(low: Fraction | None, high: Fraction | None, *, is_above: bool = False, is_below: bool = False) -> Node:
    """The numbers from `low` to `high`, with and without a fraction.

    Args:
        low: None: no bound.
        high: None: no bound.
        is_above: `low` itself is not meant.
        is_below: `high` itself is not meant; nor a number so near to an open bound that a double takes it for it.

    Raises:
        Impossible: there is none.
        Unsupported: there is none of so few digits.
    """
    if low is not None and high is not None and (low > high or (low == high and (is_above or is_below))):
        raise Impossible("no number is within the bounds")
    places = max(_FRACTION_DIGITS, *(_places(bound) + 1 for bound in (low, high) if bound is not None), 0)
    opened = [bound for bound, is_open in ((low, is_above), (high, is_below)) if bound is not None and is_open]
    places = min(18, places, *(max(0, _DIGITS - len(str(int(abs(bound))))) for bound in opened))
    options = []
    for digits in range(places + 1):
        scale = 10**digits
        least = None if low is None else ceil(low * scale)
        most = None if high is None else floor(high * scale)
        if is_above and low is not None and least == low * scale:
            least = (least or 0) + 1
        if is_below and high is not None and most == high * scale:
            most = (most or 0) - 1
        try:
            options.append(_decimals(*_limits(least, most, _DIGITS), digits))
        except Impossible:
            continue
    if not options:
        raise Unsupported("no number of 18 digits after the point is within the bounds")
    return either(options)


def multiples(of: int, low: int | None = None, high: int | None = None) -> Node:
    """Multiples of a whole number from `low` to `high`; where there are very many, the smaller ones.

    Raises:
        Impossible: there is none.
    """
    least, most = _limits(low, high, max(_DIGITS, len(str(of)) + 1))
    first, last = ceil(Fraction(least, of)), floor(Fraction(most, of))
    if first > last:
        raise Impossible(f"no multiple of {of} is within the bounds")
    if last - first < _MAX_LISTED:
        return either(str(of * n) for n in range(first, last + 1))
    if of <= _MAX_REMAINDERS and first <= 0 <= last:
        digits = min(12, len(str(most + 1)) - 1)  # so that every number of so many digits is within the bounds
        below = min(12, len(str(-least + 1)) - 1)
        above_zero = _multiples(of, digits) if digits else []
        below_zero = _multiples(of, below) if below else []
        if above_zero or below_zero:
            return either(["0", *above_zero, *(sequence("-", each) for each in below_zero)])
    start = first if first > 0 else max(first, min(0, last - _MAX_LISTED + 1))
    return either(str(of * n) for n in range(start, min(last, start + _MAX_LISTED - 1) + 1))


def listed(values: Iterable[int | float]) -> Node:
    """Just these numbers.

    Raises:
        Impossible: there is none.
    """
    texts = [repr(value) for value in values]
    if not texts:
        raise Impossible("no number fits")
    return either(texts)


def _multiples(of: int, digits: int) -> list[Node]:
    """The multiples of at most so many digits that are above zero; in a list, since there may be none."""
    firsts = [(digit, _following(of, digit % of, digits - 1)) for digit in range(1, 10)]
    return [sequence(str(digit), rest) for digit, rest in firsts if rest is not None]


@cache
def _following(of: int, remainder: int, digits: int) -> Node | None:
    """What may follow digits whose number has this remainder, at most so many digits, to make a multiple."""
    options: list[Node] = [NOTHING] if remainder == 0 else []
    for digit in range(10) if digits else ():
        rest = _following(of, (remainder * 10 + digit) % of, digits - 1)
        if rest is not None:
            options.append(sequence(str(digit), rest))
    return either(options) if options else None


def _limits(low: int | None, high: int | None, digits: int) -> tuple[int, int]:
    """Both bounds, where one is missing so far away that numbers stay short."""
    far = 10 ** max(digits, *(len(str(abs(bound))) + 1 for bound in (low, high) if bound is not None), 0) - 1
    return (-far if low is None else low), (far if high is None else high)


def _places(bound: Fraction) -> int:
    """Digits after the point of a decimal; 18 where it has no end."""
    for places in range(18):
        if (bound * 10**places).denominator == 1:
            return places
    return 18


def _decimals(low: int, high: int, places: int) -> Node:
    """The numbers n / 10^places with low ≤ n ≤ high, written with just so many digits after the point."""
    if low > high:
        raise Impossible("no number is within the bounds")
    options: list[Node] = []
    if low < 0:
        options.append(sequence("-", _naturals(max(1, -high), -low, places)))
    if high >= 0:
        options.append(_naturals(max(0, low), high, places))
    return either(options)


def _naturals(low: int, high: int, places: int) -> Node:
    """The same of numbers that are not negative; no leading zeros but the one before the point."""
    options: list[Node] = []
    width = places + 1
    full: list[int] = []
    while low <= high:
        least = 0 if width == places + 1 else 10 ** (width - 1)
        most = 10**width - 1
        if low <= most:
            first, last = max(low, least), min(high, most)
            if (first, last) == (10 ** (width - 1), most) and not places:
                full.append(width)
            else:
                options.append(_between(str(first).zfill(width), str(last).zfill(width), places))
            if last == high:
                break
        width += 1
    if full:
        options.append(sequence(_LEADING, Repeated(DIGIT, full[0] - 1, full[-1] - 1)))
    return either(options)


def _between(low: str, high: str, places: int) -> Node:
    """The digit strings from `low` to `high`, as long as these, with a point before the last `places`."""
    point = "." if places and len(low) == places else ""
    if not low:
        return NOTHING
    if set(low) == {"0"} and set(high) == {"9"}:
        before = len(low) - places if places and len(low) > places else 0
        after = len(low) - before
        digits = sequence(*_run(before), "." if before and places else "", *_run(after))
        return sequence(point, digits)
    rest = len(low) - 1
    if low[0] == high[0]:
        return sequence(point, low[0], _between(low[1:], high[1:], places))
    options = [sequence(low[0], _between(low[1:], "9" * rest, places))]
    if int(high[0]) - int(low[0]) > 1:
        middle = Chars(((ord(low[0]) + 1, ord(high[0]) - 1),))
        options.append(sequence(middle, _between("0" * rest, "9" * rest, places)))
    options.append(sequence(high[0], _between("0" * rest, high[1:], places)))
    return sequence(point, either(options))


def _run(count: int) -> list[Node]:
    return [Repeated(DIGIT, count, count)] if count else []
