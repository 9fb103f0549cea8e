"""What is measured: each function runs one round on running nodes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.cluster.clients import Producer, Reader, Vectors, marker, subscribed, upserts, write
from bench.cluster.nodes import COLLECTION, Site, quiet
from bench.cluster.redis import Counts, RedisProcess, RedisSocket, messages_after, packed
from bench.harness import cpu_s
from bench.sockets import Arrivals
from gateway.bus.agreement import Keys

_PATIENCE_S = 120.0
_BARE_CHANNEL = "bare"
_PROBE_S = 0.003


@dataclass(slots=True)
class Times:
    """Per event, in seconds from its sending."""

    ack_s: list[float] = field(default_factory=list)
    arrival_s: list[float] = field(default_factory=list)


async def one_at_a_time(site: Site, vectors: Vectors, events: int, warm_up: int, times: Times) -> None:
    """Send events, each when the one before is acknowledged and has come to the reader's subscriber."""
    first, messages = site.sent, upserts(site, vectors, warm_up + events)
    acks, arrivals = Arrivals(1), Arrivals(1)
    async with (
        asyncio.timeout(_PATIENCE_S),
        Producer.connected(site.writer.ws) as producer,
        subscribed(site.reader.ws, arrivals.party(marker(first))),
    ):
        producer.on_ack = acks.party(lambda _: b"ack")
        for number, message in enumerate(messages):
            sent_at = time.perf_counter()
            producer.send(message)
            await acks.complete(number)
            await arrivals.complete(number)
            if number >= warm_up:
                times.ack_s.append(acks.complete_at[number] - sent_at)
                times.arrival_s.append(arrivals.complete_at[number] - sent_at)


async def bare_redis(redis: RedisProcess, message: bytes, events: int, warm_up: int) -> list[float]:
    """Publish a message many times, each when the one before has come to a subscriber; return the seconds each took."""
    arrivals = Arrivals(1)
    arrived = arrivals.party(lambda _: message)
    publisher = await RedisSocket.connect(redis)
    subscriber = await RedisSocket.connect(redis, lambda push: arrived(push[2]))
    await subscriber.ask("SUBSCRIBE", _BARE_CHANNEL)
    command = packed("PUBLISH", _BARE_CHANNEL, message)
    times = []
    async with asyncio.timeout(_PATIENCE_S):
        for number in range(warm_up + events):
            sent_at = time.perf_counter()
            publisher.send(command)
            await arrivals.complete(number)
            times.append(arrivals.complete_at[number] - sent_at)
    for connection in (publisher, subscriber):
        connection.transport.abort()
    return times[warm_up:]


@dataclass(slots=True)
class Rates:
    """Of each round: documents acknowledged a second, the seconds after the last until all nodes had them, and the
    processor time a document that all nodes together used until then.
    """

    per_s: list[float] = field(default_factory=list)
    behind_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


async def many_in_flight(
    site: Site, messages: Sequence[bytes], documents: int, producers: int, in_flight: int, rates: Rates
) -> None:
    """Time the writing of messages that hold so many documents, until all are acknowledged."""
    cpu, started = sum(site.cpu_s().values()), time.perf_counter()
    async with asyncio.timeout(_PATIENCE_S):
        await write(site, messages, producers, in_flight)
    ended = time.perf_counter()
    rates.per_s.append(documents / (ended - started))
    rates.behind_s.append(await site.level() - ended)
    rates.cpu_us.append((sum(site.cpu_s().values()) - cpu) / documents * 1e6)


@dataclass(slots=True)
class Steady:
    """Events at a rate. `cpu_us` is processor time an event, by process, until all were delivered; `graph_us` until what
    they left to do in the background was done as well. What Redis counted is of the cluster alone.
    """

    events: int
    seconds: float
    times: Times
    cpu_us: dict[str, float]
    graph_us: dict[str, float] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    messages: list[bytes] = field(default_factory=list)


async def steady(
    site: Site, vectors: Vectors, rate: float, seconds: float, redis: RedisProcess | None = None
) -> Steady:
    """Send events at a rate on one connection; the clocks stop when all are acknowledged and have come to the subscriber.

    Before the clocks start, a second's worth of events goes the same way.
    """
    warm_up, events = round(rate), round(rate * seconds)
    first, messages = site.sent, upserts(site, vectors, warm_up + events)
    connection = None if redis is None else await RedisSocket.connect(redis)
    acks, arrivals = Arrivals(1), Arrivals(1)
    sent_at: list[float] = []
    async with (
        asyncio.timeout(seconds + _PATIENCE_S),
        Producer.connected(site.writer.ws) as producer,
        subscribed(site.reader.ws, arrivals.party(marker(first))),
    ):
        producer.on_ack = acks.party(lambda _: b"ack")
        await _at_rate(producer, messages[:warm_up], rate, sent_at)
        await arrivals.complete(warm_up - 1)
        head = await site.head()
        counts = await Counts.now(connection) if connection else None
        cpu, started = _cpu(site, redis), time.perf_counter()
        await _at_rate(producer, messages[warm_up:], rate, sent_at)
        await arrivals.complete(warm_up + events - 1)
        ended, cpu_after = time.perf_counter(), _cpu(site, redis)
    measured = range(warm_up, warm_up + events)
    times = Times(
        [acks.complete_at[n] - sent_at[n] for n in measured], [arrivals.complete_at[n] - sent_at[n] for n in measured]
    )
    result = Steady(events, ended - started, times, _cpu_us(cpu, cpu_after, events))
    if connection and counts:
        spent = (await Counts.now(connection)).since(counts)
        result.sent, result.calls = spent.sent, spent.calls.total()
        result.bytes_in, result.bytes_out = spent.bytes_in, spent.bytes_out
        result.messages = await messages_after(connection, Keys.of(COLLECTION), head)
        connection.transport.abort()
    await quiet(site)
    result.graph_us = _cpu_us(cpu, _cpu(site, redis), events)
    return result


async def _at_rate(producer: Producer, messages: Sequence[bytes], rate: float, sent_at: list[float]) -> None:
    started = time.perf_counter()
    for number, message in enumerate(messages):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        sent_at.append(time.perf_counter())
        producer.send(message)
    await producer.done()


def _cpu(site: Site, redis: RedisProcess | None) -> dict[str, float]:
    return site.cpu_s() | ({} if redis is None else {"redis-server": cpu_s(redis.process.pid)})


def _cpu_us(before: dict[str, float], after: dict[str, float], events: int) -> dict[str, float]:
    return {name: (after[name] - used) / events * 1e6 for name, used in before.items()}


@dataclass(slots=True)
class Return:
    """A node that comes back: seconds since it was ready, and the time each read took meanwhile."""

    missed: int
    caught_up_s: float = 0.0
    first_answer_s: float = 0.0
    read_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def comes_back(site: Site, name: str, vectors: Vectors, missed: int) -> Return:
    """Stop a node, change so many documents, start it, and read from it until it has what the others have."""
    await asyncio.to_thread(site.stop, name)
    before = await site.head()
    await write(site, upserts(site, vectors, missed), 4, 32)
    head = await site.head()
    found = Return(head - before)
    ready_at = await asyncio.to_thread(site.start, name)
    async with asyncio.timeout(_PATIENCE_S), Reader.connected(site.nodes[name].ws) as reader:
        reached = 0
        while reached < head:
            asked_at = time.perf_counter()
            answer = await reader.search(vectors[0])
            _note(found, answer, asked_at, ready_at)
            reached = answer.get("index_version", reached)
            if reached >= head:
                found.caught_up_s = time.perf_counter() - ready_at
            asked_at = time.perf_counter()
            _note(found, await reader.get("d0"), asked_at, ready_at)
            await asyncio.sleep(_PROBE_S)
    return found


def _note(found: Return, answer: dict[str, object], asked_at: float, ready_at: float) -> None:
    now = time.perf_counter()
    found.read_s.append(now - asked_at)
    found.first_answer_s = found.first_answer_s or now - ready_at
    if answer["type"] == "error":
        found.errors.append(str(answer))
