"""New content with the local model, by turns with the same documents with vectors that the producer has ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bench.harness import cpu_s
from bench.ingest.clients import COLLECTION, Producers, frame, one_at_a_time
from bench.ingest.processes import LOCAL, Gateway, gateway
from bench.ingest.texts import Texts, text_of
from gateway.embed.local import LocalModel

Vectors = npt.NDArray[np.float32]
Document = dict[str, object]
Make = Callable[[int], list[Document]]
INSERTED = b"\xa8inserted"
PRODUCERS, WINDOW = 8, 128
WARM_UP = 500
SAMPLE = 5


@dataclass(slots=True)
class Rates:
    """Of each round: events acknowledged a second, and the gateway's processor time an event until it was idle again."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


class Documents:
    """New documents, numbered through all rounds of a gateway.

    `make` gives what makes the fields of the next ones: those with vectors have the same texts as those without.
    """

    def __init__(self, make: Callable[[], Make], vectors: Vectors) -> None:
        self._make = {True: make(), False: make()}
        self._vectors = vectors
        self.made = 0

    def take(self, count: int, *, ready: bool) -> list[Document]:
        """Return the next documents; `ready` ones come with a vector."""
        first, self.made = self.made, self.made + count
        documents = self._make[ready](count)
        for number, document in enumerate(documents, first):
            document["id"] = f"d{number}"
            if ready:
                document["vector"] = self._vectors[number % len(self._vectors)].tobytes()
        return documents


def contents(seed: int) -> Make:
    """Make documents with content."""
    texts = Texts(seed)
    return lambda count: [{"content": text, "metadata": {"kind": "bench"}} for text in texts.take(count)]


def fields(seed: int) -> Make:
    """Make documents with text fields in their metadata."""
    texts = Texts(seed)
    return lambda count: [{"metadata": fields} for fields in texts.fields(count)]


async def throughput(documents: Documents, rounds: int, events: int) -> dict[bool, Rates]:
    """Have producers send events of one document each; by whether vectors are ready."""
    rates = {True: Rates(), False: Rates()}
    with gateway() as subject:
        await subject.make(COLLECTION, LOCAL)
        async with Producers.connected(subject.ws, PRODUCERS) as producers:
            for ready in rates:
                await producers.write(_upserts(documents.take(WARM_UP, ready=ready)), WINDOW, INSERTED)
            for number in range(rounds):
                for ready in (True, False) if number % 2 else (False, True):
                    await subject.idle()
                    sent = documents.take(events, ready=ready)
                    frames = _upserts(sent)
                    cpu = cpu_s(subject.pid)
                    seconds = await producers.write(frames, WINDOW, INSERTED)
                    rates[ready].per_s.append(events / seconds)
                    await all_there(subject, documents.made, () if ready else sent)
                    await subject.idle()
                    rates[ready].cpu_us.append((cpu_s(subject.pid) - cpu) / events * 1e6)
    return rates


def _upserts(documents: Sequence[Document]) -> list[bytes]:
    return [frame("upsert", **document) for document in documents]


async def all_there(subject: Gateway, count: int, sent: Sequence[Document]) -> None:
    """Raise RuntimeError unless the collection has so many documents, and a sample of those sent is found by its text."""
    described = await subject.describe(COLLECTION)
    if described["documents"] != count:
        raise RuntimeError(f"{count} documents were acknowledged, {described['documents']} are there")
    for document in sent[:: max(1, len(sent) // SAMPLE)]:
        content, metadata = document.get("content"), document.get("metadata")
        text = text_of(metadata) if content is None and isinstance(metadata, dict) else str(content)
        hit = await subject.search(COLLECTION, text, described["index_version"])
        if hit["id"] != document["id"] and hit["score"] < 0.9999:
            raise RuntimeError(f"{document} was acknowledged, but its text finds {hit}")


async def one_event(documents: Documents, rounds: int, events: int) -> dict[bool, list[float]]:
    """Send events one at a time; return the seconds each took, by whether vectors are ready."""
    return await _alone(rounds, lambda ready: _upserts(documents.take(events, ready=ready)))


async def one_batch(documents: Documents, rounds: int, batches: int, size: int) -> dict[bool, list[float]]:
    """Send batches of new documents, one at a time; return the seconds each took, by whether vectors are ready."""
    return await _alone(
        rounds,
        lambda ready: [
            frame("upsert", documents=documents.take(size, ready=ready), atomic=True) for _ in range(batches)
        ],
    )


async def _alone(rounds: int, frames: Callable[[bool], list[bytes]]) -> dict[bool, list[float]]:
    times: dict[bool, list[float]] = {True: [], False: []}
    with gateway() as subject:
        await subject.make(COLLECTION, LOCAL)
        for number in range(rounds + 1):
            for ready in (True, False) if number % 2 else (False, True):
                taken = await one_at_a_time(subject.ws, frames(ready), INSERTED)
                if number:  # the first is a warm-up
                    times[ready] += taken
                await subject.idle()
    return times


async def model_alone(texts: Sequence[str], call: int) -> float:
    """Return how many texts a second the model embeds in this process, in calls of so many."""
    model = LocalModel()
    try:
        await model.embed(texts[:call])
        started = time.perf_counter()
        for first in range(0, len(texts), call):
            await model.embed(texts[first : first + call])
        return len(texts) / (time.perf_counter() - started)
    finally:
        await model.close()
