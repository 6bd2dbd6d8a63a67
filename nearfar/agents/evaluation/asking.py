"""Asks a responder, with log-probabilities where the model gives them; a refusal is an error."""

from __future__ import annotations

from dataclasses import replace

from nearfar.agents.types import Responder
from nearfar.errors import RequestError, RoutingError
from nearfar.types import Answer, Query


async def ask(responder: Responder, query: Query) -> Answer:
    """The answer.

    Raises:
        RoutingError: no model may take the query.
        RequestError: the query itself is not acceptable.
        UpstreamError: the model failed.
    """
    try:
        answer = await responder.answer(query)
    except RequestError as exc:
        if exc.param != "logprobs":
            raise
        answer = await responder.answer(replace(query, sampling=replace(query.sampling, logprobs=False)))
    decision = answer.decision
    if decision is not None and decision.status == "refused":
        reasons = {each.tier: each.reason for each in decision.candidates if each.reason}
        told = "; ".join(f"{tier}: {reason}" for tier, reason in reasons.items()) or decision.reason
        raise RoutingError(f"No model of {decision.target!r} may answer the item: {told}", reasons=reasons)
    return answer
