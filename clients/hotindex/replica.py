"""A live local copy of a collection, or of the part of it that fits a filter, searched where it is."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hotindex import replica_file
from hotindex.backoff import Backoff
from hotindex.client import DEFAULT_URL, Client
from hotindex.errors import ConnectionLost, InvalidFile
from hotindex.replica_file import Contents
from hotindex.subscription import Subscription
from hotindex.types import CaughtUp, Event, Hit, Include, Metric, Reset, StoredDocument, Update, VectorLike
from hotindex.vectors import VectorTable

log = logging.getLogger("hotindex")


class Replica:
    """Keeps itself equal to the collection: through lost connections, and restarts of either side.

        async with hotindex.Replica("movies", path=Path("movies.replica")) as replica:
            await replica.synced()
            hits = replica.search(vector, k=10)

    `include` says what of the documents is kept besides metadata; without vectors there is no search. With `path` it
    begins with what the file holds, writes it every `save_interval_s` and when it is closed, and gets only what has
    changed since. Reads need no connection, and tell of the last state that arrived.

    An error that ends the subscription, such as a collection that isn't there, is raised by `synced`, `ended` and at the
    end of the `async with`. InvalidFile is raised at its beginning.
    """

    def __init__(
        self,
        collection: str,
        url: str = DEFAULT_URL,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the contract's name
        include: Sequence[Include] = ("vector",),
        path: Path | str | None = None,
        save_interval_s: float = 30.0,
        **client: Any,
    ) -> None:
        """`client` takes what Client takes."""
        self.collection = collection
        self.index_version = 0
        """Everything up to here is in the copy."""
        self.metric: Metric | None = None
        """The collection's, once it is known."""
        self.save_error: OSError | None = None
        """Why the file couldn't be written when it was tried last; it is tried again, and at the end raised."""
        self.epoch: str | None = None
        self._client = Client(url, **client)
        # As it comes back from the file: a tuple is a list there.
        self._filter: dict[str, Any] | None = json.loads(json.dumps(dict(filter))) if filter else None
        self._include = tuple(include)
        self._path = None if path is None else Path(path)
        self._save_interval_s = save_interval_s
        self._documents: dict[str, StoredDocument] = {}
        self._vectors = VectorTable()
        self._subscription: Subscription | None = None
        self._changed = asyncio.Event()
        self._saving = asyncio.Lock()
        self._saved_at: tuple[str | None, int] | None = None
        self._unconnected = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        if self._path is not None and not self._path.parent.is_dir():
            raise InvalidFile(f"{self._path} can't be written: there is no folder {self._path.parent}")
        if self._path is not None and self._path.exists():
            self._adopt(await asyncio.to_thread(replica_file.read, self._path, self._identity()))
        try:
            await self._client.connect()
        except ConnectionLost as error:
            # With a file there is something to tell of until the gateway is back.
            if self.epoch is None or not error.retryable:
                raise
            self._unconnected = True
        self._tasks.append(asyncio.create_task(self._follow(), name=f"replica of {self.collection}"))
        if self._path is not None:
            self._tasks.append(asyncio.create_task(self._save_now_and_then(), name=f"file of {self.collection}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = [task for task in self._tasks if task.done() and not task.cancelled() and task.exception()]
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._client.close()
        if self._path is not None:
            await self.save()
        if failed and error is None:
            failed[0].result()

    @property
    def in_sync(self) -> bool:
        """Whether the copy is connected and equal to the collection, but for what is on its way."""
        return self._subscription is not None and self._subscription.in_sync

    async def synced(self) -> None:
        """Wait until it is in sync."""
        while not self.in_sync:
            self._raise_what_ended_it()
            self._changed.clear()
            await self._changed.wait()

    async def reached(self, index_version: int) -> None:
        """Wait until the copy has everything up to an index_version, such as that of an Ack."""
        while self.index_version < index_version:
            self._raise_what_ended_it()
            self._changed.clear()
            await self._changed.wait()

    async def ended(self) -> None:
        """Wait until something ends the replica; raises it."""
        await asyncio.shield(self._tasks[0])

    def _raise_what_ended_it(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, document_id: object) -> bool:
        return document_id in self._documents

    def __iter__(self) -> Iterator[StoredDocument]:
        return iter(list(self._documents.values()))

    def get(self, document_id: str) -> StoredDocument | None:
        """Return a document as it last arrived; None where there is none."""
        return self._documents.get(document_id)

    def search(
        self, vector: VectorLike, k: int = 10, *, where: Callable[[dict[str, Any]], bool] | None = None
    ) -> list[Hit]:
        """Return the k nearest documents, exactly; of those whose metadata `where` accepts.

        Raises ValueError for a vector that can't be compared, and before the first state has come.
        """
        if "vector" not in self._include:
            raise ValueError("the replica has no vectors: include has none")
        if self.metric is None:
            raise ValueError("the replica has no state yet: wait until it is synced")
        query = np.asarray(np.frombuffer(vector, "<f4") if isinstance(vector, bytes) else vector, np.float32)
        fits = None if where is None else lambda document_id: where(self._documents[document_id].metadata)
        return [
            self._hit(document_id, score) for document_id, score in self._vectors.nearest(query, k, self.metric, fits)
        ]

    def _hit(self, document_id: str, score: float) -> Hit:
        found = self._documents[document_id]
        return Hit(found.id, score, found.version, found.metadata, found.content, found.vector)

    async def save(self) -> None:
        """Write the file: all of it or, if that fails, nothing (OSError). Cancelling it waits for the disk."""
        if self._path is None:
            raise ValueError("the replica has no path")
        async with self._saving:
            position = (self.epoch, self.index_version)
            if self.epoch is None or self.metric is None or position == self._saved_at:
                return
            documents = list(self._documents.values())
            contents = Contents(self._identity(), self.epoch, self.index_version, self.metric, documents)
            writing = asyncio.create_task(asyncio.to_thread(replica_file.write, self._path, contents))
            try:
                await asyncio.shield(writing)
            finally:
                # A thread can't be cancelled, and two must not write one file.
                await asyncio.wait([writing])
            self._saved_at = position

    def _identity(self) -> dict[str, Any]:
        return {
            "collection": self.collection,
            "filter": self._filter,
            "include": sorted(self._include),
        }

    def _adopt(self, contents: Contents) -> None:
        self.epoch, self.index_version, self.metric = contents.epoch, contents.index_version, contents.metric
        for document in contents.documents:
            self._put(document)
        self._saved_at = (self.epoch, self.index_version)

    async def _connect_at_last(self) -> None:
        backoff = Backoff()
        for attempt in itertools.count():
            await asyncio.sleep(backoff.delay_s(attempt))
            try:
                await self._client.connect()
            except ConnectionLost as error:
                if not error.retryable:
                    raise
            else:
                return

    async def _follow(self) -> None:
        try:
            if self._unconnected:
                await self._connect_at_last()
            async with self._client.subscribe(
                self.collection,
                since=self.index_version,
                epoch=self.epoch,
                filter=self._filter,
                include=self._include,
                caught_up=True,
            ) as self._subscription:
                async for event in self._subscription:
                    self._apply(event)
                    self._changed.set()
        finally:
            self._changed.set()

    def _apply(self, event: Event) -> None:
        match event:
            case Reset():
                self._documents.clear()
                self._vectors = VectorTable()
                self.epoch, self.index_version = event.epoch, 0
            case Update():
                self._update(event)
                self.index_version = event.index_version
            case CaughtUp():
                self.index_version, self.metric = event.index_version, event.metric

    def _update(self, event: Update) -> None:
        if event.document_id is None:
            return
        if event.event_type == "delete" or event.left:
            if self._documents.pop(event.document_id, None) is not None:
                self._vectors.remove(event.document_id)
            return
        assert event.version is not None, "a document has a version"
        self._put(
            StoredDocument(
                self.collection,
                event.document_id,
                event.version,
                event.timestamp,
                event.metadata,
                event.content,
                event.vector,
            )
        )

    def _put(self, document: StoredDocument) -> None:
        self._documents[document.id] = document
        if document.vector is not None:
            self._vectors.put(document.id, document.vector)

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._save_interval_s)
            try:
                await self.save()
                self.save_error = None
            except OSError as error:
                self.save_error = error
                log.warning("the replica of %s can't be saved to %s: %s", self.collection, self._path, error)
