from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gateway.engine import vectors
from gateway.engine.types import Metric
from gateway.engine.vectors import check, parse
from gateway.errors import HotindexError


@pytest.mark.parametrize(
    ("raw", "metric", "words"),
    [
        ([1.0, 2.0], Metric.COSINE, "2 numbers"),
        ([1.0, math.nan, 1.0], Metric.COSINE, "[1] is nan"),
        ([1.0, 1.0, math.inf], Metric.L2, "[2] is inf"),
        ([1.0, 1.0, 1e300], Metric.L2, "[2] is inf"),
        ([0.0, 0.0, 0.0], Metric.COSINE, "all zeros"),
        ([0.0, -0.0, 1e-60], Metric.COSINE, "all zeros"),
        ([1e19, 1e19, 1e19], Metric.IP, "too long"),
    ],
)
def test_vectors_a_metric_can_not_compare(raw: list[float], metric: Metric, words: str) -> None:
    with pytest.raises(HotindexError) as raised:
        check(parse(raw), 3, metric)
    assert raised.value.code == "invalid_vector"
    assert words in raised.value.message


@pytest.mark.parametrize("raw", [b"", b"abc", []])
def test_bytes_that_are_no_vector(raw: Any) -> None:
    with pytest.raises(HotindexError) as raised:
        parse(raw)
    assert raised.value.code == "invalid_vector"


@pytest.mark.parametrize("metric", [Metric.IP, Metric.L2])
def test_zero_is_a_vector_where_direction_does_not_matter(metric: Metric) -> None:
    check(parse([0.0, 0.0]), 2, metric)


def test_the_shortest_vector_has_a_direction() -> None:
    check(parse([1e-45, 0.0]), 2, Metric.COSINE)


@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e18])
def test_comparable_has_unit_length_at_any_scale(scale: float) -> None:
    rows = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32) * np.float32(scale)
    np.testing.assert_allclose(np.linalg.norm(vectors.comparable(rows, Metric.COSINE), axis=1), 1, rtol=1e-5)
    assert vectors.comparable(rows, Metric.L2) is rows


def test_best_is_by_score_then_by_position() -> None:
    scores = np.array([1, 3, 2, 3, 0, 3], np.float32)
    assert vectors.best(scores, 4).tolist() == [1, 3, 5, 2]
    assert vectors.best(scores, 99).tolist() == [1, 3, 5, 2, 0, 4]
    assert vectors.best(np.empty(0, np.float32), 3).tolist() == []
