"""Compression of passages for a question: what bears on it stays whole, the rest is cut to telegrams and to names."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from importlib.resources import files
from itertools import pairwise
from math import log, sqrt
from typing import TYPE_CHECKING

from nearfar.errors import RequestError
from nearfar.types import Chunk, Embedder, Hit

from .bridges import BridgeRetriever
from .corpus import Corpus
from .fitted import FittedReranker, Judged
from .names import name_runs, names, plain, title_name
from .sentences import Sentence, sentences
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

#: What a question asks for, by its words, and what a sentence that tells it has.
_ASKS_WHEN = re.compile(r"\b(when|year|date|month|day)\b", re.IGNORECASE)
_ASKS_COUNT = re.compile(
    r"\b(how (many|much|old|long|far|tall|large|often)|number|percent\w*|population)\b", re.IGNORECASE
)
_ASKS_WHO = re.compile(r"\b(who|whom|whose)\b", re.IGNORECASE)
_ASKS_WHERE = re.compile(r"\b(where|country|city|place|state|county|town|nationality)\b", re.IGNORECASE)
_YEAR = re.compile(r"\b(1\d{3}|20\d\d)\b")
_PLACE = re.compile(r"\b(in|at|from|of) [A-Z]")
_ASKING = frozenset(["how", "many", "much", "what", "when", "where", "which", "who", "whom", "whose", "why"])

#: The logarithm of a passage's belief counts down to so far below the best one's, and no further: how much worse the
#: worst are says nothing, and a long document has hundreds of them.
_LEAST_BELIEF = -6.0

#: Sentences on either side that a sentence is seen with.
_NEAR = 3

#: Characters beyond which a passage is ranked by its stretches, and those of a stretch.
_LONG, _STRETCH = 2_000, 300

#: Shares of the budget up to which sentences are kept whole, then as telegrams; what is left is for names and numbers.
#: Of a half of the public questions, at a fifth of the tokens, these keep the answers of .88, 0.3 and 0.6 of .85, 0.3
#: and 0.3 of .88 (out of fold); benchmarks/retrieval.py measures the other half.
_WHOLE, _TELEGRAM = 0.4, 0.4

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
        ranked: Sequence[Hit] | None = None,
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
            ranked: what `ranked` says of this question and these passages, where it is known.

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
        if ranked is None:
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

        A hit's chunk is the sentence, with the passage's number in the metadata.
        """
        hits = sentence_signals(question, passages, self.embedder)
        return (self.weights or packaged_weights()).rerank(hits)


def packaged_weights() -> FittedReranker:
    """The sentence weights that come with nearfar."""
    said = json.loads(files("nearfar.retrieval").joinpath("sentence_weights.json").read_text())
    return FittedReranker(tuple(said["names"]), tuple(said["weights"]))


def judge_sentences(question: str, passages: Sequence[Chunk], answers: Sequence[str], embedder: Embedder) -> Judged:
    """The sentences of the passages with what speaks for them, those that have one of the answers being relevant."""
    hits = sentence_signals(question, passages, embedder)
    wanted = [f" {plain(answer)} " for answer in answers]
    having = [hit for hit in hits if any(answer in f" {plain(hit.chunk.text)} " for answer in wanted)]
    return Judged(hits, {hit.chunk.id: 1.0 for hit in having})


def fit_sentences(judged: Sequence[Judged], *, folds: int = 5) -> tuple[FittedReranker, list[FittedReranker]]:
    """Weights for sentences that have the answer, and those fitted without each fold.

    Args:
        judged: of `judge_sentences`; fold = place % folds.
        folds: how many.
    """
    without = [
        FittedReranker.fit([each for place, each in enumerate(judged) if place % folds != fold])
        for fold in range(folds)
    ]
    return FittedReranker.fit(judged), without


def sentence_signals(question: str, passages: Sequence[Chunk], embedder: Embedder) -> list[Hit]:
    """Every sentence of the passages with what speaks for it.

    Long passages are ranked by their stretches, as documents cut into passages are. A sentence's surroundings are the
    sentences at most `_NEAR` away in its passage, or in the passages before and after it where those have the same
    source and no title: a document is the same one however finely it is cut.
    """
    stretches = [(number, part) for number, chunk in enumerate(passages) for part in _stretches(chunk.text)]
    told = [
        _Told.of(number, stretch, part, _title(passages[number]))
        for stretch, (number, parts) in enumerate(stretches)
        for part in parts
    ]
    corpus = Corpus(
        [_ranked_as(passages[number], str(stretch), parts) for stretch, (number, parts) in enumerate(stretches)],
        embedder,
    )
    order = BridgeRetriever(corpus).search(question, k=len(stretches))
    place = {hit.chunk.id: number for number, hit in enumerate(order)}
    belief = {hit.chunk.id: log(hit.score + 1e-4) for hit in order}
    most = max(belief.values(), default=0.0)
    best_titles = [title_name(str(hit.chunk.metadata["title"])) for hit in order[:4]]
    empty = _empty_stems()
    asked = frozenset(words(question)) - empty
    having = Counter(word for each in told for word in each.stems)
    rarity = {word: log((len(told) + 1) / (count + 0.5)) for word, count in having.items() if word not in empty}
    asked_weight = sum(rarity.get(word, log(2 * len(told) + 2)) for word in asked) or 1.0
    asked_length = sqrt(sum(rarity.get(word, 0.0) ** 2 for word in asked)) or 1.0
    said_words = frozenset(plain(question).split()) - FUNCTION_WORDS - _ASKING
    in_stretch: dict[int, frozenset[str]] = {}
    for each in told:
        in_stretch[each.stretch] = in_stretch.get(each.stretch, frozenset()) | each.words
    counts = Counter(word for each in told for word in said_words & each.words)
    rare = {word: log((len(told) + 1) / (counts[word] + 0.5)) for word in said_words}
    said_weight = sum(rare.values()) or 1.0
    pairs = _pairs(plain(question))
    said = f" {plain(question)} "
    vectors: NDArray[float32] = embedder.embed([_titled(passages[each.passage], each.part.text) for each in told])
    cosines = (vectors @ embedder.embed_queries([question])[0]).tolist()
    coverage = [sum(rarity.get(word, 0.0) for word in asked & each.stems) / asked_weight for each in told]
    found = []
    for row, (each, near) in enumerate(zip(told, _surroundings(told, passages), strict=True)):
        new = [name for name in names(each.part.text) if f" {name} " not in said]
        id_ = str(each.stretch)
        around = frozenset[str]().union(*(told[other].stems for other in near))
        length = sqrt(sum(rarity.get(word, 0.0) ** 2 for word in each.stems)) or 1.0
        signals = {
            "passage": max(_LEAST_BELIEF, belief.get(id_, log(1e-4)) - most),
            "passage_place": 1 / (1 + place.get(id_, len(stretches))),
            "near_cosine": max(cosines[other] for other in near),
            "near_coverage": sum(rarity.get(word, 0.0) for word in asked & around) / asked_weight,
            "beside": max((coverage[other] for other in near if abs(other - row) == 1), default=0.0),
            "coverage": coverage[row],
            "title_coverage": sum(rarity.get(word, 0.0) for word in asked & (each.stems | each.title_stems))
            / asked_weight,
            "tfidf": sum(rarity[word] ** 2 for word in asked & each.stems) / (asked_length * length),
            "content": sum(rare[word] for word in said_words & each.words) / said_weight,
            "passage_content": sum(rare[word] for word in said_words & in_stretch[each.stretch]) / said_weight,
            "pairs": len(pairs & _pairs(each.plain)) / max(1, len(pairs)),
            "cosine": cosines[row],
            "lead": float(each.part.start == 0 and bool(each.title)),
            "new_names": min(len(new), 4) / 4,
            "link": float(
                any(name not in ("", each.title) and f" {name} " in f" {each.plain} " for name in best_titles)
            ),
            "length": log(len(each.part.text)),
            **_fits(question, each.part.text, new),
        }
        source = passages[each.passage].source
        metadata = {"passage": each.passage}
        chunk = Chunk(each.part.text, source, each.part.start, each.part.end, metadata, id=f"{row}")
        found.append(Hit(chunk, 0.0, signals))
    return found


@dataclass(frozen=True, slots=True)
class _Told:
    """A sentence and its words."""

    passage: int
    stretch: int  # of all passages'
    part: Sentence
    title: str  # its passage's name, plain
    plain: str
    words: frozenset[str]  # of `plain`
    stems: frozenset[str]
    title_stems: frozenset[str]

    @classmethod
    def of(cls, passage: int, stretch: int, part: Sentence, title: str) -> _Told:
        said = plain(part.text)
        stems, title_stems = frozenset(words(part.text)), frozenset(words(title))
        return cls(
            passage,
            stretch,
            part,
            title_name(title) if title else "",
            said,
            frozenset(said.split()),
            stems,
            title_stems,
        )


def _stretches(text: str) -> Iterator[list[Sentence]]:
    """The sentences of a text, in stretches of some `_STRETCH` characters where it is longer than `_LONG`."""
    found: list[Sentence] = []
    for part in sentences(text):
        if found and len(text) > _LONG and part.end - found[0].start > _STRETCH:
            yield found
            found = []
        found.append(part)
    if found:
        yield found


def _ranked_as(passage: Chunk, id_: str, parts: Sequence[Sentence]) -> Chunk:
    start, end = parts[0].start, parts[-1].end
    return Chunk(passage.text[start:end], id_, start, end, {"title": _title(passage)}, id=id_)


def _surroundings(told: Sequence[_Told], passages: Sequence[Chunk]) -> Iterator[range]:
    """The places of each sentence's surroundings, its own among them."""
    starts, start = [], 0
    for row, each in enumerate(told):
        before = told[row - 1] if row else each
        if each.passage != before.passage and (
            each.title or before.title or passages[each.passage].source != passages[before.passage].source
        ):
            start = row
        starts.append(start)
    end = len(told)
    ends = []
    for row in range(len(told) - 1, -1, -1):
        ends.append(end)
        if starts[row] == row:
            end = row
    for row, (first, last) in enumerate(zip(starts, reversed(ends), strict=True)):
        yield range(max(first, row - _NEAR), min(last, row + _NEAR + 1))


@cache
def _empty_stems() -> frozenset[str]:
    """Stems that bear no meaning."""
    return frozenset(words(" ".join(FUNCTION_WORDS | _ASKING)))


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    """Neighbouring words of a plain text, those that bear meaning."""
    found = text.split()
    empty = FUNCTION_WORDS | _ASKING
    return frozenset(pair for pair in pairwise(found) if not empty.issuperset(pair))


def _fits(question: str, text: str, new: Sequence[str]) -> dict[str, float]:
    """Whether the sentence has what the question asks for; `new` are its names that the question has not."""
    asks_who = bool(_ASKS_WHO.search(question))
    has_full_name = any(" " in name and not _DIGIT.search(name) for name in new)
    return {
        "year": float(bool(_ASKS_WHEN.search(question) and _YEAR.search(text))),
        "count": float(bool(_ASKS_COUNT.search(question) and _DIGIT.search(text))),
        "person": float(asks_who and has_full_name),
        "nobody": float(asks_who and not new),
        "where": float(bool(_ASKS_WHERE.search(question) and _PLACE.search(text))),
    }


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
