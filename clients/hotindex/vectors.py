"""A table of vectors, searched exactly."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hotindex.types import Metric

_FIRST_CAPACITY = 256
_GROWTH = 1.5
_BLOCK = 16_384


class VectorTable:
    """Vectors of one dimension under ids. Scores are those of the gateway: larger is closer, for every metric."""

    def __init__(self) -> None:
        self._rows = np.empty((0, 0), np.float32)
        self._ids: list[str | None] = []
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    def put(self, document_id: str, vector: array[float]) -> None:
        row = np.frombuffer(vector, np.float32)
        slot = self._slots.get(document_id)
        if slot is None:
            slot = self._slots[document_id] = self._slot(len(row))
            self._ids[slot] = document_id
        self._rows[slot] = row

    def _slot(self, dimension: int) -> int:
        if self._free:
            return self._free.pop()
        slot = len(self._ids)
        if slot == len(self._rows):
            grown = np.zeros((max(_FIRST_CAPACITY, int(slot * _GROWTH)), dimension), np.float32)
            if slot:
                grown[:slot] = self._rows
            self._rows = grown
        self._ids.append(None)
        return slot

    def remove(self, document_id: str) -> None:
        slot = self._slots.pop(document_id, None)
        if slot is not None:
            self._ids[slot] = None
            self._free.append(slot)

    def nearest(
        self, vector: npt.NDArray[np.float32], k: int, metric: Metric, fits: Callable[[str], bool] | None
    ) -> list[tuple[str, float]]:
        """Return ids and scores of the k nearest to vector[d], best first, ties by id. Raises ValueError."""
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if vector.ndim != 1 or not np.isfinite(vector).all():
            raise ValueError(f"the vector must be a list of finite numbers, not {vector!r}")
        if metric == "cosine" and not vector.any():
            raise ValueError("the vector is zero, which has no direction to compare by cosine")
        used = len(self._ids)
        if not self._slots:
            return []
        if vector.shape != self._rows.shape[1:]:
            raise ValueError(f"the vector has {len(vector)} numbers, the collection's have {self._rows.shape[1]}")
        scores = np.concatenate(
            [self._scores(start, min(used, start + _BLOCK), vector, metric) for start in range(0, used, _BLOCK)]
        )
        found: list[tuple[str, float]] = []
        worst = -np.inf
        for slot in np.argsort(-scores, kind="stable").tolist():
            document_id, score = self._ids[slot], float(scores[slot])
            if len(found) >= k and score < worst:
                break
            if document_id is not None and (fits is None or fits(document_id)):
                found.append((document_id, score))
                worst = score
        return sorted(found, key=lambda one: (-one[1], one[0]))[:k]

    def _scores(
        self, start: int, stop: int, vector: npt.NDArray[np.float32], metric: Metric
    ) -> npt.NDArray[np.float32]:
        rows = self._rows[start:stop]
        scores: npt.NDArray[np.float32]
        if metric == "l2":
            scores = -np.square(rows - vector).sum(axis=1)
        elif metric == "cosine":
            lengths = np.linalg.norm(rows, axis=1)
            lengths[lengths == 0] = 1
            scores = (rows @ (vector / np.linalg.norm(vector)) / lengths).astype(np.float32)
        else:
            scores = rows @ vector
        return scores
