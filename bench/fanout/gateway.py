"""A gateway of its own process and core, with durable events and many subscribers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

from bench.fanout.audience import Outcome, Task
from bench.fanout.processes import SERVER_CORE, Audience, pinned
from bench.sockets import RawSocket
from gateway.commands.process import GatewayProcess

COLLECTION = "bench"
DIMENSION = 384
SUBSCRIBE = json.dumps({"action": "subscribe", "collection": COLLECTION})
BATCH = json.dumps({"action": "subscribe", "collection": COLLECTION, "batch": True})
UNTIL = '"last":true'
WARM_UP_S = 1.0
_SUBPROTOCOL = "hotindex.v1.msgpack"


@asynccontextmanager
async def audience_of(task: Task) -> AsyncIterator[Audience]:
    """Start subscribers, and wait until all have subscribed, while the event loop goes on."""
    audience = await asyncio.to_thread(Audience(task).__enter__)
    try:
        yield audience
    finally:
        audience.__exit__()


@contextmanager
def on_its_core(data_dir: Path) -> Iterator[GatewayProcess]:
    flags = ["--log-level", "error", "--ping-interval-s", "3600"]
    with GatewayProcess(data_dir, flags, prefix=pinned(SERVER_CORE, [])) as gateway:
        yield gateway


def cpu_s(gateway: GatewayProcess) -> float:
    """Return the processor time a gateway has used."""
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Producer:
    """Writes documents with vectors; each carries the time it was sent at. Ids go round, so that nothing grows."""

    def __init__(self, socket: RawSocket, vectors: np.ndarray) -> None:
        self._socket = socket
        self._vectors = vectors
        self.sent = 0
        self.acknowledged = 0
        self._progress = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, vectors: np.ndarray) -> AsyncIterator[Producer]:
        made: list[Producer] = []
        socket = await RawSocket.connect(url, lambda payload: made[0].take(payload) if made else None, _SUBPROTOCOL)
        made.append(cls(socket, vectors))
        yield made[0]
        socket.transport.abort()

    def take(self, payload: bytes) -> None:
        if b"\xa3ack" in payload[:16]:
            self.acknowledged += 1
            self._progress.set()
        elif b"\xa5error" in payload[:16]:
            raise AssertionError(f"the gateway refused an event: {payload!r}")

    def send(self, ids: int, *, stamped: bool = True, last: bool = False) -> None:
        n = self.sent
        self.sent += 1
        metadata = {"n": n, "name": "a thing that has a name", "last": last}
        if stamped:
            metadata["t"] = time.monotonic_ns()
        vector = self._vectors[n % len(self._vectors)].tobytes()
        command = {"action": "upsert", "collection": COLLECTION, "id": f"thing-{n % ids}", "vector": vector}
        self._socket.send(msgpack.packb(command | {"metadata": metadata}))

    async def done(self) -> None:
        """Wait until all is acknowledged."""
        while self.acknowledged < self.sent:
            self._progress.clear()
            await self._progress.wait()

    async def steadily(self, rate: float, seconds: float, ids: int) -> None:
        """Send at a rate; the last event says so. The first second's don't count: they carry no time."""
        started = time.monotonic()
        total = round(rate * (WARM_UP_S + seconds))
        for n in range(total):
            await asyncio.sleep(max(0.0, started + n / rate - time.monotonic()))
            self.send(ids, stamped=n > rate * WARM_UP_S, last=n == total - 1)
        await self.done()


@dataclass(frozen=True, slots=True)
class Steady:
    """`cpu_us` is the gateway's processor time per event, delivered to all."""

    outcome: Outcome
    cpu_us: float


async def steady(
    gateway: GatewayProcess,
    vectors: np.ndarray,
    subscribers: int,
    rate: float,
    seconds: float,
    command: str = SUBSCRIBE,
) -> Steady:
    """Send events steadily to many subscribers, each of which must get all of them, in order."""
    async with Producer.connected(gateway.ws, vectors) as producer:
        producer.send(1)  # makes the collection
        await producer.done()
        task = Task(gateway.ws, subscribers, UNTIL, [command])
        async with audience_of(task) as audience:
            before, sent = cpu_s(gateway), producer.sent
            await producer.steadily(rate, seconds, 2000)
            outcome = await asyncio.to_thread(audience.outcome)
            events = producer.sent - sent
            assert outcome.events == events, f"{outcome.events} of {events} events came"
            return Steady(outcome, (cpu_s(gateway) - before) / events * 1e6)
