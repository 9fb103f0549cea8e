"""One collection's writer: what has gathered while the last commit ran becomes the next one.

Order: writes that share a document are applied in order of submission. Otherwise critical ones (priority 2) come before
high ones (1) before normal ones (0), each in order of submission, save that a write that waits for embeddings lets those
pass that share no document with it.

Bounds: a submission waits while the queue is full, in documents or in bytes, and is admitted in order of arrival.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gateway.bus.bus import Bus
from gateway.embed.embedder import Embedder
from gateway.engine.plan import HeldBack, WriteOutcome
from gateway.engine.types import Done, NeedsVectors, Write
from gateway.errors import EmbeddingUnavailable, HotindexError, Overloaded
from gateway.faults import internal

_LANES = 3
"""One per priority."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be queued, and what one commit takes."""

    queued_documents: int = 16_384
    queued_bytes: int = 64 << 20
    commit_documents: int = 2048
    commit_bytes: int = 4 << 20


@dataclass(eq=False, slots=True)
class _Pending:
    write: Write
    ids: frozenset[str]
    lane: int
    done: asyncio.Future[Done | HotindexError]


class Committer:
    """Call on the event loop, between `start` and `stop`.

    `gather_s` says how long events may gather after a commit, so that more of them share the next; `observe_s` is told
    how long each took.
    """

    def __init__(
        self,
        collection: str,
        embedder: Embedder | None,
        bus: Bus,
        bounds: Bounds,
        gather_s: Callable[[], float],
        observe_s: Callable[[float], None],
    ) -> None:
        self._collection = collection
        self._embedder = embedder
        self._bus = bus
        self._gather_s = gather_s
        self._bounds = bounds
        self._observe_s = observe_s
        self._lanes: tuple[deque[_Pending], ...] = tuple(deque() for _ in range(_LANES))
        self._queued_in: dict[str, list[int]] = {}
        """By document id, how many writes on it each lane holds."""
        self._waiting: deque[tuple[_Pending, asyncio.Future[None]]] = deque()
        self._documents = 0
        self._bytes = 0
        self._embedding: Counter[str] = Counter()
        self._embeddings: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"commit {self._collection}")

    async def stop(self) -> None:
        """Finish what was submitted, then end."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    @property
    def queued_documents(self) -> int:
        return self._documents

    @property
    def queued_bytes(self) -> int:
        return self._bytes

    async def submit(self, write: Write) -> asyncio.Future[Done | HotindexError]:
        """Queue a write, waiting while the queue is full; return the future of its outcome.

        A HotindexError means that nothing of the write was applied. Cancelling this call leaves the write out,
        cancelling the future doesn't.
        """
        ids = frozenset([operation.id for operation in write.operations])
        pending = _Pending(write, ids, write.priority, asyncio.get_running_loop().create_future())
        if self._stopping:
            raise Overloaded("the gateway is shutting down", retry_after_s=1.0)
        if self._waiting or not self._fits(write):
            admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((pending, admitted))
            await admitted
        else:
            self._admit(pending)
        return pending.done

    def _fits(self, write: Write) -> bool:
        """A write larger than the bounds is let in alone."""
        documents = self._documents + len(write.operations)
        size = self._bytes + write.size_bytes
        bounds = self._bounds
        return not self._documents or (documents <= bounds.queued_documents and size <= bounds.queued_bytes)

    def _admit(self, pending: _Pending) -> None:
        queued_in = self._queued_in
        for document_id in pending.ids:
            if queued := queued_in.get(document_id):
                # Behind a slower write on the same document there is no passing.
                pending.lane = min(pending.lane, next(lane for lane, count in enumerate(queued) if count))
        for document_id in pending.ids:
            if document_id not in queued_in:
                queued_in[document_id] = [0] * _LANES
            queued_in[document_id][pending.lane] += 1
        self._documents += len(pending.write.operations)
        self._bytes += pending.write.size_bytes
        self._lanes[pending.lane].append(pending)
        self._wake.set()

    def _leave(self, pending: _Pending) -> None:
        for document_id in pending.ids:
            queued = self._queued_in[document_id]
            queued[pending.lane] -= 1
            if not any(queued):
                del self._queued_in[document_id]
        self._documents -= len(pending.write.operations)
        self._bytes -= pending.write.size_bytes
        while self._waiting and (self._waiting[0][1].cancelled() or self._fits(self._waiting[0][0].write)):
            waiting, admitted = self._waiting.popleft()
            if not admitted.cancelled():
                self._admit(waiting)
                admitted.set_result(None)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._take():
                await self._commit(batch)
                if gather_s := self._gather_s():
                    await asyncio.sleep(gather_s)
                else:
                    # What came in while a large room was written to is read, and taken in, before the next commit.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            if self._stopping and not self._documents:
                return

    def _take(self) -> list[_Pending]:
        """Take the next commit's writes off the lanes, leaving those behind an embedding under way."""
        batch: list[_Pending] = []
        documents = size = 0
        blocked = set(self._embedding)
        for lane in reversed(self._lanes):
            kept: list[_Pending] = []
            while lane and documents < self._bounds.commit_documents and size < self._bounds.commit_bytes:
                pending = lane.popleft()
                if blocked and not blocked.isdisjoint(pending.ids):
                    blocked |= pending.ids
                    kept.append(pending)
                    continue
                batch.append(pending)
                documents += len(pending.write.operations)
                size += pending.write.size_bytes
            lane.extendleft(reversed(kept))
        return batch

    async def _commit(self, batch: list[_Pending]) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            outcomes = await self._bus.commit([pending.write for pending in batch])
        except Exception as error:  # the writer must outlive a failed commit; what failed is told to each writer
            for pending in batch:
                self._fail(pending, error)
            return
        self._observe_s(clock() - started)
        self._settle(batch, outcomes)

    def _settle(self, batch: Sequence[_Pending], outcomes: Sequence[WriteOutcome]) -> None:
        embed: list[tuple[_Pending, NeedsVectors]] = []
        again: list[_Pending] = []
        for pending, outcome in zip(batch, outcomes, strict=True):
            match outcome:
                case Done():
                    self._leave(pending)
                    if not pending.done.cancelled():
                        pending.done.set_result(outcome)
                case HotindexError():
                    self._fail(pending, outcome)
                case NeedsVectors():
                    self._embedding.update(pending.ids)
                    embed.append((pending, outcome))
                case HeldBack():
                    again.append(pending)
        self._requeue(again)
        if embed:
            task = asyncio.create_task(self._embed(embed))
            self._embeddings.add(task)
            task.add_done_callback(self._embeddings.discard)

    async def _embed(self, wanting: Sequence[tuple[_Pending, NeedsVectors]]) -> None:
        """Embed the texts these writes need in one call, and put the writes back at the head of their lanes."""
        texts = list(dict.fromkeys(itertools.chain.from_iterable(needs.texts for _, needs in wanting)))
        try:
            if self._embedder is None:
                raise EmbeddingUnavailable(f"the model of collection {self._collection!r} isn't available on this node")
            vectors = dict(zip(texts, await self._embedder.embed(texts), strict=True))
        except Exception as error:  # as in _commit
            for pending, _ in wanting:
                self._embedding.subtract(pending.ids)
                self._fail(pending, error)
            wanting = ()
        ready: list[_Pending] = []
        for pending, needs in wanting:
            self._embedding.subtract(pending.ids)
            failed = [v for text in needs.texts if isinstance(v := vectors[text], HotindexError)]
            if failed:
                self._fail(pending, failed[0])
                continue
            for text in needs.texts:
                vector = vectors[text]
                assert not isinstance(vector, HotindexError), "failures were told above"
                pending.write.vectors[text] = vector
            ready.append(pending)
        self._embedding = +self._embedding
        self._requeue(ready)
        self._wake.set()

    def _requeue(self, pending: Iterable[_Pending]) -> None:
        for one in reversed(list(pending)):
            self._lanes[one.lane].appendleft(one)

    def _fail(self, pending: _Pending, error: Exception) -> None:
        self._leave(pending)
        told = error if isinstance(error, HotindexError) else internal(error, collection=self._collection)
        if not pending.done.cancelled():
            pending.done.set_result(told)
