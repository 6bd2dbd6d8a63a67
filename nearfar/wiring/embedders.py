"""The embedders that the settings name."""

from __future__ import annotations

from typing import assert_never

from nearfar.config import Settings
from nearfar.config.retrieval import (
    BUILT_IN_EMBEDDERS,
    LlamaCppEmbedderSettings,
    OpenAIEmbedderSettings,
    SentenceTransformersSettings,
)
from nearfar.errors import ConfigError
from nearfar.types import Embedder


def build_embedder(settings: Settings, name: str) -> Embedder | None:
    """The embedder of this name; None for "none".

    Raises:
        ConfigError: there is none of this name, or what it needs is not here.
    """
    if name == "none":
        return None
    if name in BUILT_IN_EMBEDDERS:
        from nearfar.retrieval.embedders import find_embedder

        return find_embedder(name)
    if name not in settings.embedders:
        known = ", ".join(map(repr, ["none", *BUILT_IN_EMBEDDERS, *settings.embedders]))
        raise ConfigError(
            f"There is no embedder {name!r}; there are {known}. Add one to the config: [embedders.{name}]."
        )
    embedder = settings.embedders[name]
    match embedder:
        case SentenceTransformersSettings():
            from nearfar.retrieval.sentence_embedder import SentenceEmbedder

            return SentenceEmbedder(**embedder.model_dump(exclude={"kind"}))
        case OpenAIEmbedderSettings():
            from nearfar.models.wire_embedder import WireEmbedder

            key = settings.embedder_keys.get(name)
            options = embedder.model_dump(exclude={"kind", "api_key_env", "placement"})
            return WireEmbedder(name=name, api_key=key.get_secret_value() if key else None, **options)
        case LlamaCppEmbedderSettings():
            from nearfar.models.llama_embedder import LlamaCppEmbedder

            return LlamaCppEmbedder(name=name, **embedder.model_dump(exclude={"kind"}))
        case _:
            assert_never(embedder)


def found_embedder(settings: Settings, name: str) -> Embedder:
    """As `build_embedder`, of a name that was checked not to be "none"."""
    embedder = build_embedder(settings, name)
    assert embedder is not None
    return embedder
