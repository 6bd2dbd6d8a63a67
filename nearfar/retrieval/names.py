"""Names in a text: runs of capitalised words, and titles of other passages, compared without case and accents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

_RUN = re.compile(r"[A-Z0-9][\w'’.-]*(?:\s+(?:(?:of|the|and|de|von|van|da|la|le|du)\s+){0,2}[A-Z0-9][\w'’.-]*)*")
_WORD = re.compile(r"\w+")
_QUALIFIER = re.compile(r"\s*\([^)]*\)")
_ARTICLES = """
    a an and are as at by did do does for from had has have he her his how in is it its of on that the these they this
    those to was were what when where which who why with
"""
_EDGES = frozenset(_ARTICLES.split())


def plain(text: str) -> str:
    """The text's words in lower case without accents, one space apart."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKD", text.lower())))


def title_name(title: str) -> str:
    """What other texts call the subject of a title: "Cat (band)" is "cat"."""
    return plain(_QUALIFIER.sub("", title)) or plain(title)


def names(text: str) -> set[str]:
    """The names in the text, plain; a run's edges lose their articles and prepositions."""
    found = set()
    for match in _RUN.finditer(text):
        run = plain(match.group()).split()
        while run and run[0] in _EDGES:
            run = run[1:]
        while run and run[-1] in _EDGES:
            run = run[:-1]
        if len(run) > 1 or (run and len(run[0]) > 2):
            found.add(" ".join(run))
    return found


def name_runs(text: str) -> list[tuple[int, int]]:
    """Where the runs of capitalised words and numbers stand, as start and end."""
    return [match.span() for match in _RUN.finditer(text)]


class Mentions:
    """Finds which of many names a text mentions, case aside.

    Args:
        known: plain names; those of fewer than four letters are left out, which occur by chance.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._known = frozenset(name for name in known if len(name) > 3)
        self._longest: dict[str, int] = {}  # by a name's first word, in words
        for name in self._known:
            run = name.split()
            self._longest[run[0]] = max(self._longest.get(run[0], 0), len(run))

    def within(self, text: str) -> set[str]:
        """The known names that stand in the text as whole words."""
        return set(self._runs(plain(text).split()))

    def _runs(self, found: list[str]) -> Iterator[str]:
        for start, word in enumerate(found):
            for length in range(1, self._longest.get(word, 0) + 1):
                run = " ".join(found[start : start + length])
                if run in self._known:
                    yield run
