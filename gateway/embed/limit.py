"""How large a batch may be: as the settings say, until a service shows that it takes less."""

from __future__ import annotations

from gateway.embed.model import Batch

GROW_AFTER = 64
"""After so many batches in a row that were not too large, the limit grows by a quarter, up to what the settings say. So
a limit that is too high again costs two requests more in 64.
"""

SMALL_BYTES = 64 << 10
"""A batch with fewer bytes wasn't refused for them: it had too many texts."""


class BatchLimit:
    """The limit of one service."""

    def __init__(self, configured: Batch) -> None:
        self._configured = configured
        self._accepted = 0
        self.current = configured

    def too_large(self, half: Batch) -> None:
        """A batch was refused, and both its halves were accepted, the larger of which was `half`."""
        current = self.current
        size_bytes = max(half.size_bytes, SMALL_BYTES)
        self.current = Batch(min(current.texts, half.texts), min(current.size_bytes, size_bytes))
        self._accepted = 0

    def accepted(self) -> None:
        if self.current == self._configured:
            return
        self._accepted += 1
        if self._accepted == GROW_AFTER:
            self._accepted = 0
            self.current = Batch(
                min(self._configured.texts, self.current.texts + max(1, self.current.texts // 4)),
                min(self._configured.size_bytes, self.current.size_bytes + self.current.size_bytes // 4),
            )
