"""Vectors: from what arrived to checked float32[d], to the form the index compares, and scores back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gateway.engine.types import Metric, Vector
from gateway.errors import InvalidVector

MAX_DIMENSION = 65536
_FLOAT32_BYTES = 4
# Squared norms up to here keep products and squared distances of two vectors finite in float32.
_LEAST_SQUARED_NORM = 1e-20
_MAX_SQUARED_NORM = float(np.finfo(np.float32).max) / 8


def parse(raw: bytes | Sequence[float], field: str = "vector") -> Vector:
    """Return float32[n] from little-endian float32 bytes or from numbers. Raises InvalidVector."""
    if isinstance(raw, bytes):
        if len(raw) % _FLOAT32_BYTES:
            raise InvalidVector(f"{field} has {len(raw)} bytes, no whole number of float32", field=field)
        vector = np.frombuffer(raw, "<f4").astype(np.float32, copy=False)
    else:
        with np.errstate(over="ignore"):
            vector = np.array(raw, np.float32)
    if not 1 <= len(vector) <= MAX_DIMENSION:
        raise InvalidVector(f"{field} has {len(vector)} numbers; it must have 1 to {MAX_DIMENSION}", field=field)
    return vector


def check(vector: Vector, dimension: int, metric: Metric, field: str = "vector") -> None:
    """Raise InvalidVector unless `vector` has `dimension` finite numbers that `metric` can compare."""
    if len(vector) != dimension:
        raise InvalidVector(f"{field} has {len(vector)} numbers; the collection has dimension {dimension}", field=field)
    squared_norm = float(np.dot(vector, vector))
    if 0 < squared_norm <= _MAX_SQUARED_NORM:
        return
    bad = np.flatnonzero(~np.isfinite(vector))
    if len(bad):
        at = int(bad[0])
        raise InvalidVector(f"{field}[{at}] is {vector[at]}, not a finite float32", field=field)
    if not squared_norm <= _MAX_SQUARED_NORM:
        raise InvalidVector(
            f"{field} is too long for float32: its squared norm is over {_MAX_SQUARED_NORM:.3g}", field=field
        )
    if metric is Metric.COSINE and not vector.any():
        raise InvalidVector(f"{field} is all zeros, which has no direction for the metric cosine", field=field)


def comparable(vectors: npt.NDArray[np.float32], metric: Metric) -> npt.NDArray[np.float32]:
    """Return vectors[..., d] as the index compares them: of unit length for cosine, unchanged otherwise."""
    if metric is not Metric.COSINE:
        return vectors
    squared = np.einsum("...d,...d->...", vectors, vectors)
    if np.all(squared > _LEAST_SQUARED_NORM):
        unit: npt.NDArray[np.float32] = vectors / np.sqrt(squared)[..., np.newaxis]
        return unit
    # Squares of very small numbers vanish in float32.
    wide = vectors.astype(np.float64)
    wide /= np.sqrt(np.einsum("...d,...d->...", wide, wide))[..., np.newaxis]
    return wide.astype(np.float32)


def scores(query: Vector, vectors: npt.NDArray[np.float32], metric: Metric) -> npt.NDArray[np.float32]:
    """Return the similarity of comparable `query[d]` to each of comparable `vectors[n, d]`; larger is closer."""
    if metric is not Metric.L2:
        return vectors @ query
    difference = vectors - query
    squared: npt.NDArray[np.float32] = np.einsum("nd,nd->n", difference, difference)
    return -squared


def paired_scores(
    queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], metric: Metric
) -> npt.NDArray[np.float32]:
    """Return the similarity of each of comparable `queries[n, d]` to its own of comparable `vectors[n, d]`.

    What a pair scores depends on nothing but the pair; a product of matrices rounds by where in them a row stands.
    """
    if metric is not Metric.L2:
        products: npt.NDArray[np.float32] = np.einsum("nd,nd->n", queries, vectors)
        return products
    difference = vectors - queries
    squared: npt.NDArray[np.float32] = np.einsum("nd,nd->n", difference, difference)
    return -squared


def score_of_distance(distance: npt.NDArray[np.float32], metric: Metric) -> npt.NDArray[np.float32]:
    """Return scores for hnswlib's distances: 1 - product (`ip` space), or the squared distance (`l2` space)."""
    return -distance if metric is Metric.L2 else 1 - distance


def best(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Return the positions of the k largest scores, largest first, the earlier first where they are equal."""
    if k < len(scores):
        top = np.argpartition(-scores, k - 1)[:k]
        top.sort()
    else:
        top = np.arange(len(scores))
    order: npt.NDArray[np.int64] = top[np.argsort(-scores[top], kind="stable")]
    return order
