"""`POST /v1/rerank`: documents by how well they answer a query, in the shape that Cohere and Jina share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from msgspec import Struct

from nearfar.errors import NearfarError, RequestError
from nearfar.types import Reranker, estimate_tokens

from .named import ByName, failure
from .problems import Problem
from .replies import JSON, Send, send_reply
from .schemas import Count, convert, parse_object, refuse_unknown

#: Documents in one request.
MAX_DOCUMENTS = 2048

_encode = msgspec.json.Encoder().encode


class RerankRequest(Struct, kw_only=True):
    """The body."""

    query: str
    documents: list[Any]  # texts, or objects with `text`
    model: str = "default"
    top_n: Count | None = None
    return_documents: bool = False


class RerankDoor:
    """Reranks with the rerankers that the wiring names, each loaded when it is first asked for.

    Args:
        names: what a request's `model` may be, besides "default".
        default: which of them "default" is.
        load: gives the reranker of a name, or raises `ConfigError`.
    """

    def __init__(self, names: Collection[str], default: str, load: Callable[[str], Reranker]) -> None:
        self._rerankers = ByName("reranker", names, default, load)

    async def __call__(self, body: bytes, send: Send) -> Problem | None:
        """Sends the order; a problem where there is none."""
        try:
            asked = parse_rerank(body)
            texts = texts_of(asked)
            reranker = await self._rerankers.get(asked.model)
            scores = [float(score) for score in await asyncio.to_thread(reranker.scores, asked.query, texts)]
        except NearfarError as exc:
            return failure(exc)
        order = sorted(range(len(texts)), key=lambda place: (-scores[place], place))[: asked.top_n]
        results: list[dict[str, Any]] = [{"index": place, "relevance_score": scores[place]} for place in order]
        if asked.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        num_tokens = estimate_tokens(asked.query) + sum(map(estimate_tokens, texts))
        page = {
            "id": str(uuid.uuid4()),
            "object": "list",
            "model": asked.model,
            "results": results,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 0}},
        }
        await send_reply(send, 200, [JSON], _encode(page))
        return None


def parse_rerank(body: bytes) -> RerankRequest:
    """What the body asks for.

    Raises:
        RequestError: it is wrong; `param` names the field.
    """
    raw = parse_object(body)
    refuse_unknown(raw, RerankRequest.__struct_fields__, at="body")
    return convert({key: value for key, value in raw.items() if value is not None}, RerankRequest)


def texts_of(asked: RerankRequest) -> list[str]:
    """The request's documents as texts.

    Raises:
        RequestError: the query is empty, there is no document, or one is neither a text nor an object with one.
    """
    if not asked.query.strip():
        raise RequestError("`query` is empty; give some text.", param="query")
    if not asked.documents:
        raise RequestError("`documents` is empty; give at least one.", param="documents")
    if len(asked.documents) > MAX_DOCUMENTS:
        raise RequestError(
            f"`documents` has {len(asked.documents)} entries; give at most {MAX_DOCUMENTS} at once.", param="documents"
        )
    texts = []
    for place, document in enumerate(asked.documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise RequestError(
                f"`documents[{place}]` is neither a text nor an object with `text`.", param=f"documents[{place}]"
            )
        texts.append(text)
    return texts
