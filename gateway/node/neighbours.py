"""What the index finds near vectors that are asked for again and again, kept while the collection stays as it is."""

from __future__ import annotations

from itertools import islice

from gateway.engine.collection import Collection
from gateway.engine.index import Found
from gateway.engine.search import Located
from gateway.engine.types import Vector

_CAPACITY = 8192


class Neighbours:
    """Belongs to one thread at a time. At the bound those found first go, half of them at once."""

    def __init__(self, collection: Collection, k: int, ef: int) -> None:
        self._collection = collection
        self._k = k
        self._ef = ef
        self._index_version = -1
        self._found: dict[bytes, Found] = {}

    def nearest(self, queries: Vector) -> Located:
        """Return what `Collection.nearest` does for queries[n, d]. Blocks."""
        index_version = self._collection.index_version
        if index_version != self._index_version:
            self._index_version = index_version
            self._found.clear()
        keys = [query.tobytes() for query in queries]
        missing = [i for i, key in enumerate(keys) if key not in self._found]
        if missing:
            located = self._collection.nearest(queries[missing], self._k, self._ef)
            if not located.whole or located.index_version != index_version:
                return self._collection.nearest(queries, self._k, self._ef)
            if len(self._found) + len(missing) > _CAPACITY:
                for key in [key for key in islice(self._found, _CAPACITY // 2) if key not in keys]:
                    del self._found[key]
            self._found.update((keys[i], found) for i, found in zip(missing, located.found, strict=True))
        return Located(index_version, [self._found[key] for key in keys], whole=True)
