"""Signals of an answer's own text: does its arithmetic hold, does it use the question's numbers, does it end.

They cost nothing, need no log-probabilities, and mean most where answers calculate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isclose, log1p

from .answer_span import find_span

#: Names of what `answer_text_signals` gives, in its order; each about in [0, 1].
ANSWER_TEXT_SIGNALS = (
    "answer_length",
    "answer_lines",
    "answer_is_marked",
    "answer_is_whole",
    "answer_is_negative",
    "answer_is_in_question",
    "answer_equations",
    "answer_wrong_equations",
    "answer_wrong_share",
    "answer_ends_on_result",
    "answer_unused_share",
    "answer_recurring",
    "answer_hedges",
)

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_RESULT = re.compile(r"=\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?)(?![\d.,]*\s*[+*/×÷])")
_CALCULATION = re.compile(r"[\d.,$%()\s+\-*/x×÷]+$")
#: A calculator's note, as GSM8K's answers have it: <<2*3=6>>.
_NOTE = re.compile(r"<<[^<>]*>>")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)(%?)|([+\-*/()]))")
_RECURRING = re.compile(r"\d\.\d*(?:33|66|67)\b")
_HEDGE = re.compile(r"\b(?:assum\w+|approximately|about|roughly|cannot|not enough|however|but|wait)\b", re.IGNORECASE)
_LONGEST = 80  # characters of a calculation

#: Results that are told rounded are right.
_ROUNDED = 0.011


def answer_text_signals(question: str, answer: str) -> dict[str, float]:
    """What can be read off an answer without its model.

    - `answer_length`: log(1 + characters) / 10; `answer_lines`: log(1 + lines) / 5.
    - `answer_is_marked`: 1 where it ends as answers do that were asked to: `####`, a box, a letter, "the answer is".
    - `answer_is_whole`, `answer_is_negative`, `answer_is_in_question`: what its final number is; 0 where there is none.
    - `answer_equations`, `answer_wrong_equations`: log(1 + how many calculations it states, and of them wrongly) / 5;
      `answer_wrong_share` of them.
    - `answer_ends_on_result`: 1 where the final number is the result of its last calculation.
    - `answer_unused_share`: of the question's numbers, those that it never names.
    - `answer_recurring`: log(1 + thirds among its numbers) / 5, which questions with round answers seldom have.
    - `answer_hedges`: log(1 + words that hedge or turn back) / 5.
    """
    span = find_span(answer, question)
    final = _value(span.value) if span is not None else None
    equations = list(_equations(answer))
    wrong = sum(not holds for _, holds in equations)
    asked = {value for match in _NUMBER.finditer(question) if (value := _value(match.group())) is not None}
    named = {value for match in _NUMBER.finditer(answer) if (value := _value(match.group())) is not None}
    values = (
        log1p(len(answer)) / 10,
        log1p(answer.strip().count("\n") + 1) / 5,
        float(span is not None and span.kind != "number"),
        float(final is not None and final.is_integer()),
        float(final is not None and final < 0),
        float(final in asked),
        log1p(len(equations)) / 5,
        log1p(wrong) / 5,
        wrong / len(equations) if equations else 0.0,
        float(bool(equations) and final is not None and isclose(equations[-1][0], final)),
        len(asked - named) / len(asked) if asked else 0.0,
        log1p(len(_RECURRING.findall(answer))) / 5,
        log1p(len(_HEDGE.findall(answer))) / 5,
    )
    return dict(zip(ANSWER_TEXT_SIGNALS, values, strict=True))


def _equations(text: str) -> Iterator[tuple[float, bool]]:
    """The stated result of every calculation, and whether it holds."""
    text = _NOTE.sub("", text)
    for match in _RESULT.finditer(text):
        before = _CALCULATION.search(text[max(0, match.start() - _LONGEST) : match.start()])
        said = None if before is None else _calculated(before.group())
        told = _value(match.group(1))
        if said is not None and told is not None:
            yield told, abs(said - told) <= _ROUNDED * max(1.0, abs(told))


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _calculated(text: str) -> float | None:
    """The value of a sum, difference, product or quotient; None: it is none, or divides by zero."""
    plain = text.replace("×", "*").replace("x", "*").replace("÷", "/").replace("$", "").replace(",", "").strip()
    tokens: list[str | float] = []
    place = 0
    while place < len(plain):
        match = _TOKEN.match(plain, place)
        if match is None:
            return None
        number, percent, sign = match.groups()
        tokens.append(sign if number is None else float(number) / (100 if percent else 1))
        place = match.end()
    if not any(token in ("+", "-", "*", "/") for token in tokens[1:]):
        return None  # a number alone calculates nothing
    try:
        value, rest = _sum(tokens, 0)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return value if rest == len(tokens) else None


def _sum(tokens: list[str | float], place: int) -> tuple[float, int]:
    value, place = _product(tokens, place)
    while place < len(tokens) and tokens[place] in ("+", "-"):
        other, after = _product(tokens, place + 1)
        value, place = (value + other if tokens[place] == "+" else value - other), after
    return value, place


def _product(tokens: list[str | float], place: int) -> tuple[float, int]:
    value, place = _factor(tokens, place)
    while place < len(tokens) and tokens[place] in ("*", "/"):
        other, after = _factor(tokens, place + 1)
        value, place = (value * other if tokens[place] == "*" else value / other), after
    return value, place


def _factor(tokens: list[str | float], place: int) -> tuple[float, int]:
    first = tokens[place]
    if first == "-":
        value, place = _factor(tokens, place + 1)
        return -value, place
    if first == "(":
        value, place = _sum(tokens, place + 1)
        if tokens[place] != ")":
            raise ValueError("a bracket is open")
        return value, place + 1
    if isinstance(first, str):
        raise ValueError("no number")
    return first, place + 1
