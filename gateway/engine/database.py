"""The database of one collection: its schema, and how connections to it are opened.

- `documents`: one row per document or tombstone, under a key of its own that never changes, so that a change rewrites
  one row in place. The index over index_version answers what changed after a position.
- `vectors`: immutable, under their vector_version, which only grows: they are appended. A change of metadata touches
  none, and a scan over metadata reads none.
- `garbage`: vectors that large commits replaced, to be deleted later: appending is sequential, deleting is not.
- `terms`: for each indexed metadata field the values it has, by document.
- `embeddings`: the vectors of texts embedded before, for texts that come again: see `gateway.engine.embeddings`.
- `events`: outcomes by event_id, for idempotency. `meta`: epoch, spec, index_version, and the term in which nodes agreed
  on it.

SQLite in WAL mode with synchronous=FULL: a commit that has returned survives a crash of the process and of the machine.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from gateway.engine.types import Document, Done, Source, Spec
from gateway.errors import StorageUnavailable

Connection: TypeAlias = sqlite3.Connection

FORMAT = 3
APPLICATION_ID = 0x686F7469
PAGE_BYTES = 4096
FLOAT_BYTES = 4
BUSY_TIMEOUT_MS = 10_000
_MARKS = 64

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE documents(
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    index_version INTEGER NOT NULL,
    created INTEGER NOT NULL,
    vector_version INTEGER,
    source INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    content TEXT,
    vector_crc INTEGER
);
CREATE UNIQUE INDEX documents_by_change ON documents(index_version);
CREATE UNIQUE INDEX documents_by_vector ON documents(vector_version) WHERE vector_version IS NOT NULL;
CREATE INDEX tombstones ON documents(updated_at) WHERE vector_version IS NULL;
CREATE TABLE vectors(vector_version INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE garbage(position INTEGER PRIMARY KEY, vector_version INTEGER NOT NULL);
CREATE TABLE terms(
    field INTEGER NOT NULL, value BLOB NOT NULL, document INTEGER NOT NULL, PRIMARY KEY(field, value, document)
) WITHOUT ROWID;
CREATE TABLE embeddings(position INTEGER PRIMARY KEY, text_hash BLOB NOT NULL UNIQUE, vector BLOB NOT NULL);
CREATE TABLE events(event_id TEXT PRIMARY KEY, at INTEGER NOT NULL, outcome BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX events_by_time ON events(at);
"""

COLUMNS = ("id", "version", "index_version", "created", "vector_version", "source", "updated_at", "metadata", "content")
DONE = msgspec.msgpack.Decoder(Done)
_SOURCES = tuple(Source)
DOCUMENT = ", ".join(f"d.{name}" for name in COLUMNS)
"""The columns `document` takes, of a table called d."""


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open a connection that commits durably. Raises sqlite3.Error."""
    mode = "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_MS / 1000,
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


def create(path: Path, spec: Spec, epoch: str) -> None:
    """Make an empty database at `path`, durable when this returns. Raises StorageUnavailable."""
    with storage_errors(f"create {path}"):
        connection = connect(path, create=True)
        try:
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            facts = {"epoch": epoch, "spec": msgspec.msgpack.encode(spec), "index_version": 0}
            facts |= {"version_floor": 0, "purged_through": 0, "probes": 0, "term": 0, "starts": ""}
            with transaction(connection):
                connection.executemany("INSERT INTO meta(key, value) VALUES(?, ?)", facts.items())
        finally:
            connection.close()


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StorageUnavailable unless this is a database of this format."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise StorageUnavailable(f"{path} is not a hotindex database")
    if found != FORMAT:
        raise StorageUnavailable(f"{path} has format {found}; this version reads format {FORMAT}")


def meta(connection: sqlite3.Connection, key: str) -> Any:
    """Return a fact of the table meta. Raises StorageUnavailable where it isn't there."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise StorageUnavailable(f"the database is damaged: it has no {key}")
    return row[0]


def document(row: Sequence[Any]) -> Document:
    """Return the document of a row that begins with the columns DOCUMENT."""
    return Document(row[0], row[1], row[2], row[3], row[4], _SOURCES[row[5]], row[6], row[7], row[8])


def chunked(connection: sqlite3.Connection, sql: str, keys: Sequence[Any]) -> Iterator[Any]:
    """Run `sql`, which ends with IN, for any number of keys, with statements of few lengths, so that they stay prepared."""
    for start in range(0, len(keys), _MARKS):
        chunk = list(keys[start : start + _MARKS])
        marks = 1 << (len(chunk) - 1).bit_length()
        chunk += chunk[-1:] * (marks - len(chunk))
        yield from connection.execute(f"{sql} ({','.join('?' * marks)})", chunk)


def vectors(connection: sqlite3.Connection, labels: Sequence[int]) -> dict[int, bytes]:
    """Return the vectors stored under these labels."""
    return dict(chunked(connection, "SELECT vector_version, vector FROM vectors WHERE vector_version IN", labels))
