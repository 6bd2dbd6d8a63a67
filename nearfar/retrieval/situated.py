"""Whom to trust, the passages or the model's own knowledge: two answers, and the choice between them.

Passages may be wrong. A small model cannot weigh them in words, so a rule compares its confidence in both answers; a
large one reasons about both and decides.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Literal, TypeAlias, assert_never

from nearfar.errors import ConfigError
from nearfar.types import Answer, ChatModel, Hit, Message, Query

from .grounding import grounded_messages
from .words import words

Choice: TypeAlias = Literal["rule", "self"]
Side: TypeAlias = Literal["agreed", "own", "passages"]

_LAST_LINE = re.compile(r"^\W*(?:final )?answer\W*:[\s*_]*(.+?)[\s*_]*$", re.IGNORECASE | re.MULTILINE)

_SELF_GUIDED = (
    "You are given a question, the answer that you gave from memory, and the answer that passages support. The "
    "passages may be wrong, and so may your memory. First say what you know of it and how sure you are, then judge "
    "whether the passages can be trusted, then decide. Write the decision on a last line of its own: "
    "'Answer: ' and the answer."
)


@dataclass(frozen=True, slots=True)
class SituatedAnswer:
    """The answer chosen, and what it was chosen from."""

    text: str
    side: Side  # whose answer it is; "agreed": both say the same
    own: Answer  # from the model's knowledge alone
    grounded: Answer  # with the passages
    confidence_own: float | None = None  # in [0, 1]; None: not compared by rule
    confidence_grounded: float | None = None
    judgement: Answer | None = None  # of the self-guided choice

    @property
    def cost_usd(self) -> float | None:
        """Of the two answers and the judgement; None: a call's is unknown."""
        answers = [self.own, self.grounded, *([self.judgement] if self.judgement else [])]
        costs = [answer.cost_usd for answer in answers]
        return None if None in costs else sum(cost for cost in costs if cost is not None)


@dataclass(frozen=True, slots=True)
class Situated:
    """Answers with and without passages, and chooses.

    By rule, the passages win unless the model is surer of its own answer by more than `margin`; confidence is the
    geometric mean of the answer's token probabilities where the model gives them, else the share of `samples` further
    answers that say the same. Self-guided, the model is shown both answers and decides.

    Args:
        model: answers.
        choice: by "rule" or by it"self"; None: near models by rule and far ones by themselves, as the paper finds that
            small models choose better by rule and large ones by reasoning.
        margin: see above; fitted where labelled answers are at hand, see `fit_margin`.
        samples: for models without log-probabilities.

    Raises:
        ConfigError: a number is out of range.

    Source: Huang et al. 2024, "To trust or not to trust? Enhancing large language models' situated faithfulness to
        external contexts", arXiv:2410.14675: rule-based and self-guided confidence reasoning.
    """

    model: ChatModel
    choice: Choice | None = None
    margin: float = 0.0
    samples: int = 5

    def __post_init__(self) -> None:
        if not -1 <= self.margin <= 1 or self.samples < 1:
            raise ConfigError(
                f"margin must be in [-1, 1] and samples at least 1, not {self.margin!r} and {self.samples!r}."
            )

    async def answer(self, query: Query, hits: Sequence[Hit]) -> SituatedAnswer:
        """The answer to the query, its own or the one from the passages.

        Raises:
            UpstreamError: the model failed.
        """
        if self.model.card.supports_logprobs:
            query = replace(query, sampling=replace(query.sampling, logprobs=True))
        shown = replace(query, prompt=grounded_messages(query, hits))
        own, grounded = await asyncio.gather(self.model.complete(query), self.model.complete(shown))
        if says_the_same(own.text, grounded.text):
            return SituatedAnswer(grounded.text, "agreed", own, grounded)
        choice = self.choice or ("rule" if self.model.card.placement == "near" else "self")
        match choice:
            case "rule":
                return await self._by_rule(query, shown, own, grounded)
            case "self":
                return await self._by_itself(query, own, grounded)
            case _:
                assert_never(choice)

    async def _by_rule(self, query: Query, shown: Query, own: Answer, grounded: Answer) -> SituatedAnswer:
        sure_own, sure_grounded = await asyncio.gather(self._confidence(query, own), self._confidence(shown, grounded))
        side = choose(sure_own, sure_grounded, self.margin)
        text = own.text if side == "own" else grounded.text
        return SituatedAnswer(text, side, own, grounded, sure_own, sure_grounded)

    async def _confidence(self, query: Query, answer: Answer) -> float:
        if answer.logprobs:
            return exp(sum(token.logprob for token in answer.logprobs) / len(answer.logprobs))
        sampling = replace(query.sampling, temperature=query.sampling.temperature or 0.7, seed=None)
        asked = replace(query, sampling=sampling)
        others = await asyncio.gather(*(self.model.complete(asked) for _ in range(self.samples)))
        return sum(says_the_same(answer.text, other.text) for other in others) / self.samples

    async def _by_itself(self, query: Query, own: Answer, grounded: Answer) -> SituatedAnswer:
        told = (
            f"{_SELF_GUIDED}\n\nQuestion: {query.text}\n\nAnswer from memory: {own.text.strip()}\n\n"
            f"Answer from the passages: {grounded.text.strip()}"
        )
        judgement = await self.model.complete(replace(query, prompt=(Message("user", told),)))
        decided = _LAST_LINE.findall(judgement.text)
        text = decided[-1].strip() if decided else grounded.text
        side: Side = "own" if _likeness(text, own.text) > _likeness(text, grounded.text) else "passages"
        return SituatedAnswer(text, side, own, grounded, judgement=judgement)


def choose(confidence_own: float, confidence_grounded: float, margin: float) -> Literal["own", "passages"]:
    """Whose answer the rule takes: the passages' unless the model is surer of its own by more than the margin."""
    return "own" if confidence_own > confidence_grounded + margin else "passages"


def fit_margin(
    confidences_own: Sequence[float],
    confidences_grounded: Sequence[float],
    own_right: Sequence[bool],
    grounded_right: Sequence[bool],
) -> float:
    """The margin with the most right choices on labelled answers, in [-1, 1]; ties go to the passages.

    Give as many questions with true passages as with false ones: the measure is then the paper's situated
    faithfulness, the mean of the accuracies on both.

    Raises:
        ValueError: there are none, or not as many of each.
    """
    leads = [own - grounded for own, grounded in zip(confidences_own, confidences_grounded, strict=True)]
    rows = list(zip(leads, own_right, grounded_right, strict=True))
    if not rows:
        raise ValueError("no labelled answers")
    best, found = -1, 1.0
    for margin in sorted({-1.0, 1.0, *leads}, reverse=True):
        num_right = sum(own if lead > margin else grounded for lead, own, grounded in rows)
        if num_right > best:
            best, found = num_right, margin
    return found


def says_the_same(a: str, b: str) -> bool:
    """Whether two answers say the same: equal stems, or one short answer inside the other."""
    left, right = words(a), words(b)
    if left == right:
        return True
    short, long = sorted((left, right), key=len)
    return 0 < len(short) <= _SHORT_ANSWER and _is_inside(short, long)


#: Stems of an answer that may be looked for inside a longer one.
_SHORT_ANSWER = 6


def _is_inside(short: Sequence[str], long: Sequence[str]) -> bool:
    return any(list(long[i : i + len(short)]) == list(short) for i in range(len(long) - len(short) + 1))


def _likeness(a: str, b: str) -> float:
    left, right = set(words(a)), set(words(b))
    return len(left & right) / len(left | right) if left | right else 1.0
