"""What a model says of its own answer when asked once more: P(True), yes or no, a stated confidence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp

from nearfar.types import Answer, Message, Query, SamplingOptions, TokenLogprob

#: What every provider gives at most; a label that is not among them is unknown.
_ALTERNATIVES = 20

_ONE_TOKEN = SamplingOptions(max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=_ALTERNATIVES)


def p_true_query(question: str, proposed: str) -> Query:
    """Asks whether the proposed answer is true or false, for one token.

    Source: Kadavath et al. 2022, "Language models (mostly) know what they know", arXiv:2207.05221, section 3.1; the
        last line holds a chat model to one letter.
    """
    prompt = (
        f"Question: {question}\nProposed Answer: {proposed}\nIs the proposed answer:\n (A) True\n (B) False\n"
        "The proposed answer is (reply with A or B only):"
    )
    return Query((Message("user", prompt),), sampling=_ONE_TOKEN)


def self_check_query(query: Query, answer: Answer) -> Query:
    """Asks, in the same conversation, whether the answer is correct, for one token."""
    return _follow_up(query, answer, "Is that answer correct? Reply with Yes or No only.", _ONE_TOKEN)


def stated_confidence_query(query: Query, answer: Answer) -> Query:
    """Asks, in the same conversation, how likely the answer is to be correct.

    Source: Tian et al. 2023, "Just ask for calibration", arXiv:2305.14975, "Verb. 2S top-1".
    """
    said = (
        "How likely is it that your answer is correct? Reply with a number from 0 to 100, in percent, and nothing else."
    )
    return _follow_up(query, answer, said, SamplingOptions(max_tokens=8, temperature=0.0))


def label_share(answer: Answer, first: str, second: str) -> float | None:
    """The first label's share of both labels' probability in the answer's first token.

    Spellings with blanks, brackets or another case are added up. A label that is not among the alternatives is at most
    as likely as the least of them and is taken for that; None where neither is there.
    """
    if not answer.logprobs:
        return None
    found = _label_masses(answer.logprobs[0], (first, second))
    one, other = found[first], found[second]
    if one == other == 0:
        return None
    least = min((exp(logprob) for _, logprob in answer.logprobs[0].top), default=0.0)
    one, other = one or min(least, other), other or min(least, one)
    return one / (one + other)


def read_stated(text: str) -> float | None:
    """The confidence in [0, 1] that a reply states, as a percentage or as a fraction; None: it states none."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*(%|percent|/\s*100)?", text)
    if found is None:
        return None
    value = float(found.group(1))
    is_fraction = found.group(2) is None and "." in found.group(1) and value <= 1
    value = value if is_fraction else value / 100
    return value if 0 <= value <= 1 else None


def _follow_up(query: Query, answer: Answer, said: str, sampling: SamplingOptions) -> Query:
    messages = (*query.messages, Message("assistant", answer.text), Message("user", said))
    return replace(Query(messages), model=query.model, sampling=sampling, session=query.session)


def _label_masses(token: TokenLogprob, labels: Sequence[str]) -> Mapping[str, float]:
    masses = dict.fromkeys(labels, 0.0)
    wanted = {label.lower(): label for label in labels}
    for text, logprob in token.top or ((token.token, token.logprob),):
        label = wanted.get(text.strip(" \n\t()[]\"'*.:▁Ġ").lower())
        if label is not None:
            masses[label] += exp(logprob)
    return masses
