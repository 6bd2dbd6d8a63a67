"""Functional tokens on live queries: the chosen worker answers, hands on, and the decision says why."""

import random
from collections.abc import Sequence
from dataclasses import replace
from math import log

import pytest

from nearfar.errors import ConfigError, UpstreamUnavailable
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.decision_log import redact
from nearfar.router.functional_tokens.chooser import FunctionalTokens
from nearfar.router.functional_tokens.graph import Worker, WorkerGraph
from nearfar.router.functional_tokens.guide import TokenGuide
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import (
    FREE,
    Answer,
    ModelCard,
    Price,
    Query,
    StreamEnd,
    StreamStart,
    TextDelta,
    TokenLogprob,
    Usage,
)

LABELS = ("A", "B", "C")
NAMES = ("general", "code", "math")
CARD = ModelCard("chooser", "near", supports_logprobs=True, supports_choice=True, price=FREE)


def saying(*shares: float, cost_usd: float = 0.0) -> Answer:
    """One token, with these probabilities of A, B and C."""
    top = tuple(sorted(((label, log(p)) for label, p in zip(LABELS, shares, strict=False)), key=lambda pair: -pair[1]))
    return Answer(top[0][0], logprobs=(TokenLogprob(*top[0], top=top),), usage=Usage(20, 1), cost_usd=cost_usd)


CODE = saying(0.1, 0.8, 0.1)


class World:
    """Three workers, the model that chooses among them, and a router over them."""

    def __init__(
        self,
        choices: Sequence[Answer | BaseException],
        *,
        card: ModelCard = CARD,
        successors: tuple[str, ...] = (),
        answers: dict[str, Answer | BaseException] | None = None,
        far: Sequence[str] = (),
        **options: object,
    ) -> None:
        self.chooser = ScriptedModel([saying(1 / 3, 1 / 3, 1 / 3), *choices], card=card)
        self.workers = {
            name: ScriptedModel(
                [(answers or {}).get(name, f"{name} says")],
                card=ModelCard(name, "far" if name in far else "near", price=FREE),
            )
            for name in NAMES
        }
        graph = WorkerGraph(
            [
                Worker(name, f"about {name}", label, successors if name == "code" else ())
                for name, label in zip(NAMES, LABELS, strict=True)
            ],
            "general",
        )
        tokens = FunctionalTokens(
            self.chooser, graph, name="domain", style="trained", abstain_below=float(str(options.pop("abstain", 0)))
        )
        guide = TokenGuide(tokens, draw=random.Random(7), **options)  # type: ignore[arg-type]
        tiers = tuple(Tier(model, name=name) for name, model in self.workers.items())
        self.router = Router({"domain": Cascade(tiers, "domain", guide=guide)}, self.workers)

    async def answer(self, text: str = "Add two numbers.", **query: object) -> Answer:
        """The answer to a query of the router."""
        return await self.router.answer(Query(text, model="domain", **query))  # type: ignore[arg-type]


async def test_the_chosen_worker_answers_and_the_decision_says_why() -> None:
    """Every worker's probability, the propensity, what the choice took, and why the others were not asked."""
    world = World([CODE])

    answer = await world.answer()

    assert answer.text == "code says"
    decision = answer.decision
    assert decision is not None
    assert decision.routing is not None
    assert decision.routing.tier == decision.tier == "code"
    assert decision.routing.probabilities == pytest.approx({"general": 0.1, "code": 0.8, "math": 0.1})
    assert decision.propensity == 1.0
    assert [cost.usage for cost in decision.routing.costs] == [Usage(20, 1)]
    assert decision.latency_s["choose"] >= 0
    dropped = {c.tier: c.reason for c in decision.candidates if not c.is_eligible}
    assert dropped == {"math": "routing: probability 0.100"}
    assert not world.workers["math"].queries
    assert not world.workers["general"].queries


async def test_a_stream_comes_from_the_chosen_worker() -> None:
    """It starts at once: the choice commits to the worker."""
    world = World([CODE])

    events = [event async for event in world.router.stream(Query("Add.", model="domain"))]

    assert isinstance(events[0], StreamStart)
    assert events[0].tier == "code"
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "code says"
    assert isinstance(events[-1], StreamEnd)


async def test_an_unsure_choice_is_answered_by_the_general_worker() -> None:
    """The reason has the probability and the threshold."""
    world = World([saying(0.3, 0.4, 0.3)], abstain=0.5)

    answer = await world.answer()

    assert answer.tier == "general"
    assert answer.decision is not None
    assert answer.decision.routing is not None
    assert "0.400 < 0.500" in answer.decision.routing.reason


async def test_a_worker_that_fails_is_replaced_by_the_general_one() -> None:
    """The query is answered all the same, and both tries are on record."""
    world = World([CODE], answers={"code": UpstreamUnavailable("gone", model="code")})

    answer = await world.answer()

    assert answer.text == "general says"
    assert answer.decision is not None
    assert [step.verdict for step in answer.decision.steps] == ["failed", "accepted"]


async def test_a_choice_that_fails_goes_to_the_general_worker() -> None:
    """The choosing model is no single point of failure."""
    answer = await World([UpstreamUnavailable("no choice", model="chooser")]).answer()

    assert answer.tier == "general"


async def test_a_far_worker_is_no_choice_for_a_private_query() -> None:
    """The distribution is over the workers that may see it."""
    world = World([CODE], far=["code"])

    answer = await world.answer(privacy="near")

    assert answer.tier in ("general", "math")
    assert answer.decision is not None
    assert answer.decision.routing is not None
    assert answer.decision.routing.probabilities == pytest.approx({"general": 0.5, "math": 0.5})
    assert not answer.decision.departures


async def test_a_far_choosing_model_does_not_see_a_private_query() -> None:
    """Nothing is asked; the general worker answers."""
    world = World([CODE], card=replace(CARD, placement="far"))

    answer = await world.answer(privacy="near")

    assert answer.tier == "general"
    assert not world.chooser.queries


async def test_what_a_far_choosing_model_sees_is_on_record() -> None:
    """A departure for the choice, and its cost in the decision's."""
    card = replace(CARD, placement="far", price=Price(1.0, 1.0))
    world = World([replace(CODE, cost_usd=0.002)], card=card)

    answer = await world.answer()

    assert answer.decision is not None
    assert [departure.model for departure in answer.decision.departures] == ["chooser"]
    assert answer.cost_usd == pytest.approx(0.002)


async def test_a_budget_that_pays_for_no_choice_goes_to_the_general_worker() -> None:
    """The choice is part of what the query may cost."""
    card = replace(CARD, placement="far", price=Price(1e6, 1e6))
    world = World([CODE], card=card)

    answer = await world.answer(budget_usd=0.01)

    assert answer.tier == "general"
    assert not world.chooser.queries


async def test_a_rewritten_query_goes_to_the_worker_and_the_original_stays_on_record() -> None:
    """The second field of a functional token; a redacted record shows neither."""
    world = World([CODE, Answer("Implement integer addition.", usage=Usage(9, 5))], rewrites=True)

    answer = await world.answer()

    assert world.workers["code"].queries[0].text == "Implement integer addition."
    decision = answer.decision
    assert decision is not None
    assert decision.routing is not None
    assert decision.routing.rewritten == "Implement integer addition."
    assert decision.request["prompt"][0]["content"] == "Add two numbers."
    hidden = redact(decision, "hash").routing
    assert hidden is not None
    assert hidden.rewritten is not None
    assert hidden.rewritten.startswith("sha256:")


async def test_an_answer_is_handed_on_along_an_edge() -> None:
    """The next worker sees the query and the answer so far; the first one's step is a deferral with the reason."""
    world = World([CODE, saying(0.2, 0.2, 0.6)], successors=("math",))

    answer = await world.answer()

    assert answer.text == "math says"
    decision = answer.decision
    assert decision is not None
    assert [(step.tier, step.verdict) for step in decision.steps] == [("code", "deferred"), ("math", "accepted")]
    assert "handed on to 'math'" in decision.steps[0].reason
    assert [cost.name for cost in decision.steps[0].signal_costs] == ["hop"]
    assert "code says" in world.workers["math"].queries[0].text
    assert {c.tier for c in decision.candidates if c.is_eligible} == {"general", "code", "math"}


async def test_an_answer_that_is_complete_stands() -> None:
    """The label that says so has more than half."""
    world = World([CODE, saying(0.9, 0.05, 0.05)], successors=("math",))

    answer = await world.answer()

    assert answer.text == "code says"
    assert not world.workers["math"].queries


async def test_handovers_end_at_the_most_that_are_allowed() -> None:
    """None are, so nobody is asked who goes on."""
    world = World([CODE, saying(0.2, 0.2, 0.6)], successors=("math",), max_hops=0)

    answer = await world.answer()

    assert answer.text == "code says"
    assert len(world.chooser.queries) == 2


async def test_a_handover_that_fails_leaves_the_first_answer() -> None:
    """The best answer so far is given."""
    world = World(
        [CODE, saying(0.2, 0.2, 0.6)],
        successors=("math",),
        answers={"math": UpstreamUnavailable("gone", model="math")},
    )

    answer = await world.answer()

    assert answer.text == "code says"


async def test_a_stream_waits_for_the_handover() -> None:
    """What may be handed on is not sent before it is known that it stands."""
    world = World([CODE, saying(0.2, 0.2, 0.6)], successors=("math",))

    events = [event async for event in world.router.stream(Query("Add.", model="domain"))]

    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "math says"


async def test_exploring_draws_workers_with_known_propensities() -> None:
    """Over many queries every worker is asked, about as often as its propensity says."""
    world = World([CODE], explore=0.6)

    asked = dict.fromkeys(NAMES, 0.0)
    for _ in range(300):
        decision = (await world.answer()).decision
        assert decision is not None
        assert decision.routing is not None
        asked[decision.routing.tier] += 1 / 300
        assert decision.routing.propensities == pytest.approx({"general": 0.2, "code": 0.6, "math": 0.2})
        assert decision.propensity == pytest.approx(decision.routing.propensities[decision.routing.tier])

    assert asked == pytest.approx({"general": 0.2, "code": 0.6, "math": 0.2}, abs=0.09)


async def test_a_label_that_is_not_one_token_fails_the_query_with_the_fix() -> None:
    """It is a setting to mend, not a worker's failure."""
    world = World([], card=CARD)
    world.chooser = ScriptedModel([saying(0.5, 0.5)], card=CARD)
    graph = WorkerGraph([Worker(n, "does", label) for n, label in zip(NAMES, LABELS, strict=True)], "general")
    guide = TokenGuide(FunctionalTokens(world.chooser, graph))
    tiers = tuple(Tier(model, name=name) for name, model in world.workers.items())
    router = Router({"domain": Cascade(tiers, "domain", guide=guide)}, world.workers)

    with pytest.raises(ConfigError, match="not one token"):
        await router.answer(Query("x", model="domain"))


async def test_a_preview_asks_the_choosing_model_alone() -> None:
    """What `nearfar route` shows: the distribution, and nobody is asked."""
    world = World([CODE])

    plan = await world.router.preview(Query("Add.", model="domain"))

    assert plan.routing is not None
    assert plan.routing.tier == "code"
    assert not any(worker.queries for worker in world.workers.values())


@pytest.mark.parametrize("options", [{"explore": 1.5}, {"max_hops": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, object]) -> None:
    """The option at fault is named."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        World([CODE], **options)  # type: ignore[arg-type]
