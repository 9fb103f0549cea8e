"""The order of one collection's batches as this node has it: what comes next, what is missing. No I/O.

Batches come from a channel (fast, at most once, with holes), from the stream (complete, as far back as it is kept), and
from this node's own proposals (at once). Whatever comes twice or late is passed over; what comes too early is dropped: the
stream has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gateway.bus.batches import Header, decode_body
from gateway.engine.replay import Prepared, Sequenced

QUEUE_BYTES = 32 << 20
"""What waits to be applied at most; beyond, it is dropped, and read from the stream later."""

APPLIED_AT_ONCE = 2048
"""Changes in one transaction, about."""


class Follower:
    """`position` is the index_version up to which everything has come; `hole` tells that something after it hasn't.

    `stale` tells that the nodes may have agreed on something else than what is known here.
    """

    def __init__(self, epoch: str, term: int, position: int) -> None:
        self.epoch = epoch
        self.term = term
        self.starts: Sequence[tuple[int, int]] = ()
        """The terms there were, with the heads they began with."""
        self.position = position
        self.hole = True
        self.stale = True
        self._queue: deque[tuple[Sequenced, int, Prepared | None]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether something waits to be applied."""
        return bool(self._queue)

    def take(self, header: Header, body: memoryview) -> None:
        """Take a batch that came from elsewhere. Raises ValueError for what is none (as msgspec.DecodeError is)."""
        if self._comes_next(header, len(body)):
            batch = decode_body(header, body)
            if sum(len(proposal.entries) for proposal in batch.proposals) != batch.changes:
                raise ValueError(f"the batch at {header.index_version} has not as many changes as it says")
            self._append(batch, len(body))

    def take_own(self, batch: Sequenced, size_bytes: int, prepared: Prepared | None = None) -> None:
        """Take a batch this node has just given its place; `prepared` is how, where all of that comes next."""
        header = Header(self.epoch, self.term, batch.first_index_version, batch.index_version)
        if self._comes_next(header, size_bytes):
            self._append(batch, size_bytes, prepared)

    def holds(self, term: int, index_version: int) -> bool:
        """Tell whether what was given its place in `term` still has it."""
        return all(start >= index_version for later, start in self.starts if later > term)

    def _comes_next(self, header: Header, size_bytes: int) -> bool:
        if header.epoch != self.epoch or header.term > self.term:
            self.stale = True
            return False
        if not self.holds(header.term, header.index_version):
            return False
        if header.index_version <= self.position:
            return False
        if header.first_index_version != self.position + 1 or self._bytes + size_bytes > QUEUE_BYTES > size_bytes:
            self.hole = True
            return False
        return True

    def _append(self, batch: Sequenced, size_bytes: int, prepared: Prepared | None = None) -> None:
        self._queue.append((batch, size_bytes, prepared))
        self._bytes += size_bytes
        self.position = batch.index_version

    @property
    def confirmed(self) -> Prepared | None:
        """What this node has prepared itself, if that is what is to be applied next."""
        return self._queue[0][2] if self._queue else None

    def next(self) -> list[Sequenced]:
        """Return the batches to apply in one transaction; they wait until `applied` says that they were."""
        found: list[Sequenced] = []
        changes = 0
        for batch, _, _ in self._queue:
            found.append(batch)
            changes += batch.changes
            if changes >= APPLIED_AT_ONCE:
                break
        return found

    def applied(self, count: int) -> None:
        """Let go of the first `count` batches."""
        for _ in range(count):
            self._bytes -= self._queue.popleft()[1]

    def jump(self, position: int) -> None:
        """Go on from a position reached another way."""
        self._queue.clear()
        self._bytes = 0
        self.position = position
        self.hole = True
