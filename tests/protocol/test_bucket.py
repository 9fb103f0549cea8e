from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.bucket import TokenBucket


class Clock:
    def __init__(self) -> None:
        self.us = 0

    def __call__(self) -> int:
        return self.us


def test_a_seconds_worth_at_once_then_as_fast_as_it_fills() -> None:
    clock = Clock()
    bucket = TokenBucket(10, clock)
    assert bucket.take(10) == 0
    assert bucket.take(3) == pytest.approx(0.3)
    clock.us += 299_999
    assert bucket.take(3) == pytest.approx(1e-6)
    clock.us += 1
    assert bucket.take(3) == 0
    assert bucket.take() == pytest.approx(0.1)
    clock.us += 60_000_000
    assert [bucket.take(5) for _ in range(2)] == [0, 0]
    assert bucket.take() > 0


def test_more_than_it_holds_is_let_through_when_it_is_full_and_owed() -> None:
    clock = Clock()
    bucket = TokenBucket(10, clock)
    assert bucket.take(1) == 0
    assert bucket.take(100) == pytest.approx(0.1)
    clock.us += 100_000
    assert bucket.take(100) == 0
    assert bucket.take(1) == pytest.approx(9.1)
    assert bucket.take(100) == pytest.approx(10)
    clock.us += 10_000_000
    assert bucket.take(100) == 0


def test_less_than_one_a_second() -> None:
    clock = Clock()
    bucket = TokenBucket(0.5, clock)
    assert bucket.take() == 0
    assert bucket.take() == pytest.approx(2)
    clock.us += 2_000_000
    assert bucket.take() == 0


def test_a_clock_that_is_set_back_gives_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(1, clock)
    assert bucket.take() == 0
    clock.us -= 10_000_000
    assert bucket.take() == pytest.approx(1)
    clock.us += 1_000_000
    assert bucket.take() == 0


@given(
    st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 50)), max_size=60), st.sampled_from([0.5, 3.0, 20.0])
)
def test_who_waits_as_told_is_served_and_nobody_gets_more_than_the_rate(
    asked: list[tuple[int, int]], per_s: float
) -> None:
    clock = Clock()
    bucket = TokenBucket(per_s, clock)
    before = 0
    for pause_us, tokens in asked:
        clock.us += pause_us
        if wait_s := bucket.take(tokens):
            clock.us += int(wait_s * 1e6) + 1
            assert bucket.take(tokens) == 0
        # What was given before this is paid for, but for a second's worth; this alone may be owed.
        assert before <= max(1.0, per_s) + clock.us * per_s / 1e6 + 1e-6
        before += tokens
