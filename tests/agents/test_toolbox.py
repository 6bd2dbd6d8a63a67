"""A toolbox runs what is valid and allowed, and makes an observation of whatever else happens."""

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from nearfar.agents.functions import FunctionTool
from nearfar.agents.policy import ToolPolicy
from nearfar.agents.secrets import SecretBindings
from nearfar.agents.toolbox import Toolbox, ToolLimits
from nearfar.agents.types import Observation, ToolHints
from nearfar.errors import ConfigError
from nearfar.types import ToolCall, ToolSpec

READS = ToolHints(read_only=True)


class Remote:
    """A tool as a server would offer it: its schema, and hints that nobody vouches for."""

    def __init__(
        self,
        parameters: Mapping[str, Any] | None = None,
        *outcomes: Observation | BaseException,
        name: str = "remote",
        hints: ToolHints | None = None,
    ) -> None:
        self.spec = ToolSpec(name, "", {"type": "object"} if parameters is None else parameters)
        self.hints = hints or ToolHints()
        self.outcomes = outcomes or (Observation("ok"),)
        self.calls: list[Mapping[str, Any]] = []

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """The next outcome; the last one repeats."""
        self.calls.append(arguments)
        outcome = self.outcomes[min(len(self.calls), len(self.outcomes)) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def call(name: str, arguments: Any = None, id_: str = "c1") -> ToolCall:
    return ToolCall(id_, name, arguments if isinstance(arguments, str) else json.dumps(arguments or {}))


def allowed(*tools: Any, **options: Any) -> Toolbox:
    return Toolbox(tools, ToolPolicy(unsaid="allow", rules={"*": "allow"}), **options)


def add(a: int, b: int = 1) -> int:
    """Adds.

    Args:
        a: the first
            number
        b: the second
    """
    return a + b


async def test_a_valid_call_runs() -> None:
    """The function's value comes back as text and as JSON."""
    box = allowed(FunctionTool(add))

    seen = await box.run(call("add", {"a": 2, "b": 3}))

    assert (seen.text, seen.structured, seen.kind, seen.attempts) == ("5", 5, "result", 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"a": "two"}, "a: 'two' is not of type 'integer'"),
        ({}, "'a' is a required property"),
        ({"a": 1, "c": 2}, "'c' was unexpected"),
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 100_000, "not JSON"),
    ],
)
async def test_an_invalid_call_never_runs_and_says_why(arguments: Any, said: str) -> None:
    """The observation names the field."""
    ran = threading.Event()

    def add(a: int, b: int = 1) -> int:
        ran.set()
        return a + b

    box = allowed(FunctionTool(add))
    seen = await box.run(call("add", arguments))

    assert seen.kind == "invalid"
    assert said in seen.text
    assert box.check(call("add", arguments)).action == "deny"
    assert not ran.is_set()


async def test_an_unknown_tool_names_the_nearest() -> None:
    """A name that is nearly right is told which is right."""
    seen = await allowed(FunctionTool(add)).run(call("ad"))

    assert seen.kind == "invalid"
    assert seen.text == "there is no tool 'ad'. There is: add"


# --- policy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "action"),
    [
        (ToolHints(read_only=True, is_trusted=True), "allow"),
        (ToolHints(read_only=True), "ask"),
        (ToolHints(), "ask"),
        (ToolHints(is_trusted=True), "ask"),
        (ToolHints(read_only=True, destructive=True, is_trusted=True), "ask"),
        (ToolHints(read_only=True, open_world=True, is_trusted=True), "ask"),
        (ToolHints(read_only=False, is_trusted=True), "ask"),
    ],
)
def test_hints_decide_where_no_rule_does(hints: ToolHints, action: str) -> None:
    """Only a vouched-for read-only tool runs unasked."""
    assert ToolPolicy().verdict("x", hints).action == action


@pytest.mark.parametrize("hints", [ToolHints(destructive=True), ToolHints(open_world=True), ToolHints(read_only=False)])
def test_hints_raise_care_above_a_lenient_default(hints: ToolHints) -> None:
    """A tool that says it does harm asks even where the rest runs."""
    assert ToolPolicy(unsaid="allow").verdict("x", ToolHints()).action == "allow"
    assert ToolPolicy(unsaid="allow").verdict("x", hints).action == "ask"


def test_rules_go_before_hints_and_the_narrower_before_the_wider() -> None:
    """A name, then the longest pattern."""
    policy = ToolPolicy({"files.*": "allow", "*": "deny", "files.rm": "ask"})

    assert policy.verdict("files.read", ToolHints(destructive=True)).action == "allow"
    assert policy.verdict("files.rm", READS).action == "ask"
    assert policy.verdict("other", ToolHints(read_only=True, is_trusted=True)).action == "deny"


def test_an_unknown_action_is_refused() -> None:
    """The message lists those that there are."""
    with pytest.raises(ConfigError, match="allow, ask, deny"):
        ToolPolicy({"x": "maybe"})  # type: ignore[dict-item]


async def test_what_asks_runs_only_when_a_person_said_yes() -> None:
    """Without approval nothing runs."""
    tool = Remote()
    box = Toolbox([tool])

    refused = await box.run(call("remote"))
    assert (refused.kind, tool.calls) == ("denied", [])

    seen = await box.run(call("remote"), approved=True)
    assert (seen.kind, len(tool.calls)) == ("result", 1)


async def test_what_is_denied_runs_for_nobody_and_is_not_offered() -> None:
    """Approval does not help."""
    tool = Remote()
    box = Toolbox([tool], ToolPolicy({"remote": "deny"}))

    seen = await box.run(call("remote"), approved=True)

    assert (seen.kind, tool.calls, box.specs()) == ("denied", [], ())


# --- failure ---------------------------------------------------------------------------------------------------------


async def test_a_tool_that_raises_is_an_observation() -> None:
    """Also one that raises in spite of its contract, and one that tries to end the process."""

    def fails() -> None:
        raise ValueError("no such city")

    def exits() -> None:
        raise SystemExit(3)

    box = allowed(FunctionTool(fails), FunctionTool(exits), Remote({}, KeyError("x")))

    assert await said(box, "fails") == ("error", "ValueError: no such city")
    assert await said(box, "exits") == ("error", "the tool tried to end the process: SystemExit(3)")
    assert await said(box, "remote") == ("error", "KeyError: 'x'")


async def said(box: Toolbox, name: str) -> tuple[str, str]:
    seen = await box.run(call(name))
    return seen.kind, seen.text


async def test_a_tool_that_hangs_is_left_behind() -> None:
    """Sync, async, and one that will not be cancelled: each is a timeout, and other calls run meanwhile."""
    release = threading.Event()
    stubborn = asyncio.Event()

    def hangs() -> None:
        release.wait(30)

    async def sleeps() -> None:
        await asyncio.sleep(30)

    async def clings() -> None:
        while not stubborn.is_set():
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await stubborn.wait()

    box = allowed(
        FunctionTool(hangs),
        FunctionTool(sleeps),
        FunctionTool(clings),
        FunctionTool(add),
        limits={"*": ToolLimits(seconds=0.1), "add": ToolLimits(seconds=30)},
    )
    calls = [call("hangs"), call("sleeps"), call("clings"), call("add", {"a": 1})]
    seen = await box.run_all(calls)
    release.set()
    stubborn.set()

    assert [each.kind for each in seen] == ["timeout", "timeout", "timeout", "result"]


async def test_cancelling_stops_the_tool() -> None:
    """The tool sees the cancellation, and so does the caller."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def sleeps() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    task = asyncio.create_task(allowed(FunctionTool(sleeps)).run(call("sleeps")))
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@pytest.mark.parametrize(
    ("hints", "attempts"),
    [
        (ToolHints(idempotent=True, is_trusted=True), 3),
        (ToolHints(read_only=True, is_trusted=True), 3),
        (ToolHints(is_trusted=True), 1),
        (ToolHints(idempotent=True, read_only=True), 1),
    ],
)
async def test_only_what_may_run_twice_is_tried_again(hints: ToolHints, attempts: int) -> None:
    """Idempotent or read-only, and not by a server's word alone."""
    tool = Remote({}, Observation("gone", "unreachable"), hints=hints)
    box = allowed(tool, limits={"remote": ToolLimits(attempts=3)})

    seen = await box.run(call("remote"))

    assert (seen.kind, seen.attempts, len(tool.calls)) == ("unreachable", attempts, attempts)


async def test_an_error_is_not_tried_again() -> None:
    """The tool has answered; asking twice changes nothing."""
    tool = Remote({}, Observation("no", "error"), hints=ToolHints(idempotent=True, is_trusted=True))

    assert (await allowed(tool).run(call("remote"))).attempts == 1


# --- size ------------------------------------------------------------------------------------------------------------


async def test_a_hundred_megabytes_are_cut() -> None:
    """Begin and end are kept, and what is left out is counted."""
    text = f"begin {'x' * 100_000_000} end"
    box = allowed(
        Remote({}, Observation(text, structured={"text": text})), limits={"remote": ToolLimits(characters=100)}
    )

    seen = await box.run(call("remote"))

    assert seen.is_truncated
    assert seen.structured is None
    assert seen.text.startswith("begin xxx")
    assert seen.text.endswith("xxx end")
    assert f"{len(text) - 100} characters left out" in seen.text
    assert len(seen.text) < 200


async def test_binary_is_described() -> None:
    """A model has no use for bytes."""

    def picture() -> bytes:
        return b"\x89PNG\r\n" + bytes(1000)

    seen = await allowed(FunctionTool(picture)).run(call("picture"))

    assert seen.text == "binary data, 1006 bytes, not shown; it begins with 89 50 4e 47 0d 0a" + " 00" * 10


# --- secrets ---------------------------------------------------------------------------------------------------------

BOUND = SecretBindings({"remote": {"header": "Bearer secret:TOKEN"}}, {"TOKEN": 'tök"en-123456'})
WITH_HEADER = {
    "type": "object",
    "properties": {"header": {"type": "string"}, "q": {"type": "string"}},
    "required": ["header", "q"],
}


async def test_a_secret_is_put_in_after_the_model() -> None:
    """The model sees no such argument, and the tool gets it."""
    tool = Remote(WITH_HEADER)
    box = allowed(tool, secrets=BOUND)

    (spec,) = box.specs()
    await box.run(call("remote", {"q": "x"}))

    assert "header" not in json.dumps(spec.parameters)
    assert tool.calls == [{"q": "x", "header": 'Bearer tök"en-123456'}]


async def test_a_model_that_writes_the_secret_argument_is_refused() -> None:
    """It may not choose what stands there."""
    tool = Remote(WITH_HEADER)

    seen = await allowed(tool, secrets=BOUND).run(call("remote", {"q": "x", "header": "mine"}))

    assert (seen.kind, tool.calls) == ("invalid", [])


async def test_no_form_of_a_secret_comes_back() -> None:
    """As it is, in JSON, in a URL, in base64 at any offset, in structured values, and across the cut."""
    import base64
    from urllib.parse import quote

    value = BOUND.values["TOKEN"]
    encoded = [base64.b64encode(f"{'u' * i}{value}after".encode()).decode() for i in range(4)]
    forms = [value, json.dumps(value)[1:-1], quote(value), value.encode().hex(), *encoded]
    text = " | ".join(forms)
    cut = f"{'x' * 93}{value}{'y' * 5000}"
    box = allowed(
        Remote(WITH_HEADER, Observation(text, structured={value: [text]}), Observation(cut)),
        secrets=BOUND,
        limits={"remote": ToolLimits(characters=3000)},
    )

    seen = await box.run(call("remote", {"q": "x"}))
    across = await box.run(call("remote", {"q": "x"}))

    for form in forms[:4]:
        assert form not in seen.text
        assert form not in json.dumps(seen.structured, ensure_ascii=False)
    assert all(piece[8:20] not in seen.text for piece in encoded)
    assert "[secret TOKEN]" in seen.text
    assert "tök" not in across.text


@pytest.mark.parametrize("before", range(60, 120))
async def test_a_secret_at_the_cut_is_not_told_by_half(before: int) -> None:
    """Wherever it stands, no part of it is left on either side."""
    text = f"{'x' * before}{BOUND.values['TOKEN']}{'y' * 400}"
    box = allowed(Remote(WITH_HEADER, Observation(text)), secrets=BOUND, limits={"*": ToolLimits(characters=120)})

    seen = await box.run(call("remote", {"q": "x"}))

    assert "tök" not in seen.text
    assert "123456" not in seen.text


@pytest.mark.parametrize(
    ("arguments", "values", "why"),
    [
        ({"remote": {"header": "secret:GONE"}}, {}, "GONE"),
        ({"remote": {"header": "plain"}}, {}, "bound to no secret"),
        ({}, {"SHORT": "abc"}, "shorter"),
    ],
)
def test_a_wrong_binding_is_refused(arguments: Any, values: Any, why: str) -> None:
    """Before any call."""
    with pytest.raises(ConfigError, match=why):
        SecretBindings(arguments, values)


def test_a_binding_to_nothing_is_refused() -> None:
    """A tool or an argument that is not there."""
    with pytest.raises(ConfigError, match="'remote'"):
        Toolbox([], secrets=BOUND)
    with pytest.raises(ConfigError, match="'header'"):
        Toolbox([Remote({"type": "object"})], secrets=BOUND)


# --- what a server may claim -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array"}, "not of an object"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "not valid"),
        ({"type": "object", "required": "a"}, "not valid"),
        (
            {"type": "object", "properties": {"a": {"$ref": "https://example.org"}}, "required": ["a"]},
            "another document",
        ),
        ({"type": "object", "anyOf": [{"$ref": "#"}]}, "without end"),
    ],
)
async def test_a_broken_schema_leaves_the_tool_out(schema: Mapping[str, Any], why: str) -> None:
    """The others work, and a call of it says why it cannot be used."""
    box = allowed(Remote(schema), FunctionTool(add))

    assert why in box.refused["remote"]
    assert why in (await box.run(call("remote"))).text
    assert [spec.name for spec in box.specs()] == ["add"]


def test_what_no_model_can_be_made_to_write_is_told() -> None:
    """The tool is there; the argument that no grammar can say is named."""
    box = allowed(Remote({"type": "object", "properties": {"a": {"pattern": "(?=x)"}, "b": {}}}))

    assert box.refused == {}
    assert "looks ahead" in box.narrowed["remote"][0]


def test_two_tools_of_one_name_are_refused() -> None:
    """Nobody could tell which one was meant."""
    with pytest.raises(ConfigError, match="two tools are named 'remote'"):
        allowed(Remote(), Remote())


async def test_calls_run_at_once() -> None:
    """Sync functions too: each has a thread."""
    barrier = threading.Barrier(4, timeout=10)

    def meets() -> str:
        barrier.wait()
        return threading.current_thread().name

    start = time.monotonic()
    seen = await allowed(FunctionTool(meets)).run_all([call("meets", id_=str(i)) for i in range(4)])

    assert [each.kind for each in seen] == ["result"] * 4
    assert time.monotonic() >= start


async def test_a_tool_of_unicode_name_is_called() -> None:
    """Names are texts."""
    seen = await allowed(FunctionTool(add, name="加算_ß")).run(call("加算_ß", {"a": 1}))

    assert seen.text == "2"
