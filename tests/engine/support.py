"""Small collections and simple values for the engine's tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gateway.engine.collection import Collection
from gateway.engine.plan import WriteOutcome
from gateway.engine.search import Query
from gateway.engine.types import Done, Metadata, Metric, Operation, Put, Spec, Vector, Write

DIMENSION = 4
SPEC = Spec("things", DIMENSION, Metric.L2)
WINDOW_S = 300.0


def clock(start: int = 1_000_000_000_000_000, step: int = 1) -> Callable[[], int]:
    """Return a clock that moves by `step` microseconds each time it is read."""
    return itertools.count(start, step).__next__


def vector(*numbers: float) -> Vector:
    return np.array(numbers, np.float32)


def vectors(*rows: Vector) -> Vector:
    return np.stack(rows)


def put(document_id: str, *numbers: float, metadata: Metadata | None = None, if_version: int | None = None) -> Put:
    return Put(document_id, vector(*numbers) if numbers else None, metadata=metadata, if_version=if_version)


def write(*operations: Operation, atomic: bool = False, event_id: str | None = None) -> Write:
    return Write(operations, atomic=atomic, event_id=event_id)


def make(
    directory: Path, spec: Spec = SPEC, now: Callable[[], int] | None = None, epoch: str | None = None
) -> Collection:
    return Collection.create(directory, spec, now or clock(), WINDOW_S, epoch)


def reopen(directory: Path, now: Callable[[], int] | None = None) -> Collection:
    return Collection(directory, now or clock(), WINDOW_S)


def commit(collection: Collection, *operations: Operation) -> Done:
    """Commit operations as one write, which has to succeed."""
    outcome = outcomes(collection, write(*operations))[0]
    assert isinstance(outcome, Done), outcome
    return outcome


def outcomes(collection: Collection, *writes: Write) -> Sequence[WriteOutcome]:
    return collection.commit(writes).outcomes


def nearest(collection: Collection, *numbers: float, k: int = 10, exact: bool = False) -> list[str]:
    answer = collection.search(Query(vectors(vector(*numbers)), k, exact=exact))
    return [hit.document.id for hit in answer.results[0]]
