"""What clients of this node watch in a collection that others host.

All watches of a collection are lent by one host, over one connection. What it tells of them is kept, and each client is
told one difference from what it was told last whenever it takes one: so a client that is slow holds up no other, and when
the host is lost another one's first answer is told as a difference too. Until there is one, nothing is told.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog

from gateway.errors import HotindexError, Internal, NotFound, Overloaded
from gateway.faults import internal
from gateway.metrics import RelayState
from gateway.node import exchange, watches
from gateway.node.exchange import Greeting, Ready, Refused, UnwatchCall, WatchCall
from gateway.node.forms import Form
from gateway.node.parking import Parking
from gateway.node.peers import PeerChannel, PeerFailed
from gateway.node.relayed import Recommended, Told, TopK
from gateway.node.watches import Opened
from gateway.protocol import messages
from gateway.push.room import Sink

log = structlog.get_logger(__name__)

_TRIES = 3
_HEARD_AT_ONCE = 64
_RETRY_S = 1.0
_PAUSE_S = 0.2

Connect = Callable[[Greeting], AbstractAsyncContextManager[PeerChannel]]
"""Finds a host. See `gateway.node.remote.Calls.watches`."""


@dataclass(eq=False, slots=True)
class Relayed:
    """A client's watch. `first` becomes its first answer; it is told nothing more before it has `begun`."""

    watch_id: str
    command: messages.Watch
    form: Form
    sink: Sink
    least_pause_s: float
    told: Told
    first: asyncio.Future[messages.Watching]
    lent_as: str | None = None
    """By which id the host knows it."""
    losses: int = 0
    """How many hosts were lost before one had answered."""
    begun: bool = False
    closed: bool = False
    due: float = -math.inf
    timer: asyncio.TimerHandle | None = None
    retry: asyncio.TimerHandle | None = None

    def call(self, lent_as: str) -> WatchCall:
        """Return what asks for it: of a text that was embedded, by its vector."""
        query = self.told.query
        if query is None or self.command.text is None:
            return WatchCall(lent_as, self.command, query)
        return WatchCall(lent_as, msgspec.structs.replace(self.command, text=None, vector=query))

    def write(self, message: messages.Message) -> None:
        self.sink.write(self.form.written(message))


class Relaying:
    """Call on the event loop; `stop` comes last. There is no connection while nobody watches.

    `now` gives microseconds since the epoch.
    """

    def __init__(self, collection: str, epoch: str, connect: Connect, now: Callable[[], int]) -> None:
        self._collection = collection
        self._epoch = epoch
        self._connect = connect
        self._now = now
        self._watches: dict[Relayed, None] = {}
        self._lent: dict[str, Relayed] = {}
        self._ids = map(str, itertools.count(1))
        self._wanting: dict[Relayed, None] = {}
        """Those a host is to be asked for."""
        self._given_back: list[str] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._parking: Parking[Relayed] = Parking(self._tell)
        self._ended = self._dropped = False
        self.updates = 0
        self.lost = 0
        """How often a host was lost."""

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def behind(self) -> int:
        """The number of watches that wait for their sockets."""
        return len(self._parking)

    def state(self) -> RelayState:
        return RelayState(self._collection, len(self), self.behind, self.updates, self.lost)

    async def watch(self, command: messages.Watch, watch_id: str, form: Form, sink: Sink) -> Opened:
        """Return a watch that is told of changes once its answer was written and `begin` called.

        Raises what a host finds wrong with it, and Overloaded where none can be reached. Where this is cancelled, there is
        no watch.
        """
        if self._ended:
            raise self._gone()
        pause_s = watches.least_pause_s(command)
        user_id = command.user_id
        told = TopK() if user_id is None else Recommended(self._collection, user_id)
        first = asyncio.get_running_loop().create_future()
        relayed = Relayed(watch_id, command, form, sink, pause_s, told, first)
        self._watches[relayed] = None
        self._want(relayed)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"watches elsewhere {self._collection}")
        try:
            reply = await first
        except BaseException:
            self._leave(relayed)
            raise
        return Opened(relayed, reply, partial(self._begin, relayed), partial(self._leave, relayed), user_id)

    def close(self) -> None:
        """Tell every watch that there is no more to come: the collection is dropped."""
        self._ended = self._dropped = True
        for relayed in list(self._watches):
            self._close(relayed)

    def abandon(self) -> None:
        """Close the connections of all watches: they come back, and watch what takes this collection's place."""
        self._ended = True
        for relayed in list(self._watches):
            self._end(relayed, self._gone())
            relayed.sink.abandon()

    async def stop(self) -> None:
        self.abandon()
        await self._parking.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _gone(self) -> HotindexError:
        if self._dropped:
            return _no_collection(self._collection)
        return Overloaded(f"collection {self._collection!r} is about to be served anew", retry_after_s=_RETRY_S)

    def _close(self, relayed: Relayed) -> None:
        self._end(relayed, _no_collection(self._collection))
        if relayed.begun:
            relayed.write(messages.Unwatched(watch_id=relayed.watch_id, collection=self._collection))

    def _end(self, relayed: Relayed, reason: HotindexError) -> None:
        if not relayed.first.done():
            relayed.first.set_exception(reason)
        self._leave(relayed)

    def _begin(self, relayed: Relayed) -> None:
        relayed.begun = True
        if relayed.closed:
            relayed.write(messages.Unwatched(watch_id=relayed.watch_id, collection=self._collection))
        self._tell(relayed)

    def _leave(self, relayed: Relayed) -> None:
        """Remove a watch; nothing is written to it after."""
        if relayed.closed:
            return
        relayed.closed = True
        for timer in (relayed.timer, relayed.retry):
            if timer is not None:
                timer.cancel()
        del self._watches[relayed]
        self._wanting.pop(relayed, None)
        self._give_back(relayed)
        self._wake.set()

    def _give_back(self, relayed: Relayed) -> None:
        if relayed.lent_as is not None:
            del self._lent[relayed.lent_as]
            self._given_back.append(relayed.lent_as)
            relayed.lent_as = None

    def _want(self, relayed: Relayed) -> None:
        """Ask the host for a watch, in the place of the one it may have."""
        relayed.retry = None
        self._give_back(relayed)
        self._wanting[relayed] = None
        self._wake.set()

    async def _run(self) -> None:
        try:
            while self._watches:
                await self._at_a_host()
        except Exception as error:  # without this task they would be told nothing; they come back, and watch anew
            fault = internal(error, collection=self._collection)
            for relayed in list(self._watches):
                self._end(relayed, fault)
                relayed.sink.abandon()
        self._task = None

    async def _at_a_host(self) -> None:
        """Follow a host while it is there, and anybody watches."""
        least = max(relayed.told.index_version for relayed in self._watches)
        try:
            async with self._connect(Greeting(self._epoch, least)) as channel:
                await self._follow(channel)
            return
        except PeerFailed as error:
            self.lost += 1
            log.warning("watches_lost", collection=self._collection, watches=len(self), reason=str(error))
            self._count_loss()
        except HotindexError as error:
            for relayed in list(self._watches):
                if not relayed.first.done():
                    relayed.first.set_exception(error)
        await asyncio.sleep(_PAUSE_S)

    async def _follow(self, channel: PeerChannel) -> None:
        self._lent.clear()
        self._given_back.clear()
        for relayed in self._watches:
            if relayed.retry is not None:
                relayed.retry.cancel()
            relayed.lent_as = relayed.retry = None
            self._wanting[relayed] = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(channel))
                group.create_task(self._hear(channel))
        except* PeerFailed as failed:
            raise PeerFailed(str(failed.exceptions[0])) from None

    def _count_loss(self) -> None:
        """Give up watches that host after host was lost with before it had answered."""
        for relayed in self._watches:
            if not relayed.first.done():
                relayed.losses += 1
                if relayed.losses >= _TRIES:
                    reason = f"{_TRIES} nodes that host collection {self._collection!r} were lost with this watch"
                    relayed.first.set_exception(Overloaded(reason, retry_after_s=_RETRY_S))

    async def _ask(self, channel: PeerChannel) -> None:
        """Ask the host for watches, and give them back, until there is none."""
        while self._watches:
            self._wake.clear()
            while self._given_back:
                await channel.send(exchange.encode(UnwatchCall(self._given_back.pop())))
            while self._wanting:
                relayed, _ = self._wanting.popitem()  # the newest, whose client waits for an answer
                lent_as = relayed.lent_as = next(self._ids)
                self._lent[lent_as] = relayed
                await channel.send(exchange.encode(relayed.call(lent_as)))
            await self._wake.wait()
        await channel.close()

    async def _hear(self, channel: PeerChannel) -> None:
        heard = 0
        async for frame in channel.frames:
            try:
                message = exchange.decode_lent(frame)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise PeerFailed(f"{channel.http} sent something else: {error}") from None
            self._take(message)
            heard += 1
            if heard % _HEARD_AT_ONCE == 0:
                await asyncio.sleep(0)  # frames that came together come without waiting for anything

    def _take(self, message: exchange.Lent) -> None:
        assert not isinstance(message, Ready), "that came first"
        relayed = self._lent.get(message.watch_id or "")
        if relayed is None:
            return  # given back meanwhile
        match message:
            case messages.Watching():
                relayed.told.start(message, self._now())
                if not relayed.first.done():
                    relayed.first.set_result(relayed.told.first(relayed.watch_id, relayed.form))
                else:
                    self._tell(relayed)
            case messages.WatchUpdate() | messages.RecommendationUpdate():
                relayed.told.follow(message)
                self._tell(relayed)
            case messages.Unwatched():
                self._close(relayed)
            case Refused():
                self._refused(relayed, exchange.error(message.failure))

    def _refused(self, relayed: Relayed, error: HotindexError) -> None:
        assert relayed.lent_as is not None, "that is how it was found"
        del self._lent[relayed.lent_as]
        relayed.lent_as = None
        if not relayed.first.done():
            relayed.first.set_exception(error)
        elif error.retryable or isinstance(error, Internal) or error.field == "collection":
            relayed.retry = asyncio.get_running_loop().call_later(_RETRY_S, self._want, relayed)
        else:
            # It wasn't refused by the host before, and would be silent for good: who asks again is told why.
            log.warning("watch_refused", collection=self._collection, reason=error.message)
            self._leave(relayed)
            relayed.sink.abandon()

    def _tell(self, relayed: Relayed) -> None:
        """Tell a client what there is to tell; where it can't be told now, when it can."""
        loop = asyncio.get_running_loop()
        if relayed.closed or not relayed.begun:
            return
        if loop.time() < relayed.due:
            if relayed.timer is None:
                relayed.timer = loop.call_at(relayed.due, self._is_due, relayed)
            return
        if not relayed.sink.offer(b""):
            self._parking.park(relayed)
            return
        if news := relayed.told.news(relayed.watch_id, relayed.form):
            relayed.write(news)
            self.updates += 1
            relayed.due = loop.time() + relayed.least_pause_s

    def _is_due(self, relayed: Relayed) -> None:
        relayed.timer = None
        self._tell(relayed)


def _no_collection(name: str) -> NotFound:
    return NotFound(f"no collection {name!r}", field="collection")
