"""A fresh graph of the live vectors, made beside the one that serves, and put in its place.

Dead labels stay in an hnswlib graph: they cost memory, and every search passes through them. So once a share of them is
dead the graph is made anew from the store, a block at a time, while the old one serves on and takes in what the mover
brings. Then the fresh one catches up with that and takes the other's place. A crash meanwhile loses nothing but the work.
"""

from __future__ import annotations

import numpy as np

from gateway.engine import vectors
from gateway.engine.graph import Graph
from gateway.engine.index import Index
from gateway.engine.reader import Reader
from gateway.engine.types import Labels, Spec

_BLOCK = 1024
_CAUGHT_UP = 256


class Rebuild:
    """`step` until it says that the rest is small, then `finish`. From one thread at a time."""

    def __init__(self, index: Index, spec: Spec, threads: int) -> None:
        self._index = index
        self._spec = spec
        self._threads = threads
        self._graph = Graph(spec)
        self._inserted: list[Labels] = []
        self._done_through = 0
        index.record_deaths()

    def step(self, reader: Reader) -> bool:
        """Insert a block of vectors, beside searches, commits and the mover; tell whether the rest is small."""
        return self._insert_next(reader) <= _CAUGHT_UP

    def finish(self, reader: Reader) -> None:
        """Insert the rest and take the old graph's place, while the mover is held off."""
        while self._insert_next(reader):
            pass
        self._index.swap(self._graph, np.concatenate([np.empty(0, np.int64), *self._inserted]))

    def _insert_next(self, reader: Reader) -> int:
        """Insert the next vectors that live now and are in the old graph; return how many.

        The mover takes the oldest rows first: what it has brought to the old graph lies below the first hot label.
        """
        labels, raw = reader.rows_between(self._done_through + 1, self._index.first_hot, _BLOCK)
        if len(labels):
            self._graph.insert(vectors.comparable(raw, self._spec.metric), labels, self._threads)
            self._inserted.append(labels)
            self._done_through = int(labels[-1])
        return len(labels)
