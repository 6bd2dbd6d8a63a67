"""Options that several commands share, and the query that they make."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from nearfar.errors import RequestError

if TYPE_CHECKING:
    from nearfar.types import Query
    from nearfar.wiring import Wired


class Privacy(StrEnum):
    """Who may see the query."""

    any = "any"
    near = "near"


ASKING = "The question"
LIMITS = "Limits"
DECODING = "Decoding"
OUTPUT = "Output"

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Config file (default: $NEARFAR_CONFIG, ./nearfar.toml, your own)."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]
ModelOption: TypeAlias = Annotated[
    str, typer.Option("--model", "-m", help="A cascade's or a model's name.", rich_help_panel=ASKING)
]
SystemOption: TypeAlias = Annotated[
    str | None, typer.Option("--system", "-s", help="Instructions that go before the question.", rich_help_panel=ASKING)
]
BudgetOption: TypeAlias = Annotated[
    float | None, typer.Option("--budget-usd", help="The most that the answer may cost.", rich_help_panel=LIMITS)
]
DeadlineOption: TypeAlias = Annotated[
    float | None, typer.Option("--deadline-s", help="Seconds until the whole answer is there.", rich_help_panel=LIMITS)
]
PrivacyOption: TypeAlias = Annotated[
    Privacy, typer.Option("--privacy", help="near: no far model may see it.", rich_help_panel=LIMITS)
]
QualityOption: TypeAlias = Annotated[
    str | None, typer.Option("--quality", help="Name of the policy that decides.", rich_help_panel=LIMITS)
]
AbstainOption: TypeAlias = Annotated[
    bool,
    typer.Option("--abstain", help='Say "I don\'t know" rather than give an unsure answer.', rich_help_panel=LIMITS),
]
MaxTokensOption: TypeAlias = Annotated[
    int | None, typer.Option("--max-tokens", help="The longest answer.", rich_help_panel=DECODING)
]
TemperatureOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--temperature", "-t", help="0 always takes the likeliest token.", rich_help_panel=DECODING),
]
SeedOption: TypeAlias = Annotated[
    int | None, typer.Option("--seed", help="Makes random answers repeatable.", rich_help_panel=DECODING)
]


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What the options of a command say about a query."""

    model: str = "auto"
    system: str | None = None
    budget_usd: float | None = None
    deadline_s: float | None = None
    privacy: Privacy = Privacy.any
    quality: str | None = None
    abstain: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    def query(self, prompt: str | None) -> Query:
        """The query; without a prompt, a template of one that holds the system message alone."""
        from nearfar.types import Message, Query, SamplingOptions

        messages = [Message("system", self.system)] if self.system else []
        if prompt is not None:
            messages.append(Message("user", prompt))
        return Query(
            tuple(messages),
            model=self.model,
            sampling=SamplingOptions(max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed),
            budget_usd=self.budget_usd,
            deadline_s=self.deadline_s,
            privacy=self.privacy.value,
            quality=self.quality,
            when_unsure="abstain" if self.abstain else "best",
        )


def read_prompt(prompt: str | None) -> str:
    """The prompt as it was given, or from stdin where it is "-" or left out of a pipe.

    Raises:
        RequestError: there is none, or it is not UTF-8.
    """
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        try:
            prompt = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError as exc:
            raise RequestError(f"The prompt on stdin is not UTF-8 (byte {exc.start}); convert it.") from exc
    if prompt is None or not prompt.strip():
        raise RequestError('The prompt is empty; give one: nearfar ask "Why is the sky blue?"', param="prompt")
    return prompt


def refuse_contradictions(wired: Wired, query: Query) -> None:
    """Refuses a query that names a far model and may not leave the machine.

    Raises:
        RequestError: it does.
    """
    card = wired.router.cards().get(query.model)
    if card is not None and card.placement == "far" and query.privacy == "near":
        raise RequestError(
            f"{query.model!r} is a far model, and --privacy near keeps the query on this machine; name a near model, "
            "or leave --privacy out.",
            param="privacy",
        )


@asynccontextmanager
async def opened(config: Path | None) -> AsyncIterator[Wired]:
    """Everything that the config describes, closed afterwards."""
    from nearfar.config import Settings
    from nearfar.wiring import build

    from .logs import configure_logs

    settings = Settings.load(config)
    configure_logs(settings.secrets)
    wired = build(settings)
    try:
        yield wired
    finally:
        await wired.aclose()
