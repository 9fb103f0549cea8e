"""Other ways to keep an index of changing vectors, each on one thread, as their updates need."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import hnswlib
import numpy as np
from usearch.index import Index as UsearchIndex

from bench.engine.data import Matrix

M, EF_CONSTRUCTION = 16, 100


class Searchable(Protocol):
    name: str

    def search(self, query: Matrix, k: int, ef: int) -> list[int]:
        """Return the ids of the k nearest to query[d]."""
        ...


class Rival(Searchable, Protocol):
    def change(self, ids: list[int], rows: Matrix) -> None:
        """Give these documents other vectors."""
        ...


def fresh_graph(rows: Matrix, threads: int = 1, capacity: int | None = None, *, replace: bool = False) -> hnswlib.Index:
    """Build an hnswlib index of rows[n, d] under their positions."""
    index = hnswlib.Index(space="ip", dim=rows.shape[1])
    index.init_index(
        max_elements=capacity or len(rows), M=M, ef_construction=EF_CONSTRUCTION, allow_replace_deleted=replace
    )
    index.add_items(rows, np.arange(len(rows)), num_threads=threads)
    return index


class InPlace:
    """hnswlib, `add_items` on labels that are there."""

    name = "hnswlib in place"

    def __init__(self, rows: Matrix) -> None:
        self._index = fresh_graph(rows, 2)

    def change(self, ids: list[int], rows: Matrix) -> None:
        self._index.add_items(rows, ids, num_threads=1)

    def search(self, query: Matrix, k: int, ef: int) -> list[int]:
        self._index.set_ef(ef)
        labels, _ = self._index.knn_query(query, k, num_threads=1)
        return labels[0].tolist()  # type: ignore[no-any-return]


class ReplaceDeleted:
    """hnswlib, `mark_deleted` and `add_items(replace_deleted=True)` under a new label."""

    name = "hnswlib replace_deleted"

    def __init__(self, rows: Matrix) -> None:
        self._index = fresh_graph(rows, 2, len(rows) + 1, replace=True)
        self._label_of = list(range(len(rows)))
        self._id_of = dict(enumerate(self._label_of))

    def change(self, ids: list[int], rows: Matrix) -> None:
        for i, row in zip(ids, rows, strict=True):
            old = self._label_of[i]
            self._index.mark_deleted(old)
            del self._id_of[old]
            label = self._label_of[i] = old + len(self._label_of)
            self._id_of[label] = i
            self._index.add_items(row[np.newaxis], [label], num_threads=1, replace_deleted=True)

    def search(self, query: Matrix, k: int, ef: int) -> list[int]:
        self._index.set_ef(ef)
        labels, _ = self._index.knn_query(query, k, num_threads=1)
        return [self._id_of.get(label, -1) for label in labels[0].tolist()]


class Usearch:
    """usearch, `remove` and `add` under the same key."""

    name = "usearch"

    def __init__(self, rows: Matrix) -> None:
        self._index = UsearchIndex(
            ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
        )
        self._index.add(np.arange(len(rows)), rows, threads=2)

    def change(self, ids: list[int], rows: Matrix) -> None:
        for i, row in zip(ids, rows, strict=True):
            self._index.remove(i)
            self._index.add(i, row, threads=1)

    def search(self, query: Matrix, k: int, ef: int) -> list[int]:
        self._index.expansion_search = ef  # type: ignore[misc] # its setter has the same name by mistake
        return self._index.search(query, k, threads=1).keys.tolist()  # type: ignore[no-any-return]


RIVALS: tuple[type[InPlace | ReplaceDeleted | Usearch], ...] = (InPlace, ReplaceDeleted, Usearch)


def timed(rival: Searchable, queries: Matrix, k: int, ef: int) -> tuple[list[list[int]], list[float]]:
    """Search for each query by itself: ids found, and seconds each took."""
    found, times_s = [], []
    for query in queries:
        started = time.perf_counter()
        labels = rival.search(query, k, ef)
        times_s.append(time.perf_counter() - started)
        found.append(labels)
    return found, times_s


class Fresh:
    """hnswlib, a graph just built."""

    name = "fresh graph"

    def __init__(self, rows: Matrix) -> None:
        self._index = fresh_graph(rows, 2)

    def search(self, query: Matrix, k: int, ef: int) -> list[int]:
        self._index.set_ef(ef)
        labels, _ = self._index.knn_query(query, k, num_threads=1)
        return labels[0].tolist()  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        self._index.save_index(str(path))
