"""Grammars as values: written in GBNF, recognised character by character, and finished where a text was cut off.

A grammar here is a graph of nodes without cycles, so that every text it takes can be finished, and the shortest way to
finish it is known. Knows nothing of JSON or of llama.cpp.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, TypeAlias

_LAST: Final = 0x10FFFF

#: Pairs of code points, first and last, in order and apart.
Ranges: TypeAlias = tuple[tuple[int, int], ...]


class Impossible(ValueError):
    """Provably no text fits; that none is found among fewer than may fit is `Unsupported`."""


class Unsupported(ValueError):
    """A grammar cannot say it."""


def _plainest(ranges: Ranges) -> str:
    """A character to stand for the set: a letter or digit where there is one."""
    for wanted in "a0A":
        for low, high in ranges:
            if low <= ord(wanted) <= high:
                return wanted
    for low, high in ranges:
        if high >= ord(" "):
            return chr(max(low, ord(" ")))
    return chr(ranges[0][0])


class _Sized:
    """What every node knows of its texts."""

    __slots__ = ()

    shortest: str
    longest: int | None  # characters; None: no bound


@dataclass(frozen=True, eq=False)
class Text(_Sized):
    """Just this text."""

    text: str
    shortest: str = field(init=False)
    longest: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shortest", self.text)
        object.__setattr__(self, "longest", len(self.text))


@dataclass(frozen=True, eq=False)
class Chars(_Sized):
    """One character of a set."""

    ranges: Ranges
    shortest: str = field(init=False)
    longest: int | None = field(init=False)

    def __post_init__(self) -> None:
        if not self.ranges:
            raise ValueError("a set of characters is empty")
        object.__setattr__(self, "shortest", _plainest(self.ranges))
        object.__setattr__(self, "longest", 1)

    def holds(self, character: str) -> bool:
        """Whether the character is in the set."""
        code = ord(character)
        return any(low <= code <= high for low, high in self.ranges)


@dataclass(frozen=True, eq=False)
class Sequenced(_Sized):
    """One after another."""

    parts: tuple[Node, ...]
    shortest: str = field(init=False)
    longest: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shortest", "".join(part.shortest for part in self.parts))
        lengths = [part.longest for part in self.parts]
        object.__setattr__(self, "longest", None if None in lengths else sum(n for n in lengths if n is not None))


@dataclass(frozen=True, eq=False)
class Either(_Sized):
    """One of several."""

    options: tuple[Node, ...]
    shortest: str = field(init=False)
    longest: int | None = field(init=False)

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("there is nothing to choose from")
        object.__setattr__(self, "shortest", min((option.shortest for option in self.options), key=len))
        lengths = [option.longest for option in self.options]
        object.__setattr__(self, "longest", None if None in lengths else max(n for n in lengths if n is not None))


@dataclass(frozen=True, eq=False)
class Repeated(_Sized):
    """The same, again and again."""

    body: Node
    least: int = 0
    most: int | None = None
    shortest: str = field(init=False)
    longest: int | None = field(init=False)

    def __post_init__(self) -> None:
        if self.least < 0 or (self.most is not None and self.most < self.least):
            raise ValueError(f"nothing can be repeated from {self.least} to {self.most} times")
        object.__setattr__(self, "shortest", self.body.shortest * self.least)
        whole = None if self.most is None or self.body.longest is None else self.most * self.body.longest
        object.__setattr__(self, "longest", whole)


Node: TypeAlias = Text | Chars | Sequenced | Either | Repeated

NOTHING: Final = Text("")
ANY: Final = Chars(((0, 0xD7FF), (0xE000, _LAST)))


# --- building --------------------------------------------------------------------------------------------------------


def sequence(*parts: Node | str) -> Node:
    """One after another; texts that stand together become one."""
    flat: list[Node] = []
    for part in parts:
        node = Text(part) if isinstance(part, str) else part
        for each in node.parts if isinstance(node, Sequenced) else (node,):
            if isinstance(each, Text) and flat and isinstance(flat[-1], Text):
                flat[-1] = Text(flat[-1].text + each.text)
            elif not (isinstance(each, Text) and not each.text):
                flat.append(each)
    return flat[0] if len(flat) == 1 else Sequenced(tuple(flat)) if flat else NOTHING


def either(options: Iterable[Node | str]) -> Node:
    """One of several; the same text or node twice is there once."""
    found: dict[object, Node] = {}
    for option in options:
        node = Text(option) if isinstance(option, str) else option
        found.setdefault(node.text if isinstance(node, Text) else id(node), node)
    return next(iter(found.values())) if len(found) == 1 else Either(tuple(found.values()))


def by_prefix(options: Iterable[tuple[str, Node]]) -> Node:
    """One of several, each a text and what follows it; what texts have in common at their beginnings is there once.

    A reader then stands at one place and not at as many as there are options.
    """
    found = sorted(options, key=lambda option: option[0])
    groups = [list(group) for _, group in groupby(found, key=lambda option: option[0][:1])]
    made: list[Node] = []
    for group in groups:
        if len(group) == 1 or not group[0][0]:
            made += [sequence(text, rest) for text, rest in group]
            continue
        first, last = group[0][0], group[-1][0]  # of sorted texts, these differ most
        differing = (i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
        length = next(differing, min(len(first), len(last)))
        made.append(sequence(first[:length], by_prefix((text[length:], rest) for text, rest in group)))
    return either(made)


def optional(node: Node) -> Node:
    """It or nothing."""
    return Repeated(node, 0, 1)


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The same characters in order, with ranges that touch made one."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def without(ranges: Ranges, taken: Ranges) -> Ranges:
    """The characters of `ranges` that are not in `taken`."""
    left: list[tuple[int, int]] = []
    for low, high in ranges:
        for first, last in taken:
            if last < low or first > high:
                continue
            if low < first:
                left.append((low, first - 1))
            low = last + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)


# --- reading ---------------------------------------------------------------------------------------------------------

#: Where in the grammar one is: a node, how far into it (characters, parts or repetitions), and where it stands.
_Place: TypeAlias = "tuple[Node, int, _Place] | None"


def accepts(grammar: Node, text: str) -> bool:
    """Whether the whole text is in the grammar."""
    places = _leaves([(grammar, 0, None)])
    for character in text:
        places = _after(places, character)
        if not places:
            return False
    return None in places


def completed(grammar: Node, text: str) -> tuple[str, int]:
    """A text of the grammar that begins as `text` does, for as long as it can.

    Returns:
        The longest beginning of `text` that some text of the grammar has, finished in the shortest way; and how many
        characters of `text` that beginning has.
    """
    places = _leaves([(grammar, 0, None)])
    taken = 0
    for character in text:
        following = _after(places, character)
        if not following:
            break
        places, taken = following, taken + 1
    return text[:taken] + min((_rest(place) for place in places), key=len), taken


def _after(places: Iterable[_Place], character: str) -> dict[_Place, None]:
    """Where one may be after one more character."""
    advanced: list[_Place] = []
    for place in places:
        if place is None:
            continue
        node, at, parent = place
        if isinstance(node, Text):
            if node.text[at] == character:
                advanced.append((node, at + 1, parent))
        elif isinstance(node, Chars) and node.holds(character):
            advanced.append(parent)
    return _leaves(advanced)


def _leaves(places: Iterable[_Place]) -> dict[_Place, None]:
    """The places at characters to come, that one can be at without reading any; None: at the end."""
    found: dict[_Place, None] = {}
    seen: set[_Place] = set()
    stack = list(places)[::-1]
    while stack:
        place = stack.pop()
        if place in seen:
            continue
        seen.add(place)
        if place is None:
            found[None] = None
            continue
        node, at, parent = place
        if isinstance(node, Chars):
            found[place] = None
        elif isinstance(node, Text):
            if at < len(node.text):
                found[place] = None
            else:
                stack.append(parent)
        elif isinstance(node, Either):
            stack.extend((option, 0, parent) for option in reversed(node.options))
        elif isinstance(node, Sequenced):
            following = parent if at + 1 == len(node.parts) else (node, at + 1, parent)
            stack.append((node.parts[at], 0, following))
        else:
            if at >= node.least:
                stack.append(parent)
            if node.most is None or at < node.most:
                # beyond the least there is nothing to count where there is no most
                count = min(at + 1, node.least) if node.most is None else at + 1
                stack.append((node.body, 0, (node, count, parent)))
    return found


def _rest(place: _Place) -> str:
    """The shortest way to the end."""
    rest: list[str] = []
    while place is not None:
        node, at, parent = place
        if isinstance(node, Text):
            rest.append(node.text[at:])
        elif isinstance(node, Sequenced):
            rest.append("".join(part.shortest for part in node.parts[at:]))
        elif isinstance(node, Repeated):
            rest.append(node.body.shortest * max(0, node.least - at))
        else:
            rest.append(node.shortest)
        place = parent
    return "".join(rest)


def sampled(grammar: Node, rng: random.Random, *, repeats: int = 3) -> str:
    """A text of the grammar, by chance; each repetition goes at most `repeats` beyond its least."""
    pieces: list[str] = []
    stack: list[Node] = [grammar]
    while stack:
        node = stack.pop()
        if isinstance(node, Text):
            pieces.append(node.text)
        elif isinstance(node, Chars):
            low, high = rng.choice(node.ranges)
            pieces.append(chr(rng.randint(low, high)))
        elif isinstance(node, Sequenced):
            stack.extend(reversed(node.parts))
        elif isinstance(node, Either):
            stack.append(rng.choice(node.options))
        else:
            most = node.least + repeats if node.most is None else min(node.most, node.least + repeats)
            stack.extend([node.body] * rng.randint(node.least, most))
    return "".join(pieces)


# --- writing ---------------------------------------------------------------------------------------------------------


def gbnf(grammar: Node) -> str:
    """The grammar in llama.cpp's notation; a node that is used twice is one rule."""
    nodes = list(_topological(grammar))
    uses: dict[int, int] = {}
    for node in nodes:
        for child in _children(node):
            uses[id(child)] = uses.get(id(child), 0) + 1
    names: dict[int, str] = {}
    rules: list[str] = []
    written: dict[int, str] = {}
    for node in reversed(nodes):  # children first
        body = _rule(node, written)
        is_rule = isinstance(node, Either | Sequenced) or (isinstance(node, Repeated) and uses.get(id(node), 0) > 1)
        is_rule = is_rule or (isinstance(node, Chars) and len(body) > 24 and uses.get(id(node), 0) > 1)
        if is_rule and node is not grammar:
            names[id(node)] = f"r{len(names)}"
            rules.append(f"{names[id(node)]} ::= {body}")
            body = names[id(node)]
        written[id(node)] = body
    return "\n".join([f"root ::= {written[id(grammar)]}", *reversed(rules)]) + "\n"


def _rule(node: Node, written: dict[int, str]) -> str:
    if isinstance(node, Text):
        return f'"{"".join(map(_quoted, node.text))}"'
    if isinstance(node, Chars):
        return f"[{''.join(map(_span, node.ranges))}]"
    if isinstance(node, Sequenced):
        return " ".join(written[id(part)] for part in node.parts)
    if isinstance(node, Either):
        return " | ".join(written[id(option)] for option in node.options)
    body = written[id(node.body)]
    if isinstance(node.body, Repeated):
        body = f"({body})"
    return f"{body}{_count(node.least, node.most)}"


def _count(least: int, most: int | None) -> str:
    signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    if (least, most) in signs:
        return signs[least, most]
    return f"{{{least},{'' if most is None else most}}}" if least != most else f"{{{least}}}"


def _quoted(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if " " <= character <= "~" else f"\\U{ord(character):08X}"


def _span(span: tuple[int, int]) -> str:
    low, high = span
    return _classed(low) if low == high else f"{_classed(low)}-{_classed(high)}"


def _classed(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\U{code:08X}"


def _children(node: Node) -> Sequence[Node]:
    if isinstance(node, Sequenced):
        return node.parts
    if isinstance(node, Either):
        return node.options
    return (node.body,) if isinstance(node, Repeated) else ()


def _topological(grammar: Node) -> Iterator[Node]:
    """Every node once, each before its children."""
    order: list[Node] = []
    done: set[int] = set()
    stack: list[tuple[Node, bool]] = [(grammar, False)]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            order.append(node)
        elif id(node) not in done:
            done.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node))
    return reversed(order)
