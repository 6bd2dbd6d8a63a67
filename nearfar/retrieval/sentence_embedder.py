"""Any model of sentence-transformers as an embedder, with its prompts and a shorter vector where it was trained so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nearfar.errors import ConfigError

from .embedders import encodable, unit_rows

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


class SentenceEmbedder:
    """A model of sentence-transformers.

    Args:
        model: its name on the hub, or a folder; nothing is fetched where HF_HUB_OFFLINE is 1.
        dim: the first so many numbers of a vector, for models trained so (Matryoshka, arXiv:2205.13147); None: all.
        query_prompt: before every text that searches; "": the model's own prompt named "query", if it has one.
        document_prompt: before every text that is found; "": the model's own named "document" or "passage".
        batch_size: texts at once.
        device: as torch names it; None: torch's choice.

    Raises:
        ConfigError: sentence-transformers is not installed, or there is no such model here.
    """

    def __init__(
        self,
        model: str,
        *,
        dim: int | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as exc:
            raise ConfigError(
                "Models of sentence-transformers need it. Install torch==2.13.0 first, then: "
                "pip install 'nearfar[minilm]'"
            ) from exc
        try:
            self._model: Any = SentenceTransformer(model, device=device, truncate_dim=dim)
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"Cannot load the embedder {model!r}: {str(exc).splitlines()[0]} Fetch it while online "
                "(HF_HUB_OFFLINE=0), or name a folder that holds it."
            ) from exc
        prompts: dict[str, str] = getattr(self._model, "prompts", None) or {}
        self._query_prompt = query_prompt or prompts.get("query") or ""
        self._document_prompt = document_prompt or prompts.get("document") or prompts.get("passage") or ""
        self._batch_size = batch_size
        self._dim = int(self._model.get_embedding_dimension())
        if dim is not None and dim > self._dim:
            raise ConfigError(f"The embedder {model!r} has {self._dim} numbers, not {dim}; set dim to at most that.")
        prompted = [repr(prompt) for prompt in (self._document_prompt, self._query_prompt) if prompt]
        self._name = " ".join([f"{model.rstrip('/')}-{self._dim}", *prompted])

    @property
    def name(self) -> str:
        """The model, its length and its prompts: vectors of another prompt are others."""
        return self._name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text, of length 1."""
        return self._rows(texts, self._document_prompt)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[float32]:
        """As `embed`, with the prompt of texts that search."""
        return self._rows(texts, self._query_prompt)

    def _rows(self, texts: Sequence[str], prompt: str) -> NDArray[float32]:
        if not texts:
            return unit_rows([], 0, self._dim)
        rows = self._model.encode(
            encodable(texts), prompt=prompt or None, batch_size=self._batch_size, show_progress_bar=False
        )
        return unit_rows(rows, len(texts), self._dim)
