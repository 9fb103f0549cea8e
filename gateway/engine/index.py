"""The vector index: a hot buffer, searched exactly, in front of one graph.

A write is in the hot buffer before it is acknowledged; a mover takes the oldest hot rows to the graph later. Everything a
search needs is in one immutable View, published with each commit, so that a search sees the collection exactly as of
one index_version:

- hot rows are only appended, never overwritten; a row that is replaced or deleted is stamped with the index_version of
  its death, and counts for views older than that;
- labels of the graph that died are kept in a map with that stamp until the mover marks them in the graph;
- the mover changes the graph, and publishes what it moved, while no search runs (`Graph.turns`). The writer needs
  only the mutex, which is held for microseconds: a commit waits for no search and no insertion.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gateway.engine import vectors
from gateway.engine.graph import Graph
from gateway.engine.types import Labels, Metric, Spec, Vector

_ALIVE = np.iinfo(np.int64).max
_FIRST_CAPACITY = 64
_L2_CANDIDATES = 16


class _Segment:
    """Rows in order of their labels; `died_at` is the index_version of a row's death."""

    def __init__(self, capacity: int, dimension: int) -> None:
        self.rows = np.empty((capacity, dimension), np.float32)
        self.labels = np.empty(capacity, np.int64)
        self.died_at = np.empty(capacity, np.int64)

    def fill(self, start: int, rows: npt.NDArray[np.float32], labels: Labels) -> None:
        stop = start + len(labels)
        self.rows[start:stop] = rows
        self.labels[start:stop] = labels
        self.died_at[start:stop] = _ALIVE


@dataclass(frozen=True, slots=True)
class View:
    """The index as of `index_version`: the hot rows [start, stop) of a segment, and the graph."""

    segment: _Segment
    start: int
    stop: int
    index_version: int
    graph: Graph


@dataclass(frozen=True, slots=True)
class Found:
    """Labels and scores, best first, as of `index_version`."""

    labels: Labels
    scores: npt.NDArray[np.float32]
    index_version: int


class Index:
    """Search from any thread; `apply` from one thread at a time (the writer), `move` from one other (the mover)."""

    def __init__(self, spec: Spec, graph: Graph, labels: Labels, rows: npt.NDArray[np.float32], version: int) -> None:
        """Start from a graph and the hot rows[n, d] (comparable, ascending labels[n]) that are not in it."""
        self._spec = spec
        self._mutex = threading.Lock()
        self._dying: dict[int, int] = {}
        segment = _Segment(max(_FIRST_CAPACITY, 2 * len(labels)), spec.dimension)
        segment.fill(0, rows, labels)
        self._view = View(segment, 0, len(labels), version, graph)

    @property
    def graph(self) -> Graph:
        return self._view.graph

    @property
    def hot_rows(self) -> int:
        """The number of rows the hot buffer holds, replaced ones included."""
        view = self._view
        return view.stop - view.start

    @property
    def dying(self) -> int:
        """The number of dead labels the graph doesn't know of yet."""
        return len(self._dying)

    def apply(self, born: Sequence[tuple[int, bytes]], died: Sequence[int], index_version: int) -> None:
        """Make one commit visible: the vectors born under ascending labels, and the labels that died."""
        labels = np.array([label for label, _ in born], np.int64)
        raw = np.frombuffer(b"".join(blob for _, blob in born), np.float32).reshape(-1, self._spec.dimension)
        rows = vectors.comparable(raw, self._spec.metric)
        with self._mutex:
            view = self._with_room(self._view, len(labels))
            view.segment.fill(view.stop, rows, labels)
            for label in died:
                slot = _slot(view, label)
                if slot is None:
                    self._dying[label] = index_version
                else:
                    view.segment.died_at[slot] = index_version
            self._view = replace(view, stop=view.stop + len(labels), index_version=index_version)

    def _with_room(self, view: View, count: int) -> View:
        if view.stop + count <= len(view.segment.labels):
            return view
        hot = slice(view.start, view.stop)
        keep = view.segment.died_at[hot] == _ALIVE
        live = int(np.count_nonzero(keep))
        segment = _Segment(max(_FIRST_CAPACITY, 2 * (live + count)), self._spec.dimension)
        segment.fill(0, view.segment.rows[hot][keep], view.segment.labels[hot][keep])
        return replace(view, segment=segment, start=0, stop=live)

    def search(self, query: Vector, k: int, ef: int) -> Found:
        """Return the k nearest to the comparable query[d] among all live vectors: exact in hot, by `ef` in the graph."""
        graph = self._view.graph
        with graph.turns.search():
            view = self._view
            hot_labels, hot_scores = self._search_hot(view, query, k)
            graph_labels, graph_scores = self._search_graph(view, query, k, ef)
        labels = np.concatenate([hot_labels, graph_labels])
        found = np.concatenate([hot_scores, graph_scores])
        top = vectors.best(found, k)
        return Found(labels[top], found[top], view.index_version)

    def _search_hot(self, view: View, query: Vector, k: int) -> tuple[Labels, npt.NDArray[np.float32]]:
        hot = slice(view.start, view.stop)
        alive = np.flatnonzero(view.segment.died_at[hot] > view.index_version)
        rows = view.segment.rows[hot]
        if self._spec.metric is Metric.L2:
            # Rank by 2xq - x², a product, and compute the squared distance, exact but slower, for the best alone.
            rough = 2 * (rows @ query) - np.einsum("nd,nd->n", rows, rows)
            alive = alive[vectors.best(rough[alive], k + _L2_CANDIDATES)]
            found = vectors.scores(query, rows[alive], Metric.L2)
        else:
            found = (rows @ query)[alive]
        top = vectors.best(found, k)
        return view.segment.labels[hot][alive[top]], found[top]

    def _search_graph(self, view: View, query: Vector, k: int, ef: int) -> tuple[Labels, npt.NDArray[np.float32]]:
        labels, found = view.graph.search(query, k, ef)
        dying = self._dying
        if not dying:
            return labels, found
        visible = self._visible(labels, view)
        if not visible.all():
            labels, found = view.graph.search(query, k + len(dying), ef)
            visible = self._visible(labels, view)
        return labels[visible], found[visible]

    def _visible(self, labels: Labels, view: View) -> npt.NDArray[np.bool_]:
        dying = self._dying
        return np.array([dying.get(label, _ALIVE) > view.index_version for label in labels.tolist()], np.bool_)

    def move(self, count: int) -> None:
        """Take the `count` oldest hot rows to the graph, and mark the labels that died there."""
        graph = self._view.graph
        with graph.turns.write():
            view = self._view
            chunk = slice(view.start, min(view.start + count, view.stop))
            keep = view.segment.died_at[chunk] == _ALIVE
            labels = view.segment.labels[chunk][keep]
            if len(labels):
                graph.insert(view.segment.rows[chunk][keep], labels)
            with self._mutex:
                dead = [*self._dying]
                self._dying = {}
                # The writer went on meanwhile: rows of the chunk may have died, or moved to another segment.
                now = self._view
                dead += [label for label in labels.tolist() if not _alive(now, label)]
                self._view = replace(now, start=_after(now, view.segment.labels[chunk][-1])) if keep.size else now
            # No search runs and later ones start from newer views, for which all of these are dead.
            for label in dead:
                graph.kill(label)


def _slot(view: View, label: int) -> int | None:
    hot = view.segment.labels[view.start : view.stop]
    at = int(np.searchsorted(hot, label))
    return view.start + at if at < len(hot) and hot[at] == label else None


def _alive(view: View, label: int) -> bool:
    slot = _slot(view, label)
    return slot is not None and view.segment.died_at[slot] == _ALIVE


def _after(view: View, label: int) -> int:
    """Return the slot of the first hot row with a larger label."""
    return view.start + int(np.searchsorted(view.segment.labels[view.start : view.stop], label, "right"))
