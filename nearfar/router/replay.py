"""What another policy would have made of logged decisions, each where the log tells, and nothing where it does not."""

from __future__ import annotations

from dataclasses import dataclass

from nearfar.types import Decision, Step

from .policies import Policy


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
