"""A collection: its store, which is the truth, and its index, which is made from it.

Commit: plan the writes against the store, write one transaction, then publish it to the index. Recovery: load any valid
snapshot of the graph and compare its labels with the store's; what died meanwhile is marked dead, what is missing goes
to the hot buffer.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, LifoQueue

import numpy as np

from gateway.engine import snapshot, store, vectors
from gateway.engine.filter import Filter
from gateway.engine.graph import Graph
from gateway.engine.index import Index
from gateway.engine.merge import BuildText, Stored
from gateway.engine.plan import Plan, Planner, WriteOutcome
from gateway.engine.store import Reader, Store
from gateway.engine.types import (
    Answer,
    Applied,
    Document,
    Hit,
    Labels,
    Page,
    Put,
    Span,
    Spec,
    Vector,
    Write,
)

HOT_AT_START = 4096
"""With more vectors missing from the graph at start, they are inserted before serving, by all cores."""

_LOAD_BLOCK = 4096
_CHUNK = 16
_CHECKPOINT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for: a checked vector of the collection's dimension, not yet made comparable."""

    vector: Vector
    k: int
    where: Filter | None = None
    exact: bool = False
    exclude: str | None = None
    """The id of a document to leave out."""
    include_vector: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """`outcomes` in the order of the writes; `applied` is None where nothing changed."""

    outcomes: Sequence[WriteOutcome]
    applied: Applied | None


class Collection:
    """All methods block. `commit` belongs to one thread at a time (the writer's), `move`, `write_snapshot` and `tidy` to
    another (upkeep's); the rest may be called from any thread. Those that touch the disk raise StorageUnavailable.
    """

    def __init__(
        self, directory: Path, build_text: BuildText, now: Callable[[], int], idempotency_window_s: float
    ) -> None:
        """Open the collection in `directory`: recover its index from the newest valid snapshot and the store.

        `now` gives microseconds since the epoch.
        """
        self._directory = directory
        self._build_text = build_text
        self._now = now
        self._window_us = int(idempotency_window_s * 1e6)
        self._store = Store(directory / "store.db")
        self._applying = threading.Lock()
        self._readers: LifoQueue[Reader] = LifoQueue()
        self.spec = self._store.spec
        self.epoch = self._store.epoch
        self._snapshot_version = -1
        self._index = self._recover()

    @classmethod
    def create(
        cls, directory: Path, spec: Spec, build_text: BuildText, now: Callable[[], int], idempotency_window_s: float
    ) -> Collection:
        """Make an empty collection with a new epoch. A crash leaves either all of it or nothing."""
        temporary = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        with store.storage_errors(f"create collection {spec.name!r}"):
            temporary.mkdir(parents=True)
            store.create(temporary / "store.db", spec, uuid.uuid4().hex)
            os.rename(temporary, directory)
            snapshot.sync_directory(directory.parent)
        return cls(directory, build_text, now, idempotency_window_s)

    def _recover(self) -> Index:
        with self._reader() as reader:
            live = reader.labels()
            graph = snapshot.load(self._directory, self.spec, self.epoch)
            if graph:
                saved = graph.labels()
                graph.bury(np.setdiff1d(saved, live))
                missing = np.setdiff1d(live, saved)
                if not len(missing):
                    self._snapshot_version = self._store.index_version
            else:
                graph, missing = Graph(self.spec), live
            if len(missing) > HOT_AT_START:
                cold, missing = np.split(missing, [len(missing) - HOT_AT_START // 2])
                for start in range(0, len(cold), _LOAD_BLOCK):
                    block = cold[start : start + _LOAD_BLOCK]
                    graph.insert(self._comparable(reader, block), block, threads=os.cpu_count() or 1)
            return Index(self.spec, graph, missing, self._comparable(reader, missing), self._store.index_version)

    def _comparable(self, reader: Reader, labels: Labels) -> Vector:
        blobs = reader.vectors(labels.tolist())
        raw = b"".join(blobs[label] for label in labels.tolist())
        return vectors.comparable(np.frombuffer(raw, np.float32).reshape(-1, self.spec.dimension), self.spec.metric)

    def close(self) -> None:
        """Close the files. Nothing else may be running or called later."""
        while True:
            try:
                self._readers.get_nowait().close()
            except Empty:
                break
        self._store.close()

    @property
    def index_version(self) -> int:
        return self._store.index_version

    @property
    def document_count(self) -> int:
        return self._store.document_count

    @property
    def hot_rows(self) -> int:
        return self._index.hot_rows

    @property
    def graph_size(self) -> tuple[int, int]:
        """Return the graph's live and dead vectors."""
        graph = self._index.graph
        return graph.live, graph.dead

    @contextmanager
    def _reader(self) -> Iterator[Reader]:
        try:
            reader = self._readers.get_nowait()
        except Empty:
            reader = self._store.reader()
        try:
            yield reader
        finally:
            self._readers.put(reader)

    def commit(self, writes: Sequence[Write], *, with_vectors: bool = False) -> Committed:
        """Apply `writes` in order, each whole or not at all, in one transaction; what is done is on disk and searchable.

        If the transaction fails, nothing of any of them is there. `with_vectors` asks for the vectors of all changed
        documents, not only of those whose vector changed.
        """
        at = self._now()
        ids, comparing = _named(writes)
        stored = self._store.load(ids, frozenset(ids) if with_vectors else comparing)
        event_ids = [write.event_id for write in writes if write.event_id is not None]
        window_start = at - self._window_us
        recorded = self._store.recorded(event_ids, window_start) if event_ids else {}
        planner = Planner(
            self.spec,
            self._build_text,
            stored,
            recorded,
            self._store.index_version,
            self._store.version_floor,
            self._now,
        )
        for write in writes:
            planner.add(write)
        plan = planner.plan
        with self._applying:
            self._store.commit(plan, at, window_start)
            if plan.events:
                self._publish(plan, stored)
        applied = Applied(plan.first_index_version, plan.index_version, tuple(plan.events)) if plan.events else None
        return Committed(plan.outcomes, applied)

    def _publish(self, plan: Plan, stored: dict[str, Stored]) -> None:
        born: list[tuple[int, bytes]] = []
        died: list[int] = []
        for document_id, now in plan.documents.items():
            before = stored[document_id].document.vector_version if document_id in stored else None
            label = now.document.vector_version
            if label == before:
                continue
            if before is not None:
                died.append(before)
            if label is not None:
                assert now.vector is not None, "a new label has a vector"
                born.append((label, now.vector))
        self._index.apply(sorted(born), died, plan.index_version)

    def get(self, document_id: str, *, include_vector: bool = False) -> tuple[Document, bytes | None] | None:
        """Return a document and, if asked for, its vector; None where there is none."""
        with self._reader() as reader, reader.snapshot():
            document = reader.document(document_id)
            if document is None:
                return None
            label = document.vector_version
            assert label is not None, "a live document has a vector"
            return document, reader.vectors([label])[label] if include_vector else None

    def search(self, query: Query) -> Answer:
        """Return the k nearest documents as of one index_version, each as it is stored at that version."""
        comparable = vectors.comparable(query.vector, self.spec.metric)
        if query.where is not None or query.exact:
            return self._scan(query, comparable)
        answer = self._search_index(query, comparable)
        if answer is None:
            # A commit came between the index and the store; with the writer held off, none can.
            with self._applying:
                answer = self._search_index(query, comparable)
            assert answer is not None, "store and index agree while nothing is committed"
        return answer

    def _search_index(self, query: Query, comparable: Vector) -> Answer | None:
        found = self._index.search(comparable, query.k + (query.exclude is not None), self.spec.ef_search)
        labels = found.labels.tolist()
        with self._reader() as reader, reader.snapshot() if query.include_vector else nullcontext():
            documents = reader.by_vector(labels)
            blobs = reader.vectors(labels) if query.include_vector else {}
        if len(documents) < len(labels) or any(d.index_version > found.index_version for d in documents.values()):
            return None
        return _answer(query, found.index_version, labels, found.scores.tolist(), documents, blobs)

    def _scan(self, query: Query, comparable: Vector) -> Answer:
        """Compare with every allowed vector, in one snapshot of the store."""
        k = query.k + (query.exclude is not None)
        labels, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        with self._reader() as reader, reader.snapshot() as index_version:
            for block_labels, block in reader.scan(query.where):
                rows = vectors.comparable(block, self.spec.metric)
                labels = np.concatenate([labels, block_labels])
                scores = np.concatenate([scores, vectors.scores(comparable, rows, self.spec.metric)])
                top = vectors.best(scores, k)
                labels, scores = labels[top], scores[top]
            documents = reader.by_vector(labels.tolist())
            blobs = reader.vectors(labels.tolist()) if query.include_vector else {}
        return _answer(query, index_version, labels.tolist(), scores.tolist(), documents, blobs)

    def changes(self, span: Span, limit: int, *, with_vectors: bool = False) -> Page:
        """Return a page of the net change in `span`."""
        with self._reader() as reader:
            return reader.changes(span, limit, with_vectors=with_vectors)

    def reaches(self, since: int, epoch: str | None) -> bool:
        """Tell whether the net change after `since` of `epoch` (None: this one) can be given in full."""
        if epoch not in (None, self.epoch):
            return False
        return since == 0 or self._store.purged_through <= since <= self._store.index_version

    def move(self, rows: int) -> int:
        """Take the `rows` oldest hot rows to the graph, a chunk at a time; return how many rows are still hot.

        An insertion takes about a quarter of a millisecond, and searches wait for a chunk of them.
        """
        for start in range(0, rows, _CHUNK):
            self._index.move(min(_CHUNK, rows - start))
        return self._index.hot_rows

    def write_snapshot(self) -> int:
        """Write a snapshot of the graph; return the index_version of the collection it was taken at."""
        index_version = self._store.index_version
        snapshot.write(self._directory, self._index.graph, self.spec, self.epoch, index_version)
        self._snapshot_version = index_version
        return index_version

    @property
    def changed_since_snapshot(self) -> bool:
        return self._snapshot_version != self._store.index_version

    @property
    def needs_tidying(self) -> bool:
        return self._store.log_bytes > _CHECKPOINT_BYTES

    def tidy(self) -> None:
        """Copy the write-ahead log into the database."""
        self._store.checkpoint()


def _named(writes: Sequence[Write]) -> tuple[list[str], frozenset[str]]:
    """Return the ids that `writes` name, and those whose stored vectors they may equal."""
    operations = [operation for write in writes for operation in write.operations]
    ids = list(dict.fromkeys(operation.id for operation in operations))
    return ids, frozenset(o.id for o in operations if isinstance(o, Put) and o.vector is not None)


def _answer(
    query: Query,
    index_version: int,
    labels: list[int],
    scores: list[float],
    documents: dict[int, Document],
    blobs: dict[int, bytes],
) -> Answer:
    hits = (Hit(documents[label], score, blobs.get(label)) for label, score in zip(labels, scores, strict=True))
    wanted = [hit for hit in hits if hit.document.id != query.exclude][: query.k]
    return Answer(index_version, tuple(sorted(wanted, key=lambda hit: (-hit.score, hit.document.id))))
