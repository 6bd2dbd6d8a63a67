"""BFCL's single-turn categories: the items, and the verdict on what a model answered to one.

Source: Berkeley Function-Calling Leaderboard v4, Apache-2.0; items as one JSON object a line with `id`, `question`,
`function` and `ground_truth`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nearfar.errors import DataError

from .bfcl_checker import Fault, Gold, check_calls
from .call_text import Call, Language, calls_from_json, find_calls, read_calls
from .source_calls import UnreadableCall

#: The categories whose calls are compared with gold calls; the macro average is over these.
AST_CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
)
#: Where the one question is whether anything should be called.
RELEVANCE_CATEGORIES = ("irrelevance", "live_irrelevance", "live_relevance")
CATEGORIES = AST_CATEGORIES + RELEVANCE_CATEGORIES

Reading: TypeAlias = Literal["strict", "lenient"]


@dataclass(frozen=True, slots=True)
class BfclItem:
    """One question, the functions that may be called, and what should be."""

    id: str
    category: str
    turns: tuple[tuple[str, str], ...]  # role and text
    functions: tuple[Mapping[str, Any], ...]  # of BFCL's form: types are dict, float, any …
    gold: tuple[Gold, ...]  # empty where only relevance is asked

    @property
    def language(self) -> Language:
        """What the functions' types, and the arguments of calls, are written in."""
        languages: dict[str, Language] = {"simple_java": "java", "simple_javascript": "javascript"}
        return languages.get(self.category, "python")

    @property
    def text(self) -> str:
        """The last thing that the user said."""
        return next((text for role, text in reversed(self.turns) if role == "user"), "")

    @property
    def wants_call(self) -> bool:
        """Whether anything should be called."""
        return "irrelevance" not in self.category


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right; the fault says why not."""

    item_id: str
    category: str
    fault: Fault | None

    @property
    def is_correct(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault is None


def category_of(item_id: str) -> str:
    """`live_simple` of `live_simple_0-0-0`."""
    return re.sub(r"_\d[^_]*$", "", item_id)


def read_item(row: Mapping[str, Any]) -> BfclItem | None:
    """The item of a row; None: it is of a category that is not of one turn.

    Raises:
        DataError: a field is missing or of the wrong form.
    """
    category = category_of(str(row.get("id")))
    if category not in CATEGORIES:
        return None
    try:
        [turn] = row["question"]
        functions = row["function"]
        return BfclItem(
            id=row["id"],
            category=category,
            turns=tuple((message["role"], message["content"]) for message in turn),
            functions=tuple(functions if isinstance(functions, list) else [functions]),
            gold=tuple(_gold(each) for each in row.get("ground_truth") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise DataError(
            f"Row {row.get('id')!r} is no BFCL item ({exc!r}); it needs id, question, function and ground_truth."
        ) from exc


def _gold(entry: Mapping[str, Any]) -> Gold:
    [(name, arguments)] = entry.items()
    return Gold(name, {key: values if isinstance(values, list) else [values] for key, values in arguments.items()})


def judge(item: BfclItem, answer: Any, *, reading: Reading = "strict") -> Verdict:
    """The verdict on an answer.

    Args:
        item: what was asked.
        answer: the text that a model wrote, or its calls as JSON values (see `calls_from_json`).
        reading: how a text is read; strict as the leaderboard does, lenient also among other words.
    """
    return Verdict(item.id, item.category, _fault(item, answer, reading))


def _fault(item: BfclItem, answer: Any, reading: Reading) -> Fault | None:
    # The leaderboard reads an answer where nothing should be called as Python, whatever the functions are.
    try:
        calls = _calls(item, answer, reading)
    except UnreadableCall as exc:
        return Fault("unreadable", str(exc)) if item.wants_call else None
    if item.category in RELEVANCE_CATEGORIES:
        if bool(calls) == item.wants_call:
            return None
        return Fault("no_call", "nothing is called") if item.wants_call else Fault("call", "something is called")
    return check_calls(
        calls, item.gold, item.functions, language=item.language, is_parallel="parallel" in item.category
    )


def _calls(item: BfclItem, answer: Any, reading: Reading) -> Sequence[Call]:
    if not isinstance(answer, str):
        return calls_from_json(answer) if answer else []
    if reading == "strict":
        return read_calls(answer, item.language)
    return find_calls(answer, [function["name"] for function in item.functions], item.language)
