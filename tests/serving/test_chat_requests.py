"""A chat completion's body becomes a query, or is refused by the name of the field at fault."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.serving.gateway.chat import parse_chat
from nearfar.serving.gateway.schemas import MAX_DEPTH
from nearfar.types import ContentPart, Message, NamedTool, ResponseFormat, ToolCall, ToolSpec

HI = [{"role": "user", "content": "Hi"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def parse(**fields):
    return parse_chat(json.dumps({"model": "auto", "messages": HI, **fields}).encode(), 600.0)


def test_every_known_option_arrives():
    """What OpenAI's clients send is in the query, under the query's names."""
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}

    call = parse(
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=3,
        stop=["a", "b"],
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=4,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "f"}},
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        stream=True,
        stream_options={"include_usage": True},
        user="ann",
        metadata={"run": "7"},
        n=1,
        reasoning_effort="low",
        nearfar={"budget_usd": 0.01, "deadline_s": 5, "privacy": "near", "session": "s", "when_unsure": "abstain"},
    )

    query, sampling = call.query, call.query.sampling
    assert call.stream
    assert call.include_usage
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 40)
    assert (sampling.min_p, sampling.seed, sampling.stop) == (0.1, 3, ("a", "b"))
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, -0.1)
    assert (sampling.logit_bias, sampling.logprobs, sampling.top_logprobs) == ({"5": -100.0}, True, 4)
    assert sampling.extra == {"reasoning_effort": "low"}
    assert query.tools == (ToolSpec("f", "d", {"type": "object"}),)
    assert query.tool_choice == NamedTool("f")
    assert query.parallel_tool_calls is False
    assert query.response_format == ResponseFormat("json_schema", {"type": "object"}, "n")
    assert (query.budget_usd, query.deadline_s, query.privacy) == (0.01, 5, "near")
    assert (query.session, query.when_unsure) == ("s", "abstain")
    assert query.metadata == {"run": "7", "user": "ann"}


def test_messages_of_every_role_arrive():
    """Text, parts, tool calls, their results, names and the fields that only some models know."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    query = parse(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "What is this?"}, image]},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "audio": None},
            {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        ]
    ).query

    assert query.messages == (
        Message("developer", "Be brief."),
        Message("user", (ContentPart("text", "What is this?"), ContentPart("image", wire=image)), name="ann"),
        Message("assistant", "", (ToolCall("c1", "f", "{}"),), extra={"reasoning_content": "hm"}),
        Message("tool", "a cat", tool_call_id="c1"),
    )
    assert query.modalities == {"image"}


def test_a_call_that_was_put_together_from_a_stream_is_taken():
    """Clients leave its place in the stream in it, and null for what it has not."""
    query = parse(messages=[{"role": "assistant", "tool_calls": [{**CALL, "index": 0, "custom": None}]}]).query

    assert query.messages[0].tool_calls == (ToolCall("1", "f", "{}"),)


def test_unknown_fields_are_handed_on_and_nulls_are_absent():
    """A field that nearfar does not know goes to a model that may; null says nothing."""
    query = parse(guided_choice=["a"], verbosity="low", prediction=None, tools=None, stop=None, seed=None).query

    assert query.sampling.extra == {"guided_choice": ["a"], "verbosity": "low"}
    assert query.tools == ()


def test_the_gateways_time_limit_bounds_the_deadline():
    """A query gets the gateway's limit, or its own where that is shorter."""
    assert parse().query.deadline_s == 600
    assert parse(nearfar={"deadline_s": 1e9}).query.deadline_s == 600
    assert parse(nearfar={"deadline_s": 2}).query.deadline_s == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "tool", "content": "1"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"a": 1}}]}]},
            "messages[0].content[0].cache_control",
        ),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        ({"model": 7}, "model"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"store": True}, "store"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"stop": [1]}, "stop[0]"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"user": 7}, "user"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"tools": [{"type": "web_search", "filters": {}}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}, "cache_control": {"a": 1}}]},
            "tools[0].cache_control",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "output": 1}}]}, "tools[0].function.output"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "signature": "x"}]}]},
            "messages[0].tool_calls[0].signature",
        ),
        ({"tool_choice": {"type": "function", "function": {"name": "f", "mode": 1}}}, "tool_choice.function.mode"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "rules": []}}},
            "response_format.json_schema.rules",
        ),
        ({"response_format": {"type": "text", "pattern": "a"}}, "response_format.pattern"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"nearfar": "cheap"}, "nearfar"),
        ({"nearfar": {"budget": 1}}, "nearfar.budget"),
        ({"nearfar": {"budget_usd": -1}}, "nearfar.budget_usd"),
        ({"nearfar": {"deadline_s": 0}}, "nearfar.deadline_s"),
        ({"nearfar": {"privacy": "far"}}, "nearfar.privacy"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields, param):
    """One line that names the field."""
    with pytest.raises(RequestError) as caught:
        parse(**fields)

    assert caught.value.param == param
    assert "\n" not in str(caught.value)


def test_a_misspelt_constraint_is_told_the_valid_ones():
    """The message lists what there is."""
    with pytest.raises(
        UnsupportedOption,
        match="budget_usd, deadline_s, docs, memory, passages, privacy, quality, session, signals, when_unsure",
    ):
        parse(nearfar={"budget": 1})


def nested(depth):
    return b'{"messages":[{"role":"user","content":"Hi"}],"x":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": NaN}',
        b'{"messages": []} trailing',
        b'{"temperature": 1e999}',
        nested(MAX_DEPTH),
        nested(100_000),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body):
    """Garbage, other encodings, and nests that would exhaust a stack."""
    with pytest.raises(RequestError):
        parse_chat(body, 600.0)


def test_deep_but_sane_bodies_pass():
    """A JSON Schema may nest."""
    call = parse_chat(nested(MAX_DEPTH - 1), 600.0)

    assert "x" in call.query.sampling.extra


@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": st.text(max_size=20)}
        ),
        max_size=3,
    ),
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(1, 9),
            "temperature": st.floats(0, 2),
            "stop": st.sampled_from(["a", ["a", "b"], []]),
            "logprobs": st.booleans(),
            "stream": st.booleans(),
            "logit_bias": st.just({"5": -1.0}),
            "tools": st.none(),
        },
    ),
)
def test_a_plain_body_is_read_as_any_other(messages, options):
    """A body with nothing but texts and plain options is decoded at once; `nearfar` makes it take the other way."""
    plain, other = parse(messages=messages, **options), parse(messages=messages, nearfar={}, **options)

    assert (plain.query, plain.stream) == (other.query, other.stream)
