"""Nearest vectors by position: faiss builds, stores and searches the index; which kind is chosen by size."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, assert_never

from nearfar.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

#: flat compares with every vector; hnsw walks a graph of neighbours; ivf looks into the nearest of many cells, each
#: number of a vector in one byte; ivfpq the same with groups of four numbers in one byte.
Kind: TypeAlias = Literal["flat", "hnsw", "ivf", "ivfpq"]

#: Vectors up to which an exact search is fast enough, up to which a graph is made in a minute, and up to which a byte
#: for every number still fits into memory. benchmarks/retrieval_scale.py has the figures.
_MAX_FLAT = 20_000
_MAX_HNSW = 200_000
_MAX_IVF = 4_000_000

#: Cells per square root of the vectors, vectors per cell that train them, and cells that a search looks into. On
#: 500,000 vectors of benchmarks/retrieval_scale.py, with 1, 2 and 4 cells per root, 48 of them give a recall of .968,
#: .974 and .972 in 1.7, 1.0 and 0.5 ms; the cells take 1, 5 and 19 s to train. 32 of 2 give .967, 64 .974.
_CELLS = 2
_SAMPLES_PER_CELL = 32
_PROBES = 48
_ROUNDS = 8  # of k-means; more move the cells and not the recall

_LINKS = 16  # per vector and level of the graph
_EXPLORED = 200  # vectors that a search of the graph keeps in sight


def kind_for(num_vectors: int) -> Kind:
    """The kind of index for so many vectors."""
    if num_vectors <= _MAX_FLAT:
        return "flat"
    if num_vectors <= _MAX_HNSW:
        return "hnsw"
    return "ivf" if num_vectors <= _MAX_IVF else "ivfpq"


def sample_size(num_vectors: int) -> int:
    """How many vectors `Dense.begin` wants to see before so many are added."""
    return min(num_vectors, _SAMPLES_PER_CELL * _num_cells(num_vectors))


class Dense:
    """Unit vectors 0 … n - 1 and which of them are nearest to another, by inner product."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: NDArray[float32], *, kind: Kind | None = None) -> Self:
        """An index of the rows.

        Args:
            vectors: shape (n, dim), rows of length 1 or 0.
            kind: None: by their number.

        Raises:
            ConfigError: faiss is not installed.
        """
        import numpy as np

        size = sample_size(len(vectors))
        chosen = (
            np.random.default_rng(0).choice(len(vectors), size, replace=False) if size < len(vectors) else slice(None)
        )
        index = cls.begin(vectors.shape[1], len(vectors), vectors[chosen], kind=kind)
        index.add(vectors)
        return index

    @classmethod
    def begin(cls, dim: int, num_vectors: int, sample: NDArray[float32], *, kind: Kind | None = None) -> Self:
        """An index of nothing yet.

        Args:
            dim: length of a vector.
            num_vectors: how many will be added.
            sample: `sample_size(num_vectors)` of them.
            kind: None: by their number.

        Raises:
            ConfigError: faiss is not installed.
        """
        faiss = _faiss()
        kind = kind or kind_for(num_vectors)
        cells = _num_cells(num_vectors)
        match kind:
            case "flat":
                recipe = "Flat"
            case "hnsw":
                recipe = f"HNSW{_LINKS},SQ8"
            case "ivf":
                recipe = f"IVF{cells},SQ8"
            case "ivfpq":
                recipe = f"IVF{cells},PQ{dim // 4}np"  # np: without sorting the codes for a test that is not made
            case _:
                assert_never(kind)
        index = faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
        if kind in ("ivf", "ivfpq"):
            index.cp.niter = _ROUNDS
            index.cp.min_points_per_centroid = 1  # the sample's size is ours to judge
        if not index.is_trained:
            index.train(_rows(sample, dim))
        return cls(index)

    def add(self, vectors: NDArray[float32]) -> None:
        """Puts rows behind those that are there."""
        self._index.add(_rows(vectors, self.dim))

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
        index, parameters = self._how(allowed, num_allowed)
        scores, positions = index.search(_rows(query, self.dim), k, params=parameters)
        found = positions[0] >= 0
        return positions[0][found], scores[0][found]

    def remove(self, positions: NDArray[int64]) -> bool:
        """Whether nothing is left of these vectors, the others keeping their positions; some kinds cannot do it.

        The index must have been built here, or loaded whole.
        """
        faiss = _faiss()
        if not isinstance(self._index, faiss.IndexIVF):
            return False
        self._index.remove_ids(faiss.IDSelectorBatch(positions))
        return True

    def save(self, path: Path) -> None:
        """Writes the index; `load` maps it into memory."""
        _faiss().write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, *, mapped: bool = True) -> Self:
        """The index that `save` wrote, its vectors left on disk until they are needed, or read whole.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is broken.
        """
        faiss = _faiss()
        with path.open("rb") as file:
            is_ivf = file.read(2) == b"Iw"  # faiss maps these by one flag and all others by another
        try:
            flag = faiss.IO_FLAG_MMAP if is_ivf else faiss.IO_FLAG_MMAP_IFC
            return cls(faiss.read_index(str(path), flag if mapped else 0))
        except RuntimeError as exc:
            raise DataError(
                f"The index {str(path)!r} is damaged. Run nearfar index again: it is made anew from the documents.",
                path=str(path),
            ) from exc

    def _how(self, allowed: NDArray[bool_] | None, num_allowed: int) -> tuple[Any, Any]:
        """The index to search and how: the fewer vectors are allowed, the more is looked at, so that none is missed."""
        faiss = _faiss()
        index = self._index
        selector = _selector(allowed)
        if isinstance(index, faiss.IndexIVF):
            probes = min(index.nlist, ceil(_PROBES * len(self) / num_allowed))
            return index, faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        if isinstance(index, faiss.IndexHNSW):
            if 2 * num_allowed < len(self):
                return faiss.downcast_index(index.storage), faiss.SearchParameters(sel=selector)
            return index, faiss.SearchParametersHNSW(sel=selector, efSearch=_EXPLORED)
        return index, None if selector is None else faiss.SearchParameters(sel=selector)


def _selector(allowed: NDArray[bool_] | None) -> Any:
    import numpy as np

    return None if allowed is None else _faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _num_cells(num_vectors: int) -> int:
    return max(1, int(_CELLS * sqrt(num_vectors)))


def _rows(vectors: NDArray[float32], dim: int) -> NDArray[float32]:
    import numpy as np

    return np.ascontiguousarray(vectors, np.float32).reshape(-1, dim)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as exc:
        raise ConfigError("A dense index needs faiss. Install it: pip install 'nearfar[retrieval]'") from exc
    return faiss
