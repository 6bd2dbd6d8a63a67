"""Imports xllamacpp, on first use, so that its OpenMP's threads sleep where they wait."""

from __future__ import annotations

import os
from types import ModuleType

from nearfar.errors import ConfigError, ModelLoadError


def llama_library(name: str) -> ModuleType:
    """xllamacpp, imported with the policy of its OpenMP set before.

    OpenMP's threads spin while they wait for each other. Where anything else wants a core, that costs far more than
    it saves: beside one busy process on 2 cores, 7 tokens/s spinning and 71 sleeping.
    """
    is_set = "OMP_WAIT_POLICY" in os.environ
    if not is_set:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        import xllamacpp  # here, since OpenMP reads its environment when it is loaded
    except ImportError as exc:
        raise ModelLoadError(
            f"{name!r}: xllamacpp cannot be imported: {exc}. Install it, and libgomp where that is missing", model=name
        ) from exc
    finally:
        if not is_set:
            del os.environ["OMP_WAIT_POLICY"]
    if not xllamacpp.json_schema_to_grammar({"type": "object"}).startswith("%llguidance"):
        raise ConfigError("this build of xllamacpp has no llguidance. Install the one from PyPI")
    return xllamacpp  # type: ignore[no-any-return]  # untyped
