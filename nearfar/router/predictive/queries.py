"""What predictive routers see of a query: its text, as n-grams and as numbers, and a near answer's signals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, pairwise
from math import exp, log, log1p

from nearfar.types import Signals

_WORD = re.compile(r"\w\w+")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_OPTION = re.compile(r"\n\s*\(?[A-J][.):]\s*(.*)")
_FIRST_OPTION = re.compile(r"\n\s*(?:Options:\s*)?\(?A[.):]\s")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_FORMULA = re.compile(r"[=^\\*/<>∑∫√]")
_RELATION = re.compile(
    r"\b(?:half|twice|double|triple|third|quarter|percent|each|every|per|times|fewer|total|altogether|remaining|left"
    r"|average|ratio|if)\b|\b(?:more|less) than\b|%"
)
_NUMBER_WORD = re.compile(
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|dozen|first|second|third)\b", re.IGNORECASE
)
_NEGATION = re.compile(r"\b(?:not|except|least|false|incorrect)\b", re.IGNORECASE)
_SHOUTED_NEGATION = re.compile(r"\b(?:NOT|EXCEPT|LEAST|FALSE)\b")
_STATEMENTS = re.compile(r"\bstatement 1\b|\bi only\b|\bii\b", re.IGNORECASE)
_CATCH_ALL = re.compile(r"\b(?:all|none) of (?:the above|these)\b|\bboth\b", re.IGNORECASE)
_DECIMAL_MONEY = re.compile(r"\$\s?\d[\d,]*\.\d")
_YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
_CAPITALISED = re.compile(r"\b[A-Z][a-z]")
_VERDICT = re.compile(
    r"(?:\W*\b(?:true|false|wrong|not|yes|no|both|neither|either|only|i|ii|iii|iv|and|valid|invalid)\b)+\W*",
    re.IGNORECASE,
)
_TIME = re.compile(r"\b(?:hour|minute|day|week|month|year)s?\b", re.IGNORECASE)
_MONEY = re.compile(r"\b(?:dollars?|cents?|costs?|spend|spent|pay|paid|earn|price|money|profit)\b|\$", re.IGNORECASE)

#: What is read of the options: more and longer ones cost time and tell no more.
_MOST_OPTIONS, _MOST_CHARACTERS = 6, 300

#: Names of `RoutingQuery.surface`, in its order.
SURFACE = (
    "log_characters",
    "log_question_characters",
    "num_words",
    "mean_word_length",
    "distinct_word_share",
    "num_sentences",
    "num_commas",
    "num_lines",
    "uppercase_share",
    "digit_share",
    "symbol_share",
    "num_numbers",
    "num_distinct_numbers",
    "log_largest_number",
    "num_decimals",
    "num_number_words",
    "num_relations",
    "num_dollars",
    "num_decimal_dollars",
    "num_percents",
    "has_formula",
    "has_blank",
    "has_negation",
    "has_shouted_negation",
    "has_statements",
    "has_catch_all",
    "num_options",
    "mean_option_length",
    "option_length_range",
    "numeric_option_share",
    "asks_following",
    "asks_how_many",
    "asks_how_much",
    "asks_money",
    "asks_time",
    "ask_characters",
    "ask_numbers",
    "ask_number_words",
    "ask_last_number_nearness",
    "ask_ends_with_number",
    "ask_starts_with_if",
    "ask_commas",
    "ask_percent",
    "num_distinct_question_words",
    "ends_with_question_mark",
    "ends_with_colon",
    "num_years",
    "num_quotes",
    "capitalised_share",
    "option_overlap",
    "option_overlap_max",
    "option_overlap_range",
    "option_likeness",
    "option_likeness_max",
    "option_spelling_likeness",
    "option_spelling_likeness_max",
    "option_common_words",
    "log_option_length",
    "option_length_variation",
    "bare_number_option_share",
    "verdict_option_share",
    "capitalised_option_share",
    "option_capitalised_words",
    "option_number_spread",
    "option_same_start_share",
    "option_word_length",
)


@dataclass(frozen=True)
class RoutingQuery:
    """A query as a router sees it; features are computed once, on first use, and kept with it.

    Attributes:
        text: what the user asks.
        signals: read off the near answer, for the routers that judge one; empty before any call.
    """

    text: str
    signals: Signals = field(default_factory=dict)

    @cached_property
    def grams(self) -> tuple[str, ...]:
        """Distinct words and pairs of neighbouring words, lower case, numbers by their kind."""
        words = _WORD.findall(normalised(self.text))
        return tuple(dict.fromkeys([*words, *map(" ".join, pairwise(words))]))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The distinct words among `grams`."""
        return tuple(gram for gram in self.grams if " " not in gram)

    @cached_property
    def surface(self) -> tuple[float, ...]:
        """Numbers that the text's form gives, named by `SURFACE`."""
        return surface_features(self.text)


@dataclass(frozen=True)
class RoutingExample(RoutingQuery):
    """A query with what both models made of it.

    Attributes:
        weak: quality of the weak model's answer, such as 0 or 1.
        strong: quality of the strong model's.
    """

    weak: float = 0.0
    strong: float = 0.0

    @property
    def gain(self) -> float:
        """What the strong model adds."""
        return self.strong - self.weak


def normalised(text: str) -> str:
    """Lower case, with numbers told apart only by their kind: how a number looks says more than which one it is."""
    text = _NUMBER.sub(lambda found: " decnum " if "." in found.group() else " intnum ", text.lower())
    return text.replace("$", " dollar ").replace("%", " percent ")


def question_key(text: str) -> str:
    """What makes two texts the same question: the words before the answer options, without case and punctuation.

    Folds are grouped by it, so that no question is in training and in test at once.
    """
    return " ".join(re.findall(r"\w+", _question(text).lower())) or text


def surface_features(text: str) -> tuple[float, ...]:
    """Numbers that the form of a text gives; see `SURFACE`.

    The last ones describe the sentence that asks: where it ends with a number, models repeat that number in their
    answer, which upsets answers that are graded by their last number.
    """
    question = _question(text)
    options = [found.strip() for found in _OPTION.findall(text)]
    words = question.split()
    num_words = len(words) or 1
    num_characters = len(text) or 1
    numbers = _NUMBER.findall(question)
    values = [float(number.replace(",", "")) for number in numbers]
    lengths = [len(option) for option in options] or [0]
    ask = _asking_sentence(question)
    lower_ask = ask.lower()
    ask_numbers = list(_NUMBER.finditer(ask))
    after_number = len(ask) - ask_numbers[-1].end() if ask_numbers else None
    digits = sum(map(str.isdigit, text))
    letters = sum(map(str.isalpha, text))
    spaces = sum(map(str.isspace, text))
    features: Mapping[str, float] = {
        "log_characters": log1p(len(text)),
        "log_question_characters": log1p(len(question)),
        "num_words": len(words),
        "mean_word_length": sum(map(len, words)) / num_words,
        "distinct_word_share": len(set(words)) / num_words,
        "num_sentences": question.count(".") + question.count("?"),
        "num_commas": question.count(","),
        "num_lines": text.count("\n"),
        "uppercase_share": sum(map(str.isupper, text)) / num_characters,
        "digit_share": digits / num_characters,
        "symbol_share": (len(text) - digits - letters - spaces) / num_characters,
        "num_numbers": len(numbers),
        "num_distinct_numbers": len(set(numbers)),
        "log_largest_number": log1p(min(max(values, default=0.0), 1e12)),
        "num_decimals": sum("." in number for number in numbers),
        "num_number_words": len(_NUMBER_WORD.findall(question)),
        "num_relations": len(_RELATION.findall(question.lower())),
        "num_dollars": question.count("$"),
        "num_decimal_dollars": len(_DECIMAL_MONEY.findall(question)),
        "num_percents": text.count("%"),
        "has_formula": bool(_FORMULA.search(text)),
        "has_blank": "_" in question,
        "has_negation": bool(_NEGATION.search(question)),
        "has_shouted_negation": bool(_SHOUTED_NEGATION.search(question)),
        "has_statements": bool(_STATEMENTS.search(text)),
        "has_catch_all": bool(_CATCH_ALL.search(text)),
        "num_options": len(options),
        "mean_option_length": sum(lengths) / len(lengths),
        "option_length_range": max(lengths) - min(lengths),
        "numeric_option_share": sum(bool(_NUMBER.search(option)) for option in options) / (len(options) or 1),
        "asks_following": "following" in lower_ask,
        "asks_how_many": "how many" in lower_ask,
        "asks_how_much": "how much" in lower_ask,
        "asks_money": bool(_MONEY.search(ask)),
        "asks_time": bool(_TIME.search(ask)),
        "ask_characters": len(ask),
        "ask_numbers": len(ask_numbers),
        "ask_number_words": len(_NUMBER_WORD.findall(ask)),
        "ask_last_number_nearness": exp(-after_number / 15) if after_number is not None else 0.0,
        "ask_ends_with_number": after_number is not None and "," not in ask[ask_numbers[-1].end() :],
        "ask_starts_with_if": lower_ask.startswith("if"),
        "ask_commas": ask.count(","),
        "ask_percent": "%" in ask or "percent" in lower_ask,
        "ends_with_question_mark": question.endswith("?"),
        "ends_with_colon": question.endswith(":"),
        "num_years": len(_YEAR.findall(question)),
        "num_quotes": question.count('"') + question.count("\u201c"),
        **_option_features(question, [each[:_MOST_CHARACTERS] for each in options[:_MOST_OPTIONS]]),
    }
    return tuple(float(features[name]) for name in SURFACE)


def _option_features(question: str, options: Sequence[str]) -> dict[str, float]:
    """What tells how far apart answer options are: near ones are hard to choose between, bare numbers to come by.

    Likeness is the Jaccard index of two options' words, or of their runs of three letters; zeros without two options.
    """
    asked = set(re.findall(r"\w+", question.lower()))
    features = {
        "num_distinct_question_words": float(len(asked)),
        "capitalised_share": len(_CAPITALISED.findall(question)) / (len(asked) or 1),
    }
    if len(options) < 2:
        return dict.fromkeys((name for name in SURFACE if "option_" in name), 0.0) | features
    num, lower = len(options), [option.lower() for option in options]
    lists = [re.findall(r"\w+", option) for option in lower]
    words, starts = [set(each) for each in lists], [each[0] if each else "" for each in lists]
    spelled = [{option[i : i + 3] for i in range(len(option) - 2)} for option in lower]
    overlaps = [len(each & asked) / (len(each) or 1) for each in words]
    alike, spelled_alike = ([_jaccard(*pair) for pair in combinations(sets, 2)] for sets in (words, spelled))
    lengths = [len(option) for option in options]
    mean_length, num_words = sum(lengths) / num, sum(map(len, lists)) or 1
    numbers = [float(found.group().replace(",", "")) for found in map(_NUMBER.search, options) if found]
    positive = [number for number in numbers if number > 0]
    return features | {
        "option_overlap": sum(overlaps) / num,
        "option_overlap_max": max(overlaps),
        "option_overlap_range": max(overlaps) - min(overlaps),
        "option_likeness": sum(alike) / len(alike),
        "option_likeness_max": max(alike),
        "option_spelling_likeness": sum(spelled_alike) / len(alike),
        "option_spelling_likeness_max": max(spelled_alike),
        "option_common_words": float(len(set.intersection(*words))),
        "log_option_length": sum(map(log1p, lengths)) / num,
        "option_length_variation": (sum((each - mean_length) ** 2 for each in lengths) / num) ** 0.5
        / max(1.0, mean_length),
        "bare_number_option_share": sum(map(_is_bare_number, options)) / num,
        "verdict_option_share": sum(bool(_VERDICT.fullmatch(option)) for option in options) / num,
        "capitalised_option_share": sum(bool(_CAPITALISED.match(option)) for option in options) / num,
        "option_capitalised_words": sum(len(_CAPITALISED.findall(option)) for option in options) / num_words,
        "option_number_spread": min(10.0, log(max(positive)) - log(min(positive))) if len(positive) > 2 else 0.0,
        "option_same_start_share": sum(one == other for one, other in combinations(starts, 2)) / len(alike),
        "option_word_length": sum(len(word) for each in lists for word in each) / num_words,
    }


def _is_bare_number(option: str) -> bool:
    """Whether it has digits and hardly a letter, as in 12 and 3.5 km."""
    return any(map(str.isdigit, option)) and sum(map(str.isalpha, option)) <= 4


def _jaccard(one: set[str], other: set[str]) -> float:
    """Share of what two sets have together that is in both; 0 for two empty ones."""
    both = len(one & other)
    return both / ((len(one) + len(other) - both) or 1)


def _question(text: str) -> str:
    """The text before its answer options."""
    found = _FIRST_OPTION.search(text)
    return (text[: found.start()] if found else text).strip()


def _asking_sentence(question: str) -> str:
    """The last sentence with a question mark; else the last one."""
    sentences = _SENTENCE_END.split(question)
    return next((each for each in reversed(sentences) if "?" in each), sentences[-1])
