"""The core on one core: commits applied to many watches, refills by exact search, and answers against brute force."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.harness import one_core
from bench.ingest.processes import memory_mib
from bench.watch.changes import SHARED, SIZE, World, queries
from bench.watch.exact import ANY, answers, nearest
from gateway.engine.filter import Filter
from gateway.engine.types import Applied, Hit, Metric
from gateway.live.standing import Standing, wanted
from gateway.live.types import Nearest, Watch

K = 10
_AT_ONCE = 4096
_COMMITS_A_FOCUS = 8
"""So many take away what is nearest to one watch, more than it holds, before they turn to another."""
_THREADS = os.cpu_count() or 1


@dataclass(slots=True)
class Followed:
    """Commits that were applied; times are of each, in seconds."""

    updates: int = 0
    thread_s: float = 0.0
    commits_s: list[float] = field(default_factory=list)
    refills: int = 0
    differences: int = 0

    @property
    def per_s(self) -> float:
        """Updates a second of processor time: what one core does that has nothing else to do."""
        return self.updates / self.thread_s

    @property
    def per_clock_s(self) -> float:
        return self.updates / sum(self.commits_s)


def _resident_bytes() -> float:
    """Return what this process takes, once it has given back what it doesn't use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory_mib(os.getpid(), "VmRSS") * 2**20


class Core:
    """Documents and the watches on them. `bytes_each` is what a watch takes, its vector included."""

    DIMENSION = 384

    def __init__(self, documents: int, watches: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self.world = World(documents, rng)
        self.asked = queries(self.world, watches, rng)
        self._standing = Standing(self.DIMENSION, Metric.COSINE, self.world.index_version)
        self._numbers: list[int] = []
        self._place_of: dict[int, int] = {}
        self._commits = 0
        self._add_all()

    def _add_all(self) -> None:
        width = wanted(K)
        total = len(self.asked.queries)
        step = min(_AT_ONCE, total // 4)
        for start in range(0, total, step):
            if start == step:
                before = _resident_bytes()  # what grew so far was the search's room, too
            part = self.asked.at(slice(start, start + step))
            found = nearest(part, self.world.corpus, width, _THREADS).tolist()
            for query, group, places in zip(part.queries, part.groups.tolist(), found, strict=True):
                where = None if group == ANY else Filter({"group": group})
                number = self._standing.add(Watch(query, K, where), self._nearest(places))
                self._standing.answer(number)
                self._place_of[number] = len(self._numbers)
                self._numbers.append(number)
        del found, places
        grown = _resident_bytes() - before
        # Arrays have room for more watches, which isn't resident yet.
        self.bytes_each = max(grown / (total - step), self._standing.size_bytes / total)

    def follow(self, rounds: int, each: int = SIZE) -> Followed:
        """Make `rounds` times SIZE changes, and apply them in commits of `each`, on one core."""
        followed = Followed(updates=rounds * SIZE)
        with one_core():
            for _ in range(rounds):
                if self._commits % _COMMITS_A_FOCUS == 0:
                    self._focus = self.asked.at([int(self._rng.integers(max(1, round(len(self._numbers) * SHARED))))])
                self._commits += 1
                for applied in self.world.commit(self._focus, each):
                    thread, clock = time.thread_time(), time.perf_counter()
                    self._apply(applied, followed)
                    followed.commits_s.append(time.perf_counter() - clock)
                    followed.thread_s += time.thread_time() - thread
        return followed

    def _apply(self, applied: Applied, followed: Followed) -> None:
        """Do what a commit asks for: find whom it concerns, search for those that ran short, and tell all apart."""
        affected = self._standing.apply(applied)
        if affected.short:
            part = self.asked.at([self._place_of[number] for number in affected.short])
            found = nearest(part, self.world.corpus, wanted(K)).tolist()
            for number, places in zip(affected.short, found, strict=True):
                self._standing.refill(number, self._nearest(places))
        differing = self._standing.differences({*affected.changed, *affected.short})
        self._standing.tell(differing)
        followed.refills += len(affected.short)
        followed.differences += len(differing)

    def _nearest(self, places: Sequence[int]) -> Nearest:
        documents, rows = self.world.documents, self.world.corpus.rows
        hits = [Hit(documents[at], 0.0, rows[at].tobytes()) for at in places]  # scored anew by their vectors
        return Nearest(self.world.index_version, hits, complete=False)

    def equal(self, most: int) -> tuple[int, int]:
        """Return how many of the watches, or of `most` drawn, have the answer of brute force, and how many were asked.

        Equal are all documents, and scores to the last bit.
        """
        total = len(self._numbers)
        drawn = self._rng.permutation(total)[:most].tolist()
        expected = answers(self.asked.at(drawn), self.world.corpus, self.world.ids, K, _THREADS)
        equal = sum(
            [(one.document.id, one.score) for one in self._standing.answer(self._numbers[at])] == answer
            for at, answer in zip(drawn, expected, strict=True)
        )
        return equal, len(drawn)
