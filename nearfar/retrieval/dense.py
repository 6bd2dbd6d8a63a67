"""Nearest vectors by position: faiss builds, stores and searches the index; which kind is chosen by size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from nearfar.errors import ConfigError

if TYPE_CHECKING:
    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

Kind: TypeAlias = Literal["flat", "hnsw", "ivf"]


class Dense:
    """Unit vectors 0 … n - 1 and which of them are nearest to another, by inner product."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: NDArray[float32], *, kind: Kind = "flat") -> Self:
        """An index of the rows.

        Args:
            vectors: shape (n, dim), rows of length 1 or 0.
            kind: flat compares with every vector and is exact.

        Raises:
            ConfigError: faiss is not installed.
        """
        import numpy as np

        index = _faiss().IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, np.float32))
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def top(
        self, query: NDArray[float32], k: int, *, allowed: NDArray[bool_] | None = None
    ) -> tuple[NDArray[int64], NDArray[float32]]:
        """Positions and inner products of the k nearest vectors, nearest first.

        Args:
            query: shape (dim,).
            k: at most so many.
            allowed: which vectors may be found; None: all.
        """
        import numpy as np

        num_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, num_allowed)
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        row = np.ascontiguousarray(query, np.float32).reshape(1, self.dim)
        scores, positions = self._index.search(row, k, params=self._parameters(allowed))
        found = positions[0] >= 0
        return positions[0][found], scores[0][found]

    def save(self, path: Path) -> None:
        """Writes the index; `load` maps it into memory."""
        _faiss().write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The index that `save` wrote, its vectors left on disk until they are needed."""
        faiss = _faiss()
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))

    def _parameters(self, allowed: NDArray[bool_] | None) -> Any:
        import numpy as np

        if allowed is None:
            return None
        faiss = _faiss()
        bitmap = np.packbits(allowed, bitorder="little")
        return faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as exc:
        raise ConfigError("A dense index needs faiss. Install it: pip install 'nearfar[retrieval]'") from exc
    return faiss
