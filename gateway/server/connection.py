"""A WebSocket that frames are written to as they are, straight to its descriptor while nothing waits before them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State
from websockets.typing import Subprotocol

from gateway.server.buffers import bounded

CLOSE_TOO_SLOW = 4413
CLOSE_S = 2.0
"""How long a client has to take its close frame, and answer it."""


class Outlet:
    """Where whole frames go out. The gateway sends no fragmented messages, so frames may go between any two others.

    Small and apart from the connection: with thousands of subscribers it is the processor's cache that a fan-out waits for.
    """

    __slots__ = ("_connection", "_descriptor", "_direct", "_transport")

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._descriptor = bounded(transport).fileno()
        self._direct = False
        """Whether nothing waits in the transport, so that what is written to the descriptor comes after all before it."""

    def review(self) -> None:
        """Look again whether the descriptor may be written to, after what may have changed that."""
        connection = self._connection
        self._direct = (
            connection.protocol.state is State.OPEN
            and not connection.paused
            and self._transport.get_extra_info("sslcontext") is None
        )

    def close(self) -> None:
        """Write nothing more: the descriptor may be another connection's from now on."""
        self._direct = False

    def offer(self, data: bytes) -> bool:
        """Take whole frames, or none of them (False) while the client doesn't take what was written before."""
        if not self._direct:
            if self._connection.paused:
                return False
            self.write(data)
            return True
        try:
            sent = os.write(self._descriptor, data)
        except OSError:
            # It takes nothing now, or is broken; the transport finds out which.
            sent = 0
        if sent != len(data):
            self._transport.write(memoryview(data)[sent:])
        return True

    def write(self, data: bytes) -> None:
        """Take whole frames, unless the connection is closing."""
        if self._direct:
            self.offer(data)
        elif self._connection.protocol.state is State.OPEN:
            self._transport.write(data)

    async def drained(self) -> bool:
        """Wait until the client takes more; False where the connection is gone."""
        return await self._connection.drained()

    def abandon(self, *, slow: bool = False) -> None:
        """Close the connection, for its slowness or for a fault of ours."""
        if slow:
            self._connection.dismiss(CLOSE_TOO_SLOW, "too slow")
        else:
            self._transport.abort()

    def end(self) -> None:
        """A room is closed; the connection may have others, and goes on."""


class Connection(ServerConnection):
    """`outlet` is there once it is connected."""

    outlet: Outlet

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard = True
        """Whether anything has come in since the last keep-alive ping."""
        self.waiting_before = 0
        """How many bytes waited for the network at that ping."""
        self.relieved = False
        """Whether all that waited had gone out at some time since."""
        self._drained: asyncio.Event | None = None
        self._closing: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.outlet = Outlet(self, self.transport)

    async def receive(self) -> bytes | None:
        """Return the next message, None once the connection is closed."""
        try:
            return await self.recv(decode=False)
        except ConnectionClosed:
            return None

    @property
    def waiting(self) -> int:
        """The number of bytes that wait for the network."""
        return self.transport.get_write_buffer_size()

    @property
    def unread(self) -> bool:
        """Whether nothing is heard because the gateway doesn't listen: it is busy with what came before."""
        return not self.paused and not self.transport.is_reading()

    async def drained(self) -> bool:
        """Wait until nothing waits; False where the connection is gone."""
        while self.paused and self.protocol.state is State.OPEN:
            if self._drained is None:
                self._drained = asyncio.Event()
            await self._drained.wait()
        return self.protocol.state is State.OPEN

    def dismiss(self, code: int, reason: str) -> None:
        """Close the connection, without waiting for it."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_in_time(code, reason))

    async def _close_in_time(self, code: int, reason: str) -> None:
        # close() has a time limit of its own, but first waits for a client that doesn't read.
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.close(code, reason)
        except TimeoutError:
            self.transport.abort()

    def send_data(self) -> None:
        super().send_data()
        self.outlet.review()
        if self._end is None and self.protocol.state is State.CLOSING:
            # Whatever still comes in, once one side has closed the other has not for ever.
            self._end = self.loop.call_later(CLOSE_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.outlet.review()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.outlet.review()
        self.relieved = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.outlet.close()
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def data_received(self, data: bytes) -> None:
        self.heard = True
        super().data_received(data)


Listening: TypeAlias = Server


async def listen(
    converse: Callable[[Connection], Awaitable[None]], host: str, port: int, subprotocols: Sequence[str], max_bytes: int
) -> Listening:
    """Accept connections, and run `converse` for each. Raises OSError where that isn't possible."""

    async def handle(connection: ServerConnection) -> None:
        assert isinstance(connection, Connection), "create_connection makes these"
        await converse(connection)

    return await serve(
        handle,
        host,
        port,
        subprotocols=[Subprotocol(name) for name in subprotocols],
        select_subprotocol=_select,
        compression=None,
        server_header="hotindex",
        ping_interval=None,
        close_timeout=CLOSE_S,
        max_size=max_bytes,
        # A transport counts as full with the first byte that waits: then the descriptor may not be written to.
        write_limit=(0, 0),
        create_connection=Connection,
        backlog=4096,
    )


def _select(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    known = connection.protocol.available_subprotocols or ()
    return next((name for name in offered if name in known), None)
