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

    def __init__(self, index: Index, spec: Spec, reader: Reader, threads: int) -> None:
        self._index = index
        self._spec = spec
        self._threads = threads
        self._graph = Graph(spec)
        self._inserted: list[Labels] = []
        self._through = index.record_deaths()
        live = reader.labels()
        self._left = live[live < self._through]

    def step(self, reader: Reader) -> bool:
        """Insert a block of vectors, beside searches, commits and the mover; tell whether the rest is small."""
        if not len(self._left):
            self._look_for_more(reader)
            if len(self._left) <= _CAUGHT_UP:
                return True
        self._insert(reader, _BLOCK)
        return False

    def finish(self, reader: Reader) -> None:
        """Insert the rest and take the old graph's place, while the mover is held off."""
        while len(self._left):
            self._insert(reader, _BLOCK)
            self._look_for_more(reader)
        self._index.swap(self._graph, np.concatenate([np.empty(0, np.int64), *self._inserted]))

    def _look_for_more(self, reader: Reader) -> None:
        """What the mover has brought to the old graph meanwhile lies between two labels: it takes the oldest first."""
        through = self._index.first_hot
        live = reader.labels_between(self._through, through)
        self._through = through
        self._left = np.concatenate([self._left, live])

    def _insert(self, reader: Reader, count: int) -> None:
        block, self._left = self._left[:count], self._left[count:]
        found = reader.vectors(block.tolist())
        # What has died since the labels were read isn't there any more, or will be marked dead in the end.
        labels = block[np.isin(block, np.fromiter(found, np.int64))]
        raw = np.frombuffer(b"".join(found[label] for label in labels.tolist()), np.float32)
        rows = vectors.comparable(raw.reshape(-1, self._spec.dimension), self._spec.metric)
        self._graph.insert(rows, labels, self._threads)
        self._inserted.append(labels)
