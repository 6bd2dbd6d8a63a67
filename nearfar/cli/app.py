"""The commands, in the order in which `nearfar --help` lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from . import (
    agent,
    ask,
    batch,
    calibrate,
    capacity,
    chat,
    decisions,
    demo,
    doctor,
    documents,
    engine,
    evaluate,
    evaluate_retrieval,
    learning,
    mcp,
    memory,
    models,
    quantize,
    serve,
    settings,
    tools,
    train,
)
from .console import write

app = typer.Typer(
    help="Answer each query with the cheapest model that is good enough: small near models first, large far ones "
    "only where they are needed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from nearfar import __version__

        write(f"nearfar {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The options of `nearfar` itself."""


_PANELS: dict[str, dict[str, Callable[..., Any]]] = {
    "Answer": {"ask": ask.ask, "chat": chat.chat, "batch": batch.batch, "serve": serve.serve, "mcp": mcp.mcp},
    "Documents": {"index": documents.index, "search": documents.search},
    "Look": {"route": decisions.route, "explain": decisions.explain, "decisions": decisions.decisions},
    "Learn": {"outcome": learning.outcome, "replay": learning.replay},
    "Set up": {
        "init": settings.init,
        "config": settings.show_config,
        "doctor": doctor.doctor,
        "calibrate": calibrate.calibrate,
        "evaluate": evaluate.evaluate,
        "plan-capacity": capacity.plan_capacity,
        "evaluate-retrieval": evaluate_retrieval.evaluate_retrieval,
        "quantize": quantize.quantize,
        "demo": demo.demo,
    },
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(agent.app, name="agent", rich_help_panel="Answer")
app.add_typer(tools.app, name="tools", rich_help_panel="Answer")
app.add_typer(models.app, name="models", rich_help_panel="Set up")
app.add_typer(engine.app, name="engine", rich_help_panel="Set up")
app.add_typer(memory.app, name="memory", rich_help_panel="Set up")
app.add_typer(train.app, name="train", rich_help_panel="Set up")
app.add_typer(serve.keys_app, name="keys", rich_help_panel="Set up")
