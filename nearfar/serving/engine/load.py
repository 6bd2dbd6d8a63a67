"""How busy a vLLM server is, read off its metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from nearfar.errors import UpstreamUnavailable
from nearfar.models.http import HttpClient
from nearfar.types import Signals

#: The weight of the newest measurement in the running mean of the speed.
_NEWEST = 0.3


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What a server said of itself at one time."""

    running: int  # requests being answered
    waiting: int  # requests in its queue
    kv_cache_use: float  # in [0, 1]
    generated_tokens: int  # since its start
    measured_at: float  # on a monotonic clock, in seconds
    tokens_per_s: float | None = None  # running mean while there was work; None: not measured yet

    def signals(self) -> Signals:
        """The load as signals, for answers and decisions."""
        found = {"engine_queue": float(self.running + self.waiting), "engine_kv_cache_use": self.kv_cache_use}
        return found if self.tokens_per_s is None else {**found, "engine_tokens_per_s": self.tokens_per_s}


def read_load(text: str, *, at: float, before: EngineLoad | None = None) -> EngineLoad:
    """The load that a page of metrics shows.

    Args:
        text: the page, in Prometheus's format.
        at: when it was fetched, on a monotonic clock in seconds.
        before: the last load of the same server, which the speed is measured against.

    Raises:
        ValueError: it is no such page.
    """
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    generated = int(sums.get("vllm:generation_tokens_total", 0))
    speed = before.tokens_per_s if before else None
    if before is not None and at > before.measured_at and generated >= before.generated_tokens:
        new = (generated - before.generated_tokens) / (at - before.measured_at)
        if new > 0:
            speed = new if speed is None else (1 - _NEWEST) * speed + _NEWEST * new
    return EngineLoad(
        running=int(sums.get("vllm:num_requests_running", 0)),
        waiting=int(sums.get("vllm:num_requests_waiting", 0)),
        kv_cache_use=min(1.0, sums.get("vllm:kv_cache_usage_perc", 0.0)),
        generated_tokens=generated,
        measured_at=at,
        tokens_per_s=speed,
    )


async def fetch_load(url: str, key: str, *, name: str) -> EngineLoad:
    """The load of the server at `url`, asked once.

    Raises:
        UpstreamError: it does not answer, or not with metrics.
    """
    headers = {"Authorization": f"Bearer {key}"}
    http = HttpClient(model=name, url=url, headers=headers, connect_timeout_s=2.0, read_timeout_s=5.0)
    try:
        async with http.exchange("GET", http.endpoint("metrics")) as exchange:
            return read_load((await exchange.read()).decode(), at=time.monotonic())
    except ValueError as exc:
        raise UpstreamUnavailable(f"{name!r} has no metrics: {exc}.", model=name) from exc
    finally:
        await http.aclose()
