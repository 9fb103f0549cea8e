"""Who recommends: the gateway's way, and what it has to beat. Each is asked before it learns what came."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bench.recommend.data import Catalogue, Rating
from gateway.users import profile as profiles
from gateway.users import ranking
from gateway.users.actions import VOCABULARY, Scale, Vocabulary
from gateway.users.popularity import Attention, Popularity
from gateway.users.profile import Interaction, Memory, Profile
from gateway.users.ranking import Candidates, Mixture

K = 10


class Recommender(Protocol):
    def recommend(self, user: str, now: int) -> list[int]:
        """Return the rows of K movies, best first."""

    def learn(self, rating: Rating) -> None: ...


@dataclass(frozen=True, slots=True)
class Values:
    """What was chosen on the earlier part of the ratings, together: the package's defaults."""

    memory: Memory = profiles.MEMORY
    mixture: Mixture = ranking.MIXTURE
    attention: Attention = field(default_factory=Attention)
    scale: Scale = field(default_factory=Scale)
    lambda_: float = ranking.LAMBDA


class Hotindex:
    """Profile and popularity, blended, as the gateway computes it after each interaction."""

    def __init__(self, catalogue: Catalogue, values: Values | None = None) -> None:
        self._catalogue = catalogue
        self._values = values or Values()
        self._popularity = Popularity(self._values.attention)
        self._profiles: dict[str, Profile] = defaultdict(lambda: profiles.EMPTY)

    def recommend(self, user: str, now: int) -> list[int]:
        values = self._values
        profile = self._profiles[user]
        popular = dict(self._popularity.top(ranking.POPULAR, now))
        near = [self._catalogue.nearest(anchor) for anchor in ranking.anchors(profile, values.mixture)]
        rows = sorted({*(self._catalogue.rows[one] for one in popular), *(int(row) for found in near for row in found)})
        ids = [self._catalogue.ids[row] for row in rows]
        counts = np.array([popular.get(one) or self._popularity.count(one, now) for one in ids], np.float32)
        vectors = self._catalogue.vectors[rows]
        own = ranking.apart(profile, self._popularity, values.mixture)
        scores = ranking.blend(profile, Candidates(ids, vectors, counts), now, own, values.mixture, values.memory)
        chosen = ranking.diversify(ids, vectors, scores, values.lambda_, K)
        return [self._catalogue.rows[one] for one in chosen]

    def learn(self, rating: Rating) -> None:
        item_id = self._catalogue.ids[rating.item]
        action = Vocabulary(scale=self._values.scale).weigh("rate", rating.value)
        event = Interaction(item_id, action.weight, rating.at, self._catalogue.vectors[rating.item])
        self._profiles[rating.user] = profiles.learn(self._profiles[rating.user], event, self._values.memory)
        self._popularity.add(item_id, action.weight, rating.at)


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
        weight = VOCABULARY.weigh("rate", rating.value).weight
        vector = self._catalogue.vectors[rating.item]
        event = Interaction(self._catalogue.ids[rating.item], weight, rating.at, vector)
        self._profiles[rating.user] = profiles.learn(self._profiles[rating.user], event)


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
