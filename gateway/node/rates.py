"""How fast documents may be written."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from gateway.errors import RateLimited
from gateway.node.served import Served
from gateway.protocol.bucket import TokenBucket


class WriteRates:
    """A limit of each collection's own: documents a second on average, a second's worth at once; 0 is no limit.

    A bucket goes with its collection. `now` gives microseconds since the epoch.
    """

    def __init__(self, documents_per_s: float, now: Callable[[], int]) -> None:
        self._documents_per_s = documents_per_s
        self._now = now
        self._buckets: WeakKeyDictionary[Served, TokenBucket] = WeakKeyDictionary()

    def take(self, served: Served, documents: int) -> None:
        """Let so many documents be written, or raise RateLimited."""
        if not self._documents_per_s:
            return
        bucket = self._buckets.get(served)
        if bucket is None:
            bucket = self._buckets[served] = TokenBucket(self._documents_per_s, self._now)
        if wait_s := bucket.take(documents):
            raise RateLimited(
                f"{documents} more documents would be over the {self._documents_per_s:g} a second that may be written to"
                f" collection {served.name!r}",
                retry_after_s=wait_s,
            )
