"""An embedding service that fails a share of its calls: what becomes of the events."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from bench.ingest.clients import COLLECTION, Producer, frame, subscribed
from bench.ingest.processes import SERVICE, gateway, provider
from bench.ingest.texts import DIMENSION, Texts
from bench.provider import vector_of

PRODUCERS, WINDOW = 4, 64
VERSIONS, BLOCK = 3, 20
_PATIENCE_S = 120.0
_TOLERANCE = 1e-6


@dataclass(slots=True)
class Outcome:
    """Of the events of one round. `wrong` counts documents, and events in the room, with another text than the producer was
    told, or another vector than their text's; `twice` documents of which there is another number of versions, or of
    events in the room, than acknowledgements, and events answered more than once.
    """

    fail: float
    events: int
    acknowledged: int
    refused: dict[str, int]
    unanswered: int
    wrong: int
    twice: int
    seconds: float
    service: dict[str, Any] = field(default_factory=dict)


class Story:
    """What producers sent and were told, and what the room was."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Each document gets some texts, one after the other, while those of others are under way."""
        self.shares: list[list[bytes]] = [[] for _ in range(PRODUCERS)]
        self._applied: dict[str, dict[int, str]] = defaultdict(dict)
        self.room: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.refused: Counter[str] = Counter()
        self.arrived = 0
        self.progress = asyncio.Event()
        self._sent: list[tuple[str, str]] = []
        self._answers: Counter[int] = Counter()
        for number, text in enumerate(texts):
            block, place = divmod(number, BLOCK * VERSIONS)
            document_id = f"d{block}-{place % BLOCK}"
            self._sent.append((document_id, text))
            share = self.shares[(block * BLOCK + place % BLOCK) % PRODUCERS]
            share.append(frame("upsert", id=document_id, content=text, ref=number))

    @property
    def acknowledged(self) -> int:
        return sum(map(len, self._applied.values()))

    @property
    def unanswered(self) -> int:
        return len(self._sent) - len(self._answers)

    def _told(self, document_id: str) -> list[str]:
        """Return the texts that were applied to a document, in the order of sending."""
        return [text for _, text in sorted(self._applied.get(document_id, {}).items())]

    def replied(self, payload: bytes) -> None:
        message = msgpack.unpackb(payload)
        self._answers[message["ref"]] += 1
        if message["type"] == "ack":
            document_id, text = self._sent[message["ref"]]
            self._applied[document_id][message["ref"]] = text
        else:
            self.refused[message["code"]] += 1

    def happened(self, event: dict[str, Any]) -> None:
        self.room[event["document_id"]].append(event)
        self.arrived += 1
        self.progress.set()

    async def all_arrived(self, index_version: int) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while self.arrived < index_version:
                self.progress.clear()
                await self.progress.wait()

    def wrong(self, stored: Sequence[dict[str, Any]]) -> int:
        """Count what isn't as the producers were told."""
        wrong = len(self._applied.keys() - {one["document_id"] for one in stored})
        for one in stored:
            told = self._told(one["document_id"])
            wrong += not told or one["content"] != told[-1] or not _fits(one)
        for document_id, events in self.room.items():
            told = self._told(document_id)
            contents = [event["content"] for event in events]
            wrong += sum(not _fits(event) for event in events) + (contents != told and len(contents) == len(told))
        return wrong

    def twice(self, stored: Sequence[dict[str, Any]]) -> int:
        """Count documents that changed another number of times than the producers were told, and answers too many."""
        twice = self._answers.total() - len(self._answers)
        for one in stored:
            count = len(self._told(one["document_id"]))
            versions = [event["version"] for event in self.room[one["document_id"]]]
            twice += one["version"] != count or versions != list(range(1, count + 1))
        return twice


def _fits(one: dict[str, Any]) -> bool:
    """Tell whether a document's vector is its content's."""
    vector = one["vector"]
    found = np.frombuffer(vector, np.float32) if isinstance(vector, bytes) else np.array(vector, np.float32)
    return bool(np.allclose(found, vector_of(one["content"], DIMENSION), atol=_TOLERANCE))


async def with_faults(
    texts: Texts, events: int, latency_ms: float, fail: float, seed: int, **settings: object
) -> Outcome:
    """Have producers change documents, several times each, and compare what there is at the end with what they were told.

    Producers don't repeat what was refused. `settings` are the model's, where they aren't the defaults.
    """
    story = Story(texts.take(events))
    with provider(latency_ms, fail, seed) as service, gateway(service, **settings) as subject:
        await subject.make(COLLECTION, SERVICE)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(subscribed(subject.ws, story.happened, include=["content", "vector"]))
            producers = [
                await stack.enter_async_context(Producer.connected(subject.ws, story.replied)) for _ in range(PRODUCERS)
            ]
            started = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for one, share in zip(producers, story.shares, strict=True):
                    group.create_task(_write(one, share))
            seconds = time.perf_counter() - started
            described = await subject.describe(COLLECTION)
            await story.all_arrived(described["index_version"])
            await subject.idle()  # what came after that, if anything did, has come too
        stored = await subject.changes(COLLECTION)
        stats = await service.stats()
    return Outcome(
        fail,
        events,
        story.acknowledged,
        dict(story.refused),
        story.unanswered,
        story.wrong(stored),
        story.twice(stored),
        seconds,
        stats,
    )


async def _write(producer: Producer, frames: Sequence[bytes]) -> None:
    with suppress(TimeoutError):  # what has no answer by then is counted
        await producer.write(frames, WINDOW, b"")
