"""Answers that rest on passages: retrieved, cited, checked, and withheld where the evidence is thin.

The models come as `ChatModel`s and the passages from a `Retriever`; nothing here knows which.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from nearfar.errors import ConfigError, RequestError
from nearfar.types import (
    Answer,
    ChatModel,
    Filter,
    Hit,
    Message,
    Query,
    Retriever,
    SamplingOptions,
    Signals,
    estimate_tokens,
)

from .citations import MIN_SUPPORT, Citation, check, sentences, shown_text
from .fusion import reciprocal_rank
from .matching import content_words
from .words import words

if TYPE_CHECKING:
    from .compression import Compressor

Reason: TypeAlias = Literal[
    "grounded",  # enough of its sentences rest on passages
    "no_evidence",  # nothing was found, or nothing that speaks of what was asked
    "model_abstained",  # the model says that the passages do not hold the answer
    "unsupported",  # too few of its sentences rest on a passage
]

#: Share of the question's stems that the passages must have, or no model is asked. See benchmarks/grounding.py.
MIN_COVERAGE = 0.5

#: Passages that are shown, at most, and about how many tokens they may have together: what a window of 2,048 tokens
#: has room for, with the question and the answer.
PASSAGES = 6
PASSAGE_TOKENS = 1_200

_INSTRUCTIONS = (
    "Answer from the numbered passages alone, in a few sentences. After each sentence write the number of the passage "
    "that says it, such as [1]. If the passages do not hold the answer, say only: I don't know."
)
_REVISION = (
    "A smaller model drafted an answer without the passages; it may be wrong. Keep what the passages bear out, correct "
    "what they contradict, and add nothing that they do not say."
)
_ABSTAINED = re.compile(
    r"\b(i (do not|don't|don’t) know|(passages?|context|text) (do|does) not|(passages?|context|text) (don't|doesn't)|"
    r"not (mentioned|stated|specified|provided|given) in the (passages?|context|text)|cannot be (answered|determined))",
    re.IGNORECASE,
)

#: What is said in place of an answer.
ABSTENTION = "I don't know."


@dataclass(frozen=True, slots=True)
class Grounded:
    """An answer with what it rests on."""

    text: str  # with citations like [1]; "I don't know." where it abstains
    reason: Reason
    citations: tuple[Citation, ...]
    unsupported: tuple[str, ...]  # sentences that rest on no passage
    hits: tuple[Hit, ...]  # what was shown, in the order of the numbers
    signals: Signals  # of the retrieval and of the check, for a scorer
    answers: tuple[Answer, ...] = ()  # the models' own, in order

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer."""
        return self.reason == "grounded"

    @property
    def cost_usd(self) -> float | None:
        """Of all calls; None: a call's is unknown."""
        total = 0.0
        for answer in self.answers:
            if answer.cost_usd is None:
                return None
            total += answer.cost_usd
        return total


@dataclass(frozen=True, slots=True)
class Grounding:
    """Answers questions from passages.

    Args:
        retriever: finds the passages.
        model: answers.
        k: passages shown at most.
        passage_tokens: tokens that they may have together, estimated; the last one that does not fit is cut at a
            sentence, unless there is a compressor.
        compressor: keeps of the passages what the question needs; citations are checked against the whole passages.
        min_coverage: see `retrieval_signals`; below it no model is asked.
        min_support: share of a sentence's stems that its passage must have; see `citations.support`.
        min_supported: share of the sentences that must rest on a passage, or the answer is withheld.

    Raises:
        ConfigError: a limit makes no sense.
    """

    retriever: Retriever
    model: ChatModel
    k: int = PASSAGES
    passage_tokens: int = PASSAGE_TOKENS
    compressor: Compressor | None = None
    min_coverage: float = MIN_COVERAGE
    min_support: float = MIN_SUPPORT
    min_supported: float = 0.5

    def __post_init__(self) -> None:
        for name in ("k", "passage_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)!r}.")
        for name in ("min_coverage", "min_support", "min_supported"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {getattr(self, name)!r}.")

    async def answer(self, question: str | Query, *, filter: Filter | None = None) -> Grounded:  # noqa: A002
        """The answer to the question, or why there is none.

        Args:
            question: the last user message is what is searched for; the query's other options go to the model.
            filter: what the passages' metadata must say.

        Raises:
            RequestError: the question is empty.
            UpstreamError: the model failed.
        """
        query = _query(question)
        found = await asyncio.to_thread(self.retriever.search, query.text, k=self.k, filter=filter)
        hits, shown = await asyncio.to_thread(shown_passages, query.text, found, self.passage_tokens, self.compressor)
        signals = retrieval_signals(query.text, hits)
        if signals["retrieval_coverage"] < self.min_coverage:
            return Grounded(ABSTENTION, "no_evidence", (), (), hits, signals)
        answer = await self.model.complete(_asked(query, grounded_messages(query, shown)))
        return self._checked(query.text, answer, hits, signals, (answer,))

    async def revise(
        self,
        question: str | Query,
        drafter: ChatModel,
        *,
        filter: Filter | None = None,  # noqa: A002
    ) -> Grounded:
        """The answer to the question, whose draft, and not the question, finds the passages.

        A model that knows the field drafts an answer in the field's own words; each of its sentences retrieves, and
        `model` revises the draft by what was found.

        Args:
            question: as for `answer`.
            drafter: a near model; it sees the question alone.
            filter: as for `answer`.

        Raises:
            RequestError: the question is empty.
            UpstreamError: a model failed.

        Source: Adapt-Retrieve-Revise, arXiv:2310.03328, section 3.
        """
        query = _query(question)
        draft = await drafter.complete(query)
        asked = [query.text, *sentences(draft.text)[:_DRAFT_SENTENCES]]
        found = await asyncio.to_thread(self._fused, asked, filter)
        hits, shown = await asyncio.to_thread(shown_passages, query.text, found, self.passage_tokens, self.compressor)
        signals = retrieval_signals(query.text, hits)
        if signals["retrieval_coverage"] < self.min_coverage:
            return Grounded(ABSTENTION, "no_evidence", (), (), hits, signals, (draft,))
        revised = await self.model.complete(_asked(query, grounded_messages(query, shown, draft=draft.text)))
        return self._checked(query.text, revised, hits, signals, (draft, revised))

    def _fused(self, asked: Sequence[str], wanted: Filter | None) -> list[Hit]:
        return reciprocal_rank([self.retriever.search(text, k=self.k, filter=wanted) for text in asked])[: self.k]

    def _checked(
        self,
        question: str,
        answer: Answer,
        hits: tuple[Hit, ...],
        signals: dict[str, float],
        all_answers: tuple[Answer, ...],
    ) -> Grounded:
        if not answer.text.strip() or _ABSTAINED.search(answer.text[:200]):
            return Grounded(ABSTENTION, "model_abstained", (), (), hits, signals, all_answers)
        checked = check(answer.text, [hit.chunk for hit in hits], question=question, min_support=self.min_support)
        signals = {
            **signals,
            "grounding_support": checked.support,
            "grounding_dropped": float(checked.num_dropped),
        }
        if checked.support < self.min_supported or not checked.citations:
            return Grounded(ABSTENTION, "unsupported", (), checked.unsupported, hits, signals, all_answers)
        return Grounded(checked.text, "grounded", checked.citations, checked.unsupported, hits, signals, all_answers)


#: Sentences of a draft that retrieve: more of them say less.
_DRAFT_SENTENCES = 5


def retrieval_signals(question: str, hits: Sequence[Hit]) -> dict[str, float]:
    """What the hits say about their own worth, for a scorer; a signal that cannot be known is absent.

    - `retrieval_coverage`: share of the question's stems, without the words of asking, that stand in any of the
      hits, in [0, 1]; 0 without hits.
    - `retrieval_best_coverage`: the same of the one hit that has most.
    - `retrieval_top_cosine`, `retrieval_top_bm25`: of the best hit, where its retriever gives them.
    - `retrieval_margin`: by how much of its score the first hit leads the second, in [0, 1].
    - `retrieval_agreement`: share of the first five hits by cosine that are among the first five by BM25, where the
      hits have both.
    """
    wanted = set(content_words(question)) or set(words(question))
    texts = [set(words(hit.chunk.text)) | set(words(str(hit.chunk.metadata.get("title", "")))) for hit in hits]
    everything: set[str] = set().union(*texts)
    signals = {
        "retrieval_coverage": len(wanted & everything) / len(wanted) if wanted else 0.0,
        "retrieval_best_coverage": max((len(wanted & text) for text in texts), default=0) / len(wanted)
        if wanted
        else 0.0,
    }
    if not hits:
        return signals
    for name in ("cosine", "bm25"):
        values = [hit.signals[name] for hit in hits if name in hit.signals]
        if values:
            signals[f"retrieval_top_{name}"] = max(values)
    if len(hits) > 1 and hits[0].score > 0:
        signals["retrieval_margin"] = max(0.0, min(1.0, 1 - hits[1].score / hits[0].score))
    both = [hit for hit in hits if "cosine" in hit.signals and "bm25" in hit.signals]
    if len(both) > 1:
        size = min(5, len(both))
        by_cosine, by_bm25 = _first(both, "cosine", size), _first(both, "bm25", size)
        signals["retrieval_agreement"] = len(by_cosine & by_bm25) / size
    return signals


def _first(hits: Sequence[Hit], signal: str, size: int) -> set[str]:
    return {hit.chunk.id for hit in sorted(hits, key=lambda hit: -hit.signals[signal])[:size]}


def shown_passages(
    question: str, found: Sequence[Hit], tokens: int, compressor: Compressor | None = None
) -> tuple[tuple[Hit, ...], tuple[Hit, ...]]:
    """The hits that an answer rests on, and the same hits with what is shown of them in so many tokens.

    Without a compressor both are the first that fit. With one the answer rests on the whole hits of which something is
    left.
    """
    if compressor is None:
        first = fit_passages(found, tokens)
        return first, first
    kept: dict[str, list[str]] = {}
    for piece in compressor.compress(question, [hit.chunk for hit in found], tokens=tokens).pieces:
        kept.setdefault(piece.chunk.id, []).append(piece.text)
    hits = tuple(hit for hit in found if hit.chunk.id in kept)
    return hits, tuple(replace(hit, chunk=replace(hit.chunk, text=" ".join(kept[hit.chunk.id]))) for hit in hits)


def fit_passages(hits: Sequence[Hit], tokens: int) -> tuple[Hit, ...]:
    """The first hits that fit into so many tokens, the last of them cut at a sentence; at least a part of the first."""
    kept: list[Hit] = []
    left = tokens
    for hit in hits:
        size = estimate_tokens(hit.chunk.text)
        if size <= left:
            kept.append(hit)
            left -= size
            continue
        parts: list[str] = []
        for sentence in sentences(hit.chunk.text):
            size = estimate_tokens(sentence) + 1
            if size > left:
                break
            parts.append(sentence)
            left -= size
        text = " ".join(parts) or ("" if kept else hit.chunk.text.encode()[: 4 * tokens].decode(errors="ignore"))
        if text:
            kept.append(replace(hit, chunk=replace(hit.chunk, text=text)))
        break
    return tuple(kept)


def grounded_messages(query: Query, hits: Sequence[Hit], *, draft: str | None = None) -> tuple[Message, ...]:
    """The query's messages, the last user message with numbered passages before it."""
    shown = "\n\n".join(f"[{number}] {shown_text(hit.chunk)}" for number, hit in enumerate(hits, 1))
    parts = [_INSTRUCTIONS, shown]
    if draft is not None and draft.strip():
        parts.append(f"{_REVISION}\n\n<draft>\n{draft.strip()}\n</draft>")
    parts.append(f"Question: {query.text}")
    last = max(i for i, message in enumerate(query.messages) if message.role == "user")
    return (*query.messages[:last], Message("user", "\n\n".join(parts)), *query.messages[last + 1 :])


def _query(question: str | Query) -> Query:
    query = Query(question, sampling=SamplingOptions(temperature=0.0)) if isinstance(question, str) else question
    if not any(message.role == "user" and message.text.strip() for message in query.messages):
        raise RequestError("The question is empty; give some text.", param="messages")
    return query


def _asked(query: Query, messages: tuple[Message, ...]) -> Query:
    return replace(query, prompt=messages)
