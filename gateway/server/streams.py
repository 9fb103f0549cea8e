"""Sinks whose bytes go out over HTTP: those of Server-Sent Events, and of what other nodes follow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.server.buffers import bounded

_PIECE_BYTES = 64 << 10
"""What is written at a time: a client that takes one now and then is slow, but not stuck."""

CONTENT_TYPE = "text/event-stream"


class EventStream:
    """A sink that holds what is on its way out, and takes nothing more while that is over `room_bytes`. Call on the event
    loop.

    `ping` is what keeps it alive while there is nothing to say.
    """

    def __init__(self, transport: asyncio.Transport, ping: bytes, room_bytes: int = 0) -> None:
        bounded(transport)
        self._ping = ping
        self._room_bytes = room_bytes
        self._transport = transport
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        """With what is being written, which is in `_waiting` no more."""
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._open = True
        self._stuck = False

    def offer(self, data: bytes) -> bool:
        # Once it has ended it takes, and drops, everything: nobody must wait for it.
        if self._open and self._waiting_bytes > self._room_bytes:
            return False
        self.write(data)
        return True

    def write(self, data: bytes) -> None:
        if self._open and data:
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._waiting_bytes > self._room_bytes:
                self._drained.clear()
            self._wake.set()

    async def drained(self) -> bool:
        await self._drained.wait()
        return self._open

    def abandon(self, *, slow: bool = False) -> None:  # noqa: ARG002 - a stream has no code to say why it ends
        self.end()
        self._transport.abort()

    def end(self) -> None:
        """End the stream once what waits has gone out."""
        self._open = False
        self._wake.set()
        self._drained.set()

    def keep_alive(self) -> None:
        """Send a ping; but end a stream of which nothing has gone out since the last time."""
        if not self._waiting_bytes:
            self.write(self._ping)
        elif self._stuck:
            self.abandon()
        else:
            self._stuck = True

    async def pump(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write what comes until the stream ends, or `write` raises ConnectionError: the client is gone."""
        try:
            while self._open or self._waiting:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    data = memoryview(b"".join(self._waiting))
                    self._waiting.clear()
                    for start in range(0, len(data), _PIECE_BYTES):
                        await write(bytes(data[start : start + _PIECE_BYTES]))
                        self._stuck = False
                    self._waiting_bytes -= len(data)
                self._drained.set()
        except ConnectionError:
            pass
        finally:
            self._waiting.clear()
            self.end()
