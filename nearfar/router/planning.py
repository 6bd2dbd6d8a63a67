"""Which tiers may and can take a query, each with a reason where it may not; no call is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from nearfar.errors import RequestError
from nearfar.types import Candidate, ModelCard, NamedTool, Query, prompt_token_bound

from .cascade import Cascade, Tier

#: No tokenizer in use packs prose or code into more bytes per token on average; a longer prompt cannot fit.
_MOST_BYTES_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """The tiers of one query, in order, with what was dropped and why."""

    target: str  # the model or cascade that the query named
    candidates: tuple[Candidate, ...]

    @property
    def eligible(self) -> tuple[Candidate, ...]:
        """The tiers that will be tried, in order, until one is sure enough."""
        return tuple(candidate for candidate in self.candidates if candidate.is_eligible)


def plan(query: Query, cascade: Cascade) -> Plan:
    """The cascade's tiers with a verdict on each."""
    return Plan(cascade.name, tuple(_judge(query, tier) for tier in cascade.tiers))


def _judge(query: Query, tier: Tier) -> Candidate:
    card = tier.model.card
    bound = card.cost_bound_usd(query) if query.budget_usd is not None else None
    reason = next(_objections(query, tier, bound), "")
    return Candidate(tier.name, card.name, card.placement, not reason, reason, bound)


def _objections(query: Query, tier: Tier, bound: float | None) -> Iterator[str]:
    card = tier.model.card
    if query.privacy == "near" and card.placement == "far":
        yield "privacy: the query may not leave this machine"
    yield from missing_capabilities(query, card)
    if card.context_window is not None:
        least_tokens = prompt_token_bound(query) // _MOST_BYTES_PER_TOKEN
        if least_tokens > card.context_window:
            yield f"context: at least {least_tokens:,} tokens, the window holds {card.context_window:,}"
    if query.budget_usd is not None:
        if bound is None and card.price is None:
            yield "budget: the price of this model is unknown; set models.NAME.price"
        elif bound is None:
            yield "budget: the length of its answer is unbounded; set max_tokens"
        elif bound > query.budget_usd:
            yield f"budget: may cost up to ${bound:.6f}, over the query's ${query.budget_usd:.6f}"
    unavailable = tier.model.unavailable()
    if unavailable:
        yield unavailable


def missing_capabilities(query: Query, card: ModelCard) -> Iterator[str]:
    """What the query asks for and the model does not do, one reason each."""
    for modality in sorted(query.modalities - card.modalities):
        yield f"capability: takes no {modality} input"
    if query.tools and not card.supports_tools and query.tool_choice != "none":
        yield "capability: takes no tools"
    shape = query.response_format.kind if query.response_format else "text"
    if shape in {"json_object", "json_schema"} and not card.supports_json_schema:
        yield f"capability: takes no response_format {shape!r}"
    if shape == "grammar" and not card.supports_grammar:
        yield "capability: takes no grammar"
    if query.sampling.logprobs and not card.supports_logprobs:
        yield "capability: gives no logprobs"
    if query.sampling.extra and not card.passes_extra:
        yield f"capability: does not know the option {min(query.sampling.extra)!r}"


def check(query: Query) -> None:
    """Refuses a query that no model could take.

    Raises:
        RequestError: with `param` naming the field at fault.
    """
    for objection, param in _contradictions(query):
        raise RequestError(objection, param=param)


def _contradictions(query: Query) -> Iterator[tuple[str, str]]:
    if not query.messages:
        yield "The query has no messages; give at least one.", "messages"
    elif not any(message.text.strip() or message.modalities or message.tool_calls for message in query.messages):
        yield "The prompt is empty; give some text.", "messages"
    yield from _bad_numbers(query)
    names = {tool.name for tool in query.tools}
    if len(names) < len(query.tools):
        yield "Two tools have the same name; give each its own.", "tools"
    if isinstance(query.tool_choice, NamedTool) and query.tool_choice.name not in names:
        yield f"tool_choice names {query.tool_choice.name!r}, which is not among the tools.", "tool_choice"
    if query.tool_choice == "required" and not query.tools:
        yield "tool_choice is 'required' and there are no tools; give some or leave it out.", "tool_choice"
    if query.sampling.top_logprobs is not None and not query.sampling.logprobs:
        yield "top_logprobs needs logprobs set to true.", "top_logprobs"


def _bad_numbers(query: Query) -> Iterator[tuple[str, str]]:
    options = query.sampling
    ranges: tuple[tuple[str, float | None, float, float], ...] = (
        ("budget_usd", query.budget_usd, 0, float("inf")),
        ("deadline_s", query.deadline_s, 0, float("inf")),
        ("max_tokens", options.max_tokens, 1, float("inf")),
        ("temperature", options.temperature, 0, 2),
        ("top_p", options.top_p, 0, 1),
        ("min_p", options.min_p, 0, 1),
        ("top_logprobs", options.top_logprobs, 0, 20),
        ("presence_penalty", options.presence_penalty, -2, 2),
        ("frequency_penalty", options.frequency_penalty, -2, 2),
    )
    for name, value, low, high in ranges:
        if value is not None and not (isfinite(value) and low <= value <= high):
            allowed = f"at least {low}" if high == float("inf") else f"in [{low}, {high}]"
            yield f"{name} must be {allowed}, not {value!r}.", name
    if query.deadline_s == 0:
        yield "deadline_s must be more than 0.", "deadline_s"
