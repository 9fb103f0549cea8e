"""Searching again for every watch when something has changed: by a graph, and by comparing all with all.

Both are spared what they would have to do besides: to order what they find, to tell what of it is new, and to heed filters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.engine import data
from bench.engine.rivals import fresh_graph
from bench.harness import one_core
from bench.watch.core import Core, K
from bench.watch.exact import ANY, NOWHERE, Asked, Corpus, nearest

EF = 256
"""As wide as the gateway searches for watches."""
GRAPH = f"hnswlib, ef {EF}"
PRODUCT = "comparing all, by products of matrices"
_BUILDERS = 2


@dataclass(frozen=True, slots=True)
class Again:
    """What one change costs: seconds of processor time of each of the changes tried, and recall@10 after the last."""

    name: str
    seconds: tuple[float, ...]
    recall: float

    @property
    def mean_s(self) -> float:
        return sum(self.seconds) / len(self.seconds)


def again(core: Core, changes: int, rng: np.random.Generator) -> list[Again]:
    """Have a document move, and search for all watches again, as often as `changes` says; on one core."""
    there = np.flatnonzero(core.world.corpus.groups != NOWHERE)
    rows = core.world.corpus.rows[there]
    corpus, asked = Corpus(rows, np.zeros(len(rows), np.int64)), _unfiltered(core.asked)
    index = fresh_graph(rows, _BUILDERS)
    index.set_ef(EF)
    moved = rng.integers(0, len(rows), changes)
    moves = data.noisy(rows[moved], rng)

    def by_graph(at: int, row: data.Matrix) -> npt.NDArray[np.integer]:
        index.add_items(row[np.newaxis], [at], num_threads=1)
        labels: npt.NDArray[np.uint64] = index.knn_query(asked.queries, K, num_threads=1)[0]
        return labels

    def by_product(at: int, row: data.Matrix) -> npt.NDArray[np.integer]:
        rows[at] = row
        return nearest(asked, corpus, K)

    found, times = {}, {}
    with one_core():
        for name, search in ((GRAPH, by_graph), (PRODUCT, by_product)):
            found[name], times[name] = _timed(search, moved, moves)
    exact = found[PRODUCT]
    recalls = {name: (one[:, :, np.newaxis] == exact[:, np.newaxis]).any(axis=2).mean() for name, one in found.items()}
    return [Again(name, times[name], float(recalls[name])) for name in found]


def _timed(
    search: Callable[[int, data.Matrix], npt.NDArray[np.integer]], moved: npt.NDArray[np.int64], moves: data.Matrix
) -> tuple[npt.NDArray[np.integer], tuple[float, ...]]:
    times = []
    for at, row in zip(moved.tolist(), moves, strict=True):
        started = time.thread_time()
        found = search(at, row)
        times.append(time.thread_time() - started)
    return found, tuple(times)


def _unfiltered(asked: Asked) -> Asked:
    return Asked(asked.queries, np.full(len(asked.queries), ANY))
