"""A query that no model may take, as an error that names each one's reason."""

from __future__ import annotations

from nearfar.errors import BudgetExceeded, RoutingError
from nearfar.types import Answer


def refused_for(answer: Answer) -> frozenset[str]:
    """The query's fields for which models were ruled out, where none may take it; empty where one answered."""
    decision = answer.decision
    if decision is None or decision.status != "refused":
        return frozenset()
    return frozenset(candidate.param for candidate in decision.candidates if candidate.param)


def given(answer: Answer, what: str) -> Answer:
    """The answer, if any model was allowed to give one.

    Args:
        what: what was to be done, for the message: "write the call".

    Raises:
        BudgetExceeded: none was, and more money would have let one.
        RoutingError: none was.
    """
    decision = answer.decision
    if decision is not None and decision.status == "refused":
        reasons = {candidate.tier: candidate.reason for candidate in decision.candidates if candidate.reason}
        said = "; ".join(f"{tier}: {reason}" for tier, reason in reasons.items()) or decision.reason
        error = BudgetExceeded if decision.reason == "out_of_budget" else RoutingError
        raise error(f"No model of {decision.target!r} may {what}: {said}", reasons=reasons)
    return answer
