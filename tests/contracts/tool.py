"""What every `Tool` keeps to: subclass `ToolContract`, and give it three tools of the kind."""

from __future__ import annotations

import asyncio

import jsonschema
import pytest

from nearfar.agents.types import Tool


class ToolContract:
    """The suite. The fixtures are tools: one that works, one that fails, and one that hangs."""

    @pytest.fixture
    def echo(self) -> Tool:
        """Gives the argument `text` back."""
        raise NotImplementedError

    @pytest.fixture
    def failing(self) -> Tool:
        """Fails, saying "broken on purpose"; takes no arguments."""
        raise NotImplementedError

    @pytest.fixture
    def stuck(self) -> Tool:
        """Never ends; takes no arguments."""
        raise NotImplementedError

    async def test_parameters_are_schema_of_an_object(self, echo):
        """A model is shown a schema that a validator accepts."""
        schema = dict(echo.spec.parameters)

        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert "text" in schema["properties"]

    async def test_result_is_observed(self, echo):
        """The text comes back whole, whatever its letters."""
        seen = await echo.call({"text": 'Grüße, 世界 "\\n"'})

        assert seen.kind == "result"
        assert not seen.is_error
        assert 'Grüße, 世界 "\\n"' in seen.text
        assert seen.latency_s > 0

    async def test_failure_is_observed(self, failing):
        """What goes wrong is told to the next role, and raises nothing."""
        seen = await failing.call({})

        assert seen.kind == "error"
        assert "broken on purpose" in seen.text

    async def test_many_calls_at_once(self, echo):
        """Each call gets its own result."""
        seen = await asyncio.gather(*(echo.call({"text": f"number {i}."}) for i in range(20)))

        assert [f"number {i}." in each.text for i, each in enumerate(seen)] == [True] * 20

    async def test_cancelling_stops_the_wait(self, stuck):
        """A cancelled call ends; nobody is told that it came to anything."""
        call = asyncio.create_task(stuck.call({}))
        await asyncio.sleep(0.1)

        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
