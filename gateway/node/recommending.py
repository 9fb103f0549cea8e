"""One recommendation: what is popular, and what is near what the user liked, weighed by what is known of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from gateway.engine.filter import Filter
from gateway.engine.search import Query
from gateway.engine.types import Document, Hit, Vector
from gateway.live.types import Nearest
from gateway.node.items import Item, Items
from gateway.users import profile as profiles
from gateway.users import ranking, stored
from gateway.users.popularity import Popularity
from gateway.users.profile import Memory, Profile
from gateway.users.ranking import NEAREST, POPULAR, Candidates, Matrix

_EF = 128
_SEEN_NEAR = 32
"""So many of what a user has seen are reckoned with near each anchor, before it is known how many there are."""


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
class Recommending:
    """What to recommend from: items, the users' profiles, and what is popular at `now`.

    `profile` returns what is stored of a user; it may block. `popular` has ids, the most popular first; `now` is in
    microseconds since the epoch.
    """

    items: Items
    profile: Callable[[str], Document | None]
    popularity: Popularity
    popular: Sequence[str]
    memory: Memory
    now: int

    def recommend(self, ask: Ask) -> Recommended:
        """Return what is recommended to a user. Blocks; raises StorageUnavailable."""
        document = self.profile(ask.user_id)
        version, profile = (document.version, stored.decode(document).profile) if document else (0, profiles.EMPTY)
        seen = profiles.seen(profile, self.now, self.memory)
        near = self._near(profile, ask.where, seen)
        found = {item.document.id: item for one in near for item, _ in one.items}
        found.update((item.document.id, item) for item in self._popular(ask, seen))
        index_version = max((one.index_version for one in near), default=self.items.collection.index_version)
        return Recommended(index_version, version, self._choose(ask, profile, found), near, seen)

    def _near(self, profile: Profile, where: Filter | None, seen: frozenset[str]) -> tuple[Near, ...]:
        anchors = ranking.anchors(profile)
        if not anchors:
            return ()
        asked = NEAREST + min(len(seen), _SEEN_NEAR)
        near = self._nearest(Query(np.stack(anchors), asked, where, ef=_EF), seen)
        if len(seen) > _SEEN_NEAR and any(len(one.items) < NEAREST and not one.complete for one in near):
            near = self._nearest(Query(np.stack(anchors), NEAREST + len(seen), where, ef=_EF), seen)
        return near

    def _nearest(self, query: Query, seen: frozenset[str]) -> tuple[Near, ...]:
        index_version, found = self._find(query)
        items = self.items.by_vector(version for one in found for version, _ in one)
        near = []
        for anchor, one in zip(query.vectors, found, strict=True):
            there = [(items[version], score) for version, score in one if version in items]
            left = [pair for pair in there if pair[0].document.id not in seen]
            complete = len(one) < query.k and len(left) < NEAREST
            near.append(Near(anchor, index_version, left[:NEAREST], complete))
        return tuple(near)

    def _find(self, query: Query) -> tuple[int, list[list[tuple[int, float]]]]:
        """Return an index_version, and vector_versions and scores of what is nearest to each vector as of it."""
        collection = self.items.collection
        if query.where is None:
            located = collection.nearest(query.vectors, query.k, query.ef or _EF)
            if located.whole:
                pairs = [[*zip(one.labels.tolist(), one.scores.tolist(), strict=True)] for one in located.found]
                return located.index_version, pairs
        answer = collection.search(query)
        return answer.index_version, [[(_version(hit), hit.score) for hit in hits] for hits in answer.results]

    def _popular(self, ask: Ask, seen: frozenset[str]) -> list[Item]:
        """Return the most popular items that the user may be shown."""
        if ask.where is None:
            return [item for item_id, item in self.items.by_id(self.popular).items() if item_id not in seen]
        found: list[Item] = []
        wanted = max(POPULAR, 2 * ask.k)
        for start in range(0, len(self.popular), wanted):
            some = self.items.by_id([one for one in self.popular[start : start + wanted] if one not in seen])
            found += (item for item in some.values() if ask.where.matches(msgspec.json.decode(item.document.metadata)))
            if len(found) >= wanted:
                break
        return found[:wanted]

    def _choose(self, ask: Ask, profile: Profile, found: Mapping[str, Item]) -> tuple[Hit, ...]:
        if not found:
            return ()
        ids, items = list(found), list(found.values())
        lengths = np.array([item.length or 1.0 for item in items], np.float32)
        matrix: Matrix = np.concatenate([item.vector for item in items]).reshape(len(items), -1)
        matrix /= lengths[:, np.newaxis]
        years = np.array([item.year for item in items], np.float32)
        scores = ranking.scores(profile, Candidates(ids, matrix, years), self.popularity, self.now, memory=self.memory)
        lambda_ = ranking.LAMBDA if ask.diversity is None else 1 - ask.diversity
        score_of = dict(zip(ids, scores.tolist(), strict=True))
        return tuple(
            Hit(found[one].document, score_of[one], found[one].vector.tobytes() if ask.vectors else None)
            for one in ranking.diversify(ids, matrix, scores, lambda_, ask.k)
        )


def _version(hit: Hit) -> int:
    assert hit.document.vector_version is not None, "what is found has a vector"
    return hit.document.vector_version
