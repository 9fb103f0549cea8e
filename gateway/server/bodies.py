"""The bodies of HTTP requests, within a bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Overloaded

_RETRY_S = 1.0


class Bodies:
    """Counts the bytes that bodies take, or may take, while their requests are answered. Call on the event loop."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0

    @contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Count a body inside the context. Raises Overloaded beyond the bound; a body larger than that is let in alone."""
        if size_bytes and self._bytes and self._bytes + size_bytes > self._most_bytes:
            raise Overloaded(
                f"the body has or may have {size_bytes} bytes, and those of other requests take {self._bytes}; the limit"
                f" for all together is {self._most_bytes}",
                retry_after_s=_RETRY_S,
            )
        self._bytes += size_bytes
        try:
            yield
        finally:
            self._bytes -= size_bytes
