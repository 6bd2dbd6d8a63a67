"""Spreads bits over the layers by what they lose at each width, for precisions between the stored widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What reading some matrices at each width does to the output of their layer.

    The matrices share their input (a query, key and value say), and are read at one width.
    """

    matrices: tuple[str, ...]
    num_weights: int  # of all of them
    errors: Mapping[int, float]  # by width: squared error of the layer's output over the squared output


def mix(found: Sequence[Sensitivity], *, mean_bits: float, widths: Sequence[int]) -> dict[str, int]:
    """The width of every matrix, so that the mean over all weights is at most `mean_bits` and little is lost.

    Starts at the lowest width and widens where a bit takes the most off the summed errors, as long as one fits: the
    greedy rule for the multiple-choice knapsack on its convex hull.

    Raises:
        ValueError: `mean_bits` is below the lowest width.

    Source: Dyer 1984, doi:10.1007/BF02591729, for the rule; the sum as the measure is a first-order estimate.
    """
    if mean_bits < widths[0]:
        raise ValueError(f"mean_bits is {mean_bits!r}; the lowest width is {widths[0]}")
    places = [0] * len(found)
    left = (mean_bits - widths[0]) * sum(part.num_weights for part in found)
    while True:
        best: tuple[float, int, int, int] | None = None
        for i, part in enumerate(found):
            here = widths[places[i]]
            for place in range(places[i] + 1, len(widths)):
                bits = (widths[place] - here) * part.num_weights
                gain = (part.errors[here] - part.errors[widths[place]]) / bits
                if bits <= left and gain > 0 and (best is None or gain > best[0]):
                    best = (gain, i, place, bits)
        if best is None:
            return {name: widths[places[i]] for i, part in enumerate(found) for name in part.matrices}
        _, i, place, bits = best
        places[i] = place
        left -= bits
