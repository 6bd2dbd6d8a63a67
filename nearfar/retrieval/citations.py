"""Which passage a sentence rests on: citations read, checked against the text, dropped, corrected and added."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nearfar.types import Chunk

from .words import words

#: Share of a sentence's stems that a passage must have for the sentence to rest on it. Copied and lightly reworded
#: sentences reach it, another subject's do not; see benchmarks/grounding.py.
MIN_SUPPORT = 0.6

#: A passage's sentences that are looked at together: a sentence of an answer seldom joins more of them.
_WINDOW = 2

_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"'”’)\]]*)\s+(?=[\"'“‘(\[]?[A-Z0-9])|\n+")
_MARK = re.compile(r"\s*\[\s*(\d+(?:\s*[,;–-]\s*\d+)*)\s*\]")
_LEADING_MARKS = re.compile(r"^((?:\s*\[\s*\d[\d\s,;–-]*\])+)\s*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<=[\w,;)] )[A-Z][\w’'-]*")  # capitalised inside a sentence


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that a sentence of an answer rests on."""

    number: int  # as in the text: [1]
    chunk: Chunk
    quote: str  # the part of the passage that says it
    support: float  # share of the sentence's stems that are in the quote, in [0, 1]


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer whose every citation holds."""

    text: str  # with the citations that hold, as [1]
    citations: tuple[Citation, ...]  # each number once, with its best quote
    unsupported: tuple[str, ...]  # sentences that rest on no passage
    num_dropped: int  # citations of passages that do not say it, or that do not exist
    support: float  # share of the sentences that rest on a passage; 1 where there is no sentence to check


def sentences(text: str) -> list[str]:
    """The text's sentences, without the blanks between them."""
    found: list[str] = []
    for part in _SENTENCE_END.split(text):
        marks = _LEADING_MARKS.match(part)
        if marks and found:  # "It is so. [1] And" cites behind the full stop
            found[-1] += f" {marks.group(1).strip()}"
            part = part[marks.end() :]
        if part.strip():
            found.append(part.strip())
    return found


def support(sentence: str, passage: str, *, given: str = "") -> tuple[float, str]:
    """How far the passage says what the sentence says, in [0, 1], and the part of it that says most.

    The measure is the share of the sentence's stems that stand in two neighbouring sentences of the passage; 0 where
    the sentence has a number or a name that the whole passage has not.

    Args:
        sentence: without citations.
        passage: what it may rest on.
        given: words that need no support: the question's, where the sentence repeats them. They count only where the
            sentence has no others.
    """
    own = list(dict.fromkeys(words(sentence)))
    asked = set(words(given))
    wanted = [stem for stem in own if stem not in asked] or own
    if not wanted:
        return 0.0, ""
    numbers = {_plain(number) for number in _NUMBER.findall(sentence)} - {_plain(n) for n in _NUMBER.findall(given)}
    if not numbers <= {_plain(number) for number in _NUMBER.findall(passage)}:
        return 0.0, ""
    there = set(words(passage)) | asked
    if not all(there.issuperset(words(name)) for name in _NAME.findall(sentence)):
        return 0.0, ""
    parts = sentences(passage)
    best, quote = 0.0, ""
    for start in range(len(parts)):
        for size in range(1, _WINDOW + 1):
            window = " ".join(parts[start : start + size])
            said = set(words(window))
            share = sum(stem in said for stem in wanted) / len(wanted)
            if share > best + 1e-9:
                best, quote = share, window
    return best, quote


def check(text: str, chunks: Sequence[Chunk], *, question: str = "", min_support: float = MIN_SUPPORT) -> Checked:
    """The answer with its citations checked against the passages.

    A citation whose passage does not say the sentence is dropped; a sentence left without one gets the passage that
    says it best, if any does.

    Args:
        text: the answer, with citations like [1] or [1, 3], counted from 1.
        chunks: the passages by number.
        question: what was asked; its words need no support.
        min_support: see `support`.
    """
    kept: dict[int, Citation] = {}
    unsupported: list[str] = []
    num_dropped, num_checked = 0, 0
    lines = []
    for line in text.strip().split("\n"):
        pieces = []
        for sentence in sentences(line):
            bare = _MARK.sub("", sentence).strip()
            cited = list(dict.fromkeys(_numbers(sentence)))
            if not words(bare):
                num_dropped += len(cited)
                if bare:
                    pieces.append(bare)
                continue
            num_checked += 1
            found = [_cite(number, bare, chunks, question) for number in cited]
            holding = [citation for citation in found if citation is not None and citation.support >= min_support]
            if not holding:
                holding = _together([each for each in found if each is not None], bare, question, min_support)
            num_dropped += len(cited) - len(holding)
            if not holding:
                others = [_cite(number, bare, chunks, question) for number in range(1, len(chunks) + 1)]
                best = max((each for each in others if each), key=lambda each: each.support, default=None)
                holding = [best] if best is not None and best.support >= min_support else []
            if not holding:
                unsupported.append(bare)
            for citation in holding:
                known = kept.get(citation.number)
                if known is None or citation.support > known.support:
                    kept[citation.number] = citation
            pieces.append(_marked(bare, [citation.number for citation in holding]))
        lines.append(" ".join(pieces))
    share = (num_checked - len(unsupported)) / num_checked if num_checked else 1.0
    return Checked(
        "\n".join(lines).strip(), tuple(kept[number] for number in sorted(kept)), tuple(unsupported), num_dropped, share
    )


def shown_text(chunk: Chunk) -> str:
    """The passage as a model is shown it: with its document's title, where it has one that it does not begin with."""
    title = str(chunk.metadata.get("title") or "")
    return f"{title}: {chunk.text}" if title and not chunk.text.startswith(title) else chunk.text


def _cite(number: int, sentence: str, chunks: Sequence[Chunk], question: str) -> Citation | None:
    if not 1 <= number <= len(chunks):
        return None
    chunk = chunks[number - 1]
    share, quote = support(sentence, shown_text(chunk), given=question)
    return Citation(number, chunk, quote, share)


def _together(cited: Sequence[Citation], sentence: str, question: str, min_support: float) -> list[Citation]:
    """The cited passages, where none of them says the sentence and all together do."""
    part = [citation for citation in cited if citation.support > 0]
    joint, _ = support(sentence, " ".join(citation.quote.replace("\n", " ") for citation in part), given=question)
    return part if len(part) > 1 and joint >= min_support else []


def _numbers(sentence: str) -> Iterator[int]:
    for marks in _MARK.findall(sentence):
        for part in re.split(r"\s*[,;]\s*", marks):
            ends = [int(end) for end in re.findall(r"\d{1,4}", part)]
            if len(ends) == 2 and ends[0] < ends[1] <= ends[0] + 20:
                yield from range(ends[0], ends[1] + 1)
            else:
                yield from ends


def _marked(sentence: str, numbers: Sequence[int]) -> str:
    """The sentence with its citations before the full stop."""
    if not numbers:
        return sentence
    marks = " " + "".join(f"[{number}]" for number in numbers)
    end = re.search(r"[.!?…]+[\"'”’)]*$", sentence)
    return f"{sentence[: end.start()]}{marks}{end.group()}" if end else f"{sentence}{marks}"


def _plain(number: str) -> str:
    return number.replace(",", "").rstrip(".")
