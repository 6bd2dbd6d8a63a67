"""Functions that a model writes from solved problems: the paper's way, with whatever model answers."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Final

from nearfar.types import Message, Query, SamplingOptions

from .craft import CraftedTool, Example, Problem
from .craft_worked import described, name_of, quantities
from .types import Responder

_INSTRUCTIONS: Final = """\
Write one general Python function that solves problems like the given one, and call it for the given one.
The numbers of the problem are its parameters. Its name has at most eight words and no names of persons.
Answer with code alone:

def name(parameter, parameter):
    "What it computes."
    return expression
name(number, number)"""

_FUNCTION: Final = re.compile(r"^def (\w+)\(([^()]*)\)[^\n]*:\n((?:[ \t]+[^\n]*\n|\n)+)", re.MULTILINE)
_DOCSTRING: Final = re.compile(r'\s*(?:"""|\'\'\'|"|\')(.+?)(?:"""|\'\'\'|"|\')', re.DOTALL)
_PARAMETER: Final = re.compile(r"\s*(\w+)\s*(?::\s*[\w.]+\s*)?")
_NUMBER: Final = r"-?\d+(?:\.\d+)?"


class ModelMaker:
    """Asks a model for a function and its call; see `craft.Maker`.

    Args:
        responder: who is asked.
        model: a model's or a cascade's name.
        max_tokens: of an answer.
    """

    def __init__(self, responder: Responder, *, model: str = "auto", max_tokens: int = 300) -> None:
        self._responder = responder
        self._model = model
        self._max_tokens = max_tokens

    async def make(self, problem: Problem) -> CraftedTool | None:
        """The function that the model wrote; None where it wrote none, or no call of it."""
        task = f"Problem: {problem.question}\nSolution: {problem.solution}\nAnswer: {problem.answer:g}"
        query = Query(
            (Message("system", _INSTRUCTIONS), Message("user", task)),
            model=self._model,
            sampling=SamplingOptions(max_tokens=self._max_tokens, temperature=0.0),
            uses_memory=False,
        )
        return read_function((await self._responder.answer(query)).text, problem)

    def describe(self, question: str) -> tuple[str, str]:
        """By rule, so that a question costs no call of a model."""
        return name_of(question), described(question, quantities(question), ())


def read_function(text: str, problem: Problem) -> CraftedTool | None:
    """The function and its call in a model's answer; None where there are none."""
    text = re.sub(r"```(?:python)?", "", text) + "\n"
    function = _FUNCTION.search(text)
    if function is None:
        return None
    name, listed, body = function.groups()
    given = [_PARAMETER.fullmatch(each) for each in listed.split(",")]
    call = re.search(
        rf"(?<!def )\b{re.escape(name)}\(\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*,?\s*\)", text[function.end() :]
    )
    if call is None or not all(given) or name.startswith("_"):
        return None
    parameters = tuple(each[1] for each in given if each)
    arguments = tuple(float(each) for each in call[1].split(","))
    if len(arguments) != len(parameters):
        return None
    docstring = _DOCSTRING.match(body)
    description = " ".join(docstring[1].split())[:600] if docstring else name.replace("_", " ")
    code = f"def {name}({', '.join(parameters)}):\n{body.rstrip()}\n"
    does = body[docstring.end() :] if docstring else body
    tool = CraftedTool(name, description, parameters, code, "", (Example(problem.question, arguments, problem.answer),))
    return replace(tool, formula=_formula(does, parameters))


def _formula(body: str, parameters: tuple[str, ...]) -> str:
    """What is the same for two functions that differ in their parameters' names alone."""
    for number, name in enumerate(parameters):
        body = re.sub(rf"\b{re.escape(name)}\b", f"p{number}", body)
    return hashlib.sha256(" ".join(body.split()).encode()).hexdigest()
