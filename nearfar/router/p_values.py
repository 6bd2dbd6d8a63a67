"""Finite-sample tests of a mean loss: exact where losses are right or wrong, bounded where they are numbers.

Every function returns a p-value for the hypothesis that the true mean is above a limit, so that a small one is evidence
that the limit is kept. None of them leans on a normal approximation. Plain Python.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, e, exp, inf, lgamma, log, log1p, sqrt

#: Share of the error budget that goes into bounding how often two models disagree, see `difference_p_value`.
_NUISANCE_SHARE = 0.01

#: Rates of disagreement at which `difference_p_value` is evaluated within their confidence interval.
_NUISANCE_POINTS = 5

#: Stakes of a `Bets`: for standard deviations from half the range down to a 64th of it.
_NUM_STAKES = 6


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X ≤ k) for X ~ Binomial(n, p), to about 12 digits."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    if k > n * p:  # sum the shorter tail
        return max(0.0, 1.0 - binomial_cdf(n - k - 1, n, 1 - p))
    odds = (1 - p) / p
    term = total = 1.0
    for i in range(k, 0, -1):  # downwards from k, where the terms are largest
        term *= i / (n - i + 1) * odds
        total += term
        if term < 1e-17 * total:
            break
    return min(1.0, exp(_log_pmf(k, n, p)) * total)


def binomial_p_value(errors: int, n: int, limit: float) -> float:
    """The exact p-value of "the error rate is above `limit`" after `errors` in `n`.

    Source: Angelopoulos et al. 2021, "Learn then Test", arXiv:2110.01052, appendix B: for losses that are 0 or 1 the
        binomial tail is exact and beats every concentration bound.
    """
    return binomial_cdf(errors, n, limit) if n else 1.0


def hoeffding_bentkus_p_value(mean: float, n: int, limit: float) -> float:
    """The Hoeffding–Bentkus p-value of "the mean loss is above `limit`"; losses are in [0, 1].

    Source: Bates et al. 2021, "Distribution-free, risk-controlling prediction sets", arXiv:2101.02703, section 3.1.3.
    """
    if n == 0 or mean >= limit:
        return 1.0
    hoeffding = exp(-n * _divergence(mean, limit))
    bentkus = e * binomial_cdf(ceil(n * mean - 1e-9), n, limit)
    return min(1.0, hoeffding, bentkus)


@lru_cache(maxsize=64)
def most_errors(n: int, limit: float, delta: float) -> tuple[int, ...]:
    """For every m from 0 to n, the most errors in m answers whose exact p-value is at most `delta`; -1: not even none.

    Takes O(n): the tail of m + 1 follows from that of m.
    """
    allowed = [-1]
    k, tail, mass = 0, 1.0, 1.0  # P(X ≤ k) and P(X = k) for X ~ Binomial(m, limit)
    for m in range(1, n + 1):
        tail -= limit * mass
        mass *= m * (1 - limit) / (m - k)
        while tail <= delta and k < m:
            mass *= (m - k) / (k + 1) * limit / (1 - limit)
            k += 1
            tail += mass
        allowed.append(k - 1)
    return tuple(allowed)


def least_labels(limit: float, delta: float) -> int:
    """The fewest accepted answers, all of them right, that show an error rate of at most `limit`."""
    return max(1, ceil(log(delta) / log1p(-limit) - 1e-9))


def difference_p_value(worse: int, better: int, n: int, limit: float, *, delta: float) -> float:
    """The p-value of "P(worse) − P(better) is above `limit`", where each of n queries is worse, better or neither.

    The exact tail of worse − better, at the least favourable rate of disagreement in that rate's own confidence
    interval; what the interval may miss (a hundredth of `delta`) is added. Where Bennett's bound is below `delta`
    already, that is returned.

    Source: Berger and Boos 1994, "P values maximized over a confidence set for the nuisance parameter".
    """
    spent = _NUISANCE_SHARE * delta
    low, high = _rate_interval((worse + better) / n, n, spent)
    low = max(low, limit)
    if high <= limit:  # so few disagreements that the difference cannot be that large
        return spent
    rough = _bennett(limit - (worse - better) / n, n, variance=high, largest=1 + limit) + spent
    if rough <= delta:  # clear without the exact tail, which takes a hundred times longer
        return rough
    step = (high - low) / (_NUISANCE_POINTS - 1)
    worst = max(_difference_tail(worse - better, n, low + i * step, limit) for i in reversed(range(_NUISANCE_POINTS)))
    return min(1.0, worst + spent)


class Bets:
    """Bets that a mean loss is below `limit`, one at each of several stakes; their mean wealth is evidence that it is.

    Adapts to the losses' variance, so that it suits losses that are mostly small. One loss may be exchanged for another
    at little cost, so that all thresholds of a walk take one pass.

    Args:
        limit: of the mean, below `highest`.
        highest: no loss is larger.
        n: how many losses there will be.
        delta: the level that the stakes are sized for; the p-value is valid at every level.

    Source: Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting",
        arXiv:2010.09686, section 4; constant stakes, mixed over variances.
    """

    def __init__(self, limit: float, *, highest: float, n: int, delta: float) -> None:
        width = highest - limit
        sized = (sqrt(2 * log(1 / delta) / n) * 2**halvings / (width / 2) for halvings in range(_NUM_STAKES))
        self._stakes = [min(0.95 / width, stake) for stake in sized]
        self._limit = limit
        self._wealth = [0.0] * _NUM_STAKES  # logarithms

    def add(self, loss: float) -> None:
        """Settles the bets on one more loss."""
        for i, stake in enumerate(self._stakes):
            self._wealth[i] += log1p(stake * (self._limit - loss))

    def exchange(self, old: float, new: float) -> None:
        """As if a loss that was added had been another."""
        for i, stake in enumerate(self._stakes):
            self._wealth[i] += log1p(stake * (self._limit - new)) - log1p(stake * (self._limit - old))

    def p_value(self) -> float:
        """The p-value of "the mean loss is above `limit`"."""
        most = max(self._wealth)
        mean = sum(exp(wealth - most) for wealth in self._wealth) / _NUM_STAKES
        return exp(min(0.0, -most - log(mean)))


def _difference_tail(difference: int, n: int, rate: float, limit: float) -> float:
    """P(A − B ≤ difference), where of n queries D ~ Binomial(n, rate) disagree and A of them are worse."""
    share = min(1.0, (rate + limit) / (2 * rate))  # of the disagreements that are worse
    if share >= 1.0:
        return binomial_cdf(difference, n, rate)
    spread = 7 * sqrt(n * rate * (1 - rate)) + 7  # the rest is below 1e-10
    first = max(0, int(n * rate - spread), abs(difference) if difference < 0 else 0)
    last = min(n, int(n * rate + spread) + 1)
    if difference < 0 and first > last:
        return 0.0
    d = first
    k = (difference + d) // 2  # A ≤ k
    weight = exp(_log_pmf(d, n, rate))
    tail = binomial_cdf(k, d, share)
    mass = exp(_log_pmf(k, d, share)) if 0 <= k <= d else 0.0
    total = 0.0
    while True:
        total += weight * tail
        if d >= last:
            return min(1.0, total)
        weight *= (n - d) / (d + 1) * rate / (1 - rate) if rate < 1 else 0.0
        # from d to d + 1 trials at the same k
        if k >= d + 1:
            tail, mass = 1.0, 0.0
        elif k == d:
            tail, mass = 1.0 - share ** (d + 1), (d + 1) * share**d * (1 - share)
        else:
            tail -= share * mass
            mass *= (d + 1) * (1 - share) / (d + 1 - k)
        d += 1
        if (difference + d) // 2 > k:
            k += 1
            if k > d:
                tail, mass = 1.0, 0.0
            else:
                mass = mass * (d - k + 1) / k * share / (1 - share) if mass else exp(_log_pmf(k, d, share))
                tail = min(1.0, tail + mass)


def _bennett(gap: float, n: int, *, variance: float, largest: float) -> float:
    """A bound on P(mean of n ≤ its expectation − gap) for a given variance and largest fall below the expectation.

    Source: Bennett 1962; Boucheron, Lugosi and Massart 2013, "Concentration inequalities", theorem 2.9.
    """
    if gap <= 0:
        return 1.0
    u = largest * gap / variance
    return exp(-n * variance / largest**2 * ((1 + u) * log1p(u) - u))


def _rate_interval(share: float, n: int, miss: float) -> tuple[float, float]:
    """An interval that misses the true rate with probability at most `miss` (Chernoff's bound, inverted)."""
    reach = log(2 / miss) / n

    def edge(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            if _divergence(share, middle) <= reach:
                inside = middle
            else:
                outside = middle
        return outside

    return edge(share, 0.0), edge(share, 1.0)


def _divergence(a: float, b: float) -> float:
    """Kullback–Leibler divergence of Bernoulli(a) from Bernoulli(b), in nats."""
    if b <= 0:
        return 0.0 if a <= 0 else inf
    if b >= 1:
        return 0.0 if a >= 1 else inf
    first = a * log(a / b) if a > 0 else 0.0
    second = (1 - a) * log((1 - a) / (1 - b)) if a < 1 else 0.0
    return max(0.0, first + second)


def _log_pmf(k: int, n: int, p: float) -> float:
    if p <= 0 or p >= 1:
        return 0.0 if k == (0 if p <= 0 else n) else -inf
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p)
