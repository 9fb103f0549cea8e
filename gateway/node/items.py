"""The items that recommendations weigh, in memory as they are stored: the same ones are weighed again and again."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from gateway.engine.collection import Collection
from gateway.engine.types import Applied, Change, Document, Metric, Vector
from gateway.engine.vectors import comparable

VECTORS_BYTES = 64 << 20
"""What the vectors may take."""
_NEAR_UNIT = 1e-5
"""A squared length that is off by less is one of 1, as embedding models give it."""


class _Dated(msgspec.Struct):
    year: Any = None


_YEAR = msgspec.json.Decoder(_Dated)


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """`blob` is the vector that is stored, float32[d], `unit` the same one of unit length (one of zero stays so); `year` is
    the one the item is from, nan where unknown.
    """

    document: Document
    blob: bytes
    unit: bytes
    year: float

    @property
    def vector(self) -> Vector:
        return np.frombuffer(self.blob, np.float32)

    @property
    def size_bytes(self) -> int:
        """What the vectors take."""
        return len(self.blob) if self.unit is self.blob else 2 * len(self.blob)

    @property
    def vector_version(self) -> int:
        assert self.document.vector_version is not None, "a live document has a vector"
        return self.document.vector_version

    def as_of(self, document: Document) -> Item:
        """Return the item as the document, which has the same vector, says."""
        if document.version == self.document.version:
            return self
        return Item(document, self.blob, self.unit, year(document) or math.nan)


class Items:
    """From any thread, but for `change`, which is called on the event loop with each commit, before it is acknowledged.

    Beyond `vectors_bytes` those read first go, a fifth at once. Methods that read block, and raise StorageUnavailable.
    """

    def __init__(self, collection: Collection, vectors_bytes: int = VECTORS_BYTES) -> None:
        self.collection = collection
        self._room_bytes = vectors_bytes
        self._lock = threading.Lock()
        self._items: dict[str, Item] = {}
        self._by_vector: dict[int, Item] = {}
        self._through = 0
        """The index_version of the last commit that is taken into account."""

    def change(self, applied: Applied) -> None:
        """Forget what a commit changes."""
        with self._lock:
            self._through = applied.index_version
            for event in applied.events:
                if isinstance(event, Change):
                    self._forget(event.document.id)

    def get(self, item_id: str) -> Item | None:
        """Return an item if it is at hand. Doesn't block."""
        return self._items.get(item_id)

    def by_id(self, item_ids: Sequence[str]) -> dict[str, Item]:
        """Return those items that there are, in the order asked for."""
        found = {item_id: self._items.get(item_id) for item_id in item_ids}
        if missing := [item_id for item_id, item in found.items() if item is None]:
            found.update((item.document.id, item) for item in self._read(missing, ()))
        return {item_id: item for item_id, item in found.items() if item is not None}

    def by_vector(self, vector_versions: Iterable[int]) -> dict[int, Item]:
        """Return the items that have these vectors; those whose vectors are others by now aren't there."""
        found = {version: self._by_vector.get(version) for version in vector_versions}
        if missing := [version for version, item in found.items() if item is None]:
            found.update((item.vector_version, item) for item in self._read((), missing))
        return {version: item for version, item in found.items() if item is not None}

    def _read(self, item_ids: Sequence[str], vector_versions: Sequence[int]) -> list[Item]:
        index_version, found = self.collection.get_many(item_ids, vector_versions)
        items = [_item(document, blob) for document, blob in found]
        with self._lock:
            # Of what was read before the last commit, one that it changes may be older than what it says.
            if index_version >= self._through:
                for item in items:
                    self._keep(item)
        return items

    def _keep(self, item: Item) -> None:
        self._forget(item.document.id)
        if item.size_bytes > self._room_bytes:
            for item_id in list(islice(self._items, len(self._items) // 5 + 1)):
                self._forget(item_id)
        self._room_bytes -= item.size_bytes
        self._items[item.document.id] = self._by_vector[item.vector_version] = item

    def _forget(self, item_id: str) -> None:
        item = self._items.pop(item_id, None)
        if item is not None:
            self._room_bytes += item.size_bytes
            del self._by_vector[item.vector_version]


def year(document: Document) -> float | None:
    """Return the year that an item's metadata say it is from."""
    found = _YEAR.decode(document.metadata).year
    return float(found) if isinstance(found, int | float) and 0 < found < math.inf else None


def _item(document: Document, blob: bytes) -> Item:
    vector = np.frombuffer(blob, np.float32)
    if abs(float(vector @ vector) - 1) < _NEAR_UNIT or not vector.any():
        unit = blob
    else:
        unit = comparable(vector, Metric.COSINE).tobytes()
    return Item(document, blob, unit, year(document) or math.nan)
