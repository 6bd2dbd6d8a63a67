"""Compression of passages for a question: what bears on it stays whole, the rest is cut to telegrams and to names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from importlib.resources import files
from math import log
from typing import TYPE_CHECKING

from nearfar.errors import RequestError
from nearfar.types import Chunk, Embedder, Hit

from .bridges import BridgeRetriever
from .corpus import Corpus
from .fitted import FittedReranker, Judged
from .names import name_runs, names, plain, title_name
from .sentences import sentences
from .words import words

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

_FUNCTION_WORDS = """
    a about after also am an and are as at be because been before being between but by can could did do does during for
    from had has have having he her him his if in into is it its may might must of on or over shall she should so such
    than that the their them then there these they this those through to under was were when where which while who whom
    whose will with would
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

#: What every level keeps: digits, and citations like [3] or (Roe 1999).
_DIGIT = re.compile(r"\d")
_CITATION = re.compile(r"\[\d+(?:[,;–-]\s*\d+)*\]|\([^()]*\b\d{4}[a-z]?\)")
_LOOSE_MARK = re.compile(r"\s+([,.;:!?])")
_PIECE = re.compile(r"\d|[^\W\d]+|[^\w\s]")

_ASKS_NUMBER = re.compile(
    r"\b(when|year|date|how (many|much|old|long|far|tall|large|often)|number|percent\w*)\b", re.IGNORECASE
)

#: Shares of the budget up to which sentences are kept whole, then as telegrams; what is left is for names and numbers.
#: Whole sentences alone keep .92 of the public questions' answers at half the tokens and .78 at a fifth, 0.4 and 0.55
#: keep .98 and .86, these .99 and .87 (out of fold).
_WHOLE, _TELEGRAM = 0.3, 0.6

#: Without a budget, sentences are kept until this much of the belief is covered.
_BELIEF = 0.98


class Level(IntEnum):
    """How much of a sentence is kept."""

    WHOLE = 0
    TELEGRAM = 1  # without function words
    NAMES = 2  # names and numbers alone


@dataclass(frozen=True, slots=True)
class Piece:
    """What is left of a sentence; `start` and `end` are its place in the chunk's text."""

    chunk: Chunk
    start: int
    end: int
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Compressed:
    """What is left of the passages, in their order."""

    text: str  # under the titles of the passages
    pieces: tuple[Piece, ...]
    tokens: int  # estimated, of `text`
    original_tokens: int

    @property
    def rate(self) -> float:
        """The share of the tokens that is left."""
        return self.tokens / self.original_tokens if self.original_tokens else 1.0


def count_tokens(text: str) -> int:
    """About as many tokens as a model's tokenizer would make: one per mark and digit, one per six letters of a word.

    On 629 passages of Wikipedia it is 0.98 of a Llama tokenizer's count in the median, and for 95 % of them between
    0.82 and 1.16 of it. Parts of a text have as many together as the text, which a budget needs.
    """
    return sum(1 + (len(piece) - 1) // 6 for piece in _PIECE.findall(text))


@dataclass(frozen=True, slots=True)
class Compressor:
    """Keeps of passages what a question needs, within a budget of tokens.

    Sentences are ranked by a fitted score: the question's words and meaning in them, how good their passage is
    (bridges included, see `BridgeRetriever`), whether they have the names and numbers that the question asks for. The
    best are kept whole; the next lose their function words; of the rest only names and numbers are kept, each once.
    The levels are the budget controller of LLMLingua (arXiv:2310.05736), with rules in place of its model.

    Args:
        embedder: of the question and the sentences.
        count: tokens of a text.
        weights: None: the packaged ones, fitted by `benchmarks/compression.py --fit` on public questions.
    """

    embedder: Embedder
    count: Callable[[str], int] = count_tokens
    weights: FittedReranker | None = field(default=None)

    def compress(
        self,
        question: str,
        passages: Sequence[Chunk],
        *,
        tokens: int | None = None,
        rate: float | None = None,
        forced: Iterable[str] = (),
    ) -> Compressed:
        """What is left of the passages.

        Args:
            question: what they are to answer.
            passages: in the order in which they are to stand.
            tokens: the budget.
            rate: the budget as a share of the passages' tokens, in (0, 1].
            forced: words or phrases; sentences that have one are kept whole, within the budget first of all.
                Neither tokens nor rate: as much as the belief of the ranking asks for, so that a question whose
                answer is plain to see gets a shorter text.

        Raises:
            RequestError: both or an impossible budget.
        """
        if tokens is not None and rate is not None:
            raise RequestError("Give tokens or a rate, not both.", param="rate")
        if rate is not None and not 0 < rate <= 1:
            raise RequestError(f"The rate is {rate!r}; it is a share in (0, 1].", param="rate")
        if tokens is not None and tokens < 1:
            raise RequestError(f"The budget is {tokens!r} tokens; give at least 1.", param="tokens")
        original = sum(self.count(_titled(chunk, chunk.text)) for chunk in passages)
        ranked = self.ranked(question, passages)
        budget = tokens if tokens is not None else None if rate is None else max(1, int(rate * original))
        believed, enough = 0.0, _BELIEF
        if budget is not None and budget >= original:
            budget, enough = None, float("inf")  # nothing to drop
        wanted = [plain(phrase) for phrase in forced]
        first = [hit for hit in ranked if any(f" {phrase} " in f" {plain(hit.chunk.text)} " for phrase in wanted)]
        rest = [hit for hit in ranked if hit not in first]
        plan = _Plan(self.count, budget, passages)
        if budget is None:
            for hit in [*first, *rest]:
                if believed < enough or hit in first:
                    plan.take(hit, Level.WHOLE, 1.0)
                believed += hit.score
        else:
            for hit in first:
                plan.take(hit, Level.WHOLE, 1.0)
            for hit in rest:
                _ = (
                    plan.take(hit, Level.WHOLE, _WHOLE)
                    or plan.take(hit, Level.TELEGRAM, _TELEGRAM)
                    or plan.take(hit, Level.NAMES, 1.0)
                )
            plan.grow(ranked)
        text = plan.text()
        return Compressed(text, plan.pieces(), self.count(text), original)

    def ranked(self, question: str, passages: Sequence[Chunk]) -> list[Hit]:
        """The sentences of the passages, best first; a hit's score is the share of belief that it has the answer.

        A hit's chunk is the sentence, with the passage's number and its place there in the metadata.
        """
        hits = sentence_signals(question, passages, self.embedder)
        return (self.weights or packaged_weights()).rerank(hits)


def packaged_weights() -> FittedReranker:
    """The sentence weights that come with nearfar."""
    said = json.loads(files("nearfar.retrieval").joinpath("sentence_weights.json").read_text())
    return FittedReranker(tuple(said["names"]), tuple(said["weights"]))


def fit_sentences(
    examples: Sequence[tuple[str, Sequence[Chunk], Sequence[str]]], embedder: Embedder, *, folds: int = 5
) -> tuple[FittedReranker, list[FittedReranker]]:
    """Weights for sentences that have the answer, and those fitted without each fold.

    Args:
        examples: question, passages, and the strings any of which is the answer; fold = place % folds.
        embedder: see `Compressor`.
        folds: how many.
    """
    judged = []
    for question, passages, answers in examples:
        hits = sentence_signals(question, passages, embedder)
        having = {
            hit.chunk.id: 1.0
            for hit in hits
            if any(f" {plain(answer)} " in f" {plain(hit.chunk.text)} " for answer in answers)
        }
        judged.append(Judged(hits, having))
    without = [
        FittedReranker.fit([each for place, each in enumerate(judged) if place % folds != fold])
        for fold in range(folds)
    ]
    return FittedReranker.fit(judged), without


def sentence_signals(question: str, passages: Sequence[Chunk], embedder: Embedder) -> list[Hit]:
    """Every sentence of the passages with what speaks for it."""
    import numpy as np

    numbered = [
        Chunk(chunk.text, str(number), 0, len(chunk.text), {"title": _title(chunk)}, id=str(number))
        for number, chunk in enumerate(passages)
    ]
    corpus = Corpus(numbered, embedder)
    order = BridgeRetriever(corpus).search(question, k=len(numbered))
    place = {hit.chunk.id: number for number, hit in enumerate(order)}
    share = {hit.chunk.id: hit.score for hit in order}
    best_titles = [title_name(str(hit.chunk.metadata["title"])) for hit in order[:4]]
    rarity = corpus.rarity(question)
    total = sum(rarity.values()) or 1.0
    said = f" {plain(question)} "
    asks_number = bool(_ASKS_NUMBER.search(question))
    vector = embedder.embed_queries([question])[0]
    found = []
    for number, chunk in enumerate(numbered):
        parts = sentences(chunk.text)
        title = str(chunk.metadata["title"])
        own = title_name(title) if title else ""
        title_words = frozenset(words(title))
        vectors: NDArray[float32] = embedder.embed([f"{title}: {part.text}" if title else part.text for part in parts])
        cosines = (vectors @ vector).tolist()
        of_part = [frozenset(words(part.text)) for part in parts]
        coverage = [sum(rarity.get(word, 0.0) for word in each) / total for each in of_part]
        for row, part in enumerate(parts):
            new = [name for name in names(part.text) if f" {name} " not in said]
            text = f" {plain(part.text)} "
            beside = [coverage[other] for other in (row - 1, row + 1) if 0 <= other < len(parts)]
            signals = {
                "passage": log(share.get(chunk.id, 0.0) + 1e-4),
                "passage_place": -float(place.get(chunk.id, len(numbered))),
                "passage_cosine": max(cosines),
                "coverage": coverage[row],
                "title_coverage": sum(rarity.get(word, 0.0) for word in of_part[row] | title_words) / total,
                "cosine": cosines[row],
                "neighbour": max(beside, default=0.0),
                "first": float(row == 0),
                "new_names": min(len(new), 4) / 4,
                "number": float(asks_number and bool(_DIGIT.search(part.text))),
                "link": float(
                    any(
                        name and name != own and f" {name} " in text and f" {name} " not in said for name in best_titles
                    )
                ),
                "length": float(np.log(len(part.text))),
            }
            metadata = {"passage": number, "row": row}
            found.append(
                Hit(Chunk(part.text, chunk.id, part.start, part.end, metadata, id=f"{number}.{row}"), 0.0, signals)
            )
    return found


def reduced(text: str, level: Level, *, known: set[str] | None = None) -> str:
    """The text at this level.

    Args:
        text: a sentence.
        level: how much of it is kept; digits and citations are kept at every level.
        known: plain names that need not be kept again at `NAMES`; those that are kept now are added.
    """
    if level is Level.WHOLE:
        return text
    kept = []
    for run, is_name in _runs(text):
        bare = plain(run)
        if level is Level.TELEGRAM:
            if bare not in FUNCTION_WORDS:
                kept.append(run)
        elif is_name and bare:
            if known is not None and bare in known and not _DIGIT.search(run):
                continue
            if bare not in FUNCTION_WORDS:
                kept.append(run.strip(",;:"))
                if known is not None:
                    known.add(bare)
    return _LOOSE_MARK.sub(r"\1", " ".join(kept))


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces that are kept or dropped together, and whether each is a name, a number or a citation."""
    spans = sorted([*name_runs(text), *(match.span() for match in _CITATION.finditer(text))])
    place = 0
    for start, end in spans:
        if start < place:
            continue
        yield from _loose(text[place:start])
        yield text[start:end], True
        place = end
    yield from _loose(text[place:])


def _loose(text: str) -> Iterator[tuple[str, bool]]:
    for word in text.split():
        yield word, bool(_DIGIT.search(word))


def _title(chunk: Chunk) -> str:
    return str(chunk.metadata.get("title") or "")


def _titled(chunk: Chunk, text: str) -> str:
    title = _title(chunk)
    return f"{title}: {text}" if title else text


class _Plan:
    """What is kept so far, and what it costs."""

    def __init__(self, count: Callable[[str], int], budget: int | None, passages: Sequence[Chunk]) -> None:
        self._count = count
        self._budget = budget
        self._passages = passages
        self._used = 0
        self._kept: dict[str, tuple[Hit, Level, str, int]] = {}
        self._opened: set[int] = set()
        self._known: set[str] = set()

    def take(self, hit: Hit, level: Level, share: float) -> bool:
        """Keeps the sentence at this level, if that share of the budget has room for it."""
        number = hit.chunk.metadata["passage"]
        known = set(self._known)
        if level is Level.NAMES:
            known.add(title_name(_title(self._passages[number])))
        text = reduced(hit.chunk.text, level, known=known)
        if not text:
            return True
        cost = self._count(text) + (0 if number in self._opened else 1 + self._count(_title(self._passages[number])))
        if self._budget is not None and self._used + cost > share * self._budget:
            return False
        self._used += cost
        self._opened.add(number)
        self._kept[hit.chunk.id] = (hit, level, text, self._count(text))
        self._known = known | (names(text) if level is not Level.NAMES else set())
        return True

    def grow(self, ranked: Sequence[Hit]) -> None:
        """Spends what is left on the best sentences that are not yet whole."""
        for level in (Level.WHOLE, Level.TELEGRAM):
            for hit in ranked:
                kept = self._kept.get(hit.chunk.id)
                if self._budget is None or (kept and kept[1] <= level):
                    continue
                text = reduced(hit.chunk.text, level)
                number = hit.chunk.metadata["passage"]
                opening = 0 if number in self._opened else 1 + self._count(_title(self._passages[number]))
                more = self._count(text) - (kept[3] if kept else 0) + opening
                if text and self._used + more <= self._budget:
                    self._used += more
                    self._opened.add(number)
                    self._kept[hit.chunk.id] = (hit, level, text, self._count(text))

    def pieces(self) -> tuple[Piece, ...]:
        """In the passages' order."""
        found = sorted(self._kept.values(), key=lambda kept: (kept[0].chunk.metadata["passage"], kept[0].chunk.start))
        return tuple(
            Piece(self._passages[hit.chunk.metadata["passage"]], hit.chunk.start, hit.chunk.end, level, text)
            for hit, level, text, _ in found
        )

    def text(self) -> str:
        """The pieces under their passages' titles."""
        by_passage: dict[int, list[str]] = {}
        for hit, _, text, _ in sorted(
            self._kept.values(), key=lambda kept: (kept[0].chunk.metadata["passage"], kept[0].chunk.start)
        ):
            by_passage.setdefault(hit.chunk.metadata["passage"], []).append(text)
        return "\n".join(_titled(self._passages[number], " ".join(parts)) for number, parts in by_passage.items())
