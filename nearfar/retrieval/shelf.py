"""Vectors of a table's rows, held in memory and kept in step with the table: what is nearest, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

#: Rows for which there is room at first; it doubles.
_FIRST_ROOM = 64


class Shelf:
    """Unit vectors by row id, for exact search; 10,000 of 256 numbers take 10 MB and about 1 ms.

    Not safe for several threads at once: whoever owns it locks.
    """

    def __init__(self, dim: int) -> None:
        import numpy as np

        self._ids: NDArray[np.int64] = np.zeros(0, np.int64)
        self._vectors: NDArray[float32] = np.zeros((_FIRST_ROOM, dim), np.float32)
        self._num_gone = 0
        self.last_id = 0  # the highest that was ever added

    def __len__(self) -> int:
        return len(self._ids) - self._num_gone

    @property
    def is_worn(self) -> bool:
        """Whether more than half of the rows are gone, so that a fresh shelf is worth its reading."""
        return self._num_gone > max(_FIRST_ROOM, len(self._ids) // 2)

    def add(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Puts rows of rising ids behind those that are there; vectors of another length are left out."""
        import numpy as np

        dim = self._vectors.shape[1]
        fresh: list[tuple[int, NDArray[float32]]] = []
        for row_id, packed in rows:
            self.last_id = max(self.last_id, row_id)
            vector = np.frombuffer(packed, np.float32)
            if len(vector) == dim:
                fresh.append((row_id, vector))
        if not fresh:
            return
        start, end = len(self._ids), len(self._ids) + len(fresh)
        if end > len(self._vectors):
            larger = np.zeros((max(end, 2 * len(self._vectors)), dim), np.float32)
            larger[:start] = self._vectors[:start]
            self._vectors = larger
        self._vectors[start:end] = [vector for _, vector in fresh]
        self._ids = np.append(self._ids, [row_id for row_id, _ in fresh])

    def drop(self, row_id: int) -> None:
        """Forgets a row; one that is not there is fine."""
        import numpy as np

        for place in np.flatnonzero(self._ids == row_id):
            self._ids[place] = -1
            self._vectors[place] = 0
            self._num_gone += 1

    def nearest(self, vector: NDArray[float32]) -> Iterator[tuple[int, float]]:
        """Ids and cosines, nearest first, only those above 0."""
        import numpy as np

        cosines = self._vectors[: len(self._ids)] @ vector
        seen: set[int] = set()
        size = 16  # few are ever asked for, so that the order of the rest is not worth its sorting
        while len(seen) < len(cosines):
            size = min(size, len(cosines))
            top = np.argpartition(-cosines, size - 1)[:size]
            for place in top[np.lexsort((top, -cosines[top]))].tolist():
                if cosines[place] <= 0:
                    return
                if place not in seen and self._ids[place] >= 0:
                    yield int(self._ids[place]), min(1.0, float(cosines[place]))
                seen.add(place)
            size *= 4
