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
import numpy.typing as npt
import uvloop
from websockets.asyncio.client import connect

from bench.fanout.audience import Outcome, Task
from bench.fanout.processes import SERVER_CORE, Audience, pinned
from bench.harness import cpu_s
from bench.sockets import RawSocket
from gateway.commands.process import GatewayProcess

Vectors = npt.NDArray[np.float32]
COLLECTION = "bench"
DIMENSION = 384
IDS = 2000
SLEEPERS = 200
SLEEP_S = 20.0
RESUME_S = 3.0
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


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Producer:
    """Writes documents with vectors; each carries the time it was sent at. Ids go round, so that nothing grows."""

    def __init__(self, socket: RawSocket, vectors: Vectors) -> None:
        self._socket = socket
        self._vectors = vectors
        self.sent = 0
        self.acknowledged = 0
        self._progress = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, vectors: Vectors) -> AsyncIterator[Producer]:
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
        command: dict[str, object] = {"action": "upsert", "collection": COLLECTION, "id": f"thing-{n % ids}"}
        if n < ids:
            command["vector"] = self._vectors[n % len(self._vectors)].tobytes()
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
    vectors: Vectors,
    subscribers: int,
    rate: float,
    seconds: float,
    command: str = SUBSCRIBE,
) -> Steady:
    """Send events steadily to many subscribers, each of which must get all of them, in order."""
    async with Producer.connected(gateway.ws, vectors) as producer:
        for _ in range(IDS):
            producer.send(IDS, stamped=False)
        await producer.done()
        task = Task(gateway.ws, subscribers, UNTIL, [command])
        async with audience_of(task) as audience:
            before, sent = cpu_s(gateway.process.pid), producer.sent
            await producer.steadily(rate, seconds, IDS)
            outcome = await asyncio.to_thread(audience.outcome)
            events = producer.sent - sent
            assert outcome.events == events, f"{outcome.events} of {events} events came"
            return Steady(outcome, (cpu_s(gateway.process.pid) - before) / events * 1e6)


@dataclass(frozen=True, slots=True)
class Stalled:
    """Beside subscribers that never read: the others, and what one that doesn't read costs."""

    alone: list[Outcome]
    beside: list[Outcome]
    bytes_each: float
    states: int
    equal: bool


class _Sleeper:
    """A subscriber that stops reading, and goes on later."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.began = asyncio.get_running_loop().create_future()

    def take(self, payload: bytes) -> None:
        message = json.loads(payload)
        if message["type"] == "index_update":
            self.held[message["event"]["document_id"]] = message["event"]["version"]
        elif message["type"] == "subscribed":
            self.began.set_result(message["index_version"])

    async def subscribe(self, url: str) -> RawSocket:
        """Subscribe, then stop reading."""
        socket = await RawSocket.connect(url, self.take)
        socket.send(SUBSCRIBE.encode(), binary=False)
        await self.began
        socket.transport.pause_reading()
        return socket


async def stalled(
    gateway: GatewayProcess, vectors: Vectors, subscribers: int, rate: float, seconds: float, rounds: int
) -> Stalled:
    """Compare rounds with and without one subscriber that doesn't read; then let it read again.

    What it costs is measured on many of them.
    """
    alone, beside = [], []
    for _ in range(rounds):
        alone.append((await steady(gateway, vectors, subscribers, rate, seconds)).outcome)
        sleeper = _Sleeper()
        socket = await sleeper.subscribe(gateway.ws)
        beside.append((await steady(gateway, vectors, subscribers, rate, seconds)).outcome)
        socket.transport.resume_reading()
        states = await _documents(gateway, await sleeper.began)
        async with asyncio.timeout(30):
            while sleeper.held != states:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        socket.transport.abort()
    idle = resident_bytes(gateway.process.pid)
    many = [await _Sleeper().subscribe(gateway.ws) for _ in range(SLEEPERS)]
    await steady(gateway, vectors, 1, 1000, SLEEP_S)
    grown = resident_bytes(gateway.process.pid) - idle
    for socket in many:
        socket.transport.abort()
    return Stalled(alone, beside, grown / SLEEPERS, len(states), sleeper.held == states)


async def _documents(gateway: GatewayProcess, since: int) -> dict[str, int]:
    """Return the version of each document that has changed since, by another subscription."""
    found: dict[str, int] = {}
    async with connect(gateway.ws, compression=None) as socket:
        await socket.recv()
        await socket.send(json.dumps({"action": "subscribe", "collection": COLLECTION, "since": since}))
        head = json.loads(await socket.recv())["index_version"]
        async for message in socket:
            event = json.loads(message).get("event")
            if event:
                found[event["document_id"]] = event["version"]
                if event["index_version"] == head:
                    break
    return found


@dataclass(frozen=True, slots=True)
class Crowd:
    """Many subscribers that come at once."""

    subscribers: int
    served_s: float
    deliveries: int


async def crowd(gateway: GatewayProcess, vectors: Vectors, subscribers: int) -> Crowd:
    """Connect all at once, subscribe them, and send one event, which has to reach all."""
    async with Producer.connected(gateway.ws, vectors) as producer:
        producer.send(1)
        await producer.done()
        async with audience_of(Task(gateway.ws, subscribers, UNTIL, [SUBSCRIBE])) as audience:
            producer.send(1, last=True)
            outcome = await asyncio.to_thread(audience.outcome)
            return Crowd(subscribers, outcome.ready - outcome.started, outcome.deliveries)


@dataclass(frozen=True, slots=True)
class Resume:
    """One who comes back after many changes, beside others."""

    missed: int
    states: int
    seconds: list[float]
    quiet: list[Outcome]
    beside: list[Outcome]


async def resume(
    gateway: GatewayProcess, vectors: Vectors, subscribers: int, missed: int, documents: int, rounds: int
) -> Resume:
    """Change `documents` until `missed` changes are made, and ask for all of them while others are served."""
    async with Producer.connected(gateway.ws, vectors) as producer:
        for n in range(documents + missed):
            producer.send(documents, stamped=False)
            if n % 1000 == 0:
                await producer.done()
        await producer.done()
    async with connect(gateway.ws, compression=None) as socket:
        await socket.recv()
        await socket.send(SUBSCRIBE)
        since = json.loads(await socket.recv())["index_version"] - missed
    quiet, beside = [], []
    seconds: list[float] = []
    for _ in range(rounds):
        quiet.append((await steady(gateway, vectors, subscribers, 200, RESUME_S)).outcome)
        resuming = asyncio.create_task(_resumes(gateway, since, documents, seconds))
        beside.append((await steady(gateway, vectors, subscribers, 200, RESUME_S)).outcome)
        resuming.cancel()
    return Resume(missed, documents, seconds, quiet, beside)


async def _resumes(gateway: GatewayProcess, since: int, documents: int, seconds: list[float]) -> None:
    """Resume, once a second: the time until exactly the net states have come."""
    command = json.dumps({"action": "subscribe", "collection": COLLECTION, "since": since}).encode()
    while True:
        await asyncio.sleep(RESUME_S / 3)
        seconds.append(await _resumed(gateway.ws, command, documents))


async def _resumed(url: str, command: bytes, documents: int) -> float:
    arrived = asyncio.get_running_loop().create_future()
    seen: set[str] = set()

    def take(payload: bytes) -> None:
        if b'"index_update"' in payload[:40]:
            seen.add(json.loads(payload)["event"]["document_id"])
            if len(seen) == documents and not arrived.done():
                arrived.set_result(None)

    socket = await RawSocket.connect(url, take)
    started = time.monotonic()
    socket.send(command, binary=False)
    await arrived
    taken_s = time.monotonic() - started
    socket.transport.abort()
    return taken_s


async def _make_collection(gateway: GatewayProcess, vectors: Vectors) -> None:
    async with Producer.connected(gateway.ws, vectors) as producer:
        producer.send(1)
        await producer.done()


def memory(
    gateway: GatewayProcess, vectors: Vectors, rival_pid: int, rival_url: str, subscribers: int
) -> tuple[float, float]:
    """Return the bytes that an idle subscriber takes in a gateway, and an idle connection in another server."""
    uvloop.run(_make_collection(gateway, vectors))
    taken = []
    for pid, task in (
        (gateway.process.pid, Task(gateway.ws, subscribers, UNTIL, [SUBSCRIBE])),
        (rival_pid, Task(rival_url, subscribers, UNTIL)),
    ):
        with Audience(Task(task.url, 200, UNTIL, task.commands)):
            pass  # what the first connections bring with them
        before = resident_bytes(pid)
        with Audience(task):
            taken.append((resident_bytes(pid) - before) / subscribers)
    ours, bare = taken
    return ours, bare
