"""A collection: its store, which is the truth, and its index, which is made from it.

Commit: plan the writes against the store, write one transaction, then publish it to the index. Recovery: load any valid
snapshot of the graph and compare its labels with the store's; what died meanwhile is marked dead, what is missing goes
to the hot buffer.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from gateway.engine import database, lineage, lives, snapshot, vectors
from gateway.engine.checksums import Checksum, checksum
from gateway.engine.graph import Graph
from gateway.engine.index import Index
from gateway.engine.lineage import Lineage
from gateway.engine.reader import Reader, Readers
from gateway.engine.rebuild import Rebuild
from gateway.engine.replay import Copy
from gateway.engine.search import Located, Query, Searcher
from gateway.engine.snapshot import Snapshot
from gateway.engine.store import EMBEDDINGS_BYTES, STORE_FILE, Store
from gateway.engine.types import (
    Answer,
    Document,
    Labels,
    Page,
    Span,
    Spec,
    Vector,
    Write,
)
from gateway.engine.writer import Committed, Writer
from gateway.errors import StorageUnavailable

log = structlog.get_logger(__name__)
PAGE_BYTES = 4 << 20
HOT_AT_START = 4096
"""With more vectors missing from the graph at start, they are inserted before serving, by all cores."""
DEAD_SHARE = 0.25
"""A graph with a larger share of dead vectors is made anew when writes pause."""
DEAD_SHARE_AT_MOST = 0.4
"""With a larger share it is made anew beside whatever goes on."""

_REBUILD_AT_LEAST = 64
_SNAPSHOT_AT_LEAST = 2048
_LOAD_BLOCK = 4096
_CHUNK = 16
_LARGE_CHUNK = 1024
_UNDISTURBED_S = 0.1
_CHECKPOINT_BYTES = 32 << 20
_SWEEP = 256
_SWEEPS = 8
_GARBAGE_LIMIT = 65_536
_PURGE = 256
_VACUUM_PAGES = 256


class Collection:
    """All methods block. What `writer` does belongs to one thread at a time; `move`, what `rebuild` returns,
    `write_snapshot`, `tidy` and `purge` to another (upkeep's); `rebuild` and `checkpoint` to one each; the rest may be
    called from any thread. Those that touch the disk raise StorageUnavailable.
    """

    def __init__(
        self,
        directory: Path,
        now: Callable[[], int],
        idempotency_window_s: float,
        checksum: Checksum = checksum,
        embeddings_bytes: int = EMBEDDINGS_BYTES,
    ) -> None:
        """Open the collection in `directory`: recover its index from the newest valid snapshot and the store.

        `now` gives microseconds since the epoch; `checksum` those of snapshots. `embeddings_bytes` is what the vectors of
        texts embedded before may take.
        """
        self._directory = directory
        self._noting = threading.Lock()
        self._now = now
        self._window_us = int(idempotency_window_s * 1e6)
        self._store = Store(directory / STORE_FILE, embeddings_bytes)
        self.spec = self._store.spec
        self._check_lineage()
        self._readers = Readers(directory / STORE_FILE, self.spec)
        self.epoch = self._store.epoch
        self._snapshot_version = -1
        self._wasteful = False
        self._index = self._recover(checksum)
        self.writer = Writer(self._store, self._index, now, self._window_us)
        self._searcher = Searcher(self._store, self._index, self._readers, self.writer.applying)

    @classmethod
    def create(
        cls,
        directory: Path,
        spec: Spec,
        now: Callable[[], int],
        idempotency_window_s: float,
        epoch: str | None = None,
        embeddings_bytes: int = EMBEDDINGS_BYTES,
    ) -> Collection:
        """Make an empty collection (None: with a new epoch). A crash leaves either all of it or nothing."""
        temporary = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            epoch = epoch or new_epoch()
            database.create(temporary / STORE_FILE, spec, epoch)
            lineage.write(temporary, Lineage(epoch, 0))
            os.rename(temporary, directory)
            snapshot.sync_directory(directory.parent)
        except OSError as error:
            raise StorageUnavailable(f"can't create collection {spec.name!r}: {error}") from error
        try:
            return cls(directory, now, idempotency_window_s, embeddings_bytes=embeddings_bytes)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _check_lineage(self) -> None:
        store = self._store
        if reason := lineage.broken(self._directory, Lineage(store.epoch, store.index_version)):
            log.warning("new_epoch", collection=store.spec.name, reason=reason)
            store.begin_new_life(new_epoch())
            self.note_lineage()

    def note_lineage(self) -> None:
        """Note how far the store has come, to notice an older one in its place."""
        try:
            # Snapshots and checkpoints end in threads of their own, and the file is written under one name.
            with self._noting:
                lineage.write(self._directory, Lineage(self._store.epoch, self._store.index_version))
        except OSError as error:
            # What was noted before is still true.
            log.warning("lineage_not_noted", collection=self.spec.name, reason=str(error))

    def _recover(self, checksum: Checksum) -> Index:
        with self._readers.lend() as reader:
            found = snapshot.load(self._directory, self.spec, self.epoch, self._store.index_version, checksum)
            if found:
                graph, missing = found.graph, self._compare(found, reader)
            else:
                graph, missing = Graph(self.spec), reader.labels()
            if len(missing) > HOT_AT_START:
                cold, missing = np.split(missing, [len(missing) - HOT_AT_START // 2])
                for start in range(0, len(cold), _LOAD_BLOCK):
                    block = cold[start : start + _LOAD_BLOCK]
                    graph.insert(self._comparable(reader, block), block, threads=_CORES)
            return Index(self.spec, graph, missing, self._comparable(reader, missing), self._store.index_version)

    def _compare(self, found: Snapshot, reader: Reader) -> Labels:
        """Mark dead in a saved graph what has died since; return the labels that are missing in it."""
        manifest = found.manifest
        if manifest.index_version == self._store.index_version:
            # Nothing has changed since: what was hot then is all there is to add.
            self._snapshot_version = manifest.index_version
            return reader.labels_between(manifest.first_hot, manifest.index_version + 1)
        live, saved = reader.labels(), found.graph.labels()
        found.graph.bury(np.setdiff1d(saved, live))
        return np.setdiff1d(live, saved)

    def _comparable(self, reader: Reader, labels: Labels) -> Vector:
        return vectors.comparable(reader.rows(labels), self.spec.metric)

    def embedded(self, text: str) -> bytes | None:
        """Return the vector of a text that was embedded before, if it was kept."""
        key, unwritten = self._store.embedding(text)
        if unwritten is not None:
            return unwritten
        with self._readers.lend() as reader:
            return reader.embedding(key)

    def close(self) -> None:
        """Close the files. Nothing else may be running; what is called later raises StorageUnavailable."""
        self._readers.close()
        try:
            self._store.write_embeddings()
        except StorageUnavailable as error:
            # All they can do is save calls of a model.
            log.warning("embeddings_not_written", collection=self.spec.name, reason=error.message)
        self._store.close()
        self.note_lineage()

    @property
    def index_version(self) -> int:
        return self._store.index_version

    @property
    def document_count(self) -> int:
        return self._store.document_count

    @property
    def purged_through(self) -> int:
        """The index_version up to which deletions are forgotten."""
        return self._store.purged_through

    @property
    def hot_rows(self) -> int:
        return self._index.hot_rows

    @property
    def graph_size(self) -> tuple[int, int]:
        """Return the graph's live and dead vectors; those that died since the mover last ran count as live."""
        graph = self._index.graph
        return graph.live, graph.dead

    def commit(self, writes: Sequence[Write], *, with_vectors: bool = False) -> Committed:
        """Apply `writes`, as `Writer.commit` does."""
        return self.writer.commit(writes, with_vectors=with_vectors)

    def copy(self, after: int, limit: int, limit_bytes: int = PAGE_BYTES) -> Copy:
        """Return a page of the net change after `after`, deletions and vectors included; the last has what is recorded."""
        with self._readers.lend() as reader, reader.snapshot() as through:
            page = reader.changes(Span(after, after, through), limit, limit_bytes, with_vectors=True, with_deleted=True)
            recorded = {} if page.more else reader.recorded(self._now() - self._window_us)
            return Copy(
                page.changes, page.through, page.more, recorded, self._store.purged_through, self._store.version_floor
            )

    def digest(self) -> tuple[int, str]:
        """Return an index_version and a digest of all documents as of it: equal on nodes that hold the same."""
        with self._readers.lend() as reader, reader.snapshot() as index_version:
            return index_version, reader.digest()

    def get(self, document_id: str, *, include_vector: bool = False) -> tuple[Document, bytes | None] | None:
        """Return a document and, if asked for, its vector; None where there is none."""
        with self._readers.lend() as reader, reader.snapshot():
            document = reader.document(document_id)
            if document is None:
                return None
            label = document.vector_version
            assert label is not None, "a live document has a vector"
            return document, reader.vectors([label])[label] if include_vector else None

    def get_many(
        self, document_ids: Sequence[str], vector_versions: Sequence[int] = ()
    ) -> tuple[int, list[tuple[Document, bytes]]]:
        """Return an index_version, and those documents that there are as of it, by id or by vector, each with its vector.

        They are in no particular order, and twice where they are asked for twice.
        """
        with self._readers.lend() as reader, reader.snapshot() as index_version:
            documents = reader.documents(document_ids) if document_ids else []
            documents += reader.by_vector(vector_versions).values() if vector_versions else ()
            labels = [document.vector_version for document in documents if document.vector_version is not None]
            blobs = reader.vectors(labels)
            return index_version, [(document, blobs[label]) for document, label in zip(documents, labels, strict=True)]

    def vectors(self, vector_versions: Sequence[int]) -> dict[int, bytes]:
        """Return the vectors stored under these; those that their documents have no more aren't."""
        with self._readers.lend() as reader:
            return reader.vectors(vector_versions)

    def search(self, query: Query) -> Answer:
        """Return the k nearest documents to each vector, all as they are stored as of one index_version."""
        return self._searcher.search(query)

    def nearest(self, queries: Vector, k: int, ef: int) -> Located:
        """Return labels and scores of the k nearest to each of queries[n, d], without their documents."""
        return self._searcher.nearest(queries, k, ef)

    def changes(self, span: Span, limit: int, limit_bytes: int = PAGE_BYTES, *, with_vectors: bool = False) -> Page:
        """Return a page of the net change in `span`: at most `limit` documents, of about `limit_bytes`."""
        with self._readers.lend() as reader:
            return reader.changes(span, limit, limit_bytes, with_vectors=with_vectors)

    @property
    def public_epoch(self) -> str:
        """The epoch as clients know it."""
        return lives.epoch(self.epoch, self._store.starts)

    def reaches(self, since: int, epoch: str | None) -> bool:
        """Tell whether the net change after `since` of a public epoch (None: this one) can be given in full."""
        if epoch is not None and not lives.holds(epoch, since, self.epoch, self._store.starts):
            return False
        return self.remembers(since)

    def remembers(self, since: int) -> bool:
        """Tell whether the net change after `since` can be given in full."""
        return since == 0 or self._store.purged_through <= since <= self._store.index_version

    def move(self, rows: int, *, hurry: bool = False) -> int:
        """Take the `rows` oldest hot rows to the graph, a chunk at a time; return how many rows are still hot.

        An insertion takes about a quarter of a millisecond, and searches wait for a chunk of them. In a `hurry` all cores
        insert, and chunks are larger while nobody searches.
        """
        threads = _CORES if hurry else 1
        while rows > 0:
            chunk = min(rows, _LARGE_CHUNK if hurry and self.unsearched else _CHUNK * threads)
            self._index.move(chunk, threads)
            rows -= chunk
        return self._index.hot_rows

    @property
    def idle_s(self) -> float:
        """The time since the last commit."""
        return time.monotonic() - self._index.applied_at

    @property
    def unsearched(self) -> bool:
        """Whether nobody has searched for a moment."""
        return self._index.graph.turns.idle_s > _UNDISTURBED_S

    @property
    def needs_moving(self) -> bool:
        """Whether so many vectors of the graph have died since the mover last ran that it should."""
        return self._index.dying > _CHUNK * _CHUNK

    @property
    def needs_rebuild(self) -> bool:
        """Whether so much of the graph is dead that it should be made anew once writes pause."""
        return self._dead_share() > DEAD_SHARE

    @property
    def needs_rebuild_now(self) -> bool:
        """Whether it should be made anew whether writes pause or not."""
        return self._dead_share() > DEAD_SHARE_AT_MOST

    def _dead_share(self) -> float:
        graph = self._index.graph
        return graph.dead_share if graph.dead >= _REBUILD_AT_LEAST else 0.0

    def rebuild(self, stopping: Callable[[], bool]) -> Callable[[], None] | None:
        """Make a graph of the live vectors, beside all else; return what puts it in the old one's place, to be called
        while the mover is held off. None where `stopping` says to give up.
        """
        fresh = Rebuild(self._index, self.spec, _CORES)
        done = False
        try:
            with self._readers.lend() as reader:
                while not (done := fresh.step(reader)):
                    if stopping():
                        return None
        finally:
            if not done:
                self._index.forget_deaths()
        return partial(self._finish_rebuild, fresh)

    def _finish_rebuild(self, fresh: Rebuild) -> None:
        try:
            with self._readers.lend() as reader:
                fresh.finish(reader)
        except BaseException:
            self._index.forget_deaths()
            raise

    def write_snapshot(self) -> int:
        """Write a snapshot of the graph; return the index_version of the collection it was taken at."""
        index_version = self._index.index_version
        self._index.move(0)  # marks dead in the graph what has died up to that version
        graph, first_hot = self._index.graph, self._index.first_hot
        snapshot.write(self._directory, graph, self.spec, self.epoch, index_version, first_hot)
        self._snapshot_version = index_version
        self.note_lineage()
        return index_version

    def probe(self) -> None:
        """Commit something that means nothing. Raises StorageUnavailable while commits fail."""
        with self.writer.applying:
            self._store.probe()

    @property
    def needs_snapshot(self) -> bool:
        """Whether a snapshot would save the next start work: a small graph is made from the store as fast."""
        return self._snapshot_version != self._store.index_version and len(self._index.graph) >= _SNAPSHOT_AT_LEAST

    def needs_tidying(self, *, quiet: bool) -> bool:
        """Whether there is something for `tidy`; what takes time from commits can wait until they are `quiet`."""
        garbage = self._store.garbage
        return garbage > _GARBAGE_LIMIT or (quiet and (garbage > 0 or self._wasteful or self.writer.deaths > _SWEEP))

    def tidy(self) -> None:
        """Delete some vectors that large commits replaced, give some free pages back. To be repeated while needed.

        Commits wait for none of it longer than for a small transaction.
        """
        self.writer.deaths = 0
        for _ in range(_SWEEPS):
            if self._store.garbage:
                with self.writer.applying:
                    self._store.sweep(_SWEEP)
        for _ in range(_SWEEPS):
            with self.writer.applying:
                self._wasteful = self._store.wasted_pages > 0
                if not self._wasteful:
                    break
                self._store.vacuum(_VACUUM_PAGES)

    @property
    def needs_checkpoint(self) -> bool:
        return self._store.log_bytes > _CHECKPOINT_BYTES

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database, beside all else."""
        self._store.checkpoint()
        self.note_lineage()

    def purge(self, retention_us: int) -> int:
        """Forget the deletions that are older; return how many.

        A room can't be resumed from before one of them any more.
        """
        before = self._now() - retention_us
        purged = 0
        while True:
            with self.writer.applying:
                some = self._store.purge(before, _PURGE)
            purged += some
            if not some:
                return purged


_CORES = os.cpu_count() or 1


def new_epoch() -> str:
    return uuid.uuid4().hex
