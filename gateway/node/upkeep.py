"""What one collection needs beside its commits: hot rows moved to the graph, the log copied, snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from gateway.engine.collection import Collection
from gateway.errors import StorageUnavailable
from gateway.faults import internal

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_GENTLE_ROWS = 8
_GENTLE_PAUSE_S = 0.004
_HURRY_ROWS = 128


@dataclass(frozen=True, slots=True)
class HotLimits:
    """Rows beyond `target` are moved to the graph; with `limit` rows, commits wait for the mover.

    Up to twice the target they are moved a few at a time, with pauses: an insertion is a core's work, and where cores are
    few it is the events that would wait for it. Beyond that, at full speed.
    """

    target: int = 1024
    limit: int = 32_768


class Upkeep:
    """Call on the event loop, between `start` and `stop`."""

    def __init__(self, collection: Collection, executor: Executor, hot: HotLimits, snapshot_interval_s: float) -> None:
        self._collection = collection
        self._executor = executor
        self._hot = hot
        self._snapshot_interval_s = snapshot_interval_s
        self._needed = asyncio.Event()
        self._moved = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._needed.set()
        self._task = asyncio.create_task(self._run(), name=f"upkeep {self._collection.spec.name}")

    async def stop(self) -> None:
        """End, after a last snapshot where anything has changed since the one before."""
        self._stopping = True
        self._needed.set()
        if self._task is not None:
            await self._task

    def nudge(self) -> None:
        """Tell that there was a commit."""
        if self._collection.hot_rows > self._hot.target or self._collection.needs_tidying:
            self._needed.set()

    async def room(self) -> None:
        """Wait until the hot buffer has room for a commit."""
        while self._collection.hot_rows >= self._hot.limit:
            self._moved.clear()
            self._needed.set()
            await self._moved.wait()

    async def snapshot(self) -> int:
        """Write a snapshot now; return the index_version it was taken at. Raises StorageUnavailable."""
        async with self._one_at_a_time:
            return await self._in_thread(self._collection.write_snapshot)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._snapshot_interval_s
        while not self._stopping:
            try:
                async with asyncio.timeout_at(due):
                    await self._needed.wait()
            except TimeoutError:
                due = loop.time() + self._snapshot_interval_s
                await self._snapshot_if_changed()
            self._needed.clear()
            try:
                await self._catch_up()
            except Exception as error:  # upkeep goes on with the next nudge; without it commits would come to wait
                internal(error, collection=self._collection.spec.name)
        await self._snapshot_if_changed()

    async def _catch_up(self) -> None:
        while self._collection.hot_rows > self._hot.target and not self._stopping:
            hurry = self._collection.hot_rows > 2 * self._hot.target
            async with self._one_at_a_time:
                await self._in_thread(partial(self._collection.move, _HURRY_ROWS if hurry else _GENTLE_ROWS))
            self._moved.set()
            if not hurry:
                await asyncio.sleep(_GENTLE_PAUSE_S)
        if self._collection.needs_tidying:
            async with self._one_at_a_time:
                await self._in_thread(self._collection.tidy)

    async def _snapshot_if_changed(self) -> None:
        if not self._collection.changed_since_snapshot:
            return
        try:
            await self.snapshot()
        except StorageUnavailable as error:
            log.warning("snapshot_failed", collection=self._collection.spec.name, reason=error.message)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
