"""A lock for one graph: searches share it, its writer has it alone, and they take turns.

hnswlib doesn't allow a search beside an insertion. The writer's holds are short (a chunk of insertions), and after each
hold all searches that waited go before its next one, so that neither side starves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Never taken on the event loop: waiting blocks the thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._searching = 0
        self.searches_waiting = 0
        self._searches_due = 0
        self._writing = False
        self._writers_waiting = 0
        self._searched_at = 0.0

    @property
    def idle_s(self) -> float:
        """The time since the last search."""
        return time.monotonic() - self._searched_at

    @contextmanager
    def search(self) -> Iterator[None]:
        with self._changed:
            self._searched_at = time.monotonic()
            if self._writing or (self._writers_waiting and not self._searches_due):
                self.searches_waiting += 1
                self._changed.wait_for(lambda: not self._writing and (self._searches_due or not self._writers_waiting))
                self.searches_waiting -= 1
                self._searches_due = max(0, self._searches_due - 1)
            self._searching += 1
        try:
            yield
        finally:
            with self._changed:
                self._searching -= 1
                if not self._searching:
                    self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        with self._changed:
            self._writers_waiting += 1
            self._changed.wait_for(lambda: not (self._writing or self._searching or self._searches_due))
            self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._searches_due = self.searches_waiting
                self._changed.notify_all()
