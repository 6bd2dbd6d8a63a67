"""Reranking by a cross-encoder: a model that reads query and passage together, by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nearfar.errors import ConfigError


class CrossEncoder:
    """A `Reranker` by sentence-transformers.

    Args:
        name: a folder, or a model of the hub, such as "cross-encoder/ms-marco-MiniLM-L6-v2".
        device: as torch names it; None: torch's choice.
        batch_size: pairs that are read at once.

    Raises:
        ConfigError: sentence-transformers is not installed, or there are no such weights.
    """

    def __init__(self, name: str, *, device: str | None = None, batch_size: int = 32) -> None:
        try:
            from sentence_transformers import CrossEncoder as Model
        except ImportError as exc:
            raise ConfigError(
                "A cross-encoder needs sentence-transformers. Install torch==2.13.0 first, then: "
                "pip install 'nearfar[minilm]'"
            ) from exc
        try:
            self._model: Any = Model(name, device=device)
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"There are no weights of a cross-encoder {name!r}; give a folder that has them."
            ) from exc
        self._batch_size = batch_size

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """What the model says of each pair; comparable among passages of one query alone."""
        if not texts:
            return []
        pairs = [(query, text) for text in texts]
        said = self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
        return [float(score) for score in said]
