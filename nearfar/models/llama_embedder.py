"""Embeddings of a GGUF file by llama.cpp inside this process."""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import MalformedAnswer, ModelLoadError, UpstreamRejected

from .llama_library import llama_library

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

_MAX_THREADS = 8
_SHORTEST = 16  # characters: what is refused as too long and is not longer than that has another fault
_NUM_TOKENS = re.compile(r"\((\d+) tokens\)")


class LlamaCppEmbedder:
    """Texts as vectors by llama.cpp, pooled as the model's file says, or by the mean where it says nothing.

    Args:
        name: in the config, for errors.
        path: the GGUF file; its weights are loaded with the first text.
        dim: the first so many numbers of a vector, for models trained so; None: all.
        query_prompt: before every text that searches.
        document_prompt: before every text that is found.
        context_window: tokens of a text; what is beyond is not read.
        threads: None: one per core, at most 8.
    """

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        dim: int | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        context_window: int = 512,
        threads: int | None = None,
    ) -> None:
        self._key = name
        self._path = path
        self._wanted_dim = dim
        self._prompts = query_prompt, document_prompt
        self._context_window = context_window
        self._threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)
        self._server: Any = None
        self._dim: int | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The file, the length and the prompts: vectors of another prompt are others."""
        prompts = " ".join(repr(prompt) for prompt in self._prompts if prompt)
        return f"{self._path.name}-{self.dim} {prompts}".rstrip()

    @property
    def dim(self) -> int:
        """Length of a vector; the weights are loaded where it is not known yet."""
        if self._dim is None:
            self.embed(["?"])
        assert self._dim is not None
        return self._dim

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text, of length 1.

        Raises:
            ModelLoadError: the file is missing or broken.
            UpstreamRejected: llama.cpp refuses a text.
        """
        return self._rows(texts, self._prompts[1])

    def embed_queries(self, texts: Sequence[str]) -> NDArray[float32]:
        """As `embed`, with the prompt of texts that search."""
        return self._rows(texts, self._prompts[0])

    def _rows(self, texts: Sequence[str], prompt: str) -> NDArray[float32]:
        import numpy as np

        with self._lock:
            server = self._loaded()
            rows = [self._embedded(server, f"{prompt}{text}") for text in texts]
        vectors = np.array(rows, np.float32).reshape(len(texts), -1 if rows else self._dim or 0)
        vectors = vectors[:, : self._wanted_dim]
        if len(vectors):
            self._dim = int(vectors.shape[1])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units: NDArray[float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        return units

    def _loaded(self) -> Any:
        if self._server is not None:
            return self._server
        if not self._path.is_file():
            raise ModelLoadError(f"{self._key!r}: there is no file {str(self._path)!r}.", model=self._key)
        xllamacpp = llama_library(self._key)
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.embedding = True
        params.n_parallel = 1
        params.n_ctx = params.n_batch = params.n_ubatch = self._context_window  # a text is pooled in one piece
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cache_ram_mib = 0
        params.fit_params = params.warmup = False
        params.verbosity = -1
        params.api_keys = [secrets.token_hex(16)]  # its HTTP port on loopback is nobody's
        params.cors_origins = ""
        params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui = False
        params.n_threads_http = 1
        if not self._is_pooled():
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as exc:
            raise ModelLoadError(
                f"{self._key!r}: {str(self._path)!r} cannot be loaded: {exc}. Replace it by a whole GGUF file",
                model=self._key,
            ) from exc
        return self._server

    def _is_pooled(self) -> bool:
        """Whether the file says how its tokens' vectors become the text's; the key stands among its first ones."""
        with self._path.open("rb") as file:
            return b".pooling_type" in file.read(1 << 16)

    def _embedded(self, server: Any, text: str) -> list[float]:
        """The text's vector; a text that is too long is cut until it fits."""
        clean = text.encode(errors="replace").decode()
        while True:
            reply = server.handle_embeddings({"input": [clean if clean.strip() else "."]})
            error = reply.get("error")
            if error is None:
                break
            message = str(error.get("message", "no message"))
            if "too large" not in message or len(clean) < _SHORTEST:
                raise UpstreamRejected(f"{self._key!r} refuses a text: {message}", model=self._key)
            found = _NUM_TOKENS.search(message)
            share = self._context_window / int(found[1]) if found else 0.5
            clean = clean[: int(len(clean) * min(share, 0.95) * 0.95)]
        rows = reply.get("data") or []
        if len(rows) != 1:
            raise MalformedAnswer(f"{self._key!r} gave {len(rows)} vectors for one text.", model=self._key)
        vector: list[float] = rows[0]["embedding"]
        return vector
