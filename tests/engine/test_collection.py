"""A collection against a dict with exact search beside it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.engine import lineage
from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.merge import patched
from gateway.engine.search import Query
from gateway.engine.types import Done, Patch, Put, Remove, Span, Status
from gateway.errors import Conflict, NotFound, StorageUnavailable
from tests.engine.support import (
    DIMENSION,
    SPEC,
    clock,
    commit,
    make,
    nearest,
    outcomes,
    put,
    reopen,
    vector,
    vectors,
    write,
)

IDS = st.sampled_from([f"d{i}" for i in range(8)])
NUMBERS = st.integers(-3, 3).map(float)
VECTORS = st.lists(NUMBERS, min_size=DIMENSION, max_size=DIMENSION)
METADATA = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), max_size=2)
CHANGES = st.dictionaries(st.sampled_from("xyz"), st.none() | st.integers(0, 2), max_size=2)


@dataclass
class Expected:
    version: int
    vector: list[float]
    metadata: dict[str, Any]


class CollectionAgreesWithADict(RuleBasedStateMachine):
    @initialize(indexes=st.sampled_from([(), ("x",), ("x", "y")]))
    def begin(self, indexes: tuple[str, ...]) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.now = clock()
        self.collection = make(self.directory / "things", replace(SPEC, indexes=indexes), now=self.now)
        self.model: dict[str, Expected] = {}
        self.versions: dict[str, int] = {}
        self.forgotten_version = 0
        self.index_version = 0
        self.finish_rebuild: Callable[[], None] | None = None

    def _changed(self, document_id: str) -> int:
        self.index_version += 1
        self.versions[document_id] = self.versions.get(document_id, self.forgotten_version) + 1
        return self.versions[document_id]

    @rule(document_id=IDS, numbers=VECTORS, metadata=METADATA)
    def upsert(self, document_id: str, numbers: list[float], metadata: dict[str, Any]) -> None:
        done = commit(self.collection, put(document_id, *numbers, metadata=metadata))
        old = self.model.get(document_id)
        if old and (old.vector, old.metadata) == (numbers, metadata):
            assert done.results[0].status is Status.UNCHANGED
        else:
            self.model[document_id] = Expected(self._changed(document_id), numbers, metadata)
        assert done.index_version == self.index_version

    @rule(document_id=IDS, changes=CHANGES)
    def patch(self, document_id: str, changes: dict[str, Any]) -> None:
        (outcome,) = outcomes(self.collection, write(Patch(document_id, changes)))
        if document_id not in self.model:
            assert isinstance(outcome, NotFound)
            return
        old = self.model[document_id]
        merged = patched(old.metadata, changes)
        if merged != old.metadata:
            self.model[document_id] = Expected(self._changed(document_id), old.vector, merged)

    @rule(document_id=IDS)
    def delete(self, document_id: str) -> None:
        done = commit(self.collection, Remove(document_id))
        if self.model.pop(document_id, None):
            self._changed(document_id)
            assert done.results[0].status is Status.DELETED
        else:
            assert done.results[0].status is Status.MISSING

    @rule(puts=st.lists(st.tuples(IDS, VECTORS), min_size=1, max_size=6), bad=st.booleans())
    def write_several(self, puts: list[tuple[str, list[float]]], bad: bool) -> None:
        """Several documents in one write, the same one more than once among them, all or none."""
        operations: list[Put | Patch] = [put(document_id, *numbers) for document_id, numbers in puts]
        if bad:
            operations.append(Patch("nobody", {}))
        (outcome,) = outcomes(self.collection, write(*operations))
        if bad:
            assert isinstance(outcome, NotFound)
            return
        for document_id, numbers in puts:
            old = self.model.get(document_id)
            if not old or old.vector != numbers:
                metadata = old.metadata if old else {}
                self.model[document_id] = Expected(self._changed(document_id), numbers, metadata)
        assert isinstance(outcome, Done)
        assert outcome.index_version == self.index_version

    @rule(rows=st.integers(1, 20))
    def move(self, rows: int) -> None:
        self.collection.move(rows)

    @rule()
    def snapshot(self) -> None:
        self.collection.write_snapshot()

    @rule()
    def tidy(self) -> None:
        self.collection.tidy()
        self.collection.checkpoint()

    @rule()
    def rebuild(self) -> None:
        """The fresh graph takes the other's place at once, or after whatever comes next."""
        if self.finish_rebuild is None:
            self.finish_rebuild = self.collection.rebuild(lambda: False)
        else:
            self.finish_rebuild()
            self.finish_rebuild = None

    @rule()
    def purge(self) -> None:
        forgotten = {i: version for i, version in self.versions.items() if i not in self.model}
        assert self.collection.purge(0) == len(forgotten)
        self.forgotten_version = max([self.forgotten_version, *forgotten.values()])
        for document_id in forgotten:
            del self.versions[document_id]

    @rule()
    def restart(self) -> None:
        self.collection.close()
        self._open(self.directory / "things")

    @rule()
    def crash(self) -> None:
        """Go on from the files as they lie there, as after a kill."""
        copied = Path(tempfile.mkdtemp())
        shutil.copytree(self.directory, copied, dirs_exist_ok=True)
        self.collection.close()
        shutil.rmtree(self.directory)
        self.directory = copied
        self._open(copied / "things")

    def _open(self, directory: Path) -> None:
        self.finish_rebuild = None
        self.collection = reopen(directory, self.now)

    @rule(
        numbers=VECTORS,
        k=st.integers(1, 10),
        where=st.sampled_from(
            [None, {"x": 0}, {"x": {"$gte": 1}}, {"y": {"$exists": False}}, {"$not": {"x": 2, "z": 1}}]
        ),
        exact=st.booleans(),
        ef=st.sampled_from([None, 1, 100]),
    )
    def search(self, numbers: list[float], k: int, where: dict[str, Any] | None, exact: bool, ef: int | None) -> None:
        parsed = Filter(where) if where else None
        answer = self.collection.search(Query(vectors(vector(*numbers)), k, parsed, exact=exact, ef=ef))
        allowed = {i: e for i, e in self.model.items() if parsed is None or parsed.matches(e.metadata)}
        scores = {i: -float(np.square(np.subtract(numbers, e.vector)).sum()) for i, e in allowed.items()}
        assert [hit.score for hit in answer.results[0]] == pytest.approx(sorted(scores.values(), reverse=True)[:k])
        assert all(hit.score == pytest.approx(scores[hit.document.id]) for hit in answer.results[0])
        assert answer.index_version == self.index_version
        for hit in answer.results[0]:
            assert hit.document.version == self.model[hit.document.id].version
            assert msgspec.json.decode(hit.document.metadata) == self.model[hit.document.id].metadata

    @invariant()
    def documents_agree(self) -> None:
        if not hasattr(self, "collection"):
            return
        assert self.collection.document_count == len(self.model)
        assert self.collection.index_version == self.index_version
        for document_id, expected in self.model.items():
            found = self.collection.get(document_id, include_vector=True)
            assert found is not None
            document, blob = found
            assert (document.version, msgspec.json.decode(document.metadata)) == (expected.version, expected.metadata)
            assert blob == vector(*expected.vector).tobytes()

    @invariant()
    def changes_lead_to_the_state(self) -> None:
        if not hasattr(self, "collection"):
            return
        changes = self.collection.changes(Span(0, 0, self.index_version), 1000).changes
        assert {c.document.id for c in changes if not c.document.deleted} == set(self.model)
        positions = [c.document.index_version for c in changes]
        assert positions == sorted(set(positions))

    def teardown(self) -> None:
        self.collection.close()
        shutil.rmtree(self.directory)


CollectionAgreesWithADict.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestCollectionAgreesWithADict = CollectionAgreesWithADict.TestCase


def test_every_acknowledged_write_is_in_the_very_next_search_under_load(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(0.001):
            collection.move(64)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for i in range(1000):
            numbers = (i, i % 7, i % 11, 1)
            commit(collection, put(f"d{i % 50}", *numbers))
            assert nearest(collection, *numbers, k=1) == [f"d{i % 50}"]
    finally:
        stop.set()
        mover.join()
        collection.close()


def test_how_far_it_has_come_is_noted_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot and a checkpoint may end together: one file written by both could hold neither's, and end the epoch."""
    collection = make(tmp_path / "things")
    commit(collection, put("a", 1, 0, 0, 0))
    writing, together = threading.Lock(), 0

    def write(*_: object) -> None:
        nonlocal together
        free = writing.acquire(blocking=False)
        together += not free
        time.sleep(0.01)
        if free:
            writing.release()

    monkeypatch.setattr(lineage, "write", write)
    threads = [threading.Thread(target=collection.note_lineage) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collection.close()
    assert not together


def test_many_vectors_without_a_snapshot_are_rebuilt_at_start(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    data = np.random.default_rng(3).standard_normal((6000, DIMENSION)).astype(np.float32)
    for start in range(0, 6000, 1000):
        commit(collection, *(Put(f"d{i}", data[i]) for i in range(start, start + 1000)))
    collection.close()
    recovered = reopen(tmp_path / "things")
    assert recovered.graph_size[0] >= 2000
    assert recovered.graph_size[0] + recovered.hot_rows == 6000
    found = [nearest(recovered, *data[i].tolist(), k=1) == [f"d{i}"] for i in range(0, 6000, 60)]
    assert sum(found) >= 98
    recovered.close()


def test_event_ids_survive_a_restart_within_their_window(tmp_path: Path) -> None:
    now = clock(step=1_000_000)
    collection = make(tmp_path / "things", now=now)
    first = outcomes(collection, write(put("a", 1, 2, 3, 4), event_id="e"))[0]
    collection.close()
    recovered = reopen(tmp_path / "things", now)
    again = outcomes(recovered, write(put("a", 9, 9, 9, 9), event_id="e"))[0]
    assert isinstance(first, Done)
    assert isinstance(again, Done)
    assert again.index_version == first.index_version
    assert again.results[0].status is Status.DUPLICATE
    for _ in range(400):
        now()
    late = outcomes(recovered, write(put("a", 9, 9, 9, 9), event_id="e"))[0]
    assert isinstance(late, Done)
    assert late.results[0].status is Status.UPDATED
    recovered.close()


def test_a_failed_commit_changes_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, put("a", 1, 2, 3, 4))
    blocker = sqlite3.connect(tmp_path / "things" / "store.db", isolation_level=None)
    blocker.execute("CREATE TRIGGER full BEFORE INSERT ON vectors BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END")
    with pytest.raises(StorageUnavailable, match="disk I/O error"):
        outcomes(collection, write(put("b", 1, 2, 3, 4)), write(put("a", metadata={"x": 1})))
    assert nearest(collection, 1, 2, 3, 4) == ["a"]
    assert collection.index_version == 1
    found = collection.get("a")
    assert found is not None
    assert found[0].metadata == "{}"
    blocker.execute("DROP TRIGGER full")
    blocker.close()
    assert commit(collection, put("b", 1, 2, 3, 4)).index_version == 2
    collection.close()


def test_a_conflict_between_two_writers_is_seen_by_the_later(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, put("a", 1, 2, 3, 4))
    first, second = outcomes(
        collection, write(put("a", metadata={"x": 1}, if_version=1)), write(put("a", metadata={"x": 2}, if_version=1))
    )
    assert isinstance(first, Done)
    assert isinstance(second, Conflict)
    assert second.version == 2
    collection.close()


def test_a_commit_that_replaces_many_vectors_leaves_their_deletion_for_later(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 1) for i in range(200)))
    commit(collection, *(put(f"d{i}", i, 0, 0, 2) for i in range(200)))
    assert collection.needs_tidying(quiet=True)
    assert not collection.needs_tidying(quiet=False)
    assert nearest(collection, 7, 0, 0, 2, k=1) == ["d7"]
    collection.close()
    recovered = reopen(tmp_path / "things")
    assert recovered.document_count == 200
    assert stored_vectors(tmp_path) == 400
    recovered.tidy()
    assert stored_vectors(tmp_path) == 200
    assert not recovered.needs_tidying(quiet=True)
    assert nearest(recovered, 7, 0, 0, 2, k=1, exact=True) == ["d7"]
    recovered.close()


def stored_vectors(folder: Path) -> int:
    connection = sqlite3.connect(folder / "things" / "store.db")
    count: int = connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
    connection.close()
    return count


def test_space_is_given_back_after_large_deletions(tmp_path: Path) -> None:
    spec = replace(SPEC, dimension=1024)
    collection = make(tmp_path / "things", spec)
    rows = np.random.default_rng(1).standard_normal((2000, 1024)).astype(np.float32)
    commit(collection, *(Put(f"d{i}", row) for i, row in enumerate(rows)))
    commit(collection, *(Remove(f"d{i}") for i in range(1990)))
    while collection.needs_tidying(quiet=True):
        collection.tidy()
    collection.close()
    assert (tmp_path / "things" / "store.db").stat().st_size < 5 << 20, "of more than 8 MiB of vectors"
    recovered = reopen(tmp_path / "things")
    assert nearest(recovered, *rows[1995].tolist(), k=1) == ["d1995"]
    recovered.close()


def test_a_store_put_in_place_of_a_later_one_begins_a_new_life(tmp_path: Path) -> None:
    """The snapshot of the later state has labels that the older store gives to other vectors."""
    collection = make(tmp_path / "things")
    for i in range(100):
        commit(collection, put(f"d{i}", i, 0, 0, 1))
    epoch = collection.epoch
    source = sqlite3.connect(tmp_path / "things" / "store.db")
    with sqlite3.connect(tmp_path / "backup.db") as backup:
        source.backup(backup)
    backup.close()
    source.close()
    for i in range(100, 200):
        commit(collection, put(f"d{i}", i, 0, 0, 1))
    collection.move(200)
    collection.write_snapshot()
    collection.close()
    for name in ("store.db-wal", "store.db-shm"):
        (tmp_path / "things" / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", tmp_path / "things" / "store.db")
    restored = reopen(tmp_path / "things")
    assert restored.epoch != epoch
    assert not restored.reaches(50, epoch)
    for i in range(100):
        commit(restored, put(f"n{i}", 0, i, 0, 2))
    restored.close()
    again = reopen(tmp_path / "things")
    assert again.epoch == restored.epoch
    for i in range(100):
        assert nearest(again, 0, i, 0, 2, k=1) == [f"n{i}"]
        assert nearest(again, i, 0, 0, 1, k=1) == [f"d{i}"]
    again.close()


def test_a_collection_that_can_not_be_opened_leaves_its_name_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            Collection, "_recover", lambda *_: (_ for _ in ()).throw(StorageUnavailable("too many open files"))
        )
        with pytest.raises(StorageUnavailable):
            make(tmp_path / "things")
    make(tmp_path / "things").close()


def test_nothing_is_lost_in_a_rebuild_beside_writes_searches_and_the_mover(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 0) for i in range(3000)))
    collection.move(3000, hurry=True)
    turn = 0
    stop = threading.Event()
    mover = threading.Lock()

    def write_and_search() -> None:
        nonlocal turn
        while not stop.is_set():
            turn += 1
            for i in range(turn % 50, 3000, 50):
                commit(collection, put(f"d{i}", i, turn, 0, 0))
                assert nearest(collection, i, turn, 0, 0, k=1) == [f"d{i}"]
            with mover:
                collection.move(32)

    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            write_and_search()
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=guarded)
    writer.start()
    try:
        for _ in range(4):
            finish = collection.rebuild(lambda: False)
            assert finish is not None
            with mover:
                finish()
    finally:
        stop.set()
        writer.join()
    assert not failed, failed
    live, dead = collection.graph_size
    assert collection.document_count == 3000
    collection.move(10_000, hurry=True)
    assert collection.graph_size[0] == 3000
    found = [nearest(collection, *numbers, k=1) for numbers in positions(collection)]
    assert sum(hit == [f"d{i}"] for i, hit in enumerate(found)) >= 2990
    assert dead < live
    collection.close()


def positions(collection: Collection) -> Iterator[list[float]]:
    for i in range(3000):
        found = collection.get(f"d{i}", include_vector=True)
        assert found is not None
        assert found[1] is not None
        yield np.frombuffer(found[1], np.float32).tolist()


def test_a_rebuild_gives_up_when_told_to(tmp_path: Path) -> None:
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 0) for i in range(3000)))
    collection.move(3000, hurry=True)
    assert collection.rebuild(lambda: True) is None
    assert nearest(collection, 5, 0, 0, 0, k=1) == ["d5"]
    collection.close()


def test_a_snapshot_of_the_last_state_needs_no_comparison(tmp_path: Path) -> None:
    """Also of what died since the mover last ran, and of what is still hot."""
    collection = make(tmp_path / "things")
    commit(collection, *(put(f"d{i}", i, 0, 0, 1) for i in range(100)))
    collection.move(80)
    commit(collection, *(put(f"d{i}", i, 0, 0, 2) for i in range(0, 100, 3)), Remove("d50"))
    collection.write_snapshot()
    before = collection.graph_size
    collection.close()
    recovered = reopen(tmp_path / "things")
    assert not recovered.needs_snapshot
    assert recovered.graph_size == before == (52, 28)
    assert recovered.graph_size[0] + recovered.hot_rows == 99
    for i in range(100):
        if i != 50:
            assert nearest(recovered, i, 0, 0, 1 if i % 3 else 2, k=1) == [f"d{i}"]
    assert len(nearest(recovered, 50, 0, 0, 1, k=100)) == 99
    recovered.close()
