"""Who waits until a collection is at an index_version."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from gateway.errors import Overloaded
from gateway.push.room import Room


class Positions:
    """Call on the event loop; `advanced` after each commit that the room was told of."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._awaited: list[tuple[int, int, asyncio.Future[None]]] = []
        self._left = 0
        self._tickets = itertools.count()

    def advanced(self) -> None:
        while self._awaited and self._awaited[0][0] <= self._room.head:
            _, _, reached = heapq.heappop(self._awaited)
            if not reached.done():
                reached.set_result(None)

    async def reach(self, index_version: int | None, within_s: float) -> None:
        """Wait until the room is at `index_version` (None: it needn't be anywhere). Raises Overloaded after `within_s`."""
        if index_version is None or index_version <= self._room.head:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._awaited, (index_version, next(self._tickets), reached))
        try:
            async with asyncio.timeout(within_s):
                await reached
        except TimeoutError:
            raise Overloaded(
                f"min_index_version {index_version} isn't applied here after {within_s:g} s;"
                f" collection {self._room.collection!r} is at {self._room.head}",
                retry_after_s=within_s,
                field="min_index_version",
            ) from None
        finally:
            self._left += 1
            if 2 * self._left > len(self._awaited):
                self._awaited = [entry for entry in self._awaited if not entry[2].done()]
                heapq.heapify(self._awaited)
                self._left = 0
