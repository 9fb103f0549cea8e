"""The WebSocket edge: accepts connections, keeps them alive, ends them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import structlog

from gateway.errors import HotindexError, Overloaded
from gateway.metrics import Metrics
from gateway.node.node import Node
from gateway.protocol.codec import BY_SUBPROTOCOL, JSON
from gateway.protocol.framing import PING, frame
from gateway.protocol.session import Limits, Session
from gateway.server.connection import CLOSE_S, CLOSE_TOO_SLOW, Connection, Listening, listen
from gateway.server.conversation import Conversation

log = structlog.get_logger(__name__)

CLOSE_GOING_AWAY = 1001
CLOSE_NO_PONG = 4408
CLOSE_TOO_MANY = 4429

_DRAIN_S = 5.0


class WebSocketServer:
    """Serves the node between `start` and `stop`. `now` gives microseconds since the epoch."""

    def __init__(
        self,
        node: Node,
        metrics: Metrics,
        limits: Limits,
        max_connections: int,
        ping_interval_s: float,
        now: Callable[[], int],
    ) -> None:
        self._node = node
        self._metrics = metrics
        self._limits = limits
        self._max_connections = max_connections
        self._ping_interval_s = ping_interval_s
        self._now = now
        self._conversations: set[Conversation] = set()
        self._stopping = False
        self._server: Listening | None = None
        self._keepalive: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port bound. Raises OSError where that isn't possible."""
        max_bytes = 2 * self._limits.message_bytes
        self._server = await listen(self._converse, host, port, [*BY_SUBPROTOCOL], max_bytes)
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
            async with asyncio.timeout(CLOSE_S):
                await self._server.wait_closed()
        except TimeoutError:
            # Who doesn't read what was sent before doesn't read the close frame either.
            for conversation in list(self._conversations):
                conversation.connection.outlet.abandon()
            await self._server.wait_closed()

    async def _converse(self, connection: Connection) -> None:
        if len(self._conversations) >= self._max_connections:
            await connection.close(CLOSE_TOO_MANY, f"more than {self._max_connections} connections")
            return
        codec = BY_SUBPROTOCOL.get(connection.subprotocol or "", JSON)
        session = Session(uuid.uuid4().hex, codec, self._limits, self._now)
        conversation = Conversation(connection, session, self._node, self._metrics)
        self._conversations.add(conversation)
        self._metrics.connections.inc()
        try:
            connection.outlet.write(frame(session.open(self._node.name, self._ping_interval_s), binary=codec.binary))
            while (data := await connection.receive()) is not None:
                if self._stopping:
                    connection.outlet.write(frame(session.refuse(data, _shutting_down()), binary=codec.binary))
                else:
                    await conversation.take(data)
        finally:
            self._metrics.connections.dec()
            self._conversations.discard(conversation)
            conversation.end()

    async def _keep_alive(self) -> None:
        """Ping all connections at once, and close those that are gone or stuck."""
        while True:
            await asyncio.sleep(self._ping_interval_s)
            for conversation in list(self._conversations):
                _look_after(conversation)


def _look_after(conversation: Conversation) -> None:
    """Close a connection that took nothing of what waits for it since the last ping, or that sent nothing; ping others."""
    connection = conversation.connection
    before, connection.waiting_before = connection.waiting_before, connection.waiting
    relieved, connection.relieved = connection.relieved, False
    if connection.paused:
        if 0 < before <= connection.waiting and not relieved:
            log.info("not_reading", client=conversation.session.client_id, waiting_bytes=connection.waiting)
            connection.dismiss(CLOSE_TOO_SLOW, "nothing of what was sent was read")
    elif connection.heard or connection.unread:
        connection.heard = False
        connection.outlet.write(PING)
    else:
        log.info("no_pong", client=conversation.session.client_id)
        connection.dismiss(CLOSE_NO_PONG, "no pong")


def _shutting_down() -> HotindexError:
    return Overloaded("the gateway is shutting down", retry_after_s=1.0)
