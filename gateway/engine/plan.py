"""From a batch of writes to the changes one transaction commits. Pure: values in, values out.

Each write is applied whole or not at all, in order of arrival. A write that waits for embeddings holds back the later
ones on the same documents, so that changes of one document keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from gateway.engine.foresight import Foresight
from gateway.engine.merge import Deletion, Draft, Missing, NeedsVector, Outcome, Stored, Unchanged, merge
from gateway.engine.states import change, following
from gateway.engine.types import (
    BatchComplete,
    Change,
    Done,
    EventType,
    ItemResult,
    NeedsVectors,
    Operation,
    Put,
    Source,
    Spec,
    Status,
    Write,
)
from gateway.errors import HotindexError


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The write has to come again: an earlier one on the same document waits for embeddings.

    It will need the vectors of `texts`, as far as can be foreseen.
    """

    texts: tuple[str, ...] = ()


WriteOutcome = Done | NeedsVectors | HeldBack | HotindexError


@dataclass(frozen=True, slots=True)
class Turnover:
    """What a plan does to the vectors: those born, with their labels, ascending; the labels that died."""

    born: Sequence[tuple[int, bytes]]
    died: Sequence[int]


@dataclass(slots=True)
class Kept:
    """Texts that didn't have to be embedded again, because they are what their document's vector embeds already."""

    texts: int = 0
    size_bytes: int = 0

    def add(self, text: str) -> None:
        self.texts += 1
        self.size_bytes += len(text.encode())

    def include(self, other: Kept) -> None:
        self.texts += other.texts
        self.size_bytes += other.size_bytes


@dataclass(slots=True)
class Plan:
    """What to commit and what to tell each writer; `outcomes` stand in the order of the writes."""

    first_index_version: int
    index_version: int
    outcomes: list[WriteOutcome] = field(default_factory=list)
    events: list[Change | BatchComplete] = field(default_factory=list)
    documents: dict[str, Stored] = field(default_factory=dict)
    """The last state of each document this batch changed."""
    recorded: dict[str, Done] = field(default_factory=dict)
    """By event id, what the writes of this batch that carry one were told."""
    kept: Kept = field(default_factory=Kept)
    foreseen: dict[str, Stored] = field(default_factory=dict)
    """Documents as they will be once the writes that wait for vectors are applied."""

    def turnover(self, stored: Mapping[str, Stored]) -> Turnover:
        """Return what the plan does to the vectors of what was `stored` before it."""
        born: list[tuple[int, bytes]] = []
        died: list[int] = []
        for document_id, now in self.documents.items():
            before = stored[document_id].document.vector_version if document_id in stored else None
            label = now.document.vector_version
            if label == before:
                continue
            if before is not None:
                died.append(before)
            if label is not None:
                assert now.vector is not None, "a new label has a vector"
                born.append((label, now.vector))
        born.sort(key=itemgetter(0))
        return Turnover(born, died)


class Planner:
    """Applies writes, one after the other, to the documents they name.

    `stored` has an entry for each document a write names and that the collection knows, tombstones included; `recorded`
    the outcomes of earlier writes by event id; `foreseen` what earlier plans foresaw. `now` gives microseconds since the
    epoch.
    """

    def __init__(
        self,
        spec: Spec,
        stored: Mapping[str, Stored],
        recorded: Mapping[str, Done],
        index_version: int,
        version_floor: int,
        now: Callable[[], int],
        foreseen: dict[str, Stored],
    ) -> None:
        self._foresight = Foresight(spec, foreseen, self._there)
        self._spec = spec
        self._stored = stored
        self._recorded = recorded
        self._version_floor = version_floor
        self._now = now
        self._waiting: set[str] = set()
        self.plan = Plan(index_version + 1, index_version, foreseen=self._foresight.states)

    def add(self, write: Write) -> None:
        """Plan one write and append its outcome."""
        plan = self.plan
        outcome: WriteOutcome
        ids = {operation.id for operation in write.operations}
        if write.held or not ids.isdisjoint(self._waiting):
            outcome = HeldBack(self._foresight.go_on(write))
        elif (earlier := self._earlier(write)) is not None:
            outcome = Done(
                earlier.index_version,
                tuple(ItemResult(item.id, item.version, Status.DUPLICATE) for item in earlier.results),
            )
        else:
            try:
                outcome = self._apply(write)
            except HotindexError as error:
                outcome = error
            else:
                if isinstance(outcome, Done) and write.event_id is not None:
                    plan.recorded[write.event_id] = outcome
        if isinstance(outcome, NeedsVectors | HeldBack):
            self._waiting |= ids
        plan.outcomes.append(outcome)

    def hold(self, write: Write) -> None:
        """Leave a write for another time, and those after it on its documents too."""
        self._waiting |= {operation.id for operation in write.operations}
        self.plan.outcomes.append(HeldBack())

    def _there(self, document_id: str) -> Stored | None:
        return self.plan.documents.get(document_id) or self._stored.get(document_id)

    def _earlier(self, write: Write) -> Done | None:
        if write.event_id is None:
            return None
        return self.plan.recorded.get(write.event_id) or self._recorded.get(write.event_id)

    def _apply(self, write: Write) -> Done | NeedsVectors:
        """Apply a write to a copy of what it touches, and keep that only if all of it went well."""
        touched: dict[str, Stored] = {}
        events: list[Change | BatchComplete] = []
        results: list[ItemResult] = []
        needing: set[str] = set()
        kept: list[str] = []
        index_version = self.plan.index_version
        at = self._now()
        for number, operation in enumerate(write.operations):
            if operation.id in needing:
                continue
            stored = touched.get(operation.id) or self._there(operation.id)
            outcome = self._merge(write, number, stored)
            if isinstance(outcome, NeedsVector):
                needing.add(operation.id)
                continue
            kept += _kept(operation, stored, outcome)
            if isinstance(outcome, Draft | Deletion):
                index_version += 1
                document = following(operation, stored, outcome, index_version, at, self._version_floor)
                vector = outcome.vector if isinstance(outcome, Draft) else None
                event, touched[operation.id] = change(document, vector, stored)
                events.append(event)
                results.append(ItemResult(operation.id, document.version, _STATUS[event.event_type]))
            else:
                version = stored.document.version if stored else 0
                results.append(ItemResult(operation.id, version, _idle_status(outcome)))
        if needing:
            return NeedsVectors(self._foresight.begin(write))
        if write.atomic and events:
            events.append(BatchComplete(self.plan.index_version + 1, index_version, len(events), at))
        for text in kept:
            self.plan.kept.add(text)
        self.plan.documents.update(touched)
        self.plan.events.extend(events)
        self.plan.index_version = index_version
        return Done(index_version, tuple(results))

    def _merge(self, write: Write, number: int, stored: Stored | None) -> Outcome:
        try:
            return merge(write.operations[number], stored, self._spec, write.vectors)
        except HotindexError as error:
            if write.listed_as and error.field:
                error.field = f"{write.listed_as}[{number}].{error.field}"
            raise


def plan(planner: Planner, writes: Sequence[Write]) -> Plan:
    """Plan all `writes` in order."""
    for write in writes:
        planner.add(write)
    return planner.plan


def _kept(operation: Operation, stored: Stored | None, outcome: Outcome) -> tuple[str, ...]:
    """Return the text a document's vector embeds, if an operation could have changed that and didn't."""
    if stored is None or stored.document.content is None or _has_vector(operation):
        return ()
    kept = (isinstance(outcome, Unchanged) and stored.document.source is not Source.VECTOR) or (
        isinstance(outcome, Draft) and outcome.source is not Source.VECTOR and outcome.vector is None
    )
    return (stored.document.content,) if kept else ()


def _has_vector(operation: Operation) -> bool:
    return isinstance(operation, Put) and operation.vector is not None


_STATUS = {
    EventType.INSERT: Status.INSERTED,
    EventType.UPDATE: Status.UPDATED,
    EventType.REFRESH: Status.UPDATED,
    EventType.DELETE: Status.DELETED,
}


def _idle_status(outcome: Outcome) -> Status:
    return Status.MISSING if isinstance(outcome, Missing) else Status.UNCHANGED
