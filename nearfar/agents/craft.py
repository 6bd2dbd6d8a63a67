"""A library of small functions made from solved problems, each verified in the sandbox before it is kept or used.

Source of the method: Yuan et al. 2023, CRAFT, arXiv:2309.17428: solve, validate, abstract, validate again,
de-duplicate, retrieve by three views.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from nearfar.errors import DataError
from nearfar.types import Embedder, ToolSpec

from .code_tool import observed
from .types import CodeLimits, CodeResult, CodeRunner, Observation, ToolHints

#: The paper's: how many candidates each view gives, and how many tools are kept.
VIEW_K: Final = 10
TOOLS_K: Final = 3

#: Enough for arithmetic, and nothing for what is no arithmetic.
LIMITS: Final = CodeLimits(seconds=1.0, memory_bytes=32 * 2**20, recursion=100, output_characters=20_000, calls=0)

#: Source problems kept with a tool; a formula that fits hundreds of problems needs no more to be found by.
_MAX_EXAMPLES: Final = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that was solved."""

    question: str
    answer: float
    solution: str = ""  # as it was worked, where that is known


@dataclass(frozen=True, slots=True)
class Example:
    """A problem that a tool solves, with the arguments that it takes for it."""

    question: str
    arguments: tuple[float, ...]
    answer: float


@dataclass(frozen=True, slots=True)
class CraftedTool:
    """A function, and the problems that vouch for it."""

    name: str  # at most eight words, as the paper has it
    description: str
    parameters: tuple[str, ...]
    code: str  # the whole definition, under `name`
    formula: str  # what it computes, the same for all tools that compute the same
    examples: tuple[Example, ...]
    num_problems: int = 1  # that it was made from; `examples` may be fewer


class Maker(Protocol):
    """Turns a solved problem into a function: what a strong model does in the paper."""

    async def make(self, problem: Problem) -> CraftedTool | None:
        """A function of which the problem is one case; None: there is none to be made."""
        ...

    def describe(self, question: str) -> tuple[str, str]:
        """The name and the description that a function for this question would have; what two views search by."""
        ...


@dataclass(frozen=True, slots=True)
class Crafted:
    """What became of the problems."""

    library: Library
    num_problems: int
    num_made: int  # functions that the maker gave
    num_verified: int  # that give their source problem's answer in the sandbox
    refused: Mapping[str, int]  # why the others were not kept, by reason

    @property
    def num_kept(self) -> int:
        """After de-duplication."""
        return len(self.library.tools)


async def craft(problems: Iterable[Problem], maker: Maker, runner: CodeRunner) -> Crafted:
    """The library that the problems make, every tool of it verified on its source.

    Args:
        problems: solved ones.
        maker: writes the functions.
        runner: where they are run.
    """
    made = 0
    refused: Counter[str] = Counter()
    num_problems = 0
    kept: dict[str, CraftedTool] = {}
    num_verified = 0
    for problem in problems:
        num_problems += 1
        tool = await maker.make(problem)
        if tool is None:
            refused["no function could be made"] += 1
            continue
        made += 1
        if why := await verify(tool, runner):
            refused[why] += 1
            continue
        num_verified += 1
        same = kept.get(tool.formula)
        kept[tool.formula] = tool if same is None else _merged(same, tool)
    names: Counter[str] = Counter()
    tools = []
    for tool in kept.values():
        names[tool.name] += 1
        tools.append(tool if names[tool.name] == 1 else _renamed(tool, f"{tool.name}_{names[tool.name]}"))
    return Crafted(Library(tools), num_problems, made, num_verified, dict(refused))


async def verify(tool: CraftedTool, runner: CodeRunner) -> str:
    """Why the tool does not do what its examples say; "" where it does."""
    calls = ", ".join(f"{tool.name}({', '.join(map(repr, each.arguments))})" for each in tool.examples)
    result = await runner.run(f"{tool.code}\n[{calls}]", limits=LIMITS)
    if result.error is not None:
        return f"it fails: {result.error.partition(':')[0]}"
    given = result.value if isinstance(result.value, list) else []
    if len(given) != len(tool.examples) or not tool.examples:
        return "it has no examples"
    if all(same(value, each.answer) for value, each in zip(given, tool.examples, strict=True)):
        return ""
    return "it gives another answer than its source"


def same(value: Any, answer: float) -> bool:
    """Whether two numbers are the same answer: to one part in a million, as decimals are written."""
    return isinstance(value, int | float) and math.isclose(value, answer, rel_tol=1e-6, abs_tol=1e-6)


class Library:
    """Verified tools, found by three views.

    Args:
        tools: as `craft` made them; names differ.
    """

    def __init__(self, tools: Sequence[CraftedTool]) -> None:
        self.tools = tuple(tools)
        self.refused: Mapping[str, str] = {}  # tools of a file that did not stand the test, and why

    def save(self, path: Path) -> None:
        """Writes the tools, one a line."""
        text = "".join(json.dumps(asdict(tool), ensure_ascii=False) + "\n" for tool in self.tools)
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)

    @classmethod
    async def load(cls, path: Path, runner: CodeRunner) -> Library:
        """The tools of a file that still give their examples' answers; a file may have been changed by anybody.

        Raises:
            DataError: the file cannot be read, or has a line that is no tool.
        """
        tools: list[CraftedTool] = []
        refused: dict[str, str] = {}
        try:
            lines = (await asyncio.to_thread(path.read_text, encoding="utf-8")).splitlines()
        except OSError as exc:
            raise DataError(f"{str(path)!r} cannot be read: {exc.strerror}", path=str(path)) from exc
        for number, line in enumerate(lines, 1):
            try:
                tool = _tool_of(json.loads(line))
            except (ValueError, TypeError, KeyError) as exc:
                raise DataError(
                    f"{str(path)!r}, line {number}, is no tool: {exc}. Craft it anew", path=str(path)
                ) from exc
            if why := await verify(tool, runner):
                refused[tool.name] = why
            else:
                tools.append(tool)
        library = cls(tools)
        library.refused = refused
        return library

    def index(self, embedder: Embedder, describe: Callable[[str], tuple[str, str]]) -> ToolFinder:
        """Finds the library's tools for a question.

        Args:
            embedder: of questions, names and descriptions.
            describe: as `Maker.describe`.
        """
        return ToolFinder(self.tools, embedder, describe)


@dataclass(frozen=True, slots=True)
class Found:
    """A tool that bears on a question."""

    tool: CraftedTool
    votes: int  # of the views' entries, thirty at most
    score: float  # the cosines of those that voted, over thirty: many and alike is near 1


class ToolFinder:
    """The three views: question to source problem, name to name, description to description; then a vote.

    Every source problem of a tool is an entry in every view. Each view's best ten entries vote for their tools, so that
    what many similar problems needed wins over what one did.
    """

    def __init__(
        self, tools: Sequence[CraftedTool], embedder: Embedder, describe: Callable[[str], tuple[str, str]]
    ) -> None:
        self._tools = tools
        self._embedder = embedder
        self._describe = describe
        entries = [(number, each.question) for number, tool in enumerate(tools) for each in tool.examples]
        told = [describe(question) for _, question in entries]
        self._owners = [number for number, _ in entries]
        self._views = (
            embedder.embed([question for _, question in entries]),
            embedder.embed([_words(name) for name, _ in told]),
            embedder.embed([description for _, description in told]),
        )

    def find(self, question: str, k: int = TOOLS_K) -> list[Found]:
        """At most `k` tools: those with the most votes, then those that are likest."""
        if not self._owners:
            return []
        name, description = self._describe(question)
        asked = self._embedder.embed_queries([question, _words(name), description])
        votes: Counter[int] = Counter()
        likeness: dict[int, float] = {}
        for view, vector in zip(self._views, asked, strict=True):
            scores = view @ vector
            for entry in (-scores).argsort(kind="stable")[:VIEW_K]:
                owner = self._owners[entry]
                votes[owner] += 1
                likeness[owner] = likeness.get(owner, 0.0) + float(scores[entry])
        best = sorted(votes, key=lambda number: (-votes[number], -likeness[number], number))[:k]
        total = VIEW_K * len(self._views)
        return [Found(self._tools[number], votes[number], likeness[number] / total) for number in best]


@dataclass(frozen=True, slots=True)
class CraftedFunction:
    """A crafted tool that a role may call; it runs in the sandbox."""

    tool: CraftedTool
    runner: CodeRunner

    @property
    def spec(self) -> ToolSpec:
        """What a model is shown."""
        properties = {name: {"type": "number"} for name in self.tool.parameters}
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(self.tool.parameters),
            "additionalProperties": False,
        }
        return ToolSpec(self.tool.name, self.tool.description, schema)

    @property
    def hints(self) -> ToolHints:
        """It computes, and does nothing else: the sandbox sees to that."""
        return ToolHints(read_only=True, destructive=False, idempotent=True, open_world=False, is_trusted=True)

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Runs it; see `Tool.call`."""
        started = time.perf_counter()
        result = await apply(self.tool, [float(arguments[name]) for name in self.tool.parameters], self.runner)
        return observed(result, time.perf_counter() - started)


async def apply(tool: CraftedTool, arguments: Sequence[float], runner: CodeRunner) -> CodeResult:
    """What the tool gives for the arguments, in the order of its parameters."""
    inputs = {f"argument_{number}": value for number, value in enumerate(arguments)}
    return await runner.run(f"{tool.code}\n{tool.name}({', '.join(inputs)})", inputs=inputs, limits=LIMITS)


@dataclass(frozen=True, slots=True)
class Steering:
    """When to trust code with a question, and when text: a cut on how well a tool fits, measured on solved problems.

    Attributes:
        cut: code where the best tool's score reaches it; infinite: never.
        num_problems: that it was measured on.
        text_accuracy: of text on all of them.
        code_accuracy: of code on those at or above the cut; None: there are none.
        steered_accuracy: of both together.
    """

    cut: float
    num_problems: int
    text_accuracy: float
    code_accuracy: float | None
    steered_accuracy: float

    @classmethod
    def fit(cls, scores: Sequence[float], code_right: Sequence[bool], text_right: Sequence[bool]) -> Steering:
        """The cut with the most right answers; of several, the highest, which trusts code least.

        Args:
            scores: of the best tool for each problem; minus infinity where there is none.
            code_right: whether the tool's answer was right.
            text_right: whether the answer in text was.

        Raises:
            ValueError: the lengths differ, or there are none.
        """
        if not scores or not len(scores) == len(code_right) == len(text_right):
            raise ValueError("scores and outcomes must be of one length, and not empty")
        total = len(scores)
        text = sum(text_right)
        best_cut, best_right = math.inf, text
        right = text
        order = sorted(range(total), key=lambda number: -scores[number])
        for place, number in enumerate(order):
            right += int(code_right[number]) - int(text_right[number])
            is_last_of_equals = place + 1 == total or scores[order[place + 1]] < scores[number]
            if is_last_of_equals and right > best_right and math.isfinite(scores[number]):
                best_cut, best_right = scores[number], right
        above = [code_right[number] for number in range(total) if scores[number] >= best_cut]
        return cls(best_cut, total, text / total, sum(above) / len(above) if above else None, best_right / total)

    def trusts_code(self, score: float) -> bool:
        """Whether code answers a question whose best tool has this score."""
        return score >= self.cut


def _merged(first: CraftedTool, second: CraftedTool) -> CraftedTool:
    examples = (first.examples + second.examples)[:_MAX_EXAMPLES]
    return replace(first, examples=examples, num_problems=first.num_problems + second.num_problems)


def _renamed(tool: CraftedTool, name: str) -> CraftedTool:
    code = re.sub(rf"\bdef {re.escape(tool.name)}\(", f"def {name}(", tool.code, count=1)
    return replace(tool, name=name, code=code)


def _tool_of(record: Mapping[str, Any]) -> CraftedTool:
    examples = tuple(
        Example(str(each["question"]), tuple(map(float, each["arguments"])), float(each["answer"]))
        for each in record["examples"]
    )
    name = str(record["name"])
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no name of a function")
    return CraftedTool(
        name,
        str(record["description"]),
        tuple(map(str, record["parameters"])),
        str(record["code"]),
        str(record["formula"]),
        examples,
        int(record["num_problems"]),
    )


def _words(name: str) -> str:
    return name.replace("_", " ")
