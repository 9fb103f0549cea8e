"""The users of a hosted collection: what they do is learned here, and what is recommended to them is found here.

A profile is a document of the companion collection, computed by its writer from the one before, so it is on disk before
anyone is told, and an `event_id` counts once. What is popular is counted in memory from the companion's commits, and from
all profiles once after a start; nothing that is recommended is kept.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.search import Query
from gateway.engine.types import (
    Applied,
    Change,
    Compute,
    Document,
    Done,
    EventType,
    Hit,
    ItemResult,
    Operation,
    Remove,
    Span,
    Vector,
    Write,
)
from gateway.errors import HotindexError, NotFound
from gateway.live.types import Nearest
from gateway.node.companions import VECTOR
from gateway.push.room import Room
from gateway.users import profile as profiles
from gateway.users import ranking, stored
from gateway.users.popularity import Popularity
from gateway.users.profile import Interaction, Memory, Profile
from gateway.users.ranking import NEAREST, Candidates
from gateway.users.stored import NOBODY, Known

_T = TypeVar("_T")
_PAGE = 2048
_LATEST = 1000
"""Of a collection's latest changes, new items are looked for among so many after a start."""

_EF = 128


class _Dated(msgspec.Struct):
    year: Any = None


_YEAR = msgspec.json.Decoder(_Dated)


class Home(Protocol):
    """A hosted collection, as far as it is needed here."""

    listeners: list[Callable[[Applied], None]]

    @property
    def collection(self) -> Collection: ...

    @property
    def room(self) -> Room: ...

    async def read(self, work: Callable[[], _T]) -> _T: ...

    async def submit(self, write: Write, wait: bool = True) -> asyncio.Future[Done | HotindexError]: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """What to recommend. `diversity` is from 0, the best one after the other, to 1, the least alike."""

    user_id: str
    k: int
    where: Filter | None = None
    diversity: float | None = None
    vectors: bool = False
    """Whether hits are to have them."""


@dataclass(frozen=True, slots=True)
class Near:
    """The items nearest to one of the vectors that stand for a profile."""

    query: Vector
    nearest: Nearest


@dataclass(frozen=True, slots=True)
class Recommended:
    """What was found for a user as of an index_version, best first.

    `near` is what was searched for, without `seen`.
    """

    index_version: int
    version: int
    """The profile's."""
    hits: tuple[Hit, ...]
    near: tuple[Near, ...] = ()
    seen: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Shelf:
    """Popular items with their vectors (unit length), as they are stored now.

    What was read while one of them changed isn't put in: `generation` tells.
    """

    items: dict[str, tuple[Document, Vector]] = field(default_factory=dict)
    generation: int = 0

    def change(self, ids: Iterable[str]) -> None:
        self.generation += 1
        for document_id in ids:
            self.items.pop(document_id, None)

    def put(self, items: dict[str, tuple[Document, Vector]], generation: int, capacity: int) -> None:
        if generation == self.generation:
            self.items.update(items)
            while len(self.items) > capacity:
                del self.items[next(iter(self.items))]


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
        self.memory = memory
        self._now = now
        self._popularity: Popularity | None = None
        self._waiting: list[Applied] | None = None
        self._lock = asyncio.Lock()
        self._shelf = _Shelf()
        self.learned: list[Callable[[Sequence[str]], None]] = []
        """Called with the ids of users whose profiles have changed."""
        home.listeners.append(self._items_changed)

    def attach(self, companion: Home) -> None:
        """Follow the collection of the users; called whenever there is another one."""
        companion.listeners.append(self._profiles_changed)
        self._popularity = self._waiting = None

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
        raise NotFound(f"nothing is known of user {user_id!r} here", field="user_id")

    async def recommend(self, ask: Ask) -> Recommended:
        """Return what is recommended to a user now; to one who isn't known, what is popular and what is new."""
        companion = await self._companion(False)
        popularity = await self._counted(companion)
        now = self._now()
        limit = max(ranking.POPULAR, 2 * ask.k) if ask.where is None else popularity.capacity
        popular = [item_id for item_id, _ in popularity.top(limit, now)]
        generation = self._shelf.generation
        shelf = {item_id: self._shelf.items[item_id] for item_id in popular if item_id in self._shelf.items}
        search = _Search(self._home.collection, _collection(companion), self.memory, ask, now)
        found, loaded = await self._home.read(partial(search.run, popular, shelf, popularity))
        self._shelf.put(loaded, generation, popularity.capacity)
        return found

    async def _counted(self, companion: Home | None) -> Popularity:
        """Return what is popular; counted from all profiles where that wasn't done yet."""
        async with self._lock:
            if self._popularity is None:
                waiting: list[Applied] = []
                self._waiting = waiting
                popularity, through = await self._home.read(
                    partial(_count, self._home.collection, _collection(companion))
                )
                self._popularity = popularity
                if self._waiting is waiting:
                    self._waiting = None
                    for applied in waiting:
                        if applied.index_version > through:
                            self._take(popularity, applied)
                else:
                    self._popularity = None
                    return popularity
            return self._popularity

    def _profiles_changed(self, applied: Applied) -> None:
        if self._waiting is not None:
            self._waiting.append(applied)
        elif self._popularity is not None:
            self._take(self._popularity, applied)
        users = [event.document.id for event in applied.events if isinstance(event, Change)]
        for learned in self.learned:
            learned(users)

    def _take(self, popularity: Popularity, applied: Applied) -> None:
        for event in applied.events:
            if isinstance(event, Change) and not event.document.deleted:
                for touch in stored.touched(event.document)[:1]:
                    popularity.add(touch.item_id, touch.weight, touch.at)

    def _items_changed(self, applied: Applied) -> None:
        if self._popularity is None:
            return
        changes = [event for event in applied.events if isinstance(event, Change)]
        for change in changes:
            if change.event_type is EventType.DELETE:
                self._popularity.remove(change.document.id)
            elif change.event_type is EventType.INSERT:
                self._popularity.arrive(change.document.id, change.document.updated_at)
        self._shelf.change(change.document.id for change in changes)


@dataclass(slots=True)
class _Search:
    """One recommendation. `run` blocks."""

    items: Collection
    users: Collection | None
    memory: Memory
    ask: Ask
    now: int

    def run(
        self, popular: Sequence[str], shelf: dict[str, tuple[Document, Vector]], popularity: Popularity
    ) -> tuple[Recommended, dict[str, tuple[Document, Vector]]]:
        """Return what is recommended, and what had to be read of popular items."""
        version, profile = self._profile()
        seen = profiles.seen(profile, self.now, self.memory)
        near = self._near(profile, seen)
        loaded = self._load([item_id for item_id in popular if item_id not in shelf])
        found = {
            item_id: (document, vector)
            for item_id, (document, vector) in {**shelf, **loaded}.items()
            if item_id not in seen and self._fits(document)
        }
        for one in near:
            for hit in one.nearest.hits:
                assert hit.vector is not None, "it was asked for"
                found.setdefault(hit.document.id, (hit.document, np.frombuffer(hit.vector, np.float32)))
        chosen = self._choose(profile, found, popularity)
        index_version = max((one.nearest.index_version for one in near), default=self.items.index_version)
        return Recommended(index_version, version, chosen, near, seen), loaded

    def _choose(
        self,
        profile: Profile,
        found: dict[str, tuple[Document, Vector]],
        popularity: Popularity,
    ) -> tuple[Hit, ...]:
        ids = sorted(found)
        if not ids:
            return ()
        matrix = _units(np.stack([found[one][1] for one in ids]))
        years = np.array([item_year(found[one][0]) or math.nan for one in ids], np.float32)
        scores = ranking.scores(profile, Candidates(ids, matrix, years), popularity, self.now, memory=self.memory)
        lambda_ = ranking.LAMBDA if self.ask.diversity is None else 1 - self.ask.diversity
        score_of = dict(zip(ids, scores.tolist(), strict=True))
        chosen = ranking.diversify(ids, matrix, scores, lambda_, self.ask.k)
        return tuple(
            Hit(found[one][0], score_of[one], found[one][1].tobytes() if self.ask.vectors else None) for one in chosen
        )

    def _profile(self) -> tuple[int, Profile]:
        found = self.users and self.users.get(self.ask.user_id)
        if not found:
            return 0, profiles.EMPTY
        return found[0].version, stored.decode(found[0]).profile

    def _near(self, profile: Profile, seen: frozenset[str]) -> tuple[Near, ...]:
        anchors = ranking.anchors(profile)
        if not anchors:
            return ()
        query = Query(np.stack(anchors), NEAREST, self.ask.where, excluded=seen, include_vector=True, ef=_EF)
        answer = self.items.search(query)
        return tuple(
            Near(anchor, Nearest(answer.index_version, hits, len(hits) < NEAREST))
            for anchor, hits in zip(anchors, answer.results, strict=True)
        )

    def _load(self, ids: Sequence[str]) -> dict[str, tuple[Document, Vector]]:
        return {
            document.id: (document, np.frombuffer(blob, np.float32))
            for document, blob in (self.items.get_many(ids) if ids else ())
        }

    def _fits(self, document: Document) -> bool:
        return self.ask.where is None or self.ask.where.matches(msgspec.json.decode(document.metadata))


def _collection(home: Home | None) -> Collection | None:
    return None if home is None else home.collection


def _learned(event: Interaction, memory: Memory, document: Document | None) -> str:
    return stored.encode(stored.learned(_known(document), event, memory))


def _placed(placed: Vector, at: int, document: Document | None) -> str:
    known = _known(document)
    return stored.encode(Known(profiles.placed(known.profile, placed, at), known.touched))


def _known(document: Document | None) -> Known:
    return NOBODY if document is None else stored.decode(document)


def item_year(document: Document) -> float | None:
    """Return the year that an item's metadata say it is from."""
    year = _YEAR.decode(document.metadata).year
    return float(year) if isinstance(year, int | float) and 0 < year < math.inf else None


def _units(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows of unit length; zeros, which some metrics allow, stay zeros."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    units: npt.NDArray[np.float32] = np.zeros_like(matrix)
    np.divide(matrix, lengths, out=units, where=lengths > 0)
    return units


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
    return popularity, through
