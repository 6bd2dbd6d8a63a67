"""Signals that take no call: of the answer's span and text, of the query's form, of queries like it, of a router."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from math import log1p
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import ConfigError, DataError
from nearfar.types import Answer, ChatModel, Embedder, Query

from .answer_span import SPAN_SIGNALS, span_signals
from .answer_text import ANSWER_TEXT_SIGNALS, answer_text_signals
from .held_choices import CHOICE_SIGNALS, choice_signals
from .labels import read_rows, to_number
from .predictive import PredictiveRouter, RoutingQuery
from .sampled_signals import Meter

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

_NUMBER = re.compile(r"\d[\d,.]*")
_SYMBOL = re.compile(r"[^\w\s.,;:?!'\"()-]")

#: Names of what `query_signals` gives, in its order; each about in [0, 1], so that a bandit can read them as they are.
QUERY_SIGNALS = ("query_length", "query_lines", "query_numbers", "query_symbols", "query_turns")

#: Labelled queries that tell how the model fares on queries like this one: enough to average over, and still near.
_NUM_NEIGHBOURS = 10


def query_signals(query: Query) -> dict[str, float]:
    """Signals of the query's form.

    - `query_length`: log(1 + characters of the last user message) / 10.
    - `query_lines`, `query_numbers`, `query_turns`: log(1 + how many) / 5.
    - `query_symbols`: share of characters that prose does not have, as code and formulas do.
    """
    text = query.text
    return {
        "query_length": log1p(len(text)) / 10,
        "query_lines": log1p(text.count("\n")) / 5,
        "query_numbers": log1p(len(_NUMBER.findall(text))) / 5,
        "query_symbols": len(_SYMBOL.findall(text)) / (len(text) or 1),
        "query_turns": log1p(len(query.messages)) / 5,
    }


class SpanSignals:
    """The token signals of the answer's span alone; see `answer_span`."""

    name = "span"
    signals = SPAN_SIGNALS
    num_calls = 0

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """`span_…`, absent where no span is found."""
        return span_signals(answer.text, answer.logprobs, query.text)


class ChoiceProbability:
    """How sure the model is of what the query's JSON schema left it to choose; see `held_choices`."""

    name = "choices"
    signals = CHOICE_SIGNALS
    num_calls = 0

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """`choice_probability`, absent where there was nothing to choose."""
        return choice_signals(query, answer)


class AnswerText:
    """What the answer's own text tells; see `answer_text`."""

    name = "answer_text"
    signals = ANSWER_TEXT_SIGNALS
    num_calls = 0

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """Always there."""
        return answer_text_signals(query.text, answer.text)


class QueryForm:
    """The query's form; see `query_signals`."""

    name = "query"
    signals = QUERY_SIGNALS
    num_calls = 0

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """Always there."""
        return query_signals(query)


class PredictedGain:
    """What a fitted router expects the strong model to add, in units of quality."""

    name = "predicted_gain"
    signals = ("predicted_gain",)
    num_calls = 0

    def __init__(self, router: PredictiveRouter) -> None:
        self._router = router

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """Always there."""
        asked = [RoutingQuery(query.text)]
        is_slow = self._router.is_embedding_based
        found = await asyncio.to_thread(self._router.predict, asked) if is_slow else self._router.predict(asked)
        return {"predicted_gain": found[0]}


class SimilarQueries:
    """How near the query is to labelled ones, and how the model fared on the nearest.

    Args:
        texts: the labelled queries, at least one.
        correct: their outcomes in [0, 1], in the same order; None: not known.
        embedder: gives vectors of length 1.

    Raises:
        DataError: there is no query, or another number of outcomes.
    """

    name = "similar_queries"
    num_calls = 0

    def __init__(self, texts: Sequence[str], embedder: Embedder, correct: Sequence[float] | None = None) -> None:
        if not texts or (correct is not None and len(correct) != len(texts)):
            raise DataError(f"{len(texts)} labelled queries and {len(correct or ())} outcomes: give as many of each.")
        self._embedder = embedder
        self._vectors: NDArray[float32] = embedder.embed(list(texts))
        self._correct = None if correct is None else list(correct)

    @classmethod
    def load(cls, path: Path, embedder: Embedder) -> SimilarQueries:
        """From a file with a column `query` and, if known, `correct`: JSONL, CSV or parquet.

        Raises:
            ConfigError: no such file.
            DataError: it has no queries, or outcomes that are none.
        """
        texts: list[str] = []
        correct: list[float] = []
        for number, row in enumerate(read_rows(path), start=1):
            text, outcome = row.get("query"), row.get("correct")
            if not isinstance(text, str):
                raise DataError(f"{str(path)!r}, row {number} has no 'query'. Name the column so.", path=str(path))
            texts.append(text)
            if outcome is not None and outcome != "":
                correct.append(_outcome(outcome, f"{str(path)!r}, row {number}", str(path)))
        if not texts:
            raise ConfigError(f"{str(path)!r} has no labelled queries. Name another file.")
        if correct and len(correct) != len(texts):
            raise DataError(f"{str(path)!r} has outcomes on {len(correct)} of {len(texts)} rows. Complete them.")
        return cls(texts, embedder, correct or None)

    @property
    def signals(self) -> tuple[str, ...]:
        """`query_similarity`, and with outcomes `neighbour_accuracy`."""
        return ("query_similarity",) if self._correct is None else ("query_similarity", "neighbour_accuracy")

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """The cosine to the nearest labelled query, and the mean outcome of the nearest ten, weighted by cosine."""
        vectors = await asyncio.to_thread(self._embedder.embed, [query.text])
        cosines = self._vectors @ vectors[0]
        found = {"query_similarity": float(cosines.max())}
        if self._correct is not None:
            nearest: list[Any] = cosines.argsort()[::-1][:_NUM_NEIGHBOURS].tolist()
            weights = [max(float(cosines[i]), 1e-3) for i in nearest]
            found["neighbour_accuracy"] = sum(
                weight * self._correct[i] for weight, i in zip(weights, nearest, strict=True)
            ) / sum(weights)
        return found


def _outcome(value: Any, where: str, path: str) -> float:
    try:
        found = to_number(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise DataError(f"{where}: 'correct' is {value!r}, not a number.", path=path) from exc
    if not 0 <= found <= 1:
        raise DataError(f"{where}: 'correct' is {value!r}; outcomes are in [0, 1].", path=path)
    return found
