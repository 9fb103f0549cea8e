"""What was submitted to a collection and isn't committed yet.

Order: writes that share a document leave in order of submission. Otherwise critical ones (priority 2) come before high
ones (1) before normal ones (0), each in order of submission, save those that others have to wait for.

Bounds: a write waits outside while the queue is full, in documents or in bytes, and is let in in order of priority, then of
arrival. Writes that may have to be embedded are let into a part of it only, so that a slow model doesn't keep ready vectors
out; critical ones into all of it, and a reserve.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from gateway.engine.types import Done, Patch, Put, Write
from gateway.errors import HotindexError, Overloaded

_LANES = 3
"""One per priority."""
CRITICAL = 2
_RETRY_S = 1.0
_BY_NUMBER = attrgetter("number")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be queued, and what one commit takes."""

    queued_documents: int = 16_384
    queued_bytes: int = 64 << 20
    commit_documents: int = 2048
    commit_bytes: int = 4 << 20
    embedding_share: float = 0.5
    """Of the queue, for writes that may have to be embedded."""
    critical_share: float = 1.125
    """Of the queue, for critical writes."""


def may_embed(write: Write) -> bool:
    """Tell whether a write may need the vectors of texts; only its documents say whether it does."""
    return any(isinstance(one, Patch) or (isinstance(one, Put) and one.vector is None) for one in write.operations)


@dataclass(eq=False, slots=True)
class Pending:
    """A write on its way. `lane` is its priority, or that of an earlier write on the same document; `number` its place in
    the order of submission.
    """

    write: Write
    ids: frozenset[str]
    lane: int
    embeds: bool
    done: asyncio.Future[Done | HotindexError]
    number: int = 0
    foreseen: bool = False
    """Whether what it will need, once its turn has come, was asked for ahead."""


@dataclass(slots=True)
class _Load:
    documents: int = 0
    size_bytes: int = 0

    def add(self, write: Write, sign: int = 1) -> None:
        self.documents += sign * len(write.operations)
        self.size_bytes += sign * write.size_bytes

    def leaves_room(self, write: Write, documents: float, size_bytes: float) -> bool:
        """Tell whether `write` fits beside this into the bounds; one that is larger is let in alone."""
        return not self.documents or (
            self.documents + len(write.operations) <= documents and self.size_bytes + write.size_bytes <= size_bytes
        )


class WriteQueue:
    """Call on the event loop. `embeds` says whether writes without vectors have to be embedded here."""

    def __init__(self, collection: str, bounds: Bounds, *, embeds: bool) -> None:
        self._collection = collection
        self._bounds = bounds
        self._embeds = embeds
        self._lanes: tuple[deque[Pending], ...] = tuple(deque() for _ in range(_LANES))
        self._queued_in: dict[str, list[int]] = {}
        """By document id, how many writes on it each lane holds."""
        self._outside: dict[tuple[int, bool], deque[tuple[Pending, asyncio.Future[None]]]] = {
            (lane, embeds): deque() for lane in reversed(range(_LANES)) for embeds in (False, True)
        }
        """By priority, the highest first, and by whether they embed."""
        self._load = _Load()
        self._embedding = _Load()
        self._numbers = itertools.count()
        self.arrived = asyncio.Event()

    @property
    def documents(self) -> int:
        """How many documents the writes that are in have."""
        return self._load.documents

    @property
    def size_bytes(self) -> int:
        return self._load.size_bytes

    async def enter(self, write: Write, *, wait: bool) -> Pending:
        """Let a write in. While the queue is full this waits, or, without `wait`, raises Overloaded."""
        ids = frozenset([operation.id for operation in write.operations])
        embeds = self._embeds and may_embed(write)
        pending = Pending(write, ids, write.priority, embeds, asyncio.get_running_loop().create_future())
        outside = self._outside[write.priority, embeds]
        if not outside and self._fits(pending):
            self._admit(pending)
            return pending
        if not wait:
            raise Overloaded(
                f"{self.documents} documents ({self.size_bytes} bytes) are queued for collection {self._collection!r}, and"
                f" {len(write.operations)} more don't fit (settings queue_documents, queue_bytes)",
                retry_after_s=_RETRY_S,
            )
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        outside.append((pending, admitted))
        await admitted
        return pending

    def _fits(self, pending: Pending) -> bool:
        bounds, write = self._bounds, pending.write
        critical = write.priority == CRITICAL
        share = bounds.critical_share if critical else 1.0
        if not self._load.leaves_room(write, bounds.queued_documents * share, bounds.queued_bytes * share):
            return False
        share = bounds.embedding_share
        return (
            critical
            or not pending.embeds
            or self._embedding.leaves_room(write, bounds.queued_documents * share, bounds.queued_bytes * share)
        )

    def _admit(self, pending: Pending) -> None:
        queued_in = self._queued_in
        for document_id in pending.ids:
            if queued := queued_in.get(document_id):
                # Behind a slower write on the same document there is no passing.
                pending.lane = min(pending.lane, next(lane for lane, count in enumerate(queued) if count))
        for document_id in pending.ids:
            if document_id not in queued_in:
                queued_in[document_id] = [0] * _LANES
            queued_in[document_id][pending.lane] += 1
        self._load.add(pending.write)
        if pending.embeds:
            self._embedding.add(pending.write)
        pending.number = next(self._numbers)
        self._lanes[pending.lane].append(pending)
        self.arrived.set()

    def leave(self, pending: Pending) -> None:
        """Take note that a write is done with, and let others in."""
        for document_id in pending.ids:
            queued = self._queued_in[document_id]
            queued[pending.lane] -= 1
            if not any(queued):
                del self._queued_in[document_id]
        self._load.add(pending.write, -1)
        if pending.embeds:
            self._embedding.add(pending.write, -1)
        for outside in self._outside.values():
            while outside and (outside[0][1].cancelled() or self._fits(outside[0][0])):
                waiting, admitted = outside.popleft()
                if not admitted.cancelled():
                    self._admit(waiting)
                    admitted.set_result(None)

    def clear(self) -> list[Pending]:
        """Take all writes off the lanes, and send those away that wait outside."""
        for outside in self._outside.values():
            for _, admitted in outside:
                if not admitted.done():
                    admitted.set_exception(Overloaded("the collection is being removed", retry_after_s=_RETRY_S))
            outside.clear()
        taken = [pending for lane in self._lanes for pending in lane]
        for lane in self._lanes:
            lane.clear()
        return taken

    def take(self, blocked: Mapping[str, object]) -> list[Pending]:
        """Take the next commit's writes off the lanes, leaving those on `blocked` documents, and what is behind them.

        Of these, such as may have to be embedded come along once, held.
        """
        batch: list[Pending] = []
        documents = size = 0
        behind: set[str] = set()
        for lane in reversed(self._lanes):
            kept: list[Pending] = []
            while lane and documents < self._bounds.commit_documents and size < self._bounds.commit_bytes:
                pending = lane.popleft()
                pending.write.held = not (blocked.keys().isdisjoint(pending.ids) and behind.isdisjoint(pending.ids))
                if pending.write.held:
                    behind |= pending.ids
                    if pending.foreseen or not pending.embeds:
                        kept.append(pending)
                        continue
                batch.append(pending)
                documents += len(pending.write.operations)
                size += pending.write.size_bytes
            lane.extendleft(reversed(kept))
        return batch

    def put_back(self, pending: Pending) -> None:
        """Put a write that was taken back to its place in the order."""
        lane = self._lanes[pending.lane]
        if lane and lane[0].number < pending.number:
            insort(lane, pending, key=_BY_NUMBER)
        else:
            lane.appendleft(pending)
        self.arrived.set()
