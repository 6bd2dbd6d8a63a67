"""Asks a responder, with log-probabilities where the model gives them; a refusal is an error."""

from __future__ import annotations

from dataclasses import replace

from nearfar.agents.refusals import given
from nearfar.agents.types import Responder
from nearfar.errors import RequestError
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
    return given(answer, "answer the item")
