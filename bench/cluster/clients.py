"""Producers, subscribers and readers, all in this process, so that one clock measures."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from bench.cluster.nodes import COLLECTION, Site
from bench.sockets import RawSocket

Vectors = npt.NDArray[np.float32]
DIMENSION = 384
DOCUMENTS = 5000
_SUBPROTOCOL = "hotindex.v1.msgpack"
_SUBSCRIBE = json.dumps({"action": "subscribe", "collection": COLLECTION}).encode()


def upserts(site: Site, vectors: Vectors, count: int) -> list[bytes]:
    """Return the next upserts of a site, of one document each."""
    return [_command(**document) for document in _documents(site, vectors, count)]


def batches(site: Site, vectors: Vectors, count: int, size: int) -> list[bytes]:
    """Return the next upserts of a site, of `size` documents each."""
    return [_command(documents=_documents(site, vectors, size)) for _ in range(count)]


def _documents(site: Site, vectors: Vectors, count: int) -> list[dict[str, object]]:
    """Ids go round; each time a document gets another vector."""
    numbers = range(site.sent, site.sent + count)
    site.sent += count
    return [
        {
            "id": f"d{n % DOCUMENTS}",
            "vector": vectors[n % len(vectors)].tobytes(),
            "metadata": {"n": n, "kind": "bench"},
        }
        for n in numbers
    ]


def _command(**fields: object) -> bytes:
    body: bytes = msgpack.packb({"action": "upsert", "collection": COLLECTION, **fields})
    return body


def marker(first: int) -> Callable[[int], bytes]:
    """Return what the events from number `first` on have to contain."""
    return lambda n: b'"n":%d,' % (first + n)


class Producer:
    """Sends upserts, and counts what is acknowledged."""

    def __init__(self) -> None:
        self.sent = self.acknowledged = 0
        self.on_ack: Callable[[bytes], None] = lambda _: None
        self._fault: str | None = None
        self._progress = asyncio.Event()
        self._socket: RawSocket

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[Producer]:
        producer = cls()
        producer._socket = await RawSocket.connect(url, producer._take, _SUBPROTOCOL)
        try:
            yield producer
        finally:
            producer._socket.transport.abort()

    def _take(self, payload: bytes) -> None:
        if b"\xa3ack" in payload[:16]:
            self.acknowledged += 1
            self.on_ack(payload)
        elif b"\xa5error" in payload[:16]:
            self._fault = repr(payload)
        self._progress.set()

    def send(self, message: bytes) -> None:
        self.sent += 1
        self._socket.send(message)

    async def keep(self, in_flight: int, messages: Iterable[bytes]) -> None:
        """Send, with so many unacknowledged at most; return when all are acknowledged."""
        for message in messages:
            await self._until(self.sent - in_flight + 1)
            self.send(message)
        await self.done()

    async def done(self) -> None:
        """Wait until all is acknowledged."""
        await self._until(self.sent)

    async def _until(self, acknowledged: int) -> None:
        while self.acknowledged < acknowledged:
            self._progress.clear()
            await self._progress.wait()
            if self._fault is not None:
                raise RuntimeError(f"the gateway refused a write: {self._fault}")


async def write(site: Site, messages: Sequence[bytes], producers: int, in_flight: int) -> None:
    """Have several producers send upserts to the writer; return when all are acknowledged."""
    async with asyncio.TaskGroup() as group:
        for number in range(producers):
            group.create_task(_produce(site.writer.ws, messages[number::producers], in_flight))


async def _produce(url: str, messages: Sequence[bytes], in_flight: int) -> None:
    async with Producer.connected(url) as producer:
        await producer.keep(in_flight, messages)


@asynccontextmanager
async def subscribed(url: str, arrived: Callable[[bytes], None]) -> AsyncIterator[None]:
    """Have `arrived` called with each event."""
    began = asyncio.get_running_loop().create_future()

    def take(payload: bytes) -> None:
        if b'"index_update"' in payload[:40]:
            arrived(payload)
        elif b'"subscribed"' in payload[:40]:
            began.set_result(None)

    socket = await RawSocket.connect(url, take)
    try:
        socket.send(_SUBSCRIBE, binary=False)
        await began
        yield
    finally:
        socket.transport.abort()


class Reader:
    """Asks one question at a time, in JSON."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Any] | None = None
        self._socket: RawSocket

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[Reader]:
        reader = cls()
        reader._socket = await RawSocket.connect(url, reader._take)
        try:
            yield reader
        finally:
            reader._socket.transport.abort()

    def _take(self, payload: bytes) -> None:
        message = json.loads(payload)
        if message["type"] != "connected" and self._answer is not None:
            self._answer.set_result(message)

    async def get(self, document_id: str) -> dict[str, Any]:
        return await self._ask(action="get", id=document_id)

    async def search(self, vector: npt.NDArray[np.float32]) -> dict[str, Any]:
        return await self._ask(action="search", vector=base64.b64encode(vector.tobytes()).decode(), k=10)

    async def _ask(self, **command: object) -> dict[str, Any]:
        self._answer = asyncio.get_running_loop().create_future()
        self._socket.send(json.dumps({"collection": COLLECTION, **command}).encode(), binary=False)
        answer: dict[str, Any] = await self._answer
        return answer
