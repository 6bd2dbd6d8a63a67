"""What the terminal shows: rich where there is one, plain text where there is not; NO_COLOR is honoured."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Wide enough that a table in a pipe is never cut.
_PIPE_WIDTH = 1000


@cache
def stdout() -> Console:
    """The console for results."""
    return _console(is_stderr=False)


@cache
def stderr() -> Console:
    """The console for progress and remarks."""
    return _console(is_stderr=True)


def _console(*, is_stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if is_stderr else sys.stdout
    return Console(
        stderr=is_stderr, highlight=False, emoji=False, width=None if stream.isatty() else _PIPE_WIDTH, soft_wrap=False
    )


def write(text: str) -> None:
    """Puts a piece of a result on stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Puts one JSON object, or another value, on a line of stdout."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def remark(text: str, *, style: str = "dim") -> None:
    """A line on stderr that is not the result."""
    if sys.stderr.isatty():
        stderr().print(text, style=style, markup=False)
    else:
        sys.stderr.write(text + "\n")


def complain(message: str) -> None:
    """The one line that says what went wrong."""
    if sys.stderr.isatty():
        stderr().print("[bold red]Error:[/] ", end="")
        stderr().print(message, markup=False, soft_wrap=True)
    else:
        sys.stderr.write(f"Error: {message}\n")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on stderr while something takes its time; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield
        return
    with stderr().status(f"[dim]{text}", spinner="dots"):
        yield


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), wrap: Sequence[str] = ()
) -> None:
    """Rows under a heading, on stdout.

    Args:
        columns: the headings.
        rows: the cells, with rich markup escaped by the caller where they hold foreign text.
        right: the columns whose cells are numbers.
        wrap: the columns that take several lines where the terminal is narrow.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    box = SIMPLE_HEAD if sys.stdout.isatty() else None
    grid = Table(box=box, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    for column in columns:
        justify: Any = "right" if column in right else "left"
        grid.add_column(column, justify=justify, overflow="fold", no_wrap=column not in wrap)
    for row in rows:
        grid.add_row(*row)
    stdout().print(grid)


def escape(text: str) -> str:
    """The text with rich's markup and the terminal's control characters taken out of force."""
    from rich.markup import escape as escape_markup

    return escape_markup(printable(text))


def printable(text: str) -> str:
    """The text without control characters other than newline and tab, which could steer a terminal, and without those
    that make it run the other way, which could make a line read as another one.
    """
    return text.translate(_STEERING)


#: The control characters of ASCII and of Latin-1 (which has escape sequences of its own), and the marks of direction.
_STEERING = dict.fromkeys(
    [*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)


def one_line(text: str) -> str:
    """The text as printable, its white space as blanks: a file's name may hold a newline."""
    return " ".join(printable(text).split())


def usd(amount: float | None, *, is_estimated: bool = False) -> str:
    """An amount of money, with as many digits as it needs."""
    if amount is None:
        return "cost unknown"
    if amount == 0:
        return "$0"
    whole, _, digits = (f"{amount:.2f}" if amount >= 1 else f"{amount:.6f}").partition(".")
    return f"{'~' if is_estimated else ''}${whole}.{digits.rstrip('0').ljust(2, '0')}"


def seconds(amount: float) -> str:
    """A duration."""
    if amount < 1:
        return f"{amount * 1000:.0f} ms"
    return f"{amount:.1f} s" if amount < 120 else f"{amount / 60:.1f} min"
