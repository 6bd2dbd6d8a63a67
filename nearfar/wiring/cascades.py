"""The cascades of the settings: tiers with their scorers, thresholds, probes and choosers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nearfar.config import Settings
from nearfar.config.cascades import CascadeSettings, TierSettings
from nearfar.config.models import PythonSettings
from nearfar.errors import ConfigError
from nearfar.retrieval.error_store import SqliteErrorCases
from nearfar.router.cascade import Cascade, Chooser, Tier
from nearfar.router.learning import Learning, Watch
from nearfar.router.policies import Policy
from nearfar.router.scorers import MeanProbability, StatedProbability
from nearfar.store import Store
from nearfar.types import ChatModel, Embedder, ErrorCases, Scorer

from .learning import cascade_bandit, cascade_policies

if TYPE_CHECKING:
    from nearfar.router.predictive import PredictiveRouter
    from nearfar.router.sampled_signals import Probe


def build_cascade(
    name: str,
    cascade: CascadeSettings,
    settings: Settings,
    models: Mapping[str, ChatModel],
    learning: Learning,
    store: Store,
) -> Cascade:
    """The cascade with its default policy, and a variant for each policy.

    Raises:
        ConfigError: a policy does not fit the cascade, or its embedder is not here.
        DataError: a policy or another of its files cannot be used.
    """
    return _Builder(name, cascade, settings, models, learning, store).build()


class _Builder:
    """Builds one cascade of the settings, and its variants by policy."""

    def __init__(
        self,
        name: str,
        cascade: CascadeSettings,
        settings: Settings,
        models: Mapping[str, ChatModel],
        learning: Learning,
        store: Store,
    ) -> None:
        self._name = name
        self._cascade = cascade
        self._settings = settings
        self._models = models
        self._learning = learning
        self._store = store
        self._embedder: Embedder | None = None
        self._router: PredictiveRouter | None = None
        self._tier_names = [tier.name or tier.model for tier in cascade.tiers]

    def build(self) -> Cascade:
        policies = cascade_policies(self._name, self._cascade)
        chooser = self._chooser()
        variants = {policy.name: self._with_policy(policy, chooser) for policy in policies}
        default = self._with_policy(policies[0] if self._cascade.policy else None, chooser)
        return replace(default, variants=variants)

    def _with_policy(self, policy: Policy | None, chooser: Chooser | None) -> Cascade:
        names = self._tier_names
        strangers = sorted(set(policy.tiers) - set(names)) if policy else []
        if policy and strangers:
            raise ConfigError(
                f"The policy {policy.label!r} has a tier {strangers[0]!r}, which cascade {self._name!r} has not; it "
                f"has {', '.join(map(repr, names))}. Rename the tier, or fit another policy: nearfar calibrate."
            )
        last = len(names) - 1
        choice = self._cascade.router or self._cascade.bandit
        return Cascade(
            tuple(self._tier(tier, policy, is_last=i == last) for i, tier in enumerate(self._cascade.tiers)),
            self._name,
            commit=self._cascade.commit,
            prefix_tokens=self._cascade.prefix_tokens,
            policy=policy.label if policy else "uncalibrated",
            chooser=chooser,
            use=choice.use if choice else "order",
        )

    def _tier(self, settings: TierSettings, policy: Policy | None, *, is_last: bool) -> Tier:
        """The tier with its policy's scorer, or the uncalibrated one.

        The last tier's score decides nothing: it is shown where it is free to have, and a far server is not asked for
        log-probabilities that it may not give.
        """
        name, model = settings.name or settings.model, self._models[settings.model]
        probes = self._probes(settings, policy)
        scorer: Scorer | None = None
        threshold, accepts_nothing, abstain_below = settings.threshold, False, settings.abstain_below
        if policy and name in policy.tiers:
            from nearfar.router.live import check_signals

            fitted = policy.tier(name, model=settings.model)
            check_signals(policy, name, probes)
            scorer, threshold, accepts_nothing = fitted.scorer, fitted.threshold, fitted.accepts_nothing
            abstain_below = fitted.abstain_below if abstain_below is None else abstain_below
        elif not is_last or model.card.placement == "near":
            scorer = self._default_scorer(settings)
        if settings.error_cases is not None:
            from nearfar.models.error_cases import WithErrorCases

            model = WithErrorCases(model, self._error_cases(settings.error_cases), k=settings.num_error_cases)
        return Tier(
            model,
            name=name,
            scorer=scorer,
            threshold=threshold,
            accepts_nothing=accepts_nothing,
            wants_draft=settings.draft,
            deadline_s=settings.deadline_s,
            probes=probes,
            abstain_below=abstain_below,
            guard=self._guard(name, policy),
        )

    def _error_cases(self, where: Path | Literal["told"]) -> ErrorCases:
        if where == "told":
            return SqliteErrorCases(self._store, self._find_embedder(), self._name)
        from nearfar.retrieval.listed_errors import ListedErrors

        return ListedErrors.load(where, self._find_embedder())

    def _default_scorer(self, settings: TierSettings) -> Scorer:
        if settings.signals:
            from nearfar.router.live import default_scorer

            return default_scorer(settings.signals)
        if isinstance(self._settings.models.get(settings.model), PythonSettings):
            return StatedProbability("confidence")
        return MeanProbability()

    def _guard(self, tier: str, policy: Policy | None) -> Watch | None:
        settings = self._cascade.monitor
        label = policy.label if policy else "uncalibrated"
        for each in self._learning.monitors if settings else ():
            if (each.cascade, each.tier, each.policy) == (self._name, tier, label):
                return Watch(each, self._learning, defers=settings is not None and settings.on_alarm == "defer")
        return None

    def _probes(self, settings: TierSettings, policy: Policy | None) -> tuple[Probe, ...]:
        """What the tier finds out beyond its answer: as the config says, and what its policy reads for nothing."""
        names: list[str] = list(settings.signals)
        fitted = policy.tiers.get(settings.name or settings.model) if policy else None
        free = ("span_", "choice_", "answer_", "query_")
        if not names and not (fitted and any(each.startswith(free) for each in fitted.signals)):
            return ()
        from nearfar.router.free_probes import SimilarQueries
        from nearfar.router.live import free_names, probes, same_by
        from nearfar.router.sampled_signals import Samples

        if fitted is not None:
            names += free_names(fitted)
        judge = self._models[settings.judge or settings.model]
        similar = None
        if "similar_queries" in names and self._cascade.labelled_queries is not None:
            similar = SimilarQueries.load(self._cascade.labelled_queries, self._find_embedder())
        return probes(
            names,
            samples=Samples(
                settings.samples,
                temperature=settings.sample_temperature,
                same=same_by(settings.same_by, embedder=self._find_embedder, judge=judge),
            ),
            similar=similar,
            router=self._router,
        )

    def _chooser(self) -> Chooser | None:
        if self._cascade.bandit is not None:
            from nearfar.router.choosing import BanditChoice

            label = cascade_bandit(self._name, self._cascade).label
            return BanditChoice(next(each for each in self._learning.bandits if each.label == label), self._learning)
        settings = self._cascade.router
        if settings is None:
            return None
        from nearfar.router.choosing import PredictiveChoice
        from nearfar.router.live import check_pair, load_router

        self._router, label, weak, strong = load_router(settings.file, embedder=self._find_embedder)
        names = self._tier_names
        weak_tier, strong_tier = settings.weak or names[0], settings.strong or names[-1]
        for role, fitted, tier in (("weak", weak, weak_tier), ("strong", strong, strong_tier)):
            check_pair(label, role, fitted, self._known_as(self._cascade.tiers[names.index(tier)].model), tier)
        return PredictiveChoice(
            self._router,
            label=label,
            weak=weak_tier,
            strong=strong_tier,
            threshold=settings.threshold,
            explore=settings.explore,
        )

    def _known_as(self, model: str) -> set[str]:
        """The model's name in the config, and its name at its provider or in its table."""
        named = getattr(self._settings.models.get(model), "model", None)
        return {model, named} if isinstance(named, str) else {model}

    def _find_embedder(self) -> Embedder:
        from nearfar.retrieval.embedders import find_embedder

        if self._embedder is None:
            self._embedder = find_embedder(self._cascade.embedder)
        return self._embedder
