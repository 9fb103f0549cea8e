"""Recommendations: what is popular, and what is near what a user liked, weighed by what is known of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import msgspec
import numpy as np

from gateway.engine.filter import Filter
from gateway.engine.index import Found
from gateway.engine.search import Query
from gateway.engine.types import Document, Hit, Vector
from gateway.errors import HotindexError
from gateway.live.types import Nearest
from gateway.node.items import Item, Items
from gateway.node.neighbours import Neighbours
from gateway.users import profile as profiles
from gateway.users import ranking, stored
from gateway.users.popularity import Popularity
from gateway.users.profile import Memory, Profile
from gateway.users.ranking import NEAREST, POPULAR, Candidates, Matrix

EF = 128
ASKED = NEAREST + 32
"""How many are looked for near each anchor: with so many that were seen. More take a search of their own."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
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
    """The items nearest to one of the vectors that stand for a profile, and their scores, as of `index_version`.

    `complete` says that there are no others.
    """

    query: Vector
    index_version: int
    items: Sequence[tuple[Item, float]]
    complete: bool

    @property
    def nearest(self) -> Nearest:
        hits = [Hit(item.document, score, None) for item, score in self.items]
        return Nearest(self.index_version, hits, self.complete)


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


@dataclass(frozen=True, slots=True)
class _Subject:
    """Whom something is recommended to. `anchors` is float32[n, d], None where nothing is known."""

    ask: Ask
    version: int
    profile: Profile
    seen: frozenset[str]
    anchors: Vector | None


class Recommending:
    """Some recommendations together. Belongs to one thread, and blocks."""

    def __init__(
        self,
        items: Items,
        neighbours: Neighbours,
        profile: Callable[[str], Document | None],
        popularity: Popularity,
        memory: Memory,
        now: int,
    ) -> None:
        """`neighbours` finds ASKED of them by EF; `profile` returns what is stored of a user; `popularity` changes no more;
        `now` is in microseconds since the epoch.
        """
        self._items = items
        self._neighbours = neighbours
        self._profile = profile
        self._popularity = popularity
        self._memory = memory
        self._now = now
        self._top: list[Item] = []

    def recommend(self, asks: Sequence[Ask]) -> list[Recommended | HotindexError]:
        """Return what is recommended, or why nothing can be, for each ask."""
        subjects = [_tried(partial(self._subject, ask)) for ask in asks]
        known = [one for one in subjects if isinstance(one, _Subject)]
        limits = [_wanted(one.ask) for one in known if one.ask.where is None]
        self._top = list(self._items.by_id(self._popular(max(limits))).values()) if limits else []
        near = self._together([one for one in known if one.ask.where is None and one.anchors is not None])
        return [
            _tried(partial(self._recommended, one, near.get(one.ask))) if isinstance(one, _Subject) else one
            for one in subjects
        ]

    def _subject(self, ask: Ask) -> _Subject:
        document = self._profile(ask.user_id)
        version, profile = (document.version, stored.decode(document).profile) if document else (0, profiles.EMPTY)
        anchors = ranking.anchors(profile)
        seen = profiles.seen(profile, self._now, self._memory)
        return _Subject(ask, version, profile, seen, np.stack(anchors) if anchors else None)

    def _recommended(self, subject: _Subject, near: tuple[Near, ...] | None) -> Recommended:
        ask, seen = subject.ask, subject.seen
        if near is None:
            near = self._near(subject)
        found = {item.document.id: item for one in near for item, _ in one.items}
        found.update((item.document.id, item) for item in self._most_popular(ask, seen))
        index_version = max((one.index_version for one in near), default=self._items.collection.index_version)
        return Recommended(index_version, subject.version, self._choose(ask, subject.profile, found), near, seen)

    def _together(self, subjects: Sequence[_Subject]) -> dict[Ask, tuple[Near, ...]]:
        """Return what is near some profiles without filters, found by one search; where that isn't enough, nothing."""
        rows = [one.anchors for one in subjects if one.anchors is not None]
        if not rows:
            return {}
        located = self._neighbours.nearest(np.concatenate(rows))
        if not located.whole:
            return {}
        left = iter(located.found)
        found = [
            [_pairs(one, NEAREST + len(subject.seen)) for one in islice(left, len(anchors))]
            for subject, anchors in zip(subjects, rows, strict=True)
        ]
        items = self._items.by_vector(version for some in found for one in some for version, _ in one)
        near: dict[Ask, tuple[Near, ...]] = {}
        for subject, anchors, some in zip(subjects, rows, found, strict=True):
            mine = _unseen(
                anchors, located.index_version, some, items, subject.seen, min(ASKED, NEAREST + len(subject.seen))
            )
            if all(len(one.items) == NEAREST or one.complete for one in mine):
                near[subject.ask] = mine
        return near

    def _near(self, subject: _Subject) -> tuple[Near, ...]:
        """Return what is near one profile, through its filter and however much was seen."""
        if subject.anchors is None:
            return ()
        query = Query(subject.anchors, NEAREST + len(subject.seen), subject.ask.where, ef=EF)
        answer = self._items.collection.search(query)
        found = [[(_version(hit), hit.score) for hit in hits] for hits in answer.results]
        items = self._items.by_vector(version for one in found for version, _ in one)
        # Items are as they are now. What fits the filter, and is to be followed from there on, is what was found.
        then = {_version(hit): hit.document for hits in answer.results for hit in hits}
        items = {version: item.as_of(then[version]) for version, item in items.items()}
        return _unseen(subject.anchors, answer.index_version, found, items, subject.seen, query.k)

    def _popular(self, limit: int) -> list[str]:
        return [item_id for item_id, _ in self._popularity.top(limit, self._now)]

    def _most_popular(self, ask: Ask, seen: frozenset[str]) -> list[Item]:
        """Return the most popular items that the user may be shown."""
        wanted = _wanted(ask)
        if ask.where is None:
            return [item for item in self._top[:wanted] if item.document.id not in seen]
        popular = self._popular(self._popularity.capacity)
        found: list[Item] = []
        for start in range(0, len(popular), wanted):
            some = self._items.by_id([one for one in popular[start : start + wanted] if one not in seen])
            found += (item for item in some.values() if ask.where.matches(msgspec.json.decode(item.document.metadata)))
            if len(found) >= wanted:
                break
        return found[:wanted]

    def _choose(self, ask: Ask, profile: Profile, found: Mapping[str, Item]) -> tuple[Hit, ...]:
        if not found:
            return ()
        ids, items = list(found), list(found.values())
        matrix: Matrix = np.frombuffer(b"".join([item.unit for item in items]), np.float32).reshape(len(items), -1)
        years = np.array([item.year for item in items], np.float32)
        scores = ranking.scores(
            profile, Candidates(ids, matrix, years), self._popularity, self._now, memory=self._memory
        )
        lambda_ = ranking.LAMBDA if ask.diversity is None else 1 - ask.diversity
        score_of = dict(zip(ids, scores.tolist(), strict=True))
        return tuple(
            Hit(found[one].document, score_of[one], found[one].blob if ask.vectors else None)
            for one in ranking.diversify(ids, matrix, scores, lambda_, ask.k)
        )


def _tried(work: Callable[[], _T]) -> _T | HotindexError:
    """Return what comes of it: one user's fault must not be everyone's."""
    try:
        return work()
    except HotindexError as error:
        return error


def _pairs(found: Found, limit: int) -> list[tuple[int, float]]:
    return list(zip(found.labels[:limit].tolist(), found.scores[:limit].tolist(), strict=True))


def _wanted(ask: Ask) -> int:
    return max(POPULAR, 2 * ask.k)


def _unseen(
    anchors: Vector,
    index_version: int,
    found: Sequence[Sequence[tuple[int, float]]],
    items: Mapping[int, Item],
    seen: frozenset[str],
    asked: int,
) -> tuple[Near, ...]:
    """Return what wasn't seen of vector_versions and scores that a search for `asked` of them found near each anchor."""
    near = []
    for anchor, one in zip(anchors, found, strict=True):
        there = [(items[version], score) for version, score in one if version in items]
        left = [pair for pair in there if pair[0].document.id not in seen]
        near.append(Near(anchor, index_version, left[:NEAREST], len(one) < asked and len(left) <= NEAREST))
    return tuple(near)


def _version(hit: Hit) -> int:
    assert hit.document.vector_version is not None, "what is found has a vector"
    return hit.document.vector_version
