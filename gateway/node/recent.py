"""The vectors that a collection's documents got lately, for live queries that show them.

A vector never changes under its vector_version, but is deleted as soon as its document has another. So of a document as it
was a moment ago it is here, or, where it is older, still in the store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from gateway.engine.types import Applied, Change, Hit

_BYTES = 16 << 20


class RecentVectors:
    """Belongs to one thread at a time. Beyond `limit_bytes` the first ones noted go."""

    def __init__(self, limit_bytes: int = _BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._vectors: OrderedDict[int, bytes] = OrderedDict()

    def get(self, vector_version: int) -> bytes | None:
        return self._vectors.get(vector_version)

    def note_commits(self, commits: Iterable[Applied]) -> None:
        for applied in commits:
            for event in applied.events:
                if isinstance(event, Change):
                    self._note(event.document.vector_version, event.vector)

    def note_hits(self, hits: Iterable[Hit]) -> None:
        for hit in hits:
            self._note(hit.document.vector_version, hit.vector)

    def _note(self, vector_version: int | None, vector: bytes | None) -> None:
        if vector is None or vector_version is None or vector_version in self._vectors:
            return
        self._vectors[vector_version] = vector
        self._size_bytes += len(vector)
        while self._size_bytes > self._limit_bytes:
            self._size_bytes -= len(self._vectors.popitem(last=False)[1])
