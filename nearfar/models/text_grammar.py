"""Grammars of JSON strings: of any text, of a length, of a regular expression, of a known format.

A grammar here is first one of the text itself, so that lengths are counted in its characters; `as_json` then writes it
as a JSON string does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Final, NoReturn

from .grammar import (
    ANY,
    NOTHING,
    Chars,
    Either,
    Impossible,
    Node,
    Ranges,
    Repeated,
    Sequenced,
    Text,
    Unsupported,
    accepts,
    either,
    ranges_of,
    sequence,
    without,
)

#: Characters of a text that nothing bounds; llama.cpp repeats nothing more than 2,000 times.
MOST: Final = 1_000
_MOST_REPEATED: Final = 2_000

_CONTROLS: Final[Ranges] = ((0, 31),)
_ESCAPED: Final = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ASCII: Final[Ranges] = ((9, 10), (13, 13), (32, 126))

_DIGITS: Final[Ranges] = ((48, 57),)
_WORD: Final[Ranges] = ((48, 57), (65, 90), (95, 95), (97, 122))
_BLANK: Final[Ranges] = ((9, 13), (32, 32))
_DOT: Final = without(ANY.ranges, ((10, 10), (13, 13), (0x2028, 0x2029)))


# --- from texts to JSON ----------------------------------------------------------------------------------------------


def json_string(least: int = 0, most: int | None = None) -> Node:
    """A JSON string of any text of so many characters; at most 1,000 where nothing bounds it.

    Raises:
        Impossible: `least` is above `most`.
        Unsupported: it would be longer than 2,000 characters at least.
    """
    if most is not None and least > most:
        raise Impossible(f"no text has at least {least} and at most {most} characters")
    return _json_string(least, min(max(MOST, least), _MOST_REPEATED if most is None else most))


@cache
def _json_string(least: int, most: int) -> Node:
    if least > _MOST_REPEATED:
        raise Unsupported(f"a text of at least {least} characters is longer than a grammar can ask for")
    return as_json(Repeated(ANY, least, most))


def as_json(text: Node) -> Node:
    """The JSON strings of the texts of a grammar.

    Raises:
        Unsupported: it needs characters that JSON writes by number (U+0000 to U+001F but for the common ones).
    """
    return sequence('"', _written(text, {}), '"')


def _written(node: Node, done: dict[int, Node]) -> Node:
    if id(node) not in done:
        if isinstance(node, Text):
            made: Node = Text("".join(map(_character, node.text)))
        elif isinstance(node, Chars):
            made = _characters(node.ranges)
        elif isinstance(node, Sequenced):
            made = sequence(*(_written(part, done) for part in node.parts))
        elif isinstance(node, Either):
            made = either(_written(option, done) for option in node.options)
        else:
            if node.least > _MOST_REPEATED or (node.most or 0) > _MOST_REPEATED:
                raise Unsupported(f"nothing is repeated more than {_MOST_REPEATED} times")
            made = Repeated(_written(node.body, done), node.least, node.most)
        done[id(node)] = made
    return done[id(node)]


def _character(character: str) -> str:
    if character < " " and character not in _ESCAPED:
        raise Unsupported(f"the character U+{ord(character):04X} is not written")
    if "\ud800" <= character <= "\udfff":
        raise Unsupported("half of a surrogate pair is no character")
    return _ESCAPED.get(character, character)


@cache
def _characters(ranges: Ranges) -> Node:
    special = ranges_of((ord(character), ord(character)) for character in _ESCAPED)
    plain = without(without(ranges, special), (*_CONTROLS, (0xD800, 0xDFFF)))
    escaped = [_ESCAPED[c] for c in _ESCAPED if any(low <= ord(c) <= high for low, high in ranges)]
    options: list[Node | str] = [Chars(plain)] if plain else []
    if escaped:
        letters = ranges_of((ord(text[1]), ord(text[1])) for text in escaped)
        options.append(sequence("\\", Chars(letters)))
    if not options:
        raise Unsupported("a set holds only characters that are not written")
    return either(options)


# --- lengths ---------------------------------------------------------------------------------------------------------


def lengths(node: Node) -> tuple[int, int | None]:
    """The least and the most characters of a grammar's texts."""
    return len(node.shortest), node.longest


def limited(node: Node, least: int, most: int | None) -> Node:
    """Those of the grammar's texts, or some of them, that have so many characters.

    Raises:
        Impossible: there is none.
        Unsupported: there may be some that this does not find.
    """
    shortest, longest = lengths(node)
    if most is not None and (shortest > most or least > most):
        raise Impossible(f"no text has at least {least} and at most {most} characters")
    if longest is not None and longest < least:
        raise Impossible(f"no text has {least} characters or more")
    if shortest >= least and (most is None or (longest is not None and longest <= most)):
        return node
    if isinstance(node, Either):
        return _limited_options(node, least, most)
    if isinstance(node, Repeated):
        return _limited_repeats(node, least, most)
    if isinstance(node, Sequenced):
        return _limited_parts(node, least, most)
    raise Impossible(f"no text has at least {least} and at most {most} characters")


def _limited_options(node: Either, least: int, most: int | None) -> Node:
    options = []
    unsupported: Unsupported | None = None
    for option in node.options:
        try:
            options.append(limited(option, least, most))
        except Impossible:
            continue
        except Unsupported as exc:
            unsupported = exc
    if options:
        return either(options)
    raise unsupported or Impossible(f"no text has at least {least} and at most {most} characters")


def _limited_repeats(node: Repeated, least: int, most: int | None) -> Node:
    short, long = lengths(node.body)
    count, top = node.least, node.most
    if short == long and short:
        count = max(count, -(-least // short))
        if most is not None:
            top = most // short if top is None else min(top, most // short)
        if top is not None and count > top:
            raise Impossible(f"no text has at least {least} and at most {most} characters")
        return Repeated(node.body, count, top)
    body = node.body
    if short and (top is None or -(-least // short) <= top):
        count = max(count, -(-least // short))
    elif least:
        count = max(count, 1) if top is None or not short else top
        body = limited(body, -(-least // count), None)
        short = len(body.shortest)
    if most is not None:
        if count * short > most:
            raise Unsupported("a repetition cannot be kept to this length")
        each = most // max(1, count)
        body = limited(body, short, each)
        widest = body.longest or 1
        top = max(count, most // widest) if top is None else max(count, min(top, most // widest))
    return Repeated(body, count, top)


def _limited_parts(node: Sequenced, least: int, most: int | None) -> Node:
    """Each part within a share of the whole length: all shares together keep the bounds."""
    sizes = [lengths(part) for part in node.parts]
    lows = [low for low, _ in sizes]
    highs = [high for _, high in sizes]
    if most is not None:
        spare = most - sum(lows)
        varying = [i for i, (low, high) in enumerate(sizes) if high is None or high > low]
        for left, i in enumerate(varying):
            share = spare // (len(varying) - left)
            high = highs[i]
            highs[i] = lows[i] + (share if high is None else min(share, high - lows[i]))
            spare -= (highs[i] or 0) - lows[i]
    missing = least - sum(lows)
    for i in sorted(range(len(lows)), key=lambda i: -(MOST if highs[i] is None else (highs[i] or 0) - lows[i])):
        if missing <= 0:
            break
        high = highs[i]
        taken = missing if high is None else min(missing, high - lows[i])
        lows[i] += taken
        missing -= taken
    if missing > 0:
        raise Unsupported("a pattern cannot be kept to this length")
    try:
        return sequence(*(limited(part, low, high) for part, low, high in zip(node.parts, lows, highs, strict=True)))
    except Impossible as exc:
        raise Unsupported("a pattern cannot be kept to this length") from exc


# --- all but some ----------------------------------------------------------------------------------------------------


def all_but(taken: Iterable[str], *, least: int = 0, most: int = MOST) -> Node:
    """Any text of so many characters that is not one of these."""
    return _all_but(frozenset(text for text in taken), least, most)


def _all_but(rest: frozenset[str], least: int, most: int) -> Node:
    if not any(least <= len(text) <= most for text in rest):
        return Repeated(ANY, max(0, least), most)
    options: list[Node] = [NOTHING] if least <= 0 and "" not in rest else []
    if most > 0:
        firsts = sorted({text[0] for text in rest if text})
        others = without(ANY.ranges, ranges_of((ord(first), ord(first)) for first in firsts))
        options.append(sequence(Chars(others), Repeated(ANY, max(0, least - 1), most - 1)))
        for first in firsts:
            following = frozenset(text[1:] for text in rest if text.startswith(first))
            try:
                options.append(sequence(first, _all_but(following, least - 1, most - 1)))
            except Impossible:
                continue
    if not options:
        raise Impossible("no text is left")
    return either(options)


# --- regular expressions ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def searcher(pattern: str) -> Callable[[str], bool]:
    """Whether a text holds the pattern, in time that the text's length bounds.

    Python's `re` goes back and forth over repetitions inside repetitions, `(a+)+`, for longer than anybody waits; such
    patterns are matched by their grammar.

    Raises:
        Unsupported: it is no regular expression, or it has such repetitions and no grammar.
    """
    try:
        node = pattern_text(pattern, most=None)
    except Unsupported:
        if re.search(r"\)(?:[*+]|\{)", pattern):
            raise
        compiled = re.compile(pattern)
        return lambda text: compiled.search(text) is not None
    if nests_repetitions(node):
        return lambda text: accepts(node, text)
    compiled = re.compile(pattern)
    return lambda text: compiled.search(text) is not None


def nests_repetitions(node: Node, *, is_inside: bool = False) -> bool:
    """Whether something is repeated without bound inside of what is."""
    if isinstance(node, Repeated):
        is_endless = node.most is None
        return (is_inside and is_endless) or nests_repetitions(node.body, is_inside=is_inside or is_endless)
    inner = node.parts if isinstance(node, Sequenced) else node.options if isinstance(node, Either) else ()
    return any(nests_repetitions(each, is_inside=is_inside) for each in inner)


def pattern_text(pattern: str, *, most: int | None = MOST) -> Node:
    """Texts in which Python's `re.search` finds the pattern; where it is not anchored, anything may stand around it.

    What a class means beyond ASCII differs between dialects, so `\\d`, `\\w`, `\\s` and what they exclude stay within
    ASCII: fewer texts, never more.

    Args:
        pattern: a regular expression.
        most: how often a repetition without a bound is repeated; None: it has none.

    Raises:
        Unsupported: it looks ahead or behind, refers back, or uses what no two dialects share.
    """
    try:
        re.compile(pattern)
    except re.error as exc:
        raise Unsupported(f"the pattern {pattern!r} is not a regular expression: {exc}") from exc
    parser = _Pattern(pattern, most)
    try:
        return parser.whole()
    except Unsupported as exc:
        raise Unsupported(f"the pattern {pattern!r} {exc}") from exc


@dataclass
class _Pattern:
    """A parser of the part of regular expressions that dialects share."""

    text: str
    most: int | None
    at: int = 0
    depth: int = field(default=0)

    def whole(self) -> Node:
        options = [self.anchored()]
        while self.take("|"):
            options.append(self.anchored())
        if self.at < len(self.text):
            self.fail("has a ')' too many")
        return either(options)

    def anchored(self) -> Node:
        """One alternative of the whole pattern, with whatever its missing anchors let stand around it."""
        is_start = self.take("^") or self.take("\\A")
        body = self.branch()
        is_end = self.take("$") or self.take("\\Z")
        if self.peek() not in ("", "|", ")"):
            self.fail("has an anchor inside")
        around = Repeated(ANY, 0, self.most)
        return sequence(*([] if is_start else [around]), body, *([] if is_end else [around]))

    def alternatives(self) -> Node:
        options = [self.branch()]
        while self.take("|"):
            options.append(self.branch())
        return either(options)

    def branch(self) -> Node:
        parts: list[Node] = []
        while self.peek() not in ("", "|", ")", "$") and not self.text.startswith("\\Z", self.at):
            parts.append(self.counted(self.atom()))
        return sequence(*parts)

    def counted(self, atom: Node) -> Node:
        least = 1
        most: int | None = 1
        if self.take("*"):
            least, most = 0, self.most
        elif self.take("+"):
            least, most = 1, self.most
        elif self.take("?"):
            least, most = 0, 1
        elif match := re.compile(r"\{(\d+)(,?)(\d*)\}").match(self.text, self.at):
            self.at = match.end()
            least = int(match[1])
            open_end = None if self.most is None else max(self.most, least)
            most = int(match[3]) if match[3] else open_end if match[2] else least
        elif match := re.compile(r"\{,(\d+)\}").match(self.text, self.at):
            self.fail("has a {,n}, which dialects read differently")
        else:
            return atom
        if self.take("+"):
            self.fail("has a possessive quantifier")
        self.take("?")  # lazy: the same texts
        if self.peek() in ("*", "+", "?"):
            self.fail("has two quantifiers")
        if least > _MOST_REPEATED or (most or 0) > _MOST_REPEATED:
            self.fail(f"repeats something more than {_MOST_REPEATED} times")
        return Repeated(atom, least, most)

    def atom(self) -> Node:
        character = self.peek()
        if character == "(":
            return self.group()
        if character == "[":
            return self.bracket()
        self.at += 1
        if character == ".":
            return Chars(_DOT)
        if character == "\\":
            found = self.escape()
            return Text(chr(found[0][0])) if len(found) == 1 and found[0][0] == found[0][1] else Chars(found)
        if character in "^*+?":
            self.fail("has an anchor or a quantifier in an odd place")
        return Text(character)

    def group(self) -> Node:
        self.at += 1
        if self.take("?"):
            if match := re.compile(r"P?<[A-Za-z_]\w*>").match(self.text, self.at):
                self.at = match.end()
            elif not self.take(":"):
                self.fail("looks ahead or behind, or sets flags")
        self.depth += 1
        if self.depth > 50:
            self.fail("is nested too deeply")
        inner = self.alternatives()
        self.depth -= 1
        if not self.take(")"):
            self.fail("has an anchor inside a group")
        return inner

    def bracket(self) -> Node:
        self.at += 1
        is_negated = self.take("^")
        found: list[tuple[int, int]] = []
        has_class = False
        if self.peek() == "]":
            self.fail("has a class that begins with ]")
        while not self.take("]"):
            low, is_class = self.member()
            has_class |= is_class
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high, is_also = self.member()
                if is_class or is_also or high[0][0] < low[0][0]:
                    self.fail("has a range of classes")
                found.append((low[0][0], high[0][0]))
            else:
                found += low
        ranges = ranges_of(found)
        if is_negated:
            ranges = without(_ASCII if has_class else ANY.ranges, ranges)
        if not ranges:
            self.fail("has an empty class")
        return Chars(ranges)

    def member(self) -> tuple[Ranges, bool]:
        """One member of a class: its characters, and whether it is a class itself."""
        character = self.peek()
        if not character:
            self.fail("has a class without an end")
        if self.text.startswith(("[:", "&&", "--", "~~", "||"), self.at):
            self.fail("has set operations")
        self.at += 1
        if character != "\\":
            return ((ord(character), ord(character)),), False
        is_class = self.peek() in "dDwWsS"
        if self.peek() == "b":
            self.fail("has a backspace")
        return self.escape(), is_class

    def escape(self) -> Ranges:
        """What stands after a backslash."""
        character = self.peek()
        self.at += 1
        classes = {"d": _DIGITS, "w": _WORD, "s": _BLANK}
        if character in classes:
            return classes[character]
        if character and character in "DWS":
            return without(_ASCII, classes[character.lower()])
        plain = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
        if character in plain:
            return ((ord(plain[character]),) * 2,)
        for letter, length in (("x", 2), ("u", 4)):
            digits = self.text[self.at : self.at + length]
            if character == letter and re.fullmatch(rf"[0-9A-Fa-f]{{{length}}}", digits):
                self.at += length
                return ((int(digits, 16),) * 2,)
        if not character or character.isalnum():
            self.fail("refers back, looks at word borders, or has an escape that dialects read differently")
        return ((ord(character),) * 2,)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, text: str) -> bool:
        if self.text.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def fail(self, why: str) -> NoReturn:
        raise Unsupported(why)


# --- formats ---------------------------------------------------------------------------------------------------------

_DAYS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"[12][0-9]{{3}}-({_DAYS})"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9a-fA-F]"
_LABEL = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_HOST = rf"({_LABEL}\.){{1,4}}[a-z]{{2,12}}"

#: Formats whose texts are kept to; JSON Schema calls formats annotations, and every other one is left at that.
FORMATS: Final = {
    "date": _DATE,
    "time": f"{_TIME}{_ZONE}",
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "duration": "P([0-9]{1,4}D|([0-9]{1,4}D)?T([0-9]{1,4}H|([0-9]{1,4}H)?[0-9]{1,4}M|[0-9]{1,6}S)|[0-9]{1,4}W)",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "email": rf"[A-Za-z0-9]([A-Za-z0-9_+-]{{0,30}}(\.[A-Za-z0-9_+-]{{1,20}}){{0,2}})@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "ipv6": f"({_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "uri": rf"https?://{_HOST}(:[1-9][0-9]{{1,3}})?(/[A-Za-z0-9._~%+,;=@-]{{0,60}}){{0,8}}(\?[A-Za-z0-9._~%+,;=@&-]{{0,200}})?",
}


@cache
def format_text(name: str) -> Node | None:
    """Texts of a format; None: it is not one that is kept to."""
    pattern = FORMATS.get({"url": "uri", "idn-email": "email"}.get(name, name))
    return None if pattern is None else pattern_text(f"^{pattern}$")
