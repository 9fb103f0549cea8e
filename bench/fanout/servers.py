"""Servers that write the same events to all who are connected, each in the fastest way its library has.

`main` prints its port. A number on standard input has it write as many events, one frame each, as fast as it can; an
empty line has it tell the processor time it has used.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import picows
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from gateway import logs, settings
from gateway.app import running, tune_interpreter
from gateway.engine.types import Applied, Change, Document, EventType, Source
from gateway.node.queries import CollectionSettings
from gateway.protocol.framing import frame

COLLECTION = "bench"
GROUPS = 50
_TIME = 1_795_255_200_123_456


@dataclass(frozen=True, slots=True)
class Server:
    """`make` gives event n in the form that `publish` writes to all; whether it is the last is in the event."""

    port: int
    make: Callable[[int, bool], Any]
    publish: Callable[[Any], None]


def _metadata(n: int, last: bool) -> str:
    return f'{{"n":{n},"group":{n % GROUPS},"name":"a thing that has a name","last":{str(last).lower()}}}'


def _payload(n: int, last: bool) -> bytes:
    """Return an event as the gateway writes it: some 240 bytes."""
    event = (
        f'{{"event_type":"update","document_id":"thing-{n}","timestamp":"2026-11-20T10:00:00.123456+00:00",'
        f'"index_version":{n},"version":2,"metadata":{_metadata(n, last)}}}'
    )
    return f'{{"type":"index_update","collection":"{COLLECTION}","event":{event}}}'.encode()


def _frame(n: int, last: bool) -> bytes:
    return frame(_payload(n, last), binary=False)


@asynccontextmanager
async def _websockets(publish: Callable[[set[ServerConnection], Any], None], make: Any) -> AsyncIterator[Server]:
    connections: set[ServerConnection] = set()

    async def converse(connection: ServerConnection) -> None:
        connections.add(connection)
        await connection.wait_closed()
        connections.discard(connection)

    async with serve(converse, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096) as server:
        yield Server(server.sockets[0].getsockname()[1], make, lambda data: publish(connections, data))


def _to_transports(connections: set[ServerConnection], data: bytes) -> None:
    for connection in connections:
        connection.transport.write(data)


class _Descriptors:
    """The floor: the descriptors alone are looked at, and the transport takes over where one takes no more."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Callable[[], int], asyncio.Transport]] = {}
        self._of: set[ServerConnection] = set()

    def publish(self, connections: set[ServerConnection], data: bytes) -> None:
        if connections != self._of:
            self._of = set(connections)
            transports = [connection.transport for connection in connections]
            self._known = {t.get_extra_info("socket").fileno(): (t.get_write_buffer_size, t) for t in transports}
        size, write = len(data), os.write
        for descriptor, (unsent, transport) in self._known.items():
            sent = 0
            if not unsent():
                try:
                    sent = write(descriptor, data)
                except BlockingIOError:
                    sent = 0
            if sent != size:
                transport.write(data[sent:])


class _Listener(picows.WSListener):
    transports: ClassVar[set[Any]] = set()

    def on_ws_connected(self, transport: Any) -> None:
        self.transports.add(transport)

    def on_ws_disconnected(self, transport: Any) -> None:
        self.transports.discard(transport)


@asynccontextmanager
async def _picows() -> AsyncIterator[Server]:
    server = await picows.ws_create_server(lambda _: _Listener(), "127.0.0.1", 0, backlog=4096)

    def publish(data: bytes) -> None:
        for transport in _Listener.transports:
            transport.send(picows.WSMsgType.TEXT, data)

    yield Server(server.sockets[0].getsockname()[1], _payload, publish)
    server.close()


@asynccontextmanager
async def _hotindex() -> AsyncIterator[Server]:
    """The gateway, its sockets, sessions and rooms; commits go to the room as they come from the engine, one event each."""
    logs.configure("error", "text")
    tune_interpreter()
    with TemporaryDirectory() as folder:
        flags = {"ws_port": 0, "http_port": 0, "data_dir": Path(folder)}
        async with running(settings.load(flags, None)) as gateway:
            hosted, _ = await gateway.node.create(COLLECTION, CollectionSettings(dimension=8))
            yield Server(int(gateway.ws.rpartition(":")[2]), _commit, hosted.room.publish)


def _commit(n: int, last: bool) -> Applied:
    document = Document(f"thing-{n}", 2, n, 1, 1, Source.VECTOR, _TIME, _metadata(n, last), None)
    return Applied(n, n, (Change(EventType.UPDATE, document, _metadata(n - 1, False), None),))


KINDS: dict[str, Callable[[], Any]] = {
    "hotindex": _hotindex,
    "descriptor": lambda: _websockets(_Descriptors().publish, _frame),
    "transport": lambda: _websockets(_to_transports, _frame),
    "broadcast": lambda: _websockets(broadcast, lambda n, last: _payload(n, last).decode()),
    "picows": _picows,
}


async def _main(kind: str) -> None:
    loop = asyncio.get_running_loop()
    async with KINDS[kind]() as server:
        print(server.port, flush=True)
        first = 1
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if not line.strip():
                print(time.process_time(), flush=True)
                continue
            for event in _events(server, first, int(line)):
                server.publish(event)
                await asyncio.sleep(0)
            first += int(line)


def _events(server: Server, first: int, count: int) -> Iterator[Any]:
    for n in range(first, first + count):
        yield server.make(n, n == first + count - 1)


def main() -> None:
    """Serve the kind named on the command line."""
    uvloop.run(_main(sys.argv[1]))
