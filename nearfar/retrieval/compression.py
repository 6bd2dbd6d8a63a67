"""Compression of passages for a question: what bears on it stays whole, of the rest what is likeliest to answer it."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from importlib.resources import files

from nearfar.errors import RequestError
from nearfar.types import Chunk, Embedder, Hit

from .bridges import BridgeWeights
from .fitted import FittedReranker, Judged
from .names import plain
from .sentence_ranking import bridged, by_surroundings, is_long, sentence_signals, title_of, titled
from .spans import judge_spans, span_hits

_PIECE = re.compile(r"\d|[^\W\d]+|[^\w\s]")
_DIGIT = re.compile(r"\d")

#: The share of the budget up to which sentences of long documents are kept whole; of others the rate itself, so that
#: the more there is room for, the more stays as it was written. Of a half of the public questions, at a fifth of the
#: tokens, shares of 0.2, 0.3 and 0.4 keep the answers of .95, .93 and .93 (out of fold), and at half of them all
#: shares from 0.4 to 0.8 keep .997 and more. Of a half of the questions on a speech, 0.3 to 0.5 keep four fifths of the
#: answer's words more often, 0.9 what the answer quotes.
_WHOLE_OF_LONG = 0.5

#: Words between two kept runs that are kept, too.
_GLUE = 2

#: Marks across which nothing is glued.
_APART = re.compile(r"[.;:()]")

#: Runs of a question that its answer is compared with when weights are fitted, out of some 500.
_SAMPLE = 80

#: Without a budget, sentences are kept until this much of the belief is covered.
_BELIEF = 0.98


class Level(IntEnum):
    """How much of a sentence is kept."""

    WHOLE = 0
    RUNS = 1  # some of its names, numbers and other runs of words


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
class CompressionWeights:
    """The fitted rerankers: of sentences by themselves, of sentences over bridges, of runs of words."""

    first: FittedReranker
    second: FittedReranker
    runs: FittedReranker
    bridges: BridgeWeights | None = None  # that rank passages; None: the packaged ones

    @classmethod
    def packaged(cls) -> CompressionWeights:
        """Those that come with nearfar, fitted by `benchmarks/retrieval.py --fit` on public questions."""
        said = json.loads(files("nearfar.retrieval").joinpath("compression_weights.json").read_text())
        first, second, runs = (
            FittedReranker(tuple(said[name]["names"]), tuple(said[name]["weights"])) for name in _FITTED
        )
        return cls(first, second, runs)

    def as_json(self) -> dict[str, object]:
        """What `packaged` reads."""
        fitted: dict[str, FittedReranker] = {name: getattr(self, name) for name in _FITTED}
        return {
            name: {"names": each.names, "weights": [float(f"{weight:.5g}") for weight in each.weights]}
            for name, each in fitted.items()
        }


#: What of the weights is in the package's file.
_FITTED = ("first", "second", "runs")


@dataclass(frozen=True, slots=True)
class Compressor:
    """Keeps of passages what a question needs, within a budget of tokens.

    Sentences are ranked by a fitted score: the question's words and meaning in them and around them, how good their
    passage is, whether they have what the question asks for, and what leads to them from the best sentences of other
    passages. The best are kept whole as far as a share of the budget has room for them. The rest of it goes to runs of
    words (names, numbers with what they count, dates, places), those first that are the likeliest to answer for their
    length, each once. The levels are the budget controller of LLMLingua (arXiv:2310.05736), with fitted scores in place
    of its model.

    Args:
        embedder: of the question and the sentences.
        count: tokens of a text.
        weights: None: the packaged ones.
    """

    embedder: Embedder
    count: Callable[[str], int] = count_tokens
    weights: CompressionWeights | None = field(default=None)

    def compress(
        self,
        question: str,
        passages: Sequence[Chunk],
        *,
        tokens: int | None = None,
        rate: float | None = None,
        forced: Iterable[str] = (),
        keeps_digits: bool = False,
        ranked: Sequence[Hit] | None = None,
    ) -> Compressed:
        """What is left of the passages.

        Args:
            question: what they are to answer.
            passages: in the order in which they are to stand.
            tokens: the budget.
            rate: the budget as a share of the passages' tokens, in (0, 1].
                Neither tokens nor rate: as much as the belief of the ranking asks for, so that a question whose
                answer is plain to see gets a shorter text.
            forced: words or phrases; sentences that have one are kept whole, within the budget first of all.
            keeps_digits: whether numbers, and citations like [3], come before all other runs of words.
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
        original = sum(self.count(titled(chunk, chunk.text)) for chunk in passages)
        if ranked is None:
            ranked = self.ranked(question, passages)
        budget = tokens if tokens is not None else None if rate is None else max(1, int(rate * original))
        believed, enough = 0.0, _BELIEF
        if budget is not None and budget >= original:
            budget, enough = None, float("inf")  # nothing to drop
        wanted = [plain(phrase) for phrase in forced]
        first = [hit for hit in ranked if any(f" {phrase} " in f" {plain(hit.chunk.text)} " for phrase in wanted)]
        rest = [hit for hit in ranked if hit not in first]
        plan = _Plan(self.count, budget, passages, ranked)
        for hit in first:
            plan.take(hit, 1.0)
        if budget is None:
            for hit in rest:
                if believed >= enough:
                    break
                plan.take(hit, 1.0)
                believed += hit.score
        else:
            share = _WHOLE_OF_LONG if is_long(passages) else budget / original
            for hit in rest:
                plan.take(hit, share)
            runs = (self.weights or CompressionWeights.packaged()).runs
            plan.fill(runs.rerank(span_hits(question, passages, ranked)), keeps_digits=keeps_digits)
            plan.grow()
        text = plan.text()
        return Compressed(text, plan.pieces(), self.count(text), original)

    def ranked(self, question: str, passages: Sequence[Chunk]) -> list[Hit]:
        """The sentences of the passages, best first; a hit's score is the share of belief that it has the answer.

        A hit's chunk is the sentence, with the passage's number in the metadata.
        """
        weights = self.weights or CompressionWeights.packaged()
        return _rounds(
            question, passages, sentence_signals(question, passages, self.embedder, weights.bridges), weights
        )


def _rounds(question: str, passages: Sequence[Chunk], hits: Sequence[Hit], weights: CompressionWeights) -> list[Hit]:
    """The sentences by both rounds; in long documents by what is around them, too."""
    ranked = weights.first.rerank(hits)
    if len({hit.chunk.metadata["document"] for hit in ranked}) > 1:
        ranked = weights.second.rerank(bridged(question, passages, ranked))
    return by_surroundings(ranked) if ranked and is_long(passages) else ranked


@dataclass(frozen=True, slots=True)
class Answered:
    """A question, the passages that answer it, and the answer's wordings."""

    question: str
    passages: Sequence[Chunk]
    answers: Sequence[str]


def fit_compression(
    examples: Sequence[Answered], embedder: Embedder, *, folds: int = 5, bridges: BridgeWeights | None = None
) -> tuple[CompressionWeights, list[CompressionWeights]]:
    """Weights under which what has the answer comes first, and those fitted without each fold.

    The sentences that have the answer are relevant, and so are the runs of words. A round is fitted on what the round
    before says of questions that it was not fitted on, as it will see it later.

    Args:
        examples: fold = place % folds.
        embedder: of the questions and sentences.
        folds: how many.
        bridges: the weights that rank passages; None: the packaged ones.

    Raises:
        DataError: the questions teach nothing.
    """
    signals = [sentence_signals(each.question, each.passages, embedder, bridges) for each in examples]
    relevant = [
        {hit.chunk.id: 1.0 for hit in hits if _has_answer(hit, each)}
        for hits, each in zip(signals, examples, strict=True)
    ]
    first = _Folded.fit([Judged(hits, wanted) for hits, wanted in zip(signals, relevant, strict=True)], folds)
    second = _Folded.fit(
        [
            Judged(bridged(each.question, each.passages, ranked), wanted)
            for each, ranked, wanted in zip(examples, first.ranked, relevant, strict=True)
        ],
        folds,
    )
    runs = _Folded.fit(
        [
            judge_spans(span_hits(each.question, each.passages, ranked), ranked, each.answers)
            for each, ranked in zip(examples, second.ranked, strict=True)
        ],
        folds,
        sample=_SAMPLE,
    )
    without = zip(first.without, second.without, runs.without, strict=True)
    return (
        CompressionWeights(first.all, second.all, runs.all, bridges),
        [CompressionWeights(*each, bridges) for each in without],
    )


def _has_answer(hit: Hit, each: Answered) -> bool:
    said = f" {plain(hit.chunk.text)} "
    return any(f" {plain(answer)} " in said for answer in each.answers)


@dataclass(frozen=True, slots=True)
class _Folded:
    """A round's weights, and each question's ranking by weights that were fitted without its fold."""

    all: FittedReranker
    without: list[FittedReranker]
    ranked: list[list[Hit]]

    @classmethod
    def fit(cls, judged: Sequence[Judged], folds: int, *, sample: int | None = None) -> _Folded:
        without = [
            FittedReranker.fit([each for place, each in enumerate(judged) if place % folds != fold], sample=sample)
            for fold in range(folds)
        ]
        ranked = [without[place % folds].rerank(each.hits) for place, each in enumerate(judged)]
        return cls(FittedReranker.fit(judged, sample=sample), without, ranked)


class _Plan:
    """What is kept so far, and what it costs."""

    def __init__(
        self, count: Callable[[str], int], budget: int | None, passages: Sequence[Chunk], ranked: Sequence[Hit]
    ) -> None:
        self._count = count
        self._budget = budget
        self._passages = passages
        self._ranked = ranked
        self._sentences = {hit.chunk.id: hit.chunk for hit in ranked}
        self._used = 0
        self._whole: set[str] = set()
        self._runs: dict[str, list[tuple[int, int]]] = {}  # by sentence, in order
        self._opened: set[int] = set()
        self._said: list[str] = []  # what is kept, plain

    def take(self, hit: Hit, share: float) -> None:
        """Keeps the sentence whole, if that share of the budget has room for it."""
        number = hit.chunk.metadata["passage"]
        cost = self._count(hit.chunk.text) + self._opening(number)
        if self._budget is not None and self._used + cost > share * self._budget:
            return
        self._used += cost
        self._open(number)
        self._whole.add(hit.chunk.id)
        self._said.append(plain(hit.chunk.text))

    def fill(self, runs: Sequence[Hit], *, keeps_digits: bool) -> None:
        """Spends what is left on runs of words, by their share of belief for each token."""
        where = [self._place(run) for run in runs]
        costs = [max(1, self._count(run.chunk.text)) for run in runs]

        def worth(row: int) -> tuple[float, int, bool]:
            number = self._number(where[row][0])
            value = runs[row].score / (costs[row] + self._opening(number))
            is_first = keeps_digits and bool(_DIGIT.search(runs[row].chunk.text))
            return -value - is_first, row, number in self._opened

        queue = [worth(row) for row in range(len(runs))]
        heapq.heapify(queue)
        said = f" {' | '.join(self._said)} "
        while queue:
            _, row, was_opened = heapq.heappop(queue)
            sentence, start, end = where[row]
            number, bare = self._number(sentence), runs[row].chunk.metadata["plain"]
            if (number in self._opened) != was_opened:
                heapq.heappush(queue, worth(row))  # its passage has been opened meanwhile: it costs less
            elif sentence not in self._whole and f" {bare} " not in said and self._fits(costs[row], number):
                self._used += costs[row] + self._opening(number)
                if number not in self._opened:
                    self._open(number)
                    said += f"| {self._said[-1]} "
                said += f"| {bare} "
                self._add(sentence, start, end)

    def grow(self) -> None:
        """Spends what is still left on the best sentences that are not yet whole."""
        for hit in self._ranked:
            id_, number = hit.chunk.id, hit.chunk.metadata["passage"]
            more = self._count(hit.chunk.text) - self._count(self._left(id_))
            if id_ not in self._whole and self._fits(more, number):
                self._used += more + self._opening(number)
                self._open(number)
                self._whole.add(id_)

    def pieces(self) -> tuple[Piece, ...]:
        """In the passages' order."""
        return tuple(
            Piece(
                self._passages[chunk.metadata["passage"]],
                chunk.start,
                chunk.end,
                Level.WHOLE if chunk.id in self._whole else Level.RUNS,
                self._left(chunk.id),
            )
            for chunk in self._kept()
        )

    def text(self) -> str:
        """The pieces under their passages' titles."""
        by_passage: dict[int, list[str]] = {}
        for chunk in self._kept():
            by_passage.setdefault(chunk.metadata["passage"], []).append(self._left(chunk.id))
        return "\n".join(titled(self._passages[number], " ".join(parts)) for number, parts in by_passage.items())

    def _kept(self) -> list[Chunk]:
        kept = [chunk for id_, chunk in self._sentences.items() if id_ in self._whole or id_ in self._runs]
        return sorted(kept, key=lambda chunk: (chunk.metadata["passage"], chunk.start))

    def _left(self, sentence: str) -> str:
        text = self._sentences[sentence].text
        if sentence in self._whole:
            return text
        return " ".join(text[start:end] for start, end in self._runs.get(sentence, ()))

    def _number(self, sentence: str) -> int:
        number: int = self._sentences[sentence].metadata["passage"]
        return number

    def _place(self, run: Hit) -> tuple[str, int, int]:
        """Where the run is to stand: in a passage that is opened already, else in its best sentence."""
        places: list[tuple[str, int, int]] = run.chunk.metadata["places"]
        return next((place for place in places if self._number(place[0]) in self._opened), places[0])

    def _opening(self, number: int) -> int:
        """What the passage's title costs where nothing of the passage is kept yet."""
        title = title_of(self._passages[number])
        return 0 if number in self._opened or not title else 1 + self._count(title)

    def _open(self, number: int) -> None:
        if number not in self._opened:
            self._opened.add(number)
            self._said.append(plain(title_of(self._passages[number])))

    def _fits(self, cost: int, number: int) -> bool:
        return self._budget is None or self._used + cost + self._opening(number) <= self._budget

    def _add(self, sentence: str, start: int, end: int) -> None:
        """Keeps the run, and the few words between it and its neighbours, if there is room for them."""
        kept = self._runs.setdefault(sentence, [])
        kept.append((start, end))
        kept.sort()
        text = self._sentences[sentence].text
        place = kept.index((start, end))
        for left in (place, place - 1):  # the right neighbour first: the left one moves what comes after it
            if left < 0 or left + 1 >= len(kept):
                continue
            between = text[kept[left][1] : kept[left + 1][0]]
            cost = self._count(between)
            is_near = 0 < len(between.split()) <= _GLUE and not _APART.search(between)
            if is_near and self._fits(cost, self._number(sentence)):
                self._used += cost
                kept[left : left + 2] = [(kept[left][0], kept[left + 1][1])]
