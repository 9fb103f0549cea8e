"""Searching a collection: its index where that pays, its store exactly where that is the faster or the only way.

Each answer is of one index_version. What the index finds is read from the store afterwards; where a commit has come in
between, the search is done again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from gateway.engine import vectors
from gateway.engine.allowed import Allowed, AllowedCache
from gateway.engine.filter import Filter
from gateway.engine.index import Found, Index, neighbours_to_ask
from gateway.engine.reader import Reader, Readers
from gateway.engine.store import Store
from gateway.engine.types import Answer, Document, Hit, Labels, Vector

_TRIES = 4
_SCAN_ROW_US = 3.7
_GRAPH_NEIGHBOUR_US = 2.9


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for: checked vectors[n, d] of the collection's dimension, not yet made comparable."""

    vectors: Vector
    k: int
    where: Filter | None = None
    exact: bool = False
    excluded: frozenset[str] = frozenset()
    """The ids of documents to leave out."""
    include_vector: bool = False
    ef: int | None = None
    """How widely to search the graph; None is the collection's `ef_search`."""
    several: bool = False
    """Whether a list of vectors was asked about."""


@dataclass(frozen=True, slots=True)
class Located:
    """What the index has found as of `index_version`; not `whole` where the graph didn't reach all there is."""

    index_version: int
    found: list[Found]
    whole: bool


class Searcher:
    """From any thread. While `applying` is held, nothing is committed."""

    def __init__(self, store: Store, index: Index, readers: Readers, applying: threading.Lock) -> None:
        self._spec = store.spec
        self._store = store
        self._index = index
        self._readers = readers
        self._applying = applying
        self._allowed = AllowedCache()

    def search(self, query: Query) -> Answer:
        """Return the k nearest documents to each vector, all as they are stored as of one index_version."""
        comparable = vectors.comparable(query.vectors, self._spec.metric)
        attempt = self._search_index if query.where is None else self._search_filtered
        with self._readers.lend() as reader:
            if query.exact:
                return self._search_exactly(reader, query, comparable)
            for _ in range(_TRIES):
                answer = attempt(reader, query, comparable)
                if answer is not None:
                    return answer
            # Each time a commit came between the index and the store; with the writer held off, none can.
            with self._applying:
                answer = attempt(reader, query, comparable)
            assert answer is not None, "store and index agree while nothing is committed"
            return answer

    def nearest(self, queries: Vector, k: int, ef: int) -> Located:
        """Return labels and scores of the k nearest to each of queries[n, d], without their documents."""
        comparable = vectors.comparable(queries, self._spec.metric)
        with self._index.view() as view:
            found = self._index.search_many(view, comparable, k, ef)
            return Located(view.index_version, found, all(len(one.labels) >= min(k, view.live) for one in found))

    def _search_index(self, reader: Reader, query: Query, comparable: Vector) -> Answer | None:
        """Search the index, then read the documents found; None where one of them isn't as it was any more."""
        k = _wanted(query)
        with self._index.view() as view:
            found = [self._index.search(view, one, k, query.ef or self._spec.ef_search) for one in comparable]
        if any(len(one.labels) < min(k, view.live) for one in found):
            # The graph doesn't reach all that there is.
            return self._search_exactly(reader, query, comparable)
        with reader.snapshot() if query.include_vector else nullcontext():
            documents, blobs = _read(reader, query, found)
        known = sum(label in documents for one in found for label in one.labels.tolist())
        if known < sum(len(one.labels) for one in found):
            return None
        if any(document.index_version > view.index_version for document in documents.values()):
            return None
        return _answer(query, view.index_version, found, documents, blobs)

    def _search_filtered(self, reader: Reader, query: Query, comparable: Vector) -> Answer | None:
        """Compare exactly with the allowed vectors where they are few, search the graph for them where they are many.

        None where index and store weren't at the same version.
        """
        assert query.where is not None, "there is a filter"
        with reader.snapshot() as index_version:
            allowed = self._allowed.get(query.where, reader, index_version)
        k = _wanted(query)
        ef = query.ef or self._spec.ef_search
        if few(len(allowed), self._store.document_count, k, ef):
            return self._search_exactly(reader, query, comparable, allowed)
        with self._index.view() as view, reader.snapshot() as index_version:
            if index_version != view.index_version:
                return None
            allowed = self._allowed.get(query.where, reader, index_version, allowed)
            found = [self._index.search(view, one, k, ef, allowed) for one in comparable]
            documents, blobs = _read(reader, query, found)
        if any(len(one.labels) < min(k, len(allowed)) for one in found):
            return self._search_exactly(reader, query, comparable, allowed)
        return _answer(query, index_version, found, documents, blobs)

    def _search_exactly(
        self, reader: Reader, query: Query, comparable: Vector, allowed: Allowed | None = None
    ) -> Answer:
        """Compare with every (allowed) vector, in one snapshot of the store."""
        k = _wanted(query)
        nothing = Found(np.empty(0, np.int64), np.empty(0, np.float32))
        found = [nothing] * len(comparable)
        with reader.snapshot() as index_version:
            if query.where is None:
                blocks = reader.scan()
            else:
                blocks = reader.blocks(self._allowed.get(query.where, reader, index_version, allowed).labels())
            for labels, block in blocks:
                rows = vectors.comparable(block, self._spec.metric)
                found = [
                    _merged(one, labels, vectors.scores(query_row, rows, self._spec.metric), k)
                    for one, query_row in zip(found, comparable, strict=True)
                ]
            documents, blobs = _read(reader, query, found)
        return _answer(query, index_version, found, documents, blobs)


def _wanted(query: Query) -> int:
    return query.k + len(query.excluded)


def few(allowed: int, live: int, k: int, ef: int) -> bool:
    """Tell whether comparing with all allowed vectors costs less than asking the graph for enough neighbours.

    The constants are measured by `hotindex bench engine`.
    """
    neighbours = neighbours_to_ask(k, ef, allowed, live)
    return allowed * _SCAN_ROW_US < neighbours * _GRAPH_NEIGHBOUR_US or allowed < k


def _merged(found: Found, labels: Labels, scores: Vector, k: int) -> Found:
    labels = np.concatenate([found.labels, labels])
    scores = np.concatenate([found.scores, scores])
    top = vectors.best(scores, k)
    return Found(labels[top], scores[top])


def _read(reader: Reader, query: Query, found: Sequence[Found]) -> tuple[dict[int, Document], dict[int, bytes]]:
    labels = list({label for one in found for label in one.labels.tolist()})
    return reader.by_vector(labels), reader.vectors(labels) if query.include_vector else {}


def _answer(
    query: Query,
    index_version: int,
    found: Sequence[Found],
    documents: dict[int, Document],
    blobs: dict[int, bytes],
) -> Answer:
    return Answer(index_version, tuple(_hits(query, one, documents, blobs) for one in found), query.several)


def _hits(query: Query, found: Found, documents: dict[int, Document], blobs: dict[int, bytes]) -> tuple[Hit, ...]:
    pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    hits = (Hit(documents[label], score, blobs.get(label)) for label, score in pairs)
    wanted = [hit for hit in hits if hit.document.id not in query.excluded][: query.k]
    return tuple(sorted(wanted, key=lambda hit: (-hit.score, hit.document.id)))
