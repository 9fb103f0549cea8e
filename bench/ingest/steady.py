"""An embedding service some way off, and events at a rate: how late they are, and how many share a call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgpack

from bench.harness import Percentiles
from bench.ingest.clients import COLLECTION, Producer, frame, subscribed
from bench.ingest.processes import LOCAL, SERVICE, Gateway, gateway, provider
from bench.ingest.texts import Texts

_PATIENCE_S = 120.0


@dataclass(slots=True)
class Steady:
    """Seconds from the sending of each event until it is acknowledged, and until a subscriber has it; by round.

    `calls` are the service's.
    """

    events: int = 0
    ack_s: list[list[float]] = field(default_factory=list)
    room_s: list[list[float]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    def room_ms(self) -> list[Percentiles]:
        return [Percentiles.of(times) for times in self.room_s]

    def ack_ms(self) -> list[Percentiles]:
        return [Percentiles.of(times) for times in self.ack_s]


async def at_rate(
    texts: Mapping[str, Texts], rounds: int, rate: float, seconds: float, latency_ms: float
) -> dict[str, Steady]:
    """Send events at a rate to collections of two models, the service and the local one, by turns.

    Before the clocks of a round start, a second's worth of events goes the same way.
    """
    found = {SERVICE: Steady(), LOCAL: Steady()}
    with provider(latency_ms) as service, gateway(service) as subject:
        for model in found:
            await subject.make(f"{COLLECTION}-{model}", model)
        for number in range(rounds):
            for model in found if number % 2 else reversed(found):
                await subject.idle()
                one = found[model]
                async with AsyncExitStack() as stack:
                    stream = await Stream.begin(stack, subject, f"{COLLECTION}-{model}", f"r{number}-")
                    await stream.send(texts[model].take(round(rate)), rate)
                    calls = (await service.stats())["calls"]
                    ack_s, room_s = await stream.send(texts[model].take(round(rate * seconds)), rate)
                    one.calls.append((await service.stats())["calls"] - calls)
                one.events += len(room_s)
                one.ack_s.append(ack_s)
                one.room_s.append(room_s)
    return found


class Stream:
    """A producer and a subscriber of one collection; events are told apart by their document's id."""

    def __init__(self, collection: str, prefix: str) -> None:
        self._collection = collection
        self._prefix = prefix
        self._sent_at: dict[str, float] = {}
        self._acked_at: dict[str, float] = {}
        self._arrived_at: dict[str, float] = {}
        self._refused: dict[str, Any] | None = None
        self._progress = asyncio.Event()
        self._producer: Producer

    @classmethod
    async def begin(cls, stack: AsyncExitStack, subject: Gateway, collection: str, prefix: str) -> Stream:
        stream = cls(collection, prefix)
        stream._producer = await stack.enter_async_context(Producer.connected(subject.ws, stream._answered))
        await stack.enter_async_context(subscribed(subject.ws, stream._arrived, collection=collection))
        return stream

    async def send(self, texts: Sequence[str], rate: float) -> tuple[list[float], list[float]]:
        """Send new documents; return, once all are acknowledged and have come to the subscriber, the seconds of each."""
        first = len(self._sent_at)
        ids = [f"{self._prefix}{number}" for number in range(first, first + len(texts))]
        frames = [
            frame("upsert", collection=self._collection, id=one, ref=one, content=text)
            for one, text in zip(ids, texts, strict=True)
        ]
        started = time.perf_counter()
        for number, (one, data) in enumerate(zip(ids, frames, strict=True)):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            self._sent_at[one] = time.perf_counter()
            self._producer.send(data)
        async with asyncio.timeout(_PATIENCE_S):
            while min(len(self._acked_at), len(self._arrived_at)) < len(self._sent_at):
                self._progress.clear()
                await self._progress.wait()
                if self._refused is not None:
                    raise RuntimeError(f"the gateway refused an event: {self._refused}")
        return (
            [self._acked_at[one] - self._sent_at[one] for one in ids],
            [self._arrived_at[one] - self._sent_at[one] for one in ids],
        )

    def _answered(self, payload: bytes) -> None:
        at, message = time.perf_counter(), msgpack.unpackb(payload)
        if message["type"] == "ack":
            self._acked_at[message["ref"]] = at
        else:
            self._refused = message
        self._progress.set()

    def _arrived(self, event: dict[str, Any]) -> None:
        self._arrived_at[event["document_id"]] = time.perf_counter()
        self._progress.set()
