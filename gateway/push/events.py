"""From committed changes to the frames a subscriber gets, for each way a subscriber may want them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from gateway.engine.filter import Filter
from gateway.engine.types import BatchComplete, Change, EventType
from gateway.protocol import messages
from gateway.protocol.codec import Codec
from gateway.protocol.framing import frame
from gateway.protocol.timestamps import iso

_FRAME_BYTES = 1 << 20
"""Events share a frame up to about this size, so that any client takes it."""


@dataclass(frozen=True)
class Variant:
    """How a subscriber wants events. Subscribers of one variant get the same bytes."""

    collection: str
    codec: Codec
    where: Filter | None = None
    content: bool = False
    vector: bool = False
    batch: bool = False

    def frames(self, changes: Iterable[Change | BatchComplete]) -> bytes:
        """Return the WebSocket frames for `changes`, joined; empty where none concerns this variant."""
        frames: list[bytes] = []
        group: list[messages.Event] = []
        size_bytes = 0
        for change in changes:
            event = self._event(change)
            if event is None:
                continue
            group.append(event)
            size_bytes += change.size_bytes
            if not self.batch or size_bytes > _FRAME_BYTES:
                frames.append(self._update(group))
                group, size_bytes = [], 0
        if group:
            frames.append(self._update(group))
        return b"".join(frames)

    def _update(self, events: Sequence[messages.Event]) -> bytes:
        if len(events) > 1:
            return self.frame(messages.IndexUpdate(collection=self.collection, events=tuple(events)))
        return self.frame(messages.IndexUpdate(collection=self.collection, event=events[0]))

    def events(self, changes: Iterable[Change | BatchComplete]) -> tuple[messages.Event, ...]:
        """Return what of `changes` concerns this variant."""
        return tuple(event for change in changes if (event := self._event(change)) is not None)

    def frame(self, message: messages.Message) -> bytes:
        return frame(self.codec.encode(message), binary=self.codec.binary)

    def can_show(self, change: Change | BatchComplete) -> bool:
        """Tell whether `change` carries all that this variant shows."""
        return (
            not self.vector or isinstance(change, BatchComplete) or change.vector is not None or change.document.deleted
        )

    def _event(self, change: Change | BatchComplete) -> messages.Event | None:
        if isinstance(change, BatchComplete):
            return messages.Event(
                event_type="batch_complete",
                timestamp=iso(change.at),
                index_version=change.index_version,
                count=change.count,
                first_index_version=change.first_index_version,
            )
        document = change.document
        before, after = self._concerned(change)
        if not (before or after):
            return None
        shown = not document.deleted
        return messages.Event(
            event_type=change.event_type,
            document_id=document.id,
            timestamp=iso(document.updated_at),
            index_version=document.index_version,
            version=document.version,
            metadata=self.codec.metadata(document.metadata) if shown else None,
            content=document.content if shown and self.content else None,
            vector=self.codec.vector(change.vector) if shown and self.vector and change.vector else None,
            left=shown and not after,
        )

    def _concerned(self, change: Change) -> tuple[bool, bool]:
        """Tell whether the document matched before the change, and whether it does after.

        Where the state before isn't known any more it counts as a match: the subscriber may hold the document.
        """
        if self.where is None:
            return True, True
        if change.event_type is EventType.INSERT and not (change.net and change.document.version > 1):
            before = False
        elif change.before is None:
            before = True
        else:
            before = self.where.matches(msgspec.json.decode(change.before))
        after = not change.document.deleted and self.where.matches(msgspec.json.decode(change.document.metadata))
        return before, after
