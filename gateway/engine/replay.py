"""Writes in a form that any node can apply: what one node has prepared, once its place in the order is known.

A proposal carries the documents' next states, not what was asked for: whoever applies it needs neither the embedding nor
the rules by which deltas are merged. It is right only where none of its documents has changed since it was prepared;
whoever gives it its place has to make sure of that. Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gateway.engine.merge import Stored
from gateway.engine.plan import Plan, WriteOutcome
from gateway.engine.states import change
from gateway.engine.types import BatchComplete, Change, Document, Done, ItemResult, Source, Write


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A document's next state. Without a vector the stored one stays, or, in a deletion, goes."""

    id: str
    version: int
    deleted: bool
    source: Source
    at: int
    metadata: str
    content: str | None
    vector: bytes | None


class Proposal(msgspec.Struct, frozen=True, array_like=True):
    """One write. `origin` and `number` name it, so that the node it comes from knows it again."""

    origin: str
    number: int
    entries: tuple[Entry, ...]
    atomic: bool
    event_id: str | None
    results: tuple[ItemResult, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Writes as they would be applied to the state as of `index_version`, which is what was `stored`.

    `proposals` holds, by their place among the writes, those that change something.
    """

    index_version: int
    outcomes: Sequence[WriteOutcome]
    proposals: Mapping[int, Proposal]
    plan: Plan
    stored: Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class Sequenced:
    """Proposals that have their place: their changes are numbered on from `first_index_version`."""

    first_index_version: int
    index_version: int
    proposals: tuple[Proposal, ...]

    @property
    def changes(self) -> int:
        return self.index_version - self.first_index_version + 1


class Copy(msgspec.Struct, frozen=True):
    """A page of net changes for another node: with vectors, deletions, and, in the last, the outcomes by event id.

    `through` is the index_version reached; deletions up to `purged_through` are forgotten, and with them versions of
    documents up to `version_floor`.
    """

    changes: tuple[Change, ...]
    through: int
    more: bool
    recorded: dict[str, Done]
    purged_through: int
    version_floor: int


def propose(write: Write, origin: str, number: int, events: Iterable[Change | BatchComplete], done: Done) -> Proposal:
    """Return what was planned for one write in a form without numbers that depend on its place."""
    entries = tuple(_entry(event) for event in events if isinstance(event, Change))
    return Proposal(origin, number, entries, write.atomic, write.event_id, done.results)


def _entry(change: Change) -> Entry:
    d = change.document
    vector = change.vector if d.vector_version == d.index_version else None
    return Entry(d.id, d.version, d.deleted, d.source, d.updated_at, d.metadata, d.content, vector)


def replay(batches: Sequence[Sequenced], stored: Mapping[str, Stored]) -> tuple[Plan, list[Done]]:
    """Return the plan that applies `batches` to what is `stored`, and how each of their proposals ended."""
    plan = Plan(batches[0].first_index_version, batches[0].first_index_version - 1)
    ended: list[Done] = []
    for batch in batches:
        assert batch.first_index_version == plan.index_version + 1, "batches are applied without gaps"
        ended += [_replay(proposal, plan, stored) for proposal in batch.proposals]
        assert plan.index_version == batch.index_version, "a batch has as many changes as it has numbers"
    return plan, ended


def _replay(proposal: Proposal, plan: Plan, stored: Mapping[str, Stored]) -> Done:
    first = plan.index_version + 1
    for entry in proposal.entries:
        before = plan.documents.get(entry.id) or stored.get(entry.id)
        plan.index_version += 1
        document = _document(entry, before.document if before else None, plan.index_version)
        event, plan.documents[entry.id] = change(document, entry.vector, before)
        plan.events.append(event)
    if proposal.atomic and proposal.entries:
        at = proposal.entries[-1].at
        plan.events.append(BatchComplete(first, plan.index_version, len(proposal.entries), at))
    done = Done(plan.index_version, proposal.results)
    if proposal.event_id is not None:
        plan.recorded[proposal.event_id] = done
    return done


def _document(entry: Entry, old: Document | None, index_version: int) -> Document:
    live = old if old is not None and not old.deleted else None
    created = live.created if live else index_version
    label: int | None = None
    if not entry.deleted:
        label = index_version if entry.vector is not None else (live.vector_version if live else None)
        assert label is not None, "a live document has a vector"
    return Document(
        entry.id, entry.version, index_version, created, label, entry.source, entry.at, entry.metadata, entry.content
    )


def adopt(changes: Sequence[Change], through: int, index_version: int, stored: Mapping[str, Stored]) -> Plan:
    """Return the plan that takes over another node's net changes after `index_version`, up to `through`.

    `stored` has the vectors too. A vector that is stored already keeps its label; another gets the document's
    index_version, which no vector here has.
    """
    plan = Plan(index_version + 1, through)
    for theirs in changes:
        document = theirs.document
        before = stored.get(document.id)
        vector = theirs.vector
        label = None if document.deleted else document.index_version
        if vector is not None and before is not None and before.vector == vector:
            label, vector = before.document.vector_version, None
        document = msgspec.structs.replace(document, vector_version=label)
        event, plan.documents[document.id] = change(document, vector, before, net=True)
        plan.events.append(event)
    return plan
