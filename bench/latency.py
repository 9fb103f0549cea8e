"""How long an event takes: from its sending to its acknowledgement, and until the last of S subscribers has it.

The producer sends upserts of new documents with 384-d vectors, one at a time or 200 a second, on a connection of its own.
Beside the gateway stands the floor (bench/floor.py); rounds of the two alternate, so that both see the same machine. All
clients live in one process, so that one clock measures; each frame of each subscriber is checked.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgpack
import numpy as np
import numpy.typing as npt
import uvloop

from bench.harness import Percentiles, Report, Target
from bench.sockets import Arrivals, RawSocket
from gateway.commands.process import GatewayProcess

DIMENSION = 384
SUBSCRIBERS = (1, 100, 1000)
RATES = (None, 200.0)
ROUNDS = 6
EVENTS = 250
WARM_UP = 50
SUBSCRIBE = b'{"action":"subscribe","collection":"bench"}'


@dataclass(slots=True)
class Server:
    """One of the rivals. `sent` numbers its events through all rounds."""

    name: str
    url: str
    sent: int = 0


@dataclass(slots=True)
class Times:
    """Per event, in seconds from its sending."""

    ack_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)


def run(seed: int, scale: float) -> Report:
    """Run the benchmark."""
    vectors = np.random.default_rng(seed).standard_normal((4096, DIMENSION)).astype(np.float32)
    rounds = max(1, round(ROUNDS * scale))
    with tempfile.TemporaryDirectory() as folder, _servers(Path(folder)) as servers:
        results = uvloop.run(_measure(servers, vectors, rounds))
    report = Report(
        "latency",
        "from sending an event (384-d upsert, MessagePack) to its acknowledgement / to the last of S subscribers",
        seed,
        ("S", "events", "", "acknowledged p50 / p99 ms", "last of S has it p50 / p99 ms"),
    )
    for (subscribers, rate), times in results.items():
        load = f"{rate:g} /s" if rate else "one at a time"
        gateway, floor = (times[server.name] for server in servers)
        measured = {
            name: (Percentiles.of(one.ack_s), Percentiles.of(one.last_s))
            for name, one in (("hotindex", gateway), ("floor", floor))
        }
        for name, (ack, last) in measured.items():
            report.rows.append((str(subscribers), load, name, str(ack), str(last)))
            facts = {"acknowledged_ms": asdict(ack), "last_ms": asdict(last)}
            report.results.append({"server": name, "subscribers": subscribers, "rate": rate, **facts})
        if subscribers == 100:
            ours, bare = measured["hotindex"][1], measured["floor"][1]
            report.targets.append(Target(f"S=100, {load}: p50 of last / floor's", ours.p50 / bare.p50, 2.0))
            report.targets.append(Target(f"S=100, {load}: p99 of last / floor's", ours.p99 / bare.p99, 3.0))
    return report


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[Server, Server]]:
    """Start both, each in a process of its own, on the same disk."""
    command = [sys.executable, "-m", "bench.floor", str(folder)]
    with (
        GatewayProcess(folder / "gateway", ["--log-level", "warning"]) as gateway,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as floor,
    ):
        assert floor.stdout is not None, "standard output is a pipe"
        try:
            yield Server("hotindex", gateway.ws), Server("floor", f"ws://127.0.0.1:{floor.stdout.readline().strip()}")
        finally:
            floor.terminate()


async def _measure(
    servers: tuple[Server, Server], vectors: npt.NDArray[np.float32], rounds: int
) -> dict[tuple[int, float | None], dict[str, Times]]:
    results: dict[tuple[int, float | None], dict[str, Times]] = {}
    for server in servers:
        await _round(server, vectors, 0, None, Times())  # makes the collection, and warms everything up
    for subscribers, rate in itertools.product(SUBSCRIBERS, RATES):
        times = results[subscribers, rate] = {server.name: Times() for server in servers}
        for number in range(rounds):
            for server in servers if number % 2 else reversed(servers):
                await _round(server, vectors, subscribers, rate, times[server.name])
    return results


async def _round(
    server: Server, vectors: npt.NDArray[np.float32], subscribers: int, rate: float | None, times: Times
) -> None:
    """Connect, send the events of one round, wait for every frame, disconnect."""
    first = server.sent
    acks, room = Arrivals(1), Arrivals(max(1, subscribers))
    acked = acks.party(lambda _: b"ack")
    producer = await RawSocket.connect(
        server.url, lambda payload: acked(payload) if b"ack" in payload[:16] else None, "hotindex.v1.msgpack"
    )
    listeners = [await _subscribe(server, room.party(lambda n: b'"d%d"' % (first + n))) for _ in range(subscribers)]
    total = WARM_UP + EVENTS
    events = [_event(first + number, vectors) for number in range(total)]
    sent_at: list[float] = []
    started = time.perf_counter()
    for number, event in enumerate(events):
        if rate:
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        sent_at.append(time.perf_counter())
        producer.send(event)
        if not rate:
            await acks.complete(number)
            if subscribers:
                await room.complete(number)
    await acks.complete(total - 1)
    if subscribers:
        await room.complete(total - 1)
    for number in range(WARM_UP, total):
        times.ack_s.append(acks.complete_at[number] - sent_at[number])
        if subscribers:
            times.last_s.append(room.complete_at[number] - sent_at[number])
    server.sent += total
    for socket in (producer, *listeners):
        socket.transport.abort()
    await asyncio.sleep(0.2)  # let the server see them off before the other's turn


async def _subscribe(server: Server, arrived: Callable[[bytes], None]) -> RawSocket:
    subscribed = asyncio.get_running_loop().create_future()

    def take(payload: bytes) -> None:
        if b'"index_update"' in payload[:40]:
            arrived(payload)
        elif not subscribed.done() and (b'"subscribed"' in payload or b'"ack"' in payload):
            subscribed.set_result(None)

    socket = await RawSocket.connect(server.url, take)
    socket.send(b"s" if server.name == "floor" else SUBSCRIBE, binary=False)
    await subscribed
    return socket


def _event(number: int, vectors: npt.NDArray[np.float32]) -> bytes:
    vector = vectors[number % len(vectors)].tobytes()
    document = {"id": f"d{number}", "vector": vector, "metadata": {"n": number, "kind": "bench"}}
    body: bytes = msgpack.packb({"action": "upsert", "collection": "bench", **document})
    return body
