"""What one collection needs beside its commits: hot rows moved to the graph, graphs made anew, the database kept small,
snapshots, old deletions forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from gateway.engine.collection import Collection
from gateway.errors import StorageUnavailable
from gateway.faults import internal

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_QUIET_S = 0.5
_RETRY_S = 1.0
_PURGE_INTERVAL_S = 3600.0
_NOTE_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class HotLimits:
    """Rows beyond `target` are moved to the graph; with `limit` rows, commits wait for the mover."""

    target: int = 1024
    limit: int = 32_768


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds: between snapshots of a changing graph; how long deletions are remembered."""

    snapshot_interval_s: float
    tombstone_retention_s: float


@dataclass(frozen=True, slots=True)
class _Pace:
    """An insertion is a core's work, and where cores are few it is the events that wait for it. So the mover takes a few
    rows at a time, with pauses, while there is time, and hurries on all cores only as the hot buffer grows long."""

    rows: int
    pause_s: float
    hurry: bool = False


_LEAST, _MOST = 3, 16
_PAUSE_S = 0.002
_BRISK = _Pace(_MOST, _PAUSE_S)
_HURRY = _Pace(1024, 0.0, hurry=True)


@dataclass(frozen=True, slots=True)
class UpkeepThreads:
    """`upkeep` for what is short; `rebuild` makes graphs, one at a time in the process, so that memory is bounded."""

    upkeep: Executor
    rebuild: Executor


class Upkeep:
    """Call on the event loop, between `start` and `stop`. `waited_s` is told how long a commit waited for the mover."""

    def __init__(
        self,
        collection: Collection,
        threads: UpkeepThreads,
        hot: HotLimits,
        timing: Timing,
        waited_s: Callable[[float], None],
    ) -> None:
        self._collection = collection
        self._threads = threads
        own_target = collection.spec.hot_rows
        self._target = hot.target if own_target is None else own_target
        self._limit = max(hot.limit, 2 * self._target)
        self._timing = timing
        self._waited_s = waited_s
        self._loop = asyncio.get_running_loop()
        self._needed = asyncio.Event()
        self._moved = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._stopping = False
        self._worked_in_quiet = False
        self._rebuilding: asyncio.Task[None] | None = None
        self._checkpointing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._needed.set()
        self._task = asyncio.create_task(self._run(), name=f"upkeep {self._collection.spec.name}")

    async def stop(self) -> None:
        """End, after a last snapshot where one is worth it."""
        self._stopping = True
        self._needed.set()
        if self._task is not None:
            await self._task

    @property
    def rebuilding(self) -> bool:
        return self._rebuilding is not None

    @property
    def settled(self) -> bool:
        """Whether all is in the graph that is to be, and that needn't be made anew."""
        return not (self._surplus(0) or self.rebuilding or self._collection.needs_rebuild)

    def nudge(self) -> None:
        """Tell that there was a commit."""
        self._needed.set()

    async def room(self) -> None:
        """Wait until the hot buffer has room for a commit."""
        if self._collection.hot_rows < self._limit:
            return
        started = self._loop.time()
        while self._collection.hot_rows >= self._limit:
            self._moved.clear()
            self._needed.set()
            await self._moved.wait()
        self._waited_s(self._loop.time() - started)

    async def snapshot(self) -> int:
        """Write a snapshot now; return the index_version it was taken at. Raises StorageUnavailable."""
        async with self._one_at_a_time:
            return await self._in_thread(self._collection.write_snapshot)

    async def _run(self) -> None:
        snapshot_due = self._loop.time() + self._timing.snapshot_interval_s
        purge_due = self._loop.time()
        noted, note_due = self._collection.index_version, 0.0
        while not self._stopping:
            due = min(snapshot_due, purge_due)
            try:
                async with asyncio.timeout_at(min(due, self._quiet_due())):
                    await self._needed.wait()
            except TimeoutError:
                pass
            self._needed.clear()
            if self._loop.time() >= snapshot_due:
                snapshot_due = self._loop.time() + self._timing.snapshot_interval_s
                await self._guarded(self._snapshot_if_needed())
            if self._loop.time() >= purge_due:
                purge_due = self._loop.time() + _PURGE_INTERVAL_S
                await self._guarded(self._purge())
            if self._loop.time() >= note_due and noted != self._collection.index_version:
                noted, note_due = self._collection.index_version, self._loop.time() + _NOTE_INTERVAL_S
                await self._guarded(self._in_thread(self._collection.note_lineage))
            await self._guarded(self._work())
        for task in (self._rebuilding, self._checkpointing):
            if task is not None:
                await task
        await self._guarded(self._snapshot_if_needed())

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Upkeep goes on whatever fails in it: without it commits would come to wait."""
        try:
            await work
        except StorageUnavailable as error:
            log.warning("upkeep_failed", collection=self._collection.spec.name, reason=error.message)
            await self._pause()
        except Exception as error:  # as above
            internal(error, collection=self._collection.spec.name)
            await self._pause()

    async def _pause(self) -> None:
        if not self._stopping:
            await asyncio.sleep(_RETRY_S)
            self._needed.set()

    def _quiet_due(self) -> float:
        """The time at which what waits for the writes to pause can be done; infinity where nothing does."""
        collection = self._collection
        waits = self._surplus(0) or collection.needs_tidying(quiet=True) or collection.needs_rebuild
        if not waits or self._worked_in_quiet:
            return float("inf")
        # Timers may fire a little early: not at once, lest this goes round and round until the moment has come.
        return self._loop.time() + max(0.002, _QUIET_S - collection.idle_s)

    @property
    def _quiet(self) -> bool:
        return self._collection.idle_s >= _QUIET_S

    def _surplus(self, target: int) -> int:
        """Return how many hot rows are to be moved. A collection that `target` holds wholly needs no graph."""
        live, dead = self._collection.graph_size
        if live + dead == 0 and self._collection.hot_rows <= self._target:
            return 0
        return self._collection.hot_rows - target

    async def _work(self) -> None:
        """Do a little of what is to be done."""
        if self._stopping:
            return
        self._worked_in_quiet = self._quiet
        if self._collection.needs_checkpoint and self._checkpointing is None:
            # It waits for the disk for long; the mover needn't.
            self._checkpointing = asyncio.create_task(self._guarded(self._in_thread(self._collection.checkpoint)))
            self._checkpointing.add_done_callback(self._checkpointed)
        if self._collection.needs_tidying(quiet=self._quiet):
            self._needed.set()
            await self._alone(self._collection.tidy)
        rows = self._collection.hot_rows  # before idle_s is read: of these, none is new where it is long
        target = 0 if self._quiet else self._target
        if self.rebuilding:
            # What is moved now has to be moved again when the fresh graph is there, and insertion into a graph with many
            # dead is slow.
            target = max(target, self._limit * 7 // 8)
        surplus = min(rows - target, self._surplus(target))
        if surplus > 0:
            self._needed.set()
            pace = self._pace(target)
            await self._alone(partial(self._collection.move, min(pace.rows, surplus), hurry=pace.hurry))
            self._moved.set()
            await asyncio.sleep(pace.pause_s)
        elif self._collection.needs_moving:
            await self._alone(partial(self._collection.move, 1))
        self._rebuild_if_needed()

    def _pace(self, target: int) -> _Pace:
        rows = self._collection.hot_rows
        if self._quiet:
            return _HURRY if self._collection.unsearched else _BRISK
        if rows > max(8 * self._target, self._limit // 4, target):
            return _HURRY
        # The mover finds its balance where it takes just as many rows at a time as keep up with the writes.
        return _Pace(max(_LEAST, min(_MOST, _LEAST * rows // max(1, self._target))), _PAUSE_S)

    def _rebuild_if_needed(self) -> None:
        collection = self._collection
        needed = collection.needs_rebuild_now or (self._quiet and collection.needs_rebuild)
        if needed and self._rebuilding is None and not self._stopping:
            self._rebuilding = asyncio.create_task(self._guarded(self._rebuild()))
            self._rebuilding.add_done_callback(self._rebuilt)

    async def _rebuild(self) -> None:
        name = self._collection.spec.name
        live, dead = self._collection.graph_size
        started = self._loop.time()
        log.info("rebuild_started", collection=name, live=live, dead=dead)
        rebuild = partial(self._collection.rebuild, lambda: self._stopping)
        finish = await self._loop.run_in_executor(self._threads.rebuild, rebuild)
        if finish is None:
            return
        await self._alone(finish)
        log.info("rebuild_finished", collection=name, seconds=round(self._loop.time() - started, 3))

    def _checkpointed(self, _: asyncio.Task[None]) -> None:
        self._checkpointing = None

    def _rebuilt(self, _: asyncio.Task[None]) -> None:
        self._rebuilding = None
        self._needed.set()

    async def _purge(self) -> None:
        purge = partial(self._collection.purge, int(self._timing.tombstone_retention_s * 1e6))
        if purged := await self._alone(purge):
            log.info("deletions_forgotten", collection=self._collection.spec.name, count=purged)

    async def _snapshot_if_needed(self) -> None:
        if self._collection.needs_snapshot:
            await self.snapshot()

    async def _alone(self, work: Callable[[], _T]) -> _T:
        async with self._one_at_a_time:
            return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await self._loop.run_in_executor(self._threads.upkeep, work)
