"""Numbers read off an answer at no extra call, from its tokens' log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

from nearfar.types import Answer, TokenLogprob

#: Alternatives per token that the router asks near models for. Entropy and margin need a few; five cost a vLLM
#: server and llama.cpp next to nothing and are within every provider's limit of 20.
TOP_LOGPROBS = 5

#: Quantiles of the token log-probabilities. The extreme ones carry what the mean hides: Gupta et al. 2024, "Language
#: Model Cascades: Token-level uncertainty and beyond", arXiv:2404.10136, section 4.
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def answer_signals(answer: Answer) -> dict[str, float]:
    """Signals of an answer, by name; those that cannot be known are absent.

    - `mean_logprob`, `min_logprob`, `first_logprob`: log-probability of the chosen tokens, natural logarithm, ≤ 0.
    - `logprob_q10` … `logprob_q90`: their quantiles, linear between order statistics.
    - `mean_entropy`, `max_entropy`: Shannon entropy in nats over the top-k alternatives, with the mass that they leave
      over counted as one more alternative: a lower bound of the true entropy.
    - `mean_margin`, `min_margin`: probability of the likeliest alternative less the second's, in [0, 1].
    - `num_tokens`: length of the answer in tokens.
    - what the model itself says of its answer, such as a classifier's `confidence`.
    """
    signals: dict[str, float] = {}
    if answer.usage is not None:
        signals["num_tokens"] = float(answer.usage.completion_tokens)
    if answer.logprobs:
        signals.update(logprob_signals(answer.logprobs))
    if answer.signals:
        signals.update(answer.signals)
    return signals


def logprob_signals(tokens: Sequence[TokenLogprob]) -> dict[str, float]:
    """Signals of a non-empty run of tokens; see `answer_signals`."""
    values = sorted(token.logprob for token in tokens)
    signals = {
        "mean_logprob": sum(values) / len(values),
        "min_logprob": values[0],
        "first_logprob": tokens[0].logprob,
        "num_tokens": float(len(values)),
    }
    for q in _QUANTILES:
        signals[f"logprob_q{q * 100:.0f}"] = _quantile(values, q)

    with_top = [token.top for token in tokens if len(token.top) > 1]
    if with_top:
        entropies = [_entropy(top) for top in with_top]
        margins = [_margin(top) for top in with_top]
        signals["mean_entropy"] = sum(entropies) / len(entropies)
        signals["max_entropy"] = max(entropies)
        signals["mean_margin"] = sum(margins) / len(margins)
        signals["min_margin"] = min(margins)
    return signals


def _quantile(ordered: Sequence[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _entropy(top: Sequence[tuple[str, float]]) -> float:
    probabilities = [exp(logprob) for _, logprob in top]
    rest = 1.0 - sum(probabilities)
    if rest > 0:
        probabilities.append(rest)
    return max(0.0, -sum(p * log(p) for p in probabilities if p > 0))


def _margin(top: Sequence[tuple[str, float]]) -> float:
    first, second = sorted((exp(logprob) for _, logprob in top), reverse=True)[:2]
    return first - second
