"""The room as Server-Sent Events: a subscriber whose events go out over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.server.buffers import bounded

_PIECE_BYTES = 64 << 10
"""What is written at a time: a client that takes one now and then is slow, but not stuck."""

CONTENT_TYPE = "text/event-stream"


class EventStream:
    """A room's sink that holds what is on its way out, and takes nothing more meanwhile. Call on the event loop.

    `ping` is what keeps it alive while there is nothing to say.
    """

    def __init__(self, transport: asyncio.Transport, ping: bytes) -> None:
        bounded(transport)
        self._ping = ping
        self._transport = transport
        self._waiting: list[bytes] = []
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._open = True
        self._stuck = False

    def offer(self, data: bytes) -> bool:
        if self._waiting:
            return False
        self.write(data)
        return True

    def write(self, data: bytes) -> None:
        if self._open:
            self._waiting.append(data)
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
        """Send a comment; but end a stream of which nothing has gone out since the last time."""
        if not self._waiting:
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
                    data = memoryview(self._waiting[0])
                    for start in range(0, len(data), _PIECE_BYTES):
                        await write(bytes(data[start : start + _PIECE_BYTES]))
                        self._stuck = False
                    del self._waiting[0]
                self._drained.set()
        except ConnectionError:
            pass
        finally:
            self._waiting.clear()
            self.end()
