"""One vLLM server through its life: started or found, watched, started again when it fails, drained and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nearfar.errors import ConfigError, ModelLoadError, UpstreamError, UpstreamTimeout
from nearfar.models.http import HttpClient

from .failures import Failure, explain, phase
from .installation import Installation
from .load import EngineLoad, read_load
from .process import ServerProcess, started_at
from .records import Claim, Record, Records, State
from .spec import EngineSpec
from .suspects import Suspects

_logger = logging.getLogger(__name__)

_LOG_TAIL_BYTES: Final = 256 * 1024
_LOG_LIMIT_BYTES: Final = 16 * 1024 * 1024

#: Told on the way up: what is being done, and how far it is, in [0, 1].
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds."""

    start_s: float = 600.0  # from the process's start until it is ready
    drain_s: float = 30.0  # for requests in flight, when it is to stop
    end_s: float = 15.0  # from SIGTERM to SIGKILL
    poll_s: float = 0.25  # between two looks at the process
    health_every_s: float = 2.0
    health_s: float = 15.0  # for one answer to /health
    num_silences: int = 3  # unanswered in a row that make it count as hung
    silence_s: float = 120.0  # for a request of two tokens, after another heard nothing
    first_wait_s: float = 1.0  # before the first restart; doubled each time
    longest_wait_s: float = 60.0
    num_restarts: int = 5  # in a row, after which it counts as failed
    stable_s: float = 120.0  # of good life, after which earlier failures are forgotten


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and what it asks for."""

    url: str  # without a path
    key: str | None


class Engine:
    """A server, and the task that looks after it.

    One process owns a server and watches it; others that want the same one use it, and take it over when its owner
    is gone. A server that its owner left behind (killed, say) goes on and is adopted.

    Args:
        spec: what the server is to be.
        home: the folder with the records, shared by all processes of the user.
        find: finds vLLM; called once, in a thread, when a server is first started.
        patience: how long to wait for what.
        inherited: the environment that servers are started with.
        attach: use the server at this address, and never start or stop one.

    Attributes:
        load: how busy the server is; None: not known.
        restarts: starts after the first.
        failure: why the server is not there, or last was not.
        progress: told on the way up.
        life: rises with every server that ended unasked.
        suspects: queries that one of them was answering.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        home: Path,
        find: Callable[[], Installation],
        patience: Patience | None = None,
        inherited: Mapping[str, str] | None = None,
        attach: Address | None = None,
    ) -> None:
        self.spec = spec
        self.load: EngineLoad | None = None
        self.restarts = 0
        self.failure: Failure | None = None
        self.progress: Progress | None = None
        self.life = 0
        self.suspects = Suspects()
        self._records = Records(home)
        self._find = find
        self._patience = patience or Patience()
        self._inherited = os.environ if inherited is None else inherited
        self._attach = attach
        self._state: State = "stopped"
        self._changed = asyncio.Event()
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Lock()
        self._claim: Claim | None = None
        self._process: ServerProcess | None = None
        self._installation: Installation | None = None
        self._address: Address | None = None
        self._http: HttpClient | None = None
        self._warming: asyncio.Task[None] | None = None
        self._is_doubted = False  # a request heard nothing
        self._trial: asyncio.Task[bool] | None = None
        self._port: int | None = None
        self._key = secrets.token_urlsafe(32)
        self._ready_at: float | None = None
        self._created_at = 0.0
        self._log_begins_at = 0
        self._failed_at = 0.0

    # --- what others see ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the server is doing."""
        return self._state

    @property
    def is_owner(self) -> bool:
        """Whether this process looks after the server."""
        return self._claim is not None

    @property
    def pid(self) -> int | None:
        """The server's process, where it is known."""
        return self._process.pid if self._process else None

    def begin(self) -> None:
        """Starts to look after the server, and starts it where it does not run; a server that is up stays as it is."""
        if self._task is None or self._task.done():
            self.failure = None
            self._set("starting")
            self._task = asyncio.create_task(self._look_after(), name=f"engine {self.spec.name}")

    async def ready(self) -> Address:
        """Where the server is, as soon as it takes requests.

        Raises:
            ModelLoadError: it cannot be started.
        """
        while True:
            if self._state == "ready" and self._address is not None:
                return self._address
            if self._state in ("failed", "stopped"):
                why = self.failure.reason if self.failure else "it was stopped"
                raise ModelLoadError(f"{self.spec.name!r} is not up: {why}.", model=self.spec.name, was_sent=False)
            await self._changed.wait()

    def refuse_if_given_up(self) -> None:
        """Refuses where the server failed and another start would not help, or is not due.

        Raises:
            ModelLoadError: it did.
        """
        failure = self.failure
        if self._state != "failed" or failure is None:
            return
        left_s = self._failed_at + self._patience.longest_wait_s - time.monotonic()
        if not failure.is_passing or left_s > 0:
            again = f" It is tried again in {left_s:.0f} s." if failure.is_passing else ""
            raise ModelLoadError(
                f"{self.spec.name!r} is not up: {failure.reason}.{again}", model=self.spec.name, was_sent=False
            )

    def suspect(self, *, is_silent: bool = False) -> None:
        """Says that a request to the server failed: nobody is told its address until it has been looked at.

        Args:
            is_silent: it failed because nothing came, of which others may know nothing; a request of our own tells.
        """
        if is_silent:
            self._is_doubted = True
        elif self._state == "ready":
            self._set("starting")
        self._nudge.set()

    async def stop(self, *, drain_s: float | None = None) -> None:
        """Lets requests in flight end, then ends the server if it is this process's to end. Twice is fine.

        Args:
            drain_s: how long to wait for them; None: as the patience says.
        """
        async with self._stopping:
            if self._task is not None:
                was_up = self._state == "ready"
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task
                self._task = None
                await self._shut(drain_s if drain_s is not None else self._patience.drain_s if was_up else 0.0)
                self._set("stopped")

    async def sleep(self) -> None:
        """Frees the GPU's memory and keeps the process; `wake` brings the server back.

        Raises:
            UpstreamError: the server refused.
        """
        await self._drain(self._patience.drain_s)
        await self._call("POST", "sleep", query={"level": "1"})
        self._set("asleep")

    async def wake(self) -> None:
        """Undoes `sleep`.

        Raises:
            UpstreamError: the server refused.
        """
        await self._call("POST", "wake_up")
        self._set("ready")

    async def need_bytes(self) -> int:
        """What the server takes of the memory budget.

        Raises:
            ConfigError: there is no vLLM, or the checkpoint is broken.
        """
        if self._attach is not None:
            return 0
        installation = await self._find_installation()
        return self.spec.need_bytes(gpu_bytes=installation.gpu_bytes)

    # --- the task that looks after the server ------------------------------------------------------------------------

    async def _look_after(self) -> None:
        failures = 0
        while True:
            try:
                failure = await self._live()
            except ConfigError as exc:
                failure = Failure(str(exc).rstrip("."), is_passing=False)
            is_follower = self._claim is None and self._attach is None
            if failure is None or (is_follower and self._records.was_stopped(self.spec.name)):  # somebody asked for it
                await self._shut(self._patience.drain_s if self._ready_at is not None else 0.0)
                self._set("stopped")
                return
            if self._ready_at is not None and time.monotonic() - self._ready_at > self._patience.stable_s:
                failures = 0
            failures += 1
            self.life += 1
            self.failure = failure
            _logger.warning("engine %s: %s", self.spec.name, failure.reason)
            await self._forget_server()
            if not failure.is_passing or failures > self._patience.num_restarts:
                self._failed_at = time.monotonic()
                self._set("failed")
                self._note()
                self._release()
                return
            self._set("waiting")
            self._note()
            wait_s = min(self._patience.longest_wait_s, self._patience.first_wait_s * 2 ** (failures - 1))
            if await self._is_asked_to_stop(wait_s):
                self._records.forget(self.spec.name)
                self._release()
                self._set("stopped")
                return
            self.restarts += 1
            self._set("starting")

    async def _live(self) -> Failure | None:
        """One life of the server, from its start or adoption to its end; None: it ended as it was asked to."""
        self._ready_at = None
        if self._attach is not None:
            self._connect(self._attach)
            return await self._watch()
        record, claim = await self._claim_or_follow()
        if claim is None:
            assert record is not None
            self._process = ServerProcess(record.pid, record.started)
            self._connect(Address(record.url, record.key))
            return await self._watch(self._wait_for_owner)
        if self._claim is None:
            self._records.begin_life(self.spec.name)
        self._claim = claim
        found = ServerProcess.adopt(record.pid, record.started) if record is not None else None
        if record is not None and found is not None:
            if record.fingerprint == self.spec.fingerprint:
                _logger.info("engine %s: adopts the server that runs as process %d", self.spec.name, record.pid)
                self._process, self._port, self._key = found, record.port, record.key
                self._created_at, self._log_begins_at = record.created_at, record.log_begins_at
                self._connect(Address(record.url, record.key))
                return await self._watch(self._warm_up if record.state == "starting" else None)
            _logger.info("engine %s: stops a server with other settings", self.spec.name)
            await found.stop(self._patience.end_s)
        return await self._start()

    async def _claim_or_follow(self) -> tuple[Record | None, Claim | None]:
        """The record and the right to the server; or the record of a server that another process looks after."""
        if self._claim is not None:
            return self._records.read(self.spec.name), self._claim
        while True:
            claim = self._records.claim(self.spec.name)
            record = self._records.read(self.spec.name)
            if claim is not None:
                return record, claim
            if record is not None and record.is_running():
                if record.fingerprint != self.spec.fingerprint:
                    raise ConfigError(
                        f"it runs with other settings, looked after by process {record.owner}. Stop it: nearfar engine "
                        f"stop {self.spec.name}"
                    )
                return record, None
            await asyncio.sleep(self._patience.poll_s)

    async def _start(self) -> Failure | None:
        installation = await self._find_installation()
        self.spec.check()
        if self.spec.sleeps and not installation.on_gpu:
            raise ConfigError(f"[models.{self.spec.name}] sleep needs a GPU. Remove it")
        port = self._free_port()
        log = self._records.log_path(self.spec.name)
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        self._log_begins_at = log.stat().st_size if log.exists() else 0
        command = self.spec.command(
            installation.python, port=port, on_gpu=installation.on_gpu, is_tested=installation.is_tested
        )
        variables = self.spec.variables(self._inherited, key=self._key, on_gpu=installation.on_gpu)
        self._process = ServerProcess.start(command, variables, log)
        self._created_at = time.time()
        self._connect(Address(f"http://127.0.0.1:{port}", self._key))
        self._note()
        return await self._watch(self._warm_up)

    async def _watch(self, warm_up: Callable[[], Coroutine[None, None, None]] | None = None) -> Failure | None:
        """Waits until the server is ready, then until it ends or hangs.

        Args:
            warm_up: what has to be done once the server is well, before it counts as ready.
        """
        began = last_health = time.monotonic()
        silences = 0
        is_up = False
        while True:
            if self._process is not None and not self._process.is_running():
                return explain(self.spec, self._printed(), self._process.returncode)
            if self._claim is not None and self._records.take_stop(self.spec.name):
                return None
            now = time.monotonic()
            is_due = not is_up or self._nudge.is_set() or now - last_health >= self._patience.health_every_s
            self._nudge.clear()
            if is_due and self._state not in ("asleep", "draining"):
                last_health = now
                is_well = await self._is_well()
                silences = 0 if is_well else silences + 1
                if is_well and not is_up and warm_up is not None and self._warming is None:
                    self._warming = asyncio.create_task(warm_up(), name=f"warm up {self.spec.name}")
                is_warm = self._warming is None or self._warming.done()
                if is_well and is_warm:
                    is_up = True
                    self._ready_at = self._ready_at or time.monotonic()
                    await self._measure()
                    if self._process is not None and await self._is_stuck():
                        await self._process.kill()  # whoever looks after it starts another
                        return Failure("it answered no request any more, though it said that it is well", True)
                    # A doubt that came while it was looked at is about a later moment than the look: look again.
                    if self._state != "ready" and not self._nudge.is_set():
                        self._set("ready")
                        self._note()
                        if self.progress:
                            self.progress("ready", 1.0)
                elif is_up and silences >= self._patience.num_silences:
                    await self._end_hung()
                    return Failure("it stopped answering", is_passing=True)
                elif not is_up and now - began > self._patience.start_s:
                    words, _ = phase(self._printed())
                    await self._end_hung()
                    return Failure(
                        f"it was not ready after {self._patience.start_s:.0f} s, while {words}. Raise start_timeout_s",
                        is_passing=True,
                    )
                elif not is_up and self.progress and self._attach is None:
                    self.progress(*phase(self._printed()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), self._patience.poll_s)

    # --- its parts ---------------------------------------------------------------------------------------------------

    async def _is_asked_to_stop(self, limit_s: float) -> bool:
        """Waits so long, or until somebody asks to stop the server; whether somebody did."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self._claim is not None and self._records.take_stop(self.spec.name):
                return True
            await asyncio.sleep(min(self._patience.poll_s, limit_s))
        return False

    async def _is_well(self) -> bool:
        try:
            await self._call("GET", "health")
        except UpstreamError:
            return False
        return True

    async def _warm_up(self) -> None:
        """Asks the server for a few tokens, whose first cost is then nobody's: vLLM compiles its sampling at first use.

        What the server says to it does not matter; one that dies of it is seen to have ended.
        """
        assert self._address is not None
        http = self._client(self._address, self._patience.start_s)
        body = json.dumps(self.spec.first_request()).encode()
        try:
            async with http.exchange("POST", http.endpoint("v1/completions"), body) as exchange:
                await exchange.read()
        except UpstreamError as exc:
            _logger.info("engine %s: the first request failed: %s", self.spec.name, exc)
        finally:
            await http.aclose()

    async def _is_stuck(self) -> bool:
        """Whether a doubted server has neither answered a request of two tokens nor written any for anybody.

        vLLM's front says that it is well while the process behind it, which does the work, is stuck.
        """
        if self._trial is None and self._is_doubted and self._process is not None:
            self._trial = asyncio.create_task(self._try_out(), name=f"try {self.spec.name}")
        if self._trial is None or not self._trial.done():
            return False
        trial, self._trial, self._is_doubted = self._trial, None, False
        return trial.result()

    async def _try_out(self) -> bool:
        assert self._address is not None
        before = self.load.generated_tokens if self.load is not None else 0
        http = self._client(self._address, self._patience.silence_s)
        try:
            async with http.exchange(
                "POST", http.endpoint("v1/completions"), json.dumps(self.spec.first_request()).encode()
            ) as exchange:
                await exchange.read()
        except UpstreamTimeout:
            return self.load is None or self.load.generated_tokens == before
        except UpstreamError as exc:
            _logger.info("engine %s: a request to try it failed: %s", self.spec.name, exc)
        finally:
            await http.aclose()
        return False

    async def _wait_for_owner(self) -> None:
        """Returns once the process that looks after the server has found it ready, or is gone."""
        while True:
            record = self._records.read(self.spec.name)
            if record is None or record.state != "starting" or started_at(record.owner) is None:
                return
            await asyncio.sleep(self._patience.poll_s)

    async def _measure(self) -> None:
        """Reads the server's metrics; one that has none keeps its last load."""
        try:
            page = await self._call("GET", "metrics")
            self.load = read_load(page.decode(), at=time.monotonic(), before=self.load)
        except (UpstreamError, ValueError) as exc:
            _logger.debug("engine %s: no metrics: %s", self.spec.name, exc)

    async def _drain(self, limit_s: float) -> None:
        """Waits until the server has nothing to do, for so long at most."""
        self._set("draining")
        self._note()
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self._process is not None and self._process.is_running():
            await self._measure()
            if self.load is None or self.load.running + self.load.waiting == 0:
                return
            await asyncio.sleep(self._patience.poll_s)

    async def _shut(self, drain_s: float) -> None:
        """Ends the server where it is ours, and lets go of it in any case."""
        process, is_ours = self._process, self._claim is not None
        if process is not None and is_ours:
            if drain_s > 0:
                await self._drain(drain_s)
            await process.stop(self._patience.end_s)
            self._records.forget(self.spec.name)
        await self._forget_server(is_over=not is_ours)
        self._release()

    async def _end_hung(self) -> None:
        if self._process is not None and self._claim is not None:
            await self._process.kill()

    async def _forget_server(self, *, is_over: bool = False) -> None:
        """Drops the connection, and kills what a server of ours that has ended left behind."""
        if self._process is not None and self._claim is not None and not is_over and not self._process.is_running():
            await self._process.kill()
        for task in (self._warming, self._trial):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._warming = self._trial = None
        self._is_doubted = False
        self._process = None
        self._address = None
        self.load = None
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    async def _find_installation(self) -> Installation:
        if self._installation is None:
            self._installation = await asyncio.to_thread(self._find)
        return self._installation

    def _connect(self, address: Address) -> None:
        self._address = address
        self._http = self._client(address, self._patience.health_s)

    def _client(self, address: Address, read_timeout_s: float) -> HttpClient:
        return HttpClient(
            model=self.spec.name,
            url=address.url,
            headers={"Authorization": f"Bearer {address.key}"} if address.key else {},
            connect_timeout_s=2.0,
            read_timeout_s=read_timeout_s,
        )

    async def _call(self, method: str, path: str, *, query: Mapping[str, str] | None = None) -> bytes:
        if self._http is None:
            raise ModelLoadError(f"{self.spec.name!r} is not up.", model=self.spec.name, was_sent=False)
        endpoint = self._http.endpoint(path)
        async with self._http.exchange(method, endpoint.with_query(query) if query else endpoint) as exchange:
            return await exchange.read()

    def _printed(self) -> str:
        """The end of what the server has printed in this life."""
        return _tail(self._records.log_path(self.spec.name), self._log_begins_at)

    def _free_port(self) -> int:
        """The spec's port, the one before, or any free one.

        Raises:
            ConfigError: the spec's port is taken.
        """
        for port in (self.spec.port, self._port, 0):
            if port is None:
                continue
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    if port == self.spec.port:
                        raise ConfigError(
                            f"[models.{self.spec.name}] port {port} is taken by another program. Set another, or url "
                            "to use a vLLM that listens there"
                        ) from None
                    continue
                self._port = int(probe.getsockname()[1])
                return self._port
        raise AssertionError("the kernel gives a free port")

    def _set(self, state: State) -> None:
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _note(self) -> None:
        """Writes the record, where the server is ours."""
        if self._claim is None:
            return
        process = self._process
        self._records.write(
            Record(
                name=self.spec.name,
                fingerprint=self.spec.fingerprint,
                state=self._state,
                pid=process.pid if process else 0,
                started=process.started if process else "",
                port=self._port or 0,
                key=self._key,
                owner=os.getpid(),
                memory_bytes=self.spec.need_bytes(gpu_bytes=self._installation.gpu_bytes)
                if self._installation is not None
                else self.spec.memory_bytes or 0,
                model=self.spec.model,
                version=self._installation.version if self._installation else "",
                created_at=self._created_at,
                log_begins_at=self._log_begins_at,
                restarts=self.restarts,
                failure=self.failure.reason if self.failure else None,
            )
        )


def _tail(path: Path, begins_at: int) -> str:
    """The end of what was printed from `begins_at` on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begins_at if begins_at <= size else 0, size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
