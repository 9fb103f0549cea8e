"""Who recommends: the gateway's way, and what it has to beat. Each is asked before it learns what came."""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol

from bench.recommend.data import Catalogue, Rating
from bench.recommend.learning import Example
from gateway.users import profile as profiles
from gateway.users import ranking
from gateway.users.actions import Scale
from gateway.users.mixture import WEIGHTS, Weights
from gateway.users.popularity import Attention, Popularity
from gateway.users.profile import Profile
from gateway.users.ranking import Candidates

K = 10


class Recommender(Protocol):
    def recommend(self, user: str, now: int) -> list[int]:
        """Return the rows of K movies, best first."""

    def learn(self, rating: Rating) -> None: ...


class Hotindex:
    """Profile and popularity, mixed, as the gateway computes it."""

    def __init__(self, catalogue: Catalogue, weights: Weights = WEIGHTS) -> None:
        self._catalogue = catalogue
        self._weights = weights
        self._popularity = Popularity()
        self._profiles: dict[str, Profile] = defaultdict(lambda: profiles.EMPTY)

    def recommend(self, user: str, now: int) -> list[int]:
        profile = self._profiles[user]
        candidates = self._candidates(profile, now)
        scores = ranking.scores(profile, candidates, self._popularity, now, self._weights)
        chosen = ranking.diversify(candidates.ids, candidates.vectors, scores, ranking.LAMBDA, K)
        return [self._catalogue.rows[one] for one in chosen]

    def learn(self, rating: Rating) -> None:
        event = self._catalogue.event(rating)
        self._profiles[rating.user] = profiles.learn(self._profiles[rating.user], event)
        self._popularity.add(event.item_id, event.weight, rating.at)

    def example(self, rating: Rating, position: int) -> Example | None:
        """Return what weights can learn from a rating before it is learned; None where it is nothing."""
        profile = self._profiles[rating.user]
        event = self._catalogue.event(rating)
        if event.weight <= 0 or not ranking.anchors(profile):
            return None
        candidates = self._candidates(profile, rating.at)
        if event.item_id not in candidates.ids:
            return None
        features = ranking.features(profile, candidates, self._popularity, rating.at)
        return Example(position, features, candidates.ids.index(event.item_id), event.weight)

    def _candidates(self, profile: Profile, now: int) -> Candidates:
        popular = (self._catalogue.rows[one] for one, _ in self._popularity.top(ranking.POPULAR, now))
        near = [self._catalogue.nearest(anchor)[: ranking.NEAREST] for anchor in ranking.anchors(profile)]
        rows = {*popular, *(row for found in near for row in found.tolist())}
        return self._catalogue.candidates(rows, profiles.seen(profile, now))


class ProfileAlone:
    """The movies nearest to the user's direction, those seen left out."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._profiles: dict[str, Profile] = defaultdict(lambda: profiles.EMPTY)

    def recommend(self, user: str, now: int) -> list[int]:
        profile = self._profiles[user]
        direction = profiles.query(profile)
        if direction is None:
            return []
        seen = {self._catalogue.rows[one] for one in profiles.seen(profile, now)}
        return _unseen(self._catalogue, direction, seen)

    def learn(self, rating: Rating) -> None:
        self._profiles[rating.user] = profiles.learn(self._profiles[rating.user], self._catalogue.event(rating))


class Popular:
    """What all users rated well lately, those seen left out."""

    def __init__(self, catalogue: Catalogue, attention: Attention, scale: Scale) -> None:
        self._catalogue = catalogue
        self._popularity = Popularity(attention)
        self._scale = scale
        self._seen: dict[str, set[int]] = defaultdict(set)

    def recommend(self, user: str, now: int) -> list[int]:
        seen = self._seen[user]
        top = (self._catalogue.rows[one] for one, _ in self._popularity.top(K + len(seen), now))
        return [row for row in top if row not in seen][:K]

    def learn(self, rating: Rating) -> None:
        self._popularity.add(self._catalogue.ids[rating.item], self._scale.weight(rating.value), rating.at)
        self._seen[rating.user].add(rating.item)


class LastItem:
    """The movies nearest to the one the user rated last, those seen left out."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._last: dict[str, int] = {}
        self._seen: dict[str, set[int]] = defaultdict(set)

    def recommend(self, user: str, now: int) -> list[int]:  # noqa: ARG002
        last = self._last.get(user)
        return [] if last is None else _unseen(self._catalogue, self._catalogue.vectors[last], self._seen[user])

    def learn(self, rating: Rating) -> None:
        self._last[rating.user] = rating.item
        self._seen[rating.user].add(rating.item)


def _unseen(catalogue: Catalogue, vector: ranking.Matrix, seen: set[int]) -> list[int]:
    return [row for row in catalogue.nearest(vector).tolist() if row not in seen][:K]
