"""A subscription: updates of one collection, in order, across reconnects."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from hotindex.errors import HotindexError
from hotindex.types import Include, Reset, Update

BUFFER = 4096
"""Updates held for a busy consumer. With more it pauses until half of them are read, and then resumes."""


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


class Subscription:
    """Iterate over it, in one task. Made by `Client.subscribe`; begins with the first iteration or `async with`, and ends
    with that, with `close`, or with an error.

    After a reconnect it goes on from the last update that arrived: nothing is missed, and nothing comes twice. Where that
    isn't possible, or with `since=0`, a Reset comes and then the whole collection.
    """

    def __init__(
        self,
        link: Link,
        collection: str,
        since: int | None,
        epoch: str | None,
        filter: dict[str, Any] | None,  # noqa: A002 - the contract's name
        include: Sequence[Include],
    ) -> None:
        self.collection = collection
        self.index_version = since
        """The position: everything up to here has arrived. None until the gateway has answered."""
        self.epoch = epoch
        self._link = link
        self._filter = filter
        self._include = list(include)
        self._started = False
        self._active = False
        self._full = False
        self._updates: deque[Update | Reset] = deque()
        self._arrived = asyncio.Event()
        self._error: HotindexError | None = None

    def command(self) -> dict[str, Any]:
        """Return the command that begins or resumes it."""
        return {
            "action": "subscribe",
            "collection": self.collection,
            "since": self.index_version,
            "epoch": self.epoch,
            "filter": self._filter,
            "include": self._include or None,
            "batch": True,
        }

    def began(self, reply: dict[str, Any]) -> None:
        """Take the gateway's reply to the command. Called by the client's reader, before it reads on."""
        if self.index_version is not None and not reply["recovered"]:
            self.index_version, self.epoch = 0, None
            self._link.subscribe_again(self)
            return
        self.epoch = reply["epoch"]
        if self.index_version is None:
            self.index_version = reply["index_version"]
        self._active = True

    def ended_by_gateway(self) -> None:
        """The gateway has let it go: the collection was dropped. If there is another one by now, go on with that."""
        self._active = False
        self._link.subscribe_again(self)

    def interrupted(self) -> None:
        """The connection is gone; what comes next is the reply to a new command."""
        self._active = False

    def push(self, update: Update | Reset) -> None:
        """Take an update in. Called by the client's reader, which never waits here."""
        if not self._active:
            return
        self.index_version = update.index_version if isinstance(update, Update) else 0
        self._updates.append(update)
        self._arrived.set()
        if len(self._updates) >= BUFFER:
            self._full = True
            self._active = False
            self._link.unsubscribe(self)

    def fail(self, error: HotindexError) -> None:
        """End the iteration with `error`, after what has arrived."""
        self._active = False
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

    async def __anext__(self) -> Update | Reset:
        await self.__aenter__()
        while not self._updates:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        update = self._updates.popleft()
        if self._full and len(self._updates) <= BUFFER // 2:
            self._full = False
            self._link.subscribe_again(self)
        return update

    async def close(self) -> None:
        """Leave the room."""
        if self._error is None:
            self.fail(HotindexError("closed", "the subscription is closed", retryable=False))
        await self._link.leave(self)
