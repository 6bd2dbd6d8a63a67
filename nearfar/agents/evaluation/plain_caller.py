"""The dull baseline: BFCL's own prompt, one answer, nothing constrained.

The prompt's words are those of the leaderboard (bfcl-eval 2026.3.23, default format, Apache-2.0), quoted so that the
baseline is theirs; the notes on each function's language too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nearfar.types import Message

from .call_text import Language

_PROMPT = """\
You are an expert in composing functions.You are given a question and a set of possible functions. Based on the \
question, you will need to make one or more function/tool calls to achieve the purpose. If none of the functions can \
be used, point it out. If the given question lacks the parameters required by the function, also point it out.

You should only return the function calls in your response.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)].  \
You SHOULD NOT include any other text in the response.

At each turn, you should try your best to complete the tasks requested by the user within the current turn. Continue \
to output functions to call until you have fulfilled the user's request to the best of your ability. Once you have no \
more functions to call, the system will consider the current turn complete and proceed to the next turn or task.

Here is a list of functions in json format that you can invoke.
{functions}
"""

_SYNTAX = {"python": "Python 3 syntax", "java": "Java 8 SDK syntax", "javascript": "JavaScript syntax"}
_LANGUAGES = {"java": "Java", "javascript": "JavaScript"}


def plain_messages(
    functions: Sequence[Mapping[str, Any]], turns: Sequence[tuple[str, str]], language: Language = "python"
) -> tuple[Message, ...]:
    """The leaderboard's system prompt with the functions, then the conversation.

    Args:
        functions: documents with name, description and parameters.
        turns: role and text of each.
        language: of the functions' types.
    """
    documents = [_documented(dict(function), language) for function in functions]
    prompt = _PROMPT.format(functions=json.dumps(documents, indent=4))
    turns = list(turns)
    if turns and turns[0][0] == "system":
        prompt = f"{prompt}\n\n{turns.pop(0)[1]}"
    told = [Message("assistant" if role == "assistant" else "user", text) for role, text in turns]
    return (Message("system", prompt), *told)


def _documented(function: dict[str, Any], language: Language) -> dict[str, Any]:
    """The function's document with notes on its language; Java's and JavaScript's arguments are strings of source."""
    function = copy.deepcopy(function)
    function["description"] = (
        f"{function.get('description', '')} Note that the provided function is in {_SYNTAX[language]}."
    )
    if language == "python":
        return function
    name = _LANGUAGES[language]
    for schema in function.get("parameters", {}).get("properties", {}).values():
        kind = schema.get("type", "any")
        note = (
            f" This parameter can be of any type of {name} object in string representation."
            if kind == "any"
            else f" This is {name} {kind} type parameter in string representation."
        )
        if items := schema.pop("items", None):
            note += f" The list elements are of type {items.get('type')}; they are not in string representation."
        if kind == "dict" and (entries := schema.pop("properties", None)):
            note += (
                " The dictionary entries have the following schema; they are not in string representation. "
                f"{json.dumps(entries)}"
            )
        schema["description"] = schema.get("description", "") + note
        schema["type"] = "string"
    return function
