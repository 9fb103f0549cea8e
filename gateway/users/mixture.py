"""How likely a user takes each of some items next: two ways to choose, and what decides between them. Pure.

People follow one of two ways at a time: what everybody takes now, or more of what they just had. So the score is a mixture
of experts (Jacobs, Jordan, Nowlan, Hinton: Neural Computation 1991) with two experts, each a softmax over the items:

    score(i) = (1 - g) · softmax(a · popular)(i) + g · softmax(b · near)(i)        g = 1 / (1 + exp(-c · state))

`hotindex bench recommend` says where the weights a, b and c come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Features:
    """What speaks for each of n items, and how things stand with the user.

    `popular` is float64[n, 3]: the logarithm of the item's count, how close it is in years to the user's latest, its cosine
    with the user's direction. `near` is float64[n, 4], None for a user of whom nothing is known: the cosine with the newest
    liked item, the largest one with any of the latest liked, the logarithm of the count, the closeness in years. `state` is
    float64[4]: 1, the time since the user's last interaction, how popular the latest items are, how much is known.
    """

    popular: Values
    near: Values | None
    state: Values


@dataclass(frozen=True, slots=True)
class Weights:
    """One for each column of the features."""

    popular: tuple[float, ...] = (1.09, 0.43, 0.39)
    near: tuple[float, ...] = (7.14, 7.68, 0.95, 1.44)
    state: tuple[float, ...] = (-1.83, -1.25, -0.57, 0.68)


WEIGHTS = Weights()


@dataclass(frozen=True, slots=True)
class Mixed:
    """Each item's probability by either expert (float64[n], with a sum of 1), and g, how much `near` decides (0 to 1)."""

    popular: Values
    near: Values
    gate: float

    @property
    def scores(self) -> Scores:
        """Each item's probability, float32[n] with a sum of 1."""
        return ((1 - self.gate) * self.popular + self.gate * self.near).astype(np.float32)


def mix(features: Features, weights: Weights = WEIGHTS) -> Mixed:
    """Return how likely each of n items (at least 1) is taken next."""
    popular = _softmax(features.popular @ np.array(weights.popular))
    if features.near is None:
        return Mixed(popular, np.zeros_like(popular), 0.0)
    near = _softmax(features.near @ np.array(weights.near))
    return Mixed(popular, near, float(1 / (1 + np.exp(-features.state @ np.array(weights.state)))))


def _softmax(logits: Values) -> Values:
    grown = np.exp(logits - logits.max())
    shares: Values = grown / grown.sum()
    return shares
