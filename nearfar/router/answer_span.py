"""Finds the part of an answer that is the answer: a final number, a letter, a boxed term, a JSON value."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nearfar.types import TokenLogprob

from .signals import logprob_signals

SpanKind = Literal["json", "boxed", "marked", "letter", "number"]

#: Fields of a JSON object that hold the answer, where it has more than one.
_ANSWER_FIELDS = ("answer", "final_answer", "label", "result", "value", "next")

#: Signals that a few tokens can carry; quantiles of two tokens are the tokens again.
_KEPT = ("mean_logprob", "min_logprob", "first_logprob", "mean_entropy", "max_entropy", "mean_margin", "min_margin")

#: Names of what `span_signals` gives.
SPAN_SIGNALS = tuple(f"span_{name}" for name in _KEPT)

_NUMBER = r"-?(?:\d[\d,]*)?\.?\d+(?:/\d+)?"
_LETTER = re.compile(r"\s*[*(\[]*([A-J])(?:[)\].:*]+|\s*$)")
_HASHES = re.compile(r"####\s*(\S[^\n]*)")
_SAID = re.compile(rf"\b(?i:answer|option|choice)\s*(?:is|:|=)\s*[*(\[\"'$]*(?:([A-J])(?!\s?[A-Za-z'’])|({_NUMBER}))")
_NUMBERS = re.compile(rf"(?<![\w.]){_NUMBER}(?!\w)")
_ASKS_NUMBER = re.compile(
    r"\bhow (?:many|much|long|far|old|tall|fast|often)\b|\bwhat (?:is|was|are|were) the (?:\w+ ){0,2}"
    r"(?:number|sum|total|cost|price|value|product|ratio|percentage|percent|probability|area|average)\b"
    r"|\b(?:calculate|compute|evaluate|solve|what year|which year|in what year)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*```\w*\s*\n(.*?)\n\s*```\s*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """Where the answer stands in the text, and what it says in a form that equal answers share."""

    start: int
    end: int  # exclusive
    kind: SpanKind
    value: str


def find_span(text: str, question: str = "") -> Span | None:
    """The part of `text` that is the answer; None where it cannot be told.

    Looked for in this order: a JSON value, the last `\\boxed{…}`, the line after the last `####`, the letter that the
    text begins with, what follows "the answer is", and, where the question asks for a number or the text calculates,
    the last number.

    Args:
        text: what the model wrote.
        question: what it was asked.
    """
    return (
        _json_span(text)
        or _boxed_span(text)
        or _hashes_span(text)
        or _letter_span(text)
        or _said_span(text)
        or _number_span(text, question)
    )


def answer_key(text: str, question: str = "") -> str:
    """What two answers share that say the same: the value of the span, or else the words without case and points."""
    span = find_span(text, question)
    if span is not None:
        return span.value
    return " ".join(re.findall(r"\w+", text.lower()))


def span_signals(text: str, tokens: Sequence[TokenLogprob] | None, question: str = "") -> dict[str, float]:
    """The signals of the tokens that make up the answer span, named `span_…`; empty where there is no span."""
    if not tokens:
        return {}
    span = find_span(text, question)
    if span is None:
        return {}
    inside = tokens_in(text, tokens, span.start, span.end)
    if not inside:
        return {}
    found = logprob_signals(inside)
    return {f"span_{name}": found[name] for name in _KEPT if name in found}


def tokens_in(text: str, tokens: Sequence[TokenLogprob], start: int, end: int) -> list[TokenLogprob]:
    """The tokens that have a character of `text[start:end]`; none where the tokens do not spell the text."""
    offset = "".join(token.token for token in tokens).find(text)
    if offset < 0:
        return []
    found = []
    position = -offset
    for token in tokens:
        after = position + len(token.token)
        if position < end and after > start:
            found.append(token)
        position = after
    return found


def _json_span(text: str) -> Span | None:
    fenced = _FENCE.match(text)
    start, body = (fenced.start(1), fenced.group(1)) if fenced else (0, text)
    if body.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        lower = {name.lower(): name for name in value}
        name = next((lower[each] for each in _ANSWER_FIELDS if each in lower), None)
        if name is None and len(value) == 1:
            name = next(iter(value))
        for place in re.finditer(re.escape(json.dumps(name)) + r"\s*:\s*", body) if name is not None else ():
            inner, end = json.JSONDecoder().raw_decode(body, place.end())
            if inner == value[name]:  # and not a field of that name further inside
                return Span(start + place.end(), start + end, "json", _canonical(inner))
    return Span(start + len(body) - len(body.lstrip()), start + len(body.rstrip()), "json", _canonical(value))


def _boxed_span(text: str) -> Span | None:
    begin = text.rfind("\\boxed{")
    if begin < 0:
        return None
    start = begin + len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return Span(start, end, "boxed", _normal(text[start:end]))
    return None


def _hashes_span(text: str) -> Span | None:
    found = None
    for found in _HASHES.finditer(text):  # noqa: B007 - the last one counts
        pass
    if found is None:
        return None
    said = found.group(1).rstrip()
    number = _NUMBERS.search(said)
    if number:
        return Span(found.start(1) + number.start(), found.start(1) + number.end(), "marked", _normal(number.group()))
    return Span(found.start(1), found.start(1) + len(said), "marked", _normal(said))


def _letter_span(text: str) -> Span | None:
    found = _LETTER.match(text)
    return Span(found.start(1), found.end(1), "letter", found.group(1)) if found else None


def _said_span(text: str) -> Span | None:
    found = None
    for found in _SAID.finditer(text):  # noqa: B007 - the last one counts
        pass
    if found is None:
        return None
    if found.group(1):
        return Span(found.start(1), found.end(1), "letter", found.group(1))
    return Span(found.start(2), found.end(2), "number", _normal(found.group(2)))


def _number_span(text: str, question: str) -> Span | None:
    if not (_ASKS_NUMBER.search(question) or re.search(r"=\s*\$?-?\d", text)):
        return None
    numbers = list(_NUMBERS.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    return Span(last.start(), last.end(), "number", _normal(last.group()))


def _canonical(value: Any) -> str:
    return _normal(value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def _normal(text: str) -> str:
    """The text without case, blanks, currency and thousands' commas; a number in its shortest form."""
    plain = re.sub(r"\s+|[$€£%]|(?<=\d),(?=\d{3}(?!\d))", "", text).lower().rstrip(".")
    try:
        return f"{float(plain):.12g}"
    except ValueError:
        return plain
