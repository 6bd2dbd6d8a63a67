"""No invalid call from the real vLLM at temperature 1, held over OpenAI's wire; and a role's own adapter on it.

Skipped where there is no vLLM; make it with `make vllm`. The grammar is ours and xgrammar keeps it; a JSON Schema is
kept as vLLM's back ends read it.
"""

import asyncio
import importlib.util
import json
from pathlib import Path
from random import Random

import pytest
from jsonschema import Draft202012Validator
from support.checkpoint import NEEDS_VLLM, VLLM_PYTHON, smollm2_checkpoint
from support.peft import write_peft

from nearfar.agents.call_checking import CallChecker, unfit
from nearfar.agents.calls import CallTier, CallWriter
from nearfar.agents.types import Called, Decided, Ended, Planned
from nearfar.config import Settings
from nearfar.errors import UpstreamError
from nearfar.types import Query, SamplingOptions, ToolSpec
from nearfar.wiring import build
from nearfar.wiring.agents import open_agent, open_runs

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("fuzzed_schemas_of_vllm", ROOT / "benchmarks" / "fuzzed_schemas.py")
assert _SPEC is not None
assert _SPEC.loader is not None
FUZZED = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(FUZZED)

pytestmark = NEEDS_VLLM

CONFIG = """
[data]
dir = "{home}"

[engines]
python = "{python}"

[models.smol]
kind = "vllm"
model = "{model}"
context_window = 2048
threads = 2
memory_gib = 3.0
"""

ROLES = ("planner", "caller", "summarizer")
ADAPTED = """loras = {{ planner = "planner", caller = "caller", summarizer = "summarizer" }}

[agents.clerk]
seconds = 300
[agents.clerk.roles]
planner = "smol+planner"
caller = "smol+caller"
summarizer = {{ model = "smol+summarizer", max_tokens = 12 }}
[agents.clerk.tools.calculator]
kind = "calculator"

[agents.unadapted]
seconds = 300
[agents.unadapted.roles]
planner = "smol"
caller = "smol"
summarizer = {{ model = "smol", max_tokens = 12 }}
[agents.unadapted.tools.calculator]
kind = "calculator"
"""


@pytest.fixture(scope="module")
def checkpoint():
    """SmolLM2 in safetensors, made once and kept in the user's cache."""
    return smollm2_checkpoint()


@pytest.fixture
async def router(tmp_path, checkpoint):
    """A router whose one model is vLLM's; the engine is stopped at the end."""
    config = tmp_path / "nearfar.toml"
    config.write_text(CONFIG.format(home=tmp_path / "data", python=VLLM_PYTHON, model=checkpoint))
    wired = build(Settings.load(config))
    yield wired.router
    await wired.aclose()


def offered(count):
    """Sets of up to two tools with fuzzed schemas that can be said, each with its seed."""
    found = []
    seed = 0
    while len(found) < count:
        chance = Random(seed)
        named = [ToolSpec(name, "", FUZZED.parameters(chance, depth=2)) for name in ("do", "加算.it")]
        if tools := tuple(tool for tool in named if unfit(tool) is None):
            found.append((seed, tools))
        seed += 1
    return found


def query(seed, tools):
    """A call that must be made, at temperature 1 and often cut off."""
    sampling = SamplingOptions(max_tokens=Random(seed).randint(12, 64), temperature=1.0, seed=seed)
    return Query("Do it.", tools=tools, tool_choice="required", sampling=sampling)


def is_valid(call, tools):
    """By our own checker and by jsonschema itself."""
    schema = next(dict(tool.parameters) for tool in tools if tool.name == call.name)
    fits = Draft202012Validator(schema).is_valid(json.loads(call.arguments))
    return CallChecker(tools).problem(call) is None and fits


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=pytest.mark.soak)])
async def test_every_call_parses_and_fits(router, count, record_property):
    """By the grammar: a call for every schema, cut off or not, unrepaired. By the schema: what leaves is valid."""
    cases = offered(count)
    by_grammar = CallWriter(router, [CallTier("smol", asks_by="grammar")], repairs=0)
    by_schema = CallWriter(router, [CallTier("smol", asks_by="json_schema")], repairs=0)
    turns = asyncio.Semaphore(8)

    async def written(writer, seed, tools):
        async with turns:
            try:
                return await writer.write(query(seed, tools))
            except UpstreamError:
                return None  # vLLM refuses the schema

    held = await asyncio.gather(*(written(by_grammar, seed, tools) for seed, tools in cases))
    few = cases[:: 1 if count > 8 else 4]  # the schema's way is slow: most are refused or cut off
    shaped = await asyncio.gather(*(written(by_schema, seed, tools) for seed, tools in few))

    finished = [found for found in held if found is not None and found.score == 0]
    record_property("calls", len(held))
    record_property("cut_off_and_finished", len(finished))
    record_property("by_schema", len(shaped))
    record_property("by_schema_without_a_valid_call", sum(not (found and found.calls) for found in shaped))
    for (seed, tools), found in zip(cases, held, strict=True):
        assert found is not None, seed
        (call,) = found.calls
        assert is_valid(call, tools), (seed, call)
    assert len(finished) < len(held)  # many are the model's own to the end
    for (seed, tools), found in zip(few, shaped, strict=True):
        for call in found.calls if found else ():
            assert is_valid(call, tools), (seed, call)


async def test_each_role_is_answered_by_its_own_adapter(tmp_path, checkpoint):
    """Adapters that change nothing plan and call as the model does; the loud one of the summarizer alters its words."""
    for role in ROLES:
        write_peft(tmp_path / role, seed=1, scale=2.0 if role == "summarizer" else 0.0)
    config = tmp_path / "nearfar.toml"
    config.write_text((CONFIG + ADAPTED).format(home=tmp_path / "data", python=VLLM_PYTHON, model=checkpoint))
    wired = build(Settings.load(config))
    store = await open_runs(wired.settings)
    told = {}

    try:
        async with store:
            for name in ("clerk", "unadapted"):
                async with open_agent(wired, wired.settings.agents[name], name, store) as agent:
                    told[name] = [event async for event in agent.stream("What is 6 times 7?")]
    finally:
        await wired.aclose()

    def of(name, kind):
        return [event for event in told[name] if isinstance(event, kind)]

    ended = [of(name, Ended)[0].result for name in told]
    assert [(each.status, each.reason) for each in ended] == [("answered", "")] * 2
    assert {event.role: event.model for event in of("clerk", Decided)} == {role: f"smol+{role}" for role in ROLES}
    assert {event.model for event in of("unadapted", Decided)} == {"smol"}
    said = [[(event.next, event.text) for event in of(name, Planned)] for name in told]
    called = [[(event.call.name, event.call.arguments) for event in of(name, Called)] for name in told]
    assert said[0] == said[1]
    assert called[0] == called[1]
    assert called[0]
    assert all(0 < event.score <= 1 for event in of("clerk", Planned))
    assert ended[0].text != ended[1].text
