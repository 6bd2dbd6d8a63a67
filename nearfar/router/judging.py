"""Whether a tier's answer is good enough: the verdict, its score, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from nearfar.types import Answer, DecisionReason, ModelCard, Query, Signals, TokenLogprob, Verdict

from .cascade import Tier
from .signals import answer_signals, logprob_signals


@dataclass(slots=True)
class Judgement:
    """What is thought of one answer."""

    verdict: Verdict
    reason: str  # in words
    score: float | None
    signals: Signals
    code: DecisionReason = "last_tier"  # why it would be the final answer


def judge(
    query: Query,
    tier: Tier,
    answer: Answer,
    *,
    is_last: bool,
    may_abstain: bool = True,
    found: Signals | None = None,
) -> Judgement:
    """Whether the tier's answer may be the final one.

    Args:
        query: what was asked.
        tier: who answered.
        answer: the whole of it.
        is_last: nobody further could be asked.
        may_abstain: nothing of the answer has been sent, so that it may still be kept back.
        found: signals besides those of the answer itself.
    """
    signals = answer_signals(answer)
    if found:
        signals.update(found)
    score = tier.scorer.score(signals) if tier.scorer else None
    if is_last and not (may_abstain and query.when_unsure == "abstain" and score is not None):
        return Judgement("accepted", "the last tier that could take it", score, signals)
    fault = flaw(answer, query, tier.model.card)
    if fault:
        return Judgement("deferred", fault, score, signals)
    verdict, reason = _against_threshold(tier, score)
    bound = tier.abstain_below
    if bound is not None and score is not None and score < bound and query.when_unsure == "abstain":
        reason = f"score {score:.3f} < {bound:.3f}, below which no further tier is asked"
        return Judgement("deferred", reason, score, signals, "abstained_early")
    return Judgement(verdict, reason, score, signals, "confident")


def judge_prefix(tier: Tier, prefix: list[TokenLogprob]) -> Judgement:
    """Whether an answer that begins with these tokens may be the final one."""
    signals = logprob_signals(prefix)
    score = tier.scorer.score(signals) if tier.scorer else None
    verdict, reason = _against_threshold(tier, score)
    return Judgement(verdict, f"{reason} over the first {len(prefix)} tokens", score, signals, "confident")


def flaw(answer: Answer, query: Query, card: ModelCard) -> str | None:
    """What makes an answer no final one, whatever its score."""
    if answer.refusal or answer.finish_reason == "content_filter":
        return "the model declined to answer"
    if not answer.text.strip() and not answer.tool_calls and not answer.outcome_only:
        return "the answer is empty"
    bound = card.max_output_tokens
    asked = query.sampling.max_tokens
    if answer.finish_reason == "length" and bound is not None and (asked is None or asked > bound):
        return f"cut off at the model's own limit of {bound} tokens"
    return None


def _against_threshold(tier: Tier, score: float | None) -> tuple[Verdict, str]:
    if tier.accepts_nothing:
        return "deferred", "the policy accepts no answer of this tier"
    if tier.guard is not None and (objection := tier.guard.objection()):
        return "deferred", objection
    if score is None:
        return "deferred", "no score: the answer carries no signal that the scorer knows"
    threshold = tier.threshold or 0.0
    if score >= threshold:
        return "accepted", f"score {score:.3f} ≥ threshold {threshold:.3f}"
    return "deferred", f"score {score:.3f} < threshold {threshold:.3f}"
