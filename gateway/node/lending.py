"""Watches of another node's clients on a collection hosted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec

from gateway.errors import HotindexError, InvalidMessage, Overloaded
from gateway.faults import internal
from gateway.node import exchange
from gateway.node.exchange import Greeting, Ready, Refused, UnwatchCall, WatchCall
from gateway.node.forms import FOR_EDGE
from gateway.node.hosted import Hosted
from gateway.node.watches import Opened
from gateway.protocol import checks
from gateway.protocol.messages import Message
from gateway.push.room import Sink

_OPENED_AT_ONCE = 64
_REACH_S = 4.0


class Lending:
    """What one edge watches. Call on the event loop; `end` comes last.

    All is told to one sink, in order. The edge keeps apart clients that are slow: while it reads, none of them holds up
    another.
    """

    def __init__(self, place: Callable[[], Hosted], sink: Sink) -> None:
        """`place` finds the collection, which may be another object after a while. It raises what is to be answered."""
        self._place = place
        self._sink = sink
        self._epoch = ""
        """Of the collection that the edge serves."""
        self._turn = asyncio.Semaphore(_OPENED_AT_ONCE)
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._opened: dict[str, Opened] = {}

    async def take(self, data: bytes) -> None:
        """Take a message of the edge; return once there is room for the next. Raises InvalidMessage for what is none."""
        try:
            message = exchange.decode_lending(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidMessage(f"watches: {error}") from None
        match message:
            case Greeting():
                await self._greet(message)
            case WatchCall():
                await self._begin(message)
            case UnwatchCall():
                self._leave(message.watch_id)

    async def end(self) -> None:
        """The edge is gone."""
        for task in self._opening.values():
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening.values())
        for opened in self._opened.values():
            opened.leave()

    async def _greet(self, greeting: Greeting) -> None:
        self._epoch = greeting.epoch
        try:
            # What it tells then is never older than what clients were told before by another host.
            await self._hosted().positions.reach(greeting.index_version, _REACH_S)
        except HotindexError as error:
            self._tell(Refused(failure=exchange.failure(error)))
        else:
            self._tell(Ready())

    def _hosted(self) -> Hosted:
        """Return the collection that the edge means: it may have been dropped, and made again, since the greeting."""
        hosted = self._place()
        if hosted.epoch != self._epoch:
            raise Overloaded(
                f"collection {hosted.name!r} is of epoch {hosted.epoch} here, not {self._epoch}", retry_after_s=1.0
            )
        return hosted

    async def _begin(self, call: WatchCall) -> None:
        if call.watch_id in self._opening or call.watch_id in self._opened:
            raise InvalidMessage(f"there is a watch {checks.show(call.watch_id)}", field="watch_id")
        await self._turn.acquire()
        task = asyncio.create_task(self._open(call))
        self._opening[call.watch_id] = task
        task.add_done_callback(partial(self._landed, call.watch_id))

    def _landed(self, watch_id: str, _: asyncio.Task[None]) -> None:
        del self._opening[watch_id]
        self._turn.release()

    async def _open(self, call: WatchCall) -> None:
        watch_id = call.watch_id
        try:
            await self._sink.drained()
            opened = await self._hosted().watch(call.command, watch_id, FOR_EDGE, self._sink, call.last)
        except HotindexError as error:
            self._tell(Refused(watch_id=watch_id, failure=exchange.failure(error)))
        except Exception as error:  # one watch's fault must not be everyone's
            self._tell(Refused(watch_id=watch_id, failure=exchange.failure(internal(error, watch=watch_id))))
        else:
            self._opened[watch_id] = opened
            self._tell(opened.reply)
            opened.begin()

    def _leave(self, watch_id: str) -> None:
        if watch_id in self._opened:
            self._opened.pop(watch_id).leave()
        elif watch_id in self._opening:
            self._opening[watch_id].cancel()

    def _tell(self, message: Message) -> None:
        self._sink.write(FOR_EDGE.written(message))
