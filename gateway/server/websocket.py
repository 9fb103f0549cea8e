"""The WebSocket edge: pumps between sockets, sessions and the node."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State as ConnectionState
from websockets.typing import Subprotocol

from gateway.errors import HotindexError, Overloaded
from gateway.faults import internal
from gateway.metrics import Metrics
from gateway.node.node import Node, Ticket
from gateway.protocol import messages
from gateway.protocol.codec import BY_SUBPROTOCOL, JSON
from gateway.protocol.framing import PING, frame
from gateway.protocol.messages import Message
from gateway.protocol.session import Limits, Perform, Reply, Session
from gateway.push.room import Subscriber
from gateway.server import replies

log = structlog.get_logger(__name__)

CLOSE_GOING_AWAY = 1001
CLOSE_NO_PONG = 4408
CLOSE_TOO_SLOW = 4413

_WRITE_BUFFER_BYTES = 64 << 10
_DRAIN_S = 5.0
_CLOSE_S = 2.0
_READS_AT_ONCE = 4


class Connection(ServerConnection):
    """A socket that frames are written to as they are, and that tells when it takes more."""

    heard = True
    """Whether anything has come in since the last keep-alive ping."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def writable(self) -> bool:
        return not self.paused and self.protocol.state is ConnectionState.OPEN

    def write(self, data: bytes) -> None:
        # Whole frames, and never while a fragmented message is under way: the gateway sends none.
        if self.protocol.state is ConnectionState.OPEN:
            self.transport.write(data)

    @property
    def unread(self) -> bool:
        """Whether nothing is heard because the gateway doesn't listen: it is busy with what came before."""
        return self.writable and not self.transport.is_reading()

    async def drained(self) -> bool:
        await self._drained.wait()
        return self.protocol.state is ConnectionState.OPEN

    def abandon(self) -> None:
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drained.clear()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drained.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._drained.set()

    def data_received(self, data: bytes) -> None:
        self.heard = True
        super().data_received(data)


class Conversation:
    """One connection's session, and what it has under way."""

    def __init__(self, connection: Connection, session: Session, node: Node, metrics: Metrics) -> None:
        self.connection = connection
        self.session = session
        self._node = node
        self._metrics = metrics
        self._subscribers: dict[str, Subscriber] = {}
        self._reads: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Semaphore(_READS_AT_ONCE)
        self._under_way = 0
        self._progress = asyncio.Event()

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
            self._progress.clear()
            await self._progress.wait()
        await self.connection.drained()

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            self._progress.clear()
            await self._progress.wait()

    def end(self) -> None:
        """The connection is gone. What was submitted is still applied."""
        self.session.close()
        for name, subscriber in self._subscribers.items():
            self._node.unsubscribe(name, subscriber)
        for read in self._reads:
            read.cancel()

    async def _perform(self, step: Perform) -> None:
        match step.command:
            case messages.Subscribe():
                self._subscribe(step, step.command)
            case messages.Unsubscribe():
                self._unsubscribe(step, step.command)
            case messages.Get() | messages.Search():
                read = asyncio.create_task(self._read(step, step.command))
                self._reads.add(read)
                read.add_done_callback(self._reads.discard)
            case (
                messages.Upsert()
                | messages.Patch()
                | messages.Delete()
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
        else:
            self._answer(step, replies.ack(ticket.collection, outcome))

    async def _read(self, step: Perform, command: messages.Read) -> None:
        """Answer a read once the client has taken what it was answered before: a few answers at a time are in memory."""
        async with self._reading:
            await self.connection.drained()
            await self._look_up(step, command)

    async def _look_up(self, step: Perform, command: messages.Read) -> None:
        codec = self.session.codec
        answer: Message
        try:
            if isinstance(command, messages.Get):
                answer = replies.document(*await self._node.get(command), command.include, codec)
            else:
                answer = replies.results(*await self._node.search(command), command.include, codec)
        except HotindexError as error:
            self._fail(step, error)
        except Exception as error:  # as in take
            self._fail(step, internal(error, client=self.session.client_id))
        else:
            self._answer(step, answer)

    def _subscribe(self, step: Perform, command: messages.Subscribe) -> None:
        membership = self._node.subscribe(command, self.session.codec, self.connection)
        name = membership.collection
        self.session.enter(name)
        if name in self._subscribers:
            self._node.unsubscribe(name, self._subscribers.pop(name))
        self._answer(
            step,
            messages.Subscribed(
                collection=name,
                index_version=membership.index_version,
                epoch=membership.epoch,
                recovered=membership.recovered,
            ),
        )
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
        self._progress.set()
        self._metrics.commands.labels(messages.name_of(step.command), outcome).inc()

    def _send(self, data: bytes) -> None:
        self.connection.write(frame(data, binary=self.session.codec.binary))


class WebSocketServer:
    """Serves the node between `start` and `stop`. `now` gives microseconds since the epoch."""

    def __init__(
        self, node: Node, metrics: Metrics, limits: Limits, ping_interval_s: float, now: Callable[[], int]
    ) -> None:
        self._node = node
        self._metrics = metrics
        self._limits = limits
        self._ping_interval_s = ping_interval_s
        self._now = now
        self._conversations: set[Conversation] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._server: Server | None = None
        self._keepalive: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port bound. Raises OSError where that isn't possible."""
        self._server = await serve(
            self._converse,
            host,
            port,
            subprotocols=[Subprotocol(name) for name in BY_SUBPROTOCOL],
            select_subprotocol=_select,
            compression=None,
            server_header="hotindex",
            ping_interval=None,
            close_timeout=_CLOSE_S,
            max_size=2 * self._limits.message_bytes,
            write_limit=_WRITE_BUFFER_BYTES,
            create_connection=Connection,
            backlog=4096,
        )
        self._keepalive = asyncio.create_task(self._keep_alive(), name="keepalive")
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Refuse new commands, answer those under way, close all connections."""
        assert self._server is not None, "stop comes after start"
        assert self._keepalive is not None, "stop comes after start"
        self._stopping = True
        self._keepalive.cancel()
        idle = [asyncio.ensure_future(conversation.idle()) for conversation in self._conversations]
        if idle:
            _, late = await asyncio.wait(idle, timeout=_DRAIN_S)
            for one in late:
                one.cancel()
        self._server.close(code=CLOSE_GOING_AWAY, reason="the gateway is shutting down")
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._server.wait_closed()
        except TimeoutError:
            # Who doesn't read what was sent before doesn't read the close frame either.
            for conversation in list(self._conversations):
                conversation.connection.abandon()
            await self._server.wait_closed()

    async def _converse(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Connection), "create_connection makes these"
        codec = BY_SUBPROTOCOL.get(connection.subprotocol or "", JSON)
        session = Session(uuid.uuid4().hex, codec, self._limits, self._now)
        conversation = Conversation(connection, session, self._node, self._metrics)
        self._conversations.add(conversation)
        self._metrics.connections.inc()
        try:
            connection.write(frame(session.open(self._node.name, self._ping_interval_s), binary=codec.binary))
            while True:
                data = await connection.recv(decode=False)
                if self._stopping:
                    connection.write(frame(session.refuse(data, _shutting_down()), binary=codec.binary))
                else:
                    await conversation.take(data)
        except ConnectionClosed:
            pass
        finally:
            self._metrics.connections.dec()
            self._conversations.discard(conversation)
            conversation.end()

    async def _keep_alive(self) -> None:
        """Ping all connections at once, and close those that sent nothing since the ping before."""
        while True:
            await asyncio.sleep(self._ping_interval_s)
            for conversation in list(self._conversations):
                connection = conversation.connection
                if connection.heard or connection.unread:
                    connection.heard = False
                    connection.write(PING)
                else:
                    log.info("no_pong", client=conversation.session.client_id)
                    closing = asyncio.create_task(connection.close(CLOSE_NO_PONG, "no pong"))
                    self._closing.add(closing)
                    closing.add_done_callback(self._closing.discard)


def _shutting_down() -> HotindexError:
    return Overloaded("the gateway is shutting down", retry_after_s=1.0)


def _select(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in offered if name in BY_SUBPROTOCOL), None)
