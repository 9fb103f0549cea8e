"""The watches of one width as arrays, a row for each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gateway.live.documents import NOBODY

_FIRST_CAPACITY = 16
_GROWTH = 1.5

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]


class Rows:
    """The first `count` rows are in use, in no order; the last takes the place of one that is removed.

    A row holds up to `width` documents by their numbers, best first, then NOBODY with a score of -inf. Of all documents
    that fit the watch it holds those that are no further from the query than its floor: a score (-inf: it holds all
    that fit; inf: it isn't known which it should hold) and, among equal scores, a document.
    """

    queries: Floats
    squared: Floats
    """The squared norm of the query."""
    numbers: Numbers
    scores: Floats
    floors: Floats
    floor_documents: Numbers
    min_scores: Floats
    least: Floats
    """The larger of floor and min_score: what scores less isn't held."""
    k: Integers
    filters: Integers
    as_of: Integers
    """The index_version of the search that filled the row: it knew of changes up to there."""
    waiting: Flags
    """Whether the row is to be refilled."""
    excluding: Flags
    watches: Integers
    told_numbers: Numbers
    told_scores: Floats
    told_versions: Integers

    _FIELDS: ClassVar[dict[str, Any]] = {
        "squared": np.float32,
        "floors": np.float32,
        "floor_documents": np.int32,
        "min_scores": np.float32,
        "least": np.float32,
        "k": np.int64,
        "filters": np.int64,
        "as_of": np.int64,
        "waiting": np.bool_,
        "excluding": np.bool_,
        "watches": np.int64,
    }

    def __init__(self, dimension: int, k: int, width: int) -> None:
        self.count = 0
        self.width = width
        self._shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            **{name: (kind, ()) for name, kind in self._FIELDS.items()},
            "queries": (np.float32, (dimension,)),
            "numbers": (np.int32, (width,)),
            "scores": (np.float32, (width,)),
            "told_numbers": (np.int32, (k,)),
            "told_scores": (np.float32, (k,)),
            "told_versions": (np.int64, (k,)),
        }
        self._capacity = 0
        self._resize(_FIRST_CAPACITY)

    @property
    def size_bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self._shapes)

    def _resize(self, capacity: int) -> None:
        for name, (kind, shape) in self._shapes.items():
            array = np.empty((capacity, *shape), kind)
            if self.count:
                array[: self.count] = getattr(self, name)[: self.count]
            setattr(self, name, array)
        self._capacity = capacity

    def append(self, watch: int) -> int:
        """Add a row that was told nothing yet; return its place. The caller fills it."""
        if self.count == self._capacity:
            self._resize(int(self._capacity * _GROWTH))
        at = self.count
        self.count += 1
        self.watches[at] = watch
        self.told_numbers[at] = NOBODY
        return at

    def remove(self, at: int) -> None:
        """Remove a row; the last one comes to its place."""
        self.count -= 1
        for name in self._shapes:
            array = getattr(self, name)
            array[at] = array[self.count]
        if _FIRST_CAPACITY < self.count < self._capacity // 4:
            self._resize(self._capacity // 2)
