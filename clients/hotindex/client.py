"""The asyncio client.

It is long because every command is a method with its arguments spelled out.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from hotindex import wire
from hotindex.backoff import Backoff
from hotindex.connection import Connection
from hotindex.listener import Listener
from hotindex.live import Watches
from hotindex.recommendations import Recommendations
from hotindex.subscription import BUFFER, Subscription, Wanted
from hotindex.subscriptions import Subscriptions
from hotindex.transaction import Transaction
from hotindex.types import Ack, Document, Event, Include, Metadata, OnFull, Results, StoredDocument, VectorLike
from hotindex.watch import Watch

DEFAULT_URL = "ws://127.0.0.1:8765"


class Client:
    """One connection to a gateway, made again whenever it is lost.

        async with hotindex.Client() as client:
            await client.upsert("movies", id="1", content="A film about the sea", metadata={"year": 1997})
            results = await client.search("movies", text="ocean", k=3)

    Methods may be called from many tasks at once. They raise ServerError for what the gateway refuses, RequestTimeout
    after `timeout_s`, and ConnectionLost. While there is no connection they wait for one, within `timeout_s`; reads, and
    writes with an `event_id`, that were cut off are sent again.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        backoff: Backoff | None = None,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        self.url = url
        self._connection = Connection(url, timeout_s, backoff or Backoff(), max_message_bytes)
        self._subscriptions = Subscriptions(self._connection)
        self._watches = Watches(
            self._connection.request, self._connection.renew, self._connection.tell, self._connection.spawn
        )
        self._connection.pushed = (self._subscriptions, self._watches)

    @property
    def greeting(self) -> dict[str, Any]:
        """The gateway's `connected` message, of the latest connection; empty before there is one."""
        return self._connection.greeting

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect, and wait for the greeting. Raises ConnectionLost if the gateway can't be reached now, or doesn't greet.

        Only later losses are made good; the gateway's closing the connection before it greets is one of these.
        """
        await self._connection.open()

    async def close(self) -> None:
        """Close the connection; what waits for a reply or an update is told so."""
        await self._connection.close()

    async def upsert(
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
        """Write one document (`id`, …) or several, in one transaction; returns once they are on disk and searchable.

        `atomic` closes the events with a batch_complete. `event_id` makes the write idempotent for some minutes, so that
        it is safe to send again: the client does so itself after a lost connection, and the answer of a repetition has
        the status `duplicate`. Without one, a ConnectionLost or RequestTimeout leaves open whether the write was applied.
        """
        command: dict[str, Any] = {"action": "upsert", "collection": collection, "event_id": event_id}
        if documents is None:
            if id is None:
                raise TypeError("upsert needs documents or an id")
            command |= wire.document(Document(id, vector, content, metadata, if_version))
        else:
            command["documents"] = [wire.document(document) for document in documents]
        command |= {"atomic": atomic or None, "priority": priority or None}
        return wire.ack(await self._connection.request(command, again=event_id is not None))

    async def patch(
        self,
        collection: str,
        id: str,  # noqa: A002
        changes: Metadata,
        *,
        content: str | None = None,
        if_version: int | None = None,
        event_id: str | None = None,
        priority: int = 0,
    ) -> Ack:
        """Merge `changes` into a document's metadata; None removes a key. Raises NotFound, Conflict."""
        command = {
            "action": "patch",
            "collection": collection,
            "id": id,
            "changes": changes,
            "content": content,
            "if_version": if_version,
            "event_id": event_id,
            "priority": priority or None,
        }
        return wire.ack(await self._connection.request(command, again=event_id is not None))

    async def delete(self, collection: str, *ids: str, event_id: str | None = None, priority: int = 0) -> Ack:
        """Delete documents; those that aren't there are answered `missing`."""
        command: dict[str, Any] = {"action": "delete", "collection": collection, "ids": list(ids)}
        command |= {"event_id": event_id, "priority": priority or None}
        return wire.ack(await self._connection.request(command, again=event_id is not None))

    def transaction(self, collection: str, *, event_id: str | None = None, priority: int = 0) -> Transaction:
        """Return what gathers up to 10,000 operations, and has them applied together, or none of them, when its block ends.

            async with client.transaction("products") as tx:
                tx.upsert("s1", content="A light shoe", metadata={"stock": 3})
                tx.patch("s2", {"stock": 0}, if_version=7)
                tx.delete("s3", "s4")
            print(tx.ack.index_version)

        An exception inside the block sends nothing. Leaving it raises what the gateway refuses the transaction for, and
        `tx.ack` is its answer, results in the order of the operations. It has an `event_id` (one of its own unless given),
        so that the client may send it again after a lost connection.
        """
        return Transaction(self.send_transaction, collection, event_id, priority)

    async def send_transaction(self, command: dict[str, Any]) -> Ack:
        return wire.ack(await self._connection.request(command, again=True))

    async def interact(
        self,
        user_id: str,
        action: str,
        item_id: str,
        *,
        value: float | None = None,
        timestamp: datetime | float | None = None,
        event_id: str | None = None,
        collection: str | None = None,
    ) -> Ack:
        """Say what a user did with an item; returns once it is on disk, and counts in what is recommended to the user.

        `action` is purchase, like, click, view, rate (with the rating as `value`), hide, …; `timestamp` is when it was
        done, in seconds since 1970 if it is a number, and now if there is none. The answer's one result is of the user. It
        has an `event_id` (one of its own unless given), so that it counts once, and the client may send it again after a
        lost connection. Raises NotFound for an item that isn't there.
        """
        command = {
            "type": "user_interaction",
            "collection": collection,
            "user_id": user_id,
            "action": action,
            "item_id": item_id,
            "value": value,
            "timestamp": timestamp.timestamp() if isinstance(timestamp, datetime) else timestamp,
            "event_id": event_id or uuid.uuid4().hex,
        }
        return wire.ack(await self._connection.request(command, again=True))

    async def get(self, collection: str, id: str, *, include: Sequence[Include] = ()) -> StoredDocument:  # noqa: A002
        """Return a document. Raises NotFound."""
        command = {"action": "get", "collection": collection, "id": id, "include": list(include) or None}
        return wire.stored(await self._connection.request(command, again=True))

    async def search(
        self,
        collection: str,
        *,
        vector: VectorLike | None = None,
        text: str | None = None,
        id: str | None = None,  # noqa: A002
        user_id: str | None = None,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        min_score: float | None = None,
        include: Sequence[Include] = (),
        min_index_version: int | None = None,
        exact: bool = False,
        ef: int | None = None,
        diversity: float | None = None,
    ) -> Results:
        """Return the k documents nearest to a vector, a text, or another document (which is left out).

        What scores less than `min_score` is left out. `ef` widens the search of the graph (fewer misses, more time); with
        `exact` it compares with every document.

        With `user_id` it returns what is recommended to that user, at most 100 documents, none of those the user has seen.
        `diversity` is from 0, the best ones, to 1, those least alike.
        """
        wanted = {"vector": None if vector is None else wire.vector_bytes(vector), "text": text, "id": id}
        user = {"user_id": user_id, "diversity": diversity}
        how = wire.search_options(k, filter, min_score, include, min_index_version, exact, ef)
        command = {"action": "search", "collection": collection, **wanted, **user, **how}
        return wire.results(await self._connection.request(command, again=True))

    async def search_many(
        self,
        collection: str,
        vectors: Sequence[VectorLike],
        *,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        min_score: float | None = None,
        include: Sequence[Include] = (),
        min_index_version: int | None = None,
        exact: bool = False,
        ef: int | None = None,
    ) -> list[Results]:
        """Return for each of up to 64 vectors the k documents nearest to it, all as of one index_version."""
        wanted = [wire.vector_bytes(vector) for vector in vectors]
        how = wire.search_options(k, filter, min_score, include, min_index_version, exact, ef)
        command = {"action": "search", "collection": collection, "vectors": wanted, **how}
        return wire.result_lists(await self._connection.request(command, again=True))

    async def ping(self) -> None:
        """Return once the gateway has answered."""
        await self._connection.request({"action": "ping"}, again=True)

    def subscribe(
        self,
        collection: str,
        *,
        since: int | None = None,
        epoch: str | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        include: Sequence[Include] = (),
        caught_up: bool = False,
        buffer: int = BUFFER,
        on_full: OnFull = "wait",
    ) -> Subscription:
        """Return the updates of a collection, to iterate over: what comes from now on, or all after `since`.

        `epoch` is that of the subscription `since` was kept from. `caught_up` asks for a CaughtUp once what was missed has
        come. `buffer` and `on_full` say what happens while the consumer is busy: see Subscription. A client has one
        subscription per collection at a time.
        """
        if filter is not None and not isinstance(filter, Mapping):
            raise TypeError(f"filter is {filter!r}; it must be a mapping")
        wanted = Wanted(collection, dict(filter) if filter else None, tuple(include), caught_up)
        return Subscription(self._subscriptions, wanted, since, epoch, buffer, on_full)

    def listen(
        self, collection: str, callback: Callable[[Event], Awaitable[None] | None], **subscribe: Any
    ) -> Listener:
        """Call a function with what a subscription yields: see Listener. `subscribe` takes what that method takes."""
        return Listener(self.subscribe(collection, **subscribe), callback)

    def watch(
        self,
        collection: str,
        *,
        vector: VectorLike | None = None,
        text: str | None = None,
        id: str | None = None,  # noqa: A002
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        include: Sequence[Include] = (),
        min_score: float | None = None,
        exact: bool = False,
        max_rate: float | None = None,
    ) -> Watch:
        """Return the answer to a search, to iterate over as it changes: see Watch.

            async for change in client.watch("movies", text="a storm at sea", k=10):
                print(change.added, change.removed, change.results)

        What is searched for, and how, is as in `search`; there may be fewer than k with a score of at least `min_score`.
        `max_rate` is how many changes a second the gateway sends at most. Raises what `search` raises, and TypeError where
        vector, text and id are all None.
        """
        if vector is None and text is None and id is None:
            raise TypeError(
                "watch needs a vector, a text or an id, and all are None; for what a user may like there is recommendations"
            )
        if filter is not None and not isinstance(filter, Mapping):
            raise TypeError(f"filter is {filter!r}; it must be a mapping")
        wanted = {"vector": None if vector is None else wire.vector_bytes(vector), "text": text, "id": id}
        how = {"k": k, "filter": dict(filter) if filter else None, "include": list(include) or None}
        limits = {"min_score": min_score, "exact": exact or None, "max_rate": max_rate}
        command = {"action": "watch", "collection": collection, **wanted, **how, **limits}
        return Watch(self._watches, command)

    def recommendations(
        self,
        user_id: str,
        *,
        collection: str | None = None,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        diversity: float | None = None,
        max_rate: float | None = None,
    ) -> Recommendations:
        """Return what is recommended to a user, to iterate over as it changes: see Recommendations.

            async for update in client.recommendations("ann", collection="movies", k=10):
                print([item.id for item in update.results])

        It changes with what the user does (see `interact`) and with the documents; what the user has seen isn't in it.
        `diversity` is as in `search`, and `max_rate` how many updates a second the gateway sends at most.
        """
        if filter is not None and not isinstance(filter, Mapping):
            raise TypeError(f"filter is {filter!r}; it must be a mapping")
        how = {"k": k, "filter": dict(filter) if filter else None, "diversity": diversity, "max_rate": max_rate}
        return Recommendations(self._watches, {"action": "watch", "collection": collection, "user_id": user_id, **how})
