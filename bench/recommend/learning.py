"""Weights of `gateway.users.mixture` learned from what users took: by gradients of its log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from gateway.users.mixture import Features, Values, Weights, mix

START = Weights(popular=(1.0, 0.0, 0.0), near=(7.0, 7.0, 0.5, 0.0), state=(-1.5, -0.5, 0.0, 0.0))
"""By hand: mostly what is popular, as often as it is taken, and now and then what is near."""
EPOCHS = 12
RATE = 0.1
PULL = 1e-3
"""How much of a weight's distance from START its gradient is shortened by."""


@dataclass(frozen=True, slots=True)
class Example:
    """What spoke for each candidate, the position of the one taken, and how much that counts (0 to 1).

    `at` is its place in the order of time.
    """

    at: int
    features: Features
    taken: int
    worth: float


def learn(examples: Sequence[Example], start: Weights = START) -> Weights:
    """Return what `start` becomes by AdaGrad (Duchi, Hazan, Singer: JMLR 2011), some rounds over the examples."""
    first = flat(start)
    values, squares = first.copy(), np.ones(len(first))
    for example in chain.from_iterable([examples] * EPOCHS):
        slope = example.worth * gradient(example, weights(values)) - PULL * (values - first)
        squares += slope**2
        values += RATE * slope / np.sqrt(squares)
    return weights(values)


def flat(of: Weights) -> Values:
    return np.array([*of.popular, *of.near, *of.state])


def weights(values: Values) -> Weights:
    popular, near, state = np.split(values, [len(START.popular), len(START.popular) + len(START.near)])
    return Weights(tuple(popular.tolist()), tuple(near.tolist()), tuple(state.tolist()))


def gradient(example: Example, at: Weights) -> Values:
    """Return the gradient of the logarithm of the taken item's probability, in the order of `flat`."""
    features, taken = example.features, example.taken
    assert features.near is not None, "an example is of a user who is known"
    mixed = mix(features, at)
    by_popular, by_near = (1 - mixed.gate) * mixed.popular[taken], mixed.gate * mixed.near[taken]
    share = by_near / max(by_popular + by_near, np.finfo(np.float64).tiny)
    return np.concatenate(
        [
            (1 - share) * (features.popular[taken] - mixed.popular @ features.popular),
            share * (features.near[taken] - mixed.near @ features.near),
            (share - mixed.gate) * features.state,
        ]
    )
