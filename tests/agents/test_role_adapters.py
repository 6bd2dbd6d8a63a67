"""The config gives each role an adapter of the embedded model: the same weights, another answerer for every role."""

from pathlib import Path

import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from support.gguf import write_lora
from support.weights import smollm2_path

from nearfar.agents.types import Called, Decided, Ended
from nearfar.config import Settings
from nearfar.wiring import build
from nearfar.wiring.agents import open_agent, open_runs

ROLES = ("planner", "caller", "summarizer")
CONFIG = """
[data]
dir = "data"

[models.smollm2]
kind = "llama.cpp"
path = {path!r}
context_window = 2048
parallel = 1
threads = 1
temperature = 0.0
loras = {{ planner = "planner.gguf", caller = "caller.gguf", summarizer = "summarizer.gguf" }}

[agents.clerk]
seconds = 300
num_examples = 2
[agents.clerk.roles]
planner = "smollm2+planner"
caller = "smollm2+caller"
summarizer = {{ model = "smollm2+summarizer", max_tokens = 8 }}
[agents.clerk.tools.calculator]
kind = "calculator"
"""


@pytest.mark.timeout(300)
async def test_each_role_is_answered_by_its_own_adapter(tmp_path: Path) -> None:
    """Adapters that change nothing let planner and caller do the sum; the summarizer's loud one alters its words."""
    for role in ROLES:
        write_lora(tmp_path / f"{role}.gguf", seed=1, scale=2.0 if role == "summarizer" else 0.0)
    config = tmp_path / "nearfar.toml"
    config.write_text(CONFIG.format(path=str(smollm2_path())))
    wired = build(Settings.load(config))
    store = await open_runs(wired.settings)

    try:
        async with store, open_agent(wired, wired.settings.agents["clerk"], "clerk", store) as agent:
            events = [event async for event in agent.stream("What is 6 times 7?")]
    finally:
        await wired.aclose()

    decided = {event.role: event.model for event in events if isinstance(event, Decided)}
    called = [event.call for event in events if isinstance(event, Called)]
    assert decided == {role: f"smollm2+{role}" for role in ROLES}
    assert [call.name for call in called] == ["calculator"]
    assert isinstance(events[-1], Ended)
    assert events[-1].result.status == "answered"
    assert "42" not in events[-1].result.text
