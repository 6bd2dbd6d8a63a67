"""A discrete-event simulation of servers that batch continuously, by the times of their steps."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

from .machines import Machine
from .workload import Shape, label_of


@dataclass(slots=True)
class _Job:
    shape: Shape
    arrived_s: float
    prompt_left: int
    made: int = 0  # tokens of the answer so far
    first_s: float = 0.0  # when the first token came
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """What became of the requests, in the order in which they arrived; the warm-up is left out."""

    ttfts_s: tuple[float, ...]
    tpots_s: tuple[float, ...]  # of answers of two tokens or more
    latencies_s: tuple[float, ...]
    utilisation: tuple[float, ...]  # by kind: share of the time with work to do; 0 where there is no machine

    def ttft_s(self, quantile: float) -> float:
        """The time to the first token that this share of the requests kept."""
        return _quantile(self.ttfts_s, quantile)

    def tpot_s(self, quantile: float) -> float:
        """The mean time per further token that this share of the requests kept."""
        return _quantile(self.tpots_s, quantile)

    def latency_s(self, quantile: float) -> float:
        """The whole time that this share of the requests kept."""
        return _quantile(self.latencies_s, quantile)


class Server:
    """One machine, a step after another: prompts in chunks first come first served, one token for all that decode.

    A request begins when the batch and the KV cache have room for all of it, so that none is thrown out later.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.now_s = 0.0
        self.busy_s = 0.0
        self.tokens_left = 0  # of all that it has been given
        self._waiting: deque[_Job] = deque()
        self._prompts: deque[_Job] = deque()
        self._decoding: list[_Job] = []
        self._held = 0  # KV tokens that running requests will need at most
        self._context = 0  # tokens in the cache of those that decode

    def give(self, job: _Job) -> None:
        """Queues a request, at its arrival."""
        self._waiting.append(job)
        self.tokens_left += job.shape.prompt_tokens + job.shape.completion_tokens

    def run_until(self, limit_s: float) -> None:
        """Takes steps that begin before `limit_s`."""
        while self.now_s < limit_s:
            if not self._step():
                self.now_s = limit_s
                return

    def finish(self) -> None:
        """Takes steps until nothing is left to do."""
        while self._step():
            pass

    def _step(self) -> bool:
        """One step; False where there is nothing to do."""
        machine = self.machine
        while self._waiting:
            need = self._waiting[0].shape.prompt_tokens + self._waiting[0].shape.completion_tokens
            running = len(self._prompts) + len(self._decoding)
            is_full = running >= machine.max_sequences or self._held + need > machine.kv_tokens
            if is_full and running:  # alone, even a request that is too large for the cache gets its turn
                break
            self._prompts.append(self._waiting.popleft())
            self._held += need
        if not self._prompts and not self._decoding:
            return False
        seconds = 0.0
        if self._decoding:
            seconds += machine.decode_s(len(self._decoding), self._context)
        room = machine.prompt_chunk
        begun: list[_Job] = []
        while self._prompts and room > 0:
            job = self._prompts[0]
            taken = min(room, job.prompt_left)
            job.prompt_left -= taken
            room -= taken
            seconds += taken * machine.per_prompt_token_s
            if job.prompt_left == 0:
                begun.append(self._prompts.popleft())
        if not self._decoding:
            seconds += machine.step_s
        self.now_s += seconds
        self.busy_s += seconds
        self._advance(begun)
        return True

    def _advance(self, begun: Sequence[_Job]) -> None:
        """Adds the step's tokens."""
        now_s = self.now_s
        left = []
        for job in self._decoding:
            job.made += 1
            if job.made >= job.shape.completion_tokens:
                self._end(job)
            else:
                left.append(job)
        self._context += len(left)
        for job in begun:
            job.made = 1
            job.first_s = now_s
            if job.shape.completion_tokens <= 1:
                self._end(job, had_context=False)
            else:
                left.append(job)
                self._context += job.shape.prompt_tokens + 1
        self._decoding = left

    def _end(self, job: _Job, *, had_context: bool = True) -> None:
        job.ended_s = self.now_s
        size = job.shape.prompt_tokens + job.shape.completion_tokens
        self._held -= size
        self.tokens_left -= size
        if had_context:
            self._context -= size - 1


def simulate(
    requests: Sequence[Shape],
    rate: float,
    machines: Sequence[Machine],
    counts: Sequence[int],
    shares: Mapping[tuple[int, int], Sequence[float]],
    *,
    num_requests: int = 4000,
    seed: int = 0,
    warm_up: float = 0.1,
) -> Simulated:
    """What requests take when they arrive at random.

    Args:
        requests: sizes to draw from, with replacement.
        rate: requests per second; arrivals are a Poisson process.
        machines: the kinds.
        counts: how many of each there are.
        shares: by bucket, the probability of each kind; within a kind the machine with the least left to do.
        num_requests: how many arrive.
        seed: of sizes, arrivals and choices.
        warm_up: the share of them, from the first on, that is not counted.
    """
    rng = random.Random(seed)  # noqa: S311 - a simulation, no secret
    servers = [[Server(machine) for _ in range(count)] for machine, count in zip(machines, counts, strict=True)]
    everyone = [server for kind in servers for server in kind]
    edges = {label: list(accumulate(row)) for label, row in shares.items()}
    now_s = 0.0
    jobs = []
    for _ in range(num_requests):
        now_s += rng.expovariate(rate)
        shape = requests[rng.randrange(len(requests))]
        for server in everyone:
            server.run_until(now_s)
        row = edges[label_of(shape)]
        kind = min(bisect_right(row, rng.random() * row[-1]), len(row) - 1)
        job = _Job(shape, now_s, shape.prompt_tokens)
        jobs.append(job)
        min(servers[kind], key=lambda server: server.tokens_left).give(job)
    for server in everyone:
        server.finish()
    counted = jobs[int(warm_up * num_requests) :]
    return Simulated(
        tuple(job.first_s - job.arrived_s for job in counted),
        tuple((job.ended_s - job.first_s) / (job.made - 1) for job in counted if job.made > 1),
        tuple(job.ended_s - job.arrived_s for job in counted),
        tuple(
            sum(min(1.0, server.busy_s / server.now_s) for server in kind) / len(kind) if kind else 0.0
            for kind in servers
        ),
    )


def _quantile(values: Sequence[float], quantile: float) -> float:
    """The smallest value that this share of them does not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(quantile * len(ordered)) - 1)] if ordered else 0.0
