"""What nearfar keeps of queries, what far calls may cost, and the folder that its files are in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat

from .source import Section, Source


class DecisionSettings(Section):
    """The decision log."""

    path: Path | None = None  # None: nearfar.db in data.dir
    text: Literal["keep", "hash", "drop"] = "keep"
    retention_days: PositiveFloat | None = None


class BudgetSettings(Section):
    """The most that all far calls together may cost."""

    limit_usd: float | None = Field(default=None, ge=0)  # None: no limit
    period: Literal["total", "day", "month"] = "total"
    killed_calls: Literal["spent", "returned"] = "spent"  # what becomes of the reservations of killed processes


class DataSection(Section):
    """Where nearfar keeps its files."""

    dir: Path


def check_budget(source: Source, budget: BudgetSettings) -> None:
    """Returns if there is a limit for what is said about it.

    Raises:
        ConfigError: there is none.
    """
    if budget.limit_usd is not None:
        return
    for key, usual in (("period", "total"), ("killed_calls", "spent")):
        if getattr(budget, key) != usual:
            raise source.error(f"budget.{key} is set and budget.limit_usd is not; set a limit, or neither", key)
