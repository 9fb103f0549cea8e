"""The nearest documents by comparing all of them with every query, in blocks that products of matrices make quick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.engine.data import Matrix
from gateway.engine import vectors
from gateway.engine.types import Metric

Places = npt.NDArray[np.int64]

ANY = -1
"""What a query without a filter wants of a document's group."""
NOWHERE = -2
"""The group of a document that isn't there."""

_BLOCK = 256
_FEW = 32
_CANDIDATES_PER_K = 5


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents: rows[n, d] of unit length (anything where they aren't there), and groups[n], which filters ask for."""

    rows: Matrix
    groups: Places


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries[q, d] of unit length, and the group each wants, or ANY."""

    queries: Matrix
    groups: Places

    def at(self, places: slice | Sequence[int]) -> Asked:
        return Asked(self.queries[places], self.groups[places])


def nearest(asked: Asked, corpus: Corpus, count: int, threads: int = 1) -> Places:
    """Return the places in the corpus of the `count` nearest to each query, int64[q, count], in no order.

    As many have to fit. `threads` compare at a time; BLAS has to be told to use one thread itself.
    """
    gone = np.flatnonzero(corpus.groups == NOWHERE)

    def block(start: int) -> Places:
        part = asked.at(slice(start, start + _BLOCK))
        products = _products(part.queries, corpus.rows)
        products[:, gone] = -np.inf
        filtered = np.flatnonzero(part.groups != ANY)
        products[filtered] = np.where(
            corpus.groups == part.groups[filtered, np.newaxis], products[filtered], np.float32(-np.inf)
        )
        least = products.shape[1] - count
        found: Places = np.argpartition(products, least, axis=1)[:, least:].copy()  # a view would keep all places
        assert np.isfinite(np.take_along_axis(products, found, 1)).all(), "more documents fit than are asked for"
        return found

    starts = range(0, len(asked.queries), _BLOCK)
    if threads == 1:
        return np.concatenate([block(start) for start in starts])
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(block, starts)))


def _products(queries: Matrix, rows: Matrix) -> Matrix:
    if len(queries) > _FEW:
        return queries @ rows.T
    # For few queries BLAS is a third quicker with the long side first.
    return np.ascontiguousarray((rows @ queries.T).T)


def answers(
    asked: Asked, corpus: Corpus, ids: Sequence[str], k: int, threads: int = 1
) -> Iterator[list[tuple[str, float]]]:
    """Yield the answer of each query: ids and scores of the k nearest by score, then id, to the last bit as promised.

    Products find candidates, more than k, as they are off by rounding; these are then scored pair by pair.
    """
    rows, queries = (vectors.comparable(one, Metric.COSINE) for one in (corpus.rows, asked.queries))
    rank = np.empty(len(ids), np.int64)
    rank[np.argsort(np.array(ids))] = np.arange(len(ids))
    candidates = nearest(asked, corpus, _CANDIDATES_PER_K * k, threads)
    for start in range(0, len(candidates), _BLOCK):
        some = candidates[start : start + _BLOCK]
        some = np.take_along_axis(some, np.argsort(rank[some], axis=1), 1)
        paired = np.repeat(queries[start : start + _BLOCK], some.shape[1], axis=0)
        scores = vectors.paired_scores(paired, rows[some.reshape(-1)], Metric.COSINE).reshape(some.shape)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        top, best = np.take_along_axis(some, order, 1), np.take_along_axis(scores, order, 1)
        for places, values in zip(top.tolist(), best.tolist(), strict=True):
            yield [(ids[at], score) for at, score in zip(places, values, strict=True)]
