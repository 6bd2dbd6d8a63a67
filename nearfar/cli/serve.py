"""`nearfar serve` and `nearfar keys`: the HTTP door and the keys to it."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.errors import RequestError

from . import options as opt
from .console import escape, remark, table, write, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.config.keys import StoredKey

keys_app = typer.Typer(help="Make, list and revoke the gateway's keys.", no_args_is_help=True)


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on (default: loopback).")] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, help="0: any free one.")] = None,
    config: opt.ConfigOption = None,
) -> int:
    """Serve OpenAI clients over HTTP; they ask for the model `auto`."""
    from dataclasses import replace

    from nearfar.config import Settings
    from nearfar.serving.gateway.server import serve as run_server
    from nearfar.wiring import build
    from nearfar.wiring.gateway import gateway_agents, gateway_doors, gateway_settings

    from .logs import configure_logs

    settings = Settings.load(config)
    changes = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    section = settings.gateway.model_copy(update=changes)
    gateway = gateway_settings(replace(settings, gateway=section))
    configure_logs(settings.secrets, level=logging.INFO)
    wired = build(settings)
    try:
        doors = gateway_doors(settings)
        agents = gateway_agents(wired, gateway)
        announce = partial(remark, style="bold")
        run_server(wired.router, settings=gateway, doors=doors, agents=agents, announce=announce)
    finally:
        wired.store.close()
    return DONE


@keys_app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="What the key is for.")] = "default",
    may: Annotated[
        list[str] | None,
        typer.Option(
            "--may", help="ask: models; run: agents; approve: agents' calls. Repeatable; ask and run unless told."
        ),
    ] = None,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Make a key and print it once; only its hash is kept."""
    from datetime import UTC, datetime

    from nearfar.config import Settings
    from nearfar.config.keys import StoredKey, read_keys, write_keys
    from nearfar.serving.gateway.keys import RIGHTS, USUAL_RIGHTS, hash_key, new_key

    if unknown := sorted(set(may or ()) - set(RIGHTS)):
        raise RequestError(f"A key may not {unknown[0]!r}; it may {', '.join(map(repr, RIGHTS))}.")
    path = Settings.load(config, needs_keys=False).keys_path
    keys = read_keys(path)
    if any(key.name == name for key in keys):
        raise RequestError(f"There is a key {name!r} already. Name another, or revoke it: nearfar keys revoke {name}")
    key = new_key()
    rights = tuple(each for each in RIGHTS if each in (may or USUAL_RIGHTS))
    stored = StoredKey(hash_key(key), name, datetime.now(UTC).isoformat(timespec="seconds"), rights)
    write_keys(path, [*keys, stored])
    if as_json:
        write_json({"key": key, "name": name, "rights": rights, "file": str(path)})
        return DONE
    write(f"{key}\n")
    remark(f"shown this once; its hash is in {path}. A running gateway takes it after a restart.")
    return DONE


@keys_app.command("list")
def list_keys(as_json: opt.JsonOption = False, config: opt.ConfigOption = None) -> int:
    """List the keys' names, and what each may do."""
    keys = _stored(config)
    if as_json:
        write_json([{"name": key.name, "created_at": key.created_at, "rights": key.rights} for key in keys])
    elif keys:
        rows = [[escape(key.name), escape(key.created_at), escape(", ".join(key.rights))] for key in keys]
        table(["name", "made", "may"], rows)
    else:
        remark("There are no keys. Make one: nearfar keys new.")
    return DONE


@keys_app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    config: opt.ConfigOption = None,
) -> int:
    """Take a key out of force, from the gateway's next start on."""
    from nearfar.config import Settings
    from nearfar.config.keys import write_keys

    keys = _stored(config)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise RequestError(f"There is no key {name!r}. List them: nearfar keys list.")
    write_keys(Settings.load(config, needs_keys=False).keys_path, left)
    remark(f"{name} is revoked; restart the gateway.")
    return DONE


def _stored(config: Path | None) -> tuple[StoredKey, ...]:
    from nearfar.config import Settings
    from nearfar.config.keys import read_keys

    return read_keys(Settings.load(config, needs_keys=False).keys_path)
