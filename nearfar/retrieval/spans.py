"""Runs of words inside sentences, and how likely each is what a question asks for: names, numbers, dates, the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Literal, TypeAlias

from nearfar.types import Chunk, Hit

from .fitted import Judged
from .names import plain, title_name

Kind: TypeAlias = Literal["name", "number", "words"]

_FUNCTION_WORDS = """
    a about after also am an and are as at be because been before being between but by can could did do does during for
    from had has have having he her him his if in into is it its may might must of on or over shall she should so such
    than that the their them then there these they this those through to under was were what when where which while who
    whom whose will with would
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
ASKING = frozenset(["how", "many", "much", "what", "when", "where", "which", "who", "whom", "whose", "why"])

#: What a question asks for, by its words.
ASKS_WHEN = re.compile(r"\b(when|year|date|month|day)\b", re.IGNORECASE)
ASKS_COUNT = re.compile(
    r"\b(how (many|much|old|long|far|tall|large|often)|number|percent\w*|population)\b", re.IGNORECASE
)
ASKS_WHO = re.compile(r"\b(who|whom|whose)\b", re.IGNORECASE)
ASKS_WHERE = re.compile(r"\b(where|country|city|place|state|county|town|nationality)\b", re.IGNORECASE)
_ASKED = {"count": ASKS_COUNT, "when": ASKS_WHEN, "who": ASKS_WHO, "where": ASKS_WHERE}
YEAR = re.compile(r"\b(1\d{3}|20\d\d)\b")

_CAPITAL = r"\b[A-Z][\w'’.-]*"
_NUMBER = r"\b\d[\w.,'’%/:]*[\w%]|\b\d"
_BETWEEN = r"(?:of|the|and|de|von|van|da|la|le|du|for|&|del|di|y|e|al|bin|ibn|el)"
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
#: Names with the small words inside them; places with what they lie in; dates; numbers with a hyphen; citations. What
#: an earlier one takes a later one leaves.
_NAMED = (
    re.compile(
        rf"\b{_MONTH}\s+\d{{1,2}}\s*,\s*\d{{4}}|\b\d{{1,2}}\s+{_MONTH}\s*,?\s*\d{{4}}"
        r"|\b\d+(?:st|nd|rd|th)\s*-\s*[a-z]+|\b\d+ - \w+"
    ),
    re.compile(rf"(?<=\b(?:in|at|of) )({_CAPITAL}(?:\s+{_CAPITAL})*\s*,\s+{_CAPITAL}(?:\s+{_CAPITAL})*)"),
    re.compile(r"\[\d+(?:[,;–-]\s*\d+)*\]|\([^()]*\b\d{4}[a-z]?\)"),
    re.compile(rf"(?:{_CAPITAL}|(?:{_NUMBER}))(?:\s+(?:{_BETWEEN}\s+){{0,2}}(?:{_CAPITAL}|(?:{_NUMBER})))*"),
)
_FULL_NAME = re.compile(rf"^{_CAPITAL}(?:\s+{_CAPITAL}){{1,3}}$")
_WORD = re.compile(r"\S+")
_EDGE = ",;:.!?()[]\"'“”`"
_OPENING, _CLOSING = '(["“', ',;:.!?)]"”'

#: Function words begin no name, but for articles, which many titles begin with.
_OPENING_WORD = re.compile(r"(\w+)\s+")
_NO_OPENING = FUNCTION_WORDS - {"a", "an", "the"}

#: Words that a number takes along: what it counts.
_UNIT = 2


@dataclass(frozen=True, slots=True)
class Span:
    """Words of a sentence that are kept or dropped together; `start` and `end` are their place in its text."""

    start: int
    end: int
    kind: Kind


def spans(text: str) -> list[Span]:
    """The runs of a sentence in order; function words and the marks between them are in none.

    A name has its small words ("Duke of York"), a place what it lies in ("Lima, Peru"), a date its year, a number what
    it counts ("90 km").
    """
    named: list[Span] = []
    for pattern in _NAMED:
        for match in pattern.finditer(text):
            start, end = match.span()
            while end > start and text[end - 1] in ".,;:-’'":
                end -= 1
            while (opening := _OPENING_WORD.match(text, start, end)) and opening[1].lower() in _NO_OPENING:
                start = opening.end()
            bare = plain(text[start:end])
            if bare and bare not in FUNCTION_WORDS and all(end <= a.start or start >= a.end for a in named):
                named.append(Span(start, end, "number" if _has_digit(text[start:end]) else "name"))
    named.sort(key=lambda span: span.start)
    found: list[Span] = []
    place = 0
    for span in [*named, Span(len(text), len(text), "name")]:
        for loose in _loose(text, place, span.start):
            _join(found, loose, text)
        if span.end > span.start:
            found.append(span)
        place = span.end
    return found


def _loose(text: str, start: int, end: int) -> Iterator[Span]:
    """Runs of words that are neither names nor function words, broken where a mark stands."""
    first: int | None = None
    last = start
    for match in _WORD.finditer(text, start, end):
        word = match.group()
        bare = plain(word)
        is_break = not bare or bare in FUNCTION_WORDS
        if first is not None and (is_break or word[0] in _OPENING):
            yield Span(first, last, "words")
            first = None
        if is_break:
            continue
        if first is None:
            first = match.start() + len(word) - len(word.lstrip(_EDGE))
        last = match.end() - (len(word) - len(word.rstrip(_EDGE)))
        if word[-1] in _CLOSING:
            yield Span(first, last, "words")
            first = None
    if first is not None:
        yield Span(first, last, "words")


def _join(found: list[Span], loose: Span, text: str) -> None:
    """Adds the run; a number right before it takes its first words."""
    before = found[-1] if found else None
    if before is None or before.kind != "number" or loose.start - before.end > 1:
        found.append(loose)
        return
    taken = list(_WORD.finditer(text, loose.start, loose.end))
    unit = taken[min(_UNIT, len(taken)) - 1].end()
    found[-1] = Span(before.start, unit, "number")
    if len(taken) > _UNIT:
        found.append(Span(taken[_UNIT].start(), loose.end, "words"))


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


@dataclass(slots=True)
class _Seen:
    """A run and where it stands, so far."""

    text: str
    kind: Kind
    best: float  # belief of its best sentence
    rank: int  # of that sentence
    gap: int  # characters to the next word of the question, in its best sentences
    places: list[tuple[str, int, int]] = field(default_factory=list)  # sentence, start, end
    belief: float = 0.0  # of all its sentences
    leads: bool = False  # whether it stands in a passage's first sentence


#: Farther is far; and what a sentence of less belief than three tenths of the best counts farther.
_FAR, _FARTHER = 400, 100


def span_hits(question: str, passages: Sequence[Chunk], ranked: Sequence[Hit]) -> list[Hit]:
    """Every run of words of the sentences, each once, with what speaks for it.

    A hit's chunk is the run; its metadata has `plain` and `places`: the sentence's id, start and end of each place
    where it stands, the best sentence's first.

    Args:
        question: what is asked.
        passages: the sentences' chunks have the number of theirs in the metadata.
        ranked: sentences, best first, each with its share of belief.
    """
    said = f" {plain(question)} "
    asked = frozenset(said.split()) - FUNCTION_WORDS - ASKING
    asks_for = next((kind for kind, pattern in _ASKED.items() if pattern.search(question)), "what")
    titles: dict[str, int] = {}
    for number, passage in enumerate(passages):
        titles.setdefault(title_name(str(passage.metadata.get("title") or "")), number)
    in_passage: dict[int, float] = {}
    for hit in ranked:
        number = hit.chunk.metadata["passage"]
        in_passage[number] = max(hit.score, in_passage.get(number, 0.0))
    found = []
    for number, (bare, seen) in enumerate(_seen(ranked, asked).items()):
        titled = titles.get(bare)
        belief = in_passage.get(titled, 0.0) if titled is not None else None
        signals = _signals(bare, seen, said, asked, asks_for, belief)
        found.append(
            Hit(Chunk(seen.text, metadata={"plain": bare, "places": seen.places}, id=str(number)), 0.0, signals)
        )
    return found


def _seen(ranked: Sequence[Hit], asked: frozenset[str]) -> dict[str, _Seen]:
    found: dict[str, _Seen] = {}
    for rank, hit in enumerate(ranked):
        text = hit.chunk.text
        words = [(match.start(), plain(match.group())) for match in _WORD.finditer(text)]
        cues = [start for start, word in words if word in asked]
        for span in spans(text):
            bare = plain(text[span.start : span.end])
            if not bare:
                continue
            gap = min(
                (span.start - cue if cue < span.start else cue - span.end for cue in cues
                 if not span.start <= cue < span.end),
                default=_FAR,
            )  # fmt: skip
            gap = max(0, gap)
            seen = found.get(bare)
            if seen is None:
                seen = found[bare] = _Seen(text[span.start : span.end], span.kind, hit.score, rank, gap)
            seen.places.append((hit.chunk.id, span.start, span.end))
            seen.belief += hit.score
            seen.gap = min(seen.gap, gap + (0 if hit.score >= 0.3 * seen.best else _FARTHER))
            seen.leads = seen.leads or hit.chunk.start == 0
            if seen.kind == "words":
                seen.kind = span.kind
    return found


def _signals(
    bare: str, seen: _Seen, said: str, asked: frozenset[str], asks_for: str, titled: float | None
) -> Mapping[str, float]:
    """What speaks for a run.

    Args:
        bare: it, plain.
        seen: where it stands.
        said: the question, plain, between blanks.
        asked: its words that bear meaning.
        asks_for: the kind of what it asks for.
        titled: the belief in the passage that the run is the title of; None: it is no title.
    """
    words = bare.split()
    kinds = {
        "name": seen.kind == "name",
        "digit": _has_digit(seen.text),
        "words": seen.kind == "words",
        "year": bool(YEAR.search(seen.text)),
        "full": bool(_FULL_NAME.match(seen.text)) and not _has_digit(seen.text),
    }
    signals = {
        "best": log(seen.best + 1e-4),
        "belief": log(seen.belief + 1e-4),
        "rank": 1 / (1 + seen.rank),
        "asked": float(f" {bare} " in said),
        "asked_words": sum(word in asked for word in words) / len(words),
        "title": float(titled is not None),
        "title_belief": 0.0 if titled is None else log(titled + 1e-4) - log(1e-4),
        "lead": float(seen.leads),
        "gap": log(1 + seen.gap),
        "num_words": log(len(words)),
        **{kind: float(holds) for kind, holds in kinds.items()},
    }
    for name in ("who", "when", "count", "where", "what"):
        for kind, holds in kinds.items():
            signals[f"{name}_{kind}"] = float(holds and name == asks_for)
    return signals


def judge_spans(hits: Sequence[Hit], ranked: Sequence[Hit], answers: Sequence[str]) -> Judged:
    """The runs of `span_hits`, those being relevant that have one of the answers; where none has, those that make it
    up together in a sentence.
    """
    wanted = [plain(answer) for answer in answers]
    relevant = {
        hit.chunk.id: 1.0
        for hit in hits
        if any(f" {answer} " in f" {hit.chunk.metadata['plain']} " for answer in wanted)
    }
    if relevant:
        return Judged(hits, relevant)
    by_sentence: dict[str, list[tuple[int, int, str]]] = {}
    for hit in hits:
        for sentence, start, end in hit.chunk.metadata["places"]:
            by_sentence.setdefault(sentence, []).append((start, end, hit.chunk.id))
    for sentence in ranked:
        text = sentence.chunk.text
        told = [
            (word, id_)
            for start, end, id_ in sorted(by_sentence.get(sentence.chunk.id, ()))
            for word in plain(text[start:end]).split()
        ]
        for answer in wanted:
            needed = [word for word in answer.split() if word not in FUNCTION_WORDS]
            if needed and f" {answer} " in f" {plain(text)} ":
                for begin in range(len(told) - len(needed) + 1):
                    if [word for word, _ in told[begin : begin + len(needed)]] == needed:
                        relevant.update((id_, 1.0) for _, id_ in told[begin : begin + len(needed)])
    return Judged(hits, relevant)
