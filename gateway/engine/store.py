"""The one writer of a collection's database, which is the truth."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from gateway.engine import database
from gateway.engine.database import DOCUMENT, storage_errors, transaction
from gateway.engine.embeddings import Embeddings
from gateway.engine.lives import Starts
from gateway.engine.merge import Stored
from gateway.engine.plan import Plan, Turnover
from gateway.engine.reader import Reader
from gateway.engine.terms import Terms
from gateway.engine.types import Change, Done, EventType, Spec
from gateway.errors import StorageUnavailable

STORE_FILE = "store.db"
EMBEDDINGS_BYTES = 256 << 20
"""What the vectors of texts embedded before may take."""

_COMMIT_BYTES = 16 << 10
_DOCUMENT_BYTES = 6 << 10
_CACHE_KIB = 8192
_LOG_LIMIT_PAGES = (256 << 20) // database.PAGE_BYTES
_DELETED_AT_ONCE = 64
"""A commit that replaces more vectors than these leaves their deletion for later."""
_FREE_PAGES = 1024
_FREE_SHARE = 0.25

_ENCODER = msgspec.msgpack.Encoder()

_INSERT = f"INSERT INTO documents(key, {', '.join(database.COLUMNS)}, vector_crc) VALUES(?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE = """
UPDATE documents SET version = ?, index_version = ?, created = ?, vector_version = ?, source = ?, updated_at = ?,
    metadata = ?, content = ?, vector_crc = ?
WHERE key = ?
"""


class Store:
    """Methods block and belong to one thread at a time, save `reader` and `embedding`, which any thread may call, and
    `checkpoint`.

    They raise StorageUnavailable where the disk or the file doesn't do what it should; the database is then as it was
    before.
    """

    def __init__(self, path: Path, embeddings_bytes: int = EMBEDDINGS_BYTES) -> None:
        self._path = path
        with storage_errors(f"open {path}"):
            self._connection = database.connect(path)
            database.check_format(self._connection, path)
            # Checkpoints are made by `checkpoint`, beside the writer: inside a commit they are its worst latency.
            self._connection.execute("PRAGMA wal_autocheckpoint=0")
            self._connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            self.spec = _spec(database.meta(self._connection, "spec"), path)
            self.epoch: str = database.meta(self._connection, "epoch")
            self.term = self._count("term")
            self.starts = _starts(database.meta(self._connection, "starts"), path)
            self.log_bytes = 0
            self._cut_log = False
            self.index_version = self._count("index_version")
            self.version_floor = self._count("version_floor")
            self.purged_through = self._count("purged_through")
            self.document_count = self._number("SELECT count(*) FROM documents WHERE vector_version IS NOT NULL")
            self.garbage = self._number("SELECT count(*) FROM garbage")
            self._last_key = self._number("SELECT coalesce(max(key), 0) FROM documents")
            self._embeddings = Embeddings(self._connection, self.spec, embeddings_bytes)
        self._terms = Terms(self.spec.indexes)

    def begin_new_life(self, epoch: str) -> None:
        """Go on under another epoch."""
        with storage_errors("change the epoch"), transaction(self._connection):
            self._connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (epoch,))
        self.epoch = epoch

    def begin_term(self, term: int, starts: Starts) -> None:
        """Note that what is stored, as far as it goes, is what was agreed on in that term, and when the terms began."""
        text = " ".join(f"{one}:{start}" for one, start in starts)
        with storage_errors("note the term"), transaction(self._connection):
            facts = [(term, "term"), (text, "starts")]
            self._connection.executemany("UPDATE meta SET value = ? WHERE key = ?", facts)
        self.term, self.starts = term, starts

    def probe(self) -> None:
        """Commit something that means nothing, durably. Raises StorageUnavailable if that fails."""
        with storage_errors("commit"), transaction(self._connection):
            # Another value each time: SQLite doesn't write what stays the same.
            self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'probes'")

    def _count(self, key: str) -> int:
        value = database.meta(self._connection, key)
        if not isinstance(value, int):
            raise StorageUnavailable(f"{self._path} is damaged: its {key} is {value!r}")
        return value

    def _number(self, sql: str) -> int:
        number: int = self._connection.execute(sql).fetchone()[0]
        return number

    def write_embeddings(self) -> None:
        """Write the vectors of texts that wait for a commit to go along with."""
        with storage_errors("write embeddings"):
            with transaction(self._connection):
                self.log_bytes += self._embeddings.write()
            self._embeddings.written()

    def close(self) -> None:
        self._connection.close()

    def reader(self) -> Reader:
        """Open a connection that only reads. The caller closes it."""
        return Reader(self._path, self.spec)

    def load(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Return the documents and tombstones among `ids`, without their vectors."""
        with storage_errors("read documents"):
            rows = database.chunked(
                self._connection, f"SELECT {DOCUMENT}, d.key, d.vector_crc FROM documents d WHERE d.id IN", ids
            )
            return {row[0]: Stored(database.document(row), None, row[9], row[10]) for row in rows}

    def vectors(self, labels: Sequence[int]) -> dict[int, bytes]:
        """Return the vectors stored under these labels."""
        with storage_errors("read vectors"):
            return database.vectors(self._connection, labels)

    def embedded(self, texts: Sequence[str]) -> dict[str, bytes]:
        """Return the vectors of those of `texts` that were embedded before, as far as they were kept."""
        with storage_errors("read embeddings"):
            return self._embeddings.find(texts)

    def embedding(self, text: str) -> tuple[bytes, bytes | None]:
        """Return the key of a text among those embedded before, and its vector if it isn't written yet. From any thread."""
        key = self._embeddings.key(text)
        return key, self._embeddings.unwritten(key)

    def recorded(self, event_ids: Sequence[str], since: int) -> dict[str, Done]:
        """Return the outcomes recorded under `event_ids` at or after `since` (microseconds since the epoch)."""
        with storage_errors("read events"):
            rows = database.chunked(
                self._connection, "SELECT event_id, outcome, at FROM events WHERE event_id IN", event_ids
            )
            return {event_id: database.DONE.decode(outcome) for event_id, outcome, at in rows if at >= since}

    def commit(self, plan: Plan, turnover: Turnover, stored: Mapping[str, Stored], at: int, forget_before: int) -> None:
        """Write the state `plan` leads to from `stored`, and the outcomes it records at `at`, in one transaction.

        Outcomes recorded before `forget_before` go (times in microseconds since the epoch).
        """
        if plan.index_version == self.index_version and not plan.recorded:
            return
        last_key = self._last_key
        keys = {i: now.key for i, now in plan.documents.items()}
        for document_id, key in keys.items():
            if not key:
                last_key += 1
                keys[document_id] = last_key
        with storage_errors("commit"):
            if self._cut_log:
                self._cut_log = False
                # Not waiting for readers: where one is in the way, another time will do.
                self._connection.execute("PRAGMA busy_timeout=0")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._connection.execute(f"PRAGMA busy_timeout={database.BUSY_TIMEOUT_MS}")
            with transaction(self._connection):
                self._write_vectors(turnover)
                self._write_documents(plan, keys)
                self._write_terms(plan, stored, keys)
                self._connection.execute("UPDATE meta SET value = ? WHERE key = 'index_version'", (plan.index_version,))
                self._write_events(plan, at, forget_before)
                self.log_bytes += self._embeddings.note(plan.events)
        self._embeddings.written()
        self._last_key = last_key
        self.index_version = plan.index_version
        self.log_bytes += _COMMIT_BYTES + _DOCUMENT_BYTES * len(keys) + sum(len(v) for _, v in turnover.born)
        if len(turnover.died) > _DELETED_AT_ONCE:
            self.garbage += len(turnover.died)
        for event in plan.events:
            if isinstance(event, Change):
                # Who copies from another store may get the deletion of what it never had.
                died = event.event_type is EventType.DELETE and event.before is not None
                self.document_count += (event.event_type is EventType.INSERT) - died

    def _write_vectors(self, turnover: Turnover) -> None:
        later = len(turnover.died) > _DELETED_AT_ONCE
        self._connection.executemany(
            "INSERT INTO garbage(vector_version) VALUES(?)"
            if later
            else "DELETE FROM vectors WHERE vector_version = ?",
            [(label,) for label in turnover.died],
        )
        self._connection.executemany("INSERT INTO vectors(vector_version, vector) VALUES(?, ?)", turnover.born)

    def _write_documents(self, plan: Plan, keys: Mapping[str, int]) -> None:
        first = plan.first_index_version
        inserts: list[tuple[Any, ...]] = []
        updates: list[tuple[Any, ...]] = []
        for document_id, now in plan.documents.items():
            d = now.document
            label = d.vector_version
            crc = now.vector_crc
            if label is not None and label >= first:
                assert now.vector is not None, "a new label has a vector"
                crc = zlib.crc32(now.vector)
            row = (
                d.version,
                d.index_version,
                d.created,
                label,
                int(d.source),
                d.updated_at,
                d.metadata,
                d.content,
                crc,
            )
            if now.key:
                updates.append((*row, now.key))
            else:
                inserts.append((keys[document_id], document_id, *row))
        self._connection.executemany(_INSERT, inserts)
        # In order of their keys, so that neighbours in one page are written while it is at hand.
        self._connection.executemany(_UPDATE, sorted(updates, key=itemgetter(-1)))

    def _write_terms(self, plan: Plan, stored: Mapping[str, Stored], keys: Mapping[str, int]) -> None:
        if not self.spec.indexes:
            return
        gone, new = [], []
        for document_id, now in plan.documents.items():
            before = stored.get(document_id)
            old = self._terms.of(before.document) if before else frozenset()
            terms = self._terms.of(now.document)
            key = keys[document_id]
            gone += [(*term, key) for term in old - terms]
            new += [(*term, key) for term in terms - old]
        self._connection.executemany("DELETE FROM terms WHERE field = ? AND value = ? AND document = ?", gone)
        self._connection.executemany("INSERT INTO terms(field, value, document) VALUES(?, ?, ?)", new)

    def _write_events(self, plan: Plan, at: int, forget_before: int) -> None:
        if plan.recorded:
            self._connection.executemany(
                "INSERT OR REPLACE INTO events(event_id, at, outcome) VALUES(?, ?, ?)",
                [(event_id, at, _ENCODER.encode(done)) for event_id, done in plan.recorded.items()],
            )
            self._connection.execute("DELETE FROM events WHERE at < ?", (forget_before,))

    def sweep(self, limit: int) -> None:
        """Delete the `limit` oldest of the vectors that were replaced."""
        with storage_errors("delete replaced vectors"), transaction(self._connection):
            rows = self._connection.execute(
                "SELECT position, vector_version FROM garbage ORDER BY position LIMIT ?", (limit,)
            ).fetchall()
            if rows:
                self._connection.executemany(
                    "DELETE FROM vectors WHERE vector_version = ?", [(label,) for label in sorted(r[1] for r in rows)]
                )
                self._connection.execute("DELETE FROM garbage WHERE position <= ?", (rows[-1][0],))
        self.garbage -= len(rows)
        self.log_bytes += _COMMIT_BYTES + len(rows) * database.PAGE_BYTES

    def purge(self, before: int, limit: int) -> int:
        """Forget up to `limit` deletions made before `before` (microseconds since the epoch); return how many.

        Who resumes from before one of them has to start over. Versions of documents go on above all that are forgotten.
        """
        with storage_errors("purge deletions"), transaction(self._connection):
            rows = self._connection.execute(
                "SELECT key, index_version, version FROM documents"
                " WHERE vector_version IS NULL AND updated_at < ? ORDER BY updated_at LIMIT ?",
                (before, limit),
            ).fetchall()
            if not rows:
                return 0
            purged_through = max(self.purged_through, *(row[1] for row in rows))
            version_floor = max(self.version_floor, *(row[2] for row in rows))
            self._connection.executemany("DELETE FROM documents WHERE key = ?", [(row[0],) for row in rows])
            self._write_floor(purged_through, version_floor)
        self.purged_through, self.version_floor = purged_through, version_floor
        self.log_bytes += _COMMIT_BYTES + len(rows) * database.PAGE_BYTES
        return len(rows)

    def raise_floor(self, purged_through: int, version_floor: int) -> None:
        """Take over what another store has forgotten, before what it holds is taken over."""
        if purged_through <= self.purged_through and version_floor <= self.version_floor:
            return
        purged_through = max(purged_through, self.purged_through)
        version_floor = max(version_floor, self.version_floor)
        with storage_errors("take over deletions"), transaction(self._connection):
            self._write_floor(purged_through, version_floor)
        self.purged_through, self.version_floor = purged_through, version_floor

    def _write_floor(self, purged_through: int, version_floor: int) -> None:
        self._connection.executemany(
            "UPDATE meta SET value = ? WHERE key = ?",
            [(purged_through, "purged_through"), (version_floor, "version_floor")],
        )

    @property
    def wasted_pages(self) -> int:
        """The free pages in the file, where they are worth giving back; 0 otherwise."""
        with storage_errors("count pages"):
            free = self._number("PRAGMA freelist_count")
            return free if free > max(_FREE_PAGES, _FREE_SHARE * self._number("PRAGMA page_count")) else 0

    def vacuum(self, pages: int) -> None:
        """Give up to `pages` free pages back to the file system."""
        with storage_errors("vacuum"):
            self._connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
        self.log_bytes += pages * database.PAGE_BYTES

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database, beside the writer and the readers. From any one thread."""
        self.log_bytes = 0
        with storage_errors("checkpoint"), closing(database.connect(self._path)) as connection:
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        # Writes without a pause leave a passive checkpoint no moment at which the log could start over.
        self._cut_log = pages > _LOG_LIMIT_PAGES


def _starts(text: str, path: Path) -> Starts:
    try:
        pairs = (pair.split(":") for pair in text.split())
        return tuple((int(term), int(start)) for term, start in pairs)
    except (AttributeError, ValueError) as error:
        raise StorageUnavailable(f"{path} is damaged: when its terms began can't be read: {error}") from error


def _spec(encoded: bytes, path: Path) -> Spec:
    try:
        return msgspec.msgpack.decode(encoded, type=Spec)
    except (msgspec.DecodeError, TypeError) as error:
        raise StorageUnavailable(f"{path} is damaged: its spec can't be read: {error}") from error
