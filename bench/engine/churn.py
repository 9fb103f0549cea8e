"""What updates do: recall, search time and update rate while every document gets another vector, several times over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.engine import rivals, subject
from bench.engine.data import Matrix, movies, nearest, noisy, recall
from bench.harness import Percentiles
from gateway.engine import collection as engine
from gateway.engine.types import Spec

K, EF = 10, 64
QUERIES = 400
ROUNDS = 5
COMPARED = (0, 1, ROUNDS)
"""After so many rounds a fresh graph is searched by turns with the other."""
RIVAL_ROUNDS = 1
"""The rivals' updates take minutes a round."""
DEAD_SHARES = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class Point:
    """One index after a share of its documents has changed: 2.5 is two and a half times each."""

    name: str
    churn: float
    recall: float
    search: Percentiles
    """Of the whole search; the rivals' have no documents to read."""
    index: Percentiles
    """Of labels and scores alone."""
    updates_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeadShare:
    """A graph with a share of dead vectors. A rebuild at that share costs `insertions` per update, its own included."""

    share: float
    search: Percentiles
    recall: float
    insertions: float


class Schedule:
    """The same changes for all: in each round every document, in random order, gets another's vector with noise."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.start = movies()[:count]
        self.queries = noisy(self.start[rng.integers(0, count, QUERIES)], rng, 0.3)
        self._seed = seed

    def rounds(self, count: int) -> Iterator[tuple[list[int], Matrix, Matrix]]:
        """Yield for each round the ids in order of change, their new rows, and the state all is in after it."""
        rng = np.random.default_rng(self._seed + 1)
        state = self.start.copy()
        for _ in range(count):
            order = rng.permutation(len(state))
            state = noisy(self.start[rng.permutation(len(state))], rng)
            yield order.tolist(), state[order], state


async def run(folder: Path, count: int, seed: int) -> list[Point]:
    """Measure hotindex beside fresh graphs of the same states, and its rivals."""
    schedule = Schedule(count, seed)
    points = await _hotindex(folder / "churn", schedule)
    for kind in rivals.RIVALS:
        points += _rival(kind(schedule.start), schedule)
    return points


async def dead_shares(folder: Path, count: int, seed: int) -> list[DeadShare]:
    """Search a graph that isn't made anew, as more and more of it die."""
    schedule = Schedule(count, seed)
    (round_,) = schedule.rounds(1)
    order, rows, _ = round_
    state = schedule.start.copy()
    measured = []
    with _no_rebuilds():
        async with subject.service(folder / "dead", Spec("dead", schedule.start.shape[1], ef_search=EF)) as hosted:
            await subject.write(hosted, subject.puts(range(count), schedule.start))
            changed = 0
            for share in DEAD_SHARES:
                upto = round(count * share / (1 - share))
                await subject.write(hosted, subject.puts(order[changed:upto], rows[changed:upto]))
                state[order[changed:upto]] = rows[changed:upto]
                changed = upto
                await subject.settled(hosted)
                found, _ = subject.search(hosted.collection, schedule.queries)
                times_s = subject.search_index(hosted.collection, schedule.queries, K, EF)
                found_share = recall(found, nearest(state, schedule.queries, K))
                insertions = 1 + (1 - share) / share if share else float("inf")
                measured.append(DeadShare(share, Percentiles.of(times_s), found_share, insertions))
    return measured


@contextmanager
def _no_rebuilds() -> Iterator[None]:
    share = engine.DEAD_SHARE
    engine.DEAD_SHARE = 1.0
    try:
        yield
    finally:
        engine.DEAD_SHARE = share


async def _hotindex(folder: Path, schedule: Schedule) -> list[Point]:
    count = len(schedule.start)
    async with subject.service(folder, Spec("churn", schedule.start.shape[1], ef_search=EF)) as hosted:
        await subject.write(hosted, subject.puts(range(count), schedule.start))
        await subject.settled(hosted)

        def measure(churn: float, state: Matrix, rate: float | None = None) -> list[Point]:
            """Search by turns with a fresh graph of the same state, where the two are compared."""
            found, times_s = subject.search(hosted.collection, schedule.queries)
            expected = nearest(state, schedule.queries, K)
            fresh = rivals.Fresh(state) if churn in COMPARED else None
            index_s: list[float] = []
            fresh_s: list[float] = []
            fresh_found: list[list[int]] = []
            for row in schedule.queries:
                index_s += subject.search_index(hosted.collection, row[np.newaxis], K, EF)
                if fresh:
                    labels, seconds = rivals.timed(fresh, row[np.newaxis], K, EF)
                    fresh_found += labels
                    fresh_s += seconds
            whole, index = Percentiles.of(times_s), Percentiles.of(index_s)
            measured = [Point("hotindex", churn, recall(found, expected), whole, index, rate)]
            if fresh:
                bare = Percentiles.of(fresh_s)
                measured.append(Point(fresh.name, churn, recall(fresh_found, expected), bare, bare))
            return measured

        points = measure(0.0, schedule.start)
        for number, (order, rows, state) in enumerate(schedule.rounds(ROUNDS), 1):
            started = time.perf_counter()
            await subject.write(hosted, subject.puts(order, rows))
            await subject.settled(hosted)
            points += measure(number, state, count / (time.perf_counter() - started))
        return points


def _rival(rival: rivals.Rival, schedule: Schedule) -> list[Point]:
    found, times_s = rivals.timed(rival, schedule.queries, K, EF)
    points = [_point(rival.name, 0.0, found, times_s, schedule.start, schedule.queries)]
    for number, (order, rows, state) in enumerate(schedule.rounds(RIVAL_ROUNDS), 1):
        started = time.perf_counter()
        for first in range(0, len(order), 64):
            rival.change(order[first : first + 64], rows[first : first + 64])
        rate = len(order) / (time.perf_counter() - started)
        found, times_s = rivals.timed(rival, schedule.queries, K, EF)
        points.append(_point(rival.name, number, found, times_s, state, schedule.queries, rate))
    return points


def _point(
    name: str,
    churn: float,
    found: list[list[int]],
    times_s: Sequence[float],
    state: Matrix,
    queries: Matrix,
    rate: float | None = None,
) -> Point:
    search = Percentiles.of(times_s)
    return Point(name, churn, recall(found, nearest(state, queries, K)), search, search, rate)
