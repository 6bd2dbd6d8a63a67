"""Code as a tool: what a role that writes Python gets to see."""

import pytest

pytest.importorskip("pydantic_monty", reason="needs nearfar[agents]")

from contracts.tool import ToolContract

from nearfar.agents.code_monty import MontyRunner
from nearfar.agents.code_tool import CodeSource, CodeTool, find_runner
from nearfar.agents.types import CodeLimits
from nearfar.config import Settings
from nearfar.errors import ConfigError
from nearfar.wiring import build
from nearfar.wiring.agents import build_tools


@pytest.fixture
async def runner():
    """monty."""
    runner = MontyRunner(workers=4)
    yield runner
    await runner.aclose()


class AsText:
    """Code that does what the contract's tools do, given their arguments."""

    def __init__(self, tool: CodeTool, code: str, parameters: dict[str, object]) -> None:
        self.tool = tool
        self.code = code
        self.spec = type(tool.spec)(tool.name, tool.spec.description, {"type": "object", "properties": parameters})
        self.hints = tool.hints

    async def call(self, arguments):
        """Runs the code with the arguments written into it."""
        return await self.tool.call({"code": f"text = {arguments.get('text')!r}\n{self.code}"})


class TestCode(ToolContract):
    """Code keeps to the contract of tools."""

    @pytest.fixture
    def echo(self, runner):
        return AsText(CodeTool(runner), "text", {"text": {"type": "string"}})

    @pytest.fixture
    def failing(self, runner):
        return AsText(CodeTool(runner), "raise ValueError('broken on purpose')", {})

    @pytest.fixture
    def stuck(self, runner):
        return AsText(CodeTool(runner, limits=CodeLimits(seconds=600)), "while True: pass", {})


async def test_output_value_and_error_are_seen(runner):
    """What was printed before an error is not lost."""
    tool = CodeTool(runner)

    good = await tool.call({"code": "print('working')\n[1, 2]"})
    bad = await tool.call({"code": "print('working')\n1/0"})
    none = await tool.call({"code": "x = 1"})

    assert (good.text, good.structured) == ("working\n[1, 2]", [1, 2])
    assert bad.kind == "error"
    assert bad.text.startswith("working\n")
    assert "ZeroDivisionError" in bad.text
    assert none.text == "(no output)"


async def test_time_limit_is_a_timeout(runner):
    """The next role can tell slow from wrong."""
    seen = await CodeTool(runner, limits=CodeLimits(seconds=0.2)).call({"code": "while True: pass"})

    assert seen.kind == "timeout"


async def test_granted_functions_are_named_and_make_it_more_than_pure(runner):
    """A model is told what it may call; the hints no longer say that nothing changes."""
    pure, granted = CodeTool(runner), CodeTool(runner, {"add": lambda a, b: a + b})

    seen = await granted.call({"code": "add(1, add(2, 3))"})

    assert seen.structured == 6
    assert "add" in granted.spec.description
    assert (pure.hints.read_only, granted.hints.read_only) == (True, None)


async def test_sandboxes_are_found_by_name_or_refused(monkeypatch, tmp_path):
    """What is not here is not replaced by something weaker."""
    source = CodeSource("code", CodeTool(find_runner("monty")))
    (tool,) = await source.tools()
    monkeypatch.setenv("PATH", str(tmp_path))

    assert (await tool.call({"code": "2 + 3"})).structured == 5
    with pytest.raises(ConfigError, match="bubblewrap"):
        find_runner("bubblewrap")
    await source.aclose()


async def test_config_names_sandbox_and_documents(tmp_path):
    """An agent's tools of the kinds `code` and `openapi` are built as the config says, and their secrets are known."""
    (tmp_path / "table.jsonl").write_text('{"query": "a", "model": "m", "response": "b", "correct": 1}\n')
    (tmp_path / "api.json").write_text('{"openapi": "3.1.0", "servers": [{"url": "https://x.example"}], "paths": {}}')
    (tmp_path / "nearfar.toml").write_text(
        """
[models.m]
kind = "replay"
table = "table.jsonl"
model = "m"
placement = "near"
[data]
dir = "data"
[agents.a.tools.py]
kind = "code"
seconds = 0.5
[agents.a.tools.api]
kind = "openapi"
document = "api.json"
secrets = { key = "k-very-secret" }
"""
    )
    settings = Settings.load(tmp_path / "nearfar.toml", needs_keys=False)
    wired = build(settings)
    code, api = (build_tools(wired, name, settings.agents["a"].tools[name]) for name in ("py", "api"))

    (tool,) = await code.tools()
    seen = await tool.call({"code": "while True: pass"})

    assert seen.kind == "timeout"
    assert await api.tools() == []
    assert "k-very-secret" in settings.secrets
    for source in (code, api):
        await source.aclose()
    await wired.aclose()
