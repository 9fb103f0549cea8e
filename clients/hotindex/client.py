"""The asyncio client.

It is long because every command is a method with its arguments spelled out.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from hotindex import wire
from hotindex.backoff import Backoff
from hotindex.errors import (
    ConnectionLost,
    HotindexError,
    InvalidRequest,
    RequestTimeout,
    ServerError,
    from_message,
)
from hotindex.listener import Listener
from hotindex.live import Watches
from hotindex.recommendations import Recommendations
from hotindex.subscription import BUFFER, Subscription, Wanted
from hotindex.transaction import Transaction
from hotindex.types import Ack, Document, Event, Include, Metadata, OnFull, Results, StoredDocument, VectorLike
from hotindex.watch import Watch

DEFAULT_URL = "ws://127.0.0.1:8765"
FINAL_CLOSE_CODES = frozenset({4401, 4403})
"""Close codes after which reconnecting is no use."""

_CLOSE_S = 5.0
_TOO_BIG = 1009
_UNREACHABLE = (OSError, InvalidHandshake, TimeoutError, EOFError)


class _Pending:
    """A command that waits for its reply. `at_once` is called with it before the next message is read."""

    __slots__ = ("at_once", "reply", "size_bytes")

    def __init__(self, size_bytes: int, at_once: Callable[[dict[str, Any]], None] | None) -> None:
        self.reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.size_bytes = size_bytes
        self.at_once = at_once


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
        self.greeting: dict[str, Any] = {}
        """The gateway's `connected` message."""
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff()
        self._max_message_bytes = max_message_bytes
        self._connection: ClientConnection | None = None
        self._connected = asyncio.Event()
        self._refs = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._rooms: set[str] = set()
        self._subscriptions: dict[str, Subscription] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._renewals: dict[Subscription, asyncio.Task[None]] = {}
        """At most one for each subscription, so that it begins again once, and not after it has ended."""
        self._watches = Watches(self._request, self._renew, self._tell, self._spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._blamed: ClientConnection | None = None
        """The one that the gateway closed for a message too big."""
        self._given_up_bytes = 0
        """The largest command sent over this connection whose reply nobody waits for any more."""
        self._end: HotindexError | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect. Raises ConnectionLost if the gateway can't be reached now; only later losses are made good."""
        assert self._runner is None, "a client connects once"
        try:
            connection = await self._dial()
        except _UNREACHABLE as error:
            raise ConnectionLost(f"can't connect to {self.url}: {error}") from error
        except InvalidURI as error:
            raise ConnectionLost(str(error), retryable=False) from error
        self._runner = asyncio.create_task(self._run(connection), name="hotindex client")

    async def close(self) -> None:
        """Close the connection; what waits for a reply or an update is told so."""
        self._stop(HotindexError("closed", "the client is closed", retryable=False))
        if self._connection is not None:
            await self._connection.close()
        if self._runner is not None:
            for task in (self._runner, *self._tasks):
                task.cancel()
            await asyncio.gather(self._runner, *self._tasks, return_exceptions=True)

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
        return wire.ack(await self._request(command, again=event_id is not None))

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
        return wire.ack(await self._request(command, again=event_id is not None))

    async def delete(self, collection: str, *ids: str, event_id: str | None = None, priority: int = 0) -> Ack:
        """Delete documents; those that aren't there are answered `missing`."""
        command: dict[str, Any] = {"action": "delete", "collection": collection, "ids": list(ids)}
        command |= {"event_id": event_id, "priority": priority or None}
        return wire.ack(await self._request(command, again=event_id is not None))

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
        return wire.ack(await self._request(command, again=True))

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
        return wire.ack(await self._request(command, again=True))

    async def get(self, collection: str, id: str, *, include: Sequence[Include] = ()) -> StoredDocument:  # noqa: A002
        """Return a document. Raises NotFound."""
        command = {"action": "get", "collection": collection, "id": id, "include": list(include) or None}
        return wire.stored(await self._request(command, again=True))

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
        include: Sequence[Include] = (),
        min_index_version: int | None = None,
        exact: bool = False,
        ef: int | None = None,
        diversity: float | None = None,
    ) -> Results:
        """Return the k documents nearest to a vector, a text, or another document (which is left out).

        `ef` widens the search of the graph (fewer misses, more time); `exact` compares with every document.

        With `user_id` it returns what is recommended to that user, at most 100 documents, none of those the user has seen.
        `diversity` is from 0, the best ones, to 1, those least alike.
        """
        wanted = {"vector": None if vector is None else wire.vector_bytes(vector), "text": text, "id": id}
        user = {"user_id": user_id, "diversity": diversity}
        how = wire.search_options(k, filter, include, min_index_version, exact, ef)
        command = {"action": "search", "collection": collection, **wanted, **user, **how}
        return wire.results(await self._request(command, again=True))

    async def search_many(
        self,
        collection: str,
        vectors: Sequence[VectorLike],
        *,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        include: Sequence[Include] = (),
        min_index_version: int | None = None,
        exact: bool = False,
        ef: int | None = None,
    ) -> list[Results]:
        """Return for each of up to 64 vectors the k documents nearest to it, all as of one index_version."""
        wanted = [wire.vector_bytes(vector) for vector in vectors]
        how = wire.search_options(k, filter, include, min_index_version, exact, ef)
        command = {"action": "search", "collection": collection, "vectors": wanted, **how}
        return wire.result_lists(await self._request(command, again=True))

    async def ping(self) -> None:
        """Return once the gateway has answered."""
        await self._request({"action": "ping"}, again=True)

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
        return Subscription(self, wanted, since, epoch, buffer, on_full)

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
        `max_rate` is how many changes a second the gateway sends at most. Raises what `search` raises.
        """
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

    async def enter(self, subscription: Subscription) -> None:
        if leaving := self._leaving.get(subscription.collection):
            # It must not come after the new subscription's command, and end that.
            await asyncio.wait([leaving])
        if subscription.collection in self._rooms:
            raise HotindexError(
                "already_subscribed",
                f"this client has a subscription to {subscription.collection!r}; use another client for a second",
                retryable=False,
            )
        self._rooms.add(subscription.collection)

        def began(reply: dict[str, Any]) -> None:
            # From here on it is the reader's to renew; before, a lost connection is made good by asking again.
            self._subscriptions[subscription.collection] = subscription
            subscription.began(reply)

        try:
            await self._request(subscription.command(), again=True, at_once=began)
        except BaseException as error:
            self._forget(subscription)
            if not isinstance(error, ServerError):
                # The gateway may have begun, and its answer came too late.
                self._leave_soon(subscription)
            raise

    async def leave(self, subscription: Subscription) -> None:
        if self._forget(subscription) and self._connected.is_set():
            await self._tell(_unsubscribe(subscription))

    def give_up(self, subscription: Subscription) -> None:
        if self._forget(subscription):
            self._leave_soon(subscription)

    def _leave_soon(self, subscription: Subscription) -> None:
        leaving = self._spawn(self._tell(_unsubscribe(subscription)))
        self._leaving[subscription.collection] = leaving
        leaving.add_done_callback(lambda _: self._leaving.pop(subscription.collection, None))

    def _forget(self, subscription: Subscription) -> bool:
        """Let another subscription to the collection begin; tell whether this was the one."""
        if renewal := self._renewals.pop(subscription, None):
            renewal.cancel()
        known = self._subscriptions.get(subscription.collection)
        if known is not None and known is not subscription:
            return False
        self._subscriptions.pop(subscription.collection, None)
        self._rooms.discard(subscription.collection)
        return known is not None

    def subscribe_again(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.collection) is not subscription:
            return
        if renewal := self._renewals.pop(subscription, None):
            renewal.cancel()

        def refused(error: HotindexError) -> None:
            self._forget(subscription)
            subscription.fail(error)

        self._renewals[subscription] = self._spawn(self._renew(subscription.command, subscription.began, refused))

    def unsubscribe(self, subscription: Subscription) -> None:
        self._spawn(self._tell(_unsubscribe(subscription)))

    async def _renew(
        self,
        command: Callable[[], dict[str, Any]],
        began: Callable[[dict[str, Any]], None],
        refused: Callable[[HotindexError], None],
    ) -> None:
        """Begin again what the gateway pushes."""
        for attempt in itertools.count():
            try:
                await self._exchange(command(), began)
            except ConnectionLost:
                return  # the next connection begins with all subscriptions and watches
            except HotindexError as error:
                if not error.retryable:
                    refused(error)
                    return
                await asyncio.sleep(self._backoff.delay_s(attempt))
            else:
                return

    async def _tell(self, command: dict[str, Any]) -> None:
        """Send a command that ends something, and wait until it has."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(command, None)
        except (HotindexError, TimeoutError):
            return  # without a connection there is nothing to end

    async def _request(
        self,
        command: dict[str, Any],
        *,
        again: bool,
        at_once: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Send a command and return its reply; `again` says that it may be sent twice."""
        if self._runner is None:
            raise HotindexError(
                "not_connected", "use the client in an async with, or connect it first", retryable=False
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    await self._connected.wait()
                    if self._end is not None:
                        raise self._end
                    try:
                        return await self._exchange(command, at_once)
                    except ConnectionLost:
                        if not again:
                            raise
                        # The reader may not have seen yet that the connection is gone; let it.
                        await asyncio.sleep(0)
        except TimeoutError:
            name = command.get("type") or command["action"]
            raise RequestTimeout(f"no answer to {name} within {self._timeout_s:g} s") from None

    async def _exchange(
        self, command: dict[str, Any], at_once: Callable[[dict[str, Any]], None] | None
    ) -> dict[str, Any]:
        connection = self._connection
        if connection is None:
            raise ConnectionLost(f"no connection to {self.url}")
        ref = next(self._refs)
        data = wire.encode({**command, "ref": ref})
        pending = self._pending[ref] = _Pending(len(data), at_once)
        try:
            await connection.send(data)
            return await pending.reply
        except ConnectionClosed as error:
            if not pending.reply.done():
                self._cut_off(connection, error)
            return await pending.reply
        finally:
            del self._pending[ref]
            if pending.reply.cancel() or pending.reply.cancelled():
                self._given_up_bytes = max(self._given_up_bytes, pending.size_bytes)
            else:
                pending.reply.exception()  # looked at, whoever else was told

    async def _dial(self) -> ClientConnection:
        return await connect(
            self.url,
            subprotocols=[Subprotocol(wire.SUBPROTOCOL)],
            compression=None,
            max_size=self._max_message_bytes,
            open_timeout=self._timeout_s,
            close_timeout=min(self._timeout_s, _CLOSE_S),
        )

    async def _run(self, connection: ClientConnection) -> None:
        """Read from one connection after the other."""
        while True:
            self._connection = connection
            self._given_up_bytes = 0
            self._connected.set()
            for subscription in self._subscriptions.values():
                if not subscription.full:
                    self.subscribe_again(subscription)
            self._watches.connected()
            try:
                while True:
                    self._take(wire.decode(await connection.recv(decode=False)))
            except ConnectionClosed as closed:
                self._disconnected(closed)
            except (ValueError, TypeError, KeyError) as error:
                self._stop(
                    HotindexError("invalid_message", f"{self.url} sent what is no message: {error!r}", retryable=False)
                )
                await connection.close()
            if self._end is not None:
                return
            connection = await self._redial()

    async def _redial(self) -> ClientConnection:
        for attempt in itertools.count():
            await asyncio.sleep(self._backoff.delay_s(attempt))
            try:
                return await self._dial()
            except _UNREACHABLE:
                continue
        raise AssertionError("the count never ends")

    def _disconnected(self, closed: ConnectionClosed) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None, "there was one to lose"
        for subscription in self._subscriptions.values():
            subscription.interrupted()
        self._watches.interrupted()
        code = closed.rcvd.code if closed.rcvd else None
        if code in FINAL_CLOSE_CODES:
            self._stop(ConnectionLost(f"the gateway closed the connection: {closed}", retryable=False))
        if self._end is None:
            self._connected.clear()
            self._cut_off(connection, closed)

    def _cut_off(self, connection: ClientConnection, closed: ConnectionClosed) -> None:
        """Tell all that wait for a reply; whoever notices first does."""
        code = closed.rcvd.code if closed.rcvd else None
        if code == _TOO_BIG and self._blamed is not connection:
            self._blamed = connection
            self._blame_largest(InvalidRequest("too_large", f"{self.url} takes no message as large", retryable=False))
        self._fail_pending(ConnectionLost(f"lost the connection to {self.url}: {closed}"))

    def _blame_largest(self, error: HotindexError) -> None:
        """Fail the command that was too large: the gateway doesn't read such a message, and can't say which it was."""
        waiting = [pending for pending in self._pending.values() if not pending.reply.done()]
        largest = max(waiting, key=lambda pending: pending.size_bytes, default=None)
        if largest is not None and largest.size_bytes > self._given_up_bytes:
            largest.reply.set_exception(error)

    def _fail_pending(self, error: HotindexError) -> None:
        for pending in self._pending.values():
            if not pending.reply.done():
                pending.reply.set_exception(error)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if message.get("ref") is not None:
            self._take_reply(message)
        elif kind in ("watch_update", "recommendation_update", "unwatched"):
            self._watches.take(message)
        elif kind in ("index_update", "reset", "caught_up"):
            subscription = self._subscriptions.get(message["collection"])
            if subscription is not None:
                for update in wire.pushes(message):
                    subscription.push(update)
        elif kind == "error" and message["code"] == "too_large":
            self._blame_largest(from_message(message))
        elif kind == "connected":
            self.greeting = message
        elif kind == "unsubscribed" and (subscription := self._subscriptions.get(message["collection"])):
            subscription.ended_by_gateway()

    def _take_reply(self, message: dict[str, Any]) -> None:
        pending = self._pending.get(message["ref"])
        if pending is not None and not pending.reply.done():
            self._settle(pending, message)
        elif message["type"] == "watching":
            self._watches.unclaimed(message)

    def _settle(self, pending: _Pending, message: dict[str, Any]) -> None:
        if message["type"] == "error":
            pending.reply.set_exception(from_message(message))
            return
        pending.reply.set_result(message)
        if pending.at_once is not None:
            pending.at_once(message)

    def _stop(self, error: HotindexError) -> None:
        """End everything with `error`, once."""
        if self._end is not None:
            return
        self._end = error
        self._connected.set()
        self._fail_pending(error)
        for subscription in self._subscriptions.values():
            subscription.fail(error)
        self._watches.fail(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _unsubscribe(subscription: Subscription) -> dict[str, Any]:
    return {"action": "unsubscribe", "collection": subscription.collection}
