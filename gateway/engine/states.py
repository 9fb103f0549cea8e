"""From what an operation makes of a document to its next state. Pure."""

from __future__ import annotations

from gateway.engine.merge import Deletion, Draft, Stored
from gateway.engine.types import Change, Document, EventType, Operation, Source


def following(
    operation: Operation,
    stored: Stored | None,
    outcome: Draft | Deletion,
    index_version: int,
    at: int,
    version_floor: int = 0,
) -> Document:
    """Return the document as `outcome` leaves it. A new one's version is above `version_floor`."""
    old = stored.document if stored else None
    version = (old.version if old else version_floor) + 1
    created = old.created if old and not old.deleted else index_version
    if isinstance(outcome, Deletion):
        return Document(operation.id, version, index_version, created, None, Source.VECTOR, at, "{}", None)
    kept = old.vector_version if old else None
    label = index_version if outcome.vector is not None else kept
    assert label is not None, "a live document has a vector"
    return Document(
        operation.id, version, index_version, created, label, outcome.source, at, outcome.metadata, outcome.content
    )


def change(
    document: Document, vector: bytes | None, before: Stored | None, *, net: bool = False
) -> tuple[Change, Stored]:
    """Return what turns the state `before` into `document`, and that state. Without a new `vector` the old one stays."""
    old = before.document if before is not None and not before.document.deleted else None
    if document.deleted:
        event_type = EventType.DELETE
    elif old is None:
        event_type = EventType.INSERT
    elif vector is not None and document.metadata == old.metadata and document.content == old.content:
        event_type = EventType.REFRESH
    else:
        event_type = EventType.UPDATE
    if vector is None and before is not None and not document.deleted:
        vector = before.vector
    key, crc = (before.key, before.vector_crc) if before else (0, None)
    event = Change(event_type, document, old.metadata if old else None, vector, net)
    return event, Stored(document, vector, key, crc)
