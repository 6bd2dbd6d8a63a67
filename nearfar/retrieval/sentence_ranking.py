"""Sentences ranked by how likely they answer a question: by their words and their meaning, by what is around them, by
what leads to them from other passages, and in long documents above all by their surroundings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from math import log, sqrt
from typing import TYPE_CHECKING

from nearfar.types import Chunk, Embedder, Hit

from .bridges import BridgeRetriever, BridgeWeights
from .corpus import Corpus
from .names import names, plain, title_name
from .sentences import Sentence, sentences
from .spans import ASKING, ASKS_COUNT, ASKS_WHEN, ASKS_WHERE, ASKS_WHO, FUNCTION_WORDS, YEAR
from .words import words

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

_DIGIT = re.compile(r"\d")
_PLACE = re.compile(r"\b(in|at|from|of) [A-Z]")

#: The logarithm of a passage's belief counts down to so far below the best one's, and no further: how much worse the
#: worst are says nothing, and a long document has hundreds of them.
_LEAST_BELIEF = -6.0

#: Sentences on either side that a sentence is seen with.
_NEAR = 3

#: Characters beyond which a document is ranked by its stretches, and those of a stretch.
_LONG, _STRETCH = 2_000, 300

#: Sentences that bridges start from.
_STARTS = 12

#: The share of the question's words that a start leaves open counts at least so much; see `bridges`.
_OPEN = 0.2

#: What each of `_AROUND` counts in a long document, the learned score counting 1. Where what answers is said again and
#: again in other words, the surroundings tell more than a score that was fitted on encyclopedias: of a half of the
#: questions on a speech, the sentence that the answer quotes is left at a fifth of the tokens in .96, without in .87.
_AROUND_WEIGHT = 0.5
_AROUND = ("near_coverage", "near_cosine")


def sentence_signals(
    question: str, passages: Sequence[Chunk], embedder: Embedder, bridges: BridgeWeights | None = None
) -> list[Hit]:
    """Every sentence of the passages with what speaks for it.

    Long documents are ranked by their stretches. A sentence's surroundings are the sentences of its document that are
    at most `_NEAR` away. Neighbouring passages without titles that have the same source are one document: it is the
    same one however finely it is cut.

    A hit's chunk is the sentence; its metadata has the number of its `passage` and of its `document`.

    Args:
        question: what is asked.
        passages: in their order.
        embedder: of the question and the sentences.
        bridges: the weights that rank the passages; None: the packaged ones.
    """
    cut = list(_stretches(passages))
    told = [
        _Told.of(number, document, stretch, part, title_of(passages[number]))
        for stretch, (document, parts) in enumerate(cut)
        for number, part in parts
    ]
    corpus = Corpus([_ranked_as(passages, str(stretch), parts) for stretch, (_, parts) in enumerate(cut)], embedder)
    order = BridgeRetriever(corpus, bridges).search(question, k=len(cut))
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
    said_words = frozenset(plain(question).split()) - FUNCTION_WORDS - ASKING
    in_stretch: dict[int, frozenset[str]] = {}
    for each in told:
        in_stretch[each.stretch] = in_stretch.get(each.stretch, frozenset()) | each.words
    counts = Counter(word for each in told for word in said_words & each.words)
    rare = {word: log((len(told) + 1) / (counts[word] + 0.5)) for word in said_words}
    said_weight = sum(rare.values()) or 1.0
    pairs = _pairs(plain(question))
    said = f" {plain(question)} "
    vectors: NDArray[float32] = embedder.embed([titled(passages[each.passage], each.part.text) for each in told])
    cosines = (vectors @ embedder.embed_queries([question])[0]).tolist()
    coverage = [sum(rarity.get(word, 0.0) for word in asked & each.stems) / asked_weight for each in told]
    found = []
    for row, (each, near) in enumerate(zip(told, _surroundings(told), strict=True)):
        new = [name for name in names(each.part.text) if f" {name} " not in said]
        id_ = str(each.stretch)
        around = frozenset[str]().union(*(told[other].stems for other in near))
        length = sqrt(sum(rarity.get(word, 0.0) ** 2 for word in each.stems)) or 1.0
        signals = {
            "passage": max(_LEAST_BELIEF, belief.get(id_, log(1e-4)) - most),
            "passage_place": 1 / (1 + place.get(id_, len(cut))),
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
        metadata = {"passage": each.passage, "document": each.document}
        chunk = Chunk(each.part.text, source, each.part.start, each.part.end, metadata, id=f"{row}")
        found.append(Hit(chunk, 0.0, signals))
    return found


@dataclass(frozen=True, slots=True)
class _Told:
    """A sentence and its words."""

    passage: int
    document: int
    stretch: int  # of all documents'
    part: Sentence
    title: str  # its passage's name, plain
    plain: str
    words: frozenset[str]  # of `plain`
    stems: frozenset[str]
    title_stems: frozenset[str]

    @classmethod
    def of(cls, passage: int, document: int, stretch: int, part: Sentence, title: str) -> _Told:
        said = plain(part.text)
        stems, title_stems = _stems(part.text), _stems(title)
        return cls(
            passage,
            document,
            stretch,
            part,
            title_name(title) if title else "",
            said,
            frozenset(said.split()),
            stems,
            title_stems,
        )


_Parts = list[tuple[int, Sentence]]  # with the numbers of their passages


def _documents(passages: Sequence[Chunk]) -> list[list[int]]:
    """The numbers of the passages of each document."""
    found: list[list[int]] = []
    for number, passage in enumerate(passages):
        before = passages[number - 1] if number else None
        if before is None or title_of(passage) or title_of(before) or passage.source != before.source:
            found.append([])
        found[-1].append(number)
    return found


def is_long(passages: Sequence[Chunk]) -> bool:
    """Whether one of the documents is ranked by its stretches."""
    return any(sum(len(passages[number].text) for number in document) > _LONG for document in _documents(passages))


def _stretches(passages: Sequence[Chunk]) -> Iterator[tuple[int, _Parts]]:
    """The sentences of each document: of a long one in stretches of some `_STRETCH` characters, else by passage."""
    for document, numbers in enumerate(_documents(passages)):
        in_stretches = sum(len(passages[number].text) for number in numbers) > _LONG
        found: _Parts = []
        length = 0
        for number in numbers:
            for part in sentences(passages[number].text):
                is_full = length + len(part.text) > _STRETCH if in_stretches else found and found[-1][0] != number
                if found and is_full:
                    yield document, found
                    found, length = [], 0
                found.append((number, part))
                length += len(part.text) + 1
        if found:
            yield document, found


def _ranked_as(passages: Sequence[Chunk], id_: str, parts: _Parts) -> Chunk:
    number, first = parts[0]
    text = " ".join(part.text for _, part in parts)
    return Chunk(text, id_, first.start, first.start + len(text), {"title": title_of(passages[number])}, id=id_)


def _surroundings(told: Sequence[_Told]) -> Iterator[range]:
    """The places of each sentence's surroundings, its own among them."""
    start = 0
    while start < len(told):
        end = start
        while end < len(told) and told[end].document == told[start].document:
            end += 1
        for row in range(start, end):
            yield range(max(start, row - _NEAR), min(end, row + _NEAR + 1))
        start = end


@lru_cache(maxsize=4_096)  # both rounds ask
def _stems(text: str) -> frozenset[str]:
    return frozenset(words(text))


@cache
def _empty_stems() -> frozenset[str]:
    """Stems that bear no meaning."""
    return frozenset(words(" ".join(FUNCTION_WORDS | ASKING)))


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    """Neighbouring words of a plain text, those that bear meaning."""
    found = text.split()
    empty = FUNCTION_WORDS | ASKING
    return frozenset(pair for pair in pairwise(found) if not empty.issuperset(pair))


def _fits(question: str, text: str, new: Sequence[str]) -> dict[str, float]:
    """Whether the sentence has what the question asks for; `new` are its names that the question has not."""
    asks_who = bool(ASKS_WHO.search(question))
    has_full_name = any(" " in name and not _DIGIT.search(name) for name in new)
    return {
        "year": float(bool(ASKS_WHEN.search(question) and YEAR.search(text))),
        "count": float(bool(ASKS_COUNT.search(question) and _DIGIT.search(text))),
        "person": float(asks_who and has_full_name),
        "nobody": float(asks_who and not new),
        "where": float(bool(ASKS_WHERE.search(question) and _PLACE.search(text))),
    }


def bridged(question: str, passages: Sequence[Chunk], ranked: Sequence[Hit]) -> list[Hit]:
    """The sentences with what leads to them from the best ones of other documents.

    A name of a start that the question has not and few documents have is a bridge to the sentences that have it, and
    to the document whose title it is; so is a start's title to the sentences that name it. See `BridgeRetriever`, which
    does the like for passages.

    Args:
        question: what is asked.
        passages: the sentences' documents.
        ranked: as the first round ranks them.
    """
    said = f" {plain(question)} "
    texts = [f" {plain(hit.chunk.text)} " for hit in ranked]
    stems = [_stems(hit.chunk.text) for hit in ranked]
    new = [{name for name in names(hit.chunk.text) if f" {name} " not in said} for hit in ranked]
    document = [hit.chunk.metadata["document"] for hit in ranked]
    title = [title_name(title_of(passages[hit.chunk.metadata["passage"]])) for hit in ranked]
    num_documents = len(set(document))
    having: dict[str, set[int]] = {}
    for number, found in zip(document, new, strict=True):
        for name in found:
            having.setdefault(name, set()).add(number)
    asked = frozenset(words(question)) - _empty_stems()
    frequency = Counter(word for each in stems for word in asked & each)
    rarity = {word: log((len(ranked) + 1) / (frequency[word] + 0.5)) for word in asked}
    total = sum(rarity.values()) or 1.0
    table = [dict.fromkeys(_EVIDENCE, 0.0) for _ in ranked]
    best = max((hit.score for hit in ranked), default=0.0) or 1.0
    for start in range(min(_STARTS, len(ranked))):
        belief = ranked[start].score / best
        left_open = asked - stems[start]
        rare = {
            name: log(1 + num_documents / len(having[name])) / log(1 + num_documents)
            for name in new[start]
            if len(having[name]) <= max(2, num_documents // 2)
        }
        for row, evidence in enumerate(table):
            if document[row] == document[start]:
                continue
            own = title[row]
            shared = max((worth for name, worth in rare.items() if f" {name} " in texts[row]), default=0.0)
            is_title = bool(own) and any(own == each or (" " in each and f" {each} " in f" {own} ") for each in rare)
            names_start = bool(title[start]) and f" {title[start]} " in texts[row] and f" {title[start]} " not in said
            opened = sum(rarity[word] for word in left_open & stems[row]) / total
            bridge = max(shared, float(is_title), float(names_start))
            for key, value in (
                ("bridge_name", shared),
                ("bridge_title", float(is_title)),
                ("names_start", float(names_start)),
                ("bridge_and_open", bridge * (_OPEN + opened)),
                ("title_and_open", is_title * (_OPEN + opened)),
                ("open", opened),
            ):
                evidence[key] = max(evidence[key], belief * value)
            evidence["bridges"] += belief * bridge
    return [
        replace(
            hit,
            signals={
                **hit.signals,
                **evidence,
                "bridges": log(1 + evidence["bridges"]),
                "bridge_and_new": min(len(new[row]), 4) / 4 * evidence["bridge_and_open"],
                "before": log(hit.score + 1e-4),
            },
        )
        for row, (hit, evidence) in enumerate(zip(ranked, table, strict=True))
    ]


#: The signals of a bridge, each the most that any start gives, but for `bridges`, which adds them up.
_EVIDENCE = ("bridge_name", "bridge_title", "names_start", "bridge_and_open", "title_and_open", "open", "bridges")


def by_surroundings(ranked: Sequence[Hit]) -> list[Hit]:
    """The sentences ranked by what is around them as much as by their scores, which stay shares of belief."""
    import numpy as np

    scores = np.log([hit.score + 1e-12 for hit in ranked])
    fused = scores.copy()
    for name in _AROUND:
        signal = np.array([hit.signals[name] for hit in ranked])
        fused += _AROUND_WEIGHT * scores.std() * (signal - signal.mean()) / (signal.std() or 1.0)
    shares = np.exp(fused - fused.max())
    shares /= shares.sum()
    order = np.argsort(-fused, kind="stable").tolist()
    return [replace(ranked[place], score=float(shares[place])) for place in order]


def title_of(chunk: Chunk) -> str:
    """The title in the passage's metadata; "" where there is none."""
    return str(chunk.metadata.get("title") or "")


def titled(chunk: Chunk, text: str) -> str:
    """The text under the passage's title."""
    title = title_of(chunk)
    return f"{title}: {text}" if title else text
