"""What every `CodeRunner` keeps to: subclass `CodeRunnerContract`, and build one in `runner`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nearfar.agents.types import CodeLimits, CodeRunner

TIGHT = CodeLimits(seconds=0.5, memory_bytes=32 * 2**20, recursion=100, output_characters=1_000, calls=5)


def double(n: int) -> int:
    """Twice the number."""
    return 2 * n


class CodeRunnerContract:
    """The suite."""

    @pytest.fixture
    def runner(self) -> CodeRunner:
        """A runner; close it afterwards."""
        raise NotImplementedError

    async def test_last_expression_is_the_value(self, runner):
        """What is printed and what is given back come apart, letters and all."""
        result = await runner.run(
            "print('Grüße,', x)\nprint('世界', end='')\n{'sum': sum(x), 'of': (1, 'é')}", inputs={"x": [1, 2]}
        )

        assert result.value == {"sum": 3, "of": [1, "é"]}
        assert result.output == "Grüße, [1, 2]\n世界"
        assert (result.error, result.limit) == (None, None)
        assert result.seconds > 0

    async def test_code_without_an_expression_has_no_value(self, runner):
        """An assignment gives nothing back."""
        result = await runner.run("x = 3")

        assert (result.value, result.output, result.error) == (None, "", None)

    @pytest.mark.parametrize(
        ("code", "value"),
        [
            ("2**70", 2**70),
            ("float('inf')", "inf"),
            ("(1, [2, (3,)])", [1, [2, [3]]]),
            ("{1: None}", {"1": None}),
            ("b'ab'", "b'ab'"),
            ("sorted({3, 1, 2})", [1, 2, 3]),
            ("True", True),
        ],
    )
    async def test_values_are_plain(self, runner, code, value):
        """What JSON cannot say is said as text."""
        result = await runner.run(code)

        assert result.value == value
        assert type(result.value) is type(value)

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            ("1/0", "ZeroDivisionError"),
            ("x = ", "nvalid syntax|xpected an expression"),
            ("undefined + 1", "undefined"),
            ("assert 1 == 2, 'no\\nway'", "no way"),
            ("def f():\n    raise ValueError('odd one')\nf()", "odd one"),
        ],
    )
    async def test_errors_are_one_line(self, runner, code, told):
        """What the code raises is told, and what was printed before is kept."""
        result = await runner.run(f"print('before')\n{code}")

        assert result.error is not None
        assert any(each in result.error for each in told.split("|"))
        assert "\n" not in result.error
        assert result.limit is None
        assert result.output in ("before\n", "")  # "" where it did not parse

    async def test_granted_functions_are_called_here(self, runner):
        """Plain and async functions answer in the same way, by place and by name."""

        async def slow_sum(values: list[int], start: int = 0) -> dict[str, int]:
            await asyncio.sleep(0.01)
            return {"sum": sum(values, start)}

        functions = {"double": double, "slow_sum": slow_sum}

        result = await runner.run("g = double\nslow_sum([g(1), double(2)], start=4)['sum']", functions=functions)

        assert result.error is None
        assert result.value == 10

    async def test_errors_of_functions_are_the_codes_to_handle(self, runner):
        """The code may catch what a function raises; what it does not catch is its error."""

        def fussy(n: int) -> int:
            raise ValueError(f"not {n}")

        caught = await runner.run(
            "try:\n    fussy(3)\nexcept ValueError as exc:\n    r = 'caught ' + str(exc)\nr", functions={"fussy": fussy}
        )
        uncaught = await runner.run("fussy(4)", functions={"fussy": fussy})

        assert caught.value == "caught not 3"
        assert uncaught.error is not None
        assert "not 4" in uncaught.error

    async def test_time_of_functions_does_not_count(self, runner):
        """The limit is on the code, not on what it waits for."""

        async def wait() -> str:
            await asyncio.sleep(0.8)
            return "done"

        result = await runner.run("wait()", functions={"wait": wait}, limits=TIGHT)

        assert result.value == "done"

    @pytest.mark.parametrize(
        ("code", "limit"),
        [
            ("while True:\n    pass", "time"),
            ("x = []\nwhile True:\n    x.append('y' * 100_000)", "memory"),
            ("'y' * 10**9", "memory"),
            ("def f():\n    return f()\nf()", "recursion"),
            ("while True:\n    print('z' * 50)", "output"),
            ("print('z' * 5000)", "output"),
            ("'z' * 5000", "output"),
            ("while True:\n    double(1)", "calls"),
            ("while True:\n    try:\n        double(1)\n    except BaseException:\n        pass", "calls"),
        ],
    )
    async def test_limits_stop_it(self, runner, code, limit):
        """Each limit ends the code, and is named."""
        result = await runner.run(code, functions={"double": double}, limits=TIGHT)

        assert result.limit == limit
        assert result.error is not None
        assert "\n" not in result.error
        assert len(result.output) <= TIGHT.output_characters
        assert (await runner.run("1 + 1")).value == 2

    async def test_recursion_within_the_limit_is_fine(self, runner):
        """What is allowed is possible."""
        result = await runner.run(
            "def f(n):\n    return n and 1 + f(n - 1)\nf(80)", limits=replace(TIGHT, recursion=100)
        )

        assert result.value == 80

    async def test_runs_see_nothing_of_each_other(self, runner):
        """A name, a module's state or a builtin that one run sets is not there in the next."""
        await runner.run("import math\nleft = 'behind'\nmath.pi = 3")

        again = await runner.run("import math\nprint(math.pi)\nleft")

        assert again.output.startswith("3.14")
        assert again.error is not None
        assert "left" in again.error

    async def test_many_run_at_once(self, runner):
        """Each run has its own result."""
        results = await asyncio.gather(*(runner.run(f"print({i})\n{i} * 2") for i in range(8)))

        assert [(each.output, each.value) for each in results] == [(f"{i}\n", 2 * i) for i in range(8)]

    async def test_cancelling_stops_the_code(self, runner):
        """A cancelled run ends at once, and the next one works."""
        run = asyncio.create_task(runner.run("while True:\n    pass", limits=CodeLimits(seconds=600)))
        await asyncio.sleep(0.3)

        run.cancel()

        with pytest.raises(asyncio.CancelledError):
            await run
        assert (await runner.run("6 * 7")).value == 42

    async def test_cancelling_within_a_function_stops_both(self, runner):
        """A run that waits for a function is ended, too."""
        is_started, is_stopped = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            is_started.set()
            try:
                await asyncio.sleep(600)
            finally:
                is_stopped.set()

        run = asyncio.create_task(runner.run("wait()", functions={"wait": wait}))
        await is_started.wait()

        run.cancel()

        with pytest.raises(asyncio.CancelledError):
            await run
        assert is_stopped.is_set()
        assert (await runner.run("6 * 7")).value == 42

    async def test_code_that_is_too_long_is_refused(self, runner):
        """What no model writes is not even parsed."""
        result = await runner.run("x = 1\n" * 20_000)

        assert result.error is not None
        assert "characters" in result.error

    async def test_closing_twice_is_fine(self, runner):
        """And a closed runner may be closed before it ever ran."""
        await runner.aclose()
        await runner.aclose()
