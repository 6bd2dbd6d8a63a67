"""Collections, embedders and the memory of the config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr

from nearfar.types import Placement

from .models import OPENAI_URL
from .source import Section, Source, did_you_mean, listed


class MemorySettings(Section):
    """Answers given before, in front of every cascade."""

    enabled: bool = False
    policy: Path | None = None  # made by `nearfar memory calibrate`; None: only the very same question is recalled
    embedder: str = "static"  # finds the questions to compare: static, minilm, one of [embedders]
    ttl_s: PositiveFloat = 7 * 86_400.0  # inf: until it is pushed out
    max_memos: PositiveInt = 100_000
    per_user: bool = True  # by the request's `user`; False: all users share, privacy labels never
    postgres_url_env: str | None = None  # variable with the URL of a Postgres with pgvector; None: the local store


class RetrievalSettings(Section):
    """Collections of documents."""

    dir: Path | None = None  # None: collections in data.dir
    embedder: str = "static"  # of new collections: static, minilm, one of [embedders]; none: search by words alone
    passages: int = Field(5, ge=1, le=50)  # that an answer is grounded in
    passage_tokens: PositiveInt | None = None  # what of them the question needs, in so many together; None: whole
    max_chars: PositiveInt = Field(1000, ge=100)  # of a chunk


class _EmbedderSettings(Section):
    """What every kind of embedder takes."""

    dim: PositiveInt | None = None  # the first so many numbers of a Matryoshka model; None: all
    query_prompt: str = ""  # before every text that searches
    document_prompt: str = ""  # before every text that is found


class SentenceTransformersSettings(_EmbedderSettings):
    """A model of sentence-transformers, from its hub or a folder."""

    kind: Literal["sentence-transformers"]
    model: str
    batch_size: PositiveInt = 32
    device: str | None = None  # as torch names it; None: torch's choice


class OpenAIEmbedderSettings(_EmbedderSettings):
    """A server that speaks OpenAI's embeddings."""

    kind: Literal["openai"]
    url: str = OPENAI_URL
    model: str
    placement: Placement = "far"
    api_key_env: str | None = None  # OPENAI_API_KEY where the URL is OpenAI's
    timeout_s: PositiveFloat = 60.0
    attempts: int = Field(3, ge=1, le=10)
    batch_size: PositiveInt = 128


class LlamaCppEmbedderSettings(_EmbedderSettings):
    """A GGUF file of an embedding model, run inside this process."""

    kind: Literal["llama.cpp"]
    path: Path
    context_window: PositiveInt = 512
    threads: PositiveInt | None = None


EmbedderSettings: TypeAlias = SentenceTransformersSettings | OpenAIEmbedderSettings | LlamaCppEmbedderSettings

_EMBEDDER_KINDS: Mapping[str, type[EmbedderSettings]] = {
    "sentence-transformers": SentenceTransformersSettings,
    "openai": OpenAIEmbedderSettings,
    "llama.cpp": LlamaCppEmbedderSettings,
}
#: Embedders that are there without a table of the file.
BUILT_IN_EMBEDDERS = ("static", "minilm")


def read_embedders(source: Source, tables: Mapping[str, Any]) -> dict[str, EmbedderSettings]:
    """The embedders of [embedders].

    Raises:
        ConfigError: a table is wrong, or one has a built-in embedder's name.
    """
    embedders: dict[str, EmbedderSettings] = {}
    for name, where, table in source.named("embedders", tables):
        if name in ("none", *BUILT_IN_EMBEDDERS):
            raise source.error(f"{name!r} is the name of a built-in embedder; rename [embedders.{name}]", name)
        _, cls = source.chosen(where, name, table, _EMBEDDER_KINDS)
        source.check_keys(where, table, cls)
        embedders[name] = source.validate(cls, source.with_paths(table, "path"), where)
    return embedders


def read_embedder_keys(source: Source, embedders: Mapping[str, EmbedderSettings]) -> dict[str, SecretStr]:
    """The embedders' keys.

    Raises:
        ConfigError: a variable is not set, and the source needs keys.
    """
    keys: dict[str, SecretStr] = {}
    for name, embedder in embedders.items():
        if not isinstance(embedder, OpenAIEmbedderSettings):
            continue
        variable = embedder.api_key_env
        if variable is None and embedder.url.rstrip("/") == OPENAI_URL:
            variable = "OPENAI_API_KEY"
        key = source.secret(variable) if variable else None
        if key is not None:
            keys[name] = key
            source.origins[f"embedders.{name}.api_key"] = f"${variable}"
        elif variable and source.needs_keys:
            raise source.error(
                f"Embedder {name!r} takes its key from ${variable}, which is not set; set it, or remove "
                f"[embedders.{name}]",
                variable,
            )
    return keys


def check_embedders(
    source: Source, retrieval: RetrievalSettings, memory: MemorySettings, embedders: Mapping[str, EmbedderSettings]
) -> None:
    """Returns if collections and the memory have embedders, and the memory's sends nothing away.

    Raises:
        ConfigError: it is not so.
    """
    known = [*BUILT_IN_EMBEDDERS, *embedders]
    for where, name, valid in (("retrieval", retrieval.embedder, ["none", *known]), ("memory", memory.embedder, known)):
        if name not in valid:
            raise source.error(
                f"{where}.embedder is {name!r}{did_you_mean(name, valid)}; the embedders are {listed(valid)}",
                "embedder",
            )
    embedder = embedders.get(memory.embedder)
    if memory.enabled and isinstance(embedder, OpenAIEmbedderSettings) and embedder.placement == "far":
        raise source.error(
            f"memory.embedder {memory.embedder!r} is far, and every question would go there, whatever its privacy; "
            'take a near one, or say placement = "near" if the server is yours',
            "embedder",
        )
