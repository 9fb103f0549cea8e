"""One collection's writer: what has gathered while the last commit ran becomes the next one.

A write that needs vectors of texts lets those pass that share no document with it, until it has them. See
`gateway.ingest.queue` for the order, and for what happens when there is too much.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from gateway.bus.bus import Bus, UnderWay
from gateway.embed.embedder import Embedder
from gateway.engine.plan import HeldBack, WriteOutcome
from gateway.engine.types import Done, NeedsVectors, Vector, Write
from gateway.errors import HotindexError, NotFound, Overloaded
from gateway.faults import internal
from gateway.ingest.queue import Bounds, Pending, WriteQueue


class Committer:
    """Call on the event loop, between `start` and `stop`.

    `gather_s` says how long events may gather after a commit, so that more of them share the next; `observe_s` is told
    how long each took. Without an `embedder` the bus embeds what it must.
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
        self._observe_s = observe_s
        self._queue = WriteQueue(collection, bounds, embeds=embedder is not None)
        self._blocked: Counter[str] = Counter()
        """By document id, how many writes on it wait for vectors, or are another node's."""
        self._asked: set[Pending] = set()
        """Writes that wait for vectors."""
        self._stopping = False
        self._abandoned = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"commit {self._collection}")

    async def stop(self) -> None:
        """Finish what was submitted, then end."""
        self._stopping = True
        self._queue.arrived.set()
        if self._task is not None:
            await self._task

    async def abandon(self) -> None:
        """Finish the commit under way, refuse all else, then end."""
        self._stopping = self._abandoned = True
        for pending in (*self._asked, *self._queue.clear()):
            self._fail(pending, self._dropped())
        self._asked.clear()
        await self.stop()

    def _dropped(self) -> HotindexError:
        return NotFound(f"collection {self._collection!r} was dropped", field="collection")

    @property
    def queued_documents(self) -> int:
        return self._queue.documents

    @property
    def queued_bytes(self) -> int:
        return self._queue.size_bytes

    async def submit(self, write: Write, wait: bool = True) -> asyncio.Future[Done | HotindexError]:
        """Queue a write, and return the future of its outcome. While the queue is full this waits, or, without `wait`,
        raises Overloaded.

        A HotindexError means that nothing of the write was applied. Cancelling this call leaves the write out,
        cancelling the future doesn't.
        """
        if self._stopping:
            raise Overloaded("the gateway is shutting down", retry_after_s=1.0)
        return (await self._queue.enter(write, wait=wait)).done

    async def _run(self) -> None:
        while True:
            await self._queue.arrived.wait()
            self._queue.arrived.clear()
            while batch := self._queue.take(self._blocked):
                await self._commit(batch)
                if gather_s := self._gather_s():
                    await asyncio.sleep(gather_s)
                else:
                    # What came in while a large room was written to is read, and taken in, before the next commit.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            if self._stopping and not self._queue.documents:
                return

    async def _commit(self, batch: list[Pending]) -> None:
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

    def _settle(self, batch: Sequence[Pending], outcomes: Sequence[WriteOutcome | UnderWay]) -> None:
        for pending, outcome in zip(batch, outcomes, strict=True):
            match outcome:
                case Done() | HotindexError():
                    self._end(pending, outcome)
                case UnderWay(done):
                    self._block(pending)
                    done.add_done_callback(partial(self._came_back, pending))
                case NeedsVectors() | HeldBack() if self._abandoned:
                    self._fail(pending, self._dropped())
                case NeedsVectors(texts):
                    self._block(pending)
                    self._asked.add(pending)
                    self._ask(pending, texts).add_done_callback(partial(self._embedded, pending, texts))
                case HeldBack(texts):
                    self._queue.put_back(pending)
                    if texts and not pending.foreseen:
                        # Else each write on a document would wait for the model by itself.
                        self._ask(pending, texts).add_done_callback(partial(self._fetched, pending, texts))
                    pending.foreseen = True

    def _block(self, pending: Pending) -> None:
        self._blocked.update(pending.ids)

    def _unblock(self, pending: Pending) -> None:
        for document_id in pending.ids:
            if self._blocked[document_id] == 1:
                del self._blocked[document_id]
            else:
                self._blocked[document_id] -= 1

    def _came_back(self, pending: Pending, done: asyncio.Future[Done | HotindexError]) -> None:
        """Tell a writer how its write ended at another node."""
        self._unblock(pending)
        self._end(pending, done.result())
        self._queue.arrived.set()

    def _ask(self, pending: Pending, texts: Sequence[str]) -> asyncio.Future[list[Vector | HotindexError]]:
        assert self._embedder is not None, "a collection without a model needs no vectors"
        return self._embedder.embed(texts, pending.lane)

    def _embedded(
        self, pending: Pending, texts: Sequence[str], asked: asyncio.Future[list[Vector | HotindexError]]
    ) -> None:
        """Put a write back in its place, with its vectors, or tell its writer why it can have none."""
        if pending not in self._asked:
            return  # abandoned
        self._asked.remove(pending)
        self._unblock(pending)
        failed = self._fetched(pending, texts, asked)
        if failed is None:
            self._queue.put_back(pending)
        else:
            self._fail(pending, failed)
            self._queue.arrived.set()

    @staticmethod
    def _fetched(
        pending: Pending, texts: Sequence[str], asked: asyncio.Future[list[Vector | HotindexError]]
    ) -> Exception | None:
        """Give a write the vectors there are; return why one is missing, if one is."""
        if (error := asked.exception()) is not None:
            assert isinstance(error, Exception), "embedders raise nothing else"
            return error
        failed: Exception | None = None
        for text, outcome in zip(texts, asked.result(), strict=True):
            if isinstance(outcome, HotindexError):
                failed = failed or outcome
            else:
                pending.write.vectors[text] = outcome
        return failed

    def _fail(self, pending: Pending, error: Exception) -> None:
        self._end(pending, error if isinstance(error, HotindexError) else internal(error, collection=self._collection))

    def _end(self, pending: Pending, outcome: Done | HotindexError) -> None:
        self._queue.leave(pending)
        if not pending.done.cancelled():
            pending.done.set_result(outcome)
