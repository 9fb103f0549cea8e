"""The client for code without asyncio: the same methods, each returning its result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from hotindex import client
from hotindex.subscription import Subscription
from hotindex.types import Ack, Document, Include, Metadata, Reset, Results, StoredDocument, Update, VectorLike

_T = TypeVar("_T")


class Client:
    """`hotindex.Client` on an event loop in a thread of its own. May be used from several threads.

        with hotindex.sync.Client() as client:
            client.upsert("movies", id="1", content="A film about the sea")
            for update in client.subscribe("movies", since=0):
                print(update)

    Arguments, results and errors are those of `hotindex.Client`.
    """

    def __init__(self, url: str = client.DEFAULT_URL, **options: Any) -> None:
        self._url = url
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hotindex client", daemon=True)
        self._client: client.Client

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._client = self._run(self._connect())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._client.close())
        self._end()

    async def _connect(self) -> client.Client:
        connected = client.Client(self._url, **self._options)
        await connected.connect()
        return connected

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def upsert(
        self,
        collection: str,
        documents: Sequence[Document] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the contract's name
        vector: VectorLike | None = None,
        content: str | None = None,
        metadata: Metadata | None = None,
        if_version: int | None = None,
        atomic: bool = False,
        event_id: str | None = None,
        priority: int = 0,
    ) -> Ack:
        return self._run(
            self._client.upsert(
                collection,
                documents,
                id=id,
                vector=vector,
                content=content,
                metadata=metadata,
                if_version=if_version,
                atomic=atomic,
                event_id=event_id,
                priority=priority,
            )
        )

    def patch(
        self,
        collection: str,
        id: str,  # noqa: A002
        changes: Metadata,
        *,
        content: str | None = None,
        if_version: int | None = None,
        event_id: str | None = None,
    ) -> Ack:
        return self._run(
            self._client.patch(collection, id, changes, content=content, if_version=if_version, event_id=event_id)
        )

    def delete(self, collection: str, *ids: str) -> Ack:
        return self._run(self._client.delete(collection, *ids))

    def get(self, collection: str, id: str, *, include: Sequence[Include] = ()) -> StoredDocument:  # noqa: A002
        return self._run(self._client.get(collection, id, include=include))

    def search(
        self,
        collection: str,
        *,
        vector: VectorLike | None = None,
        text: str | None = None,
        id: str | None = None,  # noqa: A002
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        include: Sequence[Include] = (),
        min_index_version: int | None = None,
        exact: bool = False,
    ) -> Results:
        return self._run(
            self._client.search(
                collection,
                vector=vector,
                text=text,
                id=id,
                k=k,
                filter=filter,
                include=include,
                min_index_version=min_index_version,
                exact=exact,
            )
        )

    def ping(self) -> None:
        self._run(self._client.ping())

    def subscribe(
        self,
        collection: str,
        *,
        since: int | None = None,
        epoch: str | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        include: Sequence[Include] = (),
    ) -> Iterator[Update | Reset]:
        """Begin a subscription, and return its updates to iterate over; breaking off the iteration ends it."""
        subscription = self._run(self._subscribe(collection, since=since, epoch=epoch, filter=filter, include=include))
        return self._updates(subscription)

    async def _subscribe(self, collection: str, **arguments: Any) -> Subscription:
        return await self._client.subscribe(collection, **arguments).__aenter__()

    def _updates(self, subscription: Subscription) -> Iterator[Update | Reset]:
        try:
            while True:
                yield self._run(subscription.__anext__())
        finally:
            if not self._loop.is_closed():
                self._run(subscription.close())
