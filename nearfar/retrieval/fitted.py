"""A light reranker that is fitted on labelled queries: a linear score over the hits' signals, learned in a second."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nearfar.errors import DataError
from nearfar.types import Hit

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

#: The pull of the weights to zero, in units of one query's evidence. 5-fold over SciFact's training queries gives the
#: same nDCG to 0.002 from 0.3 to 30.
_RIDGE = 3.0


@dataclass(frozen=True, slots=True)
class Judged:
    """The candidates of one query and how relevant each is, by chunk id; ids that are not there are not relevant."""

    hits: Sequence[Hit]
    relevant: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FittedReranker:
    """Orders hits by a weighted sum of their signals.

    Every signal counts as it is, standardised among the query's hits, and as its distance to the best of them: what is
    evidence by itself (a cosine of 0.9) and what only tells hits of one query apart.

    Args:
        names: the signals.
        weights: three per signal, in the order above.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def fit(cls, examples: Sequence[Judged], *, ridge: float = _RIDGE, sample: int | None = None) -> Self:
        """The reranker under which the relevant hits of the examples are likeliest to be picked from among the rest.

        The conditional logit, fitted by Newton's method with a ridge: a query's relevant hits share one unit of
        evidence, and what all its hits have in common is no evidence.

        Args:
            examples: queries none of whose hits is relevant, and those all of whose hits are, teach nothing.
            ridge: the pull of the standardised weights to zero.
            sample: of the hits of a query that are not relevant, so many are compared with, drawn by chance with a
                fixed seed; None: all. What a sample says of the weights is right on average (McFadden 1978).

        Raises:
            DataError: there is nothing to learn from.

        Source: McFadden 1974, "Conditional logit analysis"; as a ranking loss ListNet's top-one case (Cao et al. 2007).
        """
        import numpy as np

        names = tuple(sorted({name for each in examples for hit in each.hits for name in hit.signals}))
        draw = np.random.default_rng(7)
        queries = []
        for each in examples:
            gains = np.array([max(0.0, each.relevant.get(hit.chunk.id, 0.0)) for hit in each.hits])
            if gains.any() and not (gains > 0).all():
                chosen = np.arange(len(gains))
                others = np.flatnonzero(gains == 0)
                if sample is not None and len(others) > sample:
                    chosen = np.union1d(np.flatnonzero(gains), draw.choice(others, sample, replace=False))
                queries.append((_features(each.hits, names)[chosen], gains[chosen] / gains.sum()))
        if not queries:
            raise DataError("No labelled query has both relevant and other candidates; there is nothing to fit.")
        everything = np.concatenate([rows for rows, _ in queries])
        scale = everything.std(axis=0)
        scale[scale < 1e-9] = np.inf  # says nothing
        weights = _conditional_logit([(rows / scale, target) for rows, target in queries], ridge)
        return cls(names, tuple((weights / scale).tolist()))

    def rerank(self, hits: Sequence[Hit]) -> list[Hit]:
        """The hits, best first; the score is the share of belief that a hit is the one, in [0, 1]."""
        import numpy as np

        if not hits:
            return []
        scores = _features(hits, self.names) @ np.array(self.weights)
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        order = np.argsort(-scores, kind="stable").tolist()
        return [replace(hits[place], score=float(shares[place])) for place in order]

    def save(self, path: Path) -> None:
        """Writes the names and the weights as JSON."""
        try:
            path.write_text(json.dumps({"kind": "fitted-reranker-1", **asdict(self)}, indent=1) + "\n")
        except OSError as exc:
            raise DataError(f"Cannot write {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc

    @classmethod
    def load(cls, path: Path) -> Self:
        """The reranker that `save` wrote.

        Raises:
            DataError: there is no such file, or it is not a reranker.
        """
        try:
            said: Any = json.loads(path.read_text())
            names, weights = tuple(map(str, said["names"])), tuple(map(float, said["weights"]))
            if said["kind"] != "fitted-reranker-1" or len(weights) != 3 * len(names):
                raise ValueError
        except OSError as exc:
            raise DataError(f"Cannot read {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise DataError(f"{str(path)!r} is not a fitted reranker; fit it anew.", path=str(path)) from exc
        return cls(names, weights)


def _features(hits: Sequence[Hit], names: Sequence[str]) -> NDArray[float64]:
    """Shape (hits, 3 · signals): every signal raw, standardised, and less the best; a missing signal is the least."""
    import numpy as np

    raw = np.array([[hit.signals.get(name, np.nan) for name in names] for hit in hits], float)
    known = np.isfinite(raw)
    least = np.where(known, raw, np.inf).min(axis=0)
    raw = np.where(known, raw, np.where(np.isfinite(least), least, 0.0))
    spread = raw.std(axis=0)
    standard = (raw - raw.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    return np.concatenate([raw, standard, raw - raw.max(axis=0)], axis=1)


def _conditional_logit(
    queries: Sequence[tuple[NDArray[float64], NDArray[float64]]], ridge: float, *, steps: int = 50
) -> NDArray[float64]:
    import numpy as np

    num = queries[0][0].shape[1]
    weights: NDArray[float64] = np.zeros(num)
    step: NDArray[float64] = np.zeros(num)
    loss = float("inf")
    for _ in range(steps):
        new_loss = float(ridge * weights @ weights / 2)
        slope, curve = ridge * weights, ridge * np.eye(num)
        for rows, target in queries:
            scores = rows @ weights
            top = scores.max()
            shares = np.exp(scores - top)
            total = shares.sum()
            shares /= total
            middle = shares @ rows
            new_loss += float(top + np.log(total) - target @ scores)
            slope = slope + middle - target @ rows
            curve = curve + (rows * shares[:, None]).T @ rows - np.outer(middle, middle)
        if new_loss > loss + 1e-9:  # too far: half of the way back
            step = (step / 2).astype(float)
            weights = (weights - step).astype(float)
            continue
        if loss - new_loss < 1e-6 * abs(new_loss):
            break
        loss = new_loss
        step = -np.linalg.solve(curve, slope).astype(float)
        weights = (weights + step).astype(float)
    return weights
