"""Nodes that share one collection: their stores and buses, without sockets of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from gateway.bus.agreement import Diverged, Keys, NoPeer
from gateway.bus.bus import Bus, UnderWay
from gateway.bus.link import Link
from gateway.bus.local import LocalBus
from gateway.bus.shared import SharedBus, SharedOptions
from gateway.bus.subscriptions import Subscriptions
from gateway.engine.collection import Collection
from gateway.engine.plan import WriteOutcome
from gateway.engine.replay import Copy
from gateway.engine.types import Applied, Change, Write
from tests.engine.support import SPEC, make, reopen

PAGE = 50
EPOCH = "e" * 32


class Log:
    """A listener that keeps what it is told."""

    wants_vectors = False

    def __init__(self) -> None:
        self.applied: list[Applied] = []
        self.renewals = 0

    def publish(self, applied: Applied) -> None:
        self.applied.append(applied)

    def renewed(self) -> None:
        self.renewals += 1

    @property
    def seen(self) -> list[tuple[int, str, int]]:
        """Index_version, id and version of each change that was published."""
        events = (event for applied in self.applied for event in applied.events)
        return [(e.document.index_version, e.document.id, e.document.version) for e in events if isinstance(e, Change)]


class Member:
    """One node's part in a collection."""

    def __init__(self, name: str, collection: Collection, bus: Bus, log: Log) -> None:
        self.name = name
        self.collection = collection
        self.bus = bus
        self.log = log

    async def ended(self, *writes: Write) -> list[WriteOutcome]:
        outcomes = await self.bus.commit(writes)
        return [outcome for outcome in outcomes if not isinstance(outcome, UnderWay)]


class Nodes:
    """Nodes over one Redis. Who is behind copies from whoever of the others is ahead."""

    def __init__(self, path: Path, url: str, options: SharedOptions) -> None:
        self._path = path
        self._url = url
        self._options = options
        self._lives = 0
        self.members: dict[str, Member] = {}
        self.gone: set[str] = set()
        """Epochs that were dropped."""

        self.away = 0
        """Nodes that are expected to say what they hold, and don't."""

    def expected(self, collection: str) -> int:
        return len(self.members) + self.away

    async def dropped(self, epoch: str) -> bool:
        return epoch in self.gone

    async def copies(self, collection: str, epoch: str, term: int, after: int) -> AsyncIterator[Copy]:
        source = max(self.members.values(), key=lambda member: member.collection.index_version)
        if source.collection.index_version <= after:
            raise NoPeer("nobody is ahead")
        if not source.collection.remembers(after):
            raise Diverged("nobody reaches back so far", after)
        while True:
            copy = await asyncio.to_thread(source.collection.copy, after, PAGE)
            yield copy
            if not copy.more:
                return
            after = copy.through

    @asynccontextmanager
    async def member(self, name: str, url: str | None = None) -> AsyncIterator[Member]:
        """Run a node, with its data under its name."""
        folder = self._path / name
        collection = reopen(folder) if folder.exists() else make(folder, epoch=EPOCH)
        link = Link(url or self._url, timeout_s=1.0)
        buses: list[SharedBus] = []

        def lost() -> None:
            buses[0].distrust()

        subscriptions = Subscriptions(
            link,
            lambda _, data: buses[0].take(data),
            lost,
            lost,
            random.Random(1).random,
        )
        executor, log = ThreadPoolExecutor(2), Log()
        diverged: list[Diverged] = []

        async def room() -> None:
            pass

        self._lives += 1
        options = replace(self._options, origin=f"{name}-{self._lives}")
        bus = SharedBus(collection, log, executor, room, link, self, options, diverged.append, room)
        buses.append(bus)
        self.members[name] = Member(name, collection, bus, log)
        try:
            await link.open()
            await subscriptions.subscribe(Keys.of(SPEC.name).channel)
            await bus.start()
            yield self.members[name]
            assert not diverged
        finally:
            del self.members[name]
            await bus.stop()
            await subscriptions.close()
            await link.close()
            executor.shutdown()
            collection.close()

    async def level(self) -> None:
        """Wait until all nodes have the same; they then hold the same, to the last byte."""
        while len({member.collection.index_version for member in self.members.values()}) > 1:
            await asyncio.sleep(0.01)
        digests = [await asyncio.to_thread(member.collection.digest) for member in self.members.values()]
        assert len(set(digests)) == 1, digests
        for member in self.members.values():
            numbers = [index_version for index_version, _, _ in member.log.seen]
            assert numbers == sorted(set(numbers)), "each index_version once, in order"


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[Member]:
    """Run a node that shares its collection with nobody."""
    collection, log, executor = make(path / "alone", SPEC), Log(), ThreadPoolExecutor(1)

    async def room() -> None:
        pass

    try:
        yield Member("alone", collection, LocalBus(collection, log, executor, room), log)
    finally:
        executor.shutdown()
        collection.close()
