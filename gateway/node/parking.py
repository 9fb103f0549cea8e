"""Watches apart until their sockets take something again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from gateway.push.room import Sink


class Parked(Protocol):
    @property
    def sink(self) -> Sink: ...


_P = TypeVar("_P", bound=Parked)


class Parking(Generic[_P]):
    """Call on the event loop; `stop` comes last. `again` is called with each watch whose socket has drained. One whose
    connection is gone ends with that.
    """

    def __init__(self, again: Callable[[_P], None]) -> None:
        self._again = again
        self._parked: dict[Sink, set[_P]] = {}
        self._drains: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return the number of watches parked."""
        return sum(map(len, self._parked.values()))

    def holds(self, sink: Sink) -> bool:
        """Tell whether watches wait for a socket."""
        return sink in self._parked

    def park(self, watch: _P) -> None:
        """Leave a watch alone until its socket takes something again."""
        if watch.sink in self._parked:
            self._parked[watch.sink].add(watch)
            return
        self._parked[watch.sink] = {watch}
        task = asyncio.create_task(self._drain(watch.sink))
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    async def stop(self) -> None:
        """Wait for sockets no more."""
        for drain in self._drains:
            drain.cancel()
        if self._drains:
            await asyncio.wait(self._drains)

    async def _drain(self, sink: Sink) -> None:
        try:
            there = await sink.drained()
        finally:
            parked = self._parked.pop(sink)
        if there:
            for watch in parked:
                self._again(watch)
