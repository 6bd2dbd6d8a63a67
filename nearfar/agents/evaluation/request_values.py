"""The values that a request mentions: numbers, quoted texts, names, dates, lists, and runs of words.

A small model copies better than it invents; what a call's arguments may be is taken from here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

_NUMBER = re.compile(
    r"(?<![\w.^])(?P<sign>[-−])?[$€£]?(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<fraction>\.\d+)?(?P<power>e[-+]?\d+)?"
    r"(?P<percent>\s?%|\spercent\b)?(?P<scale>\s(?:thousand|million|billion)\b|[kKM]\b)?",
)
_SCALES = {"thousand": 10**3, "k": 10**3, "million": 10**6, "m": 10**6, "billion": 10**9}
_COUNTING = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty"""
_NUMBER_WORDS = {word: number for number, word in enumerate(_COUNTING.split())} | {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "hundred": 100,
    "dozen": 12,
    "twice": 2,
}
_QUOTED = re.compile(
    r"(?<!\w)'((?:[^']|(?<=\w)'(?=\w)){1,200}?)'(?!\w)|\"([^\"]{1,200})\"|`([^`]{1,200})`|“([^”]{1,200})”"
)
_WORD = re.compile(r"[^\s,;:!?()\[\]{}\"“”`]+")
_MONTHS = {
    name: number
    for number, names in enumerate(
        ("january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
         "september sep sept", "october oct", "november nov", "december dec"), 1
    )
    for name in names.split()
}  # fmt: skip
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATES = (
    re.compile(r"\b(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})\b"),
    re.compile(r"\b(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>\d{4})\b"),
    re.compile(
        rf"\b(?P<n>{_MONTH})\.?\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?:of\s+)?(?P<y>\d{{4}})\b", re.IGNORECASE
    ),
    re.compile(
        rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<n>{_MONTH})\.?,?\s+(?P<y>\d{{4}})\b", re.IGNORECASE
    ),
)
_STOP_WORDS = """a an the of in on at to for from by with and or is are was were be been do does did can could would
    will shall should may might must i me my we us our you your he she it its they them their this that these those what
    which who whom whose when where why how if then than as so but not no please help find get give tell show calculate
    compute determine provide want need know like let lets also into about between during using use have has had there
    here any some all each both such just am"""
_DAYS = (
    re.compile(rf"\b(?P<n>{_MONTH})\.?\s+(?:the\s+)?(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b", re.IGNORECASE),
    re.compile(rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<n>{_MONTH})\b", re.IGNORECASE),
)
#: Words that no value begins or ends with.
STOP_WORDS = frozenset(_STOP_WORDS.split())
_NO_NAMES = STOP_WORDS | _MONTHS.keys() | {"celsius", "fahrenheit", "api", "id", "url", "ip"}
_CAPITALISED = r"[A-Z](?:[\w'’-]|\.(?=\w))*"
_NAMES = re.compile(rf"(?<![.?!]\s)(?<!^)\b{_CAPITALISED}(?:\s+(?:(?:of|de|the|del|la)\s+)?{_CAPITALISED})*")
_ADDRESS = re.compile(r"https?://[^\s,'\"]*[^\s,'\".?!]|[\w.+-]+@[\w-]+\.[\w.-]*\w|(?<!\S)[~.]?/[\w./-]*\w")
#: What a value seldom goes on after, unless it is a whole text: `Lyon | on Monday`, `the river | in 2020`.
_BORDERS = frozenset("in on at to for from by with about during using between into as than via per".split())  # noqa: SIM905
_MAX_WORDS = 6
_MAX_PHRASES = 160


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text, and where it stands."""

    value: float
    start: int
    end: int
    is_percent: bool = False
    is_whole: bool = True  # written without a fraction


def numbers(text: str) -> list[Number]:
    """The numbers of a text in digits or in words, in order; 5 % is 5 with `is_percent`."""
    found = []
    for match in _NUMBER.finditer(text):
        value = float(match["digits"].replace(",", "") + (match["fraction"] or "") + (match["power"] or ""))
        value *= _SCALES.get((match["scale"] or "").strip().lower(), 1)
        value = -value if match["sign"] else value
        whole = value.is_integer() and not match["fraction"]
        found.append(Number(value, match.start(), match.end(), bool(match["percent"]), whole))
    found += [
        Number(float(_NUMBER_WORDS[word.group().lower()]), word.start(), word.end())
        for word in re.finditer(r"[A-Za-z]+", text)
        if word.group().lower() in _NUMBER_WORDS
    ]
    return sorted(found, key=lambda number: number.start)


def quoted(text: str) -> list[str]:
    """What stands in quotes, in order."""
    return [next(group for group in match.groups() if group) for match in _QUOTED.finditer(text)]


def dates(text: str) -> list[date]:
    """The whole dates of a text, in the order in which they stand; months of American dates come first."""
    found: list[tuple[int, date]] = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            month = _MONTHS[groups["n"].lower()] if groups.get("n") else int(groups["m"])
            try:
                found.append((match.start(), date(int(groups["y"]), month, int(groups["d"]))))
            except ValueError:
                continue
    years = {day.year for _, day in found} | {int(year) for year in re.findall(r"\b(?:19|20)\d\d\b", text)}
    if len(years) == 1:  # April 3rd to April 5th 2023
        for pattern in _DAYS:
            for match in pattern.finditer(text):
                with suppress(ValueError):
                    day = date(min(years), _MONTHS[match["n"].lower()], int(match["d"]))
                    found.append((match.start(), day))
    return list(dict.fromkeys(day for _, day in sorted(found)))


def names(text: str) -> list[str]:
    """Runs of capitalised words that do not merely begin a sentence, and identifiers of code."""
    found = [match.group().strip(" ,.'") for match in _NAMES.finditer(text)]
    found += identifiers(text)
    plain = (each.removesuffix("'s").removesuffix("’s") for each in found if len(each) > 1)
    return [
        each for each in dict.fromkeys(plain) if each.lower() not in _NO_NAMES and not each.startswith(("I'", "I’"))
    ]


def phrases(text: str, *, is_long: bool = False, limit: int = _MAX_PHRASES) -> list[str]:
    """What a text argument may be: quoted texts, addresses, names, and runs of words that no stop word ends.

    Args:
        text: the request.
        is_long: runs may go on after words such as *in* and *with*, and up to the request's end.
        limit: how many; longer runs are left out first.
    """
    first = [*quoted(text), *addresses(text), *names(text)]
    words = list(_WORD.finditer(text))
    runs: list[tuple[int, str]] = []
    for start, head in enumerate(words):
        if _is_stop(head.group()):
            continue
        for end in range(start, len(words) if is_long else min(start + _MAX_WORDS, len(words))):
            between = text[words[end - 1].end() : words[end].start()] if end > start else ""
            if between.strip() not in ("", ",") or (end > start and words[end - 1].group()[-1] in ".?!"):
                break
            if not is_long and words[end].group().lower() in _BORDERS:
                break
            if not _is_stop(words[end].group()) and (end - start < _MAX_WORDS or end == len(words) - 1):
                run = text[head.start() : words[end].end()].strip(" .'?!")
                runs.append((end - start, run.removesuffix("'s")))
    runs.sort(key=lambda run: run[0])
    kept = [run for _, run in runs if run]
    return list(dict.fromkeys([*first, *kept]))[:limit]


def addresses(text: str) -> list[str]:
    """URLs, e-mail addresses and paths."""
    return _ADDRESS.findall(text)


def _is_stop(word: str) -> bool:
    return word.strip(".'").lower() in STOP_WORDS


def number_lists(text: str) -> list[list[float]]:
    """Runs of numbers that only commas, "and" or brackets part; bracketed runs first."""
    found = numbers(text)
    runs: list[list[Number]] = []
    for number in found:
        between = text[runs[-1][-1].end : number.start] if runs else ""
        if runs and re.fullmatch(r"\s*(?:,|,?\s*(?:and|or|&))?\s*", between) and between.strip():
            runs[-1].append(number)
        else:
            runs.append([number])
    lists = [run for run in runs if len(run) > 1 or text[max(0, run[0].start - 1)] == "["]
    lists.sort(key=lambda run: text[max(0, run[0].start - 1)] != "[")
    return [[number.value for number in run] for run in lists]


def text_lists(text: str) -> list[list[str]]:
    """Coordinated texts: `A, B and C`, quoted, capitalised or short; bracketed lists too."""
    lists = [
        [part.strip(" '\"") for part in match[1].split(",") if part.strip()]
        for match in re.finditer(r"\[([^\[\]]+)\]", text)
    ]
    item = r"(?:'[^']+'|\"[^\"]+\"|`[^`]+`|[A-Z][\w'’.-]*(?:\s+[A-Z][\w'’.-]*){0,7}|[\w-]+(?:\s[\w-]+)?)"
    for match in re.finditer(rf"{item}(?:,\s+(?!and\b|or\b){item})*,?\s+(?:and|or|&)\s+{item}", text):
        parts = re.split(r",\s*(?:and\s+|or\s+)?|\s+(?:and|or|&)\s+", match.group())
        listed = [trimmed for part in parts if (trimmed := _trimmed(part.strip(" '\"`.")))]
        lists.append(listed)
        if listed and listed[0].islower() and " " in listed[0]:  # a verb may stand before the first: buy apples, rice …
            lists.append([listed[0].split()[-1], *listed[1:]])
    return [each for each in lists if each]


def _trimmed(run: str) -> str:
    """A run of words without the stop words at its ends."""
    words = run.split()
    while words and _is_stop(words[0]):
        words.pop(0)
    while words and _is_stop(words[-1]):
        words.pop()
    return " ".join(words)


def identifiers(text: str) -> list[str]:
    """Names of code: camelCase, snake_case, dotted, and paths."""
    found = re.findall(r"\b[a-z]+(?:[A-Z]\w*)+(?:\.\w+)*|\b\w+(?:[._/]\w+)+\b", text)
    return list(dict.fromkeys(found))


def words_of(name: str) -> list[str]:
    """The lower-case words of an identifier: `numPlayers_max` has num, players and max."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def stem(word: str) -> str:
    """A word without its commonest endings, so that `movies` meets `movie` and `loading` meets `load`."""
    for ending in ("ing", "ies", "es", "ed", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def stems(text: str) -> set[str]:
    """The stems of a text's words."""
    return {stem(word) for word in re.findall(r"[a-z0-9]+", text.lower())}


def mentioned(choices: Sequence[str], text: str) -> list[str]:
    """The choices that stand in the text, as whole words, whatever their case and signs; else those whose stems do."""
    plain = f" {re.sub(r'[^a-z0-9]+', ' ', text.lower())} "
    keys = {each: re.sub(r"[^a-z0-9]+", " ", each.lower()).strip() for each in choices}
    found = [each for each, key in keys.items() if key and f" {key} " in plain]
    told = stems(text)
    return found or [each for each, key in keys.items() if key and stems(key) <= told]
