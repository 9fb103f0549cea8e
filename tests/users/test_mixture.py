"""Two experts and their gate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.users.mixture import Features, Weights, mix

WEIGHTS = Weights(popular=(1.0, 0.0, 0.0), near=(1.0, 0.0, 0.0, 0.0), state=(0.0, 1.0, 0.0, 0.0))


def features(by_popular: list[float], by_near: list[float] | None, state: float = 0.0) -> Features:
    near = None if by_near is None else np.outer(by_near, [1.0, 0, 0, 0])
    return Features(np.outer(by_popular, [1.0, 0, 0]), near, np.array([1.0, state, 0, 0]))


def test_even_odds_give_the_mean_of_both() -> None:
    mixed = mix(features([np.log(3), 0.0], [0.0, np.log(9)]), WEIGHTS)
    assert mixed.gate == 0.5
    assert mixed.popular == pytest.approx([0.75, 0.25])
    assert mixed.near == pytest.approx([0.1, 0.9])
    assert mixed.scores == pytest.approx([0.425, 0.575])


def test_a_stranger_has_only_what_is_popular() -> None:
    mixed = mix(features([np.log(3), 0.0], None, 5.0), WEIGHTS)
    assert mixed.gate == 0
    assert mixed.scores == pytest.approx([0.75, 0.25])


large = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(large, large), min_size=1, max_size=8), st.floats(-700, 700))
def test_scores_are_probabilities_whatever_the_features(both: list[tuple[float, float]], state: float) -> None:
    scores = mix(features([a for a, _ in both], [b for _, b in both], state), WEIGHTS).scores
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scores.sum() == pytest.approx(1, abs=1e-5)
