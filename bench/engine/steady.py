"""A large collection in service: searches, quiet and beside writes; saving a snapshot; found after its acknowledgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench.engine import rivals, subject
from bench.engine.data import Matrix, grown, nearest, noisy, recall
from bench.harness import Percentiles
from gateway.engine.collection import Collection
from gateway.engine.search import Query
from gateway.engine.types import Put, Spec
from gateway.node.hosted import Hosted

_T = TypeVar("_T")
K, EF = 10, 64
QUERIES = 400
RATE = 500.0
WINDOWS = 5
WINDOW_S = 4.0
PROBE_S = 0.001


@dataclass(frozen=True, slots=True)
class Searches:
    """`index` is the part that answers what raw `knn_query` does: labels and scores. `whole` reads documents too."""

    index: Percentiles
    whole: Percentiles
    raw: Percentiles
    recall: float
    raw_recall: float
    writing: list[Percentiles]
    """Of one window after the other."""
    written_per_s: float
    never_found: int
    probed: int


@dataclass(frozen=True, slots=True)
class Stalls:
    """Of the event loop, in milliseconds, while a snapshot is saved under writes, and while `save_index` runs on it."""

    p999: list[float]
    """Of one snapshot after the other."""
    longest: float
    raw_longest: float
    snapshot_s: float


async def run(folder: Path, count: int, seed: int) -> tuple[Searches, Stalls]:
    """Serve the collection that `load.bulk` made in `folder`."""
    rng = np.random.default_rng(seed)
    rows = grown(count, rng)
    queries = noisy(rows[rng.integers(0, count, QUERIES)], rng, 0.3)
    expected = nearest(rows, queries, K)
    raw = rivals.Fresh(rows)
    async with subject.service(folder / "large", Spec("large", rows.shape[1])) as hosted:
        await subject.settled(hosted)
        quiet = await asyncio.to_thread(_quiet, hosted.collection, raw, queries, expected)
        writer = _Writer(hosted, rows, rng)
        writing, searching = await writer.beside(lambda: _searches(hosted.collection, queries))
        stalls = await _stalls(hosted, writer, raw, folder)
    index, whole, raw_times, found_share, raw_share = quiet
    searches = Searches(
        index, whole, raw_times, found_share, raw_share, searching, writing, writer.missed, writer.probed
    )
    return searches, stalls


def _quiet(
    collection: Collection, raw: rivals.Fresh, queries: Matrix, expected: list[set[int]]
) -> tuple[Percentiles, Percentiles, Percentiles, float, float]:
    rivals.timed(raw, queries, K, EF)
    subject.search(collection, queries)
    raw_times: list[float] = []
    index_times: list[float] = []
    whole_times: list[float] = []
    found: list[list[int]] = []
    raw_found: list[list[int]] = []
    for row in queries:  # interleaved, so that all three see the same machine
        started = time.perf_counter()
        raw_found.append(raw.search(row, K, EF))
        raw_times.append(time.perf_counter() - started)
        started = time.perf_counter()
        collection.nearest(row[np.newaxis], K, EF)
        index_times.append(time.perf_counter() - started)
        started = time.perf_counter()
        answer = collection.search(Query(row[np.newaxis], K, ef=EF))
        whole_times.append(time.perf_counter() - started)
        found.append([int(hit.document.id[1:]) for hit in answer.results[0]])
    return (
        Percentiles.of(index_times),
        Percentiles.of(whole_times),
        Percentiles.of(raw_times),
        recall(found, expected),
        recall(raw_found, expected),
    )


class _Writer:
    """Gives random documents new vectors, `RATE` a second, and looks for some of them right after their acknowledgement."""

    def __init__(self, hosted: Hosted, rows: Matrix, rng: np.random.Generator) -> None:
        self._hosted = hosted
        self._rows = rows
        self._rng = rng
        self.probed = 0
        self.missed = 0

    async def beside(self, work: Callable[[], Awaitable[_T]]) -> tuple[float, _T]:
        """Write while `work` runs; return the rate reached, and what `work` returned."""
        stop = asyncio.Event()
        writing = asyncio.create_task(self._write(stop))
        await asyncio.sleep(1.0)  # the hot buffer fills to where the mover works steadily
        result = await work()
        stop.set()
        return await writing, result

    async def _write(self, stop: asyncio.Event) -> float:
        started = time.perf_counter()
        number = 0
        pending: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            await asyncio.sleep(max(0.0, started + number / RATE - time.perf_counter()))
            task = asyncio.create_task(self._change(number))
            pending.add(task)
            task.add_done_callback(pending.discard)
            number += 1
        await asyncio.gather(*pending)
        return number / (time.perf_counter() - started)

    async def _change(self, number: int) -> None:
        i = int(self._rng.integers(0, len(self._rows)))
        row = noisy(self._rows[i : i + 1], self._rng)
        await subject.write(self._hosted, [Put(f"d{i}", row[0])])
        if number % 10 == 0:
            self.probed += 1
            answer = await self._hosted.read(lambda: self._hosted.collection.search(Query(row, 1)))
            hit = answer.results[0][0]
            # Another change of the same document may have come in between: its version tells.
            self.missed += not (hit.document.id == f"d{i}" or self._changed_since(i, row))

    def _changed_since(self, i: int, row: Matrix) -> bool:
        found = self._hosted.collection.get(f"d{i}", include_vector=True)
        return found is None or found[1] != row.tobytes()


async def _searches(collection: Collection, queries: Matrix) -> list[Percentiles]:
    """Search without pause, in a thread, a window of some seconds after the other."""

    def search() -> Percentiles:
        times_s: list[float] = []
        end = time.perf_counter() + WINDOW_S
        while time.perf_counter() < end:
            times_s += subject.search(collection, queries[:50])[1]
        return Percentiles.of(times_s)

    return [await asyncio.to_thread(search) for _ in range(WINDOWS)]


async def _stalls(hosted: Hosted, writer: _Writer, raw: rivals.Fresh, folder: Path) -> Stalls:
    lags_s: list[list[float]] = []
    saved_s: list[float] = []

    async def save() -> None:
        for _ in range(WINDOWS):
            lags_s.append([])
            probing = asyncio.create_task(_probe(lags_s[-1]))
            started = time.perf_counter()
            await hosted.upkeep.snapshot()
            saved_s.append(time.perf_counter() - started)
            probing.cancel()

    await writer.beside(save)
    raw_lags: list[float] = []
    probing = asyncio.create_task(_probe(raw_lags))
    await asyncio.sleep(0.05)  # some lags before, so that the stall stands out
    await asyncio.to_thread(raw.save, folder / "raw.hnsw")
    await asyncio.sleep(0.05)
    probing.cancel()
    p999 = [float(np.percentile(np.array(lags) * 1e3, 99.9)) for lags in lags_s]
    return Stalls(p999, max(map(max, lags_s)) * 1e3, max(raw_lags) * 1e3, max(saved_s))


async def _probe(lags_s: list[float]) -> None:
    """Note how late the event loop comes back from sleeping a millisecond, again and again."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(PROBE_S)
        lags_s.append(time.perf_counter() - started - PROBE_S)
