"""A subscription: updates of one collection, in order, across reconnects."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from hotindex.errors import BufferFull, HotindexError
from hotindex.types import CaughtUp, Event, Include, OnFull, Reconnected, Reset, Update

BUFFER = 4096
"""Updates held for a busy consumer."""


class Link(Protocol):
    """The client, as a subscription needs it."""

    async def enter(self, subscription: Subscription) -> None:
        """Begin; raises what the gateway refuses it for."""
        ...

    async def leave(self, subscription: Subscription) -> None: ...

    def subscribe_again(self, subscription: Subscription) -> None:
        """Send the subscription's command; its reply goes to `began`, an error to `fail`."""
        ...

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop what the gateway pushes, without an end to the subscription."""
        ...

    def give_up(self, subscription: Subscription) -> None:
        """Leave without waiting: the subscription has failed."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a subscription asks for, apart from where it begins."""

    collection: str
    filter: dict[str, Any] | None = None
    include: tuple[Include, ...] = ()
    caught_up: bool = False


class Subscription:
    """Iterate over it, in one task. Made by `Client.subscribe`; begins with the first iteration or `async with`, and ends
    with that, with `close`, or with an error.

    After a reconnect (a Reconnected says so) it goes on from the last update that arrived: nothing is missed, and nothing
    comes twice. Where that isn't possible, or with `since=0`, a Reset comes and then the whole collection.

    At most `buffer` updates are held for a busy consumer. `on_full` says what happens then:

    - wait: it pauses at the gateway, goes on once half of them are read, and gets what changed meanwhile, conflated;
    - conflate: of each document only the latest update is held; with as many documents, as for wait;
    - fail: after what is held, BufferFull is raised.
    """

    def __init__(
        self, link: Link, wanted: Wanted, since: int | None, epoch: str | None, buffer: int, on_full: OnFull
    ) -> None:
        if on_full not in ("wait", "conflate", "fail"):
            raise ValueError(f"on_full is {on_full!r}; it must be wait, conflate or fail")
        if buffer < 1:
            raise ValueError(f"buffer is {buffer}; it must be at least 1")
        self.collection = wanted.collection
        self.index_version = since
        """The position: everything up to here has arrived. None until the gateway has answered."""
        self.epoch = epoch
        self._link = link
        self._wanted = wanted
        self._buffer = buffer
        self._on_full = on_full
        self._started = False
        self._active = False
        self._interrupted = False
        self._full = False
        self._caught_up = False
        self._held: dict[object, Event] = {}
        """In order of arrival; by document where they are conflated."""
        self._arrived = asyncio.Event()
        self._error: HotindexError | None = None

    @property
    def in_sync(self) -> bool:
        """Whether the consumer has everything there was a moment ago. Known only with `caught_up`."""
        return self._active and self._caught_up and not self._held

    def command(self) -> dict[str, Any]:
        """Return the command that begins or resumes it."""
        return {
            "action": "subscribe",
            "collection": self.collection,
            "since": self.index_version,
            "epoch": self.epoch,
            "filter": self._wanted.filter,
            "include": list(self._wanted.include) or None,
            "caught_up": self._wanted.caught_up or None,
            "batch": True,
        }

    def began(self, reply: dict[str, Any]) -> None:
        """Take the gateway's reply to the command. Called by the client's reader, before it reads on."""
        if self.index_version is not None and not reply["recovered"]:
            self.index_version, self.epoch = 0, None
            self._interrupted = False  # a Reset says more
            self._link.subscribe_again(self)
            return
        self.epoch = reply["epoch"]
        if self.index_version is None:
            self.index_version = reply["index_version"]
        self._active = True
        if self._interrupted:
            self._interrupted = False
            self._hold(Reconnected(self.collection, self.index_version))

    def ended_by_gateway(self) -> None:
        """The gateway has let it go: the collection was dropped. If there is another one by now, go on with that."""
        self._pause()
        self._link.subscribe_again(self)

    def interrupted(self) -> None:
        """The connection is gone; what comes next is the reply to a new command."""
        self._interrupted = True
        self._pause()

    @property
    def full(self) -> bool:
        """Whether it waits for its consumer, and begins again by itself."""
        return self._full

    def _pause(self) -> None:
        self._active = False
        self._caught_up = False
        self._held.pop(CaughtUp, None)  # it speaks of what was

    def push(self, event: Update | Reset | CaughtUp) -> None:
        """Take in what arrives. Called by the client's reader, which never waits here."""
        if not self._active:
            return
        self.index_version = 0 if isinstance(event, Reset) else event.index_version
        self._hold(event)
        if len(self._held) < self._buffer:
            return
        if self._on_full == "fail":
            self.fail(BufferFull(f"{len(self._held)} updates of {self.collection!r} wait for their consumer"))
            self._link.give_up(self)
        else:
            self._full = True
            self._pause()
            self._link.unsubscribe(self)

    def _hold(self, event: Event) -> None:
        # The end of an atomic batch has the index_version of its last change.
        key: object = (event.index_version, event.document_id) if isinstance(event, Update) else type(event)
        if self._on_full == "conflate":
            if isinstance(event, Update) and event.document_id is not None:
                key = event.document_id
            elif isinstance(event, Reset):
                self._held.clear()
        self._held.pop(key, None)
        self._held[key] = event
        self._arrived.set()

    def fail(self, error: HotindexError) -> None:
        """End the iteration with `error`, after what has arrived."""
        self._pause()
        self._error = error
        self._arrived.set()

    async def __aenter__(self) -> Self:
        if not self._started:
            self._started = True
            await self._link.enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        await self.__aenter__()
        while not self._held:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        event = self._held.pop(next(iter(self._held)))
        if isinstance(event, CaughtUp):
            self._caught_up = self._active
        if self._full and len(self._held) <= self._buffer // 2:
            self._full = False
            self._link.subscribe_again(self)
        return event

    async def close(self) -> None:
        """Leave the room."""
        if self._error is None:
            self.fail(HotindexError("closed", "the subscription is closed", retryable=False))
        await self._link.leave(self)
