"""The client for code without asyncio: the same methods save `listen`, each returning its result."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from hotindex import client, live, recommendations, watch
from hotindex.errors import HotindexError
from hotindex.subscription import BUFFER, Subscription
from hotindex.transaction import Gathering
from hotindex.types import Ack, Change, Event, Include, Match, OnFull, Recommendation, RecommendationUpdate

_T = TypeVar("_T")
_P = ParamSpec("_P")
_Item = TypeVar("_Item")
_News = TypeVar("_News")
_Watched = TypeVar("_Watched")
_Handle = TypeVar("_Handle")


def _returning(
    method: Callable[Concatenate[client.Client, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Client, _P], _T]:
    """Return a method with the same arguments that runs `method` on the loop's thread and waits for its result."""

    @functools.wraps(method)
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.run(method(self._opened(), *args, **kwargs))

    return call


def _watching(
    method: Callable[Concatenate[client.Client, _P], _Watched], handle: Callable[[Client, _Watched], _Handle]
) -> Callable[Concatenate[Client, _P], _Handle]:
    """Return a method with the same arguments that returns a handle on what `method` does."""

    @functools.wraps(method)
    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _Handle:
        return handle(self, method(self._opened(), *args, **kwargs))

    return call


class Transaction(Gathering):
    """See `hotindex.Client.transaction`."""

    def __init__(
        self, send: Callable[[dict[str, Any]], Ack], collection: str, event_id: str | None, priority: int
    ) -> None:
        super().__init__(collection, event_id, priority)
        self._send = send

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if command := self._leave(error):
            self.ack = self._send(command)


class LiveList(Generic[_Item, _News]):
    """What `Watch` and `Recommendations` have in common: `async with` and `async for` are `with` and `for` here."""

    def __init__(self, owner: Client, watched: live.LiveList[_Item, _News]) -> None:
        self.watch = watched
        """The watch behind this one; it belongs to the loop's thread."""
        self._client = owner

    @property
    def results(self) -> tuple[_Item, ...]:
        """The present list, best first."""
        return self.watch.results

    @property
    def watch_id(self) -> str | None:
        """The gateway's name for it; None while there is none over the present connection."""
        return self.watch.watch_id

    @property
    def ended(self) -> bool:
        return self.watch.ended

    def __enter__(self) -> Self:
        self._client.run(self.watch.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[_News]:
        try:
            while True:
                yield self._client.run(self.watch.__anext__())
        finally:
            self._client.finish(self.watch.iterated())

    def close(self) -> None:
        """Have the gateway forget it."""
        self._client.finish(self.watch.close())


class Watch(LiveList[Match, Change]):
    """See `hotindex.Watch`."""

    def __init__(self, owner: Client, watched: watch.Watch) -> None:
        super().__init__(owner, watched)
        self._watched = watched

    @property
    def collection(self) -> str:
        return self._watched.collection

    @property
    def index_version(self) -> int | None:
        """What `results` is as of. None until the gateway has answered."""
        return self._watched.index_version

    @property
    def exact(self) -> bool | None:
        """Whether the gateway compares with every document. None until it has answered."""
        return self._watched.exact


class Recommendations(LiveList[Recommendation, RecommendationUpdate]):
    """See `hotindex.Recommendations`."""

    def __init__(self, owner: Client, watched: recommendations.Recommendations) -> None:
        super().__init__(owner, watched)
        self._watched = watched

    @property
    def user_id(self) -> str:
        return self._watched.user_id


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
        self._closing: set[asyncio.Task[None]] = set()
        self.client: client.Client
        """The client behind this one; it belongs to the loop's thread."""

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.client = self.run(self._connect())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(self.client.close())
        self._end()

    @property
    def greeting(self) -> dict[str, Any]:
        return self._opened().greeting

    def _opened(self) -> client.Client:
        if not self._thread.is_alive():
            raise HotindexError(
                "closed", "the client is closed, or was not opened: use it in a with statement", retryable=False
            )
        return self.client

    async def _connect(self) -> client.Client:
        connected = client.Client(self._url, **self._options)
        await connected.connect()
        return connected

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop's thread and return its result."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    upsert = _returning(client.Client.upsert)
    patch = _returning(client.Client.patch)
    delete = _returning(client.Client.delete)
    interact = _returning(client.Client.interact)
    get = _returning(client.Client.get)
    search = _returning(client.Client.search)
    search_many = _returning(client.Client.search_many)
    ping = _returning(client.Client.ping)
    watch = _watching(client.Client.watch, Watch)
    recommendations = _watching(client.Client.recommendations, Recommendations)

    def transaction(self, collection: str, *, event_id: str | None = None, priority: int = 0) -> Transaction:
        """Return what gathers operations inside a `with`, and has them applied together: see `hotindex.Client`."""
        return Transaction(self._send, collection, event_id, priority)

    def _send(self, command: dict[str, Any]) -> Ack:
        return self.run(self._opened().send_transaction(command))

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
    ) -> Iterator[Event]:
        """Begin a subscription, and return its updates to iterate over; breaking off the iteration ends it."""
        self._opened()
        how: dict[str, Any] = {"include": include, "caught_up": caught_up, "buffer": buffer, "on_full": on_full}
        subscription = self.run(self._subscribe(collection, since=since, epoch=epoch, filter=filter, **how))
        return self._updates(subscription)

    async def _subscribe(self, collection: str, **arguments: Any) -> Subscription:
        return await self.client.subscribe(collection, **arguments).__aenter__()

    def _updates(self, subscription: Subscription) -> Iterator[Event]:
        try:
            while True:
                yield self.run(subscription.__anext__())
        finally:
            self.finish(subscription.close())

    def finish(self, closing: Coroutine[Any, Any, None]) -> None:
        """Run what ends an iteration, wherever the iteration was left."""
        if threading.current_thread() is self._thread:
            # The garbage collector ran here: the loop can't wait for itself.
            self._closing.add(task := self._loop.create_task(closing))
            task.add_done_callback(self._closing.discard)
        elif self._loop.is_closed():
            closing.close()
        else:
            self.run(closing)
