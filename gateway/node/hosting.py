"""The collections of this process: opened, made, copied from other nodes, taken out of the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import structlog

from gateway.bus.agreement import State
from gateway.embed.catalog import Models
from gateway.engine.checksums import Checksum
from gateway.engine.collection import Collection
from gateway.engine.replay import Copy
from gateway.engine.types import Spec
from gateway.errors import NotFound, Overloaded, StartupError, StorageUnavailable
from gateway.metrics import Metrics
from gateway.node import companions, joining
from gateway.node.alone import Cluster
from gateway.node.audience import Audience, learnable
from gateway.node.datadir import DataDirectory
from gateway.node.hosted import Hosted, Threads
from gateway.node.joining import Again
from gateway.node.registry import Holding, Life
from gateway.node.rewriting import Rewriting
from gateway.node.users import Users
from gateway.node.values import Options

log = structlog.get_logger(__name__)


class Hosting:
    """Call on the event loop, between `start` and `stop`. `create`, `remove`, `put_in_place` and `stop` are called with
    `changing` held, by which collections come and go one at a time.
    """

    def __init__(
        self,
        directory: DataDirectory,
        models: Models,
        options: Options,
        metrics: Metrics,
        now: Callable[[], int],
        checksum: Checksum,
        cluster: Cluster,
    ) -> None:
        self.changing = asyncio.Lock()
        self._directory = directory
        self._models = models
        self._options = options
        self._metrics = metrics
        self._now = now
        self._checksum = checksum
        self._cluster = cluster
        self._hosted: dict[str, Hosted] = {}
        self._arriving: dict[str, asyncio.Event] = {}
        self._rewriting = Rewriting()
        self._threads = Threads.start(options.cores)

    def __contains__(self, name: str) -> bool:
        return name in self._hosted

    def __iter__(self) -> Iterator[Hosted]:
        return iter(list(self._hosted.values()))

    def get(self, name: str) -> Hosted | None:
        return self._hosted.get(name)

    async def start(self) -> None:
        """Open every collection of the data directory. Raises StartupError if one can't be."""
        self._directory.sweep()
        loop = asyncio.get_running_loop()
        for name in self._directory.names():
            if not self._cluster.hosts(name):
                log.warning(
                    "not_hosted", collection=name, reason="setting collections leaves it to others; its data stay"
                )
                continue
            try:
                collection = await loop.run_in_executor(self._threads.upkeep, self._open, name)
            except (StorageUnavailable, OSError) as error:
                raise StartupError(f"collection {name!r} can't be opened: {error}") from error
            await self._host(collection)

    async def stop(self) -> None:
        """Finish all writes, write snapshots, close the files."""
        await asyncio.gather(*(self._rewriting.stop(name) for name in self._hosted))
        await asyncio.gather(*(hosted.stop() for hosted in self._hosted.values()))
        self._hosted.clear()
        self._threads.shut_down()

    async def create(self, spec: Spec, owner: Life | None = None) -> Hosted:
        loop = asyncio.get_running_loop()
        life = await self._cluster.register(spec, owner)
        path, window_s = self._directory.collection(spec.name), self._options.idempotency_window_s
        cache_bytes = self._options.embedding_cache_bytes
        make = partial(Collection.create, path, life.spec, self._now, window_s, life.epoch, cache_bytes)
        collection = await loop.run_in_executor(self._threads.upkeep, make)
        log.info("collection_created", collection=spec.name, dimension=spec.dimension, model=spec.model)
        return await self._host(collection)

    async def remove(self, hosted: Hosted) -> None:
        """Drop a collection, which the cluster knows of."""
        name = hosted.name
        if (audience := self._audience_of(name)) is not None:
            # They would be told what is recommended to nobody, before the collection itself is dropped.
            audience.feeds.dismiss()
        del self._hosted[name]
        hosted.room.close()
        hosted.close_watches()
        await self._rewriting.stop(name)
        await hosted.stop(abandon=True)
        self._models.retire(hosted.spec.model, hosted.spared)
        self._metrics.forget(name)
        await hosted.read(partial(self._directory.drop, name, hosted.collection.epoch))
        log.info("collection_dropped", collection=name)

    def holdings(self) -> dict[str, Holding]:
        return {
            name: Holding(
                hosted.collection.epoch,
                hosted.collection.writer.term,
                hosted.collection.index_version,
                hosted.collection.document_count,
            )
            for name, hosted in self._hosted.items()
        }

    async def copy(self, life: Life, state: State, copies: AsyncIterator[Copy] | None) -> None:
        """Copy a collection from others into a folder beside, for `put_in_place`."""
        await joining.copy(self._directory, life, state, copies, self._threads.upkeep, self._now)

    async def replace(self, name: str, state: State, agreed: int, copies: AsyncIterator[Copy] | None) -> None:
        """Copy a collection anew, and put the copy in its place: this node had what isn't in the agreed order."""
        old = self._hosted.get(name)
        if old is None or old.collection.epoch != state.epoch:
            return  # dropped, or made again, meanwhile
        position = old.collection.index_version
        life = Life(state.epoch, old.collection.spec)
        # Positions of subscribers up to here may name other changes now: they start over.
        await joining.copy(self._directory, life, state, copies, self._threads.upkeep, self._now, position + 1)
        # Once begun, it is finished: in between there is no collection.
        await asyncio.shield(asyncio.create_task(self._exchange(old, agreed)))

    async def _exchange(self, old: Hosted, agreed: int) -> None:
        """Put a finished copy in the place of a collection."""
        name = old.name
        async with self.changing:
            if self._hosted.get(name) is not old:
                return
            again = await old.read(partial(self._note_again, old, agreed))
            del self._hosted[name]
            old.room.abandon()
            await self._rewriting.stop(name)
            await old.stop()
            self._models.retire(old.spec.model, old.spared)
            await self.put_in_place(name)
        log.warning("copied_anew", collection=name, agreed=agreed, changed_here=again)

    def _note_again(self, old: Hosted, agreed: int) -> int:
        """Note in a copy's folder what this node alone has; return how many documents that are. Blocks."""
        name = old.name
        again = [
            *joining.noted_again(self._directory.collection(name)),
            Again(agreed, list(joining.changes_after(old.collection, agreed))),
        ]
        joining.note_again(self._directory.copying(name), again)
        return len(again[-1].changes)

    async def put_in_place(self, name: str) -> Hosted:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads.upkeep, self._directory.put_in_place, name)
        return await self._host(await loop.run_in_executor(self._threads.upkeep, self._open, name))

    def _open(self, name: str) -> Collection:
        path = self._directory.collection(name)
        window_s, cache_bytes = self._options.idempotency_window_s, self._options.embedding_cache_bytes
        return Collection(path, self._now, window_s, self._checksum, cache_bytes)

    async def _host(self, collection: Collection) -> Hosted:
        hosted = Hosted(
            collection,
            self._models.of(collection.spec),
            self._threads,
            self._metrics,
            self._options.bounds,
            self._options.hot,
            self._options.timing,
            self._options.room,
            self._cluster.make_bus,
            self._options.read_wait_s,
        )
        self._introduce(hosted)
        await hosted.start()
        self._hosted[hosted.name] = hosted
        if (arriving := self._arriving.pop(hosted.name, None)) is not None:
            arriving.set()
        self._rewriting.start(hosted, self._directory.collection(hosted.name))
        return hosted

    def _introduce(self, hosted: Hosted) -> None:
        """Let a collection and that of its users know each other."""
        name = hosted.name
        if (audience := self._audience_of(name)) is not None:
            audience.attach(hosted)
        elif not companions.is_companion(name) and learnable(hosted.spec):
            users = Users(hosted, partial(self._users_of, hosted), self._options.memory, self._now)
            hosted.audience = Audience(hosted, users, self._options.vocabulary, self._now)
            companion = self._hosted.get(companions.users_of(name))
            if companion is not None:
                hosted.audience.attach(companion)

    def _audience_of(self, name: str) -> Audience | None:
        """Return those whose profiles are in a collection; None where that isn't one of users."""
        owner = self._hosted.get(companions.owner(name)) if companions.is_companion(name) else None
        return None if owner is None else owner.audience

    async def _arrival(self, name: str) -> Hosted:
        """Wait for a collection that is to be copied here. Raises Overloaded after as long as searches wait."""
        try:
            async with asyncio.timeout(self._options.read_wait_s):
                while name not in self._hosted:
                    await self._arriving.setdefault(name, asyncio.Event()).wait()
        except TimeoutError:
            raise Overloaded(f"collection {name!r} is about to be copied here", retry_after_s=1.0) from None
        return self._hosted[name]

    async def _users_of(self, hosted: Hosted, make: bool) -> Hosted | None:
        """Return the companion of a collection, made if need be and asked for. Raises Overloaded."""
        name = companions.users_of(hosted.name)
        if name in self._hosted:
            return self._hosted[name]
        if name in self._cluster.names():
            return await self._arrival(name)
        if not make:
            return None
        async with self.changing:
            if self._hosted.get(hosted.name) is not hosted:
                raise NotFound(f"no collection {hosted.name!r}", field="collection")
            return self._hosted.get(name) or await self.create(
                companions.spec(hosted.spec), Life(hosted.collection.epoch, hosted.spec)
            )
