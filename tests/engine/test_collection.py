"""A collection against a dict with exact search beside it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.engine.collection import Query
from gateway.engine.filter import Filter
from gateway.engine.merge import patched
from gateway.engine.types import Done, Patch, Put, Remove, Span, Status
from gateway.errors import Conflict, NotFound, StorageUnavailable
from tests.engine.support import DIMENSION, clock, commit, make, nearest, outcomes, put, reopen, vector, vectors, write

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
    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.now = clock()
        self.collection = make(self.directory / "things", now=self.now)
        self.model: dict[str, Expected] = {}
        self.versions: dict[str, int] = {}
        self.index_version = 0

    def _changed(self, document_id: str) -> int:
        self.index_version += 1
        self.versions[document_id] = self.versions.get(document_id, 0) + 1
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

    @rule()
    def restart(self) -> None:
        self.collection.close()
        self.collection = reopen(self.directory / "things", self.now)

    @rule(
        numbers=VECTORS, k=st.integers(1, 10), wanted=st.integers(0, 2), kind=st.sampled_from(["", "exact", "filter"])
    )
    def search(self, numbers: list[float], k: int, wanted: int, kind: str) -> None:
        where = Filter({"x": wanted}) if kind == "filter" else None
        answer = self.collection.search(Query(vectors(vector(*numbers)), k, where, exact=kind == "exact"))
        allowed = {i: e for i, e in self.model.items() if where is None or e.metadata.get("x") == wanted}
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
