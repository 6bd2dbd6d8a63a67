"""Cascades and models by name: the one object that every door asks."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from nearfar.errors import DataError, RequestError, UnknownModel, UnsupportedOption
from nearfar.types import (
    Answer,
    ChatModel,
    Decision,
    DecisionLog,
    Library,
    ModelCard,
    Query,
    StreamEnd,
    StreamEvent,
)

from .asked_signals import asked_probes
from .cascade import Cascade, Tier
from .learning import Learning, LiveMonitor
from .outcomes import Outcome, OutcomeLog
from .planning import Plan, check, check_text, plan
from .recall import Recall, pieces
from .run import Run
from .scorers import MeanProbability

_logger = logging.getLogger(__name__)


class Router:
    """Cascades and models by name, and the log of what they did.

    Args:
        cascades: what a query may name; "auto" is what it names unless told.
        models: what a query may name besides; each is a cascade of one.
        log: where decisions go; None: nowhere.
        outcomes: where outcomes go; None: nowhere.
        learning: what learns from them; None: nothing.
        recall: a memory in front of the cascades; None: there is none.
        library: collections that a query may be answered from; None: there are none.

    Attributes:
        log_failure: why the last decision could not be written; None: it was.
    """

    def __init__(
        self,
        cascades: Mapping[str, Cascade],
        models: Mapping[str, ChatModel],
        *,
        log: DecisionLog | None = None,
        outcomes: OutcomeLog | None = None,
        learning: Learning | None = None,
        recall: Recall | None = None,
        library: Library | None = None,
    ) -> None:
        self._models = dict(models)
        self._cascades = {name: _alone(name, model, cascades) for name, model in models.items()} | dict(cascades)
        self._kinds: dict[str, Literal["cascade", "model"]] = {
            name: "cascade" if name in cascades else "model" for name in self._cascades
        }
        self._log = log
        self._outcomes = outcomes
        self._learning = learning
        self._recall = recall
        self._library = library
        self.log_failure: str | None = None

    def targets(self) -> Mapping[str, Literal["cascade", "model"]]:
        """What a query may name."""
        return self._kinds

    def cards(self) -> Mapping[str, ModelCard]:
        """What each model is and can do."""
        return {name: model.card for name, model in self._models.items()}

    def unavailable(self) -> Mapping[str, str]:
        """The models that can take no query just now, with the reason."""
        reasons = ((name, model.unavailable()) for name, model in self._models.items())
        return {name: reason for name, reason in reasons if reason}

    def plan(self, query: Query) -> Plan:
        """Which tiers would be tried, and why the others would not; no call is made.

        Raises:
            RequestError: no model could take such a query, or it names no model of ours.
        """
        check(query)
        asked_probes(query.signals)
        cascade = self._cascade(query)
        found = plan(query, cascade)
        if cascade.chooser is None or len(found.eligible) < 2:
            return found
        names = {candidate.tier for candidate in found.eligible}
        routing = cascade.chooser.choose(query, [tier for tier in cascade.tiers if tier.name in names])
        return replace(found, routing=routing)

    async def preview(self, query: Query) -> Plan:
        """The plan, and the choice where a model is asked for it; no tier is.

        Raises:
            RequestError: no model could take such a query, or it names no model of ours.
        """
        found, guide = self.plan(query), self._cascade(query).guide
        if guide is None or not found.eligible:
            return found
        names = {candidate.tier for candidate in found.eligible}
        tiers = [tier for tier in self._cascade(query).tiers if tier.name in names]
        return replace(found, routing=await guide.choose(query, tiers))

    async def answer(self, query: Query, *, door: str = "python") -> Answer:
        """The answer, with its decision.

        Raises:
            RequestError: the query itself is not acceptable.
            UpstreamError: every model that was asked failed; `decision_id` names the record.
        """
        if query.docs is not None:
            query, passages = await self._grounded(query)
            grounded = await self.answer(query, door=door)
            return replace(grounded, extra={**grounded.extra, "passages": passages})
        run = self._run(query, door)
        cascade = self._remembering(query)
        if self._recall is None or cascade is None:
            return await run.answer()
        answer = await self._recall.answer(query, cascade, door=door, journal=self)
        if answer is None:
            answer = await run.answer()
            await self._recall.remember(query, cascade, answer)
        return answer

    def stream(self, query: Query, *, door: str = "python") -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece: `StreamStart` once a tier is committed to, deltas, `StreamEnd`.

        A refused query's stream is a lone `StreamEnd`. Raises as `answer` does.
        """
        if query.docs is not None:
            return self._from_documents(query, door)
        run = self._run(query, door)
        cascade = self._remembering(query)
        if self._recall is None or cascade is None:
            return run.events()
        return self._recalled(self._recall, query, cascade, run, door)

    async def _grounded(self, query: Query) -> tuple[Query, Sequence[Mapping[str, Any]]]:
        """The query with the passages that it asks for, and the passages."""
        if self._library is None:
            raise UnsupportedOption("There are no documents here to answer from.", param="docs")
        return await self._library.ground(query)

    async def _from_documents(self, query: Query, door: str) -> AsyncGenerator[StreamEvent, None]:
        query, passages = await self._grounded(query)
        async with aclosing(self.stream(query, door=door)) as events:
            async for event in events:
                if isinstance(event, StreamEnd):
                    answer = event.answer
                    event = StreamEnd(replace(answer, extra={**answer.extra, "passages": passages}))
                yield event

    async def tell(self, decision_id: str, value: float, *, source: str = "user") -> Outcome:
        """Says how good a decision's answer turned out to be; bandits and monitors hear of it.

        Raises:
            RequestError: no such decision, one that gave no answer, a value that is not in [0, 1], or there is no log.
            DataError: the store cannot be written.
        """
        if self._outcomes is None:
            raise RequestError("No decisions are kept here, so that none can have an outcome.", param="decision_id")
        return await self._outcomes.record(decision_id, value, source=source)

    async def monitors(self) -> list[LiveMonitor]:
        """What watches the tiers, each with its alarm if it has raised one, in whichever process."""
        if self._learning is None or not self._learning.monitors:
            return []
        try:
            await self._learning.refresh()
        except DataError as exc:
            _logger.error("what the monitors know could not be read: %s", exc)
        return self._learning.monitors

    async def aclose(self) -> None:
        """Writes what was seen of the answers, and closes the models."""
        if self._learning is not None:
            await self._learning.aclose()
        for model in self._models.values():
            await model.aclose()

    def _remembering(self, query: Query) -> Cascade | None:
        """The cascade that a memory may stand in front of; None: the query names a model, and wants that one."""
        if self._recall is None or self._kinds[query.model] == "model":
            return None
        return self._cascade(query)

    async def _recalled(
        self, recall: Recall, query: Query, cascade: Cascade, run: Run, door: str
    ) -> AsyncGenerator[StreamEvent, None]:
        answer = await recall.answer(query, cascade, door=door, journal=self)
        if answer is not None:
            for event in pieces(answer):
                yield event
            return
        async with aclosing(run.events()) as events:
            async for event in events:
                if isinstance(event, StreamEnd):
                    await recall.remember(query, cascade, event.answer)
                yield event

    def _run(self, query: Query, door: str) -> Run:
        check(query)
        if door != "http":
            check_text(query)
        cascade = self._cascade(query)
        is_named = self._kinds[query.model] == "model"
        return Run(cascade, query, door=door, is_named=is_named, journal=self)

    def _cascade(self, query: Query) -> Cascade:
        cascade = self._cascades.get(query.model)
        if cascade is None:
            known = ", ".join(sorted(self._cascades))
            raise UnknownModel(f"There is no model {query.model!r}. There are: {known}.", model=query.model)
        if query.quality is None:
            return cascade
        variant = cascade.variants.get(query.quality)
        if variant is None:
            known = ", ".join(sorted(cascade.variants)) or "none"
            raise RequestError(
                f"Cascade {cascade.name!r} has no policy {query.quality!r}; it has: {known}.", param="quality"
            )
        return variant

    def record(self, decision: Decision) -> None:
        """Queues the decision; a log that cannot take it is reported, and the answer goes on."""
        if self._log is None:
            return
        try:
            self._log.submit(decision)
        except DataError as exc:
            self._report(exc)

    async def flush(self) -> None:
        """Waits until the decisions are written."""
        if self._log is None:
            return
        try:
            await self._log.flush()
            self.log_failure = None
        except DataError as exc:
            self._report(exc)

    def _report(self, exc: DataError) -> None:
        self.log_failure = str(exc)
        _logger.error("a decision was not written: %s", exc)


def _alone(name: str, model: ChatModel, cascades: Mapping[str, Cascade]) -> Cascade:
    """The model as a cascade of one, scored as it is where it is a tier."""
    for cascade in cascades.values():
        for tier in cascade.tiers:
            if tier.model is model and tier.scorer is not None:
                alone = Tier(model, name=name, scorer=tier.scorer, threshold=tier.threshold, probes=tier.probes)
                return Cascade((alone,), name=name, policy=cascade.policy)
    is_scored = model.card.placement == "near" and model.card.supports_logprobs
    return Cascade((Tier(model, name=name, scorer=MeanProbability() if is_scored else None),), name=name)
