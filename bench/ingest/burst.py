"""How much memory a gateway takes while producers send all they have at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.ingest.clients import COLLECTION, Producers, frame
from bench.ingest.local import INSERTED, Document, Vectors, all_there
from bench.ingest.processes import LOCAL, forget_peak, gateway, memory_mib
from bench.ingest.texts import Texts

PRODUCERS = 4
WARM_UP = 100


@dataclass(slots=True)
class Burst:
    """Memory is resident memory in MiB: before the first event, at its peak until all was acknowledged, at its peak until
    the gateway was idle again, and then. `missing` counts documents that were sent and are not there.
    """

    events: int
    text_bytes: float
    per_s: float
    start_mib: float
    peak_mib: float
    peak_until_idle_mib: float
    end_mib: float
    missing: int

    @property
    def above_start_mib(self) -> float:
        return self.peak_until_idle_mib - self.start_mib


async def all_at_once(texts: Texts, events: int, vectors: Vectors | None) -> Burst:
    """Have producers write as fast as their sockets take it, with nothing but those to hold them back.

    The gateway has embedded some texts before, so its model is loaded. With `vectors` the events bring them.
    """
    warm_up, contents = texts.take(WARM_UP), texts.take(events)
    with gateway() as subject:
        await subject.make(COLLECTION, LOCAL)
        async with Producers.connected(subject.ws, PRODUCERS) as producers:
            await producers.write(
                [frame("upsert", id=f"w{n}", content=one) for n, one in enumerate(warm_up)], 1, INSERTED
            )
            await subject.idle()
            frames = _upserts(contents, vectors)
            start = memory_mib(subject.pid, "VmRSS")
            forget_peak(subject.pid)
            seconds = await producers.write(frames, events, INSERTED)
            peak = memory_mib(subject.pid, "VmHWM")
        await subject.idle()
        until_idle, end = (memory_mib(subject.pid, name) for name in ("VmHWM", "VmRSS"))
        described = await subject.describe(COLLECTION)
        missing = WARM_UP + events - described["documents"]
        sent: list[Document] = []
        if vectors is None:
            sent += ({"id": f"d{n}", "content": one} for n, one in enumerate(contents))
        await all_there(subject, described["documents"], sent)
    size = sum(len(one.encode()) for one in contents) / events
    return Burst(events, size, events / seconds, start, peak, until_idle, end, missing)


def _upserts(contents: Sequence[str], vectors: Vectors | None) -> list[bytes]:
    if vectors is None:
        return [frame("upsert", id=f"d{n}", content=text) for n, text in enumerate(contents)]
    return [
        frame("upsert", id=f"d{n}", content=text, vector=vectors[n % len(vectors)].tobytes())
        for n, text in enumerate(contents)
    ]
