"""No invalid call: the real SmolLM2 at temperature 1, held to fuzzed schemas, cut off anywhere.

The full count, with BFCL's functions and 200 tools at once, is benchmarks/constrained_calls.py.
"""

import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.weights import smollm2_path

from nearfar.agents.call_checking import CallChecker, unfit
from nearfar.agents.calls import CallWriter
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.router import Router
from nearfar.types import Query, SamplingOptions, ToolSpec

_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzzed_schemas.py"
_SPEC = importlib.util.spec_from_file_location("fuzzed_schemas_of_calls", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
FUZZED = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(FUZZED)


@pytest.fixture
async def model() -> AsyncIterator[LlamaCppModel]:
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=2048, parallel=1)
    yield model
    await model.aclose()


def tools(seed: int) -> tuple[ToolSpec, ...]:
    """Up to two tools with fuzzed schemas that can be said."""
    chance = Random(seed)
    named = (ToolSpec(name, "", FUZZED.parameters(chance, depth=1)) for name in ("do", "加算.it"))
    return tuple(tool for tool in named if unfit(tool) is None)


async def check(model: LlamaCppModel, seeds: range) -> int:
    """Every call of every seed is valid; how many there were."""
    writer = CallWriter(Router({}, {"smollm2": model}), ["smollm2"], repairs=0)
    count = 0
    for seed in seeds:
        offered = tools(seed)
        if not offered:
            continue
        sampling = SamplingOptions(max_tokens=Random(seed).randint(4, 32), temperature=1.0, seed=seed)
        found = await writer.write(Query("Do it.", tools=offered, tool_choice="required", sampling=sampling))
        (call,) = found.calls
        schema: dict[str, Any] = next(dict(tool.parameters) for tool in offered if tool.name == call.name)
        assert CallChecker(offered).problem(call) is None, (seed, call)
        assert Draft202012Validator(schema).is_valid(json.loads(call.arguments)), (seed, call)
        count += 1
    return count


async def test_every_call_parses_and_fits(model: LlamaCppModel) -> None:
    """Whatever the schema, the dice and the token limit."""
    assert await check(model, range(6)) >= 4


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_every_one_of_500_calls_parses_and_fits(model: LlamaCppModel, record_property: Any) -> None:
    """A larger count."""
    record_property("calls", await check(model, range(1000, 1500)))
