"""What a profile makes of events, whatever their order, and what it forgets."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidVector
from gateway.users import profile as profiles
from gateway.users.profile import EMPTY, Interaction, Memory, Profile, learn, query, replay
from tests.users.support import DAY, axis, interactions, liked

MEMORY = Memory(tau_s=86_400.0, seen_s=10 * 86_400.0)


def total(profile: Profile) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(profile.vector, np.float32)


def same(one: Profile, other: Profile) -> None:
    assert one.at == other.at
    np.testing.assert_allclose(total(one), total(other), atol=1e-5)
    assert one.evidence == pytest.approx(other.evidence, abs=1e-9)
    assert one.seen == other.seen
    assert [(r.item_id, r.at) for r in one.recent] == [(r.item_id, r.at) for r in other.recent]
    assert one.categories == pytest.approx(other.categories, abs=1e-9)


@given(st.lists(interactions, max_size=12))
def test_a_replay_gives_the_same_profile_byte_for_byte(events: list[Interaction]) -> None:
    assert replay(events, MEMORY) == replay(events, MEMORY)


@given(st.lists(interactions, max_size=12), st.randoms())
def test_the_order_of_events_doesnt_matter(events: list[Interaction], random: object) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    same(replay(shuffled, MEMORY), replay(events, MEMORY))


@given(st.lists(interactions, max_size=12))
def test_what_is_learned_is_the_decayed_sum(events: list[Interaction]) -> None:
    profile = replay(events, MEMORY)
    newest = max((event.at for event in events), default=0)
    fade = [math.exp(-(newest - event.at) / DAY) for event in events]
    assert profile.at == newest
    assert profile.evidence == pytest.approx(
        sum(abs(e.weight) * f for e, f in zip(events, fade, strict=True)), abs=1e-9
    )
    expected = np.zeros(4)
    for event, factor in zip(events, fade, strict=True):
        if event.vector is not None and event.vector.any():
            expected += event.weight * factor * event.vector / np.linalg.norm(event.vector)
    np.testing.assert_allclose(total(profile) if profile.vector else np.zeros(4), expected, atol=1e-5)


def test_one_tau_later_the_sum_is_an_eth() -> None:
    profile = replay([liked("a", DAY), liked("b", 2 * DAY, axis(1))], MEMORY)
    np.testing.assert_allclose(total(profile), [math.exp(-1), 1, 0, 0], rtol=1e-6)
    assert profile.evidence == pytest.approx(1 + math.exp(-1))
    assert profiles.evidence(profile, 3 * DAY, MEMORY) == pytest.approx((1 + math.exp(-1)) * math.exp(-1))
    assert profiles.evidence(profile, 0, MEMORY) == profile.evidence


def test_a_late_event_is_decayed_itself() -> None:
    profile = learn(replay([liked("b", 2 * DAY, axis(1))], MEMORY), liked("a", DAY), MEMORY)
    assert profile.at == 2 * DAY
    np.testing.assert_allclose(total(profile), [math.exp(-1), 1, 0, 0], rtol=1e-6)


def test_a_vectors_length_doesnt_matter() -> None:
    same(replay([liked("a", DAY, axis(0, 1e-30))]), replay([liked("a", DAY, axis(0, 50.0))]))


def test_a_dislike_pulls_away() -> None:
    profile = replay([liked("a", DAY, axis(0)), liked("b", DAY, axis(1), weight=-0.5)])
    direction = query(profile)
    assert direction is not None
    assert direction[0] > 0 > direction[1]
    assert [vector.tolist() for vector in profiles.liked(profile)] == [axis(0).tolist()]


def test_no_direction_before_a_vector_and_where_all_cancels_out() -> None:
    tilted = np.array([0.1, 0.7, 0.3, 0.2], np.float32)
    assert query(EMPTY) is None
    assert query(replay([Interaction("a", 1.0, DAY)])) is None
    assert query(replay([liked("a", DAY, axis(0, 0.0))])) is None
    cancelled = replay([liked("a", DAY, tilted), liked("b", DAY, tilted, weight=-1.0)])
    assert query(cancelled) is None
    assert query(learn(cancelled, liked("c", 500 * DAY, axis(2)))) is not None


@given(st.lists(interactions, max_size=12))
def test_a_direction_has_unit_length(events: list[Interaction]) -> None:
    direction = query(replay(events, MEMORY))
    assert direction is None or np.linalg.norm(direction) == pytest.approx(1, abs=1e-5)


def test_another_dimension_is_refused() -> None:
    with pytest.raises(InvalidVector, match="vector has 2 dimensions, the user's profile 4"):
        learn(replay([liked("a", DAY)]), liked("b", DAY, np.ones(2, np.float32)))


def test_what_was_seen_expires() -> None:
    profile = replay([liked("a", DAY), liked("b", 8 * DAY)], MEMORY)
    assert profiles.seen(profile, 11 * DAY, MEMORY) == {"a", "b"}
    assert profiles.seen(profile, 11 * DAY + 1, MEMORY) == {"b"}
    assert set(learn(profile, liked("c", 12 * DAY), MEMORY).seen) == {"b", "c"}


def test_seen_again_it_is_seen_for_longer_and_late_events_dont_shorten_that() -> None:
    profile = replay([liked("a", DAY), liked("a", 9 * DAY), liked("a", 5 * DAY)], MEMORY)
    assert profile.seen == {"a": 9 * DAY}


@given(st.lists(interactions, max_size=40), st.integers(1, 4))
def test_all_lists_are_bounded_to_the_latest(events: list[Interaction], bound: int) -> None:
    memory = Memory(seen_max=bound, recent_max=bound, categories_max=bound, seen_s=1e9)
    profile = replay(events, memory)
    assert max(len(profile.seen), len(profile.recent), len(profile.categories)) <= bound
    last_seen: dict[str, int] = {}
    for event in events:
        if event.seen:
            last_seen[event.item_id] = max(event.at, last_seen.get(event.item_id, 0))
    latest = sorted(last_seen.items(), key=lambda pair: (pair[1], pair[0]))[-bound:]
    assert profile.seen == dict(latest)
    assert all((a.at, a.item_id) >= (b.at, b.item_id) for a, b in pairwise(profile.recent))


def test_a_search_isnt_seen_yet_moves() -> None:
    profile = replay([Interaction("a", 0.2, DAY, axis(0), seen=False)])
    assert not profile.seen
    assert query(profile) is not None


def test_affinities_are_shares_of_all_weight() -> None:
    events = [Interaction(str(i), w, DAY, category=c) for i, (w, c) in enumerate([(1.0, "x"), (0.5, "y"), (-0.5, "z")])]
    assert profiles.affinities(replay(events)) == {"x": 0.5, "y": 0.25}
    assert profiles.affinities(EMPTY) == {}


def test_a_placed_direction_replaces_what_was_learned_but_not_what_was_seen() -> None:
    profile = profiles.placed(replay([liked("a", DAY)]), axis(2, 3.0), 2 * DAY)
    assert query(profile) == pytest.approx(axis(2))
    assert (profile.evidence, profile.seen, profile.recent) == (1.0, {"a": DAY}, ())
    with pytest.raises(InvalidVector):
        profiles.placed(EMPTY, axis(0, 0.0), DAY)
