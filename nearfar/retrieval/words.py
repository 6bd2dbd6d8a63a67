"""Words as BM25 sees them: lower case, stemmed, without stop words, identifiers also in their parts."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

from nearfar.errors import ConfigError

_ENGLISH = """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to
    was will with
"""
#: Lucene's English stop words, the ones that BM25's published baselines drop.
STOP_WORDS = frozenset(_ENGLISH.split())


_WORD = re.compile(r"\w+(?:\.\w+)*")
_PART = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_local = threading.local()  # a stemmer is not to be shared by threads


def words(text: str) -> list[str]:
    """The text's words in order, as BM25 counts them.

    A dotted or underscored or camel-cased name (`os.path.join`, `read_file`, `HttpClient`) counts as itself and as
    its parts, so that a question in plain words finds it.

    Raises:
        ConfigError: PyStemmer is not installed.
    """
    found = [word for word in _split(text) if word not in STOP_WORDS]
    stemmed: list[str] = _stemmer().stemWords(found)
    return stemmed


def _split(text: str) -> Iterator[str]:
    for match in _WORD.finditer(text):
        word = match.group()
        parts = _PART.findall(word)
        if len(parts) > 1:
            yield word.lower()
        for part in parts:
            yield part.lower()
            humps = _HUMP.split(part)
            if len(humps) > 1:
                yield from (hump.lower() for hump in humps)


def _stemmer() -> Any:
    stemmer = getattr(_local, "stemmer", None)
    if stemmer is None:
        try:
            import Stemmer
        except ImportError as exc:
            raise ConfigError("BM25 needs PyStemmer. Install it: pip install 'nearfar[retrieval]'") from exc
        stemmer = _local.stemmer = Stemmer.Stemmer("english")
    return stemmer
