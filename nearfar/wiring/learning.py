"""What goes on learning: bandits, the monitors of policies, and the mistakes that tiers are shown."""

from __future__ import annotations

from collections.abc import Iterator

from nearfar.config import Settings
from nearfar.config.cascades import CascadeSettings, MonitorSettings
from nearfar.errors import ConfigError, RequestError
from nearfar.retrieval.error_store import SqliteErrorCases
from nearfar.router.learning import Learner, Learning, LiveBandit, LiveMonitor
from nearfar.router.policies import Policy
from nearfar.store import Store
from nearfar.types import Decision, ErrorCase


def open_learning(settings: Settings, store: Store) -> Learning:
    """Every bandit and monitor that the settings name, with what they have learned so far; no model is built.

    Raises:
        ConfigError: a policy is missing, or a bandit cannot be made.
        DataError: a policy or the store cannot be used.
    """
    learners: list[Learner] = []
    for name, cascade in settings.cascades.items():
        if cascade.bandit is not None:
            learners.append(cascade_bandit(name, cascade))
        if cascade.monitor is not None:
            learners += _monitors(name, cascade, cascade.monitor)
    learning = Learning(store, learners)
    if learners:
        learning.load()
    return learning


def cascade_bandit(name: str, cascade: CascadeSettings) -> LiveBandit:
    from nearfar.router.bandit import ThompsonBandit
    from nearfar.router.free_probes import QUERY_SIGNALS

    settings = cascade.bandit
    assert settings is not None
    unknown = [feature for feature in settings.features if feature not in QUERY_SIGNALS]
    if unknown:
        raise ConfigError(
            f"The bandit of cascade {name!r} reads {unknown[0]!r}; before any call there are "
            f"{', '.join(map(repr, QUERY_SIGNALS))}."
        )
    tiers = [tier.name or tier.model for tier in cascade.tiers]
    fresh = ThompsonBandit.over(
        tiers, settings.features, budget=settings.budget_usd, floor=settings.floor, rule=settings.rule
    )
    return LiveBandit(name, fresh)


def _monitors(name: str, cascade: CascadeSettings, settings: MonitorSettings) -> Iterator[LiveMonitor]:
    """A monitor per policy and tier, where there is anything to watch."""
    from nearfar.router.live import monitor

    policies: list[Policy | None] = [*cascade_policies(name, cascade)]
    if cascade.policy is None:
        policies.append(None)
    num_watched = 0
    for policy in policies:
        for tier in cascade.tiers[:-1]:
            found = monitor(
                name,
                tier.name or tier.model,
                policy,
                alpha=settings.alpha,
                false_alarm_rate=settings.false_alarm_rate,
            )
            if found is not None:
                num_watched += 1
                yield found
    if not num_watched:
        raise ConfigError(
            f"The monitor of cascade {name!r} has nothing to watch: no policy promises anything of its tiers. Set "
            "alpha, the share of wrong answers to watch for, or fit a policy: nearfar calibrate."
        )


def cascade_policies(name: str, cascade: CascadeSettings) -> list[Policy]:
    """The cascade's policies, the default one first."""
    policies = [Policy.load(path) for path in ([cascade.policy] if cascade.policy else []) + [*cascade.policies]]
    names = [policy.name for policy in policies]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise ConfigError(f"Cascade {name!r} has two policies named {twice!r}; rename one.")
    return policies


async def keep_mistake(settings: Settings, store: Store, decision: Decision, *, right: str, reason: str = "") -> None:
    """Keeps the decision's answer as a mistake, for tiers of its cascade that are shown those that were told.

    Args:
        settings: name the cascade.
        store: of `open_store`.
        decision: whose answer was wrong.
        right: what would have been right.
        reason: why it was wrong, in words.

    Raises:
        RequestError: the decision is no cascade's, or the log kept no text of it.
        ConfigError: the cascade's embedder is not here.
        DataError: the store cannot be written.
    """
    from nearfar.retrieval.embedders import find_embedder
    from nearfar.router.replay import asked

    cascade = settings.cascades.get(decision.target)
    if cascade is None:
        raise RequestError(
            f"The decision {decision.id!r} was asked of {decision.target!r}, which is no cascade; mistakes are shown "
            "to the tiers of a cascade.",
            param="id",
        )
    question = asked(decision)
    wrong = next((step.text for step in reversed(decision.steps) if step.tier == decision.tier), "")
    if question is None or not wrong or settings.decisions.text != "keep":
        raise RequestError(
            f"The log has no text of the decision {decision.id!r}, so its mistake cannot be shown to anybody; set "
            'decisions.text = "keep".',
            param="id",
        )
    cases = SqliteErrorCases(store, find_embedder(cascade.embedder), decision.target)
    await cases.add([ErrorCase(question, wrong, right, reason, decision.model or "")])
