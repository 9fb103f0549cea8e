"""From committed changes to the bytes a subscriber gets, for each way a subscriber may want them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from typing import Any

import msgspec

from gateway.engine.filter import Filter
from gateway.engine.types import BatchComplete, Change, EventType
from gateway.protocol import messages
from gateway.protocol.codec import Codec
from gateway.protocol.framing import frame, relay_frame, server_sent_event
from gateway.protocol.timestamps import iso

_FRAME_BYTES = 1 << 20
"""Events share a frame up to about this size, so that any client takes it."""

PART_BYTES = 256 << 10
"""About how much is written to a subscriber at once: what one that doesn't read can hold on to."""


@dataclass(frozen=True)
class Variant:
    """How a subscriber wants events. Subscribers of one variant get the same bytes.

    `sse` writes Server-Sent Events instead of WebSocket frames; `relay` writes the changes as they are, for another node;
    `caught_up` tells when all that was missed has come.
    """

    collection: str
    codec: Codec
    where: Filter | None = None
    content: bool = False
    vector: bool = False
    batch: bool = False
    sse: bool = False
    caught_up: bool = False
    relay: bool = False

    @cached_property
    def form(self) -> Variant:
        """The variant without its filter: what its events look like."""
        return replace(self, where=None, caught_up=False) if self.where or self.caught_up else self

    def control(self, message: messages.Message, position: int | None = None) -> bytes:
        """Return a message that is no event, ready to be written."""
        return self.wrap(self.codec.encode(message), position)

    def wrap(self, payload: bytes, position: int | None) -> bytes:
        if self.sse:
            return server_sent_event(payload, position)
        if self.relay:
            return relay_frame(payload)
        return frame(payload, binary=self.codec.binary)

    def can_show(self, change: Change | BatchComplete) -> bool:
        """Tell whether `change` carries all that this variant shows."""
        return (
            not self.vector or isinstance(change, BatchComplete) or change.vector is not None or change.document.deleted
        )


class _Verdict(Enum):
    """What a change means for a filter."""

    SHOWN = auto()
    LEFT = auto()
    HIDDEN = auto()


class Events:
    """Some events, in order. Each filter judges each of them once, and each is encoded once for each form.

    What was encoded is kept: `size_bytes` grows by it.
    """

    def __init__(self, changes: Sequence[Change | BatchComplete]) -> None:
        self.changes = changes
        self._raw_bytes = self.size_bytes = sum(change.size_bytes for change in changes)
        self._verdicts: dict[Filter, list[_Verdict]] = {}
        self._metadata: dict[int, tuple[Any, Any]] = {}
        self._encoded: dict[Variant, dict[tuple[int, bool], bytes]] = {}
        self._joined: dict[Variant, bytes] = {}

    @property
    def large(self) -> bool:
        """Whether they are more than is written to a subscriber at once."""
        return self._raw_bytes > PART_BYTES

    def bytes_for(self, variant: Variant) -> bytes:
        """Return what is to be written for `variant`, all of it; empty where no event concerns it. Kept for the next."""
        data = self._joined.get(variant)
        if data is None:
            data = self._joined[variant] = self._join(variant, self._concerning(variant, 0))
            self.size_bytes += len(data)
        return data

    def part(self, variant: Variant, after: int, through: int) -> tuple[bytes, int]:
        """Return a part of what is to be written for `variant` after that index_version, and the one it goes up to, which
        is `through` once all have been.
        """
        if not self.large and (not self.changes or after < index_version(self.changes[0])):
            return self.bytes_for(variant), through
        part: list[tuple[int, bool]] = []
        size_bytes = 0
        for i, left in self._concerning(variant, after):
            # The end of an atomic batch has the index_version of its last change: they aren't parted.
            if size_bytes > PART_BYTES and index_version(self.changes[i]) > index_version(self.changes[part[-1][0]]):
                return self._join(variant, part), index_version(self.changes[part[-1][0]])
            part.append((i, left))
            size_bytes += self.changes[i].size_bytes
        return self._join(variant, part), through

    def messages_for(self, variant: Variant) -> tuple[messages.Event, ...]:
        """Return the events that concern `variant`, not encoded."""
        return tuple(_event(self.changes[i], variant, left=left) for i, left in self._concerning(variant, 0))

    def _join(self, variant: Variant, concerning: Iterable[tuple[int, bool]]) -> bytes:
        form = variant.form
        if variant.batch:
            return b"".join(self._shared_frames(form, concerning))
        return b"".join([self._encode(form, i, left) for i, left in concerning])

    def _concerning(self, variant: Variant, after: int) -> Iterator[tuple[int, bool]]:
        """Yield the number of each event that concerns `variant`, and whether its document has left the filter."""
        verdicts = self._judge(variant.where) if variant.where else None
        for i, change in enumerate(self.changes):
            verdict = verdicts[i] if verdicts else _Verdict.SHOWN
            if verdict is not _Verdict.HIDDEN and index_version(change) > after:
                yield i, verdict is _Verdict.LEFT

    def _shared_frames(self, form: Variant, concerning: Iterable[tuple[int, bool]]) -> Iterator[bytes]:
        """Yield frames of several events each."""
        group: list[bytes] = []
        size_bytes = 0
        for i, left in concerning:
            group.append(self._encode(form, i, left))
            size_bytes += len(group[-1])
            if size_bytes > _FRAME_BYTES:
                yield _update(form, group)
                group, size_bytes = [], 0
        if group:
            yield _update(form, group)

    def _encode(self, form: Variant, i: int, left: bool) -> bytes:
        """Return a frame of one event or, in a form where events share frames, the event itself."""
        encoded = self._encoded.setdefault(form, {})
        data = encoded.get((i, left))
        if data is None:
            change = self.changes[i]
            if form.relay:
                data = form.codec.encode(change)
            elif form.batch:
                data = form.codec.encode(_event(change, form, left=left))
            else:
                update = messages.IndexUpdate(collection=form.collection, event=_event(change, form, left=left))
                data = form.wrap(form.codec.encode(update), index_version(change))
            encoded[i, left] = data
            self.size_bytes += len(data)
        return data

    def _judge(self, where: Filter) -> list[_Verdict]:
        verdicts = self._verdicts.get(where)
        if verdicts is None:
            verdicts = self._verdicts[where] = [self._verdict(i, where) for i in range(len(self.changes))]
        return verdicts

    def _verdict(self, i: int, where: Filter) -> _Verdict:
        """Tell what a change means for a filter.

        Where the state before isn't known any more it counts as a match: the subscriber may hold the document.
        """
        change = self.changes[i]
        if isinstance(change, BatchComplete):
            return _Verdict.SHOWN
        if i not in self._metadata:
            self._metadata[i] = _metadata(change)
        before, after = self._metadata[i]
        if after is not None and where.matches(after):
            return _Verdict.SHOWN
        if change.event_type is EventType.INSERT and not (change.net and change.document.version > 1):
            return _Verdict.HIDDEN
        if before is not None and not where.matches(before):
            return _Verdict.HIDDEN
        return _Verdict.SHOWN if change.document.deleted else _Verdict.LEFT


def index_version(event: Change | BatchComplete) -> int:
    return event.index_version if isinstance(event, BatchComplete) else event.document.index_version


def _metadata(change: Change) -> tuple[Any, Any]:
    """Return the metadata before and after a change, None where there is none or it isn't known."""
    before = msgspec.json.decode(change.before) if change.before is not None else None
    return before, None if change.document.deleted else msgspec.json.decode(change.document.metadata)


def _update(form: Variant, events: Sequence[bytes]) -> bytes:
    encoded = [msgspec.Raw(event) for event in events]
    if form.relay:
        return form.wrap(form.codec.encode(encoded), None)
    if len(encoded) == 1:
        update = messages.IndexUpdate(collection=form.collection, event=encoded[0])
    else:
        update = messages.IndexUpdate(collection=form.collection, events=encoded)
    return form.wrap(form.codec.encode(update), None)


def _event(change: Change | BatchComplete, form: Variant, *, left: bool) -> messages.Event:
    if isinstance(change, BatchComplete):
        return messages.Event(
            event_type="batch_complete",
            timestamp=iso(change.at),
            index_version=change.index_version,
            count=change.count,
            first_index_version=change.first_index_version,
        )
    document = change.document
    shown = not document.deleted
    return messages.Event(
        event_type=change.event_type,
        document_id=document.id,
        timestamp=iso(document.updated_at),
        index_version=document.index_version,
        version=document.version,
        metadata=form.codec.metadata(document.metadata) if shown else None,
        content=document.content if shown and form.content else None,
        vector=form.codec.vector(change.vector) if shown and form.vector and change.vector else None,
        left=left,
    )
