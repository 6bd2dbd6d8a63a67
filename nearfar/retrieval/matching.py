"""Whether two questions ask the same: signals of a pair, their likeness, and the fitted policy that a memory follows.

Cosines alone do not tell: "Who directed Jaws 2?" is nearer to "Who directed Jaws?" than most paraphrases are to their
originals. What parts them are facts (numbers, names, negations, opposites, who does what to whom), which are compared
as words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from math import exp
from pathlib import Path
from typing import Any, Self

from nearfar.errors import DataError
from nearfar.types import Signals, ThresholdFitter

from .words import words

#: The version of `likeness`: a threshold that was fitted to another holds for none of its scores.
LIKENESS = "likeness-1"

_NUMERALS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
_SPELLED = {word: str(number) for number, word in enumerate(_NUMERALS.split())} | {
    "half": "1/2",
    "third": "3rd",
    "first": "1st",
    "second": "2nd",
    "twice": "2x",
    "thrice": "3x",
    "dozen": "12",
}

_NO = "no not never none nobody nothing neither nor without except cannot non unlike fail false"
_NEGATIONS = frozenset(_NO.split())

_OPPOSITES = (
    "first last", "largest smallest", "biggest smallest", "highest lowest", "most least", "more less", "more fewer",
    "before after", "oldest youngest", "older younger", "longest shortest", "longer shorter", "greater smaller",
    "best worst", "maximum minimum", "increase decrease", "start end", "begin end", "north south", "east west",
    "northern southern", "eastern western", "left right", "above below", "over under", "male female", "man woman",
    "husband wife", "father mother", "son daughter", "brother sister", "actor actress", "king queen", "born died",
    "birth death", "buy sell", "win lose", "won lost", "import export", "inside outside", "up down", "true false",
    "advantage disadvantage", "earliest latest", "earlier later", "top bottom", "upper lower", "early late",
)  # fmt: skip
_POLES: Mapping[str, frozenset[str]] = {
    word: frozenset(other for pair in _OPPOSITES if word in pair.split() for other in pair.split() if other != word)
    for word in {word for pair in _OPPOSITES for word in pair.split()}
}

#: What is asked for; "which" asks what "what" asks.
_ASKS = {"who": "who", "whom": "who", "whose": "whose", "when": "when", "where": "where", "why": "why", "how": "how"}

_POLITE = """
    please kindly could can would you me tell know like want need help hi hello hey thanks thank question answer quick
    give explain say wonder wondering curious do does did have has had i my what which who whom whose when where why
    how name let us just also so now am been being were we your one
"""
#: Said to be polite, not to ask; and the words of asking itself, which paraphrases exchange.
_FILLERS = frozenset(_POLITE.split())

_SENTENCE_ENDS = ".!?:"
_SYMBOLS = frozenset("+-*/^=<>%$€£|&~@#\\{}[]")

_TOKEN = re.compile(r"\d+(?:[.,/:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?|[^\w\s]")
_NUMBER = re.compile(r"\d")
_CONTRACTION = re.compile(r"(?<=\w)['’](?:s|re|ve|ll|d|m|t)\b")


def question_key(question: str) -> str:
    """A key that the very same question has, blanks around it aside; "" for an empty one."""
    stripped = question.strip()
    return sha256(stripped.encode(errors="surrogatepass")).hexdigest() if stripped else ""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What two questions must have in common to ask the same."""

    numbers: tuple[str, ...]  # in order
    num_negations: int
    names: frozenset[str]  # capitalised inside a sentence, lower case
    tokens: tuple[str, ...]  # in order, lower case
    content: tuple[str, ...]  # stems in order, without fillers
    asks: Counter[str]
    symbols: Counter[str]  # of mathematics and code


@lru_cache(maxsize=4096)
def _facts(question: str) -> _Facts:
    found = _TOKEN.findall(question)
    lower = [token.lower() for token in found]
    numbers, negations, names = [], 0, set()
    is_start = True
    for token, low in zip(found, lower, strict=True):
        if _NUMBER.match(token):
            numbers.append(_number(token))
        elif low in _SPELLED:
            numbers.append(_SPELLED[low])
        elif low in _NEGATIONS or low.endswith(("n't", "n’t")):
            negations += 1
        if token[0].isupper() and not is_start and low not in _FILLERS:
            names.add(_bare(low))
        is_start = token in _SENTENCE_ENDS
    return _Facts(
        tuple(numbers),
        negations,
        frozenset(names),
        tuple(_bare(low) for low in lower),
        content_words(question),
        Counter(_ASKS[low] for low in lower if low in _ASKS),
        Counter(token for token in found if token in _SYMBOLS),
    )


def _bare(word: str) -> str:
    return word.removesuffix("'s").removesuffix("’s")


def _number(token: str) -> str:
    plain = token.replace(",", "") if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", token) else token.rstrip(".,:/")
    return plain.lstrip("0") or "0"


def content_words(question: str) -> tuple[str, ...]:
    """The stems that say what is asked about, in order: without stop words, politeness and the words of asking."""
    return tuple(stem for stem in words(_plain(question)) if stem not in _filler_stems())


def _plain(question: str) -> str:
    """Lower case, or camel case would count twice; and "what's" as "what", "France's" as "france"."""
    return _CONTRACTION.sub("", question.lower())


@lru_cache(maxsize=1)
def _filler_stems() -> frozenset[str]:
    return frozenset(words(_POLITE))


def match_signals(question: str, other: str) -> Signals:
    """What tells whether two questions ask the same, symmetric in the two.

    - `shared`: stems in common over all stems (Jaccard's index of multisets), in [0, 1].
    - `substituted`, `added`: stems of one that stand for others of the other, and those that only stand in one.
    - `typos`: long words of the two that are one slip of the pen apart; such a pair counts as common.
    - `odd_names`: capitalised words of either that the other has not.
    - `moved_names`: whether the names that both have come in another order.
    - `odd_numbers`, `odd_negation`, `odd_symbols`, `opposites`: whether the two differ so.
    - `odd_asks`: by how many words like "who" and "when" the two differ.
    - `disorder`: share of the pairs of common stems that stand in another order.
    - `moved_numbers`: the same numbers in another order.
    """
    a, b = _facts(question), _facts(other)
    in_a, in_b = Counter(a.content), Counter(b.content)
    only_a, only_b = in_a - in_b, in_b - in_a
    num_typos = _typos(only_a, only_b)
    num_a, num_b = only_a.total() - num_typos, only_b.total() - num_typos
    common = (in_a & in_b).total() + num_typos
    known_a, known_b = {*a.tokens, *a.content}, {*b.tokens, *b.content}
    words_a, words_b = Counter(a.tokens), Counter(b.tokens)
    changed = (words_a - words_b) + (words_b - words_a)
    names = (a.names | b.names) & known_a & known_b
    return {
        "shared": common / (common + num_a + num_b) if common + num_a + num_b else 1.0,
        "substituted": float(min(num_a, num_b)),
        "added": float(abs(num_a - num_b)),
        "typos": float(num_typos),
        "odd_names": float(len(a.names - known_b) + len(b.names - known_a)),
        "moved_names": float([t for t in a.tokens if t in names] != [t for t in b.tokens if t in names]),
        "odd_numbers": float(Counter(a.numbers) != Counter(b.numbers)),
        "odd_negation": float(a.num_negations != b.num_negations),
        "odd_symbols": float(a.symbols != b.symbols),
        "opposites": float(any(pole in changed for word in changed for pole in _POLES.get(word, ()))),
        "odd_asks": float(((a.asks - b.asks) + (b.asks - a.asks)).total()),
        "disorder": _disorder(a.content, b.content),
        "moved_numbers": float(a.numbers != b.numbers and Counter(a.numbers) == Counter(b.numbers)),
    }


#: Shorter words have too many neighbours that are words themselves.
_SHORTEST_TYPO = 5


def _typos(only_a: Counter[str], only_b: Counter[str]) -> int:
    left = [word for word in only_b if len(word) >= _SHORTEST_TYPO]
    found = 0
    for word in only_a:
        if len(word) < _SHORTEST_TYPO:
            continue
        match = next((each for each in left if _is_slip(word, each)), None)
        if match is not None:
            left.remove(match)
            found += 1
    return found


def _is_slip(a: str, b: str) -> bool:
    """Whether one letter was left out or added, or two neighbours changed places; not whether one was exchanged, which
    makes other words too often.
    """
    if len(a) > len(b):
        a, b = b, a
    if len(b) - len(a) > 1:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) < len(b):
        return a[start:] == b[start + 1 :]
    return a[start + 2 :] == b[start + 2 :] and a[start : start + 2] == b[start : start + 2][::-1]


#: Longer questions are compared by the order of their first stems alone: it is quadratic.
_MOST_ORDERED = 120


def _disorder(a: Sequence[str], b: Sequence[str]) -> float:
    """Share of the pairs of stems, each of them once in both, that stand in another order: Kendall's distance."""
    once_a, once_b = Counter(a), Counter(b)
    places = {stem: place for place, stem in enumerate(b) if once_b[stem] == 1}
    order = [places[stem] for stem in a if once_a[stem] == 1 and stem in places][:_MOST_ORDERED]
    num_pairs = len(order) * (len(order) - 1) // 2
    swapped = sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order)))
    return swapped / num_pairs if num_pairs else 0.0


#: Logistic coefficients of `match_signals`, fitted by benchmarks/memory.py --fit; a difference in a number or a
#: negation is not weighed: it is another question.
_INTERCEPT = -3.09
COEFFICIENTS: Mapping[str, float] = {
    "shared": 5.29,
    "added": -0.33,
    "odd_names": -0.56,
    "moved_names": -2.86,
    "odd_asks": -1.51,
}
_DECISIVE = ("odd_numbers", "odd_negation", "opposites")


def likeness(question: str, other: str) -> float:
    """How sure it is that two questions ask the same, in [0, 1]: 1 for the same words in the same order, 0 where a
    number, a negation or one of two opposites differs.

    A score to fit a threshold to, not a probability: how many questions that look alike ask the same depends on what
    is asked. The cosine of their vectors adds nothing to it, by which questions to compare are found.
    """
    if question.split() == other.split():
        return 1.0
    signals = match_signals(question, other)
    if any(signals[name] for name in _DECISIVE):
        return 0.0
    logit = _INTERCEPT + sum(weight * signals[name] for name, weight in COEFFICIENTS.items())
    return 1 / (1 + exp(-logit)) if logit > -700 else 0.0


@dataclass(frozen=True, slots=True)
class QuestionPair:
    """Two questions, the second one answered before."""

    question: str
    remembered: str
    is_same: bool  # whether the remembered one's answer is right for the question


@dataclass(frozen=True, slots=True)
class MatchPolicy:
    """From which likeness on a memory takes two questions for the same, and what that promises."""

    threshold: float | None  # None: only the very same question is recalled
    n: int = 0  # labelled pairs
    hit_rate: float = 0.0  # share of them at or above the threshold
    accuracy: float | None = None  # share of those that ask the same
    guarantee: Mapping[str, Any] | None = None
    matcher: str = LIKENESS

    @classmethod
    def fit(cls, pairs: Sequence[QuestionPair], fitter: ThresholdFitter) -> Self:
        """The policy whose threshold the fitter finds on labelled pairs.

        The pairs should come as questions will: each with the likest remembered question, near misses among them.

        Raises:
            DataError: too few pairs, or all the same or all different.
        """
        # A likeness of 0 says that a fact differs: such pairs are no hits at any threshold.
        likes = [likeness(pair.question, pair.remembered) for pair in pairs]
        scores = [score if score > 0 else float("-inf") for score in likes]
        found = fitter.fit(scores, [float(pair.is_same) for pair in pairs])
        return cls(found.value, found.n, found.coverage, found.accepted_accuracy, found.guarantee)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy that `save` wrote.

        Raises:
            DataError: no such file, or not one of these.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            policy = cls(**values)
            if not (policy.threshold is None or 0 <= policy.threshold <= 1):
                raise ValueError(f"threshold {policy.threshold!r}")
        except (OSError, ValueError, TypeError) as exc:
            raise DataError(
                f"{str(path)!r} is not a memory's policy: {exc}. Make one: nearfar memory calibrate.", path=str(path)
            ) from exc
        if policy.matcher != LIKENESS:
            raise DataError(
                f"{str(path)!r} was fitted to {policy.matcher!r}, and this nearfar compares questions by {LIKENESS!r}. "
                "Fit it again: nearfar memory calibrate.",
                path=str(path),
            )
        return policy

    def save(self, path: Path) -> None:
        """Writes the policy as JSON.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as exc:
            raise DataError(f"Cannot write {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc


#: Recalls the very same question alone.
NOTHING_FUZZY = MatchPolicy(None)


def read_pairs(path: Path) -> list[QuestionPair]:
    """The labelled pairs in a file of JSON lines with `question`, `remembered` and `same`.

    Raises:
        DataError: no such file, or a line that is none; the line is named.
    """
    pairs = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    question, remembered, is_same = row["question"], row["remembered"], row["same"]
                except ValueError as exc:
                    raise _no_pair(path, number, "is not JSON") from exc
                except (KeyError, TypeError) as exc:
                    raise _no_pair(path, number, "is no object with all three") from exc
                if not (isinstance(question, str) and isinstance(remembered, str) and is_same in (0, 1)):
                    raise _no_pair(path, number, "has no texts as question and remembered, or no true or false as same")
                pairs.append(QuestionPair(question, remembered, bool(is_same)))
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"Cannot read the pairs in {str(path)!r}: {exc}.", path=str(path)) from exc
    return pairs


def _no_pair(path: Path, number: int, why: str) -> DataError:
    return DataError(
        f'{str(path)!r}, line {number}: {why}. A line is {{"question": …, "remembered": …, "same": true}}.',
        path=str(path),
    )
