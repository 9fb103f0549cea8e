"""One collection in service: its engine, writer, room and upkeep, wired together."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from gateway.bus.bus import Bus, Listener
from gateway.bus.local import LocalBus
from gateway.embed.embedder import Embedder
from gateway.engine.collection import Collection
from gateway.engine.plan import Kept
from gateway.engine.types import Answer, Applied, BatchComplete, Document, Done, Page, Span, Write
from gateway.errors import HotindexError, InvalidArgument
from gateway.ingest.commit import Committer
from gateway.ingest.queue import Bounds
from gateway.metrics import CollectionState, Metrics
from gateway.node import queries
from gateway.node.audience import Audience
from gateway.node.exchange import Info
from gateway.node.forms import Form
from gateway.node.positions import Positions
from gateway.node.upkeep import HotLimits, Timing, Upkeep, UpkeepThreads
from gateway.node.watches import Opened
from gateway.node.watching import Watching
from gateway.protocol import messages
from gateway.push.room import Room, RoomLimits, Sink

_T = TypeVar("_T")
_NICE = 10


@dataclass(frozen=True, slots=True)
class Threads:
    """The threads all collections share, by what waits for them: writers, searches, upkeep, nobody."""

    commit: Executor
    read: Executor
    upkeep: Executor
    rebuild: Executor

    @classmethod
    def start(cls, cores: int) -> Threads:
        return cls(
            ThreadPoolExecutor(max(2, cores), "commit"),
            ThreadPoolExecutor(max(2, cores), "read"),
            ThreadPoolExecutor(max(2, cores // 2), "upkeep"),
            ThreadPoolExecutor(1, "rebuild", initializer=_give_way),
        )

    def shut_down(self) -> None:
        for executor in (self.commit, self.read, self.upkeep, self.rebuild):
            executor.shutdown()


MakeBus = Callable[[Collection, Listener, Executor, Callable[[], Awaitable[None]]], Bus]
"""Makes what orders a collection's commits: (collection, listener, executor of commits, what waits for room)."""


def _give_way() -> None:
    """Let other threads have the processor first; those that this one starts inherit it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Hosted:
    """Call on the event loop, between `start` and `stop`."""

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder | None,
        threads: Threads,
        metrics: Metrics,
        bounds: Bounds,
        hot: HotLimits,
        timing: Timing,
        room: RoomLimits = RoomLimits(),
        make_bus: MakeBus = LocalBus,
        read_wait_s: float = 5.0,
    ) -> None:
        self.collection = collection
        self.embedder = embedder
        if embedder is not None:
            collection.writer.embed_here = embedder.embed_here
        self.name = collection.spec.name
        self.spec = collection.spec
        self._read_wait_s = read_wait_s
        self._threads = threads
        self._changes = metrics.changes.labels(self.name)
        self.room = Room(
            self.name,
            collection.public_epoch,
            collection.index_version,
            self.read_changes,
            room,
            collection.spec.metric,
        )
        self.positions = Positions(self.room)
        self.watching = Watching(self)
        self.listeners: list[Callable[[Applied], None]] = []
        """Called with each commit, in order."""
        self.audience: Audience | None = None
        """Who it recommends to; None where it is the companion of another, or can't."""
        self.upkeep = Upkeep(
            collection,
            UpkeepThreads(threads.upkeep, threads.rebuild),
            hot,
            timing,
            metrics.hot_waits.labels(self.name).inc,
        )
        self.bus = make_bus(collection, self, threads.commit, self.upkeep.room)
        self.committer = Committer(
            self.name, embedder, self.bus, bounds, self._gather_s, metrics.commit_seconds.observe
        )

    async def start(self) -> None:
        await self.bus.start()
        self.committer.start()
        self.upkeep.start()

    async def stop(self, *, abandon: bool = False) -> None:
        """Commit what was submitted (or, to `abandon` it, refuse what isn't committed), write a snapshot where anything
        changed, close the files.
        """
        if self.audience is not None:
            await self.audience.stop()
        await self.watching.stop()
        await (self.committer.abandon() if abandon else self.committer.stop())
        await self.bus.stop()
        await self.upkeep.stop()
        await self.read(self.collection.close)

    async def probe(self) -> str | None:
        """Return why writes fail at present, if they do."""
        await self.bus.probe()
        return None if self.bus.fault is None else f"collection {self.name!r}: {self.bus.fault}"

    @property
    def epoch(self) -> str:
        return self.collection.public_epoch

    def renewed(self) -> None:
        """Send subscribers away: they come back, and resume or start over, in the new epoch."""
        self.room.epoch = self.epoch
        self.room.abandon()

    def _gather_s(self) -> float:
        return max(self.room.gather_s, self.bus.gather_s)

    @property
    def wants_vectors(self) -> bool:
        return self.room.wants_vectors or self.watching.wants_vectors

    def publish(self, applied: Applied) -> None:
        """Pass a commit on to the room, to the watches, and to those who wait for its index_version."""
        self._changes.inc(sum(not isinstance(event, BatchComplete) for event in applied.events))
        self.room.publish(applied)
        self.watching.publish(applied)
        for listener in self.listeners:
            listener(applied)
        self.positions.advanced()
        self.upkeep.nudge()

    async def info(self) -> Info:
        collection = self.collection
        documents, purged = collection.document_count, collection.purged_through
        starts = tuple(collection.writer.starts)
        return Info(self.spec, self.epoch, self.room.head, documents, purged, starts)

    async def submit(self, write: Write, wait: bool = True) -> asyncio.Future[Done | HotindexError]:
        return await self.committer.submit(write, wait)

    async def get(self, document_id: str, *, include_vector: bool) -> tuple[Document, bytes | None] | None:
        return await self.read(partial(self.collection.get, document_id, include_vector=include_vector))

    async def search(self, command: messages.Search) -> Answer:
        await self.positions.reach(command.min_index_version, self._read_wait_s)
        if command.user_id is not None:
            return await self.users.recommend(command)
        query = await queries.query(self, command)
        answer = await self.read(partial(self.collection.search, query))
        return answer if command.min_score is None else answer.at_least(command.min_score)

    @property
    def users(self) -> Audience:
        """The users of this collection. Raises InvalidArgument where they can't be learned."""
        if self.audience is None:
            raise InvalidArgument(
                f"collection {self.name!r} has the metric {self.spec.metric}; users are learned where it is cosine or ip",
                field="collection",
            )
        return self.audience

    async def learn(self, command: messages.Learn) -> Done:
        return await self.users.learn(command)

    async def put_user(self, command: messages.PutUser) -> Done:
        return await self.users.put(command)

    async def forget_user(self, user_id: str) -> Done:
        return await self.users.forget(user_id)

    async def user(self, user_id: str) -> messages.UserMessage:
        return await self.users.describe(user_id)

    async def watch(
        self, command: messages.Watch, watch_id: str, form: Form, sink: Sink, last: bytes | None = None
    ) -> Opened:
        await self.positions.reach(command.min_index_version, self._read_wait_s)
        if command.user_id is not None:
            return await self.users.watch(command, watch_id, form, sink)
        return await self.watching.watch(command, watch_id, form, sink, last)

    def close_watches(self) -> None:
        """Tell all who watch that there is no more to come: the collection is dropped."""
        if self.audience is not None:
            self.audience.feeds.close()
        self.watching.close()

    def reaches(self, since: int, epoch: str | None) -> bool:
        return self.collection.reaches(since, epoch)

    async def read(self, work: Callable[[], _T]) -> _T:
        """Run a read of the engine in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads.read, work)

    async def read_changes(self, span: Span, limit: int, limit_bytes: int, with_vectors: bool) -> Page:
        """Return a page of the net change in `span`: at most `limit` documents, of about `limit_bytes`."""
        return await self.read(partial(self.collection.changes, span, limit, limit_bytes, with_vectors=with_vectors))

    @property
    def spared(self) -> Kept:
        """Texts that didn't have to be embedded since the start, because the store had their vectors."""
        return self.collection.writer.spared

    def state(self) -> CollectionState:
        live, dead = self.collection.graph_size
        return CollectionState(
            name=self.name,
            documents=self.collection.document_count,
            index_version=self.room.head,
            hot_rows=self.collection.hot_rows,
            graph_live=live,
            graph_dead=dead,
            rebuilding=int(self.upkeep.rebuilding),
            queued_documents=self.committer.queued_documents,
            queued_bytes=self.committer.queued_bytes,
            subscribers=len(self.room),
            subscribers_behind=self.room.behind,
            writable=int(self.bus.fault is None),
            unchanged_texts=self.collection.writer.kept.texts,
            found_texts=self.collection.writer.found.texts,
            watches=len(self.watching),
            watches_behind=self.watching.behind,
            watches_passed_over=self.watching.passed_over,
            watch_searches=self.watching.searches,
            watch_updates=self.watching.updates,
        )
