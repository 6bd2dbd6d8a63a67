"""Functions from worked arithmetic: solutions that mark their calculations as GSM8K's do, `<<48/2=24>>`.

Where the paper has a strong model write and abstract code, this reads it off solutions that are already there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .craft import CraftedTool, Example, Problem

_STEP: Final = re.compile(r"<<([^<>=]+)=([^<>]+)>>")
_NUMBER: Final = r"\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+"
_TOKEN: Final = re.compile(rf"\s*(?:(?P<number>{_NUMBER})(?P<percent>%)?|(?P<sign>[-+*/()]))")
_IN_TEXT: Final = re.compile(rf"(?<![\w.])\$?({_NUMBER})(?![\d])(?:\s*(%))?(?:\s+([A-Za-z]+))?")
_WORD: Final = re.compile(r"[A-Za-z]+")

#: Numbers that problems write as words; "twice" and "half" are how to compute, not what with.
_NUMBER_WORDS: Final = {
    word: float(value)
    for value, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), 2
    )
}
_IN_WORDS: Final = re.compile(rf"\b({'|'.join(_NUMBER_WORDS)})\b(?:\s+([A-Za-z]+))?", re.IGNORECASE)

#: Words that say nothing about what is asked.
_EMPTY: Final = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for from by with and or is are was were be been do does did has have had will would "
        "can could how many much what which who it its his her their they he she that this these those there if then "
        "each every per than as all so into out up after before when while",
    )
)

_MAX_STEPS: Final = 30
_MAX_PARAMETERS: Final = 12
_MAX_FORMULA: Final = 1_000  # characters; a step that uses a former one twice doubles it
_NAME_WORDS: Final = 8


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number of a question."""

    value: float
    label: str  # the word that follows it
    start: int
    end: int


class WorkedMaker:
    """Makes functions of worked solutions; see `craft.Maker`."""

    async def make(self, problem: Problem) -> CraftedTool | None:
        """The solution's calculations as a function of the question's numbers."""
        return tool_of(problem)

    def describe(self, question: str) -> tuple[str, str]:
        """Name and description as its own tools have them."""
        return name_of(question), described(question, quantities(question), ())


def tool_of(problem: Problem) -> CraftedTool | None:
    """The function that a worked solution is a case of; None where it marks no calculation that leads to the answer."""
    given = quantities(problem.question)
    steps: list[tuple[str, float]] = []  # each an expression of parameters, constants and nothing else
    used: list[Quantity] = []
    for expression, result in _STEP.findall(problem.solution)[:_MAX_STEPS]:
        value = _value(result)
        written = _written(expression, steps, given, used)
        if value is None or written is None:
            return None
        steps.append((written, value))
    reached = [written for written, value in steps if math.isclose(value, problem.answer, rel_tol=1e-6, abs_tol=1e-6)]
    if not reached:
        return None
    formula = reached[-1]
    order = list(dict.fromkeys(int(number) for number in re.findall(r"\bp(\d+)\b", formula)))
    if not order or len(order) > _MAX_PARAMETERS:
        return None
    places = {old: new for new, old in enumerate(order)}
    formula = re.sub(r"\bp(\d+)\b", lambda found: f"p{places[int(found[1])]}", formula)
    taken = [used[number] for number in order]
    parameters = _parameters(taken)
    body = re.sub(r"\bp(\d+)\b", lambda found: parameters[int(found[1])], formula)
    name = name_of(problem.question)
    description = described(problem.question, taken, parameters)
    code = f"def {name}({', '.join(parameters)}):\n    {description!r}\n    return {body}\n"
    example = Example(problem.question, tuple(each.value for each in taken), problem.answer)
    return CraftedTool(name, description, parameters, code, formula, (example,))


def quantities(text: str) -> list[Quantity]:
    """The numbers of a text, in order, in digits or words; a percentage counts as its hundredths' number."""
    found = [
        Quantity(float(each[1].replace(",", "")), ("percent" if each[2] else each[3] or ""), each.start(), each.end(1))
        for each in _IN_TEXT.finditer(text)
    ]
    found += [
        Quantity(_NUMBER_WORDS[each[1].lower()], each[2] or "", each.start(), each.end(1))
        for each in _IN_WORDS.finditer(text)
    ]
    return sorted(found, key=lambda each: each.start)


def name_of(question: str) -> str:
    """At most eight words of what is asked, without names of persons and numbers, as an identifier."""
    asked = [sentence for sentence in re.split(r"(?<=[.?!])\s+", question.strip()) if sentence.endswith("?")]
    sentence = (asked or [question])[-1]
    words = [word.lower() for word in _WORD.findall(sentence) if word.islower() or word == sentence[: len(word)]]
    kept = [word for word in words if word not in _EMPTY and word not in _NUMBER_WORDS and len(word) > 1][:_NAME_WORDS]
    return "_".join(["compute", *kept] if kept else ["compute", "answer"])


def described(question: str, taken: Sequence[Quantity], parameters: Sequence[str]) -> str:
    """The question with the parameters' names in place of the numbers, or with a bare N where they have none."""
    names = dict(zip(((each.start, each.end) for each in taken), parameters, strict=False))
    parts: list[str] = []
    end = 0
    for each in quantities(question):
        if each.start < end:
            continue
        parts += [question[end : each.start], f"<{names.get((each.start, each.end), 'N')}>"]
        end = each.end
    return " ".join("".join([*parts, question[end:]]).split())[:600]


def _written(
    expression: str, steps: Sequence[tuple[str, float]], given: Sequence[Quantity], used: list[Quantity]
) -> str | None:
    """The expression over parameters; None where it is no arithmetic.

    A number is the latest step's result that equals it, else the question's, else a constant.
    """
    parts: list[str] = []
    place = 0
    text = expression.strip().replace("$", "")
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            return None
        place = token.end()
        if token["sign"]:
            parts.append(token["sign"])
            continue
        value = float(token["number"].replace(",", ""))
        operand = _operand(value, steps, given, used)
        parts.append(f"({operand} / 100)" if token["percent"] else operand)
    written = f"({' '.join(parts)})"
    return written if parts and len(written) <= _MAX_FORMULA else None


def _operand(value: float, steps: Sequence[tuple[str, float]], given: Sequence[Quantity], used: list[Quantity]) -> str:
    for written, result in reversed(steps):
        if math.isclose(result, value, rel_tol=1e-9):
            return written
    for number, each in enumerate(used):
        if each.value == value:
            return f"p{number}"
    for each in given:
        for scale in (1.0, 0.01) if each.label == "percent" else (1.0,):
            if math.isclose(each.value * scale, value, rel_tol=1e-9):
                number = used.index(each) if each in used else len(used)
                if number == len(used):
                    used.append(each)
                return f"p{number}" if scale == 1.0 else f"(p{number} / 100)"
    return f"{value:.15g}"


def _parameters(taken: Sequence[Quantity]) -> tuple[str, ...]:
    """A name for each, after the word that follows the number."""
    names: list[str] = []
    for each in taken:
        label = each.label.lower()
        stem = f"num_{label}" if label and label not in _EMPTY else "number"
        names.append(stem if stem not in names else f"{stem}_{sum(name.startswith(stem) for name in names) + 1}")
    return tuple(names)


def _value(text: str) -> float | None:
    number = re.fullmatch(rf"\s*-?\$?\s*({_NUMBER})\s*%?\s*", text)
    if number is None:
        return None
    value = float(number[1].replace(",", ""))
    return -value if text.strip().startswith("-") else value
