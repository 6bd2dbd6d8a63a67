"""Counts and times of what the gateway does, for Prometheus; cheap enough for every request."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

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
        self._requests = Counter(
            "nearfar_requests",
            "Queries, by the tier that answered and how they ended.",
            ("door", "target", "tier", "status"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "nearfar_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("door", "target"),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._cost = Counter(
            "nearfar_cost_usd", "What answers cost, where that is known.", ("door", "target"), registry=self.registry
        )
        self._errors = Counter(
            "nearfar_http_errors", "Replies that are errors.", ("status", "code"), registry=self.registry
        )
        self._outcomes = Counter("nearfar_outcomes", "Outcomes that were told.", registry=self.registry)
        self._alarms = Gauge(
            "nearfar_alarm",
            "1 where a policy's promise, or the data that it was made for, no longer holds.",
            ("cascade", "tier", "policy", "kind"),
            registry=self.registry,
        )
        Gauge("nearfar_requests_in_flight", "Requests being answered.", registry=self.registry).set_function(in_flight)
        self._by_end: dict[tuple[str, str | None, Status], Counter] = {}
        self._by_target: dict[str, tuple[Histogram, Counter]] = {}

    def count(self, target: str, tier: str | None, status: Status, seconds: float) -> None:
        """Counts one query that was decided."""
        key = (target, tier, status)
        counter = self._by_end.get(key)
        if counter is None:
            counter = self._by_end[key] = self._requests.labels("http", target, tier or _NONE, status)
        counter.inc()
        self._of(target)[0].observe(seconds)

    def count_decision(self, decision: Decision, seconds: float) -> None:
        """Counts one query that was decided, and its cost."""
        self.count(decision.target, decision.tier, decision.status, seconds)
        if decision.cost_usd:
            self._of(decision.target)[1].inc(decision.cost_usd)

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

    def _of(self, target: str) -> tuple[Histogram, Counter]:
        found = self._by_target.get(target)
        if found is None:
            found = self._by_target[target] = (
                self._latency.labels("http", target),
                self._cost.labels("http", target),
            )
        return found
