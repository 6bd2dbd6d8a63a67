"""How sure a model is of what a schema left it to choose: its probabilities, renormalised over the choices.

A model that is held to a schema writes tokens that it would not have written: its own log-probability of such a token
says how much it wanted another form, and little about which of the allowed texts it wanted. What counts is how the
probability is shared out among the texts that were allowed, at every token where they part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import exp, prod
from typing import Any

from nearfar.types import Answer, Query, TokenLogprob

#: Alternatives per token that it takes to see most choices; every provider's limit is this or less.
CHOICE_LOGPROBS = 20

CHOICE_SIGNALS = ("choice_probability",)


def choice_signals(query: Query, answer: Answer) -> dict[str, float]:
    """`choice_probability`: of all that the query's JSON schema left to choose at the top, the product; ≤ 1.

    Fields with an `enum` of texts, and the first items of lists of them. Absent where the query has no such schema, or
    the answer another form or no alternatives.
    """
    form = query.response_format
    if form is None or form.schema is None or not answer.logprobs:
        return {}
    found = held_probability(answer.text, answer.logprobs, form.schema)
    return {} if found is None else {"choice_probability": found}


def held_probability(text: str, tokens: Sequence[TokenLogprob], schema: Mapping[str, Any]) -> float | None:
    """The product of the probabilities of what was chosen; None where nothing was, or the tokens do not tell."""
    found = [choice_probability(text, tokens, start, choices) for _, start, choices in choices_in(text, schema)]
    shares = [share for share in found if share is not None]
    return prod(shares) if shares else None


def choice_probability(
    text: str, tokens: Sequence[TokenLogprob], start: int, choices: Sequence[str], choice: str | None = None
) -> float | None:
    """The probability of a choice, among all `choices`, where one of them stands in `text` at `start`.

    At every token of it, what the alternatives that can still become this choice have, over what all alternatives have
    that can still become one of the choices; the product over the tokens. It is the probability under a grammar of the
    choices, up to choices that none of the alternatives begins, which count as impossible. Of a choice that was not
    written it is told up to the token at which the two part, so that it is no less than the grammar's.

    Args:
        text: what the model wrote.
        tokens: of the whole text, with alternatives.
        start: where the choice begins.
        choices: all texts that could stand there.
        choice: one of them; None: the one that was written.

    Returns:
        In [0, 1]; None where no choice stands there, or the tokens have no alternatives or do not spell the text.

    Source: the local renormalisation of Scholak et al. 2021, "PICARD", arXiv:2109.05093, which constrained decoding
    does, read off the answer.
    """
    spelled = "".join(token.token for token in tokens)
    offset = spelled.find(text)
    said = max((each for each in choices if text.startswith(each, start)), key=len, default=None)
    if offset < 0 or said is None:
        return None
    wanted = said if choice is None else choice
    begin, end = offset + start, offset + start + len(said)
    product, position, is_told = 1.0, 0, False
    for token in tokens:
        after = position + len(token.token)
        before = spelled[begin:position] if position > begin else ""
        if position >= end or not wanted.startswith(before):
            break
        if after > begin:
            lead = spelled[position:begin]  # what the first token has before the choice
            rest = {each: lead + each[len(before) :] for each in choices if each.startswith(before)}
            mine, others = _masses(token, rest, wanted)
            product *= mine / (mine + others)
            is_told = is_told or len(token.top) > 1
        position = after
    return product if is_told else None


def choices_in(text: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, int, list[str]]]:
    """The fields at the top of the schema that left a choice among texts: name, where it stands, what could be there.

    Of a list of such choices, the first item. What could be there is told as JSON writes it.
    """
    for name, each in schema.get("properties", {}).items():
        is_list = each.get("type") == "array"
        choices = (each.get("items", {}) if is_list else each).get("enum")
        if not choices or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
            continue  # a text ends with a quotation mark, where a number may go on
        place = re.search(re.escape(json.dumps(name)) + (r"\s*:\s*\[\s*" if is_list else r"\s*:\s*"), text)
        if place:
            yield name, place.end(), [json.dumps(choice, ensure_ascii=False) for choice in choices]


def _masses(token: TokenLogprob, rest: Mapping[str, str], wanted: str) -> tuple[float, float]:
    """What the alternatives have that can become the choice, and those that can become others alone."""
    mine = others = 0.0
    for alternative, logprob in {**dict(token.top), token.token: token.logprob}.items():
        if not alternative:
            continue
        if _agree(alternative, rest[wanted]):
            mine += exp(logprob)
        elif any(_agree(alternative, left) for left in rest.values()):
            others += exp(logprob)
    return mine, others


def _agree(token: str, left: str) -> bool:
    """Whether the token can begin what is left of a choice, or goes on beyond it."""
    return left.startswith(token) or (bool(left) and token.startswith(left))
