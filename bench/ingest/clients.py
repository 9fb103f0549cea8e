"""Producers and a subscriber. They cost little: frames are made before the clock starts, and written many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgpack

from bench.sockets import RawSocket, client_frame

COLLECTION = "bench"
_SUBPROTOCOL = "hotindex.v1.msgpack"
_PATIENCE_S = 120.0


def frame(action: str, **fields: object) -> bytes:
    """Return a command as it goes over the wire."""
    body = msgpack.packb({"action": action, "collection": COLLECTION, **fields})
    return client_frame(body, binary=True)


class Producer:
    """One connection. `on_reply` is called with each acknowledgement and each error."""

    def __init__(self, on_reply: Callable[[bytes], None] | None = None) -> None:
        self._on_reply = on_reply
        self._frames: Sequence[bytes] = ()
        self._expected = b""
        self._sent = self._answered = self._window = 0
        self._refilling = False
        self._fault: str | None = None
        self._done: asyncio.Future[None] | None = None
        self._socket: RawSocket

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, on_reply: Callable[[bytes], None] | None = None) -> AsyncIterator[Producer]:
        producer = cls(on_reply)
        producer._socket = await RawSocket.connect(url, producer._take, _SUBPROTOCOL)
        try:
            yield producer
        finally:
            producer._socket.transport.abort()

    def send(self, data: bytes) -> None:
        self._socket.transport.write(data)

    async def write(self, frames: Sequence[bytes], window: int, expected: bytes = b"\xa3ack") -> None:
        """Send frames, with so many unanswered at most; return when all are answered.

        Raises RuntimeError where an answer doesn't contain what is `expected`, TimeoutError after two minutes.
        """
        self._frames, self._window, self._expected = frames, window, expected
        self._sent = self._answered = 0
        self._done = asyncio.get_running_loop().create_future()
        self._refill()
        async with asyncio.timeout(_PATIENCE_S):
            await self._done
        if self._fault is not None:
            raise RuntimeError(f"{expected!r} was expected of the gateway, not {self._fault}")

    def _take(self, payload: bytes) -> None:
        if b"\xa9connected" in payload[:20]:
            return
        if self._on_reply is not None:
            self._on_reply(payload)
        self._answered += 1
        if self._expected not in payload and self._fault is None:
            self._fault = repr(payload[:500])
        if not self._refilling:
            # Once for all answers that came together.
            self._refilling = True
            asyncio.get_running_loop().call_soon(self._refill)

    def _refill(self) -> None:
        self._refilling = False
        until = min(len(self._frames), self._answered + self._window)
        if self._sent < until:
            self.send(b"".join(self._frames[self._sent : until]))
            self._sent = until
        if self._done is not None and self._answered >= len(self._frames) and not self._done.done():
            self._done.set_result(None)


class Producers:
    """Several connections that write at once; the documents of each are its own."""

    def __init__(self, members: Sequence[Producer]) -> None:
        self._members = members

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, count: int) -> AsyncIterator[Producers]:
        async with AsyncExitStack() as stack:
            yield cls([await stack.enter_async_context(Producer.connected(url)) for _ in range(count)])

    async def write(self, frames: Sequence[bytes], window: int, expected: bytes = b"\xa3ack") -> float:
        """Send frames, dealt out in turn; return the seconds until all are acknowledged."""
        count = len(self._members)
        shares = [frames[i::count] for i in range(count)]
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for producer, share in zip(self._members, shares, strict=True):
                group.create_task(producer.write(share, window, expected))
        return time.perf_counter() - started


async def one_at_a_time(url: str, frames: Iterable[bytes], expected: bytes = b"\xa3ack") -> list[float]:
    """Send frames, each when the one before is answered; return the seconds until each answer was read.

    Raises RuntimeError where an answer doesn't contain what is `expected`.
    """
    answers: list[tuple[float, bytes]] = []
    answered = asyncio.Event()

    def take(payload: bytes) -> None:
        answers.append((time.perf_counter() - sent_at, payload))
        answered.set()

    async with asyncio.timeout(_PATIENCE_S), Producer.connected(url, take) as producer:
        for one in frames:
            answered.clear()
            sent_at = time.perf_counter()
            producer.send(one)
            await answered.wait()
    for _, payload in answers:
        if expected not in payload:
            raise RuntimeError(f"{expected!r} was expected of the gateway, not {payload[:500]!r}")
    return [seconds for seconds, _ in answers]


@asynccontextmanager
async def subscribed(url: str, on_event: Callable[[dict[str, Any]], None], **fields: object) -> AsyncIterator[None]:
    """Have `on_event` called with each event of a room; `fields` are the subscription's."""
    began = asyncio.get_running_loop().create_future()

    def take(payload: bytes) -> None:
        message = msgpack.unpackb(payload)
        if message["type"] == "index_update":
            on_event(message["event"])
        elif message["type"] == "subscribed":
            began.set_result(None)

    socket = await RawSocket.connect(url, take, _SUBPROTOCOL)
    try:
        socket.transport.write(frame("subscribe", **fields))
        await began
        yield
    finally:
        socket.transport.abort()
