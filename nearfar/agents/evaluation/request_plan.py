"""Plans a request: which tools it needs, the part of it that each call is for, and how sure that is.

No model is asked. The tools are ranked by likeness; the request is cut at the words that join requests, and where a
part names more numbers or more names than a tool has room for, they are shared out among several calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from nearfar.types import Embedder, ToolSpec

from .request_values import Number, names, numbers, quoted, stems, words_of

_MOST_CALLS = 8
# How sure a plan is: a softmax of this sharpness over the tools, less for every further call and part of the request.
# On one half of BFCL's public items with several tools these separate right plans from wrong ones best.
_SHARPNESS = 8.0
_PER_CALL = 0.7
_PER_SEGMENT = 0.95
_JOINS = re.compile(
    r"(?<=[a-z0-9)\]'\"%][.?!])\s+|;\s+|\n+"
    r"|,?\s+(?:and\s+)?(?:then|also|finally|lastly|afterwards?|after that|in addition|additionally|as well as)\b,?\s*"
    r"|,?\s+and\s+(?:how|what|who|where|when|find|get|calculate|compute|tell|show|the other|another|does|which|is)\b\s*"
    r"|,\s+and\s+(?![\d'\"A-Z])"
    r"|,\s+(?:one|another|the other|the second|the third)\s+",
    re.IGNORECASE,
)
#: Words of requests that ask for the same thing more than once.
_AGAIN = re.compile(
    r"\b(?:also|then|another|other|again|repeat|finally|lastly|both|each|two|three|four|five|first|second|respectively"
    r"|compare[ds]?|different|as well as|after that|same|and (?:what|how|who|for|in))\b",
    re.IGNORECASE,
)
_AND = re.compile(r",?\s+and\s+", re.IGNORECASE)
_ALTERNATIVE = r",\s*(?:and\s+|or\s+)?|\s+(?:and|or|&)\s+(?:the\s+)?"
_NAME = (
    r"(?:'[^']+'|\"[^\"]+\"|`[^`]+`"
    r"|[A-Z][\w'’.-]*(?:\s+(?:of\s+|de\s+|the\s+)?[A-Z0-9][\w'’.-]*){0,7}(?:,\s[A-Z]{2}\b)?)"
)
_ENDS_OF_NUMBERS = "0123456789%kKM"
_UNIT = r"[\s-]*[^\W\d][\w/°²³^]*"

# How much nearer another tool must be to a part of the request than the tool that is nearest to the whole, and how
# near at all: what was best on one half of BFCL's public items of several tools.
_LEAST_ADVANTAGE = 0.1
_LEAST_NEARNESS = 0.5


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call to make, and the words of the request that it is for."""

    tool: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls that a request needs, in order."""

    steps: tuple[PlannedCall, ...]
    score: float  # in (0, 1]: how sure the plan is; not calibrated
    relevance: float  # how near the nearest tool is, as a cosine and the share of its name's words


def planned(text: str, tools: Sequence[ToolSpec], embedder: Embedder) -> Plan:
    """The calls that the request needs; at least one where there are tools."""
    if not tools:
        return Plan((), 1.0, 0.0)
    scorer = _Scorer(tools, embedder)
    scores = scorer.scores(text)
    best = max(range(len(tools)), key=lambda place: scores[place])
    steps: list[PlannedCall] = []
    for tool, part in _parts(text, tools, best, scorer):
        steps += [PlannedCall(tool.name, each) for each in shared_out(part, tool)]
    choice = 1 / sum(exp(_SHARPNESS * (score - scores[best])) for score in scores)
    unique = list(dict.fromkeys(steps))[:_MOST_CALLS]
    sure = choice * _PER_CALL ** (len(unique) - 1) * _PER_SEGMENT ** max(0, len(segments(text)) - 1)
    return Plan(tuple(unique), sure, scores[best])


class _Scorer:
    """How near texts are to tools: cosine with the description, and the share of the name's words in the text."""

    def __init__(self, tools: Sequence[ToolSpec], embedder: Embedder) -> None:
        self._own = [stems(" ".join(words_of(tool.name))) for tool in tools]
        self._embedder = embedder
        self._vectors = embedder.embed([f"{' '.join(words_of(tool.name))} {tool.description}" for tool in tools])

    def scores(self, text: str) -> list[float]:
        """One per tool; higher is nearer."""
        query, told = self._embedder.embed_queries([text])[0], stems(text)
        return [
            float(vector @ query) + 0.5 * (len(own & told) / len(own) if own else 0.0)
            for vector, own in zip(self._vectors, self._own, strict=True)
        ]


# --- several tools ---------------------------------------------------------------------------------------------------


def _parts(text: str, tools: Sequence[ToolSpec], best: int, scorer: _Scorer) -> list[tuple[ToolSpec, str]]:
    """The tools that are used, each with the words that are for it."""
    if len(tools) == 1:
        return [(tools[best], text)]
    chosen: list[tuple[int, str]] = []
    for piece in _with_values([each for part in segments(text) for each in _AND.split(part)]):
        scores = scorer.scores(piece)
        nearest = max(range(len(tools)), key=lambda place: scores[place])
        is_other = scores[nearest] - scores[best] >= _LEAST_ADVANTAGE and scores[nearest] >= _LEAST_NEARNESS
        place = nearest if is_other or nearest == best else chosen[-1][0] if chosen else best
        if chosen and chosen[-1][0] == place:
            chosen[-1] = (place, f"{chosen[-1][1]} and {piece}")
        else:
            chosen.append((place, piece))
    if len({place for place, _ in chosen}) == 1:
        return [(tools[chosen[0][0]], text)]
    return [(tools[place], piece) for place, piece in chosen]


def _with_values(pieces: Sequence[str]) -> list[str]:
    """The pieces, each that names no value joined to the one before, or to the first that does."""
    joined: list[str] = []
    is_begun = False
    for piece in pieces:
        has_values = bool(counted_numbers(piece) or quoted(piece) or names(piece))
        if joined and not (has_values and is_begun):
            joined[-1] = f"{joined[-1]} {piece}"
        else:
            joined.append(piece)
        is_begun = is_begun or has_values
    return joined


def segments(text: str) -> list[str]:
    """The text between the words that join requests."""
    return [piece.strip() for piece in _JOINS.split(text) if piece and piece.strip()]


# --- several calls of one tool ---------------------------------------------------------------------------------------


def shared_out(text: str, tool: ToolSpec) -> list[str]:
    """The text for each call of the tool: by its parts, and by the lists in it that one call has no room for."""
    room = _Room.of(tool)
    pieces = _repeated(text, room)
    return [each for piece in pieces for each in _distributed(piece, room)][:_MOST_CALLS]


@dataclass(frozen=True, slots=True)
class _Room:
    """How many values one call takes."""

    numbers: int  # arguments that are a number, required or not
    needed_numbers: int
    texts: int  # required texts without a fixed choice
    has_number_list: bool
    has_text_list: bool

    @classmethod
    def of(cls, tool: ToolSpec) -> _Room:
        properties: Mapping[str, Mapping[str, Any]] = tool.parameters.get("properties") or {}
        needed = set(tool.parameters.get("required") or ())
        numeric = [name for name, each in properties.items() if each.get("type") in ("integer", "number")]
        lists = [each.get("items") or {} for each in properties.values() if each.get("type") == "array"]
        return cls(
            numbers=len(numeric),
            needed_numbers=len([name for name in numeric if name in needed]),
            texts=sum(
                each.get("type") == "string" and not each.get("enum") and name in needed
                for name, each in properties.items()
            ),
            has_number_list=any(each.get("type") in ("integer", "number", "array") for each in lists),
            has_text_list=any(each.get("type", "string") == "string" for each in lists),
        )


def _repeated(text: str, room: _Room) -> list[str]:
    """The parts of the text that each ask for a call of their own; the text where it is one."""
    pieces = segments(text)
    if len(pieces) < 2 or not _AGAIN.search(text):
        return [text]
    if room.needed_numbers and not room.has_number_list:
        counts = [len(counted_numbers(piece)) for piece in pieces]
        is_surplus = sum(counts) > max(room.numbers, room.needed_numbers)
        full = room.needed_numbers
    else:
        found = [{*names(piece), *quoted(piece)} for piece in pieces]
        counts = [len(each) for each in found]
        is_surplus = len(set().union(*found)) > max(room.texts, 1)
        full = 1
    if not is_surplus:
        return [text]
    merged: list[str] = []
    have = full  # values of the part that is being gathered
    before = ""
    for piece, count in zip(pieces, counts, strict=True):
        if count and have >= full:
            merged.append(f"{before} {piece}".strip())
            have, before = count, ""
        elif merged:
            merged[-1] = f"{merged[-1]} and {piece}"
            have += count
        else:
            before = f"{before} {piece}".strip()
    return merged or [text]


def _distributed(text: str, room: _Room) -> list[str]:
    """The text once for every item of its lists, each list replaced by the item; the text where there is none."""
    groups = []
    if not room.has_number_list and len(counted_numbers(text)) > room.needed_numbers:
        groups += _number_groups(text, room)
    if not room.has_text_list:
        groups += [group for group in _name_groups(text) if len(group.items) > room.texts or room.texts == 1]
    if not groups:
        return [text]
    count = max(len(group.items) for group in groups)
    used = sorted((group for group in groups if len(group.items) == count), key=lambda group: -group.start)
    texts = []
    for place in range(count):
        each = text
        for group in used:
            each = f"{each[: group.start]}{group.items[place]}{each[group.end :]}"
        texts.append(each)
    return texts


@dataclass(frozen=True, slots=True)
class _Group:
    """Values that stand beside each other, one for each call."""

    start: int
    end: int
    items: tuple[str, ...]


def _number_groups(text: str, room: _Room) -> list[_Group]:
    """Numbers, each with its unit, that commas or "and" part, where one call has no room for them."""
    runs: list[list[Number]] = []
    separator = rf"(?:{_UNIT}){{0,2}}?\s*(?:,|,?\s*\b(?:and|or)\b)\s*(?:the\s)?[$€£]?"
    for number in counted_numbers(text):
        between = text[runs[-1][-1].end : number.start] if runs else ""
        if runs and re.fullmatch(separator, between):
            runs[-1].append(number)
        else:
            runs.append([number])
    found = []
    surplus = len(counted_numbers(text)) - room.needed_numbers
    for run in runs:
        if len(run) < 2 or surplus < len(run) - 1:
            continue
        unit = re.match(_UNIT, text[run[-1].end :])
        unit_text = unit.group() if unit and text[run[0].end : run[1].start].startswith(unit.group()) else ""
        items = tuple(text[number.start : number.end] + unit_text for number in run)
        found.append(_Group(run[0].start, run[-1].end + len(unit_text), items))
    return found


def counted_numbers(text: str) -> list[Number]:
    """The numbers in digits that are no part of a date."""
    return [
        number for number in numbers(text) if text[number.end - 1] in _ENDS_OF_NUMBERS and not in_date(text, number)
    ]


def in_date(text: str, number: Number) -> bool:
    """Whether a month's name stands beside the number, or a day between them."""
    before, after = text[max(0, number.start - 16) : number.start], text[number.end : number.end + 16]
    month = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
    return bool(
        re.search(rf"\b{month}\s*(?:\d{{1,2}}(?:st|nd|rd|th)?)?,?\s*(?:of\s+)?$", before, re.IGNORECASE)
        or re.match(rf"(?:st|nd|rd|th)?\s+(?:of\s+)?{month}", after, re.IGNORECASE)
    )


def _name_groups(text: str) -> list[_Group]:
    """Names or quoted texts that commas or "and" part."""
    found = []
    for match in re.finditer(rf"{_NAME}(?:(?:{_ALTERNATIVE}){_NAME})+", text):
        items = re.findall(_NAME, match.group())
        last = match.group()[: -len(items[-1])].rstrip()
        if 1 < len(items) <= _MOST_CALLS and re.search(r"(?:\band|\bor|&|\bthe)$", last) and "I" not in items:
            found.append(_Group(match.start(), match.end(), tuple(items)))
    return found
