"""Decayed counts, their bounds, and what is stored of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.users.popularity import Attention, Popularity
from tests.users.support import DAY

ATTENTION = Attention(tau_s=86_400.0, capacity=10, arrivals=2, arrival_weight=0.5)
events = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.floats(0.01, 1), st.integers(1000 * DAY, 1100 * DAY)), max_size=20
)


def counted(added: list[tuple[str, float, int]]) -> Popularity:
    popularity = Popularity(ATTENTION)
    for item_id, weight, at in added:
        popularity.add(item_id, weight, at)
    return popularity


@given(events, st.randoms())
def test_counts_are_decayed_sums_in_any_order(added: list[tuple[str, float, int]], random: object) -> None:
    now = 1100 * DAY
    expected: dict[str, float] = {}
    for item_id, weight, at in added:
        expected[item_id] = expected.get(item_id, 0.0) + weight * math.exp((at - now) / DAY)
    random.shuffle(added)  # type: ignore[attr-defined]
    popularity = counted(added)
    for item_id, count in expected.items():
        assert popularity.count(item_id, now) == pytest.approx(count, rel=1e-9, abs=1e-25)
    assert popularity.counts([*expected, "never"], now) == pytest.approx([*expected.values(), 0], rel=1e-9, abs=1e-25)


def test_the_top_is_ordered_by_count_then_by_id() -> None:
    popularity = counted([("a", 1.0, 0), ("b", 0.5, DAY), ("c", 0.5, DAY), ("d", -1.0, DAY)])
    assert [item_id for item_id, _ in popularity.top(3, DAY)] == ["b", "c", "a"]
    assert dict(popularity.top(9, DAY)) == pytest.approx({"b": 0.5, "c": 0.5, "a": math.exp(-1)})
    assert popularity.top(2, DAY) == popularity.top(9, DAY)[:2]


def test_new_items_count_for_a_while_and_the_newest_are_kept() -> None:
    popularity = Popularity(ATTENTION)
    for i, item_id in enumerate("xyz"):
        popularity.arrive(item_id, i * DAY)
    assert dict(popularity.top(9, 2 * DAY)) == pytest.approx({"z": 0.5, "y": 0.5 * math.exp(-1)})
    popularity.add("y", 1.0, 2 * DAY)
    assert dict(popularity.top(1, 2 * DAY)) == pytest.approx({"y": 1 + 0.5 * math.exp(-1)})
    popularity.remove("y")
    popularity.remove("unknown")
    assert popularity.count("y", 2 * DAY) == 0
    assert popularity.counts(["z", "x", "y"], 2 * DAY).tolist() == [0.5, 0.0, 0.0]


def test_at_its_capacity_the_least_counted_go() -> None:
    popularity = counted([(f"{i:02}", 1.0 + i, DAY) for i in range(11)])
    assert len(popularity) == 9
    assert {item_id for item_id, _ in popularity.top(99, DAY)} == {f"{i:02}" for i in range(2, 11)}


def test_years_of_events_dont_overflow() -> None:
    popularity = counted([("a", 1.0, i * 50 * DAY) for i in range(100)])
    assert popularity.count("a", 99 * 50 * DAY) == pytest.approx(1.0)
    assert popularity.count("a", 10_000 * DAY) == 0.0
    assert math.isfinite(popularity.count("a", 0))


steps = st.lists(
    st.tuples(st.sampled_from(["add", "arrive", "remove"]), st.sampled_from("abcdef"), st.integers(0, 3 * DAY)),
    max_size=30,
)


@given(steps)
def test_whatever_comes_and_goes_the_rest_keeps_its_counts(taken: list[tuple[str, str, int]]) -> None:
    popularity, now = Popularity(ATTENTION), 3 * DAY
    counts: dict[str, float] = {}
    arrived: dict[str, int] = {}
    for step, item_id, at in taken:
        if step == "add":
            popularity.add(item_id, 0.7, at)
            counts[item_id] = counts.get(item_id, 0.0) + 0.7 * math.exp((at - now) / DAY)
        elif step == "arrive":
            popularity.arrive(item_id, at)
            arrived[item_id] = at
            if len(arrived) > ATTENTION.arrivals:
                del arrived[min(arrived, key=lambda one: (arrived[one], one))]
        else:
            popularity.remove(item_id)
            counts.pop(item_id, None)
            arrived.pop(item_id, None)
    expected = dict(counts)
    for item_id, at in arrived.items():
        expected[item_id] = expected.get(item_id, 0.0) + 0.5 * math.exp((at - now) / DAY)
    assert len(popularity) == len(counts)
    assert dict(popularity.top(99, now)) == pytest.approx(expected)


def test_new_items_of_long_ago_are_forgotten_with_what_they_counted() -> None:
    popularity = Popularity(ATTENTION)
    popularity.arrive("old", 0)
    popularity.add("liked", 1.0, 4000 * DAY)
    for i in range(ATTENTION.arrivals + 1):
        popularity.arrive(f"new{i}", 4000 * DAY + i)
    assert [item_id for item_id, _ in popularity.top(9, 4000 * DAY)] == ["liked", "new2", "new1"]
