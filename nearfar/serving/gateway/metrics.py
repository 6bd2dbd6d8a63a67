"""Counts and times of what the gateway does, for Prometheus; cheap enough for every request."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nearfar.types import Decision, Status

#: From a cached answer to a slow far model.
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_NONE = "none"


class Metrics:
    """One gateway's metrics, in a registry of their own.

    Args:
        in_flight: how many requests are being answered.

    Attributes:
        registry: everything that `render` shows.
    """

    def __init__(self, in_flight: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._queries = _Queries()
        self.registry.register(self._queries)
        self._errors = CounterMetric(
            "nearfar_http_errors", "Replies that are errors.", ("status", "code"), registry=self.registry
        )
        self._outcomes = CounterMetric("nearfar_outcomes", "Outcomes that were told.", registry=self.registry)
        self._alarms = Gauge(
            "nearfar_alarm",
            "1 where a policy's promise, or the data that it was made for, no longer holds.",
            ("cascade", "tier", "policy", "kind"),
            registry=self.registry,
        )
        Gauge("nearfar_requests_in_flight", "Requests being answered.", registry=self.registry).set_function(in_flight)

    def count(self, target: str, tier: str | None, status: Status, seconds: float) -> None:
        """Counts one query that was decided."""
        self._queries.add(target, tier or _NONE, status, seconds, 0.0)

    def count_decision(self, decision: Decision, seconds: float) -> None:
        """Counts one query that was decided, and its cost."""
        self._queries.add(decision.target, decision.tier or _NONE, decision.status, seconds, decision.cost_usd or 0.0)

    def count_error(self, status: int, code: str) -> None:
        """Counts one error reply."""
        self._errors.labels(str(status), code).inc()

    def count_outcome(self) -> None:
        """Counts one outcome that was told."""
        self._outcomes.inc()

    def show_alarm(self, cascade: str, tier: str, policy: str, raised: str | None) -> None:
        """Says of one watched tier which alarm is raised; None: none."""
        for kind in ("errors", "shift"):
            self._alarms.labels(cascade, tier, policy, kind).set(kind == raised)

    def render(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)


class _Queries(Collector):
    """Queries that were decided, counted on one event loop; the library's own counters take a lock for each number."""

    def __init__(self) -> None:
        self._ends: Counter[tuple[str, str, Status]] = Counter()
        self._by_target: dict[str, _Times] = {}

    def add(self, target: str, tier: str, status: Status, seconds: float, cost_usd: float) -> None:
        """Counts one query."""
        self._ends[target, tier, status] += 1
        times = self._by_target.get(target)
        if times is None:
            times = self._by_target[target] = _Times([0] * (len(_BUCKETS_S) + 1))
        times.counts[bisect_left(_BUCKETS_S, seconds)] += 1
        times.seconds += seconds
        times.cost_usd += cost_usd

    def collect(self) -> Iterator[Metric]:
        """What there is to be read now."""
        ends = CounterMetricFamily(
            "nearfar_requests",
            "Queries, by the tier that answered and how they ended.",
            labels=("door", "target", "tier", "status"),
        )
        for (target, tier, status), count in self._ends.items():
            ends.add_metric(("http", target, tier, status), count)
        yield ends
        latency = HistogramMetricFamily(
            "nearfar_request_seconds", "From a request's arrival to the end of its answer.", labels=("door", "target")
        )
        cost = CounterMetricFamily(
            "nearfar_cost_usd", "What answers cost, where that is known.", labels=("door", "target")
        )
        for target, times in self._by_target.items():
            bounds = [*map(floatToGoString, _BUCKETS_S), "+Inf"]
            latency.add_metric(
                ("http", target), list(zip(bounds, accumulate(times.counts), strict=True)), times.seconds
            )
            cost.add_metric(("http", target), times.cost_usd)
        yield latency
        yield cost


@dataclass(slots=True)
class _Times:
    """What queries to one target took."""

    counts: list[int]  # by bucket, those beyond the last bound at the end
    seconds: float = 0.0
    cost_usd: float = 0.0
