"""Fitted routers on disk: one MessagePack file of plain values and arrays, which runs no code when it is read."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import ConfigError, DataError
from nearfar.types import Embedder

from .blend import Blend
from .dense import GainRidge, MatrixFactorization, TwoLogistic
from .hybrid import Hybrid
from .neighbours import NearestNeighbours, SimilarityWeighted
from .ngrams import NgramRidge
from .protocol import PredictiveRouter
from .queries import RoutingExample
from .trees import TreeEnsemble

#: Version of the file format. Raise it for any change that an older nearfar would misread.
FORMAT_VERSION = 4

_ARRAY = 1  # MessagePack extension: an array in numpy's own format


class RouterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a router file says about its router.

    Attributes:
        kind: the router's.
        weak: name of the model that is cheaper; the router's scores hold for this pair of models only.
        strong: name of the other.
        embedder: name of the embedder that it was fitted with; None: it embeds nothing.
        n: labelled queries that it was fitted on.
        sha256: of those, in order.
        state: what it learned.
        format: version of the file format.
    """

    kind: str
    weak: str
    strong: str
    embedder: str | None
    n: int
    sha256: str
    state: dict[str, Any]
    format: int = FORMAT_VERSION


def save(
    router: PredictiveRouter,
    path: str | Path,
    *,
    weak: str,
    strong: str,
    examples: Sequence[RoutingExample],
    embedder: Embedder | None = None,
) -> None:
    """Writes a fitted router; a file that is there is replaced in one step.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    content = RouterFile(
        kind=router.kind,
        weak=weak,
        strong=strong,
        embedder=embedder.name if embedder is not None and router.is_embedding_based else None,
        n=len(examples),
        sha256=_fingerprint(examples),
        state=router.state(),
    )
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.msgpack.encode(content, enc_hook=_encode))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise DataError(f"Cannot write {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc


def read(path: Path) -> RouterFile:
    """What a router file says, with nothing made of it.

    Raises:
        DataError: no such file, not a router file, or of another format.
    """
    try:
        content = msgspec.msgpack.decode(path.read_bytes(), type=RouterFile, ext_hook=_decode)
    except OSError as exc:
        raise DataError(f"Cannot read {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc
    except (msgspec.DecodeError, ValueError) as exc:
        raise DataError(f"{str(path)!r} is not a router file: {exc}. Fit it anew.", path=str(path)) from exc
    if content.format != FORMAT_VERSION:
        raise DataError(
            f"{str(path)!r} has format {content.format}, and this nearfar reads {FORMAT_VERSION}. Fit the router anew, "
            "or use the nearfar that wrote it.",
            path=str(path),
        )
    return content


def load(
    path: str | Path, *, weak: str | None = None, strong: str | None = None, embedder: Embedder | None = None
) -> tuple[PredictiveRouter, RouterFile]:
    """The router that `save` wrote, and what its file says.

    Args:
        path: the file.
        weak: the model that the router is to be used for; None: whichever it was fitted on.
        strong: likewise.
        embedder: for a router that embeds; it must be the one that it was fitted with.

    Raises:
        ConfigError: it was fitted on other models or with another embedder.
        DataError: no such file, not a router file, or of another format.
    """
    path = Path(path)
    content = read(path)
    for role, fitted, asked in (("weak", content.weak, weak), ("strong", content.strong, strong)):
        if asked is not None and asked != fitted:
            raise ConfigError(
                f"{str(path)!r} was fitted with {fitted!r} as the {role} model, not {asked!r}: its scores say nothing "
                "about other models. Fit a router for these two."
            )
    found = embedder.name if embedder is not None else None
    if content.embedder is not None and content.embedder != found:
        raise ConfigError(
            f"{str(path)!r} was fitted on vectors of {content.embedder!r}, not of {found or 'no embedder'!r}. Give it "
            "that embedder, or fit it anew."
        )
    try:
        return restored(content.kind, content.state, embedder), content
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise DataError(
            f"{str(path)!r} is not a whole {content.kind!r} router: {exc!r}. Fit it anew.", path=str(path)
        ) from exc


def restored(kind: str, state: Any, embedder: Embedder | None) -> PredictiveRouter:
    """The router of a kind that a state describes.

    Raises:
        ValueError: there is no such kind, or it needs an embedder and has none.
    """
    if kind == "tfidf-ridge":
        return NgramRidge.from_state(state)
    if kind in ("forest", "boosting"):
        return TreeEnsemble.from_state(state)
    if kind == "ridge":
        return GainRidge.from_state(state, embedder if state["embeds"] else None)
    if kind == "logistic":
        return TwoLogistic.from_state(state, embedder if state["embeds"] else None)
    if kind in ("auto", "blend"):
        members = [restored(member["kind"], member["state"], embedder) for member in state["members"]]
        return Blend.from_state(state, members)
    if kind == "hybrid":
        return Hybrid.from_state(state, embedder if state["embeds"] else None)
    if embedder is None:
        raise ValueError(f"{kind!r} needs an embedder, or there is no such router")
    if kind == "knn":
        return NearestNeighbours.from_state(state, embedder)
    if kind == "sw-ranking":
        return SimilarityWeighted.from_state(state, embedder)
    if kind == "matrix-factorization":
        return MatrixFactorization.from_state(state, embedder)
    raise ValueError(f"there is no router {kind!r}")


def _fingerprint(examples: Sequence[RoutingExample]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        line = [example.text, sorted(example.signals.items()), example.weak, example.strong]
        digest.update(msgspec.json.encode(line) + b"\n")
    return digest.hexdigest()


def _encode(value: Any) -> msgspec.msgpack.Ext:
    import numpy as np

    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"cannot save a {type(value).__name__}")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
    return msgspec.msgpack.Ext(_ARRAY, buffer.getvalue())


def _decode(code: int, data: memoryview) -> Any:
    import numpy as np

    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    return np.lib.format.read_array(io.BytesIO(bytes(data)), allow_pickle=False)
