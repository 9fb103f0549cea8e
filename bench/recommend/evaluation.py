"""How good recommendations are: each positive rating is predicted from what came before it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.recommend.data import Rating
from bench.recommend.recommenders import Recommender

RESAMPLES = 5_000
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one prediction. `known` is how many ratings of the user came before, `since_s` how long ago the last was.

    `rank` counts from 0; None is not in the list.
    """

    user: str
    known: int
    rank: int | None
    since_s: float = math.inf

    @property
    def hit(self) -> float:
        return 0.0 if self.rank is None else 1.0

    @property
    def ndcg(self) -> float:
        """With one relevant item the ideal DCG is 1 (Järvelin, Kekäläinen: TOIS 2002)."""
        return 0.0 if self.rank is None else 1 / math.log2(self.rank + 2)


METRICS = ("hit", "ndcg")


@dataclass(frozen=True, slots=True)
class Margin:
    """A mean of differences, and the bounds of its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def replay(recommender: Recommender, ratings: Sequence[Rating], first: int) -> list[Outcome]:
    """Learn all ratings in order; before each positive one from position `first` on, predict it."""
    outcomes: list[Outcome] = []
    known: Counter[str] = Counter()
    last: dict[str, int] = {}
    for position, rating in enumerate(ratings):
        if position >= first and rating.positive:
            found = recommender.recommend(rating.user, rating.at)
            rank = found.index(rating.item) if rating.item in found else None
            since_s = (rating.at - last.get(rating.user, -math.inf)) / 1e6
            outcomes.append(Outcome(rating.user, known[rating.user], rank, since_s))
        recommender.learn(rating)
        known[rating.user] += 1
        last[rating.user] = rating.at
    return outcomes


def mean(outcomes: Sequence[Outcome], metric: str) -> float:
    return float(np.mean([getattr(outcome, metric) for outcome in outcomes])) if outcomes else 0.0


def margin(ours: Sequence[Outcome], theirs: Sequence[Outcome], metric: str, rng: np.random.Generator) -> Margin:
    """Return by how much ours is better on the same predictions.

    The interval is a percentile bootstrap over users: a user's predictions depend on each other, and are drawn together.
    """
    users = sorted({outcome.user for outcome in ours})
    number = {user: i for i, user in enumerate(users)}
    gained, counted = np.zeros(len(users)), np.zeros(len(users))
    for mine, other in zip(ours, theirs, strict=True):
        gained[number[mine.user]] += getattr(mine, metric) - getattr(other, metric)
        counted[number[mine.user]] += 1
    means = np.concatenate([_resampled(gained, counted, rng) for _ in range(RESAMPLES // _CHUNK)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Margin(float(gained.sum() / counted.sum()), float(low), float(high))


def _resampled(
    gained: npt.NDArray[np.float64], counted: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    drawn = rng.integers(0, len(gained), (_CHUNK, len(gained)))
    means: npt.NDArray[np.float64] = gained[drawn].sum(axis=1) / counted[drawn].sum(axis=1)
    return means
