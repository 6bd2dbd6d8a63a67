"""What every predictive router's fit shares: the checks on labelled queries, and folds that keep a question whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import isfinite

from nearfar.errors import ConfigError, DataError

from .queries import RoutingExample, RoutingQuery, question_key

#: Fewer labelled queries than this say nothing: the standard error of a mean gain is then above 0.1 for any two models
#: that disagree on a third of the queries.
MIN_EXAMPLES = 30


def require_sklearn() -> None:
    """That scikit-learn is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as exc:
        raise ConfigError("Fitting a router needs scikit-learn. Install it: pip install 'nearfar[fit]'") from exc


def gains(examples: Sequence[RoutingExample]) -> list[float]:
    """What the strong model adds, per query.

    Raises:
        DataError: too few labelled queries, a quality that is no number, or the same gain everywhere.
    """
    found = [example.gain for example in examples]
    if len(found) < MIN_EXAMPLES:
        raise DataError(
            f"A router cannot be fitted to {len(found)} labelled queries. Label at least {MIN_EXAMPLES}; a few hundred "
            "are a start."
        )
    if not all(map(isfinite, found)):
        number = next(i for i, gain in enumerate(found) if not isfinite(gain))
        raise DataError(f"Labelled query {number + 1} has a quality that is no number. Mend or drop it.")
    if min(found) == max(found):
        raise DataError(
            f"The strong model's gain is {found[0]:g} on every one of the {len(found)} labelled queries, so there is "
            "nothing to learn. Label queries on which the models differ."
        )
    return found


def fold_numbers(queries: Sequence[RoutingQuery], num_folds: int, *, seed: int = 0) -> list[int]:
    """The fold of each query, in [0, num_folds), by a hash of its question: the same question, the same fold."""
    return [_fold(question_key(query.text), num_folds, seed) for query in queries]


def _fold(key: str, num_folds: int, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_folds
