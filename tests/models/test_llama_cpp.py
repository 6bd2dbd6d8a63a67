"""The embedded model, on the real weights: the contract of every chat model, and what xllamacpp does in silence."""

import asyncio
import json
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts.chat_model import CLOCK, SCHEMA, WEATHER, ChatModelContract, ask, collect
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.gguf import write_lora
from support.weights import smollm2_path

from nearfar.errors import (
    ConfigError,
    ContextTooLong,
    ModelLoadError,
    RequestError,
    UnsupportedOption,
    UpstreamRejected,
    UpstreamUnavailable,
)
from nearfar.models.gbnf import Grammar
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.types import (
    Message,
    NamedTool,
    Price,
    Query,
    ResponseFormat,
    SamplingOptions,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
)

WINDOW = 1024


class Shared:
    """One loaded model for the whole module; a new one once a test has closed it."""

    def __init__(self) -> None:
        self.model: LlamaCppModel | None = None

    def open(self) -> LlamaCppModel:
        if self.model is None or self.model.unavailable():
            self.model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=WINDOW)
        return self.model


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    shared = Shared()
    yield shared
    if shared.model:
        asyncio.run(shared.model.aclose())


@pytest.fixture
def model(shared: Shared) -> LlamaCppModel:
    return shared.open()


class TestLlamaCppModel(ChatModelContract):
    """Every clause, live."""

    @pytest.fixture
    async def model(self, shared: Shared) -> LlamaCppModel:
        return shared.open()


def query(prompt: str | tuple[Message, ...] = "Say hello.", **sampling: Any) -> Query:
    return Query(prompt, sampling=SamplingOptions(**{"max_tokens": 16, **sampling}))


def held_to(grammar: str, **sampling: Any) -> Query:
    return replace(query(**sampling), response_format=ResponseFormat("grammar", grammar=grammar))


def json_schema(schema: dict[str, Any], *, strict: bool | None = None, **sampling: Any) -> Query:
    return replace(query(**sampling), response_format=ResponseFormat("json_schema", schema, strict=strict))


# --- loading ---------------------------------------------------------------------------------------------------------


def listening_sockets() -> int:
    """How many TCP sockets of this process listen."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    fds = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    listening = {f"socket:[{fields[9]}]" for fields in lines if fields[3] == "0A"}
    return sum(fd in listening for fd in fds)


async def test_weights_are_loaded_once_and_freed() -> None:
    """Nothing is loaded before the first query, one copy for many first queries at once, none after closing."""
    before = listening_sockets()  # xllamacpp opens one per loaded model
    model = LlamaCppModel(smollm2_path(), name="once", context_window=WINDOW, parallel=4)
    assert model.listening_address is None
    assert listening_sockets() == before

    answers = await asyncio.gather(*(model.complete(query()) for _ in range(6)))

    assert all(answer.text for answer in answers)
    assert listening_sockets() == before + 1
    await model.aclose()
    assert listening_sockets() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nearfar-once")]


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The planner hears of it before any call, and the caller what to do."""
    model = LlamaCppModel(tmp_path / "no.gguf", name="tiny")

    assert "no.gguf" in (model.unavailable() or "")
    with pytest.raises(ModelLoadError, match=r"'tiny': there is no file '.*no\.gguf'.*nearfar models get") as caught:
        await model.complete(query())
    assert caught.value.model == "tiny"
    await model.aclose()


async def test_a_file_that_comes_later_is_loaded(tmp_path: Path) -> None:
    """A failed load is tried again: the weights may have been fetched meanwhile."""
    path = tmp_path / "later.gguf"
    model = LlamaCppModel(path, name="tiny", context_window=WINDOW)
    with pytest.raises(ModelLoadError):
        await model.complete(query())

    path.symlink_to(smollm2_path())

    assert model.unavailable() is None
    assert (await model.complete(query())).text
    await model.aclose()


def broken(kind: str, path: Path) -> Path:
    whole = smollm2_path()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "another format":
            path.write_bytes(b"PK\x03\x04" + bytes(4096))
        case "cut short":
            with whole.open("rb") as file:
                path.write_bytes(file.read(50_000_000))
        case "unknown architecture":
            shutil.copyfile(whole, path)
            with path.open("r+b") as file:
                head = file.read(4096)
                file.seek(head.index(b"llama", head.index(b"general.architecture")))
                file.write(b"xxxxx")
        case "a folder":
            path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("empty", "failed to read magic"),
        ("another format", "invalid magic"),
        ("cut short", "corrupted or incomplete"),
        ("unknown architecture", "unknown model architecture: 'xxxxx'"),
        ("a folder", "there is no file"),
    ],
)
async def test_a_broken_file_is_named_with_the_cause(
    kind: str, cause: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp prints the cause and says only "failed"; the error has it, and the terminal nothing."""
    path = broken(kind, tmp_path / "broken.gguf")
    model = LlamaCppModel(path, name="tiny")

    with pytest.raises(ModelLoadError) as caught:
        await model.complete(query())

    message = str(caught.value)
    assert repr(str(path)) in message
    assert cause in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    await model.aclose()


async def test_a_window_that_the_weights_do_not_have_is_refused() -> None:
    """llama.cpp would cut it in silence, and the router would plan with the wrong number."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=32768, parallel=1)

    with pytest.raises(ModelLoadError, match="context_window is 32768 and the weights take 8192"):
        await model.complete(query())
    await model.aclose()


@pytest.mark.parametrize("option", ["context_window", "parallel", "threads", "max_output_tokens"])
def test_a_setting_that_makes_no_sense_is_refused(option: str) -> None:
    """Before any file is looked for."""
    with pytest.raises(ConfigError, match=f"{option} of 'tiny' is 0"):
        LlamaCppModel(Path("x.gguf"), name="tiny", **{option: 0})  # type: ignore[arg-type]


def test_several_event_loops_share_a_model() -> None:
    """The sync facade starts a loop per call."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=WINDOW)

    texts = [asyncio.run(model.complete(query())).text for _ in range(2)]

    asyncio.run(model.aclose())
    assert all(texts)


async def test_closing_ends_what_runs() -> None:
    """A stream that is being read ends with an error, and so does every later query."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=WINDOW)
    stream = model.stream(held_to('root ::= "a"*', max_tokens=900))
    await anext(stream)

    await model.aclose()

    with pytest.raises(UpstreamUnavailable, match="closed"):
        async for _ in stream:
            pass
    with pytest.raises(UpstreamUnavailable, match="closed"):
        await model.complete(query())
    assert model.unavailable() == "the model is closed"


# --- the HTTP server that xllamacpp opens ----------------------------------------------------------------------------


def status(url: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, str(response.headers)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, str(exc.headers)


async def test_the_http_server_is_locked(model: LlamaCppModel) -> None:
    """It listens on loopback only, and answers 401 to whoever has not the random key."""
    await model.complete(query())
    address = model.listening_address or ""
    assert address.startswith("http://127.0.0.1:")
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
    sent = {"Content-Type": "application/json", "Origin": "https://evil.example"}

    for path in ("/v1/chat/completions", "/completion", "/tokenize", "/props", "/slots/0", "/lora-adapters"):
        for extra in ({}, {"Authorization": "Bearer wrong"}):
            code, headers = await asyncio.to_thread(status, address + path, body=body, headers=sent | extra)
            assert code == 401, path
            assert "evil.example" not in headers
            assert "Allow-Origin: *" not in headers
    for path in ("/slots", "/props", "/metrics", "/v1/models"):
        assert (await asyncio.to_thread(status, address + path))[0] == 401, path
    assert (await asyncio.to_thread(status, address + "/"))[0] == 404  # no web page


# --- nothing on the terminal -----------------------------------------------------------------------------------------


async def test_llama_cpp_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither loading, nor answering, nor what it refuses."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=WINDOW)

    await model.complete(query(logprobs=True))
    await model.complete(json_schema({"type": "string", "pattern": "ab+", "maxLength": 4}))
    for bad in (
        held_to("root := x"),
        held_to("root ::= x"),
        held_to("root ::= <[99999999]>"),
        json_schema({"type": "frob"}),
        query("word " * 2000),
    ):
        with pytest.raises((RequestError, UpstreamRejected)):
            await model.complete(bad)
    await model.aclose()

    assert capfd.readouterr() == ("", "")


# --- the context window ----------------------------------------------------------------------------------------------


async def test_the_window_is_every_querys_own() -> None:
    """llama.cpp divides its context among its slots; a prompt that nearly fills the window fits all the same."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=256, parallel=2)
    long = query("word " * 200, max_tokens=2)

    answers = await asyncio.gather(*(model.complete(long) for _ in range(2)))

    for answer in answers:
        assert answer.usage is not None
        assert 200 < answer.usage.prompt_tokens < 256
    await model.aclose()


async def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(model: LlamaCppModel) -> None:
    """The error comes as a dictionary from xllamacpp."""
    with pytest.raises(ContextTooLong, match=rf"'smollm2': the prompt has \d+ tokens .*{WINDOW}") as caught:
        await model.complete(query("word " * 2 * WINDOW))

    assert caught.value.status == 400
    assert not caught.value.may_have_cost


async def test_an_answer_ends_where_the_window_ends() -> None:
    """An answer without a limit of its own is cut, and says so."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=256, parallel=1, max_output_tokens=None)

    answer = await model.complete(held_to('root ::= "a"*', max_tokens=None))

    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 256
    await model.aclose()


async def test_prompt_tokens_are_counted_as_they_are_billed(model: LlamaCppModel) -> None:
    """Template and tools included."""
    asked = replace(query("What is the weather in Paris?"), tools=(WEATHER, CLOCK))

    answer = await model.complete(asked)

    assert answer.usage is not None
    assert await model.count_prompt_tokens(asked) == answer.usage.prompt_tokens


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prompt", "answer"])
async def test_cancelling_stops_the_work(phase: str) -> None:
    """Each of these queries would take the only slot for a minute; a dozen would run into the test's time limit."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=8192, parallel=1, max_output_tokens=None)
    endless = held_to('root ::= "a"*', max_tokens=None)
    if phase == "prompt":
        endless = replace(endless, prompt=(Message("user", "word " * 8000),))
    await model.complete(query())

    for _ in range(12):
        stream = model.stream(endless)
        first = asyncio.create_task(anext(stream))
        done, _ = await asyncio.wait([first], timeout=0.3 if phase == "prompt" else None)
        assert bool(done) == (phase == "answer")
        first.cancel()
        await asyncio.wait([first])
        await stream.aclose()

    assert (await model.complete(query())).text
    await model.aclose()


async def test_a_queue_longer_than_the_slots_is_served_in_order(model: LlamaCppModel) -> None:
    """And queries that are cancelled while they wait never run."""
    calls = [asyncio.create_task(model.complete(query(max_tokens=4))) for _ in range(12)]
    await asyncio.sleep(0)
    for call in calls[1::2]:
        call.cancel()

    results = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(result, asyncio.CancelledError) for result in results[1::2])
    assert all(not isinstance(result, BaseException) for result in results[::2])


async def test_an_error_of_the_reader_surfaces(model: LlamaCppModel) -> None:
    """xllamacpp swallows what its callback raises; the reader of a stream is not its callback."""

    async def read() -> None:
        async with aclosing(model.stream(query())) as stream:
            async for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read()


# --- text ------------------------------------------------------------------------------------------------------------


async def test_characters_of_several_tokens_come_whole(model: LlamaCppModel) -> None:
    """An emoji is four tokens here; no delta holds a part of one."""
    text = "🙂🦄日本語 مرحبا é"

    events, answer = await collect(model.stream(held_to(f'root ::= "{text}"', max_tokens=96, logprobs=True)))

    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert answer.text == text == "".join(deltas)
    assert len(deltas) > 5
    assert all("\ufffd" not in delta for delta in deltas)


@pytest.mark.parametrize("stop", ["three", "two three", "o th", " ", "five", "e\u0301"])
@pytest.mark.parametrize("door", ["complete", "stream"])
async def test_no_part_of_a_stop_string_leaks(model: LlamaCppModel, stop: str, door: str) -> None:
    """Also where it spans tokens, or only seems to begin."""
    whole = "one two three four"

    answer = await ask(model, held_to(f'root ::= "{whole}"', max_tokens=32, stop=(stop,)), door)

    assert answer.text == whole.partition(stop)[0]
    assert answer.finish_reason == "stop"


async def test_a_seed_makes_the_answer_repeatable(model: LlamaCppModel) -> None:
    """Also after other queries, whose prompts share a prefix with it."""
    asked = query("Tell me a joke.", seed=11, temperature=1.0, max_tokens=24)

    first = await model.complete(asked)
    await model.complete(query("Tell me a joke about cats."))
    again = await model.complete(asked)
    others = {(await model.complete(query("Tell me a joke.", seed=s, temperature=1.0))).text for s in range(4)}

    assert again.text == first.text
    assert len(others) > 1


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**63])
async def test_every_seed_is_a_seed(model: LlamaCppModel, seed: int) -> None:
    """llama.cpp takes some numbers for "random"."""
    asked = query("Tell me a joke.", seed=seed, temperature=1.0)

    texts = {(await model.complete(asked)).text for _ in range(3)}

    assert len(texts) == 1


async def test_logit_bias_decides(model: LlamaCppModel) -> None:
    """Up to certainty, and down to never."""
    asked = query(logprobs=True, max_tokens=1, temperature=0.0)
    usual = await model.complete(asked)

    forced = await model.complete(replace(asked, sampling=replace(asked.sampling, logit_bias={"1000": 100.0})))
    again = await model.complete(replace(asked, sampling=replace(asked.sampling, logit_bias={"1000": -100.0})))

    assert forced.text != usual.text
    assert again.text == usual.text


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"logit_bias": {"49152": 1.0}}, "logit_bias"),
        ({"logit_bias": {"-1": 1.0}}, "logit_bias"),
        ({"logit_bias": {"hello": 1.0}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_k": -1}, "top_k"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ("a", "")}, "stop"),
    ],
)
async def test_an_option_out_of_range_is_refused_by_name(
    model: LlamaCppModel, sampling: dict[str, Any], param: str
) -> None:
    """llama.cpp would pass over most of them in silence."""
    with pytest.raises(RequestError) as caught:
        await model.complete(query(**sampling))

    assert caught.value.param == param


async def test_a_query_without_messages_is_refused(model: LlamaCppModel) -> None:
    """llama.cpp would answer the empty prompt."""
    with pytest.raises(RequestError) as caught:
        await model.complete(Query(()))

    assert caught.value.param == "messages"


async def test_the_answer_begins_anew_after_an_assistant_message(model: LlamaCppModel) -> None:
    """llama.cpp would go on writing the last message; no OpenAI client expects that."""
    turns = (Message("user", "Say hello."), Message("assistant", "Hello"))

    assert await model.count_prompt_tokens(Query(turns)) > await model.count_prompt_tokens(Query(turns[:1]))
    assert (await model.complete(query(turns))).text


async def test_the_price_is_the_users(shared: Shared) -> None:
    """Electricity is not free for everyone."""
    price = Price(1.0, 2.0)
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=WINDOW, price=price)

    answer = await model.complete(query())

    assert answer.usage is not None
    assert answer.cost_usd == price.cost_usd(answer.usage) > 0
    await model.aclose()


# --- shapes ----------------------------------------------------------------------------------------------------------


async def test_logprobs_under_a_grammar_are_the_models_own(model: LlamaCppModel) -> None:
    """What the grammar forced shows as unlikely: that is what a scorer wants to see."""
    answer = await model.complete(held_to('root ::= "xylophone"', logprobs=True, top_logprobs=5, temperature=0.0))

    assert answer.logprobs is not None
    first = answer.logprobs[0]
    assert first.logprob < -3
    assert any(not "xylophone".startswith(token) for token, _ in first.top)


@pytest.mark.parametrize(
    "schema",
    [{"type": "frob"}, {"$ref": "#/$defs/missing"}, {"type": "string", "pattern": "(?=a)b"}],
    ids=["type", "ref", "pattern"],
)
@pytest.mark.parametrize("strict", [None, True])
async def test_a_schema_that_makes_no_grammar_is_refused(
    model: LlamaCppModel, schema: dict[str, Any], strict: bool | None
) -> None:
    """llama.cpp drops a grammar that it cannot compile, and answers as if none had been asked for."""
    with pytest.raises(RequestError) as caught:
        await model.complete(json_schema(schema, strict=strict))

    assert caught.value.param == "response_format"


async def test_only_a_strict_schema_must_be_enforced_to_the_last_keyword(model: LlamaCppModel) -> None:
    """As in OpenAI's API: without `strict` the schema is kept as far as can be."""
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3, "uniqueItems": True}

    assert set(json.loads((await model.complete(json_schema(schema))).text)) <= {1, 2}
    with pytest.raises(RequestError, match="uniqueItems"):
        await model.complete(json_schema(schema, strict=True))


async def test_a_json_object_is_one(model: LlamaCppModel) -> None:
    """`response_format` "json_object" asks for no schema."""
    asked = query("Describe Paris in JSON with a name and a country.", max_tokens=256, seed=1)

    answer = await model.complete(replace(asked, response_format=ResponseFormat("json_object")))

    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)
    else:
        assert answer.text.startswith("{")


async def test_a_broken_grammar_is_refused_with_the_reason(model: LlamaCppModel) -> None:
    """Syntax by us; what only the model finds by a probe."""
    with pytest.raises(RequestError, match="'::=' is expected in line 1"):
        await model.complete(held_to("root := x"))
    with pytest.raises(RequestError, match="names a token that the model has not"):
        await model.complete(held_to("root ::= <[99999999]>"))


HOSTILE_GRAMMARS = {
    "left recursion": 'root ::= root "a" | "b"',
    "a least above its most": 'root ::= "a"{5,2}',
    "optional letters": "root ::= " + '"a"? ' * 300,
    "many ways to read": "root ::= r0\n"
    + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40))
    + '\nr40 ::= "x"?',
    "two ways at every letter": 'root ::= s\ns ::= "a" s "x" | "a" s "y" | "a"',
    "a chain of rules": 'root ::= r0 "a"\n'
    + "\n".join(f'r{i} ::= r{i + 1} "a"' for i in range(990))
    + '\nr990 ::= "x"',
    "a longer chain": 'root ::= r0 "a"\n'
    + "\n".join(f'r{i} ::= r{i + 1} "a"' for i in range(99_999))
    + '\nr99999 ::= "x"',
    "groups in groups": f"root ::= {'(' * 60}.{')' * 60}",
    "repetitions of repetitions": 'root ::= ("a"{1000}){1000}',
    "many words": "root ::= " + " | ".join(f'"{i:04}"' for i in range(2000)),
}


@pytest.mark.parametrize("grammar", HOSTILE_GRAMMARS.values(), ids=HOSTILE_GRAMMARS)
async def test_no_grammar_takes_the_process_along(model: LlamaCppModel, grammar: str) -> None:
    """llama.cpp's own engine ends the process, or never ends, over most of these: here they are kept to, or refused."""
    refusal = ""
    try:
        answer = await model.complete(held_to(grammar, max_tokens=4, temperature=0.0))
    except (RequestError, UpstreamRejected) as exc:
        refusal = str(exc)

    assert "grammar" in refusal or not Grammar(grammar).refuses(answer.text, is_whole=answer.finish_reason == "stop")
    assert (await model.complete(query(max_tokens=1))).usage


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}, "array of 1000000000 elements"),
        ({"enum": [f"value {i}" for i in range(10_000)]}, "characters"),
    ],
    ids=["elements", "length"],
)
async def test_a_schema_beyond_all_answers_is_refused(model: LlamaCppModel, schema: dict[str, Any], says: str) -> None:
    """llguidance took 20 GB to prepare for a billion elements, and drops what is too long in mid-answer."""
    with pytest.raises(RequestError, match=says) as caught:
        await model.complete(json_schema(schema))

    assert caught.value.param == "response_format"


async def test_a_bound_that_no_answer_reaches_is_left_out(model: LlamaCppModel) -> None:
    """But for data that only looks like one."""
    schema = {"type": "array", "items": {"const": {"maxItems": 10**9}}, "maxItems": 10**9, "minItems": 1}

    answer = await model.complete(json_schema(schema, strict=True, max_tokens=64))

    assert answer.text.startswith('[{"maxItems": 1000000000}')


SCALARS = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "integer", "minimum": -5, "maximum": 120},
        {"enum": ["é", 'quo"te', 3, None]},
        {"const": "</tool_call>"},
        {"type": "string", "maxLength": 6},
        {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 10},
        {"type": "string", "format": "date"},
        {"anyOf": [{"type": "boolean"}, {"const": "maybe"}]},
    ]
)
VALUES = SCALARS | st.builds(lambda item: {"type": "array", "items": item, "minItems": 1, "maxItems": 2}, SCALARS)
PARAMETERS = st.dictionaries(st.sampled_from(["a", "b c", "ü", 'k"']), VALUES, max_size=3).map(
    lambda properties: {"type": "object", "properties": properties, "required": sorted(properties)}
)


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` fits one of the schemas above."""
    match schema:
        case {"anyOf": choices}:
            return any(valid(value, choice) for choice in choices)
        case {"enum": choices}:
            return value in choices
        case {"const": only}:
            return bool(value == only)
        case {"type": "object", "properties": properties}:
            return set(value) == set(properties) and all(valid(value[key], properties[key]) for key in properties)
        case {"type": "array", "items": item}:
            return 1 <= len(value) <= 2 and all(valid(each, item) for each in value)
        case {"type": "boolean"}:
            return isinstance(value, bool)
        case {"type": "integer"}:
            return isinstance(value, int) and -5 <= value <= 120
        case {"type": "string", "maxLength": length}:
            return isinstance(value, str) and len(value) <= length
        case {"type": "string"}:
            return isinstance(value, str) and len(value) == 10
    return value is None or 0 <= value < 10


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parameters=PARAMETERS, seed=st.integers(0, 49))
@example(parameters={"type": "object", "properties": {}, "required": []}, seed=10)  # only the marker is cut off
def test_a_forced_call_fits_its_schema(shared: Shared, parameters: dict[str, Any], seed: int) -> None:
    """Whatever the schema, however the dice fall, and wherever the token limit does."""
    tool = ToolSpec("act", "Do something.", parameters)
    asked = replace(
        query("Do it.", max_tokens=8 + seed, temperature=1.2, seed=seed),
        tools=(WEATHER, tool),
        tool_choice=NamedTool("act"),
    )

    answer = asyncio.run(shared.open().complete(asked))

    assert answer.text == ""
    (call,) = answer.tool_calls
    assert call.name == "act"
    assert valid(json.loads(call.arguments), parameters)
    assert answer.finish_reason == ("length" if answer.signals.get("finished_characters") else "tool_calls")


# --- tools -----------------------------------------------------------------------------------------------------------


def habit(*cities: str) -> tuple[Message, ...]:
    """A conversation whose every question was answered by a call, and one more question."""
    turns: list[Message] = []
    for city in cities[:-1]:
        call = ToolCall("call_1", "get_weather", json.dumps({"city": city, "is_metric": True}))
        turns += [
            Message("user", f"Weather in {city}?"),
            Message("assistant", tool_calls=(call,)),
            Message("tool", "12 degrees", tool_call_id="call_1"),
            Message("assistant", "12 degrees."),
        ]
    return (*turns, Message("user", f"Weather in {cities[-1]}?"))


@pytest.mark.parametrize("door", ["complete", "stream"])
async def test_auto_may_call(model: LlamaCppModel, door: str) -> None:
    """A model with the habit of calling goes on to call."""
    asked = query(habit("Paris", "Rome", "Paris", "Rome"), max_tokens=96, temperature=0.0)

    answer = await ask(model, replace(asked, tools=(WEATHER,)), door)

    assert answer.finish_reason == "tool_calls"
    (call,) = answer.tool_calls
    assert call.name == "get_weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert "tool_call" not in answer.text


async def test_auto_may_answer(model: LlamaCppModel) -> None:
    """Text streams as it comes, and is not held back until the end."""
    asked = replace(query("Write a long story about a dragon.", max_tokens=24), tools=(WEATHER,))

    events, answer = await collect(model.stream(asked))

    assert answer.tool_calls == ()
    assert answer.finish_reason in ("stop", "length")
    assert len([event for event in events if isinstance(event, TextDelta) and event.text]) > 5


async def test_a_streamed_call_names_itself_first(model: LlamaCppModel) -> None:
    """As OpenAI clients expect: index, id and name in the first piece."""
    asked = replace(query(max_tokens=64), tools=(CLOCK,), tool_choice="required")

    events, answer = await collect(model.stream(asked))

    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert (deltas[0].index, deltas[0].name) == (0, "get_time")
    assert deltas[0].id == answer.tool_calls[0].id


async def test_several_calls_need_to_be_allowed(model: LlamaCppModel) -> None:
    """One call is the default; with `parallel_tool_calls` there may be more, each with its own id."""
    asked = replace(query("Time in Paris and in Rome?", max_tokens=128), tools=(CLOCK,), tool_choice="required")

    one = await model.complete(asked)
    several = await model.complete(replace(asked, parallel_tool_calls=True))

    assert len(one.tool_calls) == 1
    assert 1 <= len(several.tool_calls) <= 8
    assert len({call.id for call in several.tool_calls}) == len(several.tool_calls)


@pytest.mark.parametrize("max_tokens", [1, 3, 12, 20])
async def test_a_call_that_the_limit_cuts_off_is_finished(model: LlamaCppModel, max_tokens: int) -> None:
    """It is valid; the finish reason and a signal say that not all of it is the model's."""
    asked = replace(query(max_tokens=max_tokens, seed=1), tools=(WEATHER,), tool_choice="required")

    events, answer = await collect(model.stream(asked))

    (call,) = answer.tool_calls
    assert (answer.text, answer.finish_reason, call.name) == ("", "length", "get_weather")
    assert isinstance(json.loads(call.arguments)["city"], str)
    assert answer.signals["finished_characters"] > 0
    assert [event.arguments for event in events if isinstance(event, ToolCallDelta)] == [call.arguments]


async def test_a_call_has_logprobs(model: LlamaCppModel) -> None:
    """A scorer judges a call as it judges text."""
    asked = replace(query(max_tokens=64, logprobs=True), tools=(CLOCK,), tool_choice="required")

    answer = await model.complete(asked)

    assert answer.tool_calls
    assert "get" in "".join(each.token for each in answer.logprobs or ())


async def test_a_stop_string_does_not_break_a_forced_call(model: LlamaCppModel) -> None:
    """It ends text, and a forced call has none."""
    asked = replace(query(max_tokens=64, stop=('"', "{")), tools=(CLOCK,), tool_choice="required")

    assert (await model.complete(asked)).finish_reason == "tool_calls"


async def test_an_answer_beside_tools_keeps_its_schema(model: LlamaCppModel) -> None:
    """A call or the JSON that was asked for, and nothing else."""
    asked = query("Is red a warm colour? Answer in JSON.", max_tokens=96)
    asked = replace(asked, tools=(WEATHER,), response_format=ResponseFormat("json_schema", SCHEMA, strict=True))

    answer = await model.complete(asked)

    assert answer.tool_calls or set(json.loads(answer.text)) == {"colour", "is_warm"}


async def test_a_tools_broken_schema_is_refused_by_name(model: LlamaCppModel) -> None:
    """The field at fault is the tools."""
    tool = ToolSpec("act", "", {"type": "object", "properties": {"a": {"type": "frob"}}})

    with pytest.raises(RequestError) as caught:
        await model.complete(replace(query(), tools=(tool,)))

    assert caught.value.param == "tools"


async def test_a_grammar_beside_tools_is_refused(model: LlamaCppModel) -> None:
    """By name, since only one of them can be kept."""
    with pytest.raises(UnsupportedOption) as caught:
        await model.complete(replace(held_to('root ::= "a"'), tools=(WEATHER,)))

    assert caught.value.param == "response_format"


# --- LoRA ------------------------------------------------------------------------------------------------------------


async def test_an_adapter_answers_only_where_it_is_named(tmp_path: Path) -> None:
    """The base model is as it was, also right after the adapter has answered."""
    loras = {"loud": write_lora(tmp_path / "loud.gguf", seed=1, scale=2.0)}
    loras["quiet"] = write_lora(tmp_path / "quiet.gguf", seed=2, scale=0.0)
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=WINDOW, loras=loras)
    asked = query(seed=1, temperature=0.0, logprobs=True, max_tokens=4)

    base = await model.complete(asked)
    loud = await model.with_lora("loud").complete(asked)
    quiet = await model.with_lora("quiet").complete(asked)
    again = await model.complete(asked)

    assert loud.model == "smollm2+loud"
    assert loud.logprobs != base.logprobs
    assert quiet.logprobs == base.logprobs == again.logprobs
    await model.aclose()


async def test_an_unknown_adapter_is_refused(tmp_path: Path) -> None:
    """xllamacpp passes over an id that it does not know."""
    lora = write_lora(tmp_path / "a.gguf", seed=1, scale=1.0)
    model = LlamaCppModel(smollm2_path(), name="smollm2", loras={"a": lora})

    with pytest.raises(ConfigError, match=r"'smollm2' has no LoRA adapter 'b'\. It has: a"):
        model.with_lora("b")
    await model.aclose()


async def test_a_missing_adapter_is_a_load_error(tmp_path: Path) -> None:
    """It is named like the weights are."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", loras={"a": tmp_path / "no-lora.gguf"})

    with pytest.raises(ModelLoadError, match=r"no-lora\.gguf"):
        await model.complete(query())
    await model.aclose()


async def test_a_large_tool_holds_nobody_up(model: LlamaCppModel) -> None:
    """Its grammar takes a second to make, in which others are answered."""
    names = {"type": "string", "enum": [f"name {i}" for i in range(3000)]}
    tool = ToolSpec("f", "d", {"type": "object", "properties": {"a": names}, "required": ["a"]})
    call = asyncio.create_task(model.complete(replace(query(), tools=(tool,), tool_choice="required")))
    begun = last = time.monotonic()
    longest = 0.0
    while not call.done():
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()

    with pytest.raises(ContextTooLong):
        await call
    assert longest < (last - begun) / 2
