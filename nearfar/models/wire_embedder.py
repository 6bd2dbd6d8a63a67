"""Embeddings of a server that speaks OpenAI's wire: batches, retries, and vectors put back into order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from nearfar.errors import UpstreamError

from .http import HttpClient
from .wire_json import UNREADABLE

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

#: The wait before a second attempt, doubled before each further one, where the server names none.
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0


class _Row(msgspec.Struct):
    embedding: list[float]
    index: int


class _Reply(msgspec.Struct):
    data: list[_Row]


_decoder = msgspec.json.Decoder(_Reply)


class WireEmbedder:
    """Texts as vectors by POST /embeddings. It may be called from any thread; not from a running event loop's own.

    Args:
        name: in the config, for errors.
        url: the server's base URL.
        model: the server's name for the model.
        api_key: sent as a bearer token; None: none is.
        dim: the first so many numbers of a vector, for models trained so; None: all.
        query_prompt: before every text that searches.
        document_prompt: before every text that is found.
        batch_size: texts in one request.
        timeout_s: the longest silence while an answer is awaited.
        attempts: tries of one request, the first included.

    Raises:
        ConfigError: the URL or the key cannot be used.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        model: str,
        api_key: str | None = None,
        dim: int | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        batch_size: int = 128,
        timeout_s: float = 60.0,
        attempts: int = 3,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = HttpClient(model=name, url=url, headers=headers, read_timeout_s=timeout_s)
        self._model = model
        self._wanted_dim = dim
        self._prompts = query_prompt, document_prompt
        self._batch_size = batch_size
        self._attempts = attempts
        self._dim: int | None = None  # not known before the server has answered once
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    @property
    def name(self) -> str:
        """The model, its length and its prompts: vectors of another prompt are others."""
        prompts = " ".join(repr(prompt) for prompt in self._prompts if prompt)
        return f"{self._model}-{self.dim} {prompts}".rstrip()

    @property
    def dim(self) -> int:
        """Length of a vector; the server is asked for one where it is not known yet."""
        if self._dim is None:
            self.embed(["?"])
        assert self._dim is not None
        return self._dim

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text, of length 1.

        Raises:
            UpstreamError: the server failed, or its answer has other vectors than were asked for.
        """
        return self._rows(texts, self._prompts[1])

    def embed_queries(self, texts: Sequence[str]) -> NDArray[float32]:
        """As `embed`, with the prompt of texts that search."""
        return self._rows(texts, self._prompts[0])

    def close(self) -> None:
        """Closes the connections and the thread that they live in. Twice is fine."""
        with self._lock:
            if self._portal is not None:
                self._portal.call(self._http.aclose)
                self._portal = None
            self._stack.close()

    def _rows(self, texts: Sequence[str], prompt: str) -> NDArray[float32]:
        import numpy as np

        with self._lock:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal())
            portal = self._portal
        rows: list[list[float]] = []
        for start in range(0, len(texts), self._batch_size):
            batch = [f"{prompt}{text}" or " " for text in texts[start : start + self._batch_size]]
            rows += portal.call(self._ask, batch)
        vectors = np.array(rows, np.float32).reshape(len(texts), -1 if rows else self._dim or 0)
        vectors = vectors[:, : self._wanted_dim]
        if len(vectors):
            self._check(vectors.shape[1])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units: NDArray[float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        return units

    def _check(self, dim: int) -> None:
        if self._dim not in (None, dim) or (self._wanted_dim or dim) > dim:
            raise self._http.errors.malformed(f"vectors of {dim} numbers, not of {self._dim or self._wanted_dim}")
        self._dim = dim

    async def _ask(self, texts: list[str]) -> list[list[float]]:
        clean = [text.encode(errors="replace").decode() for text in texts]  # JSON takes no lone surrogates
        body = msgspec.json.encode({"model": self._model, "input": clean, "encoding_format": "float"})
        wait_s = _FIRST_WAIT_S
        for attempt in range(1, self._attempts + 1):
            try:
                return await self._ask_once(body, len(texts))
            except UpstreamError as exc:
                if not exc.is_transient or attempt == self._attempts:
                    raise
                await asyncio.sleep(min(_LONGEST_WAIT_S, exc.retry_after_s or wait_s))
                wait_s *= 2
        raise AssertionError("the last attempt returns or raises")

    async def _ask_once(self, body: bytes, num_texts: int) -> list[list[float]]:
        async with self._http.exchange("POST", self._http.endpoint("embeddings"), body) as exchange:
            read = await exchange.read()
        try:
            rows = sorted(_decoder.decode(read).data, key=lambda row: row.index)
        except UNREADABLE as exc:
            raise self._http.errors.malformed(f"no embeddings: {exc}", read) from exc
        if [row.index for row in rows] != list(range(num_texts)) or len({len(row.embedding) for row in rows}) > 1:
            raise self._http.errors.malformed(f"{len(rows)} vectors for {num_texts} texts", b"")
        return [row.embedding for row in rows]
