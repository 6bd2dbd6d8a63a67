"""Reads GBNF, llama.cpp's notation for grammars, says the same in llguidance's dialect of Lark, and checks texts by it.

llama.cpp's own engine keeps every way to read what is written: a line of optional letters, or a rule that can be read
in two ways, takes it hours and all memory, and a chain of rules its stack, and with it the whole process. llguidance
reads any grammar in polynomial time. Every letter is a terminal of its own there, since its terminals are greedy and
GBNF's are not. What is wrong with a grammar is told by its place, for llama.cpp prints that to the operator's
terminal. The notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_CHAR = r"""(?:\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\"\[\]-])|[^\\])"""
_LITERAL = re.compile(rf'"(?:(?!"){_CHAR})*"', re.DOTALL)
_CLASS = re.compile(rf"\[\^?(?:(?!\]){_CHAR}(?:-(?!\]){_CHAR})?)*\]", re.DOTALL)
_LETTER = re.compile(_CHAR, re.DOTALL)
_RANGE = re.compile(rf"(?P<low>{_CHAR})(?:-(?P<high>{_CHAR}))?", re.DOTALL)
_TOKEN = re.compile(r"!?<[^<>\r\n]+>")
_REPEAT = re.compile(r"[*+?]|\{[ \t]*\d+[ \t]*(?:,[ \t]*\d*[ \t]*)?\}")
_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n"}
_BOUNDS: Final = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_LAST: Final = 0x10FFFF
_SURROGATES: Final = (0xD800, 0xDFFF)

#: Groups within groups; llguidance takes 80 and some.
_MAX_DEPTH = 64
#: Letters, classes, names and counts of repetitions together; a grammar of so many compiles in a second or two.
_MAX_ITEMS = 10_000
#: Rules, and groups within groups in them: llguidance goes into them one by one on a thread's stack of 8 MB, which
#: 5,000 have overrun.
_MAX_NESTING = 1_000
#: As in llama.cpp.
_MAX_REPEATS = 2_000
#: Steps of a text's check, about a microsecond each.
_MAX_STEPS = 300_000


@dataclass(frozen=True, slots=True)
class _Chars:
    """One character out of these ranges."""

    ranges: tuple[tuple[int, int], ...]

    def holds(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of the vocabulary, as GBNF and Lark both name it."""

    text: str


@dataclass(frozen=True, slots=True)
class _Row:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Either:
    options: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Times:
    part: _Node
    least: int
    most: int | None


_Node: TypeAlias = _Chars | _Rule | _Token | _Row | _Either | _Times
_EMPTY: Final = _Row(())
_ANY: Final = _Chars(((0, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, _LAST)))


class Grammar:
    """A grammar in GBNF.

    Raises:
        ValueError: it does not parse, uses a rule that it does not define, has no `root`, or is too large; the message
            says where and why.
    """

    def __init__(self, text: str) -> None:
        parser = _Parser(text)
        parser.rules()
        if missing := sorted(parser.used - parser.defined.keys()):
            raise ValueError(f"rule {missing[0]!r} is used and not defined")
        if "root" not in parser.defined:
            raise ValueError("there is no rule 'root'")
        self._rules = parser.defined

    def lark(self) -> str:
        """The same grammar in Lark, with `root` as its rule `root`."""
        names = {"root": "root"}
        for name in self._rules:
            names.setdefault(name, f"r{len(names)}")
        terminals: dict[_Chars, str] = {}
        lines = [f"{names[name]}: {_lark(body, names, terminals)}" for name, body in self._rules.items()]
        return "\n".join([*lines, *(f"{name}: /{_regex(chars)}/" for chars, name in terminals.items())])

    def refuses(self, text: str, *, is_whole: bool) -> bool:
        """Whether the text is certainly none of the grammar's, or no beginning of one.

        Args:
            text: to check.
            is_whole: it is meant to be a whole one, and not the beginning of one.

        Source: Earley 1970, "An efficient context-free parsing algorithm", with the nullable symbols of Aycock and
            Horspool 2002, "Practical Earley Parsing", section 4.
        """
        productions = _Productions()
        start = productions.symbol(_Rule("root"), self._rules)
        if productions.has_tokens:
            return False
        return productions.refuses(start, text, is_whole=is_whole)


def choice(texts: Sequence[str]) -> str:
    """A grammar of just these texts."""
    return f"root ::= {' | '.join(map(_literal, texts))}"


def _literal(text: str) -> str:
    """The text in quotes; whatever is not a plain letter, by its number."""
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08X}" for c in text) + '"'


# --- reading it ------------------------------------------------------------------------------------------------------


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.used: set[str] = set()
        self.defined: dict[str, _Node] = {}  # as in llama.cpp, the last of a name holds
        self._taken_at = 0
        self._num_items = 0
        self._nesting = 0
        self._depth = 0  # of the deepest group in the rule that is being read

    def rules(self) -> None:
        self.skip(_BLANK_LINES)
        while self.at < len(self.text):
            name = self.take(_NAME) or self.fail("a rule's name is expected")
            self.skip(_BLANK)
            if not self.text.startswith("::=", self.at):
                self.fail("'::=' is expected")
            self.at += 3
            self._depth = 0
            self.defined[name] = self.alternatives(depth=0)
            self._nesting += 1 + self._depth
            if self._nesting > _MAX_NESTING:
                raise ValueError(f"it has more than {_MAX_NESTING} rules and groups within groups")
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                self.fail("the end of the rule is expected")
            self.skip(_BLANK_LINES)

    def alternatives(self, depth: int) -> _Node:
        self._depth = max(self._depth, depth)
        if depth > _MAX_DEPTH:
            self.fail("groups are nested too deeply")
        blank = _BLANK_LINES if depth else _BLANK
        self.skip(_BLANK_LINES)
        options = [self.sequence(depth, blank)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self.skip(_BLANK_LINES)
            options.append(self.sequence(depth, blank))
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def sequence(self, depth: int, blank: re.Pattern[str]) -> _Node:
        items: list[_Node] = []
        while self.at < len(self.text):
            if literal := self.take(_LITERAL):
                codes = [self.code(found[0]) for found in _LETTER.finditer(literal[1:-1])]
                items.append(_Row(tuple(_Chars(((code, code),)) for code in codes)))
                self.count(len(codes))
            elif chars := self.take(_CLASS):
                items.append(self.char_class(chars[1:-1]))
                self.count(1)
            elif token := self.take(_TOKEN):
                if token.startswith("!"):
                    self.fail_there("a token that may not come cannot be told to this model")
                items.append(_Token(token))
                self.count(1)
            elif name := self.take(_NAME):
                self.used.add(name)
                items.append(_Rule(name))
                self.count(1)
            elif self.text[self.at] == ".":
                self.at += 1
                items.append(_ANY)
                self.count(1)
            elif self.text[self.at] == "(":
                self.at += 1
                items.append(_Row((self.alternatives(depth + 1),)))
                if not self.text.startswith(")", self.at):
                    self.fail("')' is expected")
                self.at += 1
            elif self.text[self.at] in "*+?{":
                if not items or isinstance(items[-1], _Times):
                    self.fail("a repetition needs something before it")
                least, most = self.bounds(self.take(_REPEAT) or self.fail("a repetition is {n}, {n,} or {n,m}"))
                items[-1] = _Times(items[-1], least, most)
                self.count(most or least)
            elif self.text[self.at] in '"[<!':
                self.fail("a literal or character class is not closed, or has an unknown escape")
            else:
                break
            self.skip(blank)
        return items[0] if len(items) == 1 else _Row(tuple(items))

    def char_class(self, inner: str) -> _Chars:
        is_negated = inner.startswith("^")
        ranges = [_SURROGATES] if is_negated else []
        for found in _RANGE.finditer(inner, int(is_negated)):
            low = self.code(found["low"])
            high = self.code(found["high"]) if found["high"] else low
            if low > high:
                self.fail_there(f"the range {found[0]!r} runs backwards")
            ranges.append((low, high))
        ranges = list(_without(ranges)) if is_negated else ranges
        if not ranges:
            self.fail_there("a character class holds no character")
        return _Chars(tuple(ranges))

    def bounds(self, repeat: str) -> tuple[int, int | None]:
        if repeat in _BOUNDS:
            return _BOUNDS[repeat]
        first, comma, last = (part.strip() for part in repeat[1:-1].partition(","))
        least, most = (int(part) if len(part) < 10 else _LAST for part in (first, last or first))
        if max(least, most) > _MAX_REPEATS:
            self.fail_there(f"a repetition of more than {_MAX_REPEATS} times")
        if least > most:
            self.fail_there("a repetition's least is more than its most")
        return least, None if comma and not last else most

    def code(self, char: str) -> int:
        """The number of a character, which may be escaped."""
        if not char.startswith("\\"):
            code = ord(char)
        elif char[1] in "xuU":
            digits = char[2:]
            code = int(digits, 16)
        else:
            code = ord(_ESCAPES.get(char[1], char[1]))
        if code > _LAST or _SURROGATES[0] <= code <= _SURROGATES[1]:
            self.fail_there(f"{char!r} is no character")
        return code

    def count(self, num_items: int) -> None:
        self._num_items += num_items
        if self._num_items > _MAX_ITEMS:
            raise ValueError(f"it has more than {_MAX_ITEMS} letters, classes, names and repetitions")

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self._taken_at = self.at
        self.at = match.end()
        return match[0]

    def skip(self, pattern: re.Pattern[str]) -> None:
        self.take(pattern)

    def fail(self, why: str) -> NoReturn:
        line = self.text.count("\n", 0, self.at) + 1
        raise ValueError(f"{why} in line {line}, at {self.text[self.at : self.at + 20]!r}")

    def fail_there(self, why: str) -> NoReturn:
        """As `fail`, at what was taken last."""
        self.at = self._taken_at
        self.fail(why)


def _without(ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The ranges of all other characters."""
    at = 0
    for low, high in sorted(ranges):
        if low > at:
            yield at, low - 1
        at = max(at, high + 1)
    if at <= _LAST:
        yield at, _LAST


# --- writing it in Lark ----------------------------------------------------------------------------------------------


def _lark(node: _Node, names: dict[str, str], terminals: dict[_Chars, str]) -> str:
    match node:
        case _Chars():
            return terminals.setdefault(node, f"C{len(terminals)}")
        case _Rule():
            return names[node.name]
        case _Token():
            return node.text
        case _Either():
            return f"({' | '.join(_lark(option, names, terminals) for option in node.options)})"
        case _Row(parts=()):
            return '""'
        case _Row():
            return f"({' '.join(_lark(part, names, terminals) for part in node.parts)})"
        case _Times():
            most = "" if node.most is None else str(node.most)
            return f"({_lark(node.part, names, terminals)}){{{node.least},{most}}}" if node.most != 0 else '""'


def _regex(chars: _Chars) -> str:
    return "[" + "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in chars.ranges) + "]"


# --- checking a text by it -------------------------------------------------------------------------------------------


class _Productions:
    """A grammar as productions of numbered symbols, for Earley's algorithm."""

    def __init__(self) -> None:
        self.has_tokens = False
        self._options: list[list[tuple[int | _Chars, ...]]] = []  # by symbol
        self._symbols: dict[str | int, int] = {}  # by a rule's name, or the identity of another node
        self._nodes: list[_Node] = []  # by symbol, so that their identities hold
        self._nullable: set[int] = set()

    def symbol(self, node: _Node, rules: dict[str, _Node]) -> int:
        """The number of the node's symbol; makes it, and all that it stands on."""
        waiting: list[int] = []

        def number(node: _Node) -> int:
            key = node.name if isinstance(node, _Rule) else id(node)
            found = self._symbols.get(key)
            if found is None:
                found = self._symbols[key] = len(self._options)
                self._options.append([])
                self._nodes.append(node)
                waiting.append(found)
            return found

        def part(node: _Node) -> int | _Chars:
            return node if isinstance(node, _Chars) else number(node)

        first = number(node)
        while waiting:
            symbol = waiting.pop()
            node, options = self._nodes[symbol], self._options[symbol]
            match node:
                case _Chars():
                    options.append((node,))
                case _Rule():
                    options.append((part(rules[node.name]),))
                case _Token():
                    self.has_tokens = True
                case _Either():
                    options.extend((part(option),) for option in node.options)
                case _Row():
                    options.append(tuple(part(each) for each in node.parts))
                case _Times(inner, 0, None):
                    options.extend([(), (symbol, part(inner))])
                case _Times(inner, 0, most):
                    options.append(())
                    if most:
                        options.append((part(inner), number(_Times(inner, 0, most - 1))))
                case _Times(inner, least, None):
                    options.append((*[part(inner)] * least, number(_Times(inner, 0, None))))
                case _Times(inner, least, most):
                    options.append((*[part(inner)] * least, number(_Times(inner, 0, (most or 0) - least))))
        return first

    def refuses(self, start: int, text: str, *, is_whole: bool) -> bool:
        """Whether the text is certainly none of the symbol's; False where that would take too long to tell."""
        self._find_nullable()
        options, nullable = self._options, self._nullable
        Item: TypeAlias = tuple[int, int, int, int]  # symbol, option, how much of it is read, and the row it began in
        rows: list[dict[int, list[Item]]] = []  # items of a row by the symbol that they wait for
        reading: list[Item] = [(start, i, 0, 0) for i in range(len(options[start]))]
        steps = 0
        for at in range(len(text) + 1):
            seen = set(reading)
            by_symbol: dict[int, list[Item]] = {}
            rows.append(by_symbol)
            by_chars: list[tuple[_Chars, Item]] = []
            is_end = False
            queue = reading

            def add(item: Item, seen: set[Item] = seen, queue: list[Item] = queue) -> None:
                if item not in seen:
                    seen.add(item)
                    queue.append(item)

            for item in queue:  # which grows
                steps += 1
                if steps > _MAX_STEPS:
                    return False
                symbol, option, read, origin = item
                parts = options[symbol][option]
                if read == len(parts):
                    is_end = is_end or (symbol == start and origin == 0)
                    for waiter in rows[origin].get(symbol, ()):
                        add((waiter[0], waiter[1], waiter[2] + 1, waiter[3]))
                    continue
                awaited = parts[read]
                following = (symbol, option, read + 1, origin)
                if isinstance(awaited, _Chars):
                    by_chars.append((awaited, following))
                    continue
                by_symbol.setdefault(awaited, []).append(item)
                for i in range(len(options[awaited])):
                    add((awaited, i, 0, at))
                if awaited in nullable:
                    add(following)
            if at == len(text):
                return is_whole and not is_end
            code = ord(text[at])
            reading = list(dict.fromkeys(item for chars, item in by_chars if chars.holds(code)))
            if not reading:
                return True
        return False

    def _find_nullable(self) -> None:
        is_done = False
        while not is_done:
            is_done = True
            for symbol in reversed(range(len(self._options))):  # the inner ones come later
                options = self._options[symbol]
                if symbol not in self._nullable and any(all(each in self._nullable for each in o) for o in options):
                    self._nullable.add(symbol)
                    is_done = False
