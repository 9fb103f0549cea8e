"""Real embeddings, grown with seeded noise."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

_MOVIES = Path(__file__).parent.parent / "data" / "movies.minilm.i8.npy.gz"
_NOISE = 0.5


def unit(rows: npt.NDArray[np.floating]) -> Matrix:
    """Return rows of unit length."""
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def movies() -> Matrix:
    """Return the 31,245 embeddings of 384 dimensions."""
    with gzip.open(_MOVIES) as file:
        return unit(np.load(file).astype(np.float32))


def noisy(rows: Matrix, rng: np.random.Generator, noise: float = _NOISE) -> Matrix:
    """Return rows near these: `noise` is the length of what is added, in a random direction, to rows of unit length."""
    added = rng.standard_normal(rows.shape, np.float32)
    return unit(rows + noise * unit(added))


def grown(count: int, rng: np.random.Generator) -> Matrix:
    """Return `count` rows: the movies, then noisy copies of them."""
    base = movies()
    if count <= len(base):
        return base[:count]
    copies = noisy(base[rng.integers(0, len(base), count - len(base))], rng)
    return np.concatenate([base, copies])


def nearest(rows: Matrix, queries: Matrix, k: int) -> list[set[int]]:
    """Return for each query the positions of the k nearest rows, exactly."""
    return [set(np.argpartition(-(rows @ query), k)[:k].tolist()) for query in queries]


def recall(found: list[list[int]], expected: list[set[int]]) -> float:
    """Return the share of what was expected that was found."""
    hits = sum(len(expected_one.intersection(one)) for one, expected_one in zip(found, expected, strict=True))
    return hits / sum(map(len, expected))
