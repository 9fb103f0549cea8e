"""Which channels are wanted, which feed has them, and who waits to hear of it. Does no I/O."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

from gateway.bus.feed import Answer, Feed
from gateway.bus.wire import LinkLost, LinkRefused


@dataclass(eq=False, slots=True)
class _Channel:
    """`feed` is where `request` asked for it, None while nothing does. `waiting` are told when Redis confirms it; one that
    was never `confirmed` is forgotten where that fails.
    """

    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    confirmed: bool = False
    feed: Feed | None = None
    request: int = 0


@dataclass(frozen=True, slots=True)
class _Leaving:
    feed: Feed
    done: asyncio.Future[None]


class Channels:
    """Call on the event loop. Requests to feeds are numbered, as a channel can be left and wanted again before Redis has
    answered.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._wanted: dict[str, _Channel] = {}
        self._leaving: dict[int, _Leaving] = {}
        self._settled = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether one that was confirmed has no feed."""
        return any(channel.confirmed and channel.feed is None for channel in self._wanted.values())

    @property
    def homeless(self) -> list[str]:
        """Those that no feed has."""
        return [name for name, channel in self._wanted.items() if channel.feed is None]

    def want(self, name: str, done: asyncio.Future[None]) -> bool:
        """Note who waits for a channel; return whether a feed has to be asked for it."""
        channel = self._wanted.setdefault(name, _Channel())
        channel.waiting.append(done)
        if channel.feed is not None and channel.confirmed and channel.request == 0:
            resolve(channel.waiting)
        return channel.feed is None

    def ask(self, name: str, feed: Feed) -> int:
        """Note that a feed is asked for a channel; return the request's number."""
        channel = self._wanted[name]
        channel.feed, channel.request = feed, next(self._numbers)
        return channel.request

    def leave(self, name: str, done: asyncio.Future[None]) -> tuple[Feed, int] | None:
        """Forget a channel; return the feed to tell it, and the request's number. Without one, nothing is to be done."""
        channel = self._wanted.pop(name, None)
        if channel is not None:
            reject(channel.waiting, LinkLost("unsubscribed"))
        if channel is None or channel.feed is None:
            resolve([done])
            return None
        number = next(self._numbers)
        self._leaving[number] = _Leaving(channel.feed, done)
        self._settled.set()
        return channel.feed, number

    def left(self, number: int) -> None:
        if (leaving := self._leaving.pop(number, None)) is not None:
            resolve([leaving.done])

    def answered(self, answer: Answer) -> None:
        if not answer.subscribing:
            self.left(answer.request)
            return
        channel = self._wanted.get(answer.channel)
        if channel is None or channel.request != answer.request:
            return
        if answer.error is not None:
            self.fail(answer.channel, answer.error)
            return
        channel.confirmed, channel.request = True, 0
        resolve(channel.waiting)
        self._settled.set()

    def fail(self, name: str, error: LinkLost | LinkRefused) -> None:
        """Tell those that wait for a channel; it stays wanted where it once was confirmed."""
        if (channel := self._wanted.get(name)) is None:
            return
        channel.feed, channel.request = None, 0
        reject(channel.waiting, error)
        if not channel.confirmed:
            del self._wanted[name]
        self._settled.set()

    def let_go(self, feed: Feed, reason: LinkLost | LinkRefused) -> None:
        """Take a feed's channels from it."""
        for name in [name for name, channel in self._wanted.items() if channel.feed is feed]:
            self.fail(name, reason)
        for number in [number for number, leaving in self._leaving.items() if leaving.feed is feed]:
            self.left(number)

    async def settled(self) -> None:
        """Wait until no feed has a request for a channel that isn't answered."""
        while self.unanswered():
            self._settled.clear()
            await self._settled.wait()

    def unanswered(self) -> set[Feed]:
        """Return the feeds whose answers are awaited."""
        return {channel.feed for channel in self._wanted.values() if channel.request and channel.feed is not None}


def resolve(waiting: list[asyncio.Future[None]]) -> None:
    """Tell all, other than those that gave up, and forget them."""
    while waiting:
        if not (done := waiting.pop()).done():
            done.set_result(None)


def reject(waiting: list[asyncio.Future[None]], error: LinkLost | LinkRefused) -> None:
    while waiting:
        if not (done := waiting.pop()).done():
            done.set_exception(error)
