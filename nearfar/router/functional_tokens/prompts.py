"""What the choosing model is asked: to pick a worker, to say whether another should go on, to rewrite the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from nearfar.types import Message

from .graph import Worker

#: "described" tells the model what each worker does, which any model understands and costs a prompt of its own;
#: "trained" leaves that to an adapter that has learnt the labels.
Style: TypeAlias = Literal["described", "trained"]

#: Characters of a query that the choice is made on: its kind shows at its beginning and its end (the task, the format
#: asked for), and the prompt's length is nearly all that the choice costs.
HEAD, TAIL = 120, 60

#: What a worker's label competes with after an answer: to leave it as it is.
DONE = "The answer is complete."

#: Inputs without content, for what the model prefers before it has read anything. Zhao et al. 2021, section 5.
CONTENT_FREE = ("N/A", "", "[MASK]")


def choice_prompt(workers: Sequence[Worker], text: str, style: Style) -> tuple[Message, ...]:
    """Asks for the label of the worker that should take `text`."""
    if style == "trained":
        return (Message("system", "Route the query."), Message("user", excerpt(text)))
    told = "\n".join(f"{worker.label}: {worker.description}" for worker in workers)
    return (
        Message("system", f"You are a router. Choose the worker for the query. The workers are:\n{told}"),
        Message("user", f"Query: {excerpt(text)}\nAnswer with the worker's label and nothing else."),
    )


def hop_prompt(workers: Sequence[Worker], stop_label: str, text: str, answer: str) -> tuple[Message, ...]:
    """Asks who should go on with `answer`; `stop_label` says that nobody needs to."""
    told = "\n".join(f"{worker.label}: {worker.description}" for worker in workers)
    return (
        Message(
            "system",
            f"You are a router. A worker has answered. Choose what comes next:\n{told}\n{stop_label}: {DONE}",
        ),
        Message(
            "user", f"Query: {excerpt(text)}\nAnswer so far: {excerpt(answer)}\nAnswer with one label and nothing else."
        ),
    )


def rewrite_prompt(worker: Worker, text: str) -> tuple[Message, ...]:
    """Asks for `text` in the words of the worker's trade: the second field of a functional token."""
    return (
        Message(
            "system",
            "Rewrite the query for an expert, in precise and professional words. Keep its meaning, every number, name "
            f"and format that it asks for. Do not answer it. The expert: {worker.description}",
        ),
        Message("user", text),
    )


def excerpt(text: str) -> str:
    """The text's beginning and end, where it is longer than both."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]} … {text[-TAIL:]}"
