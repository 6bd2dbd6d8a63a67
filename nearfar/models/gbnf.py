"""Checks that a grammar is written in GBNF, llama.cpp's notation.

llama.cpp prints what it finds wrong to the process's stderr and answers only "failed to parse grammar"; a request
must neither write to the operator's terminal nor leave the client guessing. The notation:
https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_CHAR = r"""(?:\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\"\[\]-])|[^\\])"""
_LITERAL = re.compile(rf'"(?:(?!"){_CHAR})*"', re.DOTALL)
_CLASS = re.compile(rf"\[\^?(?:(?!\]){_CHAR}(?:-(?!\]){_CHAR})?)*\]", re.DOTALL)
_TOKEN = re.compile(r"!?<[^<>\r\n]+>")
_REPEAT = re.compile(r"[*+?]|\{[ \t]*\d+[ \t]*(?:,[ \t]*\d*[ \t]*)?\}")
_MAX_DEPTH = 100


def check(grammar: str) -> None:
    """Returns if `grammar` parses, defines every rule that it uses, and has a `root`.

    Raises:
        ValueError: it does not; the message says where and why.
    """
    parser = _Parser(grammar)
    parser.rules()
    if missing := sorted(parser.used - parser.defined):
        raise ValueError(f"rule {missing[0]!r} is used and not defined")
    if "root" not in parser.defined:
        raise ValueError("there is no rule 'root'")


def choice(texts: Sequence[str]) -> str:
    """A grammar of just these texts."""
    return f"root ::= {' | '.join(map(_literal, texts))}"


def _literal(text: str) -> str:
    """The text in quotes; whatever is not a plain letter, by its number."""
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08X}" for c in text) + '"'


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.used: set[str] = set()
        self.defined: set[str] = set()

    def rules(self) -> None:
        self.skip(_BLANK_LINES)
        while self.at < len(self.text):
            name = self.take(_NAME) or self.fail("a rule's name is expected")
            self.skip(_BLANK)
            if not self.text.startswith("::=", self.at):
                self.fail("'::=' is expected")
            self.at += 3
            self.defined.add(name)
            self.alternatives(depth=0)
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                self.fail("the end of the rule is expected")
            self.skip(_BLANK_LINES)

    def alternatives(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            self.fail("groups are nested too deeply")
        blank = _BLANK_LINES if depth else _BLANK
        self.skip(_BLANK_LINES)
        self.sequence(depth, blank)
        while self.text.startswith("|", self.at):
            self.at += 1
            self.skip(_BLANK_LINES)
            self.sequence(depth, blank)

    def sequence(self, depth: int, blank: re.Pattern[str]) -> None:
        has_item = False
        while self.at < len(self.text):
            if self.take(_LITERAL) or self.take(_CLASS) or self.take(_TOKEN):
                has_item = True
            elif name := self.take(_NAME):
                self.used.add(name)
                has_item = True
            elif self.text[self.at] == ".":
                self.at += 1
                has_item = True
            elif self.text[self.at] == "(":
                self.at += 1
                self.alternatives(depth + 1)
                if not self.text.startswith(")", self.at):
                    self.fail("')' is expected")
                self.at += 1
                has_item = True
            elif self.text[self.at] in "*+?{":
                if not has_item:
                    self.fail("a repetition needs something before it")
                if not self.take(_REPEAT):
                    self.fail("a repetition is {n}, {n,} or {n,m}")
            elif self.text[self.at] in '"[<!':
                self.fail("a literal or character class is not closed, or has an unknown escape")
            else:
                return
            self.skip(blank)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[0]

    def skip(self, pattern: re.Pattern[str]) -> None:
        self.take(pattern)

    def fail(self, why: str) -> str:
        line = self.text.count("\n", 0, self.at) + 1
        raise ValueError(f"{why} in line {line}, at {self.text[self.at : self.at + 20]!r}")
