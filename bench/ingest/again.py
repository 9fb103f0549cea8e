"""What needs no embedding: documents that are sent again as they are, and texts that were embedded before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.ingest.clients import COLLECTION, Producers, frame
from bench.ingest.local import INSERTED, PRODUCERS, WINDOW, all_there
from bench.ingest.processes import LOCAL, SERVICE, Gateway, Provider, gateway
from bench.ingest.texts import Texts

_UNCHANGED, _UPDATED, _DELETED = b"\xa9unchanged", b"\xa7updated", b"\xa7deleted"


@dataclass(slots=True)
class Again:
    """Of each round: events acknowledged a second, and the texts that were embedded meanwhile."""

    per_s: list[float] = field(default_factory=list)
    embedded: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Counted:
    """A collection of a gateway, and what counts the texts its model is asked for: the service, where that is the model."""

    subject: Gateway
    service: Provider | None

    async def texts(self) -> int:
        return await self.subject.embedded(LOCAL) if self.service is None else (await self.service.stats())["texts"]

    async def time(
        self, again: Again, producers: Producers, frames: Sequence[bytes], expected: bytes, repeat: int = 1
    ) -> None:
        """Have the frames written, `repeat` times over, and note what that took."""
        await self.subject.idle()
        before = await self.texts()
        seconds = sum([await producers.write(frames, WINDOW, expected) for _ in range(repeat)])
        after = await self.texts()
        again.per_s.append(repeat * len(frames) / seconds)
        again.embedded.append(after - before)


async def unchanged(texts: Texts, rounds: int, events: int, repeat: int, service: Provider | None) -> dict[str, Again]:
    """Send all documents again as they are, then patches that say what is there; by action."""
    kinds = {"upsert": Again(), "patch": Again()}
    documents = [
        {"id": f"d{n}", "content": text, "metadata": _metadata(n)} for n, text in enumerate(texts.take(events))
    ]
    frames = {
        "upsert": [frame("upsert", **document) for document in documents],
        "patch": [frame("patch", id=document["id"], changes=document["metadata"]) for document in documents],
    }
    with gateway(service) as subject:
        counted = Counted(subject, service)
        await subject.make(COLLECTION, SERVICE if service else LOCAL)
        async with Producers.connected(subject.ws, PRODUCERS) as producers:
            await producers.write(frames["upsert"], WINDOW, INSERTED)
            for action in kinds:
                await producers.write(frames[action], WINDOW, _UNCHANGED)
            for number in range(rounds):
                for action in kinds if number % 2 else reversed(kinds):
                    await counted.time(kinds[action], producers, frames[action], _UNCHANGED, repeat)
            described = await subject.describe(COLLECTION)
            if described["index_version"] != events:
                raise RuntimeError(f"{events} documents were written once; index_version {described['index_version']}")
    return kinds


def _metadata(number: int) -> dict[str, object]:
    return {"kind": "bench", "n": number}


async def seen(texts: Texts, rounds: int, events: int, service: Provider | None) -> Again:
    """Write new documents whose texts others had, half of which were since given another text, and half deleted."""
    again = Again()
    first = texts.take(events)
    others = texts.take(events // 2)
    with gateway(service) as subject:
        counted = Counted(subject, service)
        await subject.make(COLLECTION, SERVICE if service else LOCAL)
        async with Producers.connected(subject.ws, PRODUCERS) as producers:
            await producers.write(_inserts(0, first), WINDOW, INSERTED)
            for number in range(1, rounds + 1):
                changed = [frame("upsert", id=f"d{number - 1}-{n}", content=text) for n, text in enumerate(others)]
                gone = [frame("delete", id=f"d{number - 1}-{n}") for n in range(len(others), events)]
                await producers.write(changed, WINDOW, _UPDATED)
                await producers.write(gone, WINDOW, _DELETED)
                await counted.time(again, producers, _inserts(number, first), INSERTED)
                sent: list[dict[str, object]] = [
                    {"id": f"d{number}-{n}", "content": text} for n, text in enumerate(first)
                ]
                await all_there(subject, number * len(others) + events, sent)
    return again


def _inserts(number: int, texts: Sequence[str]) -> list[bytes]:
    return [frame("upsert", id=f"d{number}-{n}", content=text) for n, text in enumerate(texts)]
