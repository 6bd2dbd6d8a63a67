"""`POST /v1/embeddings`: texts to vectors, in OpenAI's shape."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from nearfar.errors import NearfarError, RequestError, UnsupportedOption
from nearfar.types import Embedder, estimate_tokens

from .named import ByName, failure
from .problems import Problem
from .replies import JSON, Send, send_reply
from .schemas import Count, convert, parse_object, refuse_unknown

#: Texts in one request, as at OpenAI.
MAX_TEXTS = 2048

#: Texts embedded in one go, so that a request does not hold a thread for long.
_BATCH = 128

_encode = msgspec.json.Encoder().encode


class EmbeddingsRequest(Struct, kw_only=True):
    """The body."""

    input: str | list[Any]
    model: str = "default"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    user: str | None = None
    input_type: Literal["query", "document"] = "document"  # ours: whether the texts search or are found


class EmbeddingsDoor:
    """Embeds with the embedders that the config names, each loaded when it is first asked for.

    Args:
        names: what a request's `model` may be, besides "default".
        default: which of them "default" is.
        load: gives the embedder of a name, or raises `ConfigError`.
    """

    def __init__(self, names: Collection[str], default: str, load: Callable[[str], Embedder]) -> None:
        self._embedders = ByName("embedder", names, default, load)

    async def __call__(self, body: bytes, send: Send) -> Problem | None:
        """Sends the vectors; a problem where there are none."""
        try:
            asked = parse_embeddings(body)
            texts = texts_of(asked)
            embedder = await self._embedders.get(asked.model)
            if asked.dimensions is not None and asked.dimensions > embedder.dim:
                raise RequestError(
                    f"`dimensions` is {asked.dimensions}, and vectors of {asked.model!r} have {embedder.dim}.",
                    param="dimensions",
                )
            embed = embedder.embed_queries if asked.input_type == "query" else embedder.embed
            rows: list[Any] = []
            for start in range(0, len(texts), _BATCH):
                rows.extend(await asyncio.to_thread(embed, texts[start : start + _BATCH]))
        except NearfarError as exc:
            return failure(exc)
        await send_reply(send, 200, [JSON], _reply(rows, asked, texts))
        return None


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    """What the body asks for.

    Raises:
        RequestError: it is wrong; `param` names the field.
    """
    raw = parse_object(body)
    refuse_unknown(raw, EmbeddingsRequest.__struct_fields__, at="body")
    return convert({key: value for key, value in raw.items() if value is not None}, EmbeddingsRequest)


def texts_of(asked: EmbeddingsRequest) -> list[str]:
    """The request's texts.

    Raises:
        RequestError: there is none, an empty one, too many, or tokens in their place.
    """
    texts: list[Any] = [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts:
        raise RequestError("`input` is empty; give at least one text.", param="input")
    if len(texts) > MAX_TEXTS:
        raise RequestError(f"`input` has {len(texts)} texts; give at most {MAX_TEXTS} at once.", param="input")
    for place, text in enumerate(texts):
        if isinstance(text, int | list):
            raise UnsupportedOption(
                "`input` holds token ids, which only their own tokenizer understands; give texts.", param="input"
            )
        if not isinstance(text, str) or not text.strip():
            what = "empty" if isinstance(text, str) else "no text"
            raise RequestError(f"`input[{place}]` is {what}; give texts.", param=f"input[{place}]")
    return texts


def _reply(rows: Sequence[Any], asked: EmbeddingsRequest, texts: Sequence[str]) -> bytes:
    data = [{"object": "embedding", "index": place, "embedding": _vector(row, asked)} for place, row in enumerate(rows)]
    num_tokens = sum(map(estimate_tokens, texts))
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return _encode({"object": "list", "data": data, "model": asked.model, "usage": usage})


def _vector(row: Any, asked: EmbeddingsRequest) -> str | list[float]:
    if asked.dimensions is not None and asked.dimensions < len(row):
        row = row[: asked.dimensions]
        length = float((row * row).sum()) ** 0.5
        row = row / length if length > 0 else row
    if asked.encoding_format == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    numbers: list[float] = row.tolist()
    return numbers
