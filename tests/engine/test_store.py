from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gateway.engine import database
from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.store import Store
from gateway.engine.types import EventType, Remove, Span
from gateway.errors import StorageUnavailable
from tests.engine.support import SPEC, commit, make, put, vector


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    made = make(tmp_path / "things")
    for i in range(5):
        commit(made, put(f"d{i}", i, 0, 0, 0, metadata={"n": i}))
    commit(made, put("d1", metadata={"n": 10}))
    commit(made, Remove("d2"))
    return made


def test_changes_are_the_net_state_in_order(collection: Collection) -> None:
    page = collection.changes(Span(3, 3, 7), 100)
    assert [(c.document.id, c.document.index_version, c.event_type) for c in page.changes] == [
        ("d3", 4, EventType.INSERT),
        ("d4", 5, EventType.INSERT),
        ("d1", 6, EventType.UPDATE),
        ("d2", 7, EventType.DELETE),
    ]
    assert (page.through, page.more) == (7, False)


def test_pages_join_without_gap_or_double(collection: Collection) -> None:
    seen, since = [], 0
    while True:
        page = collection.changes(Span(since, since, 7), 2)
        seen += [change.document.id for change in page.changes]
        since = page.through
        if not page.more:
            break
    assert seen == ["d0", "d3", "d4", "d1", "d2"]
    assert since == 7


def test_a_document_changed_after_the_end_of_a_page_is_left_for_later(collection: Collection) -> None:
    assert [change.document.id for change in collection.changes(Span(0, 0, 5), 100).changes] == ["d0", "d3", "d4"]


def test_vectors_come_where_asked_for(collection: Collection) -> None:
    (change,) = collection.changes(Span(5, 5, 6), 10, with_vectors=True).changes
    assert change.vector == vector(1, 0, 0, 0).tobytes()
    assert collection.changes(Span(5, 5, 6), 10).changes[0].vector is None


def test_a_filter_finds_labels_and_blocks_their_vectors(collection: Collection, tmp_path: Path) -> None:
    opened = Store(tmp_path / "things" / "store.db")
    reader = opened.reader()
    assert reader.matching(Filter({"n": {"$gte": 4}})).tolist() == [2, 5]
    (found, rows), *others = reader.blocks(reader.matching(Filter({"n": 10})))
    assert (found.tolist(), rows.tolist(), others) == ([2], [[1, 0, 0, 0]], [])
    assert sorted(label for block, _ in reader.scan() for label in block.tolist()) == [1, 2, 4, 5]
    reader.close()
    opened.close()


def test_a_snapshot_does_not_see_later_commits(collection: Collection, tmp_path: Path) -> None:
    opened = Store(tmp_path / "things" / "store.db")
    reader = opened.reader()
    with reader.snapshot() as index_version:
        assert index_version == 7
        commit(collection, put("d0", metadata={"n": -1}))
        document = reader.document("d0")
        assert document is not None
        assert document.metadata == '{"n":0}'
    document = reader.document("d0")
    assert document is not None
    assert document.metadata == '{"n":-1}'
    reader.close()
    opened.close()


def test_old_vectors_are_not_kept(collection: Collection, tmp_path: Path) -> None:
    commit(collection, put("d0", 9, 9, 9, 9))
    with sqlite3.connect(tmp_path / "things" / "store.db") as connection:
        labels = [row[0] for row in connection.execute("SELECT vector_version FROM vectors ORDER BY 1")]
    connection.close()
    assert labels == [2, 4, 5, 8]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x(y)")
    connection.close()
    with pytest.raises(StorageUnavailable, match="not a hotindex database"):
        Store(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database.create(path, SPEC, "epoch")
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={database.FORMAT + 1}")
    connection.close()
    with pytest.raises(StorageUnavailable, match=f"format {database.FORMAT + 1}"):
        Store(path)


def test_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(StorageUnavailable, match="not a database"):
        Store(path)
