"""`nearfar mcp`: nearfar as an MCP server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import ConfigError, RequestError
from nearfar.retrieval.places import hit_json

from . import options as opt
from .console import remark
from .run import DONE

if TYPE_CHECKING:
    from nearfar.agents.mcp_server import Doors
    from nearfar.wiring import Wired


def mcp(
    port: Annotated[
        int | None,
        typer.Option(
            "--port", "-p", min=0, max=65535, help="Serve over HTTP on this port, not over stdin and stdout; 0: any."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="A loopback address, for --port.")] = "127.0.0.1",
    config: opt.ConfigOption = None,
) -> int:
    """Serve nearfar's tools (ask, search, explain) to MCP clients.

    Without --port it talks over stdin and stdout, as programs want that start it themselves.
    """
    try:
        from nearfar.agents.mcp_server import make_server, serve_http, serve_stdio
    except ModuleNotFoundError as exc:
        raise ConfigError("An MCP server needs more packages. Install them: pip install 'nearfar[agents]'") from exc

    async def main() -> None:
        async with opt.opened(config) as wired:
            server = make_server(_doors(wired))
            if port is None:
                await serve_stdio(server)
                return
            try:
                await serve_http(server, host=host, port=port, announce=lambda url: remark(f"serving MCP on {url}"))
            except ValueError as exc:
                raise RequestError(
                    f"{exc}; this server has no keys. Serve on 127.0.0.1, behind a proxy that has some.", param="host"
                ) from exc
            except OSError as exc:
                raise ConfigError(f"Port {port} cannot be had: {exc.strerror}. Take another: --port 0") from exc

    asyncio.run(main())
    return DONE


def _doors(wired: Wired) -> Doors:
    from nearfar.agents.mcp_server import Doors
    from nearfar.wiring.documents import collection_names, open_collection

    from .views import decision_json

    def find(name: str, query: str, num_passages: int) -> list[dict[str, Any]]:
        collection = open_collection(wired.settings, name)
        try:
            return [hit_json(hit) for hit in collection.search(query, k=num_passages)]
        finally:
            collection.close()

    async def search(name: str, query: str, num_passages: int) -> list[dict[str, Any]]:
        return await asyncio.to_thread(find, name, query, num_passages)

    async def explain(decision_id: str) -> Mapping[str, Any] | None:
        await wired.log.flush()
        decision = await wired.log.get(decision_id)
        return None if decision is None else decision_json(decision)

    return Doors(wired.router, lambda: collection_names(wired.settings), search, explain)
