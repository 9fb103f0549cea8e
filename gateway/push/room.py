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
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from gateway.engine.types import Applied, Page, Span
from gateway.faults import internal
from gateway.protocol.messages import CaughtUp, Reset, Unsubscribed
from gateway.push.events import Events, Variant

PAGE = 128
PAGE_BYTES = 128 << 10
"""Documents, and about how many bytes of them, read from the store at a time: what one slow subscriber costs."""

_LONGEST_PAUSE_S = 0.02
_LARGE_S = 0.001
_GATHER_SHARE = 2.0
_GATHER_AT_MOST_S = 0.015

log = structlog.get_logger(__name__)


class Sink(Protocol):
    """Where a subscriber's bytes go. Called on the event loop."""

    def offer(self, data: bytes) -> bool:
        """Take whole frames, or none of them (False) while what was written before waits for the network.

        Of no bytes it tells whether it would take frames now. Never blocks, never raises.
        """
        ...

    def write(self, data: bytes) -> None:
        """Take whole frames whatever waits."""
        ...

    async def drained(self) -> bool:
        """Wait until nothing waits for the network; False where the connection is gone."""
        ...

    def abandon(self, *, slow: bool = False) -> None:
        """Close the connection, for its slowness or for a fault of ours: what it misses it can get by resuming."""
        ...

    def end(self) -> None:
        """Take note that nothing more comes: the room is closed."""
        ...


ReadChanges = Callable[[Span, int, int, bool], Awaitable[Page]]
"""Reads the net change: (span, limit, limit_bytes, with_vectors)."""


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """`lag_s` is how long a subscriber may take for what it missed, conflated; after that it is closed."""

    log_bytes: int = 8 << 20
    lag_s: float = 60.0


@dataclass(eq=False, slots=True)
class Subscriber:
    """`cursor` is the index_version up to which it has everything; meaningless while it is live.

    `replay` is the span whose net change it gets from the store: of what came before it joined, and of what was
    gone from the log when it had fallen behind; that one is to be done by `replay_due`.
    """

    variant: Variant
    sink: Sink
    cursor: int
    replay: Span
    replay_due: float = math.inf
    catching_up: asyncio.Task[None] | None = None
    closed: bool = False
    """Whether the room has let it go, since there is no more to come."""


@dataclass(frozen=True, slots=True)
class _Entry:
    applied: Applied
    events: Events


class Room:
    """Call on the event loop. `head` is the index_version up to which everything was published."""

    def __init__(
        self,
        collection: str,
        epoch: str,
        head: int,
        read: ReadChanges,
        limits: RoomLimits = RoomLimits(),
        metric: str = "cosine",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.collection = collection
        self.epoch = epoch
        self.head = head
        self._read = read
        self._limits = limits
        self._metric = metric
        self._clock = clock
        self._live: dict[Variant, dict[Subscriber, Callable[[bytes], bool]]] = {}
        self._behind: set[Subscriber] = set()
        self._log: deque[_Entry] = deque()
        self._log_bytes = 0
        self._grown = asyncio.Event()
        self.gather_s = 0.0
        """How long events may gather before the next commit. Where all subscribers asked for `batch` and writing to them
        took long, a third of the time goes into writing, and the more events share a frame."""

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
        if since == 0 and not variant.relay:
            sink.write(variant.control(Reset(collection=self.collection, epoch=self.epoch), 0))
        if subscriber.cursor == self.head:
            self._go_live(subscriber)
        else:
            self._leave_behind(subscriber)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a subscriber; nothing is written to it after."""
        if subscriber.catching_up is not None:
            subscriber.catching_up.cancel()
        self._behind.discard(subscriber)
        members = self._live.get(subscriber.variant)
        if members is not None:
            members.pop(subscriber, None)
            if not members:
                del self._live[subscriber.variant]

    def close(self) -> None:
        """Tell all subscribers that nothing more comes, and let them go. Their tasks have ended when this returns."""
        for subscriber in self._members():
            self.leave(subscriber)
            subscriber.closed = True
            subscriber.sink.write(subscriber.variant.control(Unsubscribed(collection=self.collection)))
            subscriber.sink.end()

    def abandon(self) -> None:
        """Close the connections of all subscribers: they come back, and resume in what takes this room's place."""
        for subscriber in self._members():
            self.leave(subscriber)
            subscriber.closed = True
            subscriber.sink.abandon()

    def _members(self) -> list[Subscriber]:
        return [*self._behind, *(member for live in self._live.values() for member in live)]

    def publish(self, applied: Applied) -> None:
        """Pass one commit on. Commits come in order, each once."""
        assert applied.first_index_version == self.head + 1, "commits are published without gaps"
        entry = _Entry(applied, Events(applied.events))
        before, self.head = self.head, applied.index_version
        batched = bool(self._live) and all(variant.batch for variant in self._live)
        started = self._clock()
        for variant, members in list(self._live.items()):
            if entry.events.large or not all(map(variant.can_show, applied.events)):
                # Each takes a large commit at its own speed, and in parts, so that it isn't held in memory for each.
                lagging = list(members)
            else:
                lagging = _offer(members, entry.events.bytes_for(variant))
            for subscriber in lagging:
                del members[subscriber]
                subscriber.cursor = before
                self._leave_behind(subscriber)
            if not members:
                del self._live[variant]
        written_s = self._clock() - started
        self.gather_s = min(_GATHER_SHARE * written_s, _GATHER_AT_MOST_S) if batched and written_s > _LARGE_S else 0.0
        self._keep(entry)
        self._grown.set()
        self._grown = asyncio.Event()

    def _keep(self, entry: _Entry) -> None:
        self._log.append(entry)
        self._log_bytes += entry.events.size_bytes
        # The newest stays whatever its size: a large batch is told with its batch_complete, which the store doesn't have.
        least = 1 if self._limits.log_bytes else 0
        while self._log_bytes > self._limits.log_bytes and len(self._log) > least:
            self._log_bytes -= self._log.popleft().events.size_bytes

    def _go_live(self, subscriber: Subscriber) -> None:
        variant = subscriber.variant
        self._live.setdefault(variant, {})[subscriber] = subscriber.sink.offer
        if variant.caught_up:
            # In the same turn as it goes live: what is written after is what happens after.
            caught_up = CaughtUp(collection=self.collection, index_version=self.head, metric=self._metric)
            subscriber.sink.write(variant.control(caught_up, self.head))

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
                    subscriber.catching_up = None
                    self._go_live(subscriber)
                    return
                elif asyncio.get_running_loop().time() > subscriber.replay_due:
                    log.info("too_slow", collection=self.collection, behind=self.head - subscriber.cursor)
                    subscriber.sink.abandon(slow=True)
                    break
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
        subscriber.replay_due = math.inf
        variant = subscriber.variant
        for entry in self._log:
            if entry.applied.index_version <= subscriber.cursor:
                continue
            if not all(map(variant.can_show, entry.applied.events)):
                return False
            while subscriber.cursor < entry.applied.index_version:
                size_bytes = entry.events.size_bytes
                data, through = entry.events.part(variant, subscriber.cursor, entry.applied.index_version)
                self._log_bytes += entry.events.size_bytes - size_bytes
                if data and not subscriber.sink.offer(data):
                    return True
                subscriber.cursor = through
        return True

    async def _from_store(self, subscriber: Subscriber) -> None:
        """Write a page of the net change."""
        if subscriber.replay.through <= subscriber.cursor:
            subscriber.replay = Span(subscriber.cursor, subscriber.cursor, self.head)
            subscriber.replay_due = asyncio.get_running_loop().time() + self._limits.lag_s
        subscriber.replay = replace(subscriber.replay, after=subscriber.cursor)
        loop = asyncio.get_running_loop()
        started = loop.time()
        page = await self._read(subscriber.replay, PAGE, PAGE_BYTES, subscriber.variant.vector)
        if data := Events(page.changes).bytes_for(subscriber.variant):
            subscriber.sink.write(data)
        subscriber.cursor = page.through
        if self._live and page.more:
            # Half of the time is for those who are up to date.
            await asyncio.sleep(min(_LONGEST_PAUSE_S, loop.time() - started))


def _offer(members: dict[Subscriber, Callable[[bytes], bool]], data: bytes) -> list[Subscriber]:
    """Write to all whose sockets take it; return the others."""
    if not data:
        return []
    return [subscriber for subscriber, offer in members.items() if not offer(data)]
