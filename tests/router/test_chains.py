"""Chains: joint thresholds, promises that hold, early abstention, and annotation by ranks."""

import math
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists

from nearfar.errors import ConfigError, DataError
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.chains import ChainFitter, ChainTier, annotate, chain_policy
from nearfar.router.policies import Policy, TierPolicy
from nearfar.router.router import Router
from nearfar.router.scorers import StatedProbability
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Query


def chain(n=600, *, seed=0, far=0.95):
    """Three tiers of rising cost and skill; the first two know fairly well when they are right."""
    draw = random.Random(seed)
    small, middle, large = [], [], []
    for _ in range(n):
        ease = draw.random()
        for column, skill in ((small, ease**2), (middle, ease**0.5)):
            column.append((skill, float(draw.random() < skill)))
        large.append(float(draw.random() < far))
    return [
        ChainTier("small", [o for _, o in small], [1.0] * n, [s for s, _ in small]),
        ChainTier("middle", [o for _, o in middle], [5.0] * n, [s for s, _ in middle]),
        ChainTier("large", large, [50.0] * n),
    ]


def applied(setting, tiers):
    """Mean outcome and cost of a setting, by asking tier after tier."""
    quality = cost = 0.0
    for i in range(len(tiers[0].outcomes)):
        for k, tier in enumerate(tiers):
            cost += tier.costs[i]
            threshold = setting.thresholds[k] if k < len(setting.thresholds) else -math.inf
            if threshold is not None and (tier.scores is None or tier.scores[i] >= threshold):
                quality += tier.outcomes[i]
                break
    n = len(tiers[0].outcomes)
    return quality / n, cost / n


def test_the_fit_is_what_the_chain_then_does():
    """Cost and quality are those of asking tier after tier with these thresholds, and within the limit."""
    tiers = chain()

    found = ChainFitter(0.05, delta=None).fit(tiers)

    quality, cost = applied(found.setting, tiers)
    assert (found.quality, found.cost) == pytest.approx((quality, cost))
    assert quality >= sum(tiers[-1].outcomes) / 600 - 0.05
    assert cost < 45
    assert sum(found.kept) == pytest.approx(1)
    assert found.guarantee is None


def test_joint_thresholds_are_no_dearer_than_a_chain_without_a_tier():
    """A middle tier can be left out, so having it costs nothing."""
    tiers = chain()
    without = [tiers[0], tiers[2]]

    assert ChainFitter(0.05, delta=None).fit(tiers).cost <= ChainFitter(0.05, delta=None).fit(without).cost + 5


def test_a_chains_promise_holds():
    """Over many draws of labels, the true loss of quality is above alpha in a share of at most delta."""
    alpha, delta, runs, broken, feasible = 0.05, 0.1, 40, 0, 0
    population = chain(20_000, seed=10**6)
    always = sum(population[-1].outcomes) / 20_000
    for seed in range(runs):
        setting = ChainFitter(alpha, delta=delta).fit(chain(400, seed=seed)).setting
        if setting is not None:
            feasible += 1
            broken += always - applied(setting, population)[0] > alpha

    assert feasible > 0.9 * runs
    assert broken / runs <= delta + 2 * math.sqrt(delta * (1 - delta) / runs)


def test_each_tiers_accepted_error_is_promised():
    """The error of what each tier keeps stays below alpha, or it keeps nothing."""
    tiers = chain(3000, seed=3)

    found = ChainFitter(0.2, target="accepted-error", delta=0.1).fit(tiers)

    assert found.guarantee["is_feasible"]
    population = chain(20_000, seed=99)
    reached = range(20_000)
    for tier, threshold in zip(population, found.setting.thresholds, strict=False):
        kept = [i for i in reached if threshold is not None and tier.scores[i] >= threshold]
        reached = sorted(set(reached) - set(kept))
        if kept:
            assert 1 - sum(tier.outcomes[i] for i in kept) / len(kept) <= 0.2
    assert found.cost < 56


def test_giving_up_early_saves_cost_where_it_is_worth_it():
    """With an "I don't know" worth half an answer and a weak last tier, hopeless queries end at the first tier."""
    tiers = chain(far=0.5)

    never = ChainFitter(0.05, delta=None).fit(tiers)
    early = ChainFitter(0.05, delta=None, abstention_value=0.5).fit(tiers)

    assert early.cost < never.cost
    assert early.abstained > 0
    assert sum(early.kept) + early.abstained == pytest.approx(1)
    assert never.abstained == 0


@pytest.mark.parametrize("target", ["accepted-error", "quality-loss"])
def test_too_strict_a_promise_says_how_many_labels(target):
    """Thirty labels cannot show half a percent."""
    strict = ChainFitter(0.005, target=target, delta=0.1).fit(chain(30))

    assert strict.setting is None
    assert strict.guarantee["needed_n"] > 30


@pytest.mark.parametrize(
    ("tiers", "error", "reason"),
    [
        (chain(30)[:1], ConfigError, "two tiers"),
        (chain(19), DataError, "too few"),
        ([chain(30)[2], chain(30)[2]], ConfigError, "no scores"),
        ([chain(30)[0], chain(31)[2]], DataError, "31 outcomes for 30"),
        ([ChainTier("a", [0.0, 1.0] * 15, [1.0] * 30, [0.5] * 30), chain(30)[2]], DataError, "0.5 on every"),
        (
            [ChainTier("a", [0.0, 1.0] * 15, [1.0] * 30, [math.nan, *range(29)]), chain(30)[2]],
            DataError,
            "scores of tier 'a' is nan",
        ),
        ([ChainTier("a", [0.0, 2.0] * 15, [1.0] * 30, list(range(30))), chain(30)[2]], DataError, "not in"),
    ],
)
def test_a_chain_that_cannot_be_fitted_is_refused(tiers, error, reason):
    """Tiers without scores, lengths that differ, numbers that are none."""
    with pytest.raises(error, match=reason):
        ChainFitter(0.1).fit(tiers)


# --- annotation


def link_of(answers):
    """A link that labels from a dictionary and remembers what it was asked."""

    async def link(items):
        link.asked.append(list(items))
        return [answers[item] for item in items]

    link.asked = []
    return link


async def test_each_link_keeps_its_surest_share():
    """Of two links, the second sees the half that the first is less sure of."""
    first = link_of({"a": ("x", 0.9), "b": ("x", 0.2), "c": ("x", 0.8), "d": ("x", 0.1)})
    second = link_of({"b": ("y", 0.6), "d": ("y", 0.9)})

    found = await annotate(["a", "b", "c", "d"], [first, second])

    assert second.asked == [["b", "d"]]
    assert [each.label for each in found] == ["x", "x", "x", "y"]  # b: rank 2/4 at the first, 1/2 at the second
    assert [each.asked for each in found] == [1, 2, 1, 2]


@given(lists(floats(0, 1), min_size=1, max_size=30), integers(1, 5))
def test_ranks_and_not_scales_decide(confidences, num_links):
    """Confidences on any rising scale give the same labels, and each item has one."""
    import asyncio

    def links(scale):
        return [
            link_of({i: (f"{number}", scale(c * (number + 1) % 1)) for i, c in enumerate(confidences)})
            for number in range(num_links)
        ]

    items = list(range(len(confidences)))
    plain = asyncio.run(annotate(items, links(lambda c: c)))
    scaled = asyncio.run(annotate(items, links(lambda c: 8 * c)))

    assert plain == scaled
    assert [each.item for each in plain] == items


async def test_links_that_misbehave_are_refused():
    """No link, another number of labels, a confidence that is none."""

    async def short(items):
        return []

    with pytest.raises(ConfigError, match="at least one"):
        await annotate(["a"], [])
    with pytest.raises(DataError, match="0 labels for 1"):
        await annotate(["a"], [short])
    with pytest.raises(DataError, match="no number"):
        await annotate(["a"], [link_of({"a": ("x", math.nan)})])
    assert await annotate([], [short]) == []


async def test_a_fitted_chain_runs_as_it_was_fitted():
    """Its thresholds and its bounds for giving up, in a policy and in a cascade, cost what the fit says."""
    tiers = chain(far=0.6)
    fit = ChainFitter(0.05, delta=None, abstention_value=0.4).fit(tiers)
    scorer = StatedProbability("s")
    policy = chain_policy(
        Policy(
            name="p",
            created_at=datetime.now(UTC),
            nearfar_version="0",
            tiers={name: TierPolicy(model=name, scorer=scorer, threshold=0.5) for name in ("small", "middle")},
        ),
        ["small", "middle"],
        fit,
    )
    order = iter(range(len(tiers[0].outcomes)))
    at = [0]

    def model(tier):
        def say(query):
            at[0] = next(order) if tier is tiers[0] else at[0]
            return Answer("x", cost_usd=tier.costs[at[0]], signals={"s": tier.scores[at[0]]} if tier.scores else {})

        return ScriptedModel([say], name=tier.name)

    steps = [
        Tier(
            model(tier),
            scorer=fitted.scorer,
            threshold=fitted.threshold,
            accepts_nothing=fitted.accepts_nothing,
            abstain_below=fitted.abstain_below,
        )
        for tier, fitted in ((tier, policy.tiers[tier.name]) for tier in tiers[:2])
    ]
    router = Router({"auto": Cascade([*steps, Tier(model(tiers[2]))], name="auto")}, {})

    answers = [await router.answer(Query("?", when_unsure="abstain")) for _ in tiers[0].outcomes]

    abstained = sum(answer.decision.reason == "abstained_early" for answer in answers)
    assert fit.abstained > 0
    assert abstained / len(answers) == pytest.approx(fit.abstained)
    assert sum(answer.cost_usd for answer in answers) / len(answers) == pytest.approx(fit.cost)
    with pytest.raises(ConfigError, match="chain's order"):
        chain_policy(policy, ["small"], fit)
