"""Answers a file of records through a router: in order, in bounded memory, inside a budget, resumable after any kill.

Every finished record is appended to a journal beside the output, `OUT.partial`, before it is counted; the output is
written from the journal once all records are done. Memory grows by 9 bytes a record. What the journal holds survives
`kill -9`; a power loss may cost its last seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import msgspec

from nearfar.errors import ConfigError, NearfarError, RequestError, UpstreamError
from nearfar.router.planning import Plan
from nearfar.types import Answer, Query

from .journal import Header, Journal
from .records import FIELDS, Input, Parsed, is_csv
from .results import Outcome, Progress, Result

__all__ = ["DEFAULT_CONCURRENCY", "FIELDS", "BatchReport", "Progress", "run_batch"]

#: What `retry_failed` asks again; an invalid record stays invalid until the input changes.
_RETRIED = frozenset({"refused", "failed"})

#: Records in flight unless told: enough to hide the latency of far models, few enough for an embedded one.
DEFAULT_CONCURRENCY = 8


class Answerer(Protocol):
    """What a batch needs of a router."""

    async def answer(self, query: Query, *, door: str = ...) -> Answer: ...

    def plan(self, query: Query) -> Plan: ...


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a run of a batch came to."""

    total: int
    counts: Mapping[str, int]  # by outcome
    resumed: int
    cost_usd: float
    has_unknown_cost: bool
    elapsed_s: float
    stopped_by: Literal["budget", "interrupt"] | None  # None: every record has its result, and the output is written
    output: Path
    journal: Path | None  # None: it is not needed any more

    @property
    def done(self) -> int:
        """Records with a result."""
        return sum(self.counts.values())

    @property
    def num_bad(self) -> int:
        """Records without an answer: refused, failed or invalid."""
        return self.counts["refused"] + self.counts["failed"] + self.counts["invalid"]


async def run_batch(
    router: Answerer,
    source: str | Path,
    target: str | Path,
    *,
    template: Query | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    budget_usd: float | None = None,
    prompt_field: str = "prompt",
    keep: Sequence[str] = (),
    has_signals: bool = False,
    retry_failed: bool = False,
    force: bool = False,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> BatchReport:
    """Asks the router every record of `source` and writes the results to `target`, in the input's order.

    Run again after a kill, an interrupt or an empty budget, it goes on where it was; no finished record is asked twice.

    Args:
        source: JSONL or CSV with a `prompt` or `messages` each, and any of `FIELDS`.
        target: JSONL or CSV.
        template: options of the records that do not set their own; its messages go before each record's.
        concurrency: records in flight.
        budget_usd: the most that all runs together may cost; the batch stops before the record that could pass it.
        prompt_field: the field that holds the prompt.
        keep: fields that go into the result as they are.
        has_signals: results carry the signals of the first tier that was asked, which `nearfar calibrate` fits to.
        retry_failed: ask the refused and failed records again.
        force: begin anew, whatever an earlier run has left.
        stop: when set, the records in flight are finished and no more are begun.
        on_progress: called after each record.

    Raises:
        ConfigError: arguments that cannot be.
        DataError: the input cannot be read or has changed since the first run, or the output is in the way.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, not {concurrency!r}.")
    if budget_usd is not None and not budget_usd >= 0:
        raise ConfigError(f"budget_usd must be at least 0, not {budget_usd!r}.")
    template = template or Query(())
    records = Input(Path(source), prompt_field=prompt_field, keep=tuple(keep))
    output = Path(target)
    _check_output(output, records.path)
    sha256, total = records.scan()
    options = {**_jsonable(template), "prompt_field": prompt_field, "keep": list(keep), "signals": has_signals}
    header = Header(1, sha256, total, options)
    template = replace(template, wants_signals=template.wants_signals or has_signals)
    with Journal(output, header, force=force) as journal:
        run = _Run(router, records, journal, template, budget_usd, stop or asyncio.Event(), on_progress, has_signals)
        return await run.run(concurrency, retry_failed=retry_failed)


class _Run:
    """One run of one batch."""

    def __init__(
        self,
        router: Answerer,
        records: Input,
        journal: Journal,
        template: Query,
        budget_usd: float | None,
        stop: asyncio.Event,
        on_progress: Callable[[Progress], None] | None,
        has_signals: bool,
    ) -> None:
        self._router = router
        self._records = records
        self._journal = journal
        self._template = template
        self._limit = budget_usd
        self._stop = stop
        self._on_progress = on_progress
        self._has_signals = has_signals
        self._progress = journal.progress
        self._reserved: dict[int, float] = {}
        self._settled = asyncio.Condition()
        self._is_out_of_budget = False

    async def run(self, concurrency: int, *, retry_failed: bool) -> BatchReport:
        journal = self._journal
        if retry_failed:
            journal.forget(_RETRIED)
        self._progress.resumed = self._progress.done
        if self._progress.done < self._progress.total:
            pending = (record for record in self._records if not journal.has(record.index))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, self._progress.total)):
                        group.create_task(self._work(pending))
            except* (NearfarError, OSError) as failures:
                raise _first(failures) from failures
        is_complete = self._progress.done == self._progress.total
        stopped_by: Literal["budget", "interrupt"] | None = None
        if is_complete:
            journal.finish(self._records.keep)
        else:
            stopped_by = "budget" if self._is_out_of_budget else "interrupt"
        done = self._progress
        return BatchReport(
            total=done.total,
            counts=dict(done.counts),
            resumed=done.resumed,
            cost_usd=done.cost_usd,
            has_unknown_cost=done.has_unknown_cost,
            elapsed_s=done.elapsed_s,
            stopped_by=stopped_by,
            output=journal.output,
            journal=journal.path if not is_complete or done.num_bad else None,
        )

    async def _work(self, pending: Iterator[Parsed]) -> None:
        for record in pending:
            if self._stop.is_set() or self._is_out_of_budget:
                return
            result = await self._result(record)
            if result is None:
                return
            self._journal.append(result)
            await self._settle(record.index)
            if self._on_progress:
                self._on_progress(self._progress)
            await asyncio.sleep(0)  # a record that needs no waiting must not keep the others from running

    async def _result(self, record: Parsed) -> Result | None:
        """The record's result; None: the budget does not cover it."""
        result = Result(record.index, record.line, "invalid", record.id, kept=record.kept)
        if record.problem or record.make_query is None:
            result.error = record.problem
            return result
        started = time.perf_counter()
        try:
            query = record.make_query(self._template)
            if self._limit is not None:
                afforded = await self._afford(record.index, query)
                if afforded is None:
                    return None
                query = afforded
            answer = await self._router.answer(query, door="batch")
            _fill(result, answer)
            if self._has_signals and answer.decision and answer.decision.steps:
                result.signals = dict(answer.decision.steps[0].signals)
        except RequestError as exc:
            result.error = f"line {record.line}: {exc}"
            result.decision_id = exc.decision_id
        except NearfarError as exc:
            result.status, result.error, result.decision_id = "failed", str(exc), exc.decision_id
            if not isinstance(exc, UpstreamError) or exc.may_have_cost:
                result.cost_usd = self._reserved.get(record.index)
            else:
                result.cost_usd = 0.0
        if result.cost_usd is None and record.index in self._reserved:
            result.cost_usd = self._reserved[record.index]
        result.latency_s = time.perf_counter() - started if result.latency_s is None else result.latency_s
        return result

    async def _afford(self, index: int, query: Query) -> Query | None:
        """The query with money set aside for it; None: what is left does not cover it."""
        assert self._limit is not None
        own = self._limit if query.budget_usd is None else min(query.budget_usd, self._limit)
        query = replace(query, budget_usd=own)
        bound = sum(candidate.cost_bound_usd or 0.0 for candidate in self._router.plan(query).eligible)
        async with self._settled:
            while self._progress.cost_usd + sum(self._reserved.values()) + bound > self._limit + 1e-12:
                if not self._reserved or self._is_out_of_budget:
                    self._is_out_of_budget = True
                    self._settled.notify_all()
                    return None
                await self._settled.wait()
            if bound:
                self._reserved[index] = bound
                self._journal.reserve(index, bound)
        return replace(query, budget_usd=bound) if bound else query

    async def _settle(self, index: int) -> None:
        if self._reserved.pop(index, None) is not None:
            async with self._settled:
                self._settled.notify_all()


def _fill(result: Result, answer: Answer) -> None:
    decision = answer.decision
    result.status = "answered"
    if decision is not None:
        result.status = cast("Outcome", "failed" if decision.status == "cancelled" else decision.status)
        result.tier, result.score, result.calibrated = decision.tier, decision.score, decision.is_calibrated
        result.decision_id = decision.id
        if decision.status == "refused":
            reasons = "; ".join(f"{c.tier}: {c.reason}" for c in decision.candidates if c.reason)
            result.error = f"No tier may take it: {reasons}."
    result.answer = answer.text if result.status in {"answered", "abstained"} else None
    result.model = answer.model or None
    result.cost_usd = answer.cost_usd if decision is None else decision.cost_usd
    result.latency_s = answer.latency_s if decision is None else decision.latency_s.get("total", answer.latency_s)
    if answer.tool_calls:
        result.tool_calls = [asdict(call) for call in answer.tool_calls]


def _check_output(output: Path, source: Path) -> None:
    is_csv(output)
    if not output.parent.is_dir():
        raise ConfigError(f"There is no folder {str(output.parent)!r} for the results. Make it first.")
    if output.is_dir() or (output.exists() and output.samefile(source)):
        raise ConfigError(
            f"The results cannot go to {str(output)!r}, which is the input or a folder. Name another file."
        )


def _jsonable(template: Query) -> dict[str, Any]:
    """The template's options as plain JSON values, as they come back from the journal."""
    return msgspec.json.decode(msgspec.json.encode(template), type=dict[str, Any])


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    assert isinstance(failure, Exception)
    return failure
