"""The hot buffer and the graph as one: exact while hot, and every search as of one index_version."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from gateway.engine import vectors
from gateway.engine.allowed import Allowed
from gateway.engine.graph import Graph
from gateway.engine.index import Found, Index
from gateway.engine.plan import Turnover
from gateway.engine.types import Metric, Spec, Vector
from tests.engine.support import vector

D = 8


def empty(metric: Metric = Metric.L2) -> Index:
    spec = Spec("things", D, metric)
    return Index(spec, Graph(spec), np.empty(0, np.int64), np.empty((0, D), np.float32), 0)


def rows(count: int, seed: int = 1) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def born(data: np.ndarray[tuple[int, int], np.dtype[np.float32]], first: int) -> list[tuple[int, bytes]]:
    return [(first + i, row.tobytes()) for i, row in enumerate(data)]


def apply(index: Index, new: list[tuple[int, bytes]], died: Sequence[int], version: int) -> None:
    index.apply(Turnover(new, died), version)


def search(index: Index, query: Vector, k: int, ef: int, allowed: Allowed | None = None) -> Found:
    with index.view() as view:
        return index.search(view, query, k, ef, allowed)


def labels(found: Iterable[int]) -> list[int]:
    return [int(label) for label in found]


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("moved", [0, 64, 200])
def test_search_is_the_exact_answer(metric: Metric, moved: int) -> None:
    """Small enough for the graph to be exact too, so that each split of the rows gives the same."""
    data = rows(200)
    index = empty(metric)
    apply(index, born(data, 1), [], 200)
    index.move(moved)
    for query in vectors.comparable(rows(20, seed=2), metric):
        exact = vectors.scores(query, vectors.comparable(data, metric), metric)
        expected = vectors.best(exact, 10)
        found = search(index, query, 10, 200)
        assert labels(found.labels) == labels(expected + 1)
        np.testing.assert_allclose(found.scores, exact[expected], rtol=1e-4, atol=1e-5)


def test_an_update_replaces_wherever_the_old_row_is() -> None:
    index = empty()
    apply(index, born(rows(10), 1), [], 10)
    index.move(5)
    apply(index, [(11, vector(*[9] * D).tobytes()), (12, vector(*[8] * D).tobytes())], [2, 7], 12)
    found = labels(search(index, vector(*[9] * D), 20, 50).labels)
    assert found[:2] == [11, 12]
    assert sorted(found) == [1, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    index.move(100)
    assert sorted(labels(search(index, vector(*[9] * D), 20, 50).labels)) == [1, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert (index.hot_rows, index.dying, index.graph.live) == (0, 0, 10)


def test_a_row_that_changes_while_hot_never_touches_the_graph() -> None:
    index = empty()
    for version in range(1, 2000):
        apply(index, [(version, vector(*[version] * D).tobytes())], [version - 1] if version > 1 else [], version)
    assert labels(search(index, vector(*[0] * D), 10, 10).labels) == [1999]
    assert index.hot_rows < 200, "replaced rows are dropped when the segment is full"
    index.move(5000)
    assert (index.graph.live, index.graph.dead) == (1, 0)


def test_fewer_than_k_is_what_there_is() -> None:
    index = empty()
    assert labels(search(index, vector(*[0] * D), 10, 10).labels) == []
    apply(index, born(rows(3), 1), [], 3)
    index.move(2)
    assert len(search(index, vector(*[0] * D), 10, 10).labels) == 3


def test_everything_dead_leaves_nothing() -> None:
    index = empty()
    apply(index, born(rows(20), 1), [], 20)
    index.move(10)
    apply(index, [], list(range(1, 21)), 21)
    assert labels(search(index, vector(*[0] * D), 5, 50).labels) == []
    index.move(100)
    assert labels(search(index, vector(*[0] * D), 5, 50).labels) == []


def test_searches_beside_writer_and_mover_always_see_one_state() -> None:
    """Every commit replaces all ten rows. A search has to find exactly the ten of one commit, whichever."""
    index = empty()
    apply(index, born(rows(10), 1), [], 10)
    stop = threading.Event()
    wrong: list[list[int]] = []
    searches = 0

    def look() -> None:
        nonlocal searches
        while not stop.is_set():
            with index.view() as view:
                seen = sorted(labels(index.search(view, vector(*[0] * D), 30, 60).labels))
            searches += 1
            if seen != list(range(view.index_version - 9, view.index_version + 1)):
                wrong.append(seen)

    def move() -> None:
        while not stop.is_set():
            index.move(4)

    threads = [threading.Thread(target=body) for body in (look, look, move)]
    for thread in threads:
        thread.start()
    for commit in range(1, 1500):
        first = commit * 10 + 1
        apply(index, born(rows(10, seed=commit), first), list(range(first - 10, first)), first + 9)
    while searches < 100:
        threading.Event().wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
