"""A response's body becomes the query that a chat completion of the same meaning becomes."""

import json

import pytest

from nearfar.errors import RequestError
from nearfar.serving.gateway.responses import parse_response
from nearfar.types import ContentPart, Message, NamedTool, ResponseFormat, ToolCall, ToolSpec


def parse(**fields):
    return parse_response(json.dumps({"model": "auto", "input": "Hi", **fields}).encode(), 600.0)


def test_every_known_option_arrives():
    """Under the query's names, as a chat completion's would be."""
    call = parse(
        instructions="Be brief.",
        max_output_tokens=9,
        temperature=0.2,
        top_p=0.8,
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
        reasoning={"effort": "high"},
        stream=True,
        nearfar={"privacy": "near"},
    )

    query, sampling = call.query, call.query.sampling
    assert call.stream
    assert query.messages == (Message("system", "Be brief."), Message("user", "Hi"))
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.2, 0.8)
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 3)
    assert sampling.extra == {"reasoning_effort": "high", "verbosity": "low"}
    assert query.tools == (ToolSpec("f", "", {"type": "object"}, True),)
    assert query.tool_choice == NamedTool("f")
    assert query.response_format == ResponseFormat("json_schema", {"type": "object"}, "n")
    assert query.privacy == "near"


def test_a_conversation_with_tools_arrives():
    """Items of one turn become one message; reasoning that came back goes along with it."""
    query = parse(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "detail": "low"}]},
        ]
    ).query

    image = {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}
    assert query.messages == (
        Message("user", "Weather?"),
        Message(
            "assistant",
            "Let me see.",
            (ToolCall("c1", "f", "{}"), ToolCall("c2", "g", "{}")),
            extra={"reasoning_content": "hm"},
        ),
        Message("tool", "sun", tool_call_id="c1"),
        Message("tool", "rain", tool_call_id="c2"),
        Message("user", (ContentPart("image", wire=image),)),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": [{"role": "robot", "content": "Hi"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f", "defer": True}]}, "tools[0].defer"),
        ({"text": {"format": {"type": "text", "rules": 1}}}, "text.format.rules"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"tone": "warm"}}, "text.tone"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 3}, "n"),
        ({"nearfar": {"colour": "red"}}, "nearfar.colour"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields, param):
    """What OpenAI keeps on its servers, what is another wire's, and what is no option at all."""
    with pytest.raises(RequestError) as caught:
        parse(**fields)

    assert caught.value.param == param
