"""Upkeep beside a writer, on a real collection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.engine.collection import Collection
from gateway.engine.types import Remove
from gateway.node.upkeep import HotLimits, Timing, Upkeep, UpkeepThreads
from tests.engine.support import commit, make, nearest, put

NEVER = 1e9


@asynccontextmanager
async def kept(
    collection: Collection, hot: HotLimits, *, snapshot_s: float = NEVER, retention_s: float = NEVER
) -> AsyncIterator[tuple[Upkeep, list[float]]]:
    waited: list[float] = []
    with ThreadPoolExecutor(1) as short, ThreadPoolExecutor(1) as rebuilding:
        upkeep = Upkeep(
            collection, UpkeepThreads(short, rebuilding), hot, Timing(snapshot_s, retention_s), waited.append
        )
        upkeep.start()
        yield upkeep, waited
        await upkeep.stop()
    collection.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    made = make(tmp_path / "things")
    commit(made, *(put(f"d{i}", i, 0, 0, 1) for i in range(3000)))
    return made


async def test_rows_beyond_the_target_are_moved_and_the_rest_once_writes_pause(collection: Collection) -> None:
    async with kept(collection, HotLimits(100, 10_000)):
        await until(lambda: collection.hot_rows <= 100)
        await until(lambda: collection.hot_rows == 0)
        assert collection.graph_size == (3000, 0)


async def test_a_collection_that_the_target_holds_needs_no_graph(tmp_path: Path) -> None:
    small = make(tmp_path / "small")
    commit(small, *(put(f"d{i}", i, 0, 0, 1) for i in range(50)))
    async with kept(small, HotLimits(100, 10_000)):
        await asyncio.sleep(1.2)  # longer than the pause after which the rest would be moved
        assert (small.hot_rows, small.graph_size) == (50, (0, 0))


async def test_snapshots_are_written_while_writes_never_pause(collection: Collection, tmp_path: Path) -> None:
    async with kept(collection, HotLimits(100, 10_000), snapshot_s=0.2) as (upkeep, _):
        turn = 0
        while not list((tmp_path / "things").glob("graph-*.json")):
            turn += 1
            commit(collection, *(put(f"d{i}", i, turn, 0, 1) for i in range(turn % 10, 500, 10)))
            upkeep.nudge()
            await asyncio.sleep(0)
        assert collection.hot_rows > 0


async def test_a_graph_with_many_dead_is_made_anew(collection: Collection) -> None:
    async with kept(collection, HotLimits(100, 10_000)) as (upkeep, _):
        await until(lambda: collection.graph_size[0] >= 2900)
        commit(collection, *(Remove(f"d{i}") for i in range(1500)))
        upkeep.nudge()
        await until(lambda: collection.graph_size == (1500, 0) and not upkeep.rebuilding)
        assert nearest(collection, 1600, 0, 0, 1, k=1) == ["d1600"]


async def test_a_commit_waits_where_the_hot_buffer_is_full(collection: Collection) -> None:
    async with kept(collection, HotLimits(100, 1000)) as (upkeep, waited):
        assert collection.hot_rows >= 1000
        await upkeep.room()
        assert collection.hot_rows < 1000
        assert len(waited) == 1


async def test_old_deletions_are_forgotten(collection: Collection) -> None:
    commit(collection, Remove("d1"))
    async with kept(collection, HotLimits(100, 10_000), retention_s=0):
        await until(lambda: not collection.reaches(3000, None))
        assert collection.reaches(3001, None)
        assert commit(collection, put("d1", 1, 1, 1, 1)).results[0].version == 3
