"""What headers say about waiting, in all the forms they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.embed.pace import LONGEST_S, Pace, duration_s, told_s

WALL_S = 1.7e9


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m", 3720.0),
        ("1.5s", 1.5),
        ("1d", 86400.0),
        ("1m30.5s", 90.5),
        ("2", 2.0),
        (" 0.25 ", 0.25),
        ("0s", None),
        ("-1s", None),
        ("nan", None),
        ("1x", None),
        ("s", None),
        ("", None),
        ("1s later", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:25 GMT"}, 5.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:20 GMT"}, None),
        ({"retry-after": "0", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}, 2.0),
        ({"retry-after": "1", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}, 1.0),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "2s"}, None),
        ({"x-ratelimit-reset-requests": "2s"}, None),
        ({"x-ratelimit-remaining-tokens": "0"}, None),
        ({f"x-ratelimit-{what}": text for what, text in [
            ("remaining-tokens", "0"), ("reset-tokens", "3s"), ("remaining-requests", "0"), ("reset-requests", "2s"),
        ]}, 3.0),
        ({"retry-after": "inf"}, LONGEST_S),
        ({"retry-after-ms": "1e308"}, LONGEST_S),
        ({}, None),
    ],
)  # fmt: skip
def test_what_a_refusal_says(headers: dict[str, str], pause_s: float | None) -> None:
    assert told_s(headers, WALL_S, refused=True) == (None if pause_s is None else pytest.approx(pause_s))


def test_a_success_says_only_that_nothing_is_left() -> None:
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s", "retry-after": "9"}
    assert told_s(left, WALL_S, refused=False) == 2.0


@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]),
        st.text(max_size=30)
        | st.floats().map(str)
        | st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    ),
    st.booleans(),
)
def test_whatever_is_said_the_wait_is_within_bounds(headers: dict[str, str], refused: bool) -> None:
    pause_s = told_s(headers, WALL_S, refused=refused)
    assert pause_s is None or 0 < pause_s <= LONGEST_S


def test_the_longest_of_several_holds() -> None:
    pace = Pace()
    assert pace.wait_s(0.0) == 0.0
    pace.hold(10.0, 5.0)
    pace.hold(11.0, 1.0)
    assert (pace.wait_s(12.0), pace.wait_s(15.0), pace.wait_s(99.0)) == (3.0, 0.0, 0.0)
