"""Interactions to make profiles of."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from gateway.engine.types import Vector
from gateway.users.profile import Interaction

DIMENSION = 4
DAY = 86_400 * 1_000_000


def axis(i: int, length: float = 1.0) -> Vector:
    vector = np.zeros(DIMENSION, np.float32)
    vector[i] = length
    return vector


def liked(item_id: str, at: int, vector: Vector | None = None, weight: float = 1.0) -> Interaction:
    return Interaction(item_id, weight, at, axis(0) if vector is None else vector)


numbers = st.floats(-2, 2, width=32).filter(lambda number: abs(number) > 1e-3 or number == 0)
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION).map(lambda one: np.array(one, np.float32))
interactions = st.builds(
    Interaction,
    item_id=st.sampled_from("abcdefgh"),
    weight=st.floats(-1, 1),
    at=st.integers(0, 400 * DAY),
    vector=vectors | st.none(),
    category=st.sampled_from(["x", "y", "z"]) | st.none(),
    seen=st.booleans(),
    year=st.floats(1900, 1980) | st.none(),
)
