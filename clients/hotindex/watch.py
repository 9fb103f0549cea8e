"""A watch: a search whose answer the gateway keeps up to date, across reconnects."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from hotindex import wire
from hotindex.errors import HotindexError
from hotindex.types import Change, Match

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


def ranked(matches: Iterable[Match]) -> tuple[Match, ...]:
    return tuple(sorted(matches, key=lambda match: (-match.score, match.id)))


def applied(
    results: Iterable[Match], added: Iterable[Match], changed: Iterable[Match], removed: Iterable[str]
) -> tuple[Match, ...]:
    """Return `results` after a difference, best first."""
    kept = {match.id: match for match in results}
    for document_id in removed:
        kept.pop(document_id, None)
    kept |= {match.id: match for match in (*added, *changed)}
    return ranked(kept.values())


def difference(before: tuple[Match, ...], after: tuple[Match, ...], index_version: int) -> Change:
    old, new = ({match.id: match for match in matches} for matches in (before, after))
    return Change(
        index_version,
        added=tuple(match for match in after if match.id not in old),
        changed=tuple(match for match in after if match.id in old and match != old[match.id]),
        removed=tuple(match.id for match in before if match.id not in new),
        results=after,
    )


class Watch:
    """Iterate over it, in one task. Made by `Client.watch`; begins with the first iteration or `async with`.

    An `async with` ends it with its block. Without one the end of an `async for` does, `break` included. It ends too with
    `close`, and with an error, such as NotFound where the collection is dropped.

    The first Change is the first answer; each later one is the difference to the list handed out before. A consumer that
    is busy misses none of it: what comes meanwhile is made one difference, so that no more is held than two lists. A lost
    connection is no more than that: the gateway is asked again, and if its answer is another one, the difference comes.
    """

    def __init__(self, watches: Watches, command: _Command) -> None:
        self.command = command
        self.watch_id: str | None = None
        """The gateway's name for it; None while there is none over the present connection."""
        self.results: tuple[Match, ...] = ()
        """The present top k, best first, ties by id. May be ahead of the last Change handed out."""
        self.index_version: int | None = None
        """What `results` is as of. None until the gateway has answered."""
        self.exact: bool | None = None
        """Whether the gateway compares with every document, rather than search the graph. None until it has answered."""
        self._watches = watches
        self._handed_out: tuple[Match, ...] | None = None
        self._arrived = asyncio.Event()
        self._begun = False
        self._entered = False
        self._error: HotindexError | None = None

    @property
    def collection(self) -> str:
        collection: str = self.command["collection"]
        return collection

    @property
    def ended(self) -> bool:
        return self._error is not None

    def began(self, reply: dict[str, Any]) -> None:
        """Take the gateway's reply to the command. Called by the client's reader, before it reads on."""
        self.watch_id, self.exact = reply["watch_id"], reply["exact"]
        self._take(ranked(wire.matches(reply["results"])), reply["index_version"])

    def push(self, update: dict[str, Any]) -> None:
        """Take in what arrives. Called by the client's reader, which never waits here."""
        added, changed = wire.matches(update["added"]), wire.matches(update["changed"])
        self._take(applied(self.results, added, changed, update["removed"]), update["index_version"])

    def _take(self, results: tuple[Match, ...], index_version: int) -> None:
        self.results, self.index_version = results, index_version
        self._arrived.set()

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

    async def __aiter__(self) -> AsyncIterator[Change]:
        try:
            while True:
                yield await self.__anext__()
        finally:
            await self.iterated()

    async def __anext__(self) -> Change:
        await self._begin()
        while self.index_version is None or self._handed_out == self.results:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        before, self._handed_out = self._handed_out or (), self.results
        return difference(before, self.results, self.index_version)

    async def iterated(self) -> None:
        """End it, unless an `async with` will."""
        if not self._entered:
            await self.close()

    async def close(self) -> None:
        """Have the gateway forget it."""
        self.fail(HotindexError("closed", "the watch is closed", retryable=False))
        await self._watches.leave(self)


class Watches:
    """The watches of a client, under the names the gateway gave them over the present connection."""

    def __init__(self, request: Request, renew: Renew, tell: Tell, spawn: Spawn) -> None:
        self._request = request
        self._renew = renew
        self._tell = tell
        self._spawn = spawn
        self._begun: set[Watch] = set()
        self._by_id: dict[str, Watch] = {}
        self._renewals: dict[Watch, asyncio.Task[None]] = {}
        """At most one for each watch, so that the gateway has it once."""

    async def enter(self, watch: Watch) -> None:
        """Begin; raises what the gateway refuses it for."""
        try:
            await self._request(watch.command, again=True, at_once=functools.partial(self._began, watch))
        except BaseException:
            # The answer may have come at the same moment.
            if watch_id := self._forget(watch):
                self._unwatch_soon(watch_id)
            raise

    async def leave(self, watch: Watch) -> None:
        if watch_id := self._forget(watch):
            await self._tell(_unwatch(watch_id))

    def _began(self, watch: Watch, reply: dict[str, Any]) -> None:
        if watch.ended:
            self.unclaimed(reply)
            return
        # From here on it is the reader's to renew; before, a lost connection is made good by asking again.
        self._begun.add(watch)
        self._by_id[reply["watch_id"]] = watch
        watch.began(reply)

    def unclaimed(self, reply: dict[str, Any]) -> None:
        """Give back a watch whose `watching` came when nobody waited for it any more."""
        self._unwatch_soon(reply["watch_id"])

    def _unwatch_soon(self, watch_id: str) -> None:
        self._spawn(self._tell(_unwatch(watch_id)))

    def _forget(self, watch: Watch) -> str | None:
        """Return the id that the gateway still has it under."""
        if renewal := self._renewals.pop(watch, None):
            renewal.cancel()
        self._begun.discard(watch)
        watch_id, watch.watch_id = watch.watch_id, None
        if watch_id is not None:
            del self._by_id[watch_id]
        return watch_id

    def take(self, message: dict[str, Any]) -> None:
        """Take in what the gateway sends of itself."""
        watch = self._by_id.get(message["watch_id"])
        if watch is None:
            return  # it was on its way when the watch was left
        if message["type"] == "watch_update":
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

    def _watch_again(self, watch: Watch) -> None:
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
