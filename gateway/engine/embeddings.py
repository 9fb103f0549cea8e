"""Vectors of texts that were embedded before: what was paid for once is not asked for again.

A vector depends on the model and the text alone, so it is kept under a hash of both. Which to keep follows from what is
committed: whenever a document gets a vector that embeds its text, the two are noted. They are written together, with every
so many of them, in a commit's own transaction: one by one they were half of what a small commit writes. What a crash takes
of them is found again in the documents themselves. The oldest go first; what is found again in the older half counts as
new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from gateway.engine import database
from gateway.engine.database import FLOAT_BYTES, Connection
from gateway.engine.types import BatchComplete, Change, Source, Spec

WRITTEN_TOGETHER = 512

_HASH_BYTES = 16
_ROW_BYTES = 96
"""About what an entry takes beside its vector."""


_LATEST = """
SELECT d.content, v.vector FROM documents d JOIN vectors v ON v.vector_version = d.vector_version
WHERE d.source != ? AND d.content IS NOT NULL
ORDER BY d.index_version DESC LIMIT ?
"""


class Embeddings:
    """The table `embeddings` of a collection, of at most `limit_bytes`. Methods belong to the store's thread, if not else
    said.
    """

    def __init__(self, connection: Connection, spec: Spec, limit_bytes: int) -> None:
        self._connection = connection
        self._salt = blake2b((spec.model_identity or spec.model or "").encode(), digest_size=_HASH_BYTES)
        self._row_bytes = spec.dimension * FLOAT_BYTES + _ROW_BYTES
        self._most = limit_bytes // self._row_bytes if spec.model else 0
        (last,) = connection.execute("SELECT coalesce(max(position), 0) FROM embeddings").fetchone()
        self._last: int = last
        self._again: set[bytes] = set()
        """Keys found in the older half."""
        self._fresh: dict[bytes, bytes] = dict(self._latest()) if self._most else {}
        """What isn't written yet."""
        self._in_transaction = False

    def _latest(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what the documents changed last embed: what of it a crash left unwritten isn't known."""
        rows = self._connection.execute(_LATEST, (int(Source.VECTOR), WRITTEN_TOGETHER))
        yield from ((self.key(content), vector) for content, vector in rows)

    def find(self, texts: Sequence[str]) -> dict[str, bytes]:
        """Return the vectors of those of `texts` that are known. Raises sqlite3.Error."""
        if not self._most:
            return {}
        keys = {self.key(text): text for text in texts}
        rows = database.chunked(
            self._connection, "SELECT text_hash, vector, position FROM embeddings WHERE text_hash IN", list(keys)
        )
        found = {text: self._fresh[key] for key, text in keys.items() if key in self._fresh}
        for key, vector, position in rows:
            found[keys[key]] = vector
            if position < self._last - self._most // 2:
                self._again.add(key)
        return found

    def note(self, events: Iterable[Change | BatchComplete]) -> int:
        """Note what the documents of a commit embed, within its transaction; return the bytes written.

        What was written counts as such once `written` is called. Raises sqlite3.Error.
        """
        if not self._most:
            return 0
        self._fresh.update(self._pairs(events))
        return self.write() if len(self._fresh) >= WRITTEN_TOGETHER else 0

    def write(self) -> int:
        """Write what was noted, within a transaction; return the bytes."""
        pairs = dict(self._fresh)
        again = [(key, pairs.pop(key)) for key in self._again & pairs.keys()]
        self._connection.executemany("INSERT OR REPLACE INTO embeddings(text_hash, vector) VALUES(?, ?)", again)
        self._connection.executemany("INSERT OR IGNORE INTO embeddings(text_hash, vector) VALUES(?, ?)", pairs.items())
        if pairs or again:
            (self._last,) = self._connection.execute("SELECT max(position) FROM embeddings").fetchone()
            self._connection.execute("DELETE FROM embeddings WHERE position <= ?", (self._last - self._most,))
        self._in_transaction = True
        return (len(pairs) + len(again)) * self._row_bytes

    def written(self) -> None:
        """Take note that the transaction is committed."""
        if self._in_transaction:
            self._in_transaction = False
            self._fresh.clear()
            self._again.clear()

    def _pairs(self, events: Iterable[Change | BatchComplete]) -> Iterator[tuple[bytes, bytes]]:
        for event in events:
            if not isinstance(event, Change) or event.vector is None:
                continue
            document = event.document
            embeds = document.source is not Source.VECTOR and document.content is not None
            # A change that kept the vector may have been read with it.
            if embeds and document.vector_version == document.index_version:
                assert document.content is not None, "it embeds something"
                yield self.key(document.content), event.vector

    def unwritten(self, key: bytes) -> bytes | None:
        """Return a vector that waits to be written. From any thread."""
        return self._fresh.get(key)

    def key(self, text: str) -> bytes:
        """Return what a text is found by. From any thread."""
        key = self._salt.copy()
        key.update(b"\0" + text.encode())
        return key.digest()
