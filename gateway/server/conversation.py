"""One WebSocket client's session, and what it has under way: between the socket and the node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from gateway.engine.types import Done, Status
from gateway.errors import HotindexError, NotFound
from gateway.faults import internal
from gateway.metrics import Metrics
from gateway.node.node import Node
from gateway.node.values import Ticket
from gateway.node.watches import Opened
from gateway.protocol import checks, messages
from gateway.protocol.framing import frame
from gateway.protocol.messages import Message
from gateway.protocol.session import Perform, Reply, Session, error_message
from gateway.push.room import Subscriber
from gateway.server import replies
from gateway.server.connection import Connection

_READS_AT_ONCE = 4

_Tell: TypeAlias = Callable[[], None]
"""Writes an answer."""


class _Reads:
    """The reads of a connection that are under way: a few answers at a time are in memory."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(_READS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, read: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(read)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class Conversation:
    """One connection's session, and what it has under way."""

    __slots__ = (
        "_acks", "_learning", "_metrics", "_node", "_progress", "_reads", "_subscribers", "_under_way", "_watches",
        "connection", "session",
    )  # fmt: skip

    def __init__(self, connection: Connection, session: Session, node: Node, metrics: Metrics) -> None:
        self.connection = connection
        self.session = session
        self._node = node
        self._metrics = metrics
        self._subscribers: dict[str, Subscriber] = {}
        self._watches: dict[str, Opened] = {}
        self._reads: _Reads | None = None
        """Most connections never read; thousands may be open."""
        self._learning: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._progress: asyncio.Event | None = None
        self._acks: list[bytes] = []
        """Written together, once all that was committed together is answered: a system call costs more than an answer."""

    async def take(self, data: bytes) -> None:
        """Answer one message, or start on it; returns once there is room for the next."""
        step = self.session.receive(data)
        if isinstance(step, Reply):
            self._send(step.data)
        else:
            self._under_way += 1
            try:
                await self._perform(step)
            except HotindexError as error:
                self._fail(step, error)
            except Exception as error:  # one command's fault must not end its connection
                self._fail(step, internal(error, client=self.session.client_id))
        while self.session.full:
            await self._landing()
        await self.connection.drained()

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            await self._landing()

    async def _landing(self) -> None:
        """Wait until something that was under way is done."""
        if self._progress is None:
            self._progress = asyncio.Event()
        await self._progress.wait()

    def end(self) -> None:
        """The connection is gone. What was submitted is still applied."""
        self.session.close()
        for name, subscriber in self._subscribers.items():
            self._node.unsubscribe(name, subscriber)
        for opened in self._watches.values():
            opened.leave()
        if self._reads is not None:
            self._reads.cancel()

    async def _perform(self, step: Perform) -> None:
        match step.command:
            case messages.Subscribe():
                await self._subscribe(step, step.command)
            case messages.Unsubscribe():
                self._unsubscribe(step, step.command)
            case messages.Get() | messages.Search():
                self._start_read(step, partial(self._look_up, step, step.command))
            case messages.Watch():
                self._start_read(step, partial(self._watch, step, step.command, self._new_watch()))
            case messages.UserInteraction() | messages.UserEvent():
                # Not ended with the connection: what was taken is learned.
                task = asyncio.create_task(self._learn(step, step.command, asyncio.get_running_loop().time()))
                self._learning.add(task)
                task.add_done_callback(self._learning.discard)
            case messages.Unwatch():
                self._unwatch(step, step.command)
            case (
                messages.Upsert()
                | messages.Patch()
                | messages.Delete()
                | messages.Transaction()
                | messages.ProductCreated()
                | messages.ProductUpdated()
                | messages.ProductDeleted()
            ):
                ticket = await self._node.submit(step.command, step.size_bytes)
                ticket.outcome.add_done_callback(lambda _: self._written(step, ticket))
            case _:
                raise AssertionError(f"no way to perform {step.command}")

    def _written(self, step: Perform, ticket: Ticket) -> None:
        outcome = ticket.outcome.result()
        if isinstance(outcome, HotindexError):
            self._fail(step, outcome)
            return
        self._landed(step, "ok")
        ack = self.session.answer(step, replies.ack(ticket.collection, outcome))
        if not self._acks:
            # The outcomes of one commit are told in one turn of the loop.
            asyncio.get_running_loop().call_soon(self._flush)
        self._acks.append(frame(ack, binary=self.session.codec.binary))

    def _flush(self) -> None:
        acks, self._acks = self._acks, []
        if acks:
            self.connection.outlet.write(b"".join(acks))

    async def _learn(self, step: Perform, command: messages.Learn, began: float) -> None:
        try:
            collection, done = await self._node.learn(command)
        except HotindexError as error:
            self._fail(step, error)
        except Exception as error:  # as in take
            self._fail(step, internal(error, client=self.session.client_id))
        else:
            if isinstance(command, messages.UserEvent):
                await self._tell_learned(step, collection, command.user_id, done, began)
            else:
                self._answer(step, replies.ack(collection, done))

    async def _tell_learned(self, step: Perform, collection: str, user_id: str, done: Done, began: float) -> None:
        """Answer an event of a user, then tell what is recommended now, unless a watch of this connection does."""
        learned = any(result.status is not Status.DUPLICATE for result in done.results)
        latency_ms = round(1000 * (asyncio.get_running_loop().time() - began), 3)
        self._answer(step, messages.SyncResult(success=True, latency_ms=latency_ms, recommendations_updated=learned))
        if not learned or any(
            (opened.user_id, opened.reply.collection) == (user_id, collection) for opened in self._watches.values()
        ):
            return
        try:
            _, answer = await self._node.search(messages.Search(collection=collection, user_id=user_id))
        except HotindexError as error:
            self._send(self.session.codec.encode(error_message(error)))
        except Exception as error:  # as in take
            self._send(self.session.codec.encode(error_message(internal(error, client=self.session.client_id))))
        else:
            self._send(
                self.session.codec.encode(replies.recommendations(collection, user_id, answer, self._node.now()))
            )

    def _start_read(self, step: Perform, work: Callable[[], Awaitable[_Tell]]) -> None:
        if self._reads is None:
            self._reads = _Reads()
        self._reads.start(self._read(self._reads, step, work))

    async def _read(self, reads: _Reads, step: Perform, work: Callable[[], Awaitable[_Tell]]) -> None:
        """Answer a read once the client has taken what it was answered before."""
        async with reads.turn:
            await self.connection.drained()
            try:
                tell = await work()
            except HotindexError as error:
                self._fail(step, error)
            except Exception as error:  # as in take
                self._fail(step, internal(error, client=self.session.client_id))
            else:
                tell()

    async def _look_up(self, step: Perform, command: messages.Get | messages.Search) -> _Tell:
        codec = self.session.codec
        answer: Message
        if isinstance(command, messages.Get):
            answer = replies.document(*await self._node.get(command), command.include, codec)
        else:
            answer = replies.results(*await self._node.search(command), command.include, codec)
        return partial(self._answer, step, answer)

    def _new_watch(self) -> str:
        for watch_id in [watch_id for watch_id, opened in self._watches.items() if opened.live.closed]:
            self.session.watches.discard(watch_id)
            del self._watches[watch_id]
        return self.session.begin_watch()

    async def _watch(self, step: Perform, command: messages.Watch, watch_id: str) -> _Tell:
        try:
            opened = await self._node.watch(command, watch_id, self.session.codec, self.connection.outlet)
        except BaseException:
            self.session.watches.discard(watch_id)
            raise
        return partial(self._begin_watch, step, opened)

    def _begin_watch(self, step: Perform, opened: Opened) -> None:
        self._watches[opened.reply.watch_id] = opened
        self._answer(step, opened.reply)
        opened.begin()

    def _unwatch(self, step: Perform, command: messages.Unwatch) -> None:
        opened = self._watches.pop(command.watch_id, None)
        if opened is None:
            raise NotFound(f"this connection has no watch {checks.show(command.watch_id)}", field="watch_id")
        self.session.watches.discard(command.watch_id)
        opened.leave()
        self._answer(step, messages.Unwatched(watch_id=command.watch_id))

    async def _subscribe(self, step: Perform, command: messages.Subscribe) -> None:
        membership = await self._node.subscribe(command, self.session.codec, self.connection.outlet)
        name = membership.collection
        for other in [other for other, subscriber in self._subscribers.items() if subscriber.closed]:
            self.session.rooms.discard(other)
            del self._subscribers[other]
        self.session.enter(name)
        if name in self._subscribers:
            self._node.unsubscribe(name, self._subscribers.pop(name))
        self._answer(step, membership.reply())
        self._subscribers[name] = membership.join()

    def _unsubscribe(self, step: Perform, command: messages.Unsubscribe) -> None:
        name = self._node.resolve(command.collection)
        self.session.rooms.discard(name)
        if name in self._subscribers:
            self._node.unsubscribe(name, self._subscribers.pop(name))
        self._answer(step, messages.Unsubscribed(collection=name))

    def _answer(self, step: Perform, message: Message) -> None:
        self._landed(step, "ok")
        self._send(self.session.answer(step, message))

    def _fail(self, step: Perform, error: HotindexError) -> None:
        self._landed(step, error.code)
        self._send(self.session.fail(step, error))

    def _landed(self, step: Perform, outcome: str) -> None:
        self._under_way -= 1
        if self._progress is not None:
            self._progress.set()
            self._progress = None
        self._metrics.count_command(messages.name_of(step.command), outcome)

    def _send(self, data: bytes) -> None:
        self._flush()
        self.connection.outlet.write(frame(data, binary=self.session.codec.binary))
