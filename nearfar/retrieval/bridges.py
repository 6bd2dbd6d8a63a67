"""Multi-hop retrieval without a language model: what a good passage names leads to the passage that is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import log
from typing import TYPE_CHECKING

from nearfar.types import Filter, Hit

from .corpus import Corpus
from .fitted import FittedReranker, Judged
from .judged import JudgedQuery
from .names import Mentions, names, plain, title_name
from .sentences import sentences
from .words import words

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

#: Passages that bridges start from. Measured on the training questions of MuSiQue and HotpotQA: 4 lose, 16 add nothing.
_STARTS = 8

#: Candidates by the question alone, and what each start adds by its words.
_DIRECT, _BY_WORDS = 60, 20

#: Names that more passages than this have lead nowhere.
_COMMON = 50

#: The share of the question's words that a start leaves open counts at least so much.
_OPEN = 0.2


@dataclass(frozen=True, slots=True)
class BridgeWeights:
    """The fitted rerankers: of the first round, by the question alone, and of each round over bridges."""

    rounds: tuple[FittedReranker, ...]

    @classmethod
    def packaged(cls) -> BridgeWeights:
        """Those that come with nearfar, fitted by `benchmarks/retrieval.py --fit-bridges` on public questions."""
        said = json.loads(files("nearfar.retrieval").joinpath("bridge_weights.json").read_text())
        return cls(tuple(FittedReranker(tuple(each["names"]), tuple(each["weights"])) for each in said["rounds"]))

    def as_json(self) -> dict[str, object]:
        """What `packaged` reads."""
        return {
            "rounds": [
                {"names": each.names, "weights": [float(f"{weight:.5g}") for weight in each.weights]}
                for each in self.rounds
            ]
        }


class BridgeRetriever:
    """Finds the passages that answer a question together; a `Retriever`.

    The first round ranks by the question alone. Each later round starts from the best passages so far and looks at
    what connects another passage to them: its title is named there, above all in the sentences that bear on the
    question; it names their title; both have a rare name that the question has not; it has the words that the question
    leaves open. A fitted reranker weighs that evidence with the question's own.

    The bridge as evidence is that of Das et al. 2019 ("Multi-step entity-centric information retrieval") and of
    GoldEn (Qi et al. 2019, arXiv:1910.07000), without their readers.

    Args:
        corpus: the passages, with titles in their metadata where they have any.
        weights: None: the packaged ones.
    """

    def __init__(self, corpus: Corpus, weights: BridgeWeights | None = None) -> None:
        self._corpus = corpus
        self._weights = weights or BridgeWeights.packaged()
        chunks = corpus.chunks
        self._titles = [title_name(str(chunk.metadata.get("title") or "")) for chunk in chunks]
        self._by_title = _inverted([name] for name in self._titles)
        self._by_title.pop("", None)
        self._mentions = Mentions(self._by_title)
        self._mentioned = [self._mentions.within(chunk.text) for chunk in chunks]
        self._mentioning = _inverted(self._mentioned)
        self._names = [names(chunk.text) | {name} - {""} for chunk, name in zip(chunks, self._titles, strict=True)]
        self._naming = _inverted(self._names)

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The best k passages; a hit's signals say what led to it."""
        first, *rest = self._weights.rounds
        ranked = first.rerank(self.direct(query, filter=filter))
        for reranker in rest:
            ranked = reranker.rerank(self.bridged(query, ranked, filter=filter))
        return ranked[:k]

    def direct(self, query: str, *, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The candidates by the question alone, with the signals of the first round."""
        named = [place for name in self._mentions.within(query) for place in self._by_title[name]]
        return self._judged(query, _DIRECT, [self._corpus.chunks[place].id for place in named], filter)

    def bridged(self, query: str, ranked: Sequence[Hit], *, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The candidates of the next round, with the signals of their bridges from the best of `ranked`.

        A hit's signal "before" is the logarithm of its score in `ranked`.
        """
        import numpy as np

        if not ranked:
            return []
        places = self._corpus.places
        starts = [_Start.of(self, query, hit, ranked[0].score) for hit in ranked[:_STARTS]]
        extra = {place for start in starts for place in start.reached}
        direct = {hit.chunk.id: hit for hit in ranked}
        new = [self._corpus.chunks[place].id for place in extra if self._corpus.chunks[place].id not in direct]
        if new:
            direct.update((hit.chunk.id, hit) for hit in self._judged(query, 0, new, filter))
        hits = list(direct.values())
        where = [places[hit.chunk.id] for hit in hits]
        table = np.max([start.evidence(self, where) for start in starts], axis=0)
        before = {hit.chunk.id: log(hit.score + 1e-4) for hit in ranked}
        return [
            replace(
                hit,
                signals={
                    **hit.signals,
                    **dict(zip(_EVIDENCE, table[row].tolist(), strict=True)),
                    "before": before.get(hit.chunk.id, log(1e-4)),
                },
            )
            for row, hit in enumerate(hits)
        ]

    def _judged(self, query: str, depth: int, extra: Sequence[str], wanted: Filter | None) -> list[Hit]:
        said = f" {plain(query)} "
        found = []
        for hit in self._corpus.candidates(query, depth=depth, extra=extra, filter=wanted):
            title = self._titles[self._corpus.places[hit.chunk.id]]
            in_query = float(bool(title) and f" {title} " in said)
            found.append(replace(hit, signals={**hit.signals, "title_in_query": in_query}))
        return found


#: The signals of a bridge, each the most that any start gives.
_EVIDENCE = (
    "named_by_start",  # its title stands in a start
    "named_in_focus",  # … in the start's sentences that bear on the question
    "names_start",  # a start's title stands in it
    "shared_name",  # the rarity of a name that both have and the question has not
    "bridge_words",  # BM25 of the words of the start's sentences that the question has not
    "start_cosine",
    "open_words",  # the share of the question's words that the start lacks and it has
    "named_and_open",
    "bridge_and_open",
)


@dataclass(frozen=True, slots=True)
class _Start:
    """A passage that bridges start from, and what it says."""

    place: int
    belief: float  # in [0, 1], of the best start 1
    named: Mapping[int, float]  # by place: 1 where its title is named, 2 in the focus
    naming: frozenset[int]
    shared: Mapping[int, float]  # by place: the rarity of the rarest shared name
    by_words: NDArray[float32]  # every passage's, from 0
    open: Mapping[str, float]  # the question's words that it lacks, as shares of the question's
    reached: frozenset[int]

    @classmethod
    def of(cls, bridges: BridgeRetriever, query: str, hit: Hit, best_score: float) -> _Start:
        import numpy as np

        corpus = bridges._corpus
        place = corpus.places[hit.chunk.id]
        rarity = corpus.rarity(query)
        total = sum(rarity.values()) or 1.0
        focus = " ".join(_focus(hit.chunk.text, rarity))
        in_focus = bridges._mentions.within(focus)
        own = bridges._titles[place]
        named = {
            other: 2.0 if name in in_focus else 1.0
            for name in bridges._mentioned[place]
            if name != own
            for other in bridges._by_title[name]
        }
        naming = frozenset(bridges._mentioning.get(own, ())) if own else frozenset()
        said = f" {plain(query)} "
        shared: dict[int, float] = {}
        num = len(corpus.chunks)
        for name in bridges._names[place]:
            having = bridges._naming[name]
            if 1 < len(having) <= _COMMON and f" {name} " not in said:
                rare = log(1 + (num - len(having) + 0.5) / (len(having) + 0.5)) / log(1 + num)
                for other in having:
                    shared[other] = max(rare, shared.get(other, 0.0))
        asked = set(words(query))
        bridge = " ".join(dict.fromkeys(word for word in focus.split() if not asked.intersection(words(word))))
        by_words = corpus.bm25.scores(bridge)
        weight = sum(corpus.rarity(bridge).values()) or 1.0
        has = corpus.words_of(place)
        best = np.argsort(-by_words, kind="stable")[:_BY_WORDS].tolist()
        return cls(
            place,
            hit.score / best_score if best_score > 0 else 1.0,
            named,
            naming,
            shared,
            by_words / weight,
            {word: share / total for word, share in rarity.items() if word not in has},
            frozenset({*named, *naming, *shared, *best} - {place}),
        )

    def evidence(self, bridges: BridgeRetriever, places: Sequence[int]) -> NDArray[float32]:
        """Shape (places, signals), weighted by the belief in the start; none to itself."""
        import numpy as np

        vectors = bridges._corpus.vectors
        cosines = vectors[places] @ vectors[self.place]
        rows = np.zeros((len(places), len(_EVIDENCE)), np.float32)
        for row, place in enumerate(places):
            if place == self.place:
                continue
            named, shared = self.named.get(place, 0.0), self.shared.get(place, 0.0)
            has = bridges._corpus.words_of(place)
            opened = sum(share for word, share in self.open.items() if word in has)
            naming = float(place in self.naming)
            rows[row] = (
                float(named > 0),
                float(named > 1),
                naming,
                shared,
                self.by_words[place],
                cosines[row],
                opened,
                max(float(named > 0), naming) * (_OPEN + opened),
                max(float(named > 1), shared) * (_OPEN + opened),
            )
        return rows * np.float32(self.belief)


def fit_bridges(
    groups: Sequence[tuple[Corpus, Sequence[JudgedQuery]]], *, rounds: int = 3, folds: int = 5
) -> tuple[BridgeWeights, list[list[list[Hit]]]]:
    """Weights fitted on labelled questions, and the questions' own rankings by weights of the other folds.

    A round is fitted on what the round before says of questions that it was not fitted on, as it will see it later.

    Args:
        groups: passages, and questions on them.
        rounds: the first, and those over bridges.
        folds: each question's ranking comes from weights that were fitted without its fold.

    Returns:
        The weights, and per group and question the ranking of the last round.

    Raises:
        DataError: the questions teach nothing.
    """
    unfitted = BridgeWeights(())
    retrievers = [BridgeRetriever(corpus, unfitted) for corpus, _ in groups]
    asked = [
        (retriever, query, number % folds)
        for retriever, (_, queries) in zip(retrievers, groups, strict=True)
        for number, query in enumerate(queries)
    ]
    fitted: list[FittedReranker] = []
    ranked: list[list[Hit]] = []
    for number in range(rounds):
        if number == 0:
            hits = [retriever.direct(query.text) for retriever, query, _ in asked]
        else:
            hits = [
                retriever.bridged(query.text, before)
                for (retriever, query, _), before in zip(asked, ranked, strict=True)
            ]
        examples = [Judged(found, query.relevant) for found, (_, query, _) in zip(hits, asked, strict=True)]
        by_fold = [
            FittedReranker.fit([each for each, (*_, its) in zip(examples, asked, strict=True) if its != fold])
            for fold in range(folds)
        ]
        ranked = [by_fold[fold].rerank(found) for found, (*_, fold) in zip(hits, asked, strict=True)]
        fitted.append(FittedReranker.fit(examples))
    rest = iter(ranked)
    return BridgeWeights(tuple(fitted)), [[next(rest) for _ in queries] for _, queries in groups]


def _focus(text: str, rarity: Mapping[str, float], *, num: int = 2) -> list[str]:
    """The sentences that have most of the question's words, by their rarity."""
    found = [each.text for each in sentences(text)]
    return sorted(found, key=lambda each: -sum(rarity.get(word, 0.0) for word in set(words(each))))[:num]


def _inverted(rows: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for name in row:
            found.setdefault(name, []).append(place)
    return found
