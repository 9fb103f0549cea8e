"""Writers that know what they were told, subscribers that know what they have seen, and what must hold of both.

What a writer is told: after an Ack the document is as it wrote it; after an error that leaves it open, it is that or as it
was before. Each document has one writer at a time, save those made for a contest, so that this is all there can be.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from hotindex import (
    Ack,
    CaughtUp,
    Client,
    Conflict,
    ConnectionLost,
    Document,
    NotFound,
    Reconnected,
    Replica,
    RequestTimeout,
    Reset,
    Unavailable,
    Update,
)

from tests.cluster.fleet import COLLECTION, QUICK, Fleet, Member, Stored, Violation

Number: TypeAlias = int | None
"""What a document carries; None where there is no document."""

Seen: TypeAlias = tuple[str, int | None, str]
"""Id, version, and metadata or 'deleted'."""

OPEN = (ConnectionLost, RequestTimeout, Unavailable)
"""What leaves open whether a write was applied."""

_TRIES = 20
_SHOWN = 10


@dataclass
class Facts:
    """What writers were told."""

    possible: dict[str, set[Number]] = field(default_factory=dict)
    groups: list[tuple[str, ...]] = field(default_factory=list)
    """Documents that are always written together, with one number."""
    keys: dict[str, set[str]] = field(default_factory=dict)
    """Of documents that all write to: the keys of their metadata that were acknowledged."""
    once: set[str] = field(default_factory=set)
    """Documents written to by one event_id from several nodes."""
    surprises: list[str] = field(default_factory=list)
    """Refusals that a document's only writer doesn't expect."""
    acknowledged: int = 0
    open: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    """The longest a write took that was refused as unavailable."""

    def broken(self, documents: Mapping[str, Stored], *, agreed: bool) -> list[str]:
        """Return what doesn't fit what is stored. `agreed` tells that no node had to give up what it alone had applied,
        of which only that comes back which others haven't written to since.
        """
        found = [
            f"{i} is {_number(documents.get(i))}, and must be one of {sorted(map(str, possible))}"
            for i, possible in self.possible.items()
            if _number(documents.get(i)) not in possible
        ]
        for group in self.groups:
            numbers = {_number(documents.get(i)) for i in group}
            if len(numbers) > 1:
                found.append(f"{group} were written together and are {numbers}")
        if not agreed:
            return found
        for i, keys in self.keys.items():
            if lost := keys - (documents[i].metadata.keys() if i in documents else set()):
                found.append(f"{i} lacks {len(lost)} acknowledged keys, such as {min(lost)}")
        found += [
            f"{i} was written to {documents[i].version} times under one event_id"
            for i in self.once
            if i in documents and documents[i].version != 1
        ]
        return found + self.surprises


def _number(document: Stored | None) -> Number:
    return None if document is None else document.metadata["n"]


def fits(number: int) -> dict[str, Any]:
    """Return vector and metadata of a document that carries a number."""
    return {"vector": [number % 97 + 1, number % 89, 1], "metadata": {"n": number}}


class Writer:
    """Writes to documents of its own through any node that is alive, one write at a time."""

    def __init__(self, name: str, members: Sequence[Member], facts: Facts, random: Random, documents: int = 20) -> None:
        self.name = name
        self._members = members
        self._facts = facts
        self._random = random
        self._ids = [f"{name}:{i}" for i in range(documents)]
        self._group = tuple(f"{name}:together:{i}" for i in range(4))
        facts.groups.append(self._group)
        self._versions: dict[str, int] = {}
        self._count = 0
        self.shared = "shared"
        """The document to which all writers add keys."""

    async def run(self, stop: asyncio.Event) -> None:
        kinds: list[Callable[[Client], Awaitable[bool]]]
        kinds = [
            self.upsert,
            self.upsert,
            self.patch,
            self.delete,
            self.together,
            self.add_key,
            self.add_key,
            self.once,
        ]
        while not stop.is_set():
            done = await self._random.choice(kinds)(self._any().client)
            if not done:
                # It ends soon enough, and must not be asked a thousand times a second meanwhile.
                await asyncio.sleep(0.02)

    def _any(self) -> Member:
        """Return a node that is alive, if one is."""
        return self._random.choice([member for member in self._members if member.alive] or list(self._members))

    def _next(self) -> int:
        self._count += 1
        return self._count

    async def _ack(self, write: Awaitable[Ack], what: str) -> Ack | None:
        began = time.monotonic()
        try:
            ack = await write
        except OPEN as error:
            self._facts.open[type(error).__name__] += 1
            if isinstance(error, Unavailable):
                self._facts.longest_s = max(self._facts.longest_s, time.monotonic() - began)
            return None
        except (Conflict, NotFound) as error:
            # One that has been applied, and whose answer was lost on the way to its own node, finds itself.
            self._facts.surprises.append(f"{what}: {error}")
            return None
        self._facts.acknowledged += 1
        return ack

    async def _write(self, ids: Sequence[str], number: Number, write: Awaitable[Ack], what: str) -> bool:
        possible = self._facts.possible
        for i in ids:
            possible[i] = possible.get(i, {None}) | {number}
            self._versions.pop(i, None)
        ack = await self._ack(write, what)
        if ack is None:
            return False
        for i in ids:
            possible[i] = {number}
        self._versions |= {result.id: result.version for result in ack.results if number is not None}
        return True

    async def upsert(self, client: Client) -> bool:
        i, number = self._random.choice(self._ids), self._next()
        return await self._write([i], number, client.upsert(COLLECTION, id=i, **fits(number)), f"upsert {i}")

    async def patch(self, client: Client) -> bool:
        """Set a number where the version is still the one that was acknowledged."""
        known = sorted(set(self._versions) & set(self._ids))
        if not known:
            return await self.upsert(client)
        i, number = self._random.choice(known), self._next()
        version = self._versions[i]
        write = client.patch(COLLECTION, i, {"n": number}, if_version=version)
        return await self._write([i], number, write, f"patch {i} if_version {version}")

    async def delete(self, client: Client) -> bool:
        i = self._random.choice(self._ids)
        return await self._write([i], None, client.delete(COLLECTION, i), f"delete {i}")

    async def together(self, client: Client) -> bool:
        number = self._next()
        documents = [Document(i, **fits(number)) for i in self._group]
        write = client.upsert(COLLECTION, documents, atomic=True)
        return await self._write(self._group, number, write, f"together {self.name}")

    async def add_key(self, client: Client) -> bool:
        """Add a key to the document that all write to."""
        key = f"{self.name}-{self._next()}"
        shared = self.shared
        if not await self._ack(client.patch(COLLECTION, shared, {key: 1}), f"key {key} of {shared}"):
            return False
        self._facts.keys.setdefault(shared, set()).add(key)
        return True

    async def once(self, client: Client) -> bool:
        """Write a document under one event_id by two nodes at a time; one of them is to be the first, and the only one."""
        first, second = self._next(), self._next()
        i = f"{self.name}:once:{first}"
        other = self._any().client
        self._facts.once.add(i)
        self._facts.possible[i] = {None, first, second}
        acks = await asyncio.gather(
            *(
                self._ack(one.upsert(COLLECTION, id=i, event_id=i, **fits(number)), f"once {i}")
                for one, number in ((client, first), (other, second))
            )
        )
        if any(acks):
            self._facts.possible[i] = {first, second}
        return all(acks)


class Recorder:
    """A subscriber that keeps every event since it had to start over last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.position = 0
        self.resets = 0
        self.reconnects = 0
        self.seen: dict[int, Seen] = {}
        self.documents: dict[str, tuple[int, dict[str, Any]]] = {}
        self.broken: list[str] = []

    def take(self, event: Update | Reset | Reconnected | CaughtUp) -> None:
        match event:
            case Reset():
                self.resets += 1
                self.position = 0
                self.seen.clear()
                self.documents.clear()
            case Reconnected():
                self.reconnects += 1
            case CaughtUp():
                self.position = max(self.position, event.index_version)
            case Update(document_id=None):
                if event.index_version < self.position:
                    self.broken.append(f"{self.name}: a batch ended at {event.index_version} after {self.position}")
            case Update():
                self._update(event)

    def _update(self, event: Update) -> None:
        assert event.document_id is not None, "a batch's end is none"
        if event.index_version <= self.position:
            self.broken.append(f"{self.name}: {event.index_version} ({event.document_id}) after {self.position}")
        self.position = event.index_version
        deleted = event.event_type == "delete"
        what = "deleted" if deleted else json.dumps(event.metadata, sort_keys=True)
        self.seen[event.index_version] = event.document_id, event.version, what
        if deleted:
            self.documents.pop(event.document_id, None)
        else:
            assert event.version is not None, "a document has a version"
            self.documents[event.document_id] = event.version, event.metadata


@dataclass
class Audience:
    """A replica and a recorder at each node."""

    replicas: list[Replica]
    recorders: list[Recorder]
    tasks: list[asyncio.Task[None]]

    @property
    def resets(self) -> int:
        """How often subscribers had to start over, but for their beginning."""
        return sum(recorder.resets - 1 for recorder in self.recorders)

    async def reached(self, index_version: int, within_s: float = 20.0) -> bool:
        """Wait until all have come so far; tell whether none is further."""
        try:
            async with asyncio.timeout(within_s):
                for replica, recorder in zip(self.replicas, self.recorders, strict=True):
                    while min(replica.index_version, recorder.position) < index_version:
                        for task in self.tasks:
                            if task.done():
                                task.result()
                        await asyncio.sleep(0.02)
        except TimeoutError:
            pairs = zip(self.recorders, self.replicas, strict=True)
            at = [(recorder.name, recorder.position, replica.index_version) for recorder, replica in pairs]
            raise Violation(f"not all subscribers are at {index_version} (recorder, replica): {at}") from None
        return all(
            replica.index_version == recorder.position == index_version
            for replica, recorder in zip(self.replicas, self.recorders, strict=True)
        )

    def broken(self, documents: Mapping[str, Stored]) -> list[str]:
        """Return what subscribers have that the store doesn't, and where they contradict each other."""
        stored = {i: (one.version, one.metadata) for i, one in documents.items()}
        found: list[str] = []
        for replica, recorder in zip(self.replicas, self.recorders, strict=True):
            found += recorder.broken
            found += _differences(f"recorder {recorder.name}", recorder.documents, stored)
            copied = {document.id: (document.version, document.metadata) for document in replica}
            found += _differences(f"replica {recorder.name}", copied, stored)
        return found + contradictions(self.recorders)


def _differences(name: str, have: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    ids = sorted(i for i in have.keys() | stored.keys() if have.get(i) != stored.get(i))
    return [f"{name} has {i} as {have.get(i)}, and it is {stored.get(i)}" for i in ids[:_SHOWN]]


def contradictions(recorders: Iterable[Recorder]) -> list[str]:
    """Return the index_versions that were seen with different changes."""
    first: dict[int, tuple[str, Seen]] = {}
    found: list[str] = []
    for recorder in recorders:
        for index_version, seen in recorder.seen.items():
            name, known = first.setdefault(index_version, (recorder.name, seen))
            if known != seen:
                found.append(f"index_version {index_version} is {known} at {name}, and {seen} at {recorder.name}")
    return found


@asynccontextmanager
async def audience(fleet: Fleet) -> AsyncIterator[Audience]:
    """Attach a replica and a recorder to each node."""
    async with AsyncExitStack() as stack:
        found = Audience([], [], [])
        for member in fleet.members:
            replica = Replica(COLLECTION, member.ws, backoff=QUICK)
            found.replicas.append(await stack.enter_async_context(replica))
            client = await stack.enter_async_context(Client(member.ws, backoff=QUICK))
            recorder = Recorder(member.name)
            found.recorders.append(recorder)
            task = asyncio.create_task(_record(client, recorder))
            found.tasks.append(task)
            stack.callback(task.cancel)
        yield found


async def _record(client: Client, recorder: Recorder) -> None:
    async with client.subscribe(COLLECTION, since=0, caught_up=True) as subscription:
        async for event in subscription:
            recorder.take(event)


@asynccontextmanager
async def load(writers: Sequence[Writer]) -> AsyncIterator[None]:
    """Let the writers write. What fails one of them is raised at the end."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(writer.run(stop), name=f"writer {writer.name}") for writer in writers]
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait(tasks)
    for task in tasks:
        task.result()


async def _level(fleet: Fleet, audience: Audience) -> int:
    """Wait until nodes and subscribers are at one index_version, and return it."""
    for _ in range(_TRIES):
        index_version = await fleet.level()
        if await audience.reached(index_version):
            return index_version
        # A node had something left to write again when the nodes were level.
    raise Violation(f"subscribers are beyond {index_version}, where all nodes are")


async def check(fleet: Fleet, facts: Facts, audience: Audience, *, agreed: bool = True) -> int:
    """Wait until all nodes and subscribers are level; raise Violation where anything is not as it must be. Nobody must
    write meanwhile. Return the index_version.
    """
    index_version = await _level(fleet, audience)
    copies = [await member.documents() for member in fleet.members]
    found = [
        line
        for member, copy in zip(fleet.members[1:], copies[1:], strict=True)
        for line in _differences(f"node {member.name}", copy, copies[0])
    ]
    found += facts.broken(copies[0], agreed=agreed)
    found += audience.broken(copies[0])
    if found:
        more = len(found) - _SHOWN
        raise Violation("\n  ".join(found[:_SHOWN]) + (f"\n  and {more} more" if more > 0 else ""))
    return index_version
