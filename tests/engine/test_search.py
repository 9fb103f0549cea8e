"""Searches: exact, by the graph, filtered, beside writers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway.engine.allowed import AllowedCache
from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.reader import Reader
from gateway.engine.search import Query
from gateway.engine.types import Put, Remove, Vector
from tests.engine.support import (
    SPEC,
    commit,
    make,
    nearest,
    put,
    vector,
    vectors,
)


def test_a_search_beside_a_writer_shows_documents_as_of_one_version(tmp_path: Path) -> None:
    """Metadata says which vector it belongs to: a result that mixes two states of a document would show."""
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 0, metadata={"at": [i, 0.0]}) for i in range(20)))
    stop = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            commit(collection, *(put(f"d{i}", i, turn, 0, 0, metadata={"at": [i, float(turn)]}) for i in range(20)))
            collection.move(16)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(300):
            answer = collection.search(Query(vectors(vector(10, 0, 0, 0)), 20, include_vector=True))
            assert len(answer.results[0]) == 20
            turns = set()
            for hit in answer.results[0]:
                assert hit.vector is not None
                x, turn = msgspec.json.decode(hit.document.metadata)["at"]
                assert np.frombuffer(hit.vector, np.float32)[:2].tolist() == [x, turn]
                turns.add(turn)
            assert len(turns) == 1, "one commit rewrites all, so all are of one commit"
    finally:
        stop.set()
        writer.join()
        collection.close()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Collection, Vector]]:
    """6,000 random documents, most of them in the graph; `share` is in (0, 1], evenly."""
    collection = make(tmp_path_factory.mktemp("crowd") / "things", replace(SPEC, dimension=16))
    data = np.random.default_rng(3).standard_normal((6000, 16)).astype(np.float32)
    commit(collection, *(Put(f"d{i}", row, metadata={"share": (i + 1) / 6000}) for i, row in enumerate(data)))
    collection.move(5000, hurry=True)
    yield collection, data
    collection.close()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_filtered_searches_find_what_exact_ones_find(crowd: tuple[Collection, Vector], share: float) -> None:
    collection, data = crowd
    where = Filter({"share": {"$lte": share}})
    found = total = 0
    for query in data[:50] + 0.1:
        expected = collection.search(Query(query[np.newaxis], 10, where, exact=True)).results[0]
        answer = collection.search(Query(query[np.newaxis], 10, where)).results[0]
        assert len(answer) == min(10, 6000 * share)
        assert all(msgspec.json.decode(hit.document.metadata)["share"] <= share for hit in answer)
        found += len({hit.document.id for hit in answer} & {hit.document.id for hit in expected})
        total += len(expected)
    assert found >= 0.97 * total


def test_a_filter_far_from_the_query_is_still_answered_in_full(tmp_path: Path) -> None:
    """What the filter allows lies on the other side: no neighbour of the query is allowed."""
    collection = make(tmp_path / "things", replace(SPEC, dimension=16))
    data = np.random.default_rng(3).standard_normal((12_000, 16)).astype(np.float32)
    data[:, 0] = np.where(np.arange(12_000) < 6000, 50, -50)
    commit(collection, *(Put(f"d{i}", row, metadata={"far": i < 6000}) for i, row in enumerate(data)))
    collection.move(12_000, hurry=True)
    where = Filter({"far": True})
    query = Query(data[-1:], 10, where)
    expected = [hit.document.id for hit in collection.search(replace(query, exact=True)).results[0]]
    assert [hit.document.id for hit in collection.search(query).results[0]] == expected
    collection.close()


def test_an_answer_the_graph_can_not_complete_is_completed_exactly(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, i % 7, 0, 1) for i in range(1500)))
    collection.move(1500, hurry=True)
    commit(collection, *(Remove(f"d{i}") for i in range(1440)))
    collection.move(1)
    assert collection.graph_size == (60, 1440)
    for k in (10, 60, 100):
        assert nearest(collection, 1500, 0, 0, 1, k=k) == nearest(collection, 1500, 0, 0, 1, k=k, exact=True)
    collection.close()


def test_several_vectors_are_answered_as_of_one_state(crowd: tuple[Collection, Vector]) -> None:
    collection, data = crowd
    answer = collection.search(Query(data[:5], 3, several=True))
    assert [hits[0].document.id for hits in answer.results] == [f"d{i}" for i in range(5)]
    filtered = collection.search(Query(data[:5], 3, Filter({"share": {"$gt": 0.5}}), several=True))
    assert all(len(hits) == 3 for hits in filtered.results)


def test_filtered_searches_beside_writers_are_of_one_version(tmp_path: Path) -> None:
    """Every commit moves all documents from one half of the filter to the other."""
    collection = make(tmp_path / "things", replace(SPEC, dimension=8))
    data = np.random.default_rng(5).standard_normal((3000, 8)).astype(np.float32)

    def flip(turn: int) -> None:
        commit(
            collection,
            *(Put(f"d{i}", row if turn < 2 else None, metadata={"half": (i + turn) % 2}) for i, row in enumerate(data)),
        )

    flip(0)
    collection.move(3000, hurry=True)
    stop = threading.Event()

    def write_on() -> None:
        turn = 1
        while not stop.is_set():
            flip(turn)
            turn += 1

    failed: list[str] = []

    def search_on() -> None:
        for n in range(60):
            answer = collection.search(Query(data[n : n + 1], 10, Filter({"half": n % 2})))
            hits = answer.results[0]
            halves = {msgspec.json.decode(hit.document.metadata)["half"] for hit in hits}
            stale = [hit for hit in hits if hit.document.index_version <= answer.index_version - 3000]
            if len(hits) != 10 or halves != {n % 2} or stale:
                failed.append(f"{n}: {len(hits)} {halves} {stale}")

    writer = threading.Thread(target=write_on)
    searchers = [threading.Thread(target=search_on) for _ in range(2)]
    for thread in (writer, *searchers):
        thread.start()
    for thread in searchers:
        thread.join()
    stop.set()
    writer.join()
    assert not failed, failed[:3]
    collection.close()


def test_filtered_searches_pass_over_vectors_that_wait_for_deletion(tmp_path: Path) -> None:
    """A large write leaves the vectors it replaces in the store for a while, and their labels in what a filter allows."""
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 1, metadata={"a": 1}) for i in range(200)))
    query = Query(vectors(vector(5, 0, 0, 1)), 150, Filter({"a": 1}))
    assert len(collection.search(query).results[0]) == 150
    commit(collection, *(put(f"d{i}", i, 0, 0, 2) for i in range(100)))
    commit(collection, *(Remove(f"d{i}") for i in range(100, 180)))
    for one in (query, replace(query, exact=True)):
        hits = collection.search(one).results[0]
        assert len(hits) == 120
        assert all(hit.document.version == (2 if int(hit.document.id[1:]) < 100 else 1) for hit in hits)
    collection.close()


@pytest.mark.parametrize(("offset", "scale"), [(1000, 0.01), (1000, 0.1), (100, 0.01), (0, 1)])
def test_the_hot_buffer_is_exact_far_from_the_origin(tmp_path: Path, offset: float, scale: float) -> None:
    """Products cancel where vectors are long and near each other; distances don't."""
    collection = make(tmp_path / "things", replace(SPEC, dimension=8))
    data = (offset + scale * np.random.default_rng(1).standard_normal((1000, 8))).astype(np.float32)
    commit(collection, *(Put(f"d{i}", row) for i, row in enumerate(data)))
    for i in range(0, 1000, 50):
        distances = np.square(data.astype(np.float64) - data[i]).sum(axis=1)
        answer = collection.search(Query(data[i : i + 1], 10)).results[0]
        assert answer[0].document.id == f"d{i}"
        assert {hit.document.id for hit in answer} == {f"d{n}" for n in np.argsort(distances)[:10]}
    collection.close()


def test_what_filters_allow_is_bounded_in_number_and_age(tmp_path: Path) -> None:
    cache = AllowedCache()
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 1, metadata={"a": 1}) for i in range(100)))
    where = Filter({"a": 1})
    reader = Reader(tmp_path / "things" / "store.db", collection.spec)
    for turn in range(80):
        commit(collection, *(put(f"d{i}", i, turn, 0, 2) for i in range(100)))
        with reader.snapshot() as index_version:
            allowed = cache.get(where, reader, index_version)
        assert len(allowed) < 2 * 100 + 5000
    for i in range(4000):
        with reader.snapshot() as index_version:
            cache.get(Filter({"a": "x" * 20_000 + str(i)}), reader, index_version)
    assert cache.size_bytes <= 32 << 20
    reader.close()
    collection.close()
