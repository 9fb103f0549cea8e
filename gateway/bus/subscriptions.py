"""Channels of Redis, over connections that come back by themselves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from gateway.bus.address import Node
from gateway.bus.channels import Channels, reject, resolve
from gateway.bus.feed import Answer, Feed
from gateway.bus.link import Link
from gateway.bus.wire import LinkLost, LinkRefused, Redirected, Wire, slot_of
from gateway.faults import internal

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Subscribe:
    done: asyncio.Future[None]
    channel: str


@dataclass(frozen=True, slots=True)
class _Unsubscribe:
    done: asyncio.Future[None]
    channel: str


@dataclass(frozen=True, slots=True)
class _Restart:
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Lost:
    feed: Feed
    error: LinkLost | LinkRefused


_Request: TypeAlias = _Subscribe | _Unsubscribe | _Restart | _Lost


class Subscriptions:
    """Call on the event loop, after the link's `open`, and `close` before the link's.

    Messages of a channel come in the order of publication while its connection lasts, each at most once; `on_message`
    may be called before `subscribe` returns, and is not after `unsubscribe` has. With the connection the messages in
    between are lost: `on_lost` is called once, when that is noticed, then `on_resubscribed` when Redis has confirmed all
    channels anew (of those it confirmed first there may be messages before). What is published from then on comes; the
    owner fills the hole. In a cluster there is a connection to each server that owns a channel's slot; both calls stand
    for all channels, though the others go on. A connection that went silent isn't noticed here: see `restart`.

    The callbacks must not block. An error in `on_message` is logged, and counts as a lost connection. `random` returns
    numbers in [0, 1). One caller at a time for each channel.
    """

    def __init__(
        self,
        link: Link,
        on_message: Callable[[str, bytes], None],
        on_lost: Callable[[], None],
        on_resubscribed: Callable[[], None],
        random: Callable[[], float],
    ) -> None:
        self._link = link
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_resubscribed = on_resubscribed
        self._random = random
        # Holds a request for each caller that waits, and one loss for each connection.
        self._inbox: asyncio.Queue[_Request] = asyncio.Queue()
        self._channels = Channels()
        self._feeds: dict[Node, Feed] = {}
        self._refusal: LinkLost | LinkRefused | None = None
        self._told_lost = False
        self._task: asyncio.Task[None] | None = None

    async def subscribe(self, channel: str) -> None:
        """Return once Redis confirmed. Where it raises LinkLost or LinkRefused, or is cancelled, nothing stays behind."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="redis subscriptions")
        if self._task.done():
            raise LinkLost("the subscriptions are closed")
        self._inbox.put_nowait(_Subscribe(done := _future(), channel))
        try:
            async with asyncio.timeout(self._link.timeout_s):
                await done
        except TimeoutError:
            self._inbox.put_nowait(_Unsubscribe(_future(), channel))
            # A connection that doesn't answer this won't answer anything.
            self._inbox.put_nowait(_Restart(_future()))
            raise LinkLost(f"SUBSCRIBE: not confirmed in {self._link.timeout_s} s") from None
        except asyncio.CancelledError:
            self._inbox.put_nowait(_Unsubscribe(_future(), channel))
            raise

    async def unsubscribe(self, channel: str) -> None:
        """Return when no more messages come from it. Never fails: a lost connection has no subscriptions."""
        if self._task is not None and not self._task.done():
            self._inbox.put_nowait(_Unsubscribe(done := _future(), channel))
            try:
                async with asyncio.timeout(self._link.timeout_s):
                    await asyncio.shield(done)
            except TimeoutError:
                # With a connection that has gone silent the subscription ends too.
                await self.restart()
                await done

    async def restart(self) -> None:
        """Drop the connections, and connect again at once, as after a loss. Return when they are dropped."""
        if self._task is not None and not self._task.done():
            self._inbox.put_nowait(_Restart(done := _future()))
            await done

    async def close(self) -> None:
        """Close all connections, without `on_lost`. Calls under way end, `subscribe` with LinkLost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures, due, told = 0, math.inf, ""
        try:
            while True:
                request = await self._next(due)
                try:
                    if request is None or await self._do(request):
                        await self._connect()
                        if told:
                            log.info("redis_subscriptions_back")
                        failures, due, told = 0, math.inf, ""
                    continue
                except (LinkLost, LinkRefused) as error:
                    reason = error
                except Exception as error:  # without this task there would be no messages any more
                    internal(error)
                    reason = LinkLost("a fault of ours")
                if str(reason) != told:
                    log.warning("redis_subscriptions_lost", reason=str(reason))
                told = str(reason)
                due = asyncio.get_running_loop().time() + self._pause_s(failures)
                failures += 1
        finally:
            self._told_lost = True
            await self._drop(tuple(self._feeds.values()), LinkLost("closed"))
            self._end_all(LinkLost("closed"))

    async def _next(self, due: float) -> _Request | None:
        """Return the next request, or None when it is time to connect."""
        try:
            async with asyncio.timeout_at(None if due == math.inf else due):
                return await self._inbox.get()
        except TimeoutError:
            return None

    def _pause_s(self, failures: int) -> float:
        longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures, 10))
        return longest_s * (1 + self._random()) / 2

    async def _do(self, request: _Request) -> bool:
        """Return whether to connect at once. Raises LinkLost, LinkRefused where a connection was lost."""
        match request:
            case _Subscribe(done, name):
                if self._channels.want(name, done):
                    await self._attach_one(name)
            case _Unsubscribe(done, name):
                if (leave := self._channels.leave(name, done)) is not None:
                    await self._detach(name, *leave)
            case _Lost(feed, error) if self._feeds.get(feed.node) is feed:
                await self._drop([feed], error)
                raise error
            case _Restart(done):
                await self._drop(tuple(self._feeds.values()), LinkLost("restarted"))
                resolve([done])
                return True
        return False

    async def _connect(self) -> None:
        """Subscribe to all channels that no feed has. Raises LinkLost, LinkRefused; what could be done is done then."""
        self._refusal = None
        homes: dict[Node, list[str]] = {}
        for name in self._channels.homeless:
            try:
                homes.setdefault(await self._home(name), []).append(name)
            except (LinkLost, LinkRefused) as error:
                self._fail([name], error)
        await asyncio.gather(*(self._attach(node, names) for node, names in homes.items()))
        try:
            async with asyncio.timeout(self._link.timeout_s):
                await self._channels.settled()
        except TimeoutError:
            self._refusal = LinkLost(f"SUBSCRIBE: not confirmed in {self._link.timeout_s} s")
            await self._drop(self._channels.unanswered(), self._refusal)
        if self._refusal is not None:
            raise self._refusal
        if self._told_lost:
            self._told_lost = False
            _tell(self._on_resubscribed)

    async def _home(self, name: str) -> Node:
        """Return the server that a channel belongs to. Raises LinkLost, LinkRefused."""
        if self._link.sharded:
            return await self._link.topology.owner(slot_of(name))
        return next(iter(self._feeds), None) or await self._link.topology.owner(None)

    async def _attach_one(self, name: str) -> None:
        try:
            await self._attach(await self._home(name), [name])
        except (LinkLost, LinkRefused) as error:
            self._fail([name], error)

    async def _attach(self, node: Node, names: Sequence[str]) -> None:
        """Ask a server for channels."""
        error: LinkLost | LinkRefused
        try:
            async with asyncio.timeout(self._link.timeout_s):
                if node not in self._feeds:
                    self._feeds[node] = self._feed(await self._link.topology.wire_to_master(node))
                feed = self._feeds[node]
                for name in names:
                    await feed.subscribe(name, self._channels.ask(name, feed))
            return
        except TimeoutError:
            error = LinkLost(f"SUBSCRIBE: no connection in {self._link.timeout_s} s ({node})")
        except (LinkLost, LinkRefused) as failure:
            error = failure
        self._link.topology.suspect(node)
        self._fail(names, error)

    async def _detach(self, name: str, feed: Feed, number: int) -> None:
        try:
            await feed.unsubscribe(name, number)
        except LinkLost:
            # The feed ends, and with it the subscription.
            self._channels.left(number)

    async def _drop(self, feeds: Iterable[Feed], reason: LinkLost | LinkRefused) -> None:
        """Close connections, and tell those that wait for them."""
        for feed in feeds:
            del self._feeds[feed.node]
            self._link.topology.suspect(feed.node)
            self._let_go(feed, reason)
            await feed.close()

    def _feed(self, wire: Wire) -> Feed:
        return Feed(wire, self._on_message, self._answered, self._ended, sharded=self._link.sharded)

    def _answered(self, answer: Answer) -> None:
        if answer.error is not None:
            self._refusal = answer.error
            if isinstance(answer.error, Redirected) and not answer.error.asking:
                self._link.topology.moved(answer.error.slot, answer.error.node)
        self._channels.answered(answer)

    def _ended(self, feed: Feed, error: LinkLost | LinkRefused) -> None:
        self._refusal = error
        self._let_go(feed, error)
        self._inbox.put_nowait(_Lost(feed, error))

    def _fail(self, names: Iterable[str], error: LinkLost | LinkRefused) -> None:
        self._refusal = error
        for name in names:
            self._channels.fail(name, error)

    def _let_go(self, feed: Feed, reason: LinkLost | LinkRefused) -> None:
        self._channels.let_go(feed, reason)
        if self._channels.lost and not self._told_lost:
            self._told_lost = True
            _tell(self._on_lost)

    def _end_all(self, reason: LinkLost) -> None:
        """Answer the requests that nobody will look at."""
        while not self._inbox.empty():
            match self._inbox.get_nowait():
                case _Subscribe(done, _):
                    reject([done], reason)
                case _Unsubscribe(done, _) | _Restart(done):
                    resolve([done])


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _tell(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:  # the owner's fault must not end the messages of all
        internal(error)
