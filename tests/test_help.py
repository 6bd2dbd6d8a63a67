"""What `--help` prints is what was written."""

import pytest
import typer
from rich.text import Text

from nearfar.cli.app import app


def commands(command, path=()):
    """Every command and group, with its path."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in commands(typer.main.get_command(app))]
)
def test_help_loses_no_words(path, command):
    """Typer reads help as markup, in which `[default: …]` is a tag and is not shown."""
    written = [command.help, *(getattr(param, "help", None) for param in command.params)]

    lost = [text for text in written if text and Text.from_markup(text).plain != text]

    assert lost == []
