"""Which tiers may and can take a query, each with a reason where it may not; no call is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, isfinite
from operator import attrgetter

import msgspec

from nearfar.errors import RequestError
from nearfar.types import (
    FREE,
    Candidate,
    ModelCard,
    NamedTool,
    Query,
    Routing,
    Usage,
    prompt_token_bound,
)

from .cascade import Cascade, Tier

#: No tokenizer in use packs prose or code into more bytes per token on average; a longer prompt cannot fit.
_MOST_BYTES_PER_TOKEN = 8

#: Where the query leaves the length open, a budget that does not pay for so many tokens pays for no answer.
SHORTEST_ANSWER = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """The tiers of one query, in order, with what was dropped and why."""

    target: str  # the model or cascade that the query named
    candidates: tuple[Candidate, ...]
    routing: Routing | None = None  # what a router or a bandit would choose; None: there is none, or nothing to choose

    @property
    def eligible(self) -> tuple[Candidate, ...]:
        """The tiers that will be tried, in order, until one is sure enough."""
        return tuple(candidate for candidate in self.candidates if candidate.is_eligible)


def plan(query: Query, cascade: Cascade) -> Plan:
    """The plan of a query whose tiers are `cascade`'s."""
    return Plan(cascade.name, candidates_of(query, cascade))


def candidates_of(query: Query, cascade: Cascade) -> tuple[Candidate, ...]:
    """The cascade's tiers with a verdict on each."""
    return tuple([_judge(query, tier) for tier in cascade.tiers])


def _judge(query: Query, tier: Tier) -> Candidate:
    card = tier.model.card
    bound = None
    if query.budget_usd is not None:
        paid = within_budget(query, card, query.budget_usd)
        bound = card.cost_bound_usd(query if isinstance(paid, str) else paid)
    reason, param = next(_objections(query, tier), ("", None))
    return Candidate(tier.name, card.name, card.placement, not reason, reason, bound, param)


def _objections(query: Query, tier: Tier) -> Iterator[tuple[str, str | None]]:
    """Why the tier may not or cannot take the query, and the field at fault."""
    card = tier.model.card
    if query.privacy == "near" and card.placement == "far":
        yield "privacy: the query may not leave this machine", "privacy"
    for param, why in card.unmet(query).items():
        yield f"capability: {why}", param
    if card.context_window is not None:
        least_tokens = prompt_token_bound(query) // _MOST_BYTES_PER_TOKEN
        if least_tokens > card.context_window:
            yield f"context: at least {least_tokens:,} tokens, the window holds {card.context_window:,}", "messages"
    if query.budget_usd is not None and isinstance(objection := within_budget(query, card, query.budget_usd), str):
        yield f"budget: {objection}", "budget_usd"
    unavailable = tier.model.unavailable()
    if unavailable:
        yield unavailable, None


def within_budget(query: Query, card: ModelCard, usd: float) -> Query | str:
    """The query, its answer kept as short as `usd` pays for; or why `usd` cannot pay for it.

    A query that names its own `max_tokens` is paid for whole or not at all; otherwise the money is the limit, as long
    as it leaves room for a real answer.
    """
    price = card.price
    if price == FREE:
        return query
    if price is None:
        return "the price of this model is unknown; set models.NAME.price"
    prompt_tokens = prompt_token_bound(query)
    bound = card.output_bound(query)
    wanted = bound if query.sampling.max_tokens is not None else min(bound or SHORTEST_ANSWER, SHORTEST_ANSWER)
    least_usd = price.cost_usd(Usage(prompt_tokens, wanted or 0))
    if least_usd > usd:
        return f"may cost ${least_usd:.6f} or more, and ${usd:.6f} is left"
    if bound is None or price.cost_usd(Usage(prompt_tokens, bound)) > usd:
        left = usd - price.cost_usd(Usage(prompt_tokens, 0))
        bound = int(left * 1e6 / price.completion_usd_per_mtok) if price.completion_usd_per_mtok else None
        while bound and price.cost_usd(Usage(prompt_tokens, bound)) > usd:  # the last digit of a float
            bound -= 1
    return replace(query, sampling=replace(query.sampling, max_tokens=bound))


def check(query: Query) -> None:
    """Refuses a query that no model could take.

    Raises:
        RequestError: with `param` naming the field at fault.
    """
    messages, sampling = query.messages, query.sampling
    if not messages:
        raise RequestError("The query has no messages; give at least one.", param="messages")
    for message in messages:
        if message.text.strip() or message.modalities or message.tool_calls:
            break
    else:
        raise RequestError("The prompt is empty; give some text.", param="messages")
    if query.budget_usd is not None or query.deadline_s is not None:
        _check_ranges((query.budget_usd, query.deadline_s), _QUERY_RANGES)
    if query.deadline_s == 0:
        raise RequestError("deadline_s must be more than 0.", param="deadline_s")
    _check_ranges(_numbers_of(sampling), _SAMPLING_RANGES)
    if query.tools or query.tool_choice is not None or sampling.top_logprobs is not None:
        for objection, param in _contradictions(query):
            raise RequestError(objection, param=param)


def check_text(query: Query) -> None:
    """Refuses a query with half a character in it (a lone surrogate), which neither wire nor log can hold.

    JSON that came over HTTP has none; what Python read from a command line or a file of another encoding may.

    Raises:
        RequestError: a text has one.
    """
    try:
        msgspec.json.encode(query)
    except UnicodeEncodeError as exc:
        raise RequestError(
            f"{exc.object[exc.start : exc.start + 20]!r} begins with what is no character. Read the text as UTF-8.",
            param="messages",
        ) from exc


def _contradictions(query: Query) -> Iterator[tuple[str, str]]:
    names = {tool.name for tool in query.tools} if query.tools else frozenset()
    if len(names) < len(query.tools):
        yield "Two tools have the same name; give each its own.", "tools"
    if isinstance(query.tool_choice, NamedTool) and query.tool_choice.name not in names:
        yield f"tool_choice names {query.tool_choice.name!r}, which is not among the tools.", "tool_choice"
    if query.tool_choice == "required" and not query.tools:
        yield "tool_choice is 'required' and there are no tools; give some or leave it out.", "tool_choice"
    if query.sampling.top_logprobs is not None and not query.sampling.logprobs:
        yield "top_logprobs needs logprobs set to true.", "top_logprobs"


_QUERY_RANGES = (("budget_usd", 0, inf), ("deadline_s", 0, inf))
_SAMPLING_RANGES = (
    ("max_tokens", 1, inf),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("top_logprobs", 0, 20),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)
_numbers_of = attrgetter(*(name for name, _, _ in _SAMPLING_RANGES))


@lru_cache(maxsize=1024)  # most requests set the same few numbers
def _check_ranges(values: tuple[float | None, ...], ranges: tuple[tuple[str, float, float], ...]) -> None:
    for value, (name, low, high) in zip(values, ranges, strict=True):
        if value is not None and not (low <= value <= high and isfinite(value)):
            allowed = f"at least {low}" if high == inf else f"in [{low}, {high}]"
            raise RequestError(f"{name} must be {allowed}, not {value!r}.", param=name)
