"""A collection in memory whose commits are planned as the engine plans them, searched by comparing with everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from gateway.engine import vectors
from gateway.engine.merge import Stored
from gateway.engine.plan import Planner, plan
from gateway.engine.types import (
    Applied,
    Change,
    Document,
    Done,
    Hit,
    Metadata,
    Metric,
    Operation,
    Patch,
    Put,
    Remove,
    Spec,
    Vector,
    Write,
)
from gateway.live.standing import Standing, wanted
from gateway.live.types import Difference, Nearest, Watch

DIMENSION = 4


@dataclass(frozen=True)
class State:
    """The documents as of an index_version, with their vectors."""

    documents: Mapping[str, tuple[Document, Vector]]

    def ranked(self, watch: Watch, metric: Metric) -> list[tuple[Document, float, Vector]]:
        """Return all documents that fit a watch, the nearest first."""
        fitting = [
            (document, vector)
            for document, vector in self.documents.values()
            if document.id not in watch.excluded
            and (watch.where is None or watch.where.matches(msgspec.json.decode(document.metadata)))
        ]
        if not fitting:
            return []
        rows = vectors.comparable(np.stack([vector for _, vector in fitting]), metric)
        queries = vectors.comparable(np.stack([watch.query] * len(fitting)), metric)
        scores = vectors.paired_scores(queries, rows, metric).tolist()
        ranked = [(document, score, vector) for (document, vector), score in zip(fitting, scores, strict=True)]
        return sorted(ranked, key=lambda one: (-one[1], one[0].id))

    def top(self, watch: Watch, metric: Metric) -> list[tuple[str, float, int]]:
        """Return id, score and version of the top k."""
        ranked = [(document.id, score, document.version) for document, score, _ in self.ranked(watch, metric)]
        return [one for one in ranked if one[1] >= watch.min_score][: watch.k]


class World:
    def __init__(self, metric: Metric = Metric.IP, dimension: int = DIMENSION) -> None:
        self.spec = Spec("w", dimension, metric)
        self.index_version = 0
        self.states: dict[int, State] = {0: State({})}
        self._stored: dict[str, Stored] = {}

    @property
    def state(self) -> State:
        return self.states[self.index_version]

    def commit(self, *operations: Operation, with_vectors: bool = True) -> Applied | None:
        """Commit operations, each as a write; return what changed."""
        known = {
            i: one if with_vectors else msgspec.structs.replace(one, vector=None) for i, one in self._stored.items()
        }
        planner = Planner(self.spec, known, {}, self.index_version, 0, lambda: 0, {})
        planned = plan(planner, [Write((operation,)) for operation in operations])
        assert all(isinstance(outcome, Done) for outcome in planned.outcomes), planned.outcomes
        if not planned.events:
            return None
        for document_id, stored in planned.documents.items():
            before = self._stored.get(document_id)
            vector = stored.vector or (before.vector if before else None)
            self._stored[document_id] = msgspec.structs.replace(stored, vector=vector)
        self.index_version = planned.index_version
        self.states[self.index_version] = State(
            {
                i: (one.document, np.frombuffer(one.vector, np.float32))
                for i, one in self._stored.items()
                if not one.document.deleted and one.vector is not None
            }
        )
        return Applied(planned.first_index_version, planned.index_version, tuple(planned.events))

    def search(self, watch: Watch, *, with_vectors: bool = True) -> Nearest:
        """Find what a watch wants to start from."""
        ranked = self.state.ranked(watch, self.spec.metric)
        count = wanted(watch.k)
        hits = [Hit(document, score, vector.tobytes() if with_vectors else None) for document, score, vector in ranked]
        return Nearest(self.index_version, hits[:count], len(hits) < count)

    def top(self, watch: Watch) -> list[tuple[str, float, int]]:
        return self.state.top(watch, self.spec.metric)


@dataclass
class Client:
    """Holds what it was told: by id, the score and the document."""

    held: dict[str, tuple[float, Document]] = field(default_factory=dict)

    def apply(self, difference: Difference) -> None:
        for document_id in difference.removed:
            del self.held[document_id]
        for one in difference.added:
            assert one.document.id not in self.held, "what is held isn't added"
        for one in difference.changed:
            assert one.document.id in self.held, "what changes is held"
        for one in [*difference.added, *difference.changed]:
            self.held[one.document.id] = (one.score, one.document)
        ranks = {document_id: rank for rank, (document_id, _, _) in enumerate(self.top(), 1)}
        assert all(ranks[one.document.id] == one.rank for one in [*difference.added, *difference.changed])

    def top(self) -> list[tuple[str, float, int]]:
        held = [(document_id, score, document.version) for document_id, (score, document) in self.held.items()]
        return sorted(held, key=lambda one: (-one[1], one[0]))


def take_difference(standing: Standing, number: int) -> Difference:
    """Return how a watch's top k differs from what was told, and take it as told."""
    found = standing.differences((number,))
    standing.tell(found)
    return found.get(number, Difference())


def vector(*numbers: float) -> Vector:
    return np.array(numbers, np.float32)


def put(document_id: str, *numbers: float, metadata: Metadata | None = None) -> Put:
    return Put(document_id, vector(*numbers) if numbers else None, metadata=metadata)


def patch(document_id: str, **changes: object) -> Patch:
    return Patch(document_id, changes)


def watch(*numbers: float, k: int = 2, min_score: float = -math.inf, excluded: Sequence[str] = ()) -> Watch:
    return Watch(vector(*numbers), k, None, min_score, frozenset(excluded))


def remove(document_id: str) -> Remove:
    return Remove(document_id)


def net(applied: Applied, **changes: object) -> Applied:
    """Return a commit whose changes have these fields instead."""
    events = [msgspec.structs.replace(event, **changes) for event in applied.events if isinstance(event, Change)]
    return Applied(applied.first_index_version, applied.index_version, tuple(events))
