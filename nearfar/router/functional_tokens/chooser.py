"""Chooses a worker in one decode step of a near model, calibrated, and rewrites the query for it where asked to."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nearfar.errors import ConfigError, NearfarError
from nearfar.router.cascade import Onward
from nearfar.types import (
    Answer,
    ChatModel,
    Message,
    Query,
    ResponseFormat,
    SamplingOptions,
    SignalCost,
    estimate_tokens,
)

from .distribution import Distribution, LabelCalibration, LabelLogprobs, contextual, distribution, read
from .graph import Worker, WorkerGraph, free_labels
from .policy import TokenPolicy
from .prompts import CONTENT_FREE, Style, choice_prompt, hop_prompt, rewrite_prompt

#: The most alternatives that an OpenAI wire shows. A model that can be held to a choice shows the choices alone.
_SHOWN = 20

#: A rewritten query may be so many times as long as the query, and some tokens more.
_REWRITE_FACTOR, _REWRITE_TOKENS = 2, 64


@dataclass(frozen=True, slots=True)
class Choice:
    """Who should take a query, how likely each worker was, and what finding out took."""

    worker: str
    probabilities: Mapping[str, float]  # by worker; the least that it is where some are unknown
    reason: str  # in words
    cost: SignalCost
    unknown: tuple[str, ...] = ()  # workers whose labels the server did not show

    @property
    def probability(self) -> float:
        """The chosen worker's."""
        return self.probabilities.get(self.worker, 0.0)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The query in the words of a worker's trade; the query itself where the model made nothing of it."""

    text: str
    cost: SignalCost


@dataclass(slots=True)
class _State:
    """What was found out about the choosing model at the first query."""

    is_checked: bool = False
    calibration: LabelCalibration = field(default_factory=LabelCalibration)


class FunctionalTokens:
    """A graph of workers and the near model that names one of them by a token.

    Before the first choice the labels are checked to be one token each, and what the model prefers without reading
    anything is measured (contextual calibration), unless a policy was fitted on labelled queries.

    Args:
        model: who chooses; it must give log-probabilities.
        graph: the workers.
        name: the router's.
        style: of the prompt; "trained" for a model with an adapter that was trained on it.
        policy: a calibration fitted on labelled queries; None: contextual, or none for a trained model.
        abstain_below: a probability of the likeliest worker below which the general one is asked.

    Raises:
        ConfigError: the model gives no log-probabilities, the policy is for others, or a number is out of range.
    """

    def __init__(
        self,
        model: ChatModel,
        graph: WorkerGraph,
        *,
        name: str = "router",
        style: Style = "described",
        policy: TokenPolicy | None = None,
        abstain_below: float = 0.0,
    ) -> None:
        if not model.card.supports_logprobs:
            raise ConfigError(
                f"{model.card.name!r} gives no log-probabilities, so it cannot choose for {name!r}; name another model."
            )
        if not 0 <= abstain_below <= 1:
            raise ConfigError(f"abstain_below of {name!r} must be in [0, 1], not {abstain_below!r}.")
        self.model = model
        self.graph = graph
        self.name = name
        self.style: Style = style
        self.abstain_below = abstain_below
        self.policy = policy
        self._labels = tuple(worker.label for worker in graph.workers)
        self._fitted = policy.calibration(graph, model=model.card.name, style=style) if policy else None
        self._state = _State()

    @property
    def label(self) -> str:
        """Which router, and which version of its calibration, as decisions cite it."""
        return f"{self.name} {self.policy.label if self.policy else 'uncalibrated'}"

    async def check(self) -> None:
        """Refuses labels that are not one token each, and measures what the model prefers without content. Once.

        Raises:
            ConfigError: a label is not one token of the choosing model's tokenizer.
            UpstreamError: the model failed.
        """
        if self._state.is_checked:
            return
        is_contextual = self._fitted is None and self.style == "described"
        inputs = CONTENT_FREE if is_contextual else CONTENT_FREE[:1]
        found = [(await self.logprobs(text))[0] for text in inputs]
        if self.model.card.supports_choice and len(self._labels) <= _SHOWN and found[0].unknown:
            raise self._not_one_token(found[0].unknown[0])
        if not self.model.card.supports_choice:
            for label in found[0].unknown:
                await self._check_alone(label)
        calibration = contextual(found, self._labels) if is_contextual else self._fitted
        self._state = _State(True, calibration or LabelCalibration())

    async def choose(self, text: str, *, among: Collection[str] | None = None) -> Choice:
        """The worker for `text`; the general one where the model failed, or is not sure enough.

        Args:
            text: the query's.
            among: workers that may take it; None: all. The distribution is over these.

        Raises:
            ConfigError: a label is not one token; see `check`.
        """
        started = time.perf_counter()
        try:
            await self.check()
            found, answer = await self.logprobs(text)
        except ConfigError:
            raise
        except NearfarError as exc:
            cost = SignalCost("choice", 1, None, None, latency_s=time.perf_counter() - started, missing=str(exc))
            return Choice(self.graph.general, {}, f"the choice failed: {exc}", cost)
        allowed = [worker for worker in self.graph.workers if among is None or worker.name in among]
        shares = distribution(found, self._state.calibration).among([worker.label for worker in allowed])
        cost = _cost("choice", answer, time.perf_counter() - started)
        return self._decided(shares, allowed, cost)

    async def go_on(self, text: str, answer: str, worker: str, *, among: Collection[str]) -> Onward:
        """The successor that should go on with the worker's answer.

        The answer stands unless going on is likelier than not, and where the model failed.
        """
        successors = [each for each in self.graph.successors(worker) if each.name in among]
        if not successors:
            return Onward(None, f"{worker!r} hands on to nobody who may take it", None)
        stop = free_labels([each.label for each in successors], 1)[0]
        labels = [*(each.label for each in successors), stop]
        started = time.perf_counter()
        try:
            found, said = await self._ask(hop_prompt(successors, stop, text, answer), labels)
        except NearfarError as exc:
            spent = time.perf_counter() - started
            cost = SignalCost("hop", 1, None, None, latency_s=spent, missing=str(exc))
            return Onward(None, f"asking who goes on failed: {exc}", cost)
        cost = _cost("hop", said, time.perf_counter() - started)
        shares = distribution(found)
        stays = shares.probabilities.get(stop, shares.at_most.get(stop, 1.0))
        best = max(successors, key=lambda each: shares.probabilities.get(each.label, 0.0))
        if stays >= 0.5 or shares.doubt is not None or shares.best is None:
            return Onward(None, f"the answer is complete with probability {stays:.3f}", cost)
        p = shares.probabilities.get(best.label, 0.0)
        return Onward(best.name, f"handed on to {best.name!r}, probability {p:.3f}", cost)

    async def rewrite(self, text: str, worker: str) -> Rewrite:
        """`text` in the words of the worker's trade."""
        started = time.perf_counter()
        bound = _REWRITE_FACTOR * estimate_tokens(text) + _REWRITE_TOKENS
        sampling = SamplingOptions(max_tokens=bound, temperature=0.0)
        try:
            answer = await self.model.complete(
                Query(rewrite_prompt(self.graph.by_name[worker], text), sampling=sampling)
            )
        except NearfarError as exc:
            spent = time.perf_counter() - started
            return Rewrite(text, SignalCost("rewrite", 1, None, None, latency_s=spent, missing=str(exc)))
        cost = _cost("rewrite", answer, time.perf_counter() - started)
        written = answer.text.strip()
        if not written or answer.finish_reason != "stop":
            why = "the model wrote nothing" if not written else "the rewritten query was cut off"
            return Rewrite(text, replace(cost, missing=why))
        return Rewrite(written, cost)

    async def logprobs(self, text: str) -> tuple[LabelLogprobs, Answer]:
        """What the model says of every label for `text`, uncorrected, and the answer that it was read off.

        Raises:
            UpstreamError: the model failed.
        """
        return await self._ask(choice_prompt(self.graph.workers, text, self.style), self._labels)

    async def _ask(self, messages: tuple[Message, ...], labels: Sequence[str]) -> tuple[LabelLogprobs, Answer]:
        form = ResponseFormat("choice", choices=tuple(labels)) if self.model.card.supports_choice else None
        sampling = SamplingOptions(max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=_SHOWN)
        answer = await self.model.complete(Query(messages, response_format=form, sampling=sampling))
        if not answer.logprobs:
            return LabelLogprobs({}, tuple(labels), 0.0), answer
        return read(answer.logprobs[0], labels), answer

    def _decided(self, shares: Distribution, allowed: Sequence[Worker], cost: SignalCost) -> Choice:
        by_label = {worker.label: worker.name for worker in allowed}
        probabilities = {by_label[label]: p for label, p in shares.probabilities.items()}
        unknown = tuple(by_label[label] for label in shares.at_most)
        best = shares.best
        general = self.graph.general
        if best is None:
            return Choice(general, probabilities, f"no label was shown: to {general!r}", cost, unknown)
        if shares.doubt is not None:
            reason = f"{by_label[shares.doubt]!r} was not shown and may be likelier: to {general!r}"
            return Choice(general, probabilities, reason, cost, unknown)
        p = shares.probabilities[best]
        if p < self.abstain_below:
            reason = f"{by_label[best]!r} has probability {p:.3f} < {self.abstain_below:.3f}: to {general!r}"
            return Choice(general, probabilities, reason, cost, unknown)
        return Choice(by_label[best], probabilities, f"likeliest, probability {p:.3f}", cost, unknown)

    async def _check_alone(self, label: str) -> None:
        """Refuses a label of which the model, told to say it, says a part: it takes more than one token."""
        query = Query(
            f"Write exactly this and nothing else: {label}",
            sampling=SamplingOptions(max_tokens=1, temperature=0.0),
        )
        said = (await self.model.complete(query)).text
        if said and said != label and label.startswith(said):
            raise self._not_one_token(label)

    def _not_one_token(self, label: str) -> ConfigError:
        worker = next(each.name for each in self.graph.workers if each.label == label)
        return ConfigError(
            f"The label {label!r} of worker {worker!r} is not one token of {self.model.card.name!r}; give it another."
        )


def _cost(name: str, answer: Answer, latency_s: float) -> SignalCost:
    return SignalCost(name, 1, answer.usage, answer.cost_usd, answer.is_cost_estimated, latency_s)
