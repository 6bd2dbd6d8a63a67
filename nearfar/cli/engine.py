"""`nearfar engine`: vLLM servers brought up, looked at, read and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import ConfigError, ModelLoadError, RequestError, UpstreamUnavailable

from . import options as opt
from .console import escape, remark, seconds, table, waiting, write, write_json
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.config import Settings
    from nearfar.serving.engine.records import Record, Records

app = typer.Typer(help="Bring vLLM servers up, look at them and stop them.", no_args_is_help=True)

_NamesArgument = Annotated[list[str] | None, typer.Argument(help="Models of the config (default: all of kind vllm).")]
_POLL_S = 0.2


@app.command("up")
def up(
    names: _NamesArgument = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay, and look after them until Ctrl+C.")
    ] = False,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Start servers, or find them running; return once they take requests."""
    from nearfar.config import Settings

    settings = Settings.load(config)
    chosen = _chosen(settings, names)
    if foreground:
        return asyncio.run(_look_after(settings, chosen))
    for name in chosen:
        record = _bring_up(settings, name, config)
        if as_json:
            write_json({"name": name, "url": record.url, "pid": record.pid, "state": record.state})
        else:
            write(f"{name} is up at {record.url} (process {record.pid}, looked after by {record.owner})\n")
    return DONE


@app.command("status")
def status(as_json: opt.JsonOption = False, config: opt.ConfigOption = None) -> int:
    """Show every server: what it does, how busy it is and what it takes."""
    from nearfar.config import Settings
    from nearfar.config.models import VllmSettings

    settings = Settings.load(config, needs_keys=False)
    named = [name for name, model in settings.models.items() if isinstance(model, VllmSettings) and not model.url]
    records = {record.name: record for record in _records(settings).all()}
    rows = asyncio.run(_rows([*named, *(name for name in records if name not in named)], records))
    if as_json:
        write_json({"engines": rows})
        return DONE
    if not rows:
        remark('There are no servers. Name one in the config: kind = "vllm" (docs/engine.md).')
        return DONE
    shown = []
    for row in rows:
        busy = "—" if row["queue"] is None else f"{row['queue']}"
        cache = "—" if row["kv_cache_use"] is None else f"{row['kv_cache_use']:.0%}"
        size = "—" if row["rss_bytes"] is None else f"{row['rss_bytes'] / 1024**3:.1f}"
        age = "—" if row["age_s"] is None else seconds(row["age_s"])
        state = f"{row['state']}: {row['failure']}" if row["failure"] and row["state"] != "ready" else row["state"]
        shown.append(
            [
                *(escape(row["name"]), escape(state), str(row["pid"] or "—"), row["url"] or "—"),
                *(busy, cache, size, age, str(row["restarts"])),
            ]
        )
    columns = ["engine", "state", "process", "address", "queue", "KV cache", "GiB", "since", "restarts"]
    table(columns, shown, right=["process", "queue", "KV cache", "GiB", "restarts"], wrap=["state"])
    return DONE


@app.command("logs")
def logs(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="The last so many.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until Ctrl+C.")] = False,
    config: opt.ConfigOption = None,
) -> int:
    """Print the end of a server's log."""
    from nearfar.config import Settings

    from .console import printable

    path = _records(Settings.load(config, needs_keys=False)).log_path(name)
    if not path.is_file():
        raise RequestError(f"There is no log of {name!r}. Start it: nearfar engine up {name}", param="name")
    with path.open(encoding="utf-8", errors="replace") as file:
        write("".join(printable(line) for line in file.readlines()[-lines:]))
        while follow:
            if line := file.readline():
                write(printable(line))
            else:
                time.sleep(_POLL_S)
    return DONE


@app.command("stop")
def stop(
    names: _NamesArgument = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0, help="How long to wait for them to end.")] = 120.0,
    config: opt.ConfigOption = None,
) -> int:
    """Let requests in flight end, then stop servers, whichever process looks after them."""
    from nearfar.config import Settings

    settings = Settings.load(config, needs_keys=False)
    records = _records(settings)
    running = [record.name for record in records.all() if record.is_running()]
    chosen = names or running
    for name in chosen:
        if name not in running and records.read(name) is None:
            raise RequestError(f"No server {name!r} runs. See: nearfar engine status", param="name")
        with waiting(f"{name}: draining"):
            is_over = asyncio.run(_stop(records, name, timeout_s))
        if not is_over:
            remark(f"{name} still runs after {timeout_s:g} s; see: nearfar engine status")
            return FAILED
        remark(f"{name} is stopped")
    if not chosen:
        remark("No server runs.")
    return DONE


# --- the parts -------------------------------------------------------------------------------------------------------


def _chosen(settings: Settings, names: Sequence[str] | None) -> list[str]:
    from nearfar.config.models import VllmSettings

    known = [name for name, model in settings.models.items() if isinstance(model, VllmSettings) and not model.url]
    if not known:
        raise ConfigError('The config names no model of kind "vllm" to start. Add one: docs/engine.md.')
    for name in names or ():
        if name not in known:
            raise RequestError(f"{name!r} is no model of kind vllm; there are {', '.join(known)}.", param="name")
    return list(names or known)


def _records(settings: Settings) -> Records:
    from nearfar.serving.engine.records import Records

    return Records(settings.engines_path)


async def _look_after(settings: Settings, names: Sequence[str]) -> int:
    """Keeps the servers up until a signal, or until all of them are stopped or have failed."""
    from nearfar.wiring.engines import open_fleet

    from .logs import configure_logs

    configure_logs(settings.secrets, level=logging.INFO)
    fleet = open_fleet(settings)
    assert fleet is not None  # `_chosen` found some
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, is_over.set)
    engines = [fleet.engines[name] for name in names]
    try:
        for name, engine in zip(names, engines, strict=True):
            engine.progress = _Teller(name)
            async with fleet.lease(name):
                remark(f"{name} is up (process {engine.pid})", style="bold")
        while not is_over.is_set() and any(engine.state not in ("stopped", "failed") for engine in engines):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), _POLL_S)
        failed = [engine for engine in engines if engine.state == "failed"]
        for engine in failed:
            remark(f"{engine.spec.name} failed: {engine.failure.reason if engine.failure else 'see its log'}")
        return FAILED if failed else DONE
    finally:
        await fleet.aclose()


class _Teller:
    """Says on stderr what a start is doing, whenever that changes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = ""

    def __call__(self, words: str, share: float) -> None:
        if words != self._last:
            self._last = words
            remark(f"{self._name}: {words} ({share:.0%})")


def _bring_up(settings: Settings, name: str, config: Path | None) -> Record:
    """Starts a process that looks after the server, unless there is one, and waits until it is ready.

    Raises:
        ModelLoadError: it did not come up.
    """
    from nearfar.serving.engine.failures import phase

    records = _records(settings)
    before = records.read(name)
    keeper: subprocess.Popen[bytes] | None = None
    claim = records.claim(name)
    if claim is not None:  # nobody looks after it
        claim.release()
        command = [sys.executable, "-m", "nearfar.cli", "engine", "up", name, "--foreground"]
        if config is not None:
            command += ["--config", str(config.absolute())]
        log = records.log_path(f"{name}.keeper")
        with log.open("wb") as out:
            keeper = subprocess.Popen(  # noqa: S603 - our own command line
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
    teller = _Teller(name)
    begins_at = records.log_path(name).stat().st_size if records.log_path(name).exists() else 0
    while True:
        record = records.read(name)
        is_new = record is not None and (keeper is None or record.owner == keeper.pid)
        if record is not None and is_new and record.state == "ready" and record.is_running():
            if keeper is not None:
                keeper.returncode = 0  # it goes on without us, and its end is nobody's to wait for
            return record
        if record is not None and is_new and record.state == "failed" and record != before:
            raise ModelLoadError(f"{name!r} is not up: {record.failure}.", model=name, was_sent=False)
        if keeper is not None and keeper.poll() is not None:
            said = records.log_path(f"{name}.keeper").read_text(errors="replace").strip().splitlines()
            why = said[-1].removeprefix("Error: ") if said else "its keeper ended"
            raise ModelLoadError(why, model=name, was_sent=False)
        with contextlib.suppress(OSError), records.log_path(name).open(errors="replace") as file:
            file.seek(begins_at)
            teller(*phase(file.read()))
        time.sleep(_POLL_S)


async def _stop(records: Records, name: str, timeout_s: float) -> bool:
    """Whether the server is gone in time."""
    from nearfar.serving.engine.process import ServerProcess

    deadline = time.monotonic() + timeout_s
    records.request_stop(name)
    while time.monotonic() < deadline:
        claim = records.claim(name)
        if claim is not None:  # its owner is gone, or has just stopped it
            records.take_stop(name)
            record = records.read(name)
            process = ServerProcess(record.pid, record.started) if record is not None and record.pid else None
            if process is not None and record is not None and record.is_running():
                await process.stop(15.0)
            records.forget(name)
            claim.release()
            return True
        await asyncio.sleep(_POLL_S)
    return False


async def _rows(names: Sequence[str], records: dict[str, Record]) -> list[dict[str, Any]]:
    return [await _row(name, records.get(name)) for name in names]


async def _row(name: str, record: Record | None) -> dict[str, Any]:
    from nearfar.serving.engine.load import fetch_load
    from nearfar.serving.engine.process import ServerProcess

    is_up = record is not None and record.is_running()
    load = None
    if record is not None and is_up and record.state == "ready":
        with contextlib.suppress(UpstreamUnavailable):
            load = await fetch_load(record.url, record.key, name=name)
    state = "stopped" if record is None else record.state if is_up or record.state == "failed" else "ended"
    return {
        "name": name,
        "state": state,
        "pid": record.pid if record and is_up else None,
        "url": record.url if record and is_up else None,
        "model": record.model if record else None,
        "version": record.version if record else None,
        "queue": load.running + load.waiting if load else None,
        "kv_cache_use": load.kv_cache_use if load else None,
        "memory_bytes": record.memory_bytes if record and is_up else None,
        "rss_bytes": ServerProcess(record.pid, record.started).rss_bytes() if record and is_up else None,
        "age_s": time.time() - record.created_at if record and is_up else None,
        "restarts": record.restarts if record else 0,
        "failure": record.failure if record else None,
    }
