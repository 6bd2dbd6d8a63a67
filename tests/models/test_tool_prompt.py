"""Tools told by a prompt: what the template gets, and what is read out of what the model writes."""

import json
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.models.grammar import accepts
from nearfar.models.tool_prompt import CallReader, call_grammar, shape_of, template_messages, text_without_marker
from nearfar.types import ContentPart, Message, NamedTool, Query, ResponseFormat, ToolCall, ToolSpec

WEATHER = ToolSpec("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def test_a_plain_conversation_is_left_as_it_is() -> None:
    """Only the developer's role becomes the one that templates know."""
    query = Query((Message("developer", "Be brief."), Message("user", (ContentPart("text", "Hi"),))))

    assert template_messages(query) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_calls_and_results_become_turns_that_every_template_takes() -> None:
    """The results of parallel calls are one user turn, in their order."""
    query = Query(
        (
            Message("user", "Weather?"),
            Message("assistant", "Let me look.", tool_calls=(ToolCall("1", "get_weather", '{"city": "Rome"}'),)),
            Message("tool", "12 degrees", tool_call_id="1"),
            Message("tool", "rain", tool_call_id="2"),
        )
    )

    turns = template_messages(query)

    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == f"Let me look.\n{CALL}"
    assert turns[2]["content"].index("12 degrees") < turns[2]["content"].index("rain")


def test_tools_join_the_system_message() -> None:
    """There is one system message, and it names the tool and its parameters."""
    query = Query((Message("system", "Be brief."), Message("user", "Hi")), tools=(WEATHER,))

    first, *rest = template_messages(query)

    assert first["content"].startswith("Be brief.")
    assert '"name": "get_weather"' in first["content"]
    assert '"city"' in first["content"]
    assert [turn["role"] for turn in rest] == ["user"]


def test_tools_that_may_not_be_called_are_not_told() -> None:
    """`tool_choice` "none" costs no tokens."""
    assert template_messages(Query("Hi", tools=(WEATHER,), tool_choice="none")) == [{"role": "user", "content": "Hi"}]


def test_a_choice_that_cannot_be_met_is_refused() -> None:
    """A tool that is not there, and a call where there is no tool."""
    with pytest.raises(RequestError, match="'nope'"):
        shape_of(Query("Hi", tools=(WEATHER,), tool_choice=NamedTool("nope")))
    with pytest.raises(RequestError, match="no tools"):
        shape_of(Query("Hi", tool_choice="required"))


def test_a_grammar_beside_tools_is_refused_by_name() -> None:
    """It could not be kept in a call."""
    query = Query("Hi", tools=(WEATHER,), response_format=ResponseFormat("grammar", grammar='root ::= "a"'))

    with pytest.raises(UnsupportedOption) as caught:
        shape_of(query)

    assert caught.value.param == "response_format"


def test_references_inside_a_tools_schema_point_at_its_own_definitions() -> None:
    """Two tools may use one name for different things."""
    trees = [
        ToolSpec(
            name,
            "",
            {
                "type": "object",
                "properties": {"child": {"$ref": "#"}, "kind": {"$ref": "#/$defs/Kind"}},
                "$defs": {"Kind": {"enum": [kind]}},
                "additionalProperties": False,
            },
        )
        for name, kind in (("plant", "leaf"), ("house", "room"))
    ]
    call = call_grammar(trees)

    assert accepts(call, '{"name": "plant", "arguments": {"child": {"kind": "leaf"}, "kind": "leaf"}}')
    assert not accepts(call, '{"name": "plant", "arguments": {"kind": "room"}}')
    assert accepts(call, '{"name": "house", "arguments": {"kind": "room"}}')


def test_a_tool_that_no_grammar_can_say_is_refused_with_the_reason() -> None:
    """Never a wider grammar."""
    tool = ToolSpec("odd", "", {"type": "object", "properties": {"a": {"pattern": "(?=x)"}}, "required": ["a"]})

    with pytest.raises(RequestError, match=r"'odd'.*looks ahead") as caught:
        shape_of(Query("Hi", tools=(tool,)))

    assert caught.value.param == "tools"


@given(st.lists(st.sampled_from([*"<tol_c>é", "<tool", "tool_call>", "<tool_call>", "<tool_cal"]), max_size=8))
def test_words_before_a_call_are_any_text_without_its_marker(pieces: list[str]) -> None:
    """The grammar of a free answer takes no marker as text."""
    text = "".join(pieces)

    assert accepts(text_without_marker(), text) == (bool(text) and "<tool_call>" not in text)


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls, however the text is cut."""
    reader = CallReader(call_grammar((WEATHER,)))
    text = ""
    for piece in pieces:
        text += reader.feed(piece)[0]
    text += reader.finish()
    return text, [(call.name, call.arguments) for call in reader.calls]


@given(
    st.lists(st.sampled_from(["<", "<tool", "_call>", "</tool_call>", "a", " ", "é", "\n", '{"', "🙂"]), max_size=12),
    st.sets(st.integers(1, 60), max_size=8),
)
def test_reading_does_not_depend_on_where_the_text_is_cut(words: list[str], cuts: set[int]) -> None:
    """Tokens end anywhere, also inside a marker."""
    before = "".join(words)
    assume("<tool_call>" not in before)
    text = before + CALL
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})

    pieces = [text[a:b] for a, b in pairwise(edges)]

    assert read(pieces) == read([text])
    assert len(read(pieces)[1]) == 1


@given(st.text(max_size=40).filter(lambda text: "<tool_call>" not in text))
def test_text_without_a_call_comes_out_as_it_went_in(text: str) -> None:
    """Whatever it looks like."""
    assert read(list(text)) == (text, [])


def test_a_call_is_read_and_its_marker_is_not_text() -> None:
    """Text before it is kept."""
    assert read([f"Let me look.\n{CALL}"]) == ("Let me look.\n", [("get_weather", '{"city": "Rome"}')])


def test_several_calls_are_read() -> None:
    """The line breaks between them are nobody's text."""
    assert read([f"{CALL}\n{CALL}"]) == ("", [("get_weather", '{"city": "Rome"}')] * 2)


def test_a_closing_marker_inside_an_argument_does_not_end_the_call() -> None:
    """JSON says where the call ends."""
    arguments = '{"city": "</tool_call>"}'

    text, calls = read([f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'])

    assert text == ""
    assert calls == [("get_weather", arguments)]


@given(st.integers(0, len(CALL) - 1))
def test_a_call_that_was_cut_off_is_finished(length: int) -> None:
    """Wherever the limit fell, what comes out fits, and begins as the model began it."""
    reader = CallReader(call_grammar((WEATHER,)))

    text, calls = reader.feed(CALL[:length])
    finished, added = reader.finish_call()

    assert (text, calls) == ("", [])
    assert finished.name == "get_weather"
    assert not reader.is_cut_off
    assert added <= len('{"name": "get_weather", "arguments": {}}')
    city = json.loads(finished.arguments).get("city", "")
    assert "Rome".startswith(city)
    assert reader.finish() == ""


def test_what_the_grammar_does_not_take_is_no_call() -> None:
    """A library that lets something else through is not believed."""
    reader = CallReader(call_grammar((WEATHER,)))

    _, calls = reader.feed(CALL.replace('"Rome"', "12"))

    assert calls == []
    assert reader.is_cut_off


def test_patterns_of_tools_are_no_matter_for_llama_cpps_engine():
    """It takes a minute for a hundred optional letters, and cannot be stopped; what is ours alone stays with it."""
    pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]?[a-z]?$"}}}

    plain = shape_of(Query("Hi", tools=(WEATHER,), tool_choice="required"))
    own = shape_of(Query("Hi", tools=(ToolSpec("f", "", pattern),), tool_choice="required"))

    assert plain.grammar.startswith("root ::= ")
    assert plain.probes == ()
    assert own.grammar.startswith("%llguidance")
    assert [probe.param for probe in own.probes] == ["tools"]
