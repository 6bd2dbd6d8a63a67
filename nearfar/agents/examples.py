"""Tasks done well, which small models follow better than instructions: from a file, or for the built-in tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import DataError

from .alpha_umi import Example, ExampleStep

#: For the folder's files, the calculator and the documentation search: those most like a task are shown.
BUILT_IN = (
    Example(
        "Read sum.txt and double the number.",
        (
            ExampleStep("read_file", {"path": "sum.txt"}, "The number is 21."),
            ExampleStep("calculator", {"expression": "21 * 2"}, "42"),
        ),
        "Twice 21 is 42.",
    ),
    Example(
        "How do I set the time limit?",
        (ExampleStep("search_documentation", {"query": "set the time limit"}, "Set limit_s in the config."),),
        "Set limit_s in the config.",
    ),
    Example(
        "Read pay.txt and work out the pay for 5 days.",
        (
            ExampleStep("read_file", {"path": "pay.txt"}, "The pay is 80 dollars a day."),
            ExampleStep("calculator", {"expression": "80 * 5"}, "400"),
        ),
        "The pay for 5 days is 400 dollars.",
    ),
    Example(
        "Who wrote story.txt?",
        (ExampleStep("read_file", {"path": "story.txt"}, "A story by Jane Doe."),),
        "Jane Doe wrote it.",
    ),
    Example(
        "Read box.md and work out how many eggs there are.",
        (
            ExampleStep("read_file", {"path": "box.md"}, "A box has 6 eggs.\nThere are 7 boxes."),
            ExampleStep("calculator", {"expression": "6 * 7"}, "42"),
        ),
        "There are 42 eggs.",
    ),
    Example("What is 5 plus 8?", (ExampleStep("calculator", {"expression": "5 + 8"}, "13"),), "5 plus 8 is 13."),
    Example(
        "Read bill.txt and add the two amounts.",
        (
            ExampleStep("read_file", {"path": "bill.txt"}, "Rent is 300 dollars and food is 150 dollars."),
            ExampleStep("calculator", {"expression": "300 + 150"}, "450"),
        ),
        "Together they are 450 dollars.",
    ),
    Example(
        "Which option turns logging off?",
        (ExampleStep("search_documentation", {"query": "turn logging off"}, "Set log = false to turn logging off."),),
        "Set log = false.",
    ),
    Example(
        "What does note.txt say?",
        (ExampleStep("read_file", {"path": "note.txt"}, "The key is under the mat."),),
        "It says that the key is under the mat.",
    ),
    Example("What is 9 times 14?", (ExampleStep("calculator", {"expression": "9 * 14"}, "126"),), "9 times 14 is 126."),
    Example(
        "Read list.csv and compute the average of the two numbers.",
        (
            ExampleStep("read_file", {"path": "list.csv"}, "a,b\n10,20"),
            ExampleStep("calculator", {"expression": "(10 + 20) / 2"}, "15"),
        ),
        "The average is 15.",
    ),
    Example(
        "Which command starts the server?",
        (ExampleStep("search_documentation", {"query": "start the server"}, "Run serve start to start the server."),),
        "Run serve start.",
    ),
    Example(
        "Read box.txt and multiply the size by 3.",
        (
            ExampleStep("read_file", {"path": "box.txt"}, "The size is 14 cm."),
            ExampleStep("calculator", {"expression": "14 * 3"}, "42"),
        ),
        "Three times the size is 42 cm.",
    ),
    Example("What is 90 divided by 6?", (ExampleStep("calculator", {"expression": "90 / 6"}, "15"),), "90 / 6 is 15."),
)


def load_examples(path: Path) -> tuple[Example, ...]:
    """The examples in a JSONL file: `task`, `steps` (`tool`, `arguments`, `observation`, `rationale`) and `answer`.

    Raises:
        DataError: the file cannot be read, or a line is no example.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"Cannot read the examples in {str(path)!r}: {exc}.", path=str(path)) from exc
    return tuple(_example(line, number, path) for number, line in enumerate(lines, 1) if line.strip())


def _example(line: str, number: int, path: Path) -> Example:
    try:
        value: Any = json.loads(line)
        return msgspec.convert(value, type=Example)
    except (ValueError, msgspec.ValidationError) as exc:
        raise DataError(
            f"Line {number} of {str(path)!r} is no example: {exc}. It needs task, steps and answer.", path=str(path)
        ) from exc
