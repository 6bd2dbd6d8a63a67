"""Signals at a stated price: from samples of the same query, from one more decode step, from a stated confidence.

A probe makes calls beyond the answer. Every call goes through a `Meter`, which keeps to what is left of the query's
budget and adds up what was spent; a probe that cannot be paid for, fails, or has no time leaves its signals out and
says why, and the answer stands.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from nearfar.errors import BudgetExceeded, ConfigError, NearfarError, RequestError, UpstreamError
from nearfar.types import Answer, ChatModel, Query, SignalCost, Usage

from .equivalence import Equivalence, SameAnswer
from .planning import within_budget
from .self_reports import label_share, p_true_query, read_stated, self_check_query, stated_confidence_query
from .semantic_entropy import SAMPLE_SIGNALS, sample_signals

T = TypeVar("T")

#: Of the samples. Wang et al. 2023 draw at 0.5 to 0.7; Farquhar et al. 2024 at 1.
SAMPLE_TEMPERATURE = 0.7
NUM_SAMPLES = 5


class Meter:
    """Makes one probe's calls, inside a budget, and adds up what they took.

    Args:
        left_usd: what may be spent; None: no limit.
        privacy: of the query that the calls are about; "near" keeps them all on this machine.

    Attributes:
        sent: what went to whom, in order.
    """

    def __init__(self, left_usd: float | None = None, *, privacy: Literal["any", "near"] = "any") -> None:
        self._left_usd = left_usd
        self._privacy = privacy
        self._reserved_usd = 0.0
        self._started = time.perf_counter()
        self._cost_usd: float | None = 0.0
        self._is_estimated = False
        self._usage: Usage | None = None
        self.sent: list[tuple[ChatModel, Query]] = []

    @property
    def spent_usd(self) -> float | None:
        """What the calls cost, those under way at most; None: unknown."""
        return None if self._cost_usd is None else self._cost_usd + self._reserved_usd

    def require(self, model: ChatModel, query: Query, times: int) -> None:
        """Refuses to begin what cannot be finished: calls of no use unless all are made.

        Raises:
            BudgetExceeded: what is left does not pay for `times` such calls.
        """
        if self._left_usd is None:
            return
        bound = model.card.cost_bound_usd(query)
        if bound is None or times * bound * (1 + 1e-9) > self._left_usd - (self.spent_usd or 0.0):
            needed = "an unknown sum" if bound is None else f"up to ${times * bound:.6f}"
            raise BudgetExceeded(f"budget: {times} calls of {model.card.name!r} cost {needed}")

    async def ask(self, model: ChatModel, query: Query) -> Answer:
        """The model's answer.

        Raises:
            BudgetExceeded: what is left does not pay for it; nothing was sent.
            RequestError: the query may not leave this machine; else as the model's.
            UpstreamError: as the model's.
        """
        if self._privacy == "near" and model.card.placement == "far":
            raise RequestError(f"the query may not leave this machine, and {model.card.name!r} is far", param="privacy")
        if self._left_usd is not None:
            left = self._left_usd - (self.spent_usd or 0.0)
            paid = "what was spent is unknown" if self.spent_usd is None else within_budget(query, model.card, left)
            if isinstance(paid, str):
                raise BudgetExceeded(f"budget: {paid}")
            query = paid
        bound = model.card.cost_bound_usd(query) or 0.0
        self._reserved_usd += bound
        self.sent.append((model, query))
        try:
            answer = await model.complete(query)
        except UpstreamError as exc:
            self._settle(bound, model.card.cost_bound_usd(query) if exc.may_have_cost else 0.0, exc.may_have_cost)
            if not exc.was_sent:
                self.sent.remove((model, query))
            raise
        except (RequestError, BudgetExceeded):
            self._settle(bound, 0.0, False)
            self.sent.remove((model, query))
            raise
        except asyncio.CancelledError:
            self._settle(bound, model.card.cost_bound_usd(query), True)
            raise
        cost, is_estimated = answer.cost_usd, answer.is_cost_estimated
        if cost is None and answer.usage is None:
            cost, is_estimated = model.card.cost_bound_usd(query), True
        self._settle(bound, cost, is_estimated)
        if answer.usage is not None:
            self._usage = answer.usage if self._usage is None else self._usage + answer.usage
        if answer.is_cached:
            self.sent.remove((model, query))
        return answer

    def cost(self, name: str, missing: str | None = None) -> SignalCost:
        """What was spent so far, for the decision's record."""
        return SignalCost(
            name,
            len(self.sent),
            self._usage,
            self._cost_usd,
            self._is_estimated,
            time.perf_counter() - self._started,
            missing,
        )

    def _settle(self, bound: float, cost: float | None, is_estimated: bool) -> None:
        self._reserved_usd -= bound
        self._cost_usd = None if cost is None or self._cost_usd is None else self._cost_usd + cost
        self._is_estimated = self._is_estimated or (is_estimated and cost != 0)


class Probe(Protocol):
    """Finds out more about an answer by asking again."""

    @property
    def name(self) -> str:
        """What decision records call its cost."""
        ...

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it may give."""
        ...

    @property
    def num_calls(self) -> int:
        """The most calls that it makes for one answer."""
        ...

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """The signals of the model's answer to the query; those that cannot be known are absent.

        Raises:
            BudgetExceeded, RequestError, UpstreamError: a call could not be made or failed.
        """
        ...


class Samples:
    """Draws the answer anew some times and compares: self-consistency and semantic entropy.

    The samples are drawn at once, at a temperature of their own; the rest of the query is the same.

    Args:
        num_samples: how many, at least two.
        temperature: of the samples, above 0.
        same: which answers say the same; by their final answer unless told.

    Raises:
        ConfigError: too few samples, or no temperature.
    """

    name = "samples"

    def __init__(
        self,
        num_samples: int = NUM_SAMPLES,
        *,
        temperature: float = SAMPLE_TEMPERATURE,
        same: Equivalence | None = None,
    ) -> None:
        if num_samples < 2:
            raise ConfigError(f"Agreement needs two samples or more, not {num_samples!r}. Set samples.")
        if not 0 < temperature <= 2:
            raise ConfigError(f"Samples need a temperature in (0, 2], not {temperature!r}. Set sample_temperature.")
        self._num_samples = num_samples
        self._temperature = temperature
        self._same = same or SameAnswer()

    @property
    def signals(self) -> tuple[str, ...]:
        """See `semantic_entropy.sample_signals`."""
        return SAMPLE_SIGNALS

    @property
    def num_calls(self) -> int:
        """The samples, and the comparisons where every answer says something else."""
        pairs = self._num_samples * (self._num_samples + 1) // 2
        return self._num_samples + pairs * self._same.calls_per_pair

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """The samples' signals; see `semantic_entropy.sample_signals`."""
        knows_logprobs = model.card.supports_logprobs
        sampling = replace(
            query.sampling,
            temperature=self._temperature,
            logprobs=knows_logprobs,
            top_logprobs=None,
            max_tokens=model.card.output_bound(query),
        )
        seed = query.sampling.seed
        asked = [
            replace(query, sampling=sampling if seed is None else replace(sampling, seed=seed + 1 + i))
            for i in range(self._num_samples)
        ]
        meter.require(model, asked[0], self._num_samples)
        drawn = await _together([meter.ask(model, each) for each in asked])
        texts = [_said(answer), *map(_said, drawn)]
        groups = await self._same.groups(query.text, texts, meter.ask)
        means = [sum(token.logprob for token in each.logprobs) / len(each.logprobs) for each in drawn if each.logprobs]
        return sample_signals(groups, means if len(means) == len(drawn) else None)


class PTrue:
    """Asks whether the proposed answer is true: the probability of the letter that says so, in [0, 1].

    Source: Kadavath et al. 2022, arXiv:2207.05221, section 3.
    """

    name = "p_true"
    signals = ("p_true",)
    num_calls = 1

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """`p_true`, absent where neither letter is among the likely tokens."""
        _require_logprobs(model, self.name)
        _require_text(answer)
        share = label_share(await meter.ask(model, p_true_query(query.text, answer.text)), "A", "B")
        return {} if share is None else {"p_true": share}


class SelfCheck:
    """Asks in the same conversation whether the answer is correct: the share of Yes in one token, in [0, 1]."""

    name = "self_check"
    signals = ("self_check",)
    num_calls = 1

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """`self_check`, absent where neither word is among the likely tokens."""
        _require_logprobs(model, self.name)
        _require_text(answer)
        share = label_share(await meter.ask(model, self_check_query(query, answer)), "Yes", "No")
        return {} if share is None else {"self_check": share}


class StatedConfidence:
    """Asks for a confidence in words: what the model says, in [0, 1]. It needs no log-probabilities.

    Source: Lin, Hilton and Evans 2022, arXiv:2205.14334; Tian et al. 2023, arXiv:2305.14975.
    """

    name = "stated_confidence"
    signals = ("stated_confidence",)
    num_calls = 1

    async def read(self, query: Query, answer: Answer, model: ChatModel, meter: Meter) -> dict[str, float]:
        """`stated_confidence`, absent where the reply is no number."""
        _require_text(answer)
        said = await meter.ask(model, stated_confidence_query(query, answer))
        stated = read_stated(said.text)
        return {} if stated is None else {"stated_confidence": stated}


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probes of one answer found, and what those took that make calls."""

    signals: dict[str, float] = field(default_factory=dict)
    costs: tuple[SignalCost, ...] = ()
    sent: tuple[tuple[ChatModel, Query], ...] = ()

    @property
    def cost_usd(self) -> float | None:
        """What they cost together; None: unknown."""
        return _total(cost.cost_usd for cost in self.costs)


async def probe_all(
    probes: Sequence[Probe],
    query: Query,
    answer: Answer,
    model: ChatModel,
    *,
    left_usd: float | None = None,
    deadline: float | None = None,
) -> Probed:
    """Runs the probes one after another, each inside what the ones before have left of money and time.

    Args:
        query: as the model was asked it.
        answer: what it said.
        left_usd: what may be spent; None: no limit.
        deadline: when all must be done, as `time.perf_counter` counts; None: no limit.
    """
    signals: dict[str, float] = {}
    costs: list[SignalCost] = []
    sent: list[tuple[ChatModel, Query]] = []
    for probe in probes:
        meter = Meter(left_usd, privacy=query.privacy)
        missing = None
        left_s = None if deadline is None else deadline - time.perf_counter()
        try:
            if left_s is not None and left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                found = await probe.read(query, answer, model, meter)
            signals |= found
            if not found:
                missing = "the reply does not tell"
        except TimeoutError:
            missing = "time: none was left"
        except (BudgetExceeded, RequestError, UpstreamError) as exc:
            missing = str(exc)
        if probe.num_calls:
            costs.append(meter.cost(probe.name, missing))
        sent += meter.sent
        if left_usd is not None:
            spent = meter.spent_usd
            left_usd = 0.0 if spent is None else left_usd - spent
    return Probed(signals, tuple(costs), tuple(sent))


async def _together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The calls' results in order, all run at once; the first failure cancels the others."""

    async def run(call: Awaitable[T]) -> T:
        return await call

    try:
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(run(call)) for call in calls]
    except ExceptionGroup as group:
        known = next((exc for exc in group.exceptions if isinstance(exc, NearfarError)), None)
        raise known or group.exceptions[0] from None
    return [task.result() for task in made]


def _require_logprobs(model: ChatModel, name: str) -> None:
    if not model.card.supports_logprobs:
        raise RequestError(f"{model.card.name!r} gives no log-probabilities, which {name} reads", param="logprobs")


def _require_text(answer: Answer) -> None:
    if answer.tool_calls:
        raise RequestError("the answer is a tool call, which cannot be asked about", param="tools")


def _said(answer: Answer) -> str:
    """What the answer says, its tool calls as JSON."""
    if not answer.tool_calls:
        return answer.text
    return json.dumps([[call.name, _arguments(call.arguments)] for call in answer.tool_calls])


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _total(costs: Iterable[float | None]) -> float | None:
    total = 0.0
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total
