"""The bare minimum of the event path: receive, one durable SQLite commit, write S frames, acknowledge.

No decoding, no checks, no index, no document, no history: what any server that keeps its word has to do at the least.
Run as a process of its own; prints its port.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

PAYLOAD = (
    '{"type":"index_update","collection":"bench","event":{"event_type":"insert","document_id":"d%d",'
    '"timestamp":"2026-11-20T10:00:00.123456+00:00","index_version":%d,"version":1,"metadata":{"n":%d,"kind":"bench"}}}'
)
ACK = Frame(Opcode.TEXT, b'{"type":"ack"}').serialize(mask=False)


class Floor:
    """Whoever sends "s" subscribes; anything else is an event."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE events(n INTEGER PRIMARY KEY, body BLOB)")
        self._subscribers: set[ServerConnection] = set()
        self._count = 0

    async def converse(self, connection: ServerConnection) -> None:
        try:
            while True:
                message = await connection.recv(decode=False)
                if message == b"s":
                    self._subscribers.add(connection)
                    connection.transport.write(ACK)
                else:
                    self._event(message)
                    connection.transport.write(ACK)
        except ConnectionClosed:
            self._subscribers.discard(connection)

    def _event(self, message: bytes) -> None:
        self._database.execute("BEGIN")
        self._database.execute("INSERT INTO events(body) VALUES(?)", (message,))
        self._database.execute("COMMIT")
        payload = (PAYLOAD % (self._count, self._count, self._count)).encode()
        self._count += 1
        frame = Frame(Opcode.TEXT, payload).serialize(mask=False)
        for subscriber in self._subscribers:
            subscriber.transport.write(frame)


async def main(directory: Path) -> None:
    floor = Floor(directory / "floor.db")
    async with serve(floor.converse, "127.0.0.1", 0, compression=None, ping_interval=None, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
