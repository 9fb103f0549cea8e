"""Whether a collection's files are what they should be, in words. Changes nothing."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.engine import lineage, snapshot, vectors
from gateway.engine.database import FLOAT_BYTES
from gateway.engine.graph import Graph
from gateway.engine.lineage import Lineage
from gateway.engine.reader import Reader
from gateway.engine.store import STORE_FILE, Store
from gateway.engine.types import Labels
from gateway.errors import StorageUnavailable

_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what was found; `sound` is False where something is damaged."""

    subject: str
    text: str
    sound: bool = True


def collection(directory: Path) -> Iterator[Finding]:
    """Yield what there is to say about the collection in `directory`, which no process may have open."""
    try:
        store = Store(directory / STORE_FILE)
    except StorageUnavailable as error:
        yield Finding("store", error.message, sound=False)
        return
    try:
        reader = store.reader()
        try:
            yield from _store(store, reader)
            yield _lineage(directory, store)
            yield from _snapshots(directory, store, reader.labels())
        finally:
            reader.close()
    except StorageUnavailable as error:
        yield Finding("store", error.message, sound=False)
    finally:
        store.close()


def _store(store: Store, reader: Reader) -> Iterator[Finding]:
    problems = reader.integrity_problems()
    if not problems:
        problems = [*reader.term_problems(), *_vector_problems(store, reader)]
    for problem in problems:
        yield Finding("store", problem, sound=False)
    if not problems:
        yield Finding(
            "store",
            f"{store.document_count} documents at index_version {store.index_version}, dimension"
            f" {store.spec.dimension}, {store.garbage} replaced vectors to be deleted",
        )


def _vector_problems(store: Store, reader: Reader) -> Iterator[str]:
    """Compare every vector with the checksum in its document's row."""
    size = FLOAT_BYTES * store.spec.dimension
    for document_id, crc, vector in reader.checksums():
        if vector is None:
            yield f"document {document_id!r} has no vector"
        elif not isinstance(vector, bytes) or len(vector) != size:
            yield f"the vector of document {document_id!r} has not {size} bytes"
        elif zlib.crc32(vector) != crc:
            yield f"the vector of document {document_id!r} is not what was written"


def _lineage(directory: Path, store: Store) -> Finding:
    reason = lineage.broken(directory, Lineage(store.epoch, store.index_version))
    if reason:
        return Finding("lineage", f"{reason}: the next start begins a new epoch")
    return Finding("lineage", f"epoch {store.epoch}")


def _snapshots(directory: Path, store: Store, live: Labels) -> Iterator[Finding]:
    found = False
    for path, one in snapshot.inspect(directory, store.spec, store.epoch, store.index_version):
        found = True
        if isinstance(one, str):
            yield Finding(path.stem, one, sound=False)
            continue
        graph = one.graph
        saved = graph.labels()
        wrong = _differing(store, graph, np.intersect1d(saved, live))
        if wrong:
            yield Finding(path.stem, f"{wrong} of the vectors compared are not the store's", sound=False)
        else:
            missing, gone = len(np.setdiff1d(live, saved)), len(np.setdiff1d(saved, live))
            yield Finding(
                path.stem, f"{len(saved)} vectors; at start {missing} are to be added and {gone} to be marked dead"
            )
    if not found:
        yield Finding("snapshots", "none: the graph is made from the store at start")


def _differing(store: Store, graph: Graph, labels: Labels) -> int:
    """Compare a sample of a graph's vectors with the store's; return how many differ."""
    blobs = store.vectors(labels[:: max(1, len(labels) // _SAMPLE)].tolist())
    if not blobs:
        return 0
    stored = np.frombuffer(b"".join(blobs.values()), np.float32).reshape(-1, store.spec.dimension)
    expected = vectors.comparable(stored, store.spec.metric)
    found = graph.rows(np.fromiter(blobs, np.int64))
    return int(np.count_nonzero(~np.isclose(found, expected, atol=1e-6).all(axis=1)))
