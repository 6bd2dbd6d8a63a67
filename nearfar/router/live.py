"""From plain choices to what works on live queries: a tier's probes, its default scorer, its monitor, a router."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from nearfar.errors import ConfigError
from nearfar.types import ChatModel, Embedder, Scorer

from .equivalence import Entailment, Equivalence, SameAnswer, SimilarVectors
from .free_probes import AnswerText, ChoiceProbability, PredictedGain, QueryForm, SimilarQueries, SpanSignals
from .learning import LiveMonitor
from .policies import Policy, TierPolicy
from .predictive import PredictiveRouter
from .sampled_signals import Probe, PTrue, Samples, SelfCheck, StatedConfidence
from .scorers import MeanProbability, StatedProbability

T = TypeVar("T")

#: Paid signals that are probabilities, so that they can score an answer where no policy does.
_PROBABILITIES = ("self_consistency", "p_true", "self_check", "stated_confidence")

#: Every signal that is one, by the name that a config gives it.
_STATED = {**{name: name for name in _PROBABILITIES}, "choices": ChoiceProbability.signals[0]}


def same_by(
    how: Literal["answer", "embedding", "entailment"], *, embedder: Callable[[], Embedder], judge: ChatModel
) -> Equivalence:
    """Which samples say the same.

    Args:
        how: by their final answer, by their vectors, or as a model judges.
        embedder: makes the embedder; called for "embedding" alone.
        judge: who judges entailment.
    """
    if how == "embedding":
        return SimilarVectors(embedder())
    return Entailment(judge) if how == "entailment" else SameAnswer()


def probes(
    names: Collection[str],
    *,
    samples: Samples | None = None,
    similar: SimilarQueries | None = None,
    router: PredictiveRouter | None = None,
) -> tuple[Probe, ...]:
    """The probes that give the signals of these names, free ones first, each once.

    Args:
        names: as a config names them.
        samples: for `self_consistency` and `semantic_entropy`, which share them.
        similar: for `similar_queries`.
        router: for `predicted_gain`.

    Raises:
        ConfigError: what a name needs was not given.
    """
    found: list[Probe] = []
    if "span" in names:
        found.append(SpanSignals())
    if "choices" in names:
        found.append(ChoiceProbability())
    if "answer_text" in names:
        found.append(AnswerText())
    if "query" in names:
        found.append(QueryForm())
    if "similar_queries" in names:
        found.append(_given(similar, "similar_queries", "labelled_queries"))
    if "predicted_gain" in names:
        found.append(PredictedGain(_given(router, "predicted_gain", "router")))
    if {"self_consistency", "semantic_entropy"} & set(names):
        found.append(samples or Samples())
    by_name: dict[str, Callable[[], Probe]] = {
        "p_true": PTrue,
        "self_check": SelfCheck,
        "stated_confidence": StatedConfidence,
    }
    found += [make() for name, make in by_name.items() if name in names]
    return tuple(found)


def check_signals(policy: Policy, tier: str, given: Sequence[Probe]) -> None:
    """Refuses a policy that reads what the tier does not find out: every answer would lack a score and defer.

    Raises:
        ConfigError: naming the signal and how it is had.
    """
    known = {signal for probe in given for signal in probe.signals}
    fitted = policy.tiers[tier]
    makers: tuple[tuple[str, Sequence[str]], ...] = (
        ("span", SpanSignals.signals),
        ("choices", ChoiceProbability.signals),
        ("answer_text", AnswerText.signals),
        ("query", QueryForm.signals),
        ("similar_queries", ("query_similarity", "neighbour_accuracy")),
        ("predicted_gain", PredictedGain.signals),
        ("semantic_entropy", Samples().signals),
        *((name, (name,)) for name in _PROBABILITIES[1:]),
    )
    for signal in fitted.signals:
        name = next((name for name, signals in makers if signal in signals), None)
        if name is not None and signal not in known:
            raise ConfigError(
                f"The policy {policy.label!r} reads {signal!r}, which tier {tier!r} does not find out. Add "
                f'signals = ["{name}"] to the tier, or fit the policy without it.'
            )


def free_names(policy: TierPolicy) -> tuple[str, ...]:
    """The signals of a policy that a tier may read unasked, because they cost nothing and need nothing."""
    wanted = set(policy.signals)
    return tuple(
        probe.name for probe in (SpanSignals, ChoiceProbability, AnswerText, QueryForm) if wanted & set(probe.signals)
    )


def default_scorer(names: Sequence[str]) -> Scorer:
    """The scorer of a tier without a policy: the first signal that is a probability, else the mean probability."""
    named = next((_STATED[name] for name in names if name in _STATED), None)
    return MeanProbability() if named is None else StatedProbability(named)


def monitor(
    cascade: str,
    tier: str,
    policy: Policy | None,
    *,
    alpha: float | None,
    false_alarm_rate: float,
) -> LiveMonitor | None:
    """The monitor of one tier; None: nothing of it can be watched.

    Args:
        policy: the policy in use; None: uncalibrated.
        alpha: the share of wrong answers among the accepted to watch for; None: as the policy promises.
    """
    fitted = policy.tiers.get(tier) if policy else None
    promised = fitted.guarantee if fitted else None
    if alpha is None and promised is not None and promised.get("target") == "accepted-error":
        alpha = float(promised["alpha"])
    reference = fitted.reference if fitted else None
    if alpha is None and reference is None:
        return None
    return LiveMonitor(
        cascade,
        tier,
        policy.label if policy else "uncalibrated",
        alpha=alpha,
        signal=reference.signal if reference else None,
        reference=reference.values if reference else (),
        false_alarm_rate=false_alarm_rate,
    )


def load_router(path: Path, *, embedder: Callable[[], Embedder]) -> tuple[PredictiveRouter, str, str, str]:
    """A fitted router, its label, and the names of the weak and the strong model that it was fitted on.

    Args:
        path: the router's file.
        embedder: makes the embedder; called for a router that embeds.

    Raises:
        ConfigError: it was fitted with another embedder.
        DataError: the file cannot be used.
    """
    from .predictive.files import load, read  # numpy, and only where a config names a router

    needs = read(path).embedder is not None
    router, about = load(path, embedder=embedder() if needs else None)
    return router, f"router {path.name}#{about.sha256[:8]}", about.weak, about.strong


def check_pair(label: str, role: str, fitted: str, names: Collection[str], tier: str) -> None:
    """Refuses a router that was fitted on another model.

    Raises:
        ConfigError: naming both.
    """
    if fitted not in names:
        raise ConfigError(
            f"The {label} was fitted with {fitted!r} as the {role} model, and tier {tier!r} is "
            f"{' or '.join(map(repr, names))}. Fit it on outcomes of that model, or name the tier's model as the table "
            "does."
        )


def _given(value: T | None, signal: str, key: str) -> T:
    if value is None:
        raise ConfigError(f"The signal {signal!r} needs {key}.")
    return value
