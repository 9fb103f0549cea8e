"""One hnswlib index whose labels are vector versions.

A label is never used twice: an update marks the old label dead and inserts the new vector under its own. (Updating in
place is five times slower and loses recall.) hnswlib's own limits are kept in here: insertions and searches exclude each
other, `k` beyond what is reachable raises, `ef` is not saved, a full index must be resized while nobody searches.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import hnswlib
import numpy as np
import numpy.typing as npt

from gateway.engine import vectors
from gateway.engine.turns import Turns
from gateway.engine.types import Labels, Metric, Spec, Vector

HNSWLIB_VERSION = f"hnswlib {version('hnswlib')}"
_FIRST_CAPACITY = 1024
_GROWTH = 1.5
_UNLIMITED = 1 << 62


class Graph:
    """Approximate search over comparable vectors. `turns` must be held around each call, as each method says."""

    def __init__(self, spec: Spec, index: hnswlib.Index | None = None) -> None:
        self.turns = Turns()
        self._spec = spec
        self._made = index and _configured(index)
        self._reach = _UNLIMITED
        self.dead = 0

    @classmethod
    def load(cls, spec: Spec, path: Path, count: int, dead: int) -> Graph:
        """Load a file that `save` wrote and whose checksum was verified: hnswlib itself believes anything."""
        index = hnswlib.Index(space=_space(spec.metric), dim=spec.dimension)
        index.load_index(str(path), max_elements=max(_FIRST_CAPACITY, int(count * _GROWTH)))
        graph = cls(spec, index)
        graph.dead = dead
        return graph

    @property
    def _index(self) -> hnswlib.Index:
        """hnswlib's index, made on first use: an empty one takes 2.6 MB, for locks."""
        if self._made is None:
            self._made = _configured(_empty(self._spec))
        return self._made

    def __len__(self) -> int:
        """Return the number of vectors, dead ones included."""
        return int(self._made.get_current_count()) if self._made else 0

    @property
    def dead_share(self) -> float:
        return self.dead / max(1, len(self))

    @property
    def live(self) -> int:
        return len(self) - self.dead

    def labels(self) -> Labels:
        """Return all labels, dead ones included, in no order."""
        return np.fromiter(self._made.get_ids_list() if self._made else (), np.int64)

    def rows(self, labels: Labels) -> npt.NDArray[np.float32]:
        """Return the vectors[n, d] under labels[n], slowly. Turns held."""
        return np.array(self._index.get_items(labels), np.float32)

    @property
    def file_bytes(self) -> int:
        """The size that a file written by `save` has, turns held."""
        return int(self._index.index_file_size())

    def save(self, path: Path) -> None:
        """Write the graph to `path`, turns held. hnswlib reports no error: the caller compares with `file_bytes`."""
        self._index.save_index(str(path))

    def insert(self, rows: npt.NDArray[np.float32], labels: Labels, threads: int = 1) -> None:
        """Insert rows[n, d] under labels[n], none of which was ever used. Turns held for writing."""
        needed = len(self) + len(labels)
        capacity = self._index.get_max_elements()
        if needed > capacity:
            self._index.resize_index(max(needed, int(capacity * _GROWTH)))
        self._index.add_items(rows, labels, num_threads=threads)
        self._reach = _UNLIMITED

    def kill(self, label: int) -> None:
        """Mark a live label dead. Turns held for writing."""
        self._index.mark_deleted(label)
        self.dead += 1

    def bury(self, labels: Labels) -> None:
        """Mark these labels of a loaded graph dead; those it was saved with as dead are among them."""
        for label in labels:
            try:
                self._index.mark_deleted(label)
            except RuntimeError:
                # hnswlib can't be asked which labels a loaded file has marked already; it only refuses to do it again.
                continue
        self.dead = len(labels)

    def search(self, query: Vector, k: int, ef: int) -> tuple[Labels, npt.NDArray[np.float32]]:
        """Return up to k live labels near query[d] and their scores, best first. Turns held for searching.

        `ef` widens the search beyond k. Fewer than k come back where fewer are live, or where the graph doesn't reach
        more.
        """
        wanted = min(max(k, ef), self.live, self._reach)
        while wanted > 0:
            try:
                labels, distances = self._index.knn_query(query, k=wanted, num_threads=1)
            except RuntimeError:
                # Fewer than `wanted` are reachable; hnswlib has no way to return those there are, and leaks memory each
                # time, so that later searches ask for less from the start.
                wanted //= 2
                self._reach = wanted
                continue
            found = vectors.score_of_distance(distances[0][:k], self._spec.metric)
            return labels[0][:k].astype(np.int64), found
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def search_many(self, queries: Vector, k: int, ef: int) -> list[tuple[Labels, npt.NDArray[np.float32]]]:
        """Return for each of queries[n, d] what `search` does. Turns held for searching.

        The interpreter's lock is given up, and has to be had again, once for all.
        """
        wanted = min(max(k, ef), self.live, self._reach)
        try:
            labels, distances = self._index.knn_query(queries, k=max(1, wanted), num_threads=1)
        except RuntimeError:
            # One of them reaches fewer than `wanted`.
            return [self.search(query, k, ef) for query in queries]
        scores = vectors.score_of_distance(distances[:, :k], self._spec.metric)
        return list(zip(labels[:, :k].astype(np.int64), scores, strict=True))


def _empty(spec: Spec) -> hnswlib.Index:
    index = hnswlib.Index(space=_space(spec.metric), dim=spec.dimension)
    index.init_index(max_elements=_FIRST_CAPACITY, M=spec.m, ef_construction=spec.ef_construction)
    return index


def _configured(index: hnswlib.Index) -> hnswlib.Index:
    index.set_num_threads(1)
    # hnswlib searches with the larger of k and its own ef; the latter is kept out of the way.
    index.set_ef(1)
    return index


def _space(metric: Metric) -> str:
    # Cosine compares vectors of unit length, which the caller has made: no second normalisation in hnswlib.
    return "l2" if metric is Metric.L2 else "ip"
