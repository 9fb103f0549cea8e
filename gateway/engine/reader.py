"""Reading a collection's database, beside its writer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue

import numpy as np

from gateway.engine import database, filter_sql
from gateway.engine.database import DOCUMENT, FLOAT_BYTES, storage_errors, transaction
from gateway.engine.filter import Filter
from gateway.engine.terms import Terms
from gateway.engine.types import Change, Document, Done, EventType, Labels, Page, Span, Spec, Vector
from gateway.errors import StorageUnavailable, TooLarge

_ROWS_AT_A_TIME = 1024
_CONTRADICTIONS = {
    "documents have fields of a wrong type": (
        "documents WHERE typeof(version) != 'integer' OR typeof(created) != 'integer' OR source NOT IN (0, 1, 2)"
        " OR typeof(updated_at) != 'integer' OR typeof(metadata) != 'text'"
        " OR typeof(coalesce(content, '')) != 'text' OR typeof(coalesce(vector_version, 0)) != 'integer'"
    ),
    "documents have a vector or a beginning later than themselves": (
        "documents WHERE coalesce(vector_version, 0) > index_version OR created > index_version"
    ),
    "vectors in use are to be deleted": (
        "garbage WHERE vector_version IN (SELECT vector_version FROM documents WHERE vector_version IS NOT NULL)"
    ),
    "documents have an index_version above the collection's": (
        "documents WHERE index_version > (SELECT value FROM meta WHERE key = 'index_version')"
    ),
    "documents have metadata that are no JSON object": "documents WHERE json_type(metadata) IS NOT 'object'",
    "vectors belong to no document": (
        "vectors WHERE vector_version NOT IN (SELECT vector_version FROM documents WHERE vector_version IS NOT NULL)"
        " AND vector_version NOT IN (SELECT vector_version FROM garbage)"
    ),
}
_ANSWER_BYTES = 64 << 20


class Reader:
    """A connection that only reads; one thread at a time. Methods raise StorageUnavailable.

    Within `snapshot` all reads see the same state of the collection; outside, each sees the newest.
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        self._dimension = spec.dimension
        self._terms = Terms(spec.indexes)
        with storage_errors(f"open {path}"):
            self._connection = database.connect(path)
            self._connection.execute("PRAGMA query_only=1")
            self._connection.create_function(filter_sql.MATCH_FUNCTION, 2, filter_sql.sql_match, deterministic=True)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def snapshot(self) -> Iterator[int]:
        """Pin the newest committed state for the reads inside; yields its index_version."""
        with storage_errors("read"), transaction(self._connection, "DEFERRED"):
            yield database.meta(self._connection, "index_version")

    def document(self, document_id: str) -> Document | None:
        """Return a document, or None where there is none (a tombstone counts as none)."""
        with storage_errors("read a document"):
            row = self._connection.execute(
                f"SELECT {DOCUMENT} FROM documents d WHERE d.id = ? AND d.vector_version IS NOT NULL", (document_id,)
            ).fetchone()
        return database.document(row) if row else None

    def documents(self, document_ids: Sequence[str]) -> list[Document]:
        """Return those documents that there are."""
        with storage_errors("read documents"):
            rows = database.chunked(
                self._connection,
                f"SELECT {DOCUMENT} FROM documents d WHERE d.vector_version IS NOT NULL AND d.id IN",
                document_ids,
            )
            return [database.document(row) for row in rows]

    def embedding(self, key: bytes) -> bytes | None:
        """Return the vector of a text embedded before, by the key of the table `embeddings`."""
        with storage_errors("read embeddings"):
            row = self._connection.execute("SELECT vector FROM embeddings WHERE text_hash = ?", (key,)).fetchone()
        return row[0] if row else None

    def by_vector(self, labels: Sequence[int]) -> dict[int, Document]:
        """Return, by label, the documents whose current vectors have these labels."""
        with storage_errors("read documents"):
            rows = database.chunked(
                self._connection,
                f"SELECT {DOCUMENT} FROM documents d WHERE d.vector_version IN",
                labels,
            )
            found: dict[int, Document] = {}
            size_bytes = 0
            for row in rows:
                document = found[row[4]] = database.document(row)
                size_bytes += len(document.metadata) + len(document.content or "")
                if size_bytes > _ANSWER_BYTES:
                    raise TooLarge(
                        f"the documents found have more than {_ANSWER_BYTES} bytes of metadata and content; ask for fewer",
                        field="k",
                    )
            return found

    def vectors(self, labels: Sequence[int]) -> dict[int, bytes]:
        """Return the vectors stored under these labels, by label."""
        with storage_errors("read vectors"):
            return database.vectors(self._connection, labels)

    def labels(self) -> Labels:
        """Return the labels of all current vectors, ascending."""
        with storage_errors("read labels"):
            rows = self._connection.execute(
                "SELECT vector_version FROM documents WHERE vector_version IS NOT NULL ORDER BY vector_version"
            )
            return np.fromiter((label for (label,) in rows), np.int64)

    def labels_between(self, first: int, end: int) -> Labels:
        """Return the labels from `first` up to but not including `end` of current vectors, ascending."""
        with storage_errors("read labels"):
            rows = self._connection.execute(
                "SELECT vector_version FROM documents WHERE vector_version >= ? AND vector_version < ?"
                " ORDER BY vector_version",
                (first, end),
            )
            return np.fromiter((label for (label,) in rows), np.int64)

    def rows_between(self, first: int, end: int, limit: int) -> tuple[Labels, Vector]:
        """Return labels[n] and vectors[n, d] of the first `limit` current ones from `first` up to, without, `end`."""
        with storage_errors("read vectors"):
            rows = self._connection.execute(
                "SELECT d.vector_version, v.vector FROM documents d JOIN vectors v USING (vector_version)"
                " WHERE d.vector_version >= ? AND d.vector_version < ? ORDER BY d.vector_version LIMIT ?",
                (first, end, limit),
            ).fetchall()
        return np.array([label for label, _ in rows], np.int64), self._matrix(vector for _, vector in rows)

    def matching(self, where: Filter) -> Labels:
        """Return the labels of all documents that `where` matches, ascending."""
        sql, parameters = filter_sql.where(where.condition, "d.metadata", self._terms.sql)
        with storage_errors("filter"):
            rows = self._connection.execute(
                f"SELECT d.vector_version FROM documents d WHERE d.vector_version IS NOT NULL AND {sql}", parameters
            )
            labels = np.fromiter((label for (label,) in rows), np.int64)
        labels.sort()
        return labels

    def integrity_problems(self) -> list[str]:
        """Return what SQLite itself finds wrong with the file, and rows that contradict each other."""
        problems = []
        with storage_errors("check"):
            found = [row[0] for row in self._connection.execute("PRAGMA integrity_check")]
            problems += [] if found == ["ok"] else found
            for text, sql in _CONTRADICTIONS.items():
                (count,) = self._connection.execute(f"SELECT count(*) FROM {sql}").fetchone()
                problems += [f"{count} {text}"] if count else []
        return problems

    def checksums(self) -> Iterator[tuple[str, int, bytes | None]]:
        """Yield each document's id, the checksum of its vector, and the vector, None where there is none.

        In a damaged database they may be of other types.
        """
        with storage_errors("read vectors"):
            yield from self._connection.execute(
                "SELECT d.id, d.vector_crc, v.vector FROM documents d LEFT JOIN vectors v USING (vector_version)"
                " WHERE d.vector_version IS NOT NULL"
            )

    def term_problems(self) -> list[str]:
        """Compare the terms of indexed fields with the metadata they are made from."""
        if not self._terms:
            return []
        with storage_errors("check"):
            stored: dict[int, set[object]] = {}
            for field, value, document in self._connection.execute("SELECT field, value, document FROM terms"):
                stored.setdefault(document, set()).add((field, value))
            rows = self._connection.execute(f"SELECT {DOCUMENT}, d.key FROM documents d")
            wrong = sum(stored.pop(row[9], set()) != self._terms.of(database.document(row)) for row in rows)
        wrong += len(stored)
        return [f"{wrong} documents have other indexed terms than their metadata"] if wrong else []

    def metadata_after(self, index_version: int) -> Iterator[tuple[int, str]]:
        """Yield label and metadata of every document that has changed after `index_version` and still is there."""
        with storage_errors("read changes"):
            yield from self._connection.execute(
                "SELECT vector_version, metadata FROM documents WHERE index_version > ? AND vector_version IS NOT NULL",
                (index_version,),
            )

    def rows(self, labels: Labels) -> Vector:
        """Return the vectors[n, d] stored under labels[n], all of which there are."""
        wanted = labels.tolist()
        found = self.vectors(wanted)
        if missing := [label for label in wanted if label not in found]:
            raise StorageUnavailable(
                f"the database is damaged: {len(missing)} vectors are missing, the first is {missing[0]}"
            )
        return self._matrix(found[label] for label in wanted)

    def scan(self) -> Iterator[tuple[Labels, Vector]]:
        """Yield labels[n] and vectors[n, d] of all documents, in blocks."""
        with storage_errors("scan"):
            cursor = self._connection.execute(
                "SELECT v.vector_version, v.vector FROM documents d JOIN vectors v USING (vector_version)"
            )
            while rows := cursor.fetchmany(_ROWS_AT_A_TIME):
                yield np.array([label for label, _ in rows], np.int64), self._matrix(vector for _, vector in rows)

    def blocks(self, labels: Labels) -> Iterator[tuple[Labels, Vector]]:
        """Yield the current vectors among `labels` as `scan` does; of dead ones the store may still hold some."""
        for start in range(0, len(labels), _ROWS_AT_A_TIME):
            with storage_errors("read vectors"):
                rows = database.chunked(
                    self._connection,
                    "SELECT v.vector_version, v.vector FROM documents d JOIN vectors v USING (vector_version)"
                    " WHERE d.vector_version IN",
                    labels[start : start + _ROWS_AT_A_TIME].tolist(),
                )
                found = dict(rows)
            yield np.fromiter(found, np.int64), self._matrix(found.values())

    def _matrix(self, blobs: Iterable[bytes]) -> Vector:
        rows = np.frombuffer(b"".join(blobs), np.uint8)
        if rows.size % (FLOAT_BYTES * self._dimension):
            raise StorageUnavailable(f"the database is damaged: a vector has not {self._dimension} numbers")
        return rows.view(np.float32).reshape(-1, self._dimension)

    def changes(
        self, span: Span, limit: int, limit_bytes: int, *, with_vectors: bool = False, with_deleted: bool = False
    ) -> Page:
        """Return the latest state of what changed in `span`: at most `limit` documents, of about `limit_bytes`.

        A document that has changed again after the span is left out: it comes with a later one. From the beginning on there
        are no deletions, for there was nothing to delete, unless `with_deleted` asks for them.
        """
        vector = "v.vector" if with_vectors else "NULL"
        alive = "" if span.origin or with_deleted else " AND d.vector_version IS NOT NULL"
        join = "LEFT JOIN vectors v USING (vector_version)" if with_vectors else ""
        with storage_errors("read changes"):
            rows = self._connection.execute(
                f"SELECT {DOCUMENT}, {vector} FROM documents d {join}"
                f" WHERE d.index_version > ? AND d.index_version <= ?{alive} ORDER BY d.index_version LIMIT ?",
                (span.after, span.through, limit + 1),
            )
            changes: list[Change] = []
            size_bytes, more = 0, False
            for row in rows:
                more = len(changes) == limit or size_bytes > limit_bytes
                if more:
                    break
                change = _net_change(database.document(row), span.origin, row[9])
                changes.append(change)
                size_bytes += change.size_bytes
        return Page(tuple(changes), changes[-1].document.index_version if more else span.through, more)

    def recorded(self, since: int) -> dict[str, Done]:
        """Return the outcomes recorded at or after `since` (microseconds since the epoch), by event id."""
        with storage_errors("read events"):
            rows = self._connection.execute("SELECT event_id, outcome FROM events WHERE at >= ?", (since,))
            return {event_id: database.DONE.decode(outcome) for event_id, outcome in rows}

    def digest(self) -> str:
        """Return a digest over all documents: ids, versions, index_versions, metadata, contents, checksums of vectors."""
        digest = hashlib.blake2b(digest_size=16)
        with storage_errors("read documents"):
            for row in self._connection.execute(
                "SELECT id, version, index_version, created, source, updated_at, metadata, content, vector_crc"
                " FROM documents WHERE vector_version IS NOT NULL ORDER BY id"
            ):
                digest.update(repr(row).encode())
        return digest.hexdigest()


def _net_change(document: Document, origin: int, vector: bytes | None) -> Change:
    if document.deleted:
        event_type = EventType.DELETE
    elif document.created > origin:
        event_type = EventType.INSERT
    else:
        event_type = EventType.UPDATE
    return Change(event_type, document, None, vector, net=origin > 0)


class Readers:
    """Connections for all who read, lent out one at a time; as many are opened as are used at once. From any thread."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self._path = path
        self._spec = spec
        self._idle: LifoQueue[Reader] = LifoQueue()
        self._closed = False

    @contextmanager
    def lend(self) -> Iterator[Reader]:
        """Lend a reader. Raises StorageUnavailable."""
        if self._closed:
            # Another collection may lie at this path by now.
            raise StorageUnavailable(f"collection {self._spec.name!r} is closed")
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = Reader(self._path, self._spec)
        try:
            yield reader
        finally:
            self._idle.put(reader)

    def close(self) -> None:
        """Close those that are not lent, and lend no more."""
        self._closed = True
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return
