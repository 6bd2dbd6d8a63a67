"""What another policy would have made of logged decisions, each where the log tells, and nothing where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearfar.errors import DataError
from nearfar.types import Decision, Query, Step

from .free_probes import QUERY_SIGNALS, query_signals
from .off_policy import Estimate, LoggedChoice, evaluate, predict_rewards
from .policies import Policy, TierPolicy
from .predictive import PredictiveRouter, RoutingQuery


@dataclass(frozen=True, slots=True)
class Replayed:
    """One decision under another policy."""

    decision_id: str
    was_tier: str | None
    was_cost_usd: float | None
    tier: str | None  # who would have answered; None: not known
    is_known: bool  # the log has that tier's answer
    is_same: bool  # the same tier answers
    outcome: float | None  # of the answer that would have been given; None: not known
    cost_usd: float | None  # of the tiers up to that answer; None: not known
    why: str  # in words


def replay(decision: Decision, policy: Policy, outcome: float | None = None) -> Replayed | None:
    """What the policy would have done with this query; None where it has no say: a query that named a model, say.

    The tiers' signals are scored anew. A tier that would have deferred hands over to the next one that was tried; where
    none was, what it would have said is not known. An outcome is known for the answer that was given, and so for the
    policy where it gives the same one.

    Raises:
        ConfigError: the policy was fitted on answers of another model than the tier's.
    """
    steps = [step for step in decision.steps if step.verdict in {"accepted", "deferred"}]
    if decision.reason == "named" or not any(step.tier in policy.tiers for step in steps):
        return None
    cost: float | None = 0.0
    for i, step in enumerate(steps):
        cost = None if cost is None or step.cost_usd is None else cost + step.cost_usd
        accepts, why = _verdict(step, policy, is_last=_is_last(step, decision))
        if accepts:
            is_same = step.tier == decision.tier
            return Replayed(
                decision.id,
                decision.tier,
                decision.cost_usd,
                step.tier,
                is_known=True,
                is_same=is_same,
                outcome=outcome if is_same else None,
                cost_usd=cost,
                why=why,
            )
        if _gives_up(step, decision, policy.tiers.get(step.tier)):
            return Replayed(
                decision.id,
                decision.tier,
                decision.cost_usd,
                None,
                is_known=True,
                is_same=decision.reason == "abstained_early",
                outcome=None,
                cost_usd=cost,
                why=f"{why}; so low that it abstains",
            )
        if i + 1 == len(steps):
            break
    return Replayed(
        decision.id,
        decision.tier,
        decision.cost_usd,
        None,
        is_known=False,
        is_same=False,
        outcome=None,
        cost_usd=None,
        why=f"{why}; the next tier was not asked",
    )


def _verdict(step: Step, policy: Policy, *, is_last: bool) -> tuple[bool, str]:
    if step.tier not in policy.tiers:
        return (
            (True, f"{step.tier} is the last tier")
            if is_last
            else (step.verdict == "accepted", f"{step.tier} as it was")
        )
    fitted = policy.tier(step.tier, model=step.model)
    score = fitted.scorer.score(step.signals)
    if score is None:
        return is_last, f"{step.tier} has no score"
    if fitted.threshold is None:
        return is_last, f"{step.tier} accepts nothing"
    sign = "≥" if score >= fitted.threshold else "<"
    return score >= fitted.threshold or is_last, f"{step.tier} {score:.2f} {sign} {fitted.threshold:.2f}"


def _is_last(step: Step, decision: Decision) -> bool:
    """Whether no eligible tier came after this one."""
    eligible = [candidate.tier for candidate in decision.candidates if candidate.is_eligible]
    return bool(eligible) and step.tier == eligible[-1]


def _gives_up(step: Step, decision: Decision, fitted: TierPolicy | None) -> bool:
    """Whether the policy would ask no further tier."""
    if fitted is None or fitted.abstain_below is None or decision.request.get("when_unsure") != "abstain":
        return False
    score = fitted.scorer.score(step.signals)
    return score is not None and score < fitted.abstain_below


# --- another router --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rerouted:
    """One routed decision under another router."""

    decision_id: str
    was_tier: str  # chosen at the time
    propensity: float  # with which it was chosen
    tier: str  # that the router would choose
    score: float  # of the router
    outcome: float | None  # of what was done; None: nobody has judged it

    @property
    def is_same(self) -> bool:
        """Whether the router chooses what was chosen."""
        return self.tier == self.was_tier


def asked(decision: Decision) -> str | None:
    """The last user message of the query, where the log keeps texts."""
    for message in reversed(decision.request.get("prompt") or ()):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return None if not content or content.startswith("sha256:") else content
            return "\n".join(part.get("text", "") for part in content or () if part.get("kind") == "text") or None
    return None


def reroute(
    judged: Sequence[tuple[Decision, float | None]],
    router: PredictiveRouter,
    *,
    weak: str,
    strong: str,
    threshold: float,
) -> list[Rerouted]:
    """What the router would have chosen for the queries that were routed between these two tiers.

    Args:
        judged: decisions, each with its outcome where it has one.
        router: reads the query's text.
        weak: the tier that it chooses below the threshold.
        strong: the other.
        threshold: as in a config.
    """
    found = []
    for decision, outcome in judged:
        routing, text = decision.routing, asked(decision)
        if routing is None or routing.tier not in (weak, strong) or text is None:
            continue
        score = router.predict([RoutingQuery(text)])[0]
        tier = strong if score >= threshold else weak
        found.append(Rerouted(decision.id, routing.tier, routing.propensity, tier, score, outcome))
    return found


def estimate(
    judged: Sequence[tuple[Decision, float | None]], rerouted: Sequence[Rerouted], *, confidence: float = 0.95
) -> Estimate:
    """The mean outcome that the router would have had, doubly robust, from the decisions that somebody judged.

    Which outcomes arrived must not depend on how good they are.

    Raises:
        DataError: the log does not cover what the router would do; see `off_policy.evaluate`.
    """
    by_id = {each.decision_id: each for each in rerouted if each.outcome is not None}
    known = [(decision, by_id[decision.id]) for decision, _ in judged if decision.id in by_id]
    if not known:
        raise DataError("No routed decision has an outcome. Tell some: nearfar outcome.")
    rows, names = [], sorted({name for _, each in known for name in (each.was_tier, each.tier)})
    for decision, _ in known:
        signals = query_signals(Query(asked(decision) or ""))
        rows.append([signals[name] for name in QUERY_SIGNALS])
    rewards = [each.outcome or 0.0 for _, each in known]
    predicted = predict_rewards(rows, [each.was_tier for _, each in known], rewards, names=names)
    choices = [
        LoggedChoice(
            each.was_tier,
            each.propensity,
            reward,
            {each.tier: 1.0},
            decision.routing.propensities if decision.routing else None,
            prediction,
        )
        for (decision, each), reward, prediction in zip(known, rewards, predicted, strict=True)
    ]
    return evaluate(choices, method="doubly_robust", confidence=confidence)


def thresholds(scores: Sequence[float], shares: Sequence[float]) -> list[tuple[float, float]]:
    """For each share of queries to send to the strong tier, the threshold that would have sent it.

    Raises:
        DataError: there is no score.
    """
    if not scores:
        raise DataError('No logged query has its text. Ask some, with decisions.text = "keep".')
    ordered = sorted(scores, reverse=True)
    return [(share, ordered[max(0, min(len(ordered), round(share * len(ordered))) - 1)]) for share in shares]
