"""The truth: one SQLite database per collection.

`documents` is keyed by index_version, so that what changed after a position is a range of the table and a change of a
document moves its row to the end. Vectors are immutable and stand apart under their vector_version: a change of
metadata rewrites a short row, and a scan over metadata reads no vectors.

SQLite in WAL mode with synchronous=FULL: a commit that has returned survives a crash of the process and of the machine.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.engine.filter import MATCH_FUNCTION, Filter, sql_match
from gateway.engine.merge import Stored
from gateway.engine.plan import Plan
from gateway.engine.types import (
    Change,
    Document,
    Done,
    EventType,
    Labels,
    Page,
    Source,
    Span,
    Spec,
    Vector,
)
from gateway.errors import StorageUnavailable

FORMAT = 1
_APPLICATION_ID = 0x686F7469
_MARKS = 64
_COMMIT_BYTES = 16 << 10
_DOCUMENT_BYTES = 2 << 10
_LOG_LIMIT_PAGES = (256 << 20) // 4096

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY) WITHOUT ROWID;
CREATE TABLE documents(
    index_version INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    created INTEGER NOT NULL,
    vector_version INTEGER,
    source INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    content TEXT
);
CREATE UNIQUE INDEX documents_by_vector ON documents(vector_version) WHERE vector_version IS NOT NULL;
CREATE TABLE vectors(vector_version INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE events(event_id TEXT PRIMARY KEY, at INTEGER NOT NULL, outcome BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX events_by_time ON events(at);
"""

_COLUMNS = "id, version, index_version, created, vector_version, source, updated_at, metadata, content"
_QUALIFIED = ", ".join(f"d.{name}" for name in _COLUMNS.split(", "))

_ENCODER = msgspec.msgpack.Encoder()
_DONE = msgspec.msgpack.Decoder(Done)


def _connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    mode = "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10.0,
    )
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn SQLite's errors into StorageUnavailable."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageUnavailable(f"can't {what}: {error}") from error


def create(path: Path, spec: Spec, epoch: str) -> None:
    """Make an empty database at `path`, durable when this returns. Raises StorageUnavailable."""
    with storage_errors(f"create {path}"):
        connection = _connect(path, create=True)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            facts = {"epoch": epoch, "spec": _ENCODER.encode(spec), "index_version": 0}
            facts |= {"version_floor": 0, "purged_through": 0}
            with transaction(connection):
                connection.executemany("INSERT INTO meta(key, value) VALUES(?, ?)", facts.items())
        finally:
            connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Commit what is done inside, or, where it or the commit fails, none of it."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class Store:
    """The one writer of a collection's database.

    Methods block and belong to one thread at a time, save `reader`, which any thread may call. They raise
    StorageUnavailable where the disk or the file doesn't do what it should; the database is then as it was before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(f"open {path}"):
            self._connection = _connect(path)
            self._check_format()
            # Checkpoints are made by `checkpoint`, beside the writer: inside a commit they are its worst latency.
            self._connection.execute("PRAGMA wal_autocheckpoint=0")
            self._checkpointer = _connect(path)
            self.spec = msgspec.msgpack.decode(self._meta("spec"), type=Spec)
            self.epoch: str = self._meta("epoch")
            self.log_bytes = 0
            self._cut_log = False
            self.index_version: int = self._meta("index_version")
            self.version_floor: int = self._meta("version_floor")
            self.purged_through: int = self._meta("purged_through")
            counted = self._connection.execute("SELECT count(*) FROM documents WHERE vector_version IS NOT NULL")
            self.document_count: int = counted.fetchone()[0]

    def _check_format(self) -> None:
        (application_id,) = self._connection.execute("PRAGMA application_id").fetchone()
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application_id != _APPLICATION_ID:
            raise StorageUnavailable(f"{self._path} is not a hotindex database")
        if found != FORMAT:
            raise StorageUnavailable(f"{self._path} has format {found}; this version reads format {FORMAT}")

    def _meta(self, key: str) -> Any:
        return self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]

    def close(self) -> None:
        self._checkpointer.close()
        self._connection.close()

    def reader(self) -> Reader:
        """Open a connection that only reads. The caller closes it."""
        with storage_errors(f"open {self._path}"):
            return Reader(self._path)

    def load(self, ids: Sequence[str], with_vector: frozenset[str]) -> dict[str, Stored]:
        """Return the documents and tombstones among `ids`; those in `with_vector` come with their vector."""
        with storage_errors("read documents"):
            rows = _chunked(self._connection, f"SELECT {_COLUMNS} FROM documents WHERE id IN", ids)
            found = {row[0]: _document(row) for row in rows}
            labels = [found[i].vector_version for i in with_vector if i in found]
            vectors = dict(_vectors(self._connection, [label for label in labels if label is not None]))
        return {i: Stored(document, vectors.get(document.vector_version or 0)) for i, document in found.items()}

    def recorded(self, event_ids: Sequence[str], since: int) -> dict[str, Done]:
        """Return the outcomes recorded under `event_ids` at or after `since` (microseconds since the epoch)."""
        with storage_errors("read events"):
            rows = _chunked(self._connection, "SELECT event_id, outcome, at FROM events WHERE event_id IN", event_ids)
            return {event_id: _DONE.decode(outcome) for event_id, outcome, at in rows if at >= since}

    def commit(self, plan: Plan, at: int, forget_before: int) -> None:
        """Write the state `plan` leads to, and the outcomes it records at `at`, in one transaction.

        Outcomes recorded before `forget_before` go (times in microseconds since the epoch).
        """
        if not plan.events and not plan.recorded:
            return
        if self._cut_log:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._cut_log = False
        with storage_errors("commit"), transaction(self._connection):
            self._write_vectors(plan)
            self._connection.executemany(_UPSERT, [_row(stored.document) for stored in plan.documents.values()])
            self._connection.execute("UPDATE meta SET value = ? WHERE key = 'index_version'", (plan.index_version,))
            self._connection.executemany(
                "INSERT OR REPLACE INTO events(event_id, at, outcome) VALUES(?, ?, ?)",
                [(event_id, at, _ENCODER.encode(done)) for event_id, done in plan.recorded.items()],
            )
            if plan.recorded:
                self._connection.execute("DELETE FROM events WHERE at < ?", (forget_before,))
        vectors = sum(len(stored.vector or b"") for stored in plan.documents.values())
        self.log_bytes += _COMMIT_BYTES + _DOCUMENT_BYTES * len(plan.documents) + vectors
        self.index_version = plan.index_version
        for event in plan.events:
            if isinstance(event, Change):
                self.document_count += (event.event_type is EventType.INSERT) - (event.event_type is EventType.DELETE)

    def _write_vectors(self, plan: Plan) -> None:
        """Put each changed document's last vector under its label, and drop the one it had before the batch."""
        first = plan.first_index_version
        born = {i: stored for i, stored in plan.documents.items() if (stored.document.vector_version or 0) >= first}
        gone = [i for i, stored in plan.documents.items() if i in born or stored.document.deleted]
        self._connection.executemany(
            "DELETE FROM vectors WHERE vector_version = (SELECT vector_version FROM documents WHERE id = ?)",
            [(i,) for i in gone],
        )
        self._connection.executemany(
            "INSERT INTO vectors(vector_version, vector) VALUES(?, ?)",
            [(stored.document.vector_version, stored.vector) for stored in born.values()],
        )

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database, beside the writer and the readers. One other thread at a time."""
        self.log_bytes = 0
        with storage_errors("checkpoint"):
            _, pages, _ = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        # Writes without a pause leave a passive checkpoint no moment at which the log could start over.
        self._cut_log = pages > _LOG_LIMIT_PAGES


_UPSERT = f"""
INSERT INTO documents({_COLUMNS}) VALUES(?,?,?,?,?,?,?,?,?)
ON CONFLICT(id) DO UPDATE SET version = excluded.version, index_version = excluded.index_version,
    created = excluded.created, vector_version = excluded.vector_version, source = excluded.source,
    updated_at = excluded.updated_at, metadata = excluded.metadata, content = excluded.content
"""


class Reader:
    """A connection that only reads; one thread at a time.

    Within `snapshot` all reads see the same state of the collection; outside, each sees the newest.
    """

    def __init__(self, path: Path) -> None:
        self._connection = _connect(path)
        self._connection.execute("PRAGMA query_only=1")
        self._connection.create_function(MATCH_FUNCTION, 2, sql_match, deterministic=True)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def snapshot(self) -> Iterator[int]:
        """Pin the newest committed state for the reads inside; yields its index_version."""
        with storage_errors("read"), transaction(self._connection, "DEFERRED"):
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'index_version'").fetchone()
            yield row[0]

    def document(self, document_id: str) -> Document | None:
        """Return a document, or None where there is none (a tombstone counts as none)."""
        with storage_errors("read a document"):
            row = self._connection.execute(
                f"SELECT {_COLUMNS} FROM documents WHERE id = ? AND vector_version IS NOT NULL", (document_id,)
            ).fetchone()
        return _document(row) if row else None

    def by_vector(self, labels: Sequence[int]) -> dict[int, Document]:
        """Return, by label, the documents whose current vectors have these labels."""
        with storage_errors("read documents"):
            rows = _chunked(self._connection, f"SELECT {_COLUMNS} FROM documents WHERE vector_version IN", labels)
            return {row[4]: _document(row) for row in rows}

    def vectors(self, labels: Sequence[int]) -> dict[int, bytes]:
        with storage_errors("read vectors"):
            return dict(_vectors(self._connection, labels))

    def labels(self) -> Labels:
        """Return the labels of all current vectors, ascending."""
        with storage_errors("read labels"):
            rows = self._connection.execute(
                "SELECT vector_version FROM documents WHERE vector_version IS NOT NULL ORDER BY vector_version"
            )
            return np.fromiter((label for (label,) in rows), np.int64)

    def scan(self, where: Filter | None, rows_at_a_time: int = 1024) -> Iterator[tuple[Labels, Vector]]:
        """Yield labels[n] and vectors[n, d] of all documents `where` matches, in blocks."""
        sql, parameters = where.sql("d.metadata") if where else ("1", [])
        with storage_errors("scan"):
            cursor = self._connection.execute(
                "SELECT v.vector_version, v.vector FROM documents d JOIN vectors v USING (vector_version)"
                f" WHERE d.vector_version IS NOT NULL AND ({sql})",
                parameters,
            )
            while rows := cursor.fetchmany(rows_at_a_time):
                labels = np.array([label for label, _ in rows], np.int64)
                yield labels, np.frombuffer(b"".join(v for _, v in rows), np.float32).reshape(len(rows), -1)

    def changes(self, span: Span, limit: int, *, with_vectors: bool = False) -> Page:
        """Return the latest state of what changed in `span`, `limit` documents at most.

        A document that has changed again after the span is left out: it comes with a later one.
        """
        vector = "v.vector" if with_vectors else "NULL"
        join = "LEFT JOIN vectors v USING (vector_version)" if with_vectors else ""
        with storage_errors("read changes"):
            rows = self._connection.execute(
                f"SELECT {_QUALIFIED}, {vector} FROM documents d {join}"
                " WHERE d.index_version > ? AND d.index_version <= ? ORDER BY d.index_version LIMIT ?",
                (span.after, span.through, limit),
            ).fetchall()
        changes = tuple(_net_change(_document(row), span.origin, row[9]) for row in rows)
        more = len(rows) == limit
        return Page(changes, changes[-1].document.index_version if more else span.through, more)


def _net_change(document: Document, origin: int, vector: bytes | None) -> Change:
    if document.deleted:
        event_type = EventType.DELETE
    elif document.created > origin:
        event_type = EventType.INSERT
    else:
        event_type = EventType.UPDATE
    return Change(event_type, document, None, vector)


def _document(row: Sequence[Any]) -> Document:
    return Document(row[0], row[1], row[2], row[3], row[4], Source(row[5]), row[6], row[7], row[8])


def _row(document: Document) -> tuple[Any, ...]:
    return (
        document.id,
        document.version,
        document.index_version,
        document.created,
        document.vector_version,
        int(document.source),
        document.updated_at,
        document.metadata,
        document.content,
    )


def _vectors(connection: sqlite3.Connection, labels: Sequence[int]) -> Iterable[tuple[int, bytes]]:
    return _chunked(connection, "SELECT vector_version, vector FROM vectors WHERE vector_version IN", labels)


def _chunked(connection: sqlite3.Connection, sql: str, keys: Sequence[Any]) -> Iterator[Any]:
    """Run `sql`, which ends with IN, for any number of keys, with statements of few lengths, so that they stay prepared."""
    for start in range(0, len(keys), _MARKS):
        chunk = list(keys[start : start + _MARKS])
        marks = 1 << (len(chunk) - 1).bit_length()
        chunk += chunk[-1:] * (marks - len(chunk))
        yield from connection.execute(f"{sql} ({','.join('?' * marks)})", chunk)
