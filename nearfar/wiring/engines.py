"""The vLLM servers that the settings name."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from nearfar.config import Settings
from nearfar.config.models import VllmSettings

if TYPE_CHECKING:
    from nearfar.serving.engine.fleet import Fleet
    from nearfar.serving.engine.spec import EngineSpec


def open_fleet(settings: Settings) -> Fleet | None:
    """The vLLM servers that the settings name, none of them started; None where they name none."""
    named = {name: model for name, model in settings.models.items() if isinstance(model, VllmSettings)}
    if not named:
        return None
    from nearfar.serving.engine.engine import Address, Engine, Patience
    from nearfar.serving.engine.fleet import Fleet
    from nearfar.serving.engine.installation import find_vllm
    from nearfar.serving.engine.records import Records
    from nearfar.serving.engine.spec import GIB

    section = settings.engines
    find = cache(partial(find_vllm, section.python, allow_untested=section.allow_untested))
    engines = []
    for name, model in named.items():
        spec = engine_spec(name, model)
        spec.check()
        key = settings.model_keys.get(name)
        attach = None
        if model.url is not None:
            attach = Address(model.url.rstrip("/").removesuffix("/v1"), key.get_secret_value() if key else None)
        patience = Patience(
            start_s=model.start_timeout_s, drain_s=model.drain_timeout_s, silence_s=model.read_timeout_s
        )
        engines.append(Engine(spec, home=settings.engines_path, find=find, patience=patience, attach=attach))
    budget = None if section.memory_gib is None else int(section.memory_gib * GIB)
    return Fleet(engines, records=Records(settings.engines_path), budget_bytes=budget)


def engine_spec(name: str, model: VllmSettings) -> EngineSpec:
    """What the server of a model is to be."""
    from nearfar.serving.engine.spec import GIB, EngineSpec

    return EngineSpec(
        name,
        model.model,
        revision=model.revision,
        quantization=model.quantization,
        dtype=model.dtype,
        context_window=model.context_window,
        loras=model.loras,
        draft=model.draft,
        draft_tokens=model.draft_tokens,
        memory_bytes=None if model.memory_gib is None else int(model.memory_gib * GIB),
        kv_cache_bytes=int(model.kv_cache_gib * GIB),
        gpu_share=model.gpu_share,
        threads=model.threads,
        port=model.port,
        is_attached=model.url is not None,
        tool_parser=model.tool_parser,
        trusts_remote_code=model.trust_remote_code,
        sleeps=model.sleep,
        widths=model.widths,
        arguments=model.arguments,
        environment=model.environment,
    )
