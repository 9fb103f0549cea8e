"""The vector index: a hot buffer, searched exactly, in front of one graph.

A write is in the hot buffer before it is acknowledged; a mover takes the oldest hot rows to the graph later. Everything a
search needs is in one immutable View, published with each commit, so that a search sees the collection exactly as of
one index_version:

- hot rows are only appended, never overwritten; a row that is replaced or deleted is stamped with the index_version of
  its death, and counts for views older than that;
- labels of the graph that died are kept in a map with that stamp until the mover marks them in the graph;
- the mover changes the graph, and publishes what it moved, while no search runs (`Graph.turns`). The writer needs
  only the mutex, which is held for microseconds: a commit waits for no search and no insertion;
- a graph with many dead is replaced by a fresh one (`gateway.engine.rebuild`) that was made beside it. From the moment
  the making begins, the labels that die are recorded, to be marked dead in the fresh one too.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gateway.engine import vectors
from gateway.engine.allowed import Allowed
from gateway.engine.graph import Graph
from gateway.engine.plan import Turnover
from gateway.engine.types import Labels, Metric, Spec, Vector

_ALIVE = np.iinfo(np.int64).max
_FIRST_CAPACITY = 64
_FLOAT32_EPSILON = float(np.finfo(np.float32).eps)
_OVERFETCH = 1.5
"""A filtered search wants at least this many times k allowed neighbours, if the filter is random."""

_LARGEST_ASK = 4096
"""Beyond as many neighbours an exact comparison is the faster way to complete an answer."""


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
    live: int
    graph: Graph

    @property
    def first_hot(self) -> int:
        """The label that every vector of the graph is below, and no hot one."""
        return int(self.segment.labels[self.start]) if self.start < self.stop else self.index_version + 1


@dataclass(frozen=True, slots=True)
class Found:
    """Labels and scores, best first."""

    labels: Labels
    scores: npt.NDArray[np.float32]


class Index:
    """Search from any thread; `apply` from one at a time (the writer), `move` and `swap` from one other (the mover)."""

    def __init__(self, spec: Spec, graph: Graph, labels: Labels, rows: npt.NDArray[np.float32], version: int) -> None:
        """Start from a graph and the hot rows[n, d] (comparable, ascending labels[n]) that are not in it."""
        self._spec = spec
        self._mutex = threading.Lock()
        self._dying: dict[int, int] = {}
        self._recorded: list[int] | None = None
        segment = _Segment(max(_FIRST_CAPACITY, 2 * len(labels)), spec.dimension)
        segment.fill(0, rows, labels)
        self._view = View(segment, 0, len(labels), version, len(labels) + graph.live, graph)
        self.applied_at = time.monotonic()
        """When the last commit was made visible, by the monotonic clock."""

    @property
    def graph(self) -> Graph:
        return self._view.graph

    @property
    def hot_rows(self) -> int:
        """The number of rows the hot buffer holds, replaced ones included."""
        view = self._view
        return view.stop - view.start

    @property
    def index_version(self) -> int:
        """The version of the last commit made visible."""
        return self._view.index_version

    @property
    def dying(self) -> int:
        """The number of dead labels the graph doesn't know of yet."""
        return len(self._dying)

    def apply(self, turnover: Turnover, index_version: int) -> None:
        """Make one commit visible."""
        self.applied_at = time.monotonic()
        if not (turnover.born or turnover.died):
            with self._mutex:
                self._view = replace(self._view, index_version=index_version)
            return
        labels = np.array([label for label, _ in turnover.born], np.int64)
        blobs = b"".join(vector for _, vector in turnover.born)
        raw = np.frombuffer(blobs, np.float32).reshape(-1, self._spec.dimension)
        rows = vectors.comparable(raw, self._spec.metric)
        died = turnover.died
        with self._mutex:
            view = self._with_room(self._view, len(labels))
            view.segment.fill(view.stop, rows, labels)
            gone = np.array(died, np.int64)
            slots, hot = _slots(view, gone)
            view.segment.died_at[slots[hot]] = index_version
            self._dying.update(dict.fromkeys(gone[~hot].tolist(), index_version))
            self._view = replace(
                view,
                stop=view.stop + len(labels),
                index_version=index_version,
                live=view.live + len(labels) - len(gone),
            )

    def _with_room(self, view: View, count: int) -> View:
        if view.stop + count <= len(view.segment.labels):
            return view
        hot = slice(view.start, view.stop)
        keep = view.segment.died_at[hot] == _ALIVE
        live = int(np.count_nonzero(keep))
        segment = _Segment(max(_FIRST_CAPACITY, 2 * (live + count)), self._spec.dimension)
        segment.fill(0, view.segment.rows[hot][keep], view.segment.labels[hot][keep])
        return replace(view, segment=segment, start=0, stop=live)

    @contextmanager
    def view(self) -> Iterator[View]:
        """Hold the newest state, to search it; the mover waits meanwhile."""
        while True:
            graph = self._view.graph
            with graph.turns.search():
                # While this waited for its turn, the graph may have been replaced.
                if self._view.graph is graph:
                    yield self._view
                    return

    def search(self, view: View, query: Vector, k: int, ef: int, allowed: Allowed | None = None) -> Found:
        """Return the k nearest to the comparable query[d] among the live (and allowed) vectors of a view that is held.

        Exact in hot, by `ef` in the graph. Fewer come back where there are fewer, where the graph doesn't reach more, and
        where a filter allows few of the many neighbours the graph was asked for.
        """
        return self._with_hot(view, query, k, self._search_graph(view, query, k, ef, allowed), allowed)

    def search_many(self, view: View, queries: Vector, k: int, ef: int) -> list[Found]:
        """Return for each of the comparable queries[n, d] what `search` does."""
        found = []
        for query, (labels, scores) in zip(queries, view.graph.search_many(queries, k, ef), strict=True):
            keep = self._visible(labels, view)
            if keep.all():
                found.append(self._with_hot(view, query, k, Found(labels, scores)))
            else:  # more have to be asked for
                found.append(self.search(view, query, k, ef))
        return found

    def _with_hot(self, view: View, query: Vector, k: int, found: Found, allowed: Allowed | None = None) -> Found:
        if view.start == view.stop:
            return found
        hot = self._search_hot(view, query, k, allowed)
        labels = np.concatenate([hot.labels, found.labels])
        scores = np.concatenate([hot.scores, found.scores])
        top = vectors.best(scores, k)
        return Found(labels[top], scores[top])

    def _search_hot(self, view: View, query: Vector, k: int, allowed: Allowed | None) -> Found:
        hot = slice(view.start, view.stop)
        alive = np.flatnonzero(view.segment.died_at[hot] > view.index_version)
        if allowed is not None:
            alive = alive[allowed.contains(view.segment.labels[hot][alive])]
        rows = view.segment.rows[hot]
        if self._spec.metric is Metric.L2:
            alive = alive[_nearest_candidates(rows, query, k, alive)]
            found = vectors.scores(query, rows[alive], Metric.L2)
        else:
            found = (rows @ query)[alive]
        top = vectors.best(found, k)
        return Found(view.segment.labels[hot][alive[top]], found[top])

    def _search_graph(self, view: View, query: Vector, k: int, ef: int, allowed: Allowed | None) -> Found:
        """Ask the graph for more neighbours than k while the dying and those not allowed leave fewer."""
        asked = k
        if allowed is not None:
            asked = neighbours_to_ask(k, ef, len(allowed), view.live)
        while True:
            labels, scores = view.graph.search(query, asked, ef)
            keep = self._visible(labels, view)
            if allowed is not None:
                keep &= allowed.contains(labels)
            if np.count_nonzero(keep) >= k or len(labels) < asked or asked >= _LARGEST_ASK:
                return Found(labels[keep][:k], scores[keep][:k])
            asked *= 2

    def _visible(self, labels: Labels, view: View) -> npt.NDArray[np.bool_]:
        dying = self._dying
        if not dying:
            return np.ones(len(labels), np.bool_)
        return np.array([dying.get(label, _ALIVE) > view.index_version for label in labels.tolist()], np.bool_)

    def move(self, count: int, threads: int = 1) -> None:
        """Take the `count` oldest hot rows to the graph, and mark the labels that died there."""
        graph = self._view.graph
        with graph.turns.write():
            view = self._view
            chunk = slice(view.start, min(view.start + count, view.stop))
            keep = view.segment.died_at[chunk] == _ALIVE
            labels = view.segment.labels[chunk][keep]
            if len(labels):
                graph.insert(view.segment.rows[chunk][keep], labels, threads)
            with self._mutex:
                dead = [*self._dying]
                self._dying = {}
                # The writer went on meanwhile: rows of the chunk may have died, or moved to another segment.
                now = self._view
                dead += labels[~_alive(now, labels)].tolist()
                if self._recorded is not None:
                    self._recorded += dead
                self._view = replace(now, start=_after(now, view.segment.labels[chunk][-1])) if keep.size else now
            # No search runs and later ones start from newer views, for which all of these are dead.
            for label in dead:
                graph.kill(label)

    def record_deaths(self) -> None:
        """Begin to record the labels that die in the graph."""
        with self._mutex:
            self._recorded = []

    def forget_deaths(self) -> None:
        """End that without a `swap`."""
        with self._mutex:
            self._recorded = None

    @property
    def first_hot(self) -> int:
        """The label that every vector of the graph is below, and no hot one."""
        return self._view.first_hot

    def swap(self, fresh: Graph, labels: Labels) -> None:
        """Search a fresh graph from now on, made of `labels`: all that the old one has, save what has died.

        Among them may be what died since `record_deaths`.
        """
        with self._view.graph.turns.write(), self._mutex:
            assert self._recorded is not None, "deaths were recorded while the graph was made"
            died = np.array([*self._recorded, *self._dying], np.int64)
            for label in np.intersect1d(died, labels).tolist():
                fresh.kill(label)
            self._dying = {}
            self._recorded = None
            self._view = replace(self._view, graph=fresh)


def _nearest_candidates(
    rows: npt.NDArray[np.float32], query: Vector, k: int, alive: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the positions in `alive` of all rows that may be among the k nearest by squared distance.

    2xq - x² ranks as the distance does, is a product, and so much faster; but where rows are long and near each other it
    cancels. What it can be wrong by is bounded, and all that lie within are candidates.
    """
    if len(alive) <= k:
        return np.arange(len(alive))
    squared = np.einsum("nd,nd->n", rows, rows)
    rough = (2 * (rows @ query) - squared)[alive]
    error = _FLOAT32_EPSILON * (len(query) + 4) * 2 * (float(squared[alive].max()) + float(query @ query))
    kth = float(np.partition(rough, len(rough) - k)[len(rough) - k])
    return np.flatnonzero(rough >= kth - 2 * error)


def neighbours_to_ask(k: int, ef: int, allowed: int, live: int) -> int:
    """Return how many neighbours to ask for, so that among them are as many allowed ones as a search without filter sees.

    That is if the filter has nothing to do with the query; if it has, more may be needed.
    """
    return math.ceil(max(ef, k * _OVERFETCH) * max(1.0, live / max(1, allowed)))


def _slots(view: View, labels: Labels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the slots of labels[n], and which of them are hot: the others' slots mean nothing."""
    hot = view.segment.labels[view.start : view.stop]
    at = np.searchsorted(hot, labels)
    inside = at < len(hot)
    inside[inside] = hot[at[inside]] == labels[inside]
    return view.start + at, inside


def _alive(view: View, labels: Labels) -> npt.NDArray[np.bool_]:
    slots, hot = _slots(view, labels)
    alive = hot.copy()
    alive[hot] = view.segment.died_at[slots[hot]] == _ALIVE
    return alive


def _after(view: View, label: int) -> int:
    """Return the slot of the first hot row with a larger label."""
    return view.start + int(np.searchsorted(view.segment.labels[view.start : view.stop], label, "right"))
