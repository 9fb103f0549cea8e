"""Lists that the gateway keeps up to date, across reconnects: what all kinds of watches have in common."""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar

from hotindex.errors import HotindexError

_Item = TypeVar("_Item")
_News = TypeVar("_News")
_Command: TypeAlias = dict[str, Any]
_AtOnce: TypeAlias = Callable[[dict[str, Any]], None]


class Request(Protocol):
    async def __call__(self, command: _Command, *, again: bool, at_once: _AtOnce | None = None) -> dict[str, Any]:
        """Send a command, over the next connection where this one is lost, and return its reply."""
        ...


class Renew(Protocol):
    async def __call__(
        self, command: Callable[[], _Command], began: _AtOnce, refused: Callable[[HotindexError], None]
    ) -> None:
        """Send a command until it is answered, refused for good, or the connection lost."""
        ...


class Tell(Protocol):
    async def __call__(self, command: _Command) -> None:
        """Send a command and wait for its reply, whatever that is; without a connection, don't."""
        ...


class Spawn(Protocol):
    def __call__(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class LiveList(ABC, Generic[_Item, _News]):
    """Iterated over by one task: gives the first answer, then what has become of the list it gave before.

    What arrives while the consumer is busy is given as one, so that no more is held than two lists. What each kind of
    watch promises beyond that is said there.
    """

    def __init__(self, watches: Watches, command: _Command) -> None:
        self.command = command
        self.watch_id: str | None = None
        """The gateway's name for it; None while there is none over the present connection."""
        self.results: tuple[_Item, ...] = ()
        """The present list, best first. May be ahead of what was handed out."""
        self._watches = watches
        self._handed_out: tuple[_Item, ...] | None = None
        self._answered = False
        self._arrived = asyncio.Event()
        self._begun = False
        self._entered = False
        self._error: HotindexError | None = None

    @property
    def ended(self) -> bool:
        return self._error is not None

    def began(self, reply: dict[str, Any]) -> None:
        """Take the gateway's reply to the command. Called by the client's reader, before it reads on."""
        self.watch_id = reply["watch_id"]
        self._answer(reply)
        self._answered = True
        self._arrived.set()

    def push(self, update: dict[str, Any]) -> None:
        """Take in what arrives. Called by the client's reader, which never waits here."""
        self._update(update)
        self._arrived.set()

    @abstractmethod
    def _answer(self, reply: dict[str, Any]) -> None:
        """Make `results` those of the gateway's answer: the first one, or one after a lost connection."""

    @abstractmethod
    def _update(self, update: dict[str, Any]) -> None:
        """Make `results` those after what the gateway has pushed."""

    @abstractmethod
    def _news(self, before: tuple[_Item, ...]) -> _News:
        """Return what to hand out, where `before` was handed out last."""

    def fail(self, error: HotindexError) -> None:
        """End the iteration with `error`, after what has arrived."""
        if self._error is None:
            self._error = error
        self._arrived.set()

    async def _begin(self) -> None:
        if not self._begun and self._error is None:
            await self._watches.enter(self)
            self._begun = True

    async def __aenter__(self) -> Self:
        await self._begin()
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[_News]:
        try:
            while True:
                yield await self.__anext__()
        finally:
            await self.iterated()

    async def __anext__(self) -> _News:
        await self._begin()
        while not self._answered or self._handed_out == self.results:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        before, self._handed_out = self._handed_out or (), self.results
        return self._news(before)

    async def iterated(self) -> None:
        """End it, unless an `async with` will."""
        if not self._entered:
            await self.close()

    async def close(self) -> None:
        """Have the gateway forget it."""
        self.fail(HotindexError("closed", "the watch is closed", retryable=False))
        await self._watches.leave(self)


AnyList: TypeAlias = LiveList[Any, Any]


class Watches:
    """The watches of a client, under the names the gateway gave them over the present connection."""

    kinds = frozenset({"watch_update", "recommendation_update", "unwatched", "watching"})

    def __init__(self, request: Request, renew: Renew, tell: Tell, spawn: Spawn) -> None:
        self._request = request
        self._renew = renew
        self._tell = tell
        self._spawn = spawn
        self._begun: set[AnyList] = set()
        self._by_id: dict[str, AnyList] = {}
        self._renewals: dict[AnyList, asyncio.Task[None]] = {}
        """At most one for each watch, so that the gateway has it once."""

    async def enter(self, watch: AnyList) -> None:
        """Begin; raises what the gateway refuses it for."""
        try:
            await self._request(watch.command, again=True, at_once=functools.partial(self._began, watch))
        except BaseException:
            # The answer may have come at the same moment.
            if watch_id := self._forget(watch):
                self._unwatch_soon(watch_id)
            raise

    async def leave(self, watch: AnyList) -> None:
        if watch_id := self._forget(watch):
            await self._tell(_unwatch(watch_id))

    def _began(self, watch: AnyList, reply: dict[str, Any]) -> None:
        if watch.ended:
            self._unwatch_soon(reply["watch_id"])
            return
        # From here on it is the reader's to renew; before, a lost connection is made good by asking again.
        self._begun.add(watch)
        self._by_id[reply["watch_id"]] = watch
        watch.began(reply)

    def _unwatch_soon(self, watch_id: str) -> None:
        self._spawn(self._tell(_unwatch(watch_id)))

    def _forget(self, watch: AnyList) -> str | None:
        """Return the id that the gateway still has it under."""
        if renewal := self._renewals.pop(watch, None):
            renewal.cancel()
        self._begun.discard(watch)
        watch_id, watch.watch_id = watch.watch_id, None
        if watch_id is not None:
            del self._by_id[watch_id]
        return watch_id

    def take(self, message: dict[str, Any]) -> None:
        """Take in what the gateway sends of itself, or the answer to a command that nobody waits for any more."""
        if message["type"] == "watching":
            self._unwatch_soon(message["watch_id"])
            return
        watch = self._by_id.get(message.get("watch_id", ""))
        if watch is None:
            return  # it was on its way when the watch was left, or answers a producer's event
        if message["type"] != "unwatched":
            watch.push(message)
            return
        # The collection was dropped. If there is another one by now, go on with that.
        watch.watch_id = None
        del self._by_id[message["watch_id"]]
        self._watch_again(watch)

    def interrupted(self) -> None:
        """The connection is gone, and with it what the gateway had."""
        for watch in self._by_id.values():
            watch.watch_id = None
        self._by_id.clear()

    def connected(self) -> None:
        for watch in self._begun:
            self._watch_again(watch)

    def _watch_again(self, watch: AnyList) -> None:
        if renewal := self._renewals.pop(watch, None):
            renewal.cancel()

        def refused(error: HotindexError) -> None:
            self._forget(watch)
            watch.fail(error)

        began = functools.partial(self._began, watch)
        self._renewals[watch] = self._spawn(self._renew(lambda: watch.command, began, refused))

    def fail(self, error: HotindexError) -> None:
        for watch in self._begun:
            watch.fail(error)


def _unwatch(watch_id: str) -> _Command:
    return {"action": "unwatch", "watch_id": watch_id}
