"""Upserts for a gateway, of which it is known whose answers they change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.engine import data
from bench.engine.data import Matrix

K = 10
_AIMED_EVERY = 5
_AIMED, _CALM = 500, 4000
"""So many documents go from watch to watch, and so many change far from all of them."""
_NOISE, _BATCH = 0.3, 256
_MARGIN = 1e-4
"""Far more than products are off by."""


@dataclass(frozen=True, slots=True)
class Event:
    """An upsert. `watch` is the place of the one whose list it heads, None where it changes none."""

    id: str
    vector: Matrix
    watch: int | None


def events(queries: Matrix, rows: Matrix, rng: np.random.Generator) -> Iterator[Event]:
    """Yield events without end: each fifth is at a watch's query, all others are further from every watch than k rows.

    As the rows don't change, no list ever ends further away.
    """
    last = np.partition(queries @ rows.T, -K, axis=1)[:, -K]
    calm = _calm(queries, last, rows, rng)
    number = 0
    while True:
        for watch in rng.permutation(len(queries)).tolist():
            for _ in range(_AIMED_EVERY - 1):
                yield Event(f"calm{number % _CALM}", next(calm), None)
                number += 1
            near = data.noisy(queries[watch : watch + 1], rng, _NOISE)[0]
            yield Event(f"aimed{number // (_AIMED_EVERY - 1) % _AIMED}", near, watch)


def _calm(queries: Matrix, last: Matrix, rows: Matrix, rng: np.random.Generator) -> Iterator[Matrix]:
    while True:
        some = data.noisy(rows[rng.integers(0, len(rows), _BATCH)], rng)
        yield from some[((some @ queries.T) < last - _MARGIN).all(axis=1)]
