"""What to recommend: candidates from two sources, what speaks for each, and a list that doesn't repeat itself. Pure.

Candidates are what is popular or new, and what is near the latest items that the user spoke for. `mixture` says how likely
the user takes each; here is what it judges by. Who is new gets what is popular and new; the more is known, the shorter ago
the user's last interaction and the less everybody else takes what the user takes, the more it is what is near instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.engine.types import Vector
from gateway.users import profile as profiles
from gateway.users.mixture import WEIGHTS, Features, Scores, Values, Weights, mix
from gateway.users.popularity import Popularity
from gateway.users.profile import MEMORY, Memory, Profile

POPULAR = 128
"""How many of the most popular items are candidates."""
NEAREST = 30
"""How many of the nearest items are, for each anchor."""
LAMBDA = 0.95
"""Of `diversify`: as far below 1 as costs nothing in hit rate and NDCG."""

_SMOOTHING = 0.1
"""Added to each count, so that what nobody took has a logarithm."""
_RECENCY = 0.7
"""What each of the latest items weighs next to the next newer one."""
_MINUTES_10_S = 600.0
_YEAR_S = 365.2425 * 86_400
_EPOCH_YEAR = 1970

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items that may be recommended, each once: what is popular or new, and what is near `anchors`, none that was seen.

    `vectors` is float32[n, d], rows of unit length. `years` is float32[n], the year each is from; nan where it isn't known.
    """

    ids: Sequence[str]
    vectors: Matrix
    years: Matrix


def anchors(profile: Profile) -> list[Vector]:
    """Return the unit vectors whose nearest items are candidates, newest first; none where nothing is known.

    They are the latest items that were spoken for; where there is none of them, the user's direction.
    """
    latest = profiles.liked(profile)
    if latest:
        return latest
    direction = profiles.query(profile)
    return [] if direction is None else [direction]


def features(
    profile: Profile, candidates: Candidates, popularity: Popularity, now: int, memory: Memory = MEMORY
) -> Features:
    """Return what speaks for each candidate, and how things stand with the user as of `now`."""
    counts = np.log(popularity.counts(candidates.ids, now) + _SMOOTHING)
    close = _closeness(profile, candidates.years, now)
    around = anchors(profile)
    if not around:
        nothing = np.zeros_like(counts)
        return Features(np.stack([counts, nothing, nothing], axis=1), None, np.zeros(4))
    cosines = candidates.vectors @ np.stack(around, axis=1)
    direction = profiles.query(profile)
    alike = np.zeros_like(counts) if direction is None else candidates.vectors @ direction
    return Features(
        np.stack([counts, close, alike], axis=1),
        np.stack([cosines[:, 0], cosines.max(axis=1), counts, close], axis=1),
        _state(profile, popularity, float(counts.max(initial=math.log(_SMOOTHING))), now, memory),
    )


def scores(
    profile: Profile,
    candidates: Candidates,
    popularity: Popularity,
    now: int,
    weights: Weights = WEIGHTS,
    memory: Memory = MEMORY,
) -> Scores:
    """Return how likely each candidate is taken next, float32[n] with a sum of 1."""
    if not len(candidates.ids):
        return np.zeros(0, np.float32)
    return mix(features(profile, candidates, popularity, now, memory), weights).scores


def best(scores: Scores, ids: Sequence[str], k: int, slack: float = 0.0) -> list[int]:
    """Return the positions of the k best that have a score above 0, best first (ties by id).

    With those that are less than the k-th by at most `slack`, a share of the largest.
    """
    if k < 1 or not len(scores):
        return []
    kth = float(np.partition(scores, -k)[-k]) if k < len(scores) else 0.0
    least = kth - slack * float(scores.max())
    found = np.flatnonzero((scores >= least) & (scores > 0))
    ordered = sorted((-score, ids[i], i) for score, i in zip(scores[found].tolist(), found.tolist(), strict=True))
    return [i for _, _, i in (ordered if slack else ordered[:k])]


def diversify(candidates: Sequence[str], vectors: Matrix, scores: Scores, lambda_: float, k: int) -> list[str]:
    """Return k candidates by maximal marginal relevance (Carbonell, Goldstein: SIGIR 1998), those with a score above 0.

    Each next one is the largest of lambda · score / best score - (1 - lambda) · its largest cosine with one taken before:
    1 is the order of scores, 0 takes the best first and then what is least like it. Ties go by score, then by id.
    `vectors` has rows of unit length.
    """
    # Cosines differ by 2 at most: what is further below the k-th is never taken before it.
    left = best(scores, candidates, k, 2 * (1 - lambda_) / lambda_ if lambda_ > 2 / 3 else 1.0)
    if lambda_ >= 1 or len(left) < 2:
        return [candidates[i] for i in left]
    relevance, rows = lambda_ * scores[left] / scores[left[0]], (1 - lambda_) * vectors[left]
    alike = np.full(len(left), -np.inf, np.float32)
    taken = [0]
    while len(taken) < min(k, len(left)):
        np.maximum(alike, rows @ vectors[left[taken[-1]]], out=alike)
        relevance[taken[-1]] = -np.inf
        taken.append(int((relevance - alike).argmax()))
    return [candidates[left[i]] for i in taken]


def _state(profile: Profile, popularity: Popularity, most: float, now: int, memory: Memory) -> Values:
    """`most` is the logarithm of the largest count there is."""
    since_s = max(0, now - profile.at) / 1e6
    latest = np.log(popularity.counts([one.item_id for one in profile.recent], now) + _SMOOTHING)
    popular = float(_newer_more(len(latest)) @ latest) if len(latest) else math.log(_SMOOTHING)
    known = profiles.evidence(profile, now, memory)
    return np.array([1.0, math.log1p(since_s / _MINUTES_10_S) / 3, (popular - most) / 2, math.log1p(known)])


def _closeness(profile: Profile, years: Matrix, now: int) -> Values:
    """Return how close each year is to those of the user's latest items: 0 is the same, and where nothing is known.

    Years count the less the longer ago they are: a difference is that of the logarithms of ages.
    """
    this_year = _EPOCH_YEAR + now / 1e6 / _YEAR_S
    latest = np.array([one.year for one in profile.recent if one.year is not None], np.float64)
    if not len(latest):
        return np.zeros(len(years))
    apart = np.abs(_age(years, this_year)[:, None] - _age(latest, this_year)) @ _newer_more(len(latest))
    known = np.isfinite(apart)
    return -np.where(known, apart, apart[known].mean() if known.any() else 0.0)


def _age(years: npt.NDArray[np.floating], this_year: float) -> Values:
    ages: Values = np.log2(1 + np.maximum(0.0, this_year - years.astype(np.float64)))
    return ages


def _newer_more(count: int) -> Values:
    weights = np.power(_RECENCY, np.arange(count, dtype=np.float64))
    shares: Values = weights / weights.sum()
    return shares
