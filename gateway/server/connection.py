"""A WebSocket that frames are written to as they are, straight to its descriptor while nothing waits before them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

CLOSE_TOO_SLOW = 4413
CLOSE_S = 2.0
"""How long a client has to take its close frame, and answer it."""

_SOCKET_BUFFER_BYTES = 128 << 10
"""What the kernel is asked to hold for one connection; it takes twice that. By itself it would go up to megabytes, for a
client that doesn't read too."""

_NONE = -1


class Connection(ServerConnection):
    """Whole frames go in, and never while a fragmented message is under way: the gateway sends none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard = True
        """Whether anything has come in since the last keep-alive ping."""
        self.waiting_before = 0
        """How many bytes waited for the network at that ping."""
        self.relieved = False
        """Whether what waited had mostly gone out at some time since."""
        self._descriptor = _NONE
        self._unsent: Callable[[], int]
        self._drained: asyncio.Event | None = None
        self._closing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        endpoint = transport.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        self._unsent = self.transport.get_write_buffer_size
        if transport.get_extra_info("sslcontext") is None:
            self._descriptor = endpoint.fileno()

    def offer(self, data: bytes) -> bool:
        """Take whole frames, or none of them (False) while the client doesn't take what was written before."""
        if self.paused:
            return False
        self.write(data)
        return True

    def write(self, data: bytes) -> None:
        """Take whole frames, unless the connection is closing."""
        if self._descriptor == _NONE or self._unsent():
            if self.protocol.state is State.OPEN:
                self.transport.write(data)
            return
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The transport meets the same error, and sees to it.
            self._descriptor = _NONE
            sent = 0
        if sent != len(data):
            self.transport.write(memoryview(data)[sent:])

    @property
    def waiting(self) -> int:
        """The number of bytes that wait for the network."""
        return self._unsent()

    @property
    def unread(self) -> bool:
        """Whether nothing is heard because the gateway doesn't listen: it is busy with what came before."""
        return not self.paused and not self.transport.is_reading()

    async def drained(self) -> bool:
        """Wait until the client takes more; False where the connection is gone."""
        while self.paused and self.protocol.state is State.OPEN:
            if self._drained is None:
                self._drained = asyncio.Event()
            await self._drained.wait()
        return self.protocol.state is State.OPEN

    def abandon(self, *, slow: bool = False) -> None:
        """Close the connection, for its slowness or for a fault of ours."""
        if slow:
            self.dismiss(CLOSE_TOO_SLOW, "too slow")
        else:
            self.transport.abort()

    def end(self) -> None:
        """A room is closed; the connection may have others, and goes on."""

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
        if self.protocol.state is not State.OPEN:
            # A close frame was the last.
            self._descriptor = _NONE

    def resume_writing(self) -> None:
        super().resume_writing()
        self.relieved = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        # The descriptor is closed right after this, and may then be another connection's.
        self._descriptor = _NONE
        super().connection_lost(exc)
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def data_received(self, data: bytes) -> None:
        self.heard = True
        super().data_received(data)
