"""The node: the collections of this process, and what clients can ask of them. The edges speak to this alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import structlog

from gateway.embed.embedder import Embedder
from gateway.embed.text import build_text
from gateway.engine.checksums import Checksum, checksum
from gateway.engine.collection import PAGE_BYTES, Collection
from gateway.engine.filter import Filter
from gateway.engine.types import Answer, Document, Done, Metric, Page, Put, Span, Spec, Write
from gateway.errors import (
    Conflict,
    HotindexError,
    InvalidArgument,
    NotFound,
    StartupError,
    StorageUnavailable,
)
from gateway.ingest import intake
from gateway.ingest.commit import Bounds
from gateway.metrics import CollectionState, Metrics
from gateway.node import queries
from gateway.node.datadir import DataDirectory
from gateway.node.hosted import Hosted, Threads
from gateway.node.upkeep import HotLimits, Timing
from gateway.protocol import checks, messages
from gateway.protocol.codec import Codec
from gateway.push.events import Variant
from gateway.push.room import RoomLimits, Sink, Subscriber

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What the node needs to know of the settings."""

    node: str
    default_collection: str
    default_model: str
    timing: Timing
    idempotency_window_s: float
    read_wait_s: float
    cores: int
    hot: HotLimits
    bounds: Bounds
    room: RoomLimits


@dataclass(frozen=True, slots=True)
class Ticket:
    """A write on its way: `outcome` tells how it ended."""

    collection: str
    outcome: asyncio.Future[Done | HotindexError]

    async def done(self) -> Done:
        """Wait for the outcome; raises the HotindexError that kept the write from being applied."""
        outcome = await asyncio.shield(self.outcome)
        if isinstance(outcome, HotindexError):
            raise outcome
        return outcome


@dataclass(frozen=True, slots=True)
class Membership:
    """A subscription as it began."""

    variant: Variant
    index_version: int
    recovered: bool
    epoch: str
    join: Callable[[], Subscriber]
    """Lets the pushes begin; to be called once, right after the reply was written."""

    @property
    def collection(self) -> str:
        return self.variant.collection

    def reply(self) -> messages.Subscribed:
        return messages.Subscribed(
            collection=self.collection,
            index_version=self.index_version,
            epoch=self.epoch,
            recovered=self.recovered,
        )


class Node:
    """Call on the event loop, between `start` and `stop`. `now` gives microseconds since the epoch."""

    def __init__(
        self,
        directory: DataDirectory,
        embedders: Mapping[str, Embedder],
        options: Options,
        metrics: Metrics,
        now: Callable[[], int],
        checksum: Checksum = checksum,
    ) -> None:
        self._checksum = checksum
        self._directory = directory
        self._embedders = embedders
        self._options = options
        self._metrics = metrics
        self._now = now
        self._hosted: dict[str, Hosted] = {}
        self._threads = Threads.start(options.cores)
        self._lifecycle = asyncio.Lock()
        metrics.watch(self.states)

    @property
    def name(self) -> str:
        return self._options.node

    async def start(self) -> None:
        """Open every collection of the data directory. Raises StartupError if one can't be."""
        self._directory.sweep()
        loop = asyncio.get_running_loop()
        for name in self._directory.names():
            try:
                collection = await loop.run_in_executor(self._threads.upkeep, self._open, name)
            except (StorageUnavailable, OSError) as error:
                raise StartupError(f"collection {name!r} can't be opened: {error}") from error
            self._host(collection)

    async def stop(self) -> None:
        """Finish all writes, write snapshots, close the files."""
        await asyncio.gather(*(hosted.stop() for hosted in self._hosted.values()))
        self._hosted.clear()
        self._threads.shut_down()
        for embedder in self._embedders.values():
            await embedder.close()

    async def faults(self) -> list[str]:
        """Return why this node can't do all of its job, one sentence each."""
        found = await asyncio.gather(*(hosted.probe() for hosted in list(self._hosted.values())))
        return [fault for fault in found if fault]

    def states(self) -> Iterator[CollectionState]:
        return (hosted.state() for hosted in self._hosted.values())

    def hosted(self, name: str | None) -> Hosted:
        """Return a collection (None: the default one). Raises InvalidArgument and NotFound."""
        name = self.resolve(name)
        if name not in self._hosted:
            raise NotFound(f"no collection {name!r}", field="collection")
        return self._hosted[name]

    def names(self) -> list[str]:
        return sorted(self._hosted)

    def resolve(self, name: str | None) -> str:
        """Return the name, checked, or the default collection's. Raises InvalidArgument."""
        if name is None:
            return self._options.default_collection
        checks.collection_name(name)
        return name

    async def create(self, name: str, settings: queries.CollectionSettings) -> tuple[Hosted, bool]:
        """Make a collection unless there is one already; tell whether it was made.

        Raises InvalidArgument, and Conflict where there is one made differently.
        """
        checks.collection_name(name)
        spec = queries.spec(name, settings, self._embedders)
        async with self._lifecycle:
            if name in self._hosted:
                found = self._hosted[name].collection.spec
                if found != queries.respec(found, settings, self._embedders):
                    raise Conflict(
                        f"collection {name!r} exists with other settings: {queries.describe(found)}", field="collection"
                    )
                return self._hosted[name], False
            return await self._create(spec), True

    async def drop(self, name: str) -> None:
        """Remove a collection with everything in it. Its subscribers are told `unsubscribed`."""
        async with self._lifecycle:
            hosted = self.hosted(name)
            del self._hosted[name]
            hosted.room.close()
            await hosted.stop()
            self._metrics.forget(name)
            await hosted.read(partial(self._directory.drop, name, hosted.collection.epoch))
            log.info("collection_dropped", collection=name)

    async def _create(self, spec: Spec) -> Hosted:
        loop = asyncio.get_running_loop()
        path = self._directory.collection(spec.name)
        make = partial(Collection.create, path, spec, build_text, self._now, self._options.idempotency_window_s)
        collection = await loop.run_in_executor(self._threads.upkeep, make)
        log.info("collection_created", collection=spec.name, dimension=spec.dimension, model=spec.model)
        return self._host(collection)

    def _open(self, name: str) -> Collection:
        path = self._directory.collection(name)
        return Collection(path, build_text, self._now, self._options.idempotency_window_s, self._checksum)

    def _host(self, collection: Collection) -> Hosted:
        model = collection.spec.model
        hosted = Hosted(
            collection,
            self._embedders.get(model) if model else None,
            self._threads,
            self._metrics,
            self._options.bounds,
            self._options.hot,
            self._options.timing,
            self._options.room,
        )
        hosted.start()
        self._hosted[hosted.name] = hosted
        return hosted

    async def submit(self, command: messages.Write, size_bytes: int) -> Ticket:
        """Check a write and queue it; waits where the queue is full. Raises what is wrong with the command itself.

        Submitted one after the other, writes on one document are applied in that order.
        """
        return await self.submit_write(command.collection, intake.write(command, size_bytes))

    async def submit_write(self, name: str | None, write: Write) -> Ticket:
        name = self.resolve(name)
        hosted = self._hosted.get(name) or await self._first_write(name, write)
        intake.check(write, hosted.collection.spec)
        return Ticket(name, await hosted.committer.submit(write))

    async def _first_write(self, name: str, write: Write) -> Hosted:
        """Make the collection a write asks for that names none there is."""
        puts = [operation for operation in write.operations if isinstance(operation, Put)]
        if not puts:
            raise NotFound(f"no collection {name!r}", field="collection")
        vectors = [put.vector for put in puts if put.vector is not None]
        if vectors:
            spec = Spec(name, len(vectors[0]), Metric.COSINE)
        else:
            embedder = self._embedders[self._options.default_model]
            spec = Spec(name, embedder.dimension, Metric.COSINE, embedder.name)
        intake.check(write, spec)
        for put in puts:
            if put.vector is None and not (spec.model and (put.content or build_text(put.metadata or {}))):
                raise InvalidArgument(
                    f"document {put.id!r} has no vector, and nothing that a model of collection {name!r} could embed",
                    field="vector",
                )
        async with self._lifecycle:
            return self._hosted.get(name) or await self._create(spec)

    async def get(self, command: messages.Get) -> tuple[str, Document, bytes | None]:
        """Return the collection's name, a document, and its vector if asked for. Raises NotFound."""
        hosted = self.hosted(command.collection)
        checks.document_id(command.id)
        with_vector = "vector" in command.include
        found = await hosted.read(partial(hosted.collection.get, command.id, include_vector=with_vector))
        if found is None:
            raise queries.no_document(hosted.name, command.id)
        return hosted.name, *found

    async def search(self, command: messages.Search) -> tuple[str, Answer]:
        """Return the collection's name and the nearest documents."""
        hosted = self.hosted(command.collection)
        if command.min_index_version is not None:
            await hosted.reach(command.min_index_version, self._options.read_wait_s)
        query = await queries.query(hosted, command)
        return hosted.name, await hosted.read(partial(hosted.collection.search, query))

    async def changes(
        self, name: str, since: int, epoch: str | None, limit: int, *, with_vectors: bool
    ) -> tuple[Hosted, Page | None]:
        """Return a page of the net change after `since`; None where it can't be given in full."""
        hosted = self.hosted(name)
        if not hosted.collection.reaches(since, epoch):
            return hosted, None
        return hosted, await hosted.read_changes(Span(since, since, hosted.room.head), limit, PAGE_BYTES, with_vectors)

    async def snapshot(self, name: str) -> int:
        """Write a snapshot now; return the index_version it was taken at."""
        return await self.hosted(name).upkeep.snapshot()

    def subscribe(self, command: messages.Subscribe, codec: Codec, sink: Sink, *, sse: bool = False) -> Membership:
        """Check a subscription, and prepare it to begin at this moment. `sse` has it written as Server-Sent Events."""
        hosted = self.hosted(command.collection)
        if command.since is not None:
            checks.between(command.since, 0, 2**63 - 1, "since")
        where = Filter(command.filter) if command.filter else None
        variant = Variant(
            hosted.name,
            codec,
            where,
            content="content" in command.include,
            vector="vector" in command.include,
            batch=command.batch,
            sse=sse,
            caught_up=command.caught_up,
        )
        collection = hosted.collection
        recovered = command.since is not None and (
            command.since == 0 or collection.reaches(command.since, command.epoch)
        )
        since = command.since if recovered else None
        join = partial(hosted.room.join, variant, sink, since)
        return Membership(variant, hosted.room.head, recovered, collection.epoch, join)

    def unsubscribe(self, name: str, subscriber: Subscriber) -> None:
        if name in self._hosted:
            self._hosted[name].room.leave(subscriber)
