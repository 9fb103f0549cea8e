"""How fast writes are taken: bursts, changes of metadata, a bulk load until all is in the graph."""

from __future__ import annotations

import gc
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.engine import rivals, subject
from bench.engine.data import grown, movies, noisy
from gateway.engine.types import Patch, Spec
from gateway.node.hosted import Hosted

BURST = 8000
METADATA_CHANGES = 20_000
REPEATS = 3
BULK_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Documents per second; `graph_touched` counts the vectors that changes of metadata brought to hot or graph."""

    burst: list[float]
    metadata: list[float]
    graph_touched: int


async def bursts(folder: Path, count: int, seed: int) -> Rates:
    """Update documents of a quiet collection, vectors first, then metadata."""
    rng = np.random.default_rng(seed)
    rows = movies()[:count]
    async with subject.service(folder / "bursts", Spec("bursts", rows.shape[1])) as hosted:
        await subject.write(hosted, subject.puts(range(count), rows))
        await subject.settled(hosted)
        burst = []
        for _ in range(REPEATS):
            order = rng.permutation(count)[: min(BURST, count)]
            updates = subject.puts(order.tolist(), noisy(rows[order], rng))
            gc.collect()
            burst.append(len(updates) / await subject.write(hosted, updates))
            await subject.settled(hosted)
        before = _vectors(hosted)
        metadata = []
        for number in range(REPEATS):
            order = rng.permutation(count)[: min(METADATA_CHANGES, count)]
            changes = [Patch(f"d{i}", {"votes": i, "turn": number}) for i in order.tolist()]
            metadata.append(len(changes) / await subject.write(hosted, changes))
        return Rates(burst, metadata, abs(_vectors(hosted) - before))


def _vectors(hosted: Hosted) -> int:
    return sum(hosted.collection.graph_size) + hosted.collection.hot_rows


@dataclass(frozen=True, slots=True)
class BulkLoad:
    """Seconds, round by round."""

    hotindex_s: list[float]
    raw_s: list[float]


async def bulk(folder: Path, count: int, seed: int) -> BulkLoad:
    """Load `count` documents until all are in the graph, on all cores, and by turns with it raw `add_items` on as many
    threads. What is loaded last stays in `folder`."""
    rows = grown(count, np.random.default_rng(seed))
    done = BulkLoad([], [])
    for _ in range(BULK_ROUNDS):
        started = time.perf_counter()
        rivals.fresh_graph(rows, os.cpu_count() or 1)
        done.raw_s.append(time.perf_counter() - started)
        shutil.rmtree(folder / "large", ignore_errors=True)
        async with subject.service(folder / "large", Spec("large", rows.shape[1])) as hosted:
            started = time.perf_counter()
            await subject.write(hosted, subject.puts(range(count), rows))
            await subject.settled(hosted)
            done.hotindex_s.append(time.perf_counter() - started)
            await hosted.upkeep.snapshot()
    return done
