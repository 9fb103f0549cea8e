"""The node: the collections of this process, and what clients can ask of them. The edges speak to this alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial

import structlog

from gateway.bus.agreement import State
from gateway.embed.catalog import Models
from gateway.engine import lives
from gateway.engine.checksums import Checksum, checksum
from gateway.engine.collection import PAGE_BYTES
from gateway.engine.filter import Filter
from gateway.engine.replay import Copy
from gateway.engine.text import build_text
from gateway.engine.types import Answer, Document, Done, Metric, Page, Put, Span, Spec, Write
from gateway.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    Overloaded,
)
from gateway.ingest import intake
from gateway.metrics import CollectionState, Metrics, ModelState, RelayState
from gateway.node import answering, companions, exchange, interactions, queries
from gateway.node.alone import Cluster, SingleNode
from gateway.node.datadir import DataDirectory
from gateway.node.exchange import Info
from gateway.node.forms import ForClient
from gateway.node.hosted import Hosted
from gateway.node.hosting import Hosting
from gateway.node.lending import Lending
from gateway.node.rates import WriteRates
from gateway.node.registry import Holding, Life
from gateway.node.relaying import Relaying
from gateway.node.remote import Remote
from gateway.node.served import Served
from gateway.node.values import Membership, Options, Ticket
from gateway.node.watches import Opened
from gateway.protocol import checks, messages
from gateway.protocol.codec import MSGPACK, Codec
from gateway.push.events import Variant
from gateway.push.room import Sink, Subscriber

log = structlog.get_logger(__name__)


class Node:
    """Call on the event loop, between `start` and `stop`. `now` gives microseconds since the epoch."""

    def __init__(
        self,
        directory: DataDirectory,
        models: Models,
        options: Options,
        metrics: Metrics,
        now: Callable[[], int],
        checksum: Checksum = checksum,
        cluster: Cluster | None = None,
    ) -> None:
        self._models = models
        self._options = options
        self._metrics = metrics
        self.now = now
        self.cluster = cluster or SingleNode()
        self._hosting = Hosting(directory, models, options, metrics, now, checksum, self.cluster)
        self._remotes: dict[str, Remote] = {}
        self._rates = WriteRates(options.writes_per_s, now)
        metrics.watch(self.states, self.relays, self.models)

    @property
    def name(self) -> str:
        return self._options.node

    async def start(self) -> None:
        """Open every collection of the data directory. Raises StartupError if one can't be."""
        await self._hosting.start()

    async def stop(self) -> None:
        """Finish all writes, write snapshots, close the files."""
        async with self._hosting.changing:
            await asyncio.gather(*(remote.close() for remote in self._remotes.values()))
            self._remotes.clear()
            await self._hosting.stop()
        await self._models.close()

    async def faults(self) -> list[str]:
        """Return why this node can't do all of its job, one sentence each."""
        found = await asyncio.gather(*(hosted.probe() for hosted in self._hosting))
        return [fault for fault in [self.cluster.fault, *found] if fault]

    def states(self) -> Iterator[CollectionState]:
        return (hosted.state() for hosted in self._hosting)

    def relaying(self) -> Iterator[Relaying]:
        """Return what is watched here in collections that others host."""
        return (remote.relaying for remote in self._remotes.values())

    def relays(self) -> Iterator[RelayState]:
        return (relaying.state() for relaying in self.relaying())

    def models(self) -> list[ModelState]:
        """Return what was asked of each model, and what was spared."""
        return self._models.states((hosted.spec.model, hosted.spared) for hosted in self._hosting)

    def hosted(self, name: str | None) -> Hosted:
        """Return a collection (None: the default one). Raises InvalidArgument and NotFound."""
        return self._here(self.resolve(name))

    def _here(self, name: str) -> Hosted:
        if (hosted := self._hosting.get(name)) is not None:
            return hosted
        if name in self._remotes or name in self.cluster.names():
            raise InvalidArgument(f"collection {name!r} is hosted by other nodes; ask one of them", field="collection")
        raise NotFound(f"no collection {name!r}", field="collection")

    async def served(self, name: str | None) -> Served:
        """Return a collection (None: the default one), hosted here or elsewhere. Raises InvalidArgument and NotFound,
        Overloaded where it is elsewhere and can't be reached, and StorageUnavailable while it isn't known whether it is.
        """
        return await self._serve(self.resolve(name))

    async def _serve(self, name: str) -> Served:
        if (hosted := self._hosting.get(name)) is not None:
            return hosted
        remote = self._remotes.get(name)
        if remote is not None and not remote.ended:
            return remote
        if not self.cluster.exists(name):
            raise NotFound(f"no collection {name!r}", field="collection")
        return await self._reach_out(name)

    async def _reach_out(self, name: str) -> Served:
        """Serve a collection that others host."""
        async with self._hosting.changing:
            remote = self._remotes.get(name)
            if name not in self._hosting and (remote is None or remote.ended):
                await self._let_go(name)
                await self._open_remote(name)
        return self._hosting.get(name) or self._remotes[name]

    async def _open_remote(self, name: str) -> None:
        calls = self.cluster.calls(name)
        if calls is None:
            raise Overloaded(f"no node that hosts collection {name!r} is there", retry_after_s=1.0)
        info = await calls.call("info", b"", exchange.decode_info)
        options, observe_s = self._options, self._metrics.commit_seconds.observe
        remote = Remote(calls, info, options.bounds, options.room, observe_s, self.now, options.read_wait_s)
        await remote.open()
        self._remotes[name] = remote

    async def _let_go(self, name: str) -> None:
        """Forget a collection that others host."""
        if name in self._remotes:
            await self._remotes.pop(name).close()

    async def infos(self) -> list[Info]:
        """Return all collections, hosted here or elsewhere."""
        infos: list[Info] = []
        names = {*(hosted.name for hosted in self._hosting), *self._remotes, *self.cluster.names()}
        for name in sorted(name for name in names if not companions.is_companion(name)):
            try:
                infos.append(await (await self.served(name)).info())
            except NotFound:
                continue  # dropped a moment ago
        return infos

    def resolve(self, name: str | None) -> str:
        """Return the name, checked, or the default collection's. Raises InvalidArgument."""
        if name is None:
            return self._options.default_collection
        checks.collection_name(name)
        return name

    async def create(self, name: str, settings: queries.CollectionSettings) -> tuple[Served, bool]:
        """Make a collection unless there is one already; tell whether it was made.

        Raises InvalidArgument, and Conflict where there is one made differently.
        """
        checks.collection_name(name)
        try:
            served = await self.served(name)
        except NotFound:
            served, made = await self.make(queries.spec(name, settings, self._models)), True
        else:
            made = False
        if served.spec != queries.respec(served.spec, settings, self._models):
            raise Conflict(
                f"collection {name!r} exists with other settings: {queries.describe(served.spec)}", field="collection"
            )
        return served, made

    async def make(self, spec: Spec) -> Served:
        """Make a collection, here or at a node that hosts it, unless there is one by now, which may have another spec.

        Raises Overloaded.
        """
        if not self.cluster.hosts(spec.name):
            calls = self.cluster.calls(spec.name)
            if calls is None:
                raise Overloaded(f"no node that hosts collection {spec.name!r} can be reached", retry_after_s=1.0)
            await calls.call("make", exchange.encode(queries.settings_of(spec)), bytes)
            return await self._reach_out(spec.name)
        async with self._hosting.changing:
            return self._hosting.get(spec.name) or await self._hosting.create(spec)

    async def drop(self, name: str) -> None:
        """Remove a collection with everything in it. Its subscribers are told `unsubscribed`, its watches `unwatched`."""
        served, users = await self.served(name), companions.users_of(name)
        with suppress(NotFound):
            await self._serve(users)
        async with self._hosting.changing:
            # The users first, so that no other collection of this name can come into them; and both at once, so that nobody
            # is learned in between who would make them anew.
            companion = self._hosting.get(users) or self._remotes.get(users)
            if companion is not None:
                await self._drop(companion)
            await self._drop(served)

    async def _drop(self, served: Served) -> None:
        name = served.name
        await self.cluster.drop(name, lives.life(served.epoch))
        if (hosted := self._hosting.get(name)) is not None:
            await self._hosting.remove(hosted)
        elif name in self._remotes:
            self._remotes[name].dropped()
            await self._let_go(name)

    # What the cluster asks of this node.

    def holdings(self) -> dict[str, Holding]:
        return self._hosting.holdings()

    async def join(self, life: Life, state: State, copies: AsyncIterator[Copy] | None) -> None:
        name = life.spec.name
        await self._hosting.copy(life, state, copies)
        async with self._hosting.changing:
            if name not in self._hosting:
                hosted = await self._hosting.put_in_place(name)
                await self._let_go(name)
                log.info("joined", collection=name, index_version=hosted.collection.index_version)

    async def replace(self, name: str, state: State, agreed: int, copies: AsyncIterator[Copy] | None) -> None:
        await self._hosting.replace(name, state, agreed, copies)

    async def leave(self, name: str) -> None:
        async with self._hosting.changing:
            if (hosted := self._hosting.get(name)) is not None:
                await self._hosting.remove(hosted)

    def followed(self) -> dict[str, str]:
        return {name: lives.life(remote.epoch) for name, remote in self._remotes.items() if not remote.ended}

    def unfollow(self, name: str, epoch: str) -> None:
        if self.followed().get(name) == epoch:
            self._remotes[name].dropped()

    async def learn(self, command: messages.Learn) -> tuple[str, Done]:
        """Learn what a user did; return the collection's name, and what became of it once it is on disk."""
        name = self.resolve(command.collection)
        try:
            served = await self._serve(name)
        except NotFound:
            item = interactions.new_item(interactions.event(command, self._options.vocabulary, self.now()))
            if item is None:
                raise
            served = await self._first_write(name, item)
        return name, await served.learn(command)

    async def submit(self, command: messages.Write, size_bytes: int, *, wait: bool = True) -> Ticket:
        """Check a write and queue it; where the queue is full it waits, or, without `wait`, raises Overloaded. Raises
        RateLimited, and what is wrong with the command itself.

        Submitted one after the other, writes on one document are applied in that order.
        """
        return await self.submit_write(command.collection, intake.write(command, size_bytes), wait=wait)

    async def submit_write(self, name: str | None, write: Write, *, wait: bool = True) -> Ticket:
        name = self.resolve(name)
        served = self._hosting.get(name) or await self._to_write_to(name, write)
        intake.check(write, served.spec)
        self._rates.take(served, len(write.operations))
        return Ticket(name, await served.submit(write, wait))

    async def _to_write_to(self, name: str, write: Write) -> Served:
        try:
            return await self.served(name)
        except NotFound:
            return await self._first_write(name, write)

    async def _first_write(self, name: str, write: Write) -> Served:
        """Make the collection a write asks for that names none there is."""
        puts = [operation for operation in write.operations if isinstance(operation, Put)]
        if not puts:
            raise NotFound(f"no collection {name!r}", field="collection")
        first = intake.first_puts(write, name)
        vectors = [put.vector for put in puts if put.vector is not None]
        spec = Spec(name, len(vectors[0]), Metric.COSINE) if vectors else queries.default_spec(name, self._models)
        intake.check(write, spec)
        for i, put in first:
            if put.vector is not None:
                continue
            if not (put.content or build_text(put.metadata or {})):
                raise InvalidArgument(
                    f"document {put.id!r} has no vector, and nothing that a model of collection {name!r} could embed",
                    field=intake.field_of(write, i, "vector"),
                )
            if spec.model is None:
                raise InvalidArgument(
                    f"there is no collection {name!r}, and some of these documents have vectors and some have texts alone:"
                    " make it first, with a dimension or a model",
                    field="collection",
                )
        return await self.make(spec)

    async def get(self, command: messages.Get) -> tuple[str, Document, bytes | None]:
        """Return the collection's name, a document, and its vector if asked for. Raises NotFound."""
        served = await self.served(command.collection)
        checks.document_id(command.id)
        found = await served.get(command.id, include_vector="vector" in command.include)
        if found is None:
            raise queries.no_document(served.name, command.id)
        return served.name, *found

    async def search(self, command: messages.Search) -> tuple[str, Answer]:
        """Return the collection's name and the nearest documents."""
        _check_position(command.min_index_version)
        served = await self.served(command.collection)
        return served.name, await served.search(command)

    async def changes(
        self, name: str, since: int, epoch: str | None, limit: int, *, with_vectors: bool
    ) -> tuple[Served, Page | None]:
        """Return a page of the net change after `since`; None where it can't be given in full."""
        served = await self.served(name)
        if not served.reaches(since, epoch):
            return served, None
        return served, await served.read_changes(Span(since, since, served.room.head), limit, PAGE_BYTES, with_vectors)

    async def answer(self, name: str, call: str, body: bytes) -> bytes:
        """Answer another node. Raises a HotindexError."""
        if call == "make":
            await self.make(queries.forwarded_spec(name, body, self._models))
            return b""
        return await answering.answer(self._hosted_for_another(name), call, body)

    def _hosted_for_another(self, name: str) -> Hosted:
        if name not in self._hosting and name in self.cluster.names() and self.cluster.hosts(name):
            raise Overloaded(f"collection {name!r} is about to be copied here", retry_after_s=1.0)
        return self._here(name)

    def relay(self, name: str, body: bytes, sink: Sink) -> Callable[[], Subscriber]:
        """Return what lets another node's copy of a room begin, after its greeting was written to `sink`."""
        hosted = self._hosted_for_another(name)
        since, epoch = exchange.relay_call(body)
        variant = Variant(name, MSGPACK, batch=True, relay=True)
        if epoch == hosted.epoch and since > hosted.room.head:
            raise Overloaded(f"this node is behind: collection {name!r} is at {hosted.room.head}", retry_after_s=1.0)
        recovered = hosted.reaches(since, epoch)
        subscribed = messages.Subscribed(
            collection=name, index_version=hosted.room.head, epoch=hosted.epoch, recovered=recovered
        )
        sink.write(variant.control(subscribed))
        return partial(hosted.room.join, variant, sink, since if recovered else None)

    def lend(self, name: str, sink: Sink) -> Lending:
        """Return what another node's clients watch here, told to `sink`."""
        return Lending(partial(self._hosted_for_another, name), sink)

    async def snapshot(self, name: str) -> int:
        """Write a snapshot now; return the index_version it was taken at."""
        return await self.hosted(name).upkeep.snapshot()

    async def subscribe(
        self, command: messages.Subscribe, codec: Codec, sink: Sink, *, sse: bool = False
    ) -> Membership:
        """Check a subscription, and prepare it to begin at the moment this returns. `sse` has it written as Server-Sent
        Events.
        """
        served = await self.served(command.collection)
        if command.since is not None:
            checks.between(command.since, 0, 2**63 - 1, "since")
        where = Filter(command.filter) if command.filter else None
        variant = Variant(
            served.name,
            codec,
            where,
            content="content" in command.include,
            vector="vector" in command.include,
            batch=command.batch,
            sse=sse,
            caught_up=command.caught_up,
        )
        recovered = command.since is not None and (command.since == 0 or served.reaches(command.since, command.epoch))
        since = command.since if recovered else None
        join = partial(served.room.join, variant, sink, since)
        return Membership(variant, served.room.head, recovered, served.epoch, join)

    async def watch(self, command: messages.Watch, watch_id: str, codec: Codec, sink: Sink) -> Opened:
        """Return a watch that is told of changes once its answer was written and `begin` called. Raises what is wrong
        with the command.
        """
        _check_position(command.min_index_version)
        served = await self.served(command.collection)
        return await served.watch(command, watch_id, ForClient(codec), sink)

    def unsubscribe(self, name: str, subscriber: Subscriber) -> None:
        served = self._hosting.get(name) or self._remotes.get(name)
        if served is not None:
            served.room.leave(subscriber)


def _check_position(min_index_version: int | None) -> None:
    if min_index_version is not None:
        checks.between(min_index_version, 0, 2**63 - 1, "min_index_version")
