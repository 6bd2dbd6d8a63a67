"""nearfar as an MCP server: what other programs' models may ask, search and have explained."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from nearfar.errors import NearfarError
from nearfar.types import Message, Query

from .types import Responder

#: Who may open the port; a server for others belongs behind a gateway with keys.
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

_ASKS: Final = ToolAnnotations(read_only_hint=True, idempotent_hint=False, open_world_hint=True)
_LOOKS: Final = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)


class AskResult(BaseModel):
    """What came of a question."""

    answer: str
    status: str = Field(description="answered, abstained, refused, failed or cancelled.")
    model: str | None = Field(description="Who answered.")
    tier: str | None
    score: float | None = Field(description="Estimated probability that the answer is good enough.")
    cost_usd: float | None = Field(description="None: unknown.")
    decision_id: str | None = Field(description="`explain` takes it.")


class SearchResult(BaseModel):
    """The passages that were found, best first."""

    passages: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Doors:
    """What the server gives access to.

    Attributes:
        responder: answers questions: a router.
        collections: the collections of documents that there are.
        search: at most so many passages of a collection, as plain JSON values; raises a `NearfarError`.
        explain: the record of a decision as plain JSON values; None: there is none of this id.
    """

    responder: Responder
    collections: Callable[[], Sequence[str]]
    search: Callable[[str, str, int], Awaitable[list[dict[str, Any]]]]
    explain: Callable[[str], Awaitable[Mapping[str, Any] | None]]


def make_server(doors: Doors) -> MCPServer:
    """The server; its tools are `ask`, `search` and `explain`."""
    server = MCPServer(
        "nearfar",
        instructions="ask: a question to the cheapest model that is sure enough. search: passages of the collections "
        "of documents here. explain: why an answer came from where it did, and what left the machine.",
    )

    @server.tool(annotations=_ASKS)
    async def ask(
        question: Annotated[str, Field(description="The question, or the task.", min_length=1)],
        system: Annotated[str | None, Field(description="Instructions that go before it.")] = None,
        model: Annotated[str, Field(description="A cascade's or a model's name.")] = "auto",
        collection: Annotated[str | None, Field(description="Answer from this collection of documents.")] = None,
        privacy: Annotated[Literal["any", "near"], Field(description="near: no far model may see it.")] = "any",
        budget_usd: Annotated[float | None, Field(description="The most that it may cost.", gt=0)] = None,
    ) -> AskResult:
        """Answers a question with the cheapest model that is sure enough."""
        messages = (*((Message("system", system),) if system else ()), Message("user", question))
        query = Query(messages, model=model, docs=collection, privacy=privacy, budget_usd=budget_usd)
        try:
            answer = await doors.responder.answer(query, door="mcp")
        except NearfarError as exc:
            raise _told(exc) from exc
        decision = answer.decision
        return AskResult(
            answer=answer.text,
            status=decision.status if decision else "answered",
            model=answer.model or None,
            tier=answer.tier,
            score=answer.score,
            cost_usd=decision.cost_usd if decision else answer.cost_usd,
            decision_id=answer.decision_id,
        )

    @server.tool(annotations=_LOOKS)
    async def search(
        query: Annotated[str, Field(description="What to look for.", min_length=1)],
        collection: Annotated[str | None, Field(description="Where; may be left out where there is only one.")] = None,
        num_passages: Annotated[int, Field(description="How many passages.", ge=1, le=50)] = 5,
    ) -> SearchResult:
        """Finds the passages of a collection of documents that bear on a query."""
        names = list(doors.collections())
        if collection is None:
            if len(names) != 1:
                raise ToolError(f"Name the collection: {', '.join(map(repr, names)) or 'there is none yet'}.")
            collection = names[0]
        try:
            return SearchResult(passages=await doors.search(collection, query, num_passages))
        except NearfarError as exc:
            raise _told(exc) from exc

    @server.tool(annotations=_LOOKS, structured_output=False)
    async def explain(
        decision_id: Annotated[str, Field(description="As `ask` gave it, or its beginning.", min_length=1)],
    ) -> str:
        """Tells why an answer came from where it did: every tier that was tried, its score, cost, and what left."""
        try:
            decision = await doors.explain(decision_id)
        except NearfarError as exc:
            raise _told(exc) from exc
        if decision is None:
            raise ToolError(f"There is no decision {decision_id!r}.")
        return json.dumps(decision, ensure_ascii=False)

    return server


async def serve_stdio(server: MCPServer) -> None:
    """Serves one client over standard input and output, until the input ends."""
    await server.run_stdio_async()


async def serve_http(server: MCPServer, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serves clients on this machine over streamable HTTP until it is interrupted.

    Args:
        server: what is served.
        host: a loopback address.
        port: 0: any free one.
        announce: told the URL once it is served.

    Raises:
        ValueError: the address is none of this machine's own.
        OSError: the port is taken.
    """
    if host not in _LOOPBACK:
        raise ValueError(f"{host!r} is no loopback address")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    app = server.streamable_http_app(host=host)  # which refuses other hosts' names, against DNS rebinding
    web = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    name = f"[{host}]" if ":" in host else host
    announce(f"http://{name}:{listener.getsockname()[1]}/mcp")
    await web.serve(sockets=[listener])


def _told(exc: NearfarError) -> ToolError:
    """The error as the client's model sees it, in one line."""
    found = f" (decision {exc.decision_id})" if exc.decision_id else ""
    return ToolError(f"{' '.join(str(exc).split())}{found}")
