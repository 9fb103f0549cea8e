"""The engine under test: one collection in service, as a gateway runs it, without the sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np

from bench.engine.data import Matrix
from gateway.app import tune_interpreter
from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.search import Query
from gateway.engine.types import Done, Operation, Put, Spec, Write
from gateway.errors import HotindexError
from gateway.ingest.queue import Bounds
from gateway.metrics import Metrics
from gateway.node.hosted import Hosted, Threads
from gateway.node.upkeep import HotLimits, Timing

NEVER = 1e9


def _now_us() -> int:
    return time.time_ns() // 1000


@contextmanager
def interpreter_as_served() -> Iterator[None]:
    """Run with the interpreter set as a gateway sets it."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    tune_interpreter()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@asynccontextmanager
async def service(folder: Path, spec: Spec) -> AsyncIterator[Hosted]:
    """Serve the collection in `folder`; an empty one is made where there is none."""
    collection = await asyncio.to_thread(_open, folder, spec)
    threads = Threads.start(os.cpu_count() or 1)
    timing = Timing(NEVER, NEVER)
    hosted = Hosted(collection, None, threads, Metrics(), Bounds(), HotLimits(), timing)
    await hosted.start()
    try:
        yield hosted
    finally:
        await hosted.stop()
        threads.shut_down()


def _open(folder: Path, spec: Spec) -> Collection:
    if folder.exists():
        return Collection(folder, _now_us, 300.0)
    return Collection.create(folder, spec, _now_us, 300.0)


async def write(hosted: Hosted, operations: Iterable[Operation]) -> float:
    """Submit each operation as a write of its own; return the time until all are acknowledged."""
    started = time.perf_counter()
    outcomes: list[asyncio.Future[Done | HotindexError]] = []
    for operation in operations:
        size_bytes = operation.vector.nbytes if isinstance(operation, Put) and operation.vector is not None else 256
        outcomes.append(await hosted.committer.submit(Write((operation,), size_bytes=size_bytes)))
    for outcome in await asyncio.gather(*outcomes):
        if isinstance(outcome, HotindexError):
            raise outcome
    return time.perf_counter() - started


def puts(ids: Iterable[int], rows: Matrix) -> list[Put]:
    return [Put(f"d{i}", row) for i, row in zip(ids, rows, strict=True)]


async def settled(hosted: Hosted) -> None:
    """Wait until every vector is in the graph, and no fresh one is being made."""
    while not hosted.upkeep.settled:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def search(collection: Collection, queries: Matrix, ef: int | None = None) -> tuple[list[list[int]], list[float]]:
    """Search for each query by itself: ids found, and seconds each took, documents read included."""
    found, times_s = [], []
    for row in queries:
        started = time.perf_counter()
        answer = collection.search(Query(row[np.newaxis], 10, ef=ef))
        times_s.append(time.perf_counter() - started)
        found.append([int(hit.document.id[1:]) for hit in answer.results[0]])
    return found, times_s


def search_index(collection: Collection, queries: Matrix, k: int, ef: int) -> list[float]:
    """Search for each query by itself, for labels and scores alone: seconds each took."""
    times_s = []
    for row in queries:
        started = time.perf_counter()
        collection.nearest(row[np.newaxis], k, ef)
        times_s.append(time.perf_counter() - started)
    return times_s


def search_where(
    collection: Collection, queries: Matrix, where: Sequence[Filter], *, exact: bool = False
) -> tuple[list[set[str]], list[float]]:
    """Search for each query with its filter: ids found, and seconds each took."""
    found, times_s = [], []
    for row, one in zip(queries, where, strict=True):
        started = time.perf_counter()
        answer = collection.search(Query(row[np.newaxis], 10, one, exact=exact))
        times_s.append(time.perf_counter() - started)
        found.append({hit.document.id for hit in answer.results[0]})
    return found, times_s
