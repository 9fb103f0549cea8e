"""The core on one core: commits applied to many watches, refills by exact search, and answers against brute force."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bench.engine import data
from gateway.engine import vectors
from gateway.engine.types import Applied, Change, Document, EventType, Hit, Metric, Source
from gateway.live.standing import Standing, wanted
from gateway.live.types import Nearest, Watch

DIMENSION, K, BATCH, CHECKED = 384, 10, 64, 100
_NOISE, _BLOCK = 0.3, 256


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds are of `updates`; `equal` is the share of the checked answers that are brute force's."""

    watches: int
    updates: int
    thread_s: float
    clock_s: float
    refills: int
    equal: float
    extra_bytes: float
    again_s: float
    """What one change costs where every watch is searched for again, exactly: processor time."""


class Core:
    """Documents and the watches on them; deleted ones have a row of zeros."""

    def __init__(self, watches: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._rows = data.movies()
        count = len(self._rows)
        self._version = count
        self._documents = [
            Document(f"d{i}", 1, i + 1, i + 1, i + 1, Source.VECTOR, 0, "{}", None) for i in range(count)
        ]
        self._queries = data.noisy(self._rows[rng.integers(0, count, watches)], rng)
        self._standing = Standing(DIMENSION, Metric.COSINE, count)
        self._numbers: list[int] = []
        for start in range(0, watches, _BLOCK):
            places = np.arange(start, min(start + _BLOCK, watches))
            for place, found in zip(places.tolist(), self._search(places), strict=True):
                self._numbers.append(self._standing.add(Watch(self._queries[place], K), found))
                self._standing.answer(self._numbers[-1])
        self._place_of = {number: place for place, number in enumerate(self._numbers)}

    def measure(self, batches: int) -> Figures:
        """Apply batches; timed are `apply`, searches and refills of short watches, and every difference."""
        thread_s = clock_s = 0.0
        refills = 0
        for _ in range(batches):
            applied = self._batch()
            thread, clock = time.thread_time(), time.perf_counter()
            affected = self._standing.apply(applied)
            for start in range(0, len(affected.short), _BLOCK):
                short = affected.short[start : start + _BLOCK]
                found = self._search(np.array([self._place_of[number] for number in short]))
                for number, nearest in zip(short, found, strict=True):
                    self._standing.refill(number, nearest)
            differing = self._standing.differences({*affected.changed, *affected.short})
            self._standing.tell(differing)
            thread_s += time.thread_time() - thread
            clock_s += time.perf_counter() - clock
            refills += len(affected.short)
        watches = len(self._numbers)
        extra = self._standing.size_bytes / watches - DIMENSION * 4
        again_s = self._again_s() * watches
        return Figures(watches, batches * BATCH, thread_s, clock_s, refills, self._equal(), extra, again_s)

    def _search(self, places: np.typing.NDArray[np.int64]) -> list[Nearest]:
        width = wanted(K)
        found = []
        for scores in self._queries[places] @ self._rows.T:
            top = np.argpartition(-scores, width)[:width].tolist()
            hits = [
                Hit(self._documents[at], float(scores[at]), self._rows[at].tobytes())
                for at in top
                if not self._documents[at].deleted
            ]
            found.append(Nearest(self._standing.index_version, hits, complete=False))
        return found

    def _batch(self) -> Applied:
        """Return changes of random documents: one in eight is deleted, and a deleted one is inserted anew."""
        places = self._rng.choice(len(self._rows), BATCH, replace=False)
        # A document's new vector is near that of any document, so that deleted ones have one too.
        near = self._rng.permutation(np.flatnonzero(self._rows.any(axis=1)))[:BATCH]
        events = []
        for place, row in zip(places.tolist(), data.noisy(self._rows[near], self._rng, _NOISE), strict=True):
            old = self._documents[place]
            self._version += 1
            gone = not old.deleted and self._rng.random() < 1 / 8
            kind = EventType.DELETE if gone else EventType.INSERT if old.deleted else EventType.UPDATE
            created = self._version if old.deleted else old.created
            vector_version = None if gone else self._version
            new = Document(
                old.id, old.version + 1, self._version, created, vector_version, Source.VECTOR, 0, "{}", None
            )
            self._documents[place] = new
            self._rows[place] = 0 if gone else row
            before = None if old.deleted else old.metadata
            events.append(Change(kind, new, before, None if gone else row.tobytes()))
        return Applied(self._version - BATCH + 1, self._version, tuple(events))

    def _again_s(self) -> float:
        queries = self._queries[:_BLOCK]
        started = time.thread_time()
        for scores in queries @ self._rows.T:
            np.argpartition(-scores, K)
        return (time.thread_time() - started) / len(queries)

    def _equal(self) -> float:
        rows = vectors.comparable(self._rows[self._rows.any(axis=1)], Metric.COSINE)
        documents = [one for one in self._documents if not one.deleted]
        checked = self._rng.choice(len(self._numbers), min(CHECKED, len(self._numbers)), replace=False).tolist()
        equal = 0
        for place in checked:
            query = vectors.comparable(self._queries[place], Metric.COSINE)
            scores = vectors.paired_scores(np.broadcast_to(query, rows.shape), rows, Metric.COSINE)
            top = np.argpartition(-scores, 5 * K)[: 5 * K].tolist()
            expected = sorted((-float(scores[at]), documents[at].id) for at in top)[:K]
            answer = self._standing.answer(self._numbers[place])
            equal += [(-one.score, one.document.id) for one in answer] == expected
        return equal / len(checked)
