"""What to recommend: candidates from two sources, one score for both, and a list that doesn't repeat itself. Pure.

A candidate's score is the probability that the user takes it next, by a mixture:

    score(i) = (1 - a) · popular(i) + a · near(i)         a = apart · e / (e + half_evidence)

`popular` is what all users take, tilted toward the user's direction u: (count(i) + s) · exp(tilt · cos(u, i)), brought to
a sum of 1. `near` is the mean over the latest items l that the user spoke for of exp(concentration · cos(l, i)), each
brought to a sum of 1, newer ones weighing more; where there is none of them, u takes their place. `e` is the profile's
evidence: who is new gets what is popular and new, and ever less of it as more is known; `apart` is the share of what the
user saw last that isn't what all see. A sum rather than a product, because people follow one of the two at a time: what is
popular now, or more of what they just had, which few others take. `hotindex bench recommend` says how the values were
chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

import numpy as np
import numpy.typing as npt

from gateway.engine.types import Vector
from gateway.users import profile as profiles
from gateway.users.popularity import Popularity
from gateway.users.profile import MEMORY, Memory, Profile

POPULAR = 256
"""How many of the most popular items are candidates."""
NEAREST = 100
"""How many of the nearest items are, for each anchor."""

Matrix = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items that may be recommended, each once: what is popular or new, and what is near `anchors`.

    `vectors` is float32[n, d], rows of unit length; `counts` float32[n], from Popularity, 0 where it has none.
    """

    ids: Sequence[str]
    vectors: Matrix
    counts: Scores


@dataclass(frozen=True, slots=True)
class Mixture:
    """The values of the mixture above; `smoothing` is its s, and each of the latest items weighs `recency` times the next
    newer one.
    """

    half_evidence: float = 1.0
    tilt: float = 1.0
    concentration: float = 15.0
    smoothing: float = 0.1
    latest: int = 3
    recency: float = 0.7
    popular_share: float = 0.004
    """What has this share of all interactions, all see."""
    last_seen: int = 20


MIXTURE = Mixture()
LAMBDA = 0.95
"""Of `diversify`: as far below 1 as costs nothing in hit rate and NDCG."""


def anchors(profile: Profile, mixture: Mixture = MIXTURE) -> list[Vector]:
    """Return the unit vectors whose nearest items are candidates, newest first; none where nothing is known."""
    latest = profiles.liked(profile, mixture.latest)
    if latest:
        return latest
    direction = profiles.query(profile)
    return [] if direction is None else [direction]


def apart(profile: Profile, popularity: Popularity, mixture: Mixture = MIXTURE) -> float:
    """Return the share of what the user saw last that isn't what all see; 1 where nothing was seen."""
    last = nlargest(mixture.last_seen, profile.seen, key=lambda item_id: (profile.seen[item_id], item_id))
    shares = popularity.shares(last)
    return sum(share <= mixture.popular_share for share in shares) / len(shares) if shares else 1.0


def blend(
    profile: Profile,
    candidates: Candidates,
    now: int,
    own: float = 1.0,
    mixture: Mixture = MIXTURE,
    memory: Memory = MEMORY,
) -> Scores:
    """Return the candidates' scores, float32[n] with a sum of 1 before those seen (within `seen_s`) are set to 0.

    `own` is what `apart` says of the user.
    """
    if not len(candidates.ids):
        return np.zeros(0, np.float32)
    known = profiles.evidence(profile, now, memory)
    direction = profiles.query(profile)
    counted = np.log(candidates.counts + np.float32(mixture.smoothing))
    scores = _shares(counted if direction is None else counted + mixture.tilt * (candidates.vectors @ direction))
    around = anchors(profile, mixture)
    if around:
        mixed = np.float32(own * known / (known + mixture.half_evidence))
        scores = (1 - mixed) * scores + mixed * _near(candidates.vectors, around, mixture)
    seen = profiles.seen(profile, now, memory)
    scores[[i for i, item_id in enumerate(candidates.ids) if item_id in seen]] = 0.0
    return scores


def best(scores: Scores, ids: Sequence[str], k: int) -> list[int]:
    """Return the positions of the k best that have a score above 0, best first (ties by id)."""
    found = np.argpartition(-scores, k)[: k + 1] if len(scores) > k + 1 else np.arange(len(scores))
    least = scores[found].min() if len(found) else 0.0
    tied = np.flatnonzero((scores >= least) & (scores > 0))
    return sorted(tied.tolist(), key=lambda i: (-scores[i], ids[i]))[:k]


def diversify(candidates: Sequence[str], vectors: Matrix, scores: Scores, lambda_: float, k: int) -> list[str]:
    """Return k candidates by maximal marginal relevance (Carbonell, Goldstein: SIGIR 1998), those with a score above 0.

    Each next one is the largest of lambda · score / best score - (1 - lambda) · its largest cosine with one taken before:
    1 is the order of scores, 0 takes the best first and then what is least like it. Ties go by score, then by id.
    `vectors` has rows of unit length.
    """
    left = best(scores, candidates, len(scores))
    if lambda_ >= 1 or k < 2:
        return [candidates[i] for i in left[:k]]
    if not left:
        return []
    relevance = lambda_ * scores[left] / scores[left[0]]
    # Cosines differ by 2 at most: what is further below the k-th is never taken before it.
    left = left[: int((relevance >= relevance[min(k, len(left)) - 1] - 2 * (1 - lambda_)).sum())]
    relevance, rows = relevance[: len(left)], vectors[left]
    alike = np.full(len(left), -1.0, np.float32)
    taken = [0]
    while len(taken) < min(k, len(left)):
        np.maximum(alike, rows @ rows[taken[-1]], out=alike)
        worth = relevance - (1 - lambda_) * alike
        worth[taken] = -np.inf
        taken.append(int(worth.argmax()))
    return [candidates[left[i]] for i in taken]


def _near(vectors: Matrix, around: Sequence[Vector], mixture: Mixture) -> Scores:
    weights = np.power(np.float32(mixture.recency), np.arange(len(around), dtype=np.float32))
    shares = _shares(mixture.concentration * (vectors @ np.stack(around, axis=1)))
    mixed: Scores = shares @ (weights / weights.sum())
    return mixed


def _shares(logits: npt.NDArray[np.floating]) -> Scores:
    """Softmax over the candidates, the first axis."""
    grown = np.exp(logits - logits.max(axis=0))
    return np.asarray(grown / grown.sum(axis=0), np.float32)
