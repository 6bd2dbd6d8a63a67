"""Pages with measured tables: where the results of benchmarks lie, and how a table comes between its marks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def measured(page: str, *tables: tuple[str, str, Callable[[dict[str, Any]], str]]) -> tuple[Path, str]:
    """The page with its tables as the committed results have them; a table without a result stays as it is.

    Args:
        page: its file in docs/.
        tables: the mark that the table stands behind, the result's name, and what makes the one of the other.
    """
    path = DOCS / page
    text = path.read_text()
    for mark, name, made in tables:
        if has_result(name):
            text = filled(text, mark, made(result(name)))
    return path, text


def filled(text: str, mark: str, made: str) -> str:
    """The text with `made` between `<!-- MARK -->` and the next mark that ends something."""
    begin = f"<!-- {mark} -->\n"
    before, rest = text.split(begin, 1)
    return f"{before}{begin}{made}\n{rest[rest.index('<!-- end') :]}"


def has_result(name: str) -> bool:
    """Whether the benchmark of this name has a committed result."""
    return (RESULTS / f"{name}.json").exists()


def result(name: str) -> dict[str, Any]:
    """The committed result of the benchmark of this name."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def share(found: Mapping[str, Any]) -> str:
    """A share with its interval."""
    low, high = found["interval"]
    return f"{found['value']:.2f} ({low:.2f} – {high:.2f})"


def signed(found: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    low, high = found["interval"]
    return f"{found['value']:+.2f} ({low:+.2f} to {high:+.2f})"
