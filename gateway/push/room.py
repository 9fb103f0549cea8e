"""A room: the subscribers of one collection, a log of its latest commits, and a cursor per subscriber.

A commit is encoded once per variant and written to all subscribers that are at the head and whose sockets take it. One
whose socket is full is left behind at its cursor, and costs nothing more; once the socket drains it continues from the
log, or, where the log has moved on, from the store, which keeps the net change. So there is no queue per subscriber, and
resuming at a position is the same thing as having been slow.

Guarantee to each subscriber: after its position it gets, in order of index_version, every change of every document or a
later one of the same document; never the same twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from gateway.engine.types import Applied, BatchComplete, Change, Page, Span
from gateway.faults import internal
from gateway.protocol.messages import Reset, Unsubscribed
from gateway.push.events import Variant

PAGE = 512
"""Documents read from the store at a time."""


class Sink(Protocol):
    """Where a subscriber's frames go. Called on the event loop."""

    @property
    def writable(self) -> bool:
        """False while what was written before waits for the network."""
        ...

    def write(self, data: bytes) -> None:
        """Take whole frames; never blocks, never raises."""
        ...

    async def drained(self) -> bool:
        """Wait until writable; False where the connection is gone."""
        ...

    def abandon(self) -> None:
        """Close the connection: what it misses it can only get by resuming."""
        ...


ReadChanges = Callable[[Span, int, bool], Awaitable[Page]]
"""Reads the net change: (span, limit, with_vectors)."""


@dataclass(eq=False, slots=True)
class Subscriber:
    """`cursor` is the index_version up to which it has everything; meaningless while it is live.

    `replay` is the span whose net change it gets from the store: of what came before it joined, and of what was
    gone from the log when it had fallen behind.
    """

    variant: Variant
    sink: Sink
    cursor: int
    replay: Span
    catching_up: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Entry:
    applied: Applied
    size_bytes: int
    frames: dict[Variant, bytes] = field(default_factory=dict)

    def encode(self, variant: Variant) -> bytes:
        """Return the frames for `variant`, kept for those who come to this entry later."""
        data = self.frames[variant] = variant.frames(self.applied.events)
        self.size_bytes += len(data)
        return data

    def after(self, cursor: int, variant: Variant) -> bytes:
        if cursor < self.applied.first_index_version and variant in self.frames:
            return self.frames[variant]
        return variant.frames(event for event in self.applied.events if _index_version(event) > cursor)


def _index_version(event: Change | BatchComplete) -> int:
    return event.index_version if isinstance(event, BatchComplete) else event.document.index_version


class Room:
    """Call on the event loop. `head` is the index_version up to which everything was published."""

    def __init__(self, collection: str, epoch: str, head: int, read: ReadChanges, log_bytes: int = 8 << 20) -> None:
        self.collection = collection
        self.epoch = epoch
        self.head = head
        self._read = read
        self._live: dict[Variant, set[Subscriber]] = {}
        self._behind: set[Subscriber] = set()
        self._log: deque[_Entry] = deque()
        self._log_bytes = 0
        self._log_limit_bytes = log_bytes
        self._grown = asyncio.Event()

    def __len__(self) -> int:
        return len(self._behind) + sum(len(members) for members in self._live.values())

    @property
    def behind(self) -> int:
        """The number of subscribers that are not at the head."""
        return len(self._behind)

    @property
    def wants_vectors(self) -> bool:
        return any(variant.vector for variant in self._live)

    def join(self, variant: Variant, sink: Sink, since: int | None) -> Subscriber:
        """Add a subscriber that has everything up to `since` (None: wants what comes from now on).

        With `since` 0 it is told to start over first. The caller has checked that the store reaches back that far.
        """
        cursor = self.head if since is None else since
        subscriber = Subscriber(variant, sink, cursor, Span(cursor, cursor, self.head))
        if since == 0:
            sink.write(variant.frame(Reset(collection=self.collection, epoch=self.epoch)))
        if subscriber.cursor == self.head:
            self._live.setdefault(variant, set()).add(subscriber)
        else:
            self._leave_behind(subscriber)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a subscriber; nothing is written to it after."""
        if subscriber.catching_up is not None:
            subscriber.catching_up.cancel()
        self._behind.discard(subscriber)
        members = self._live.get(subscriber.variant, set())
        members.discard(subscriber)
        if not members:
            self._live.pop(subscriber.variant, None)

    def close(self) -> None:
        """Tell all subscribers that nothing more comes, and let them go. Their tasks have ended when this returns."""
        members = [*self._behind, *(member for live in self._live.values() for member in live)]
        for subscriber in members:
            self.leave(subscriber)
            subscriber.sink.write(subscriber.variant.frame(Unsubscribed(collection=self.collection)))

    def publish(self, applied: Applied) -> None:
        """Pass one commit on. Commits come in order, each once."""
        assert applied.first_index_version == self.head + 1, "commits are published without gaps"
        entry = _Entry(applied, sum(event.size_bytes for event in applied.events))
        before, self.head = self.head, applied.index_version
        for variant, members in list(self._live.items()):
            if not all(map(variant.can_show, applied.events)):
                lagging = list(members)
            else:
                lagging = _write(members, entry.encode(variant))
            for subscriber in lagging:
                members.discard(subscriber)
                subscriber.cursor = before
                self._leave_behind(subscriber)
            if not members:
                del self._live[variant]
        self._keep(entry)
        self._grown.set()
        self._grown = asyncio.Event()

    def _keep(self, entry: _Entry) -> None:
        self._log.append(entry)
        self._log_bytes += entry.size_bytes
        while self._log_bytes > self._log_limit_bytes:
            self._log_bytes -= self._log.popleft().size_bytes

    def _leave_behind(self, subscriber: Subscriber) -> None:
        self._behind.add(subscriber)
        subscriber.catching_up = asyncio.create_task(self._catch_up(subscriber))

    async def _catch_up(self, subscriber: Subscriber) -> None:
        """Bring a subscriber to the head, at the speed of its socket."""
        try:
            while await subscriber.sink.drained():
                if subscriber.cursor > self.head:
                    # It read its position from an answer that was ahead of the room for a moment.
                    await self._grown.wait()
                elif subscriber.cursor == self.head:
                    self._behind.discard(subscriber)
                    self._live.setdefault(subscriber.variant, set()).add(subscriber)
                    subscriber.catching_up = None
                    return
                elif subscriber.cursor < subscriber.replay.through or not self._from_log(subscriber):
                    await self._from_store(subscriber)
        except Exception as error:  # one subscriber's fault must not be everyone's; it is closed, and resumes
            internal(error, collection=self.collection)
            subscriber.sink.abandon()
        self._behind.discard(subscriber)

    def _from_log(self, subscriber: Subscriber) -> bool:
        """Write log entries until the socket is full or the head is reached; False where the log doesn't reach back."""
        if not self._log or subscriber.cursor + 1 < self._log[0].applied.first_index_version:
            return False
        variant = subscriber.variant
        for entry in self._log:
            if entry.applied.index_version <= subscriber.cursor:
                continue
            if not all(map(variant.can_show, entry.applied.events)):
                return False
            if not subscriber.sink.writable:
                break
            if data := entry.after(subscriber.cursor, variant):
                subscriber.sink.write(data)
            subscriber.cursor = entry.applied.index_version
        return True

    async def _from_store(self, subscriber: Subscriber) -> None:
        if subscriber.replay.through <= subscriber.cursor:
            subscriber.replay = Span(subscriber.cursor, subscriber.cursor, self.head)
        subscriber.replay = replace(subscriber.replay, after=subscriber.cursor)
        page = await self._read(subscriber.replay, PAGE, subscriber.variant.vector)
        if data := subscriber.variant.frames(page.changes):
            subscriber.sink.write(data)
        subscriber.cursor = page.through


def _write(members: set[Subscriber], data: bytes) -> list[Subscriber]:
    """Write to all whose sockets take it; return the others."""
    if not data:
        return []
    lagging = []
    for subscriber in members:
        sink = subscriber.sink
        if sink.writable:
            sink.write(data)
        else:
            lagging.append(subscriber)
    return lagging
