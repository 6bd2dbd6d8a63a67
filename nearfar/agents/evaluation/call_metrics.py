"""α-UMi's metrics of plans, calls and answers, and question answering's exact match and F1.

Source of the first five: Shen et al. 2024, arXiv:2401.07324, section 4.1: plan accuracy, action exact match,
hallucination rate, argument F1 and ROUGE-L. Steps are compared in order: the i-th call with the i-th gold call.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .call_text import Call


class AnyValue:
    """A gold value that is known only once an earlier call has answered: every value is right."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # equal to everything, so that no hash would do


@dataclass(frozen=True, slots=True)
class CallFigures:
    """One item's figures, each in [0, 1].

    Attributes:
        plan_accuracy: the share of decisions that are gold's: to call at each of its steps, and to stop after them.
        action_em: the share of gold's calls whose tool is named at their step.
        hallucination: the share of calls to tools that do not exist; None: nothing was called, or no tools are known.
        argument_f1: the mean over gold's calls; 0 where the tool is another.
        all_right: 1 where tools and arguments are gold's, all of them and no more.
        rouge_l: of the final answer; None where gold or the agent has none.
    """

    plan_accuracy: float
    action_em: float
    hallucination: float | None
    argument_f1: float
    all_right: float
    rouge_l: float | None


def call_figures(
    calls: Sequence[Call],
    gold: Sequence[Call],
    *,
    known: Collection[str] = (),
    answer: str | None = None,
    gold_answer: str | None = None,
) -> CallFigures:
    """The figures of one item's calls and answer against gold."""
    decisions = [place < len(calls) for place in range(len(gold))]
    stops = len(calls) <= len(gold)
    f1s = [argument_f1(calls[place], wanted) if place < len(calls) else 0.0 for place, wanted in enumerate(gold)]
    named = [place < len(calls) and calls[place].name == wanted.name for place, wanted in enumerate(gold)]
    unknown = [call.name not in known for call in calls]
    return CallFigures(
        plan_accuracy=(sum(decisions) + stops) / (len(gold) + 1),
        action_em=sum(named) / len(gold) if gold else float(not calls),
        hallucination=sum(unknown) / len(calls) if calls and known else None,
        argument_f1=sum(f1s) / len(gold) if gold else float(not calls),
        all_right=float(len(calls) == len(gold) and all(f1 == 1.0 for f1 in f1s)),
        rouge_l=rouge_l(answer, gold_answer) if answer is not None and gold_answer else None,
    )


def argument_f1(call: Call, gold: Call) -> float:
    """F1 over the arguments: a right key with its right value counts 1, a right key alone one half.

    0 where the tool is another one; 1 where neither has arguments.
    """
    if call.name != gold.name:
        return 0.0
    if not call.arguments and not gold.arguments:
        return 1.0
    right = sum(
        1.0 if same_value(call.arguments[key], value) else 0.5
        for key, value in gold.arguments.items()
        if key in call.arguments
    )
    if not right:
        return 0.0
    precision, recall = right / len(call.arguments), right / len(gold.arguments)
    return 2 * precision * recall / (precision + recall)


def same_value(value: Any, gold: Any) -> bool:
    """Whether two argument values say the same: text without case and outer blanks, numbers also as text."""
    if isinstance(gold, AnyValue):
        return True
    if isinstance(value, Mapping) and isinstance(gold, Mapping):
        return value.keys() == gold.keys() and all(same_value(value[key], gold[key]) for key in gold)
    if isinstance(value, list | tuple) and isinstance(gold, list | tuple):
        return len(value) == len(gold) and all(same_value(a, b) for a, b in zip(value, gold, strict=True))
    return _plain(value) == _plain(gold)


def _plain(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).lower().split())


def rouge_l(answer: str, gold: str) -> float:
    """F1 of the longest common subsequence of words, in [0, 1] (Lin 2004, ROUGE-L with β = 1)."""
    said, wanted = _words(answer), _words(gold)
    if not said or not wanted:
        return float(said == wanted)
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        diagonal = 0
        for place, other in enumerate(wanted, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    common = lengths[-1]
    return 2 * common / (len(said) + len(wanted))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_answer(text: str) -> str:
    """An answer without case, punctuation, articles and doubled blanks (Rajpurkar et al. 2016, SQuAD's script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 where the answer is one of the gold ones, as `plain_answer` sees them."""
    return float(plain_answer(answer) in {plain_answer(gold) for gold in golds})


def answer_f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 over words against any gold answer; yes, no and noanswer only match themselves (HotpotQA)."""
    return max((_word_f1(plain_answer(answer), plain_answer(gold)) for gold in golds), default=0.0)


def _word_f1(answer: str, gold: str) -> float:
    closed = {"yes", "no", "noanswer"}
    if answer != gold and (answer in closed or gold in closed):
        return 0.0
    said, wanted = answer.split(), gold.split()
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return float(said == wanted)
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
