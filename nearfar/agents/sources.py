"""Tool sources that need nothing but what nearfar has: the files of a folder, a collection of documents.

`Chosen` offers some of another source's tools: the fewer a small model is shown, the better it chooses.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nearfar.errors import ToolSourceError
from nearfar.types import Retriever

from .functions import FunctionTool
from .mcp_source import McpSource, StdioServer
from .types import Tool, ToolHints, ToolSource

#: Of a passage, as a role is shown it.
_MAX_PASSAGE = 400

_READS = ToolHints(read_only=True, destructive=False, idempotent=True, open_world=False)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of a source's tools; none named: all."""

    source: ToolSource
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    async def tools(self) -> list[Tool]:
        """Those of the source's tools.

        Raises:
            ToolSourceError: as the source; or it has no tool of a name.
        """
        found = await self.source.tools()
        names = [tool.spec.name for tool in found]
        if missing := [name for name in self.only if name not in names]:
            raise ToolSourceError(
                f"{self.name!r} has no tool {missing[0]!r}; it has {', '.join(map(repr, names)) or 'none'}.",
                source=self.name,
            )
        return [tool for tool in found if not self.only or tool.spec.name in self.only]

    async def aclose(self) -> None:
        """Closes the source."""
        await self.source.aclose()


def folder_files(name: str, folder: Path) -> McpSource:
    """The text files of a folder, read by a program of their own that is spoken to over MCP.

    The program is nearfar's, so that its word on what its tools do is taken.

    Raises:
        ToolSourceError: there is no such folder.
    """
    if not folder.is_dir():
        raise ToolSourceError(f"There is no folder {str(folder)!r}; name one that exists.", source=name)
    command = (sys.executable, "-m", "nearfar.agents.files_server", str(folder))
    return McpSource(name, StdioServer(command), trusts_hints=True)


def documentation_search(open_retriever: Callable[[], Retriever], *, passages: int = 2) -> FunctionTool:
    """Search in a collection as a tool.

    Args:
        open_retriever: what searches it, made at the first search.
        passages: how many it gives back.
    """
    made: list[Retriever] = []

    def find(query: str) -> list[str]:
        if not made:
            made.append(open_retriever())
        return [hit.chunk.text for hit in made[0].search(query, k=passages)]

    async def search_documentation(query: str) -> str:
        """Searches the documentation.

        Args:
            query: what to look for, in a few words
        """
        texts = await asyncio.to_thread(find, query)
        return "\n\n".join(_clipped(text) for text in texts) or "Nothing was found."

    return FunctionTool(search_documentation, hints=_READS)


def _clipped(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _MAX_PASSAGE else f"{text[:_MAX_PASSAGE]} …"


async def close_all(sources: Sequence[ToolSource]) -> None:
    """Closes every source, whatever becomes of the others."""
    await asyncio.gather(*(source.aclose() for source in sources), return_exceptions=True)
