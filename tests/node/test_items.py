"""What recommendations keep in memory is what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engine.collection import Collection
from gateway.engine.search import Query
from gateway.engine.types import Applied, Operation, Remove
from gateway.node.items import Items
from gateway.node.neighbours import Neighbours
from tests.engine.support import make, put, vector, vectors, write

SIZE_BYTES = 2 * 4 * 4
"""What the vectors of an item take, as it is stored and of unit length."""


class Kept:
    """A collection and what is kept of it."""

    def __init__(self, collection: Collection, capacity: int = 10) -> None:
        self.collection = collection
        self.items = Items(collection, capacity * SIZE_BYTES)
        self.reads: list[tuple[list[str], list[int]]] = []
        reading = collection.get_many

        def get_many(document_ids: Any, vector_versions: Any = ()) -> Any:
            self.reads.append((sorted(document_ids), sorted(vector_versions)))
            return reading(document_ids, vector_versions)

        collection.get_many = get_many  # type: ignore[method-assign]

    def commit(self, *operations: Operation) -> Applied:
        applied = self.collection.commit([write(*operations)]).applied
        assert applied is not None
        self.items.change(applied)
        return applied


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    kept = Kept(make(tmp_path / "things"))
    kept.commit(*(put(f"d{i}", i, 1, 0, 0, metadata={"year": 2000 + i} if i else {}) for i in range(5)))
    return kept


def test_what_was_read_is_not_read_again_until_it_changes(kept: Kept) -> None:
    assert kept.items.get("d1") is None
    found = kept.items.by_id(["d2", "d1", "none"])
    assert list(found) == ["d2", "d1"]
    assert [item.year for item in found.values()] == [2002, 2001]
    assert np.isnan(kept.items.by_id(["d0"])["d0"].year)
    one = found["d1"]
    assert one.vector.tolist() == [1, 1, 0, 0]
    assert np.frombuffer(one.unit, np.float32).tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0])
    assert (
        kept.items.get("d1") is kept.items.by_id(["d1"])["d1"] is kept.items.by_vector([one.vector_version])[2] is one
    )
    assert kept.reads == [(["d1", "d2", "none"], []), (["d0"], [])]

    kept.commit(put("d1", 5, 5, 5, 5, metadata={"year": 1999}), Remove("d2"))
    assert kept.items.get("d1") is kept.items.get("d2") is None
    assert list(kept.items.by_id(["d1", "d2"])) == ["d1"]
    assert kept.items.by_id(["d1"])["d1"].year == 1999
    assert kept.items.by_vector([one.vector_version, found["d2"].vector_version]) == {}, "they are no more"


def test_what_was_read_before_the_last_commit_is_not_kept(kept: Kept) -> None:
    """As when a commit comes while a thread reads: what it read may be older than what the commit says."""
    reading = kept.collection.get_many

    def get_many(document_ids: Any, vector_versions: Any = ()) -> Any:
        found = reading(document_ids, vector_versions)
        kept.commit(put("d1", 9, 9, 9, 9, metadata={"year": 1900}))
        return found

    kept.collection.get_many = get_many  # type: ignore[method-assign]
    assert kept.items.by_id(["d1"])["d1"].year == 2001, "as of when it was asked for"
    kept.collection.get_many = reading  # type: ignore[method-assign]
    assert kept.items.by_id(["d1"])["d1"].year == 1900


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    kept = Kept(make(tmp_path / "things"), capacity=5)
    kept.commit(*(put(f"d{i}", i, 1, 0, 0) for i in range(9)))
    for i in range(9):
        kept.items.by_id([f"d{i}"])
    assert [i for i in range(9) if kept.items.get(f"d{i}")] == [4, 5, 6, 7, 8]


def test_neighbours_are_those_of_a_search_and_kept_until_a_commit(kept: Kept) -> None:
    searched: list[int] = []
    searching = kept.collection.nearest

    def nearest(queries: Any, k: int, ef: int) -> Any:
        searched.append(len(queries))
        return searching(queries, k, ef)

    kept.collection.nearest = nearest  # type: ignore[method-assign]
    neighbours = Neighbours(kept.collection, 3, 16)
    asked = vectors(vector(0, 1, 0, 0), vector(4, 1, 0, 0))

    def found() -> list[list[int]]:
        located = neighbours.nearest(asked)
        assert located.index_version == kept.collection.index_version
        return [one.labels.tolist() for one in located.found]

    def searched_for() -> list[list[int | None]]:
        answer = kept.collection.search(Query(asked, 3))
        return [[hit.document.vector_version for hit in hits] for hits in answer.results]

    first = found()
    assert first == found() == searched_for()
    neighbours.nearest(vectors(asked[1], vector(2, 1, 0, 0)))
    assert searched == [2, 1], "one of them is new"
    kept.collection.move(3)
    kept.commit(Remove("d0"), put("d3", 0, 9, 0, 0))
    assert found() == searched_for() != first
    assert searched == [2, 1, 2]
