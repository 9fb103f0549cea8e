"""`python -m bench.recommend.tune`: the weights of `gateway.users.mixture`, learned on the earlier part of the ratings.

The package's WEIGHTS are what this prints last, rounded; the later part, on which the benchmark reports, isn't looked at.
Before that it says how well weights do where they were not learned: each half of what follows the first fifth is predicted
with those learned on the rest of the earlier part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from bench.recommend import learning, split
from bench.recommend.data import Catalogue, Rating, ratings
from bench.recommend.evaluation import METRICS, Outcome, margin, mean, replay
from bench.recommend.learning import Example
from bench.recommend.recommenders import Hotindex, Popular
from gateway.users.actions import Scale
from gateway.users.popularity import Attention

POPULAR_TAU_DAYS = (1, 2, 3, 4, 8)
NEUTRAL = (5.0, 5.5, 6.0)
_DAY_S = 86_400.0


def examples(catalogue: Catalogue, earlier: Sequence[Rating]) -> list[Example]:
    """Return what can be learned from each rating, as of when it came."""
    recommender = Hotindex(catalogue)
    found = []
    for position, rating in enumerate(earlier):
        if (example := recommender.example(rating, position)) is not None:
            found.append(example)
        recommender.learn(rating)
    return found


def main() -> None:
    """Print the baseline with other values, weights on what they weren't learned on, and the weights."""
    catalogue = Catalogue.load()
    everything = ratings(catalogue)
    first, last = split(len(everything))
    earlier, middle = everything[:last], (first + last) // 2
    for days, neutral in product(POPULAR_TAU_DAYS, NEUTRAL):
        popular = Popular(catalogue, Attention(tau_s=days * _DAY_S), Scale(neutral=neutral))
        found = _known(replay(popular, earlier, first))
        print(f"popular, tau {days} days, neutral {neutral}: {_means(found)}", flush=True)
    teaching = examples(catalogue, earlier)
    ours: list[Outcome] = []
    theirs: list[Outcome] = []
    for half in (range(first, middle), range(middle, last)):
        weights = learning.learn([one for one in teaching if one.at not in half])
        ours += _known(replay(Hotindex(catalogue, weights), earlier[: half.stop], half.start))
        theirs += _known(replay(Popular(catalogue, Attention(), Scale()), earlier[: half.stop], half.start))
    print(f"by weights learned on other ratings: {_compared(ours, theirs)}", flush=True)
    print(learning.learn(teaching))


def _known(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.known]


def _means(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(f"{metric} {mean(outcomes, metric):.4f}" for metric in METRICS)


def _compared(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> str:
    margins = (f"{metric} {margin(ours, theirs, metric, np.random.default_rng(1))}" for metric in METRICS)
    return f"{_means(ours)}; over popular: {', '.join(margins)}"


if __name__ == "__main__":
    main()
