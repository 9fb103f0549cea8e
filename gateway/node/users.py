"""The users of a hosted collection: what they do is learned here, and what is recommended to them is found here.

A profile is a document of the companion collection, computed by its writer from the one before, so it is on disk before
anyone is told, and an `event_id` counts once. What is popular is counted in memory from the companion's commits, and from
all profiles once after a start; nothing that is recommended is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from gateway.engine.collection import Collection
from gateway.engine.types import (
    Applied,
    Change,
    Compute,
    Document,
    Done,
    EventType,
    ItemResult,
    Operation,
    Remove,
    Span,
    Vector,
    Write,
)
from gateway.errors import HotindexError, NotFound
from gateway.node.companions import VECTOR
from gateway.node.items import Item, Items
from gateway.node.neighbours import Neighbours
from gateway.node.recommending import ASKED, EF, Ask, Recommended, Recommending
from gateway.push.room import Room
from gateway.users import stored
from gateway.users.popularity import Popularity
from gateway.users.profile import Interaction, Memory, Profile
from gateway.users.stored import NOBODY, Known

_T = TypeVar("_T")
_PAGE = 2048
_ITEMS_PAGE = 512
_LATEST_PROFILES = 256
_TOGETHER = 16
"""How many recommendations are made together at most: later ones wait for them."""
_LATEST = 1000
"""Of a collection's latest changes, new items are looked for among so many after a start."""


class Home(Protocol):
    """A hosted collection, as far as it is needed here."""

    listeners: list[Callable[[Applied], None]]

    @property
    def collection(self) -> Collection: ...

    @property
    def room(self) -> Room: ...

    async def read(self, work: Callable[[], _T]) -> _T: ...

    async def submit(self, write: Write, wait: bool = True) -> asyncio.Future[Done | HotindexError]: ...


class Users:
    """Call on the event loop. `companion` returns the collection of the users, made if need be and asked for.

    `now` gives microseconds since the epoch.
    """

    def __init__(
        self,
        home: Home,
        companion: Callable[[bool], Awaitable[Home | None]],
        memory: Memory,
        now: Callable[[], int],
    ) -> None:
        self._home = home
        self._companion = companion
        self.items = Items(home.collection)
        self._neighbours = Neighbours(home.collection, ASKED, EF)
        self.memory = memory
        self._now = now
        self._latest: dict[str, Document | None] = {}
        """Profiles as they were learned last: who has just done something is recommended to next."""
        self._followed: Home | None = None
        self._popularity: Popularity | None = None
        self._waiting: list[Applied] | None = None
        """Commits of profiles, while it is counted what is popular."""
        self._missed: list[Applied] = []
        """Commits of items meanwhile."""
        self._lock = asyncio.Lock()
        self._asked: list[tuple[Ask, asyncio.Future[Recommended]]] = []
        self._recommending: asyncio.Task[None] | None = None
        self.learned: list[Callable[[Sequence[str]], None]] = []
        """Called with the ids of users whose profiles have changed."""
        home.listeners.append(self._items_changed)

    def attach(self, companion: Home) -> None:
        """Follow the collection of the users; called whenever there is another one."""
        self._leave()
        self._followed = companion
        companion.listeners.append(self._profiles_changed)
        self._popularity = self._waiting = None
        self._latest.clear()

    async def stop(self) -> None:
        """Answer what was asked, and follow the collection of the users no more."""
        self._leave()
        if self._recommending is not None:
            await asyncio.wait([self._recommending])

    def _leave(self) -> None:
        if self._followed is not None:
            self._followed.listeners.remove(self._profiles_changed)
            self._followed = None

    async def learn(self, user_id: str, event: Interaction, event_id: str | None) -> Done:
        """Learn an interaction; return once it is on disk."""
        return await self._write(Compute(user_id, partial(_learned, event, self.memory), VECTOR), event_id)

    async def put(self, user_id: str, vector: Vector, event_id: str | None) -> Done:
        """Replace a user's direction by a vector from elsewhere."""
        return await self._write(Compute(user_id, partial(_placed, vector, self._now()), VECTOR), event_id)

    async def forget(self, user_id: str) -> Done:
        """Delete all that is known of a user."""
        return await self._write(Remove(user_id), None)

    async def _write(self, operation: Operation, event_id: str | None) -> Done:
        companion = await self._companion(True)
        assert companion is not None, "it was to be made"
        size_bytes = 4 * self._home.collection.spec.dimension
        outcome = await (await companion.submit(Write((operation,), event_id=event_id, size_bytes=size_bytes)))
        if isinstance(outcome, HotindexError):
            raise outcome
        (result,) = outcome.results
        # Of the documents nothing has changed; the companion's own number would mean nothing to who searches them.
        return Done(self._home.room.head, (ItemResult(result.id, result.version, result.status),))

    async def get(self, user_id: str) -> tuple[Document, Profile]:
        """Return what is known of a user. Raises NotFound."""
        companion = await self._companion(False)
        if companion is not None:
            found = await companion.read(partial(companion.collection.get, user_id))
            if found is not None:
                return found[0], stored.decode(found[0]).profile
        name = self._home.collection.spec.name
        raise NotFound(f"nothing is known of user {user_id!r} in collection {name!r}", field="user_id")

    async def item(self, item_id: str) -> Item | None:
        """Return an item, None where there is none."""
        item = self.items.get(item_id)
        return item or (await self._home.read(partial(self.items.by_id, [item_id]))).get(item_id)

    async def recommend(self, ask: Ask) -> Recommended:
        """Return what is recommended to a user now; to one who isn't known, what is popular and what is new."""
        answer: asyncio.Future[Recommended] = asyncio.get_running_loop().create_future()
        self._asked.append((ask, answer))
        if self._recommending is None:
            self._recommending = asyncio.create_task(self._recommend(), name="recommend")
        return await answer

    async def _recommend(self) -> None:
        """Answer what is asked, all of a moment together: apart they would wait for each other, and for the interpreter."""
        while self._asked:
            some, self._asked = self._asked[:_TOGETHER], self._asked[_TOGETHER:]
            some = [(ask, answer) for ask, answer in some if not answer.done()]
            try:
                found = await self._recommended([ask for ask, _ in some])
            except Exception as error:  # each of those who ask is told
                found = [error] * len(some)
            for (_, answer), one in zip(some, found, strict=True):
                if answer.done():
                    continue
                if isinstance(one, Exception):
                    answer.set_exception(one)
                else:
                    answer.set_result(one)
        self._recommending = None

    async def _recommended(self, asks: Sequence[Ask]) -> Sequence[Recommended | Exception]:
        companion = await self._companion(False)
        popularity = (await self._counted(companion)).copy()
        recommending = Recommending(
            self.items, self._neighbours, partial(self._profile, companion), popularity, self.memory, self._now()
        )
        return await self._home.read(partial(recommending.recommend, asks))

    def _profile(self, companion: Home | None, user_id: str) -> Document | None:
        """Return what is stored of a user, from any thread. Blocks."""
        if companion is None:
            return None
        try:
            return self._latest[user_id]
        except KeyError:  # the event loop may have dropped it just now
            found = companion.collection.get(user_id)
        return found[0] if found else None

    async def _counted(self, companion: Home | None) -> Popularity:
        """Return what is popular; counted from all profiles where that wasn't done yet."""
        async with self._lock:
            if self._popularity is None:
                waiting: list[Applied] = []
                self._waiting, self._missed = waiting, []
                popularity, through = await self._home.read(
                    partial(_count, self._home.collection, _collection(companion))
                )
                self._popularity = popularity
                if self._waiting is waiting:
                    self._waiting = None
                    for applied in waiting:
                        if applied.index_version > through:
                            self._take(popularity, applied)
                    for applied in self._missed:  # those that were counted already say the same once more
                        _take_items(popularity, applied)
                    self._missed = []
                else:
                    self._popularity = None
                    return popularity
            return self._popularity

    def _profiles_changed(self, applied: Applied) -> None:
        if self._waiting is not None:
            self._waiting.append(applied)
        elif self._popularity is not None:
            self._take(self._popularity, applied)
        documents = [event.document for event in applied.events if isinstance(event, Change)]
        for document in documents:
            self._latest.pop(document.id, None)
            self._latest[document.id] = None if document.deleted else document
        while len(self._latest) > _LATEST_PROFILES:
            del self._latest[next(iter(self._latest))]
        for learned in self.learned:
            learned([document.id for document in documents])

    def _take(self, popularity: Popularity, applied: Applied) -> None:
        for event in applied.events:
            if isinstance(event, Change) and not event.document.deleted:
                touch = stored.last_touched(event.document)
                if touch is not None:
                    popularity.add(touch.item_id, touch.weight, touch.at)

    def _items_changed(self, applied: Applied) -> None:
        self.items.change(applied)
        if self._waiting is not None:
            self._missed.append(applied)
        elif self._popularity is not None:
            _take_items(self._popularity, applied)


def _collection(home: Home | None) -> Collection | None:
    return None if home is None else home.collection


def _learned(event: Interaction, memory: Memory, document: Document | None) -> str:
    return stored.encode(stored.learned(_known(document), event, memory))


def _placed(placed: Vector, at: int, document: Document | None) -> str:
    return stored.encode(stored.placed(_known(document), placed, at))


def _known(document: Document | None) -> Known:
    return NOBODY if document is None else stored.decode(document)


def _take_items(popularity: Popularity, applied: Applied) -> None:
    for event in applied.events:
        if isinstance(event, Change):
            if event.event_type is EventType.DELETE:
                popularity.remove(event.document.id)
            elif event.event_type is EventType.INSERT:
                popularity.arrive(event.document.id, event.document.updated_at)


def _count(items: Collection, users: Collection | None) -> tuple[Popularity, int]:
    """Count what is popular from all profiles; return the index_version of theirs that was counted. Blocks."""
    popularity = Popularity()
    head = items.index_version
    start = max(0, head - _LATEST)
    for change in items.changes(Span(start, start, head), _LATEST).changes:
        if change.event_type is EventType.INSERT:
            popularity.arrive(change.document.id, change.document.updated_at)
    through = 0
    if users is not None:
        head, more = users.index_version, True
        while more:
            page = users.changes(Span(0, through, head), _PAGE)
            for change in page.changes:
                if not change.document.deleted:
                    for touch in stored.touched(change.document):
                        popularity.add(touch.item_id, touch.weight, touch.at)
            through, more = page.through, page.more
    _forget_deleted(popularity, items)
    return popularity, through


def _forget_deleted(popularity: Popularity, items: Collection) -> None:
    """Forget items that users had to do with, and that were deleted since. Blocks."""
    counted = [item_id for item_id, _ in popularity.top(popularity.capacity, 0)]
    for start in range(0, len(counted), _ITEMS_PAGE):
        some = counted[start : start + _ITEMS_PAGE]
        _, found = items.get_many(some)
        there = {document.id for document, _ in found}
        for item_id in some:
            if item_id not in there:
                popularity.remove(item_id)
