"""Scores of candidates, from those for strangers to those for the well-known, and lists that don't repeat themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.types import Metric
from gateway.engine.vectors import comparable
from gateway.users import profile as profiles
from gateway.users.popularity import Popularity
from gateway.users.profile import EMPTY, Interaction, Profile, replay
from gateway.users.ranking import Candidates, Matrix, Mixture, Scores, anchors, apart, best, blend, diversify
from tests.users.support import DAY, axis, interactions, liked


def near(i: int, noise: float = 0.1) -> list[float]:
    row = np.full(4, noise, np.float32)
    row[i] = 1.0
    return comparable(row, Metric.COSINE).tolist()  # type: ignore[no-any-return]


CANDIDATES = Candidates(
    ids=["hit", "known", "like 0", "like 1"],
    vectors=np.array([near(2), near(3), near(0), near(1)], np.float32),
    counts=np.array([20, 5, 0, 0], np.float32),
)


def order(profile: Profile, now: int = DAY) -> list[str]:
    return [CANDIDATES.ids[i] for i in best(blend(profile, CANDIDATES, now), CANDIDATES.ids, 10)]


def test_a_stranger_gets_what_is_popular() -> None:
    scores = blend(EMPTY, CANDIDATES, DAY)
    np.testing.assert_allclose(scores, (CANDIDATES.counts + 0.1) / (CANDIDATES.counts + 0.1).sum(), rtol=1e-5)
    assert order(EMPTY)[:2] == ["hit", "known"]


def test_popularity_gives_way_as_evidence_comes() -> None:
    shares = []
    for count in (1, 3, 10):
        profile = replay([liked(f"other {i}", DAY, axis(0)) for i in range(count)])
        shares.append(float(blend(profile, CANDIDATES, DAY)[2]))
    assert shares == sorted(shares)
    assert order(replay([liked(f"other {i}", DAY) for i in range(10)]))[0] == "like 0"


def test_who_sees_what_all_see_gets_what_is_popular() -> None:
    popularity = Popularity()
    for item_id, count in (("hit", 98), ("known", 1), ("rare", 0.1)):
        popularity.add(item_id, count, DAY)
    assert apart(EMPTY, popularity) == 1
    assert apart(replay([liked("hit", 1)]), popularity) == 0
    assert apart(replay([liked("hit", 1), liked("rare", 2), liked("unknown", 3)]), popularity) == pytest.approx(2 / 3)
    assert apart(replay([liked("hit", 1), liked("rare", 2)]), popularity, Mixture(last_seen=1)) == 1
    profile = replay([liked(f"other {i}", DAY) for i in range(10)])
    assert blend(profile, CANDIDATES, DAY, own=0.0)[0] > blend(profile, CANDIDATES, DAY, own=1.0)[0]


def test_popularity_comes_back_as_evidence_ages() -> None:
    profile = replay([liked(f"other {i}", DAY) for i in range(10)])
    assert order(profile)[0] == "like 0"
    assert order(profile, 300 * DAY)[0] == "hit"


def test_what_was_seen_is_left_out_until_it_expires() -> None:
    profile = replay([Interaction("hit", 0.0, DAY)])
    assert order(profile) == ["known", "like 0", "like 1"]
    assert blend(profile, CANDIDATES, DAY)[0] == 0
    assert order(profile, 400 * DAY)[0] == "hit"


def test_the_latest_liked_items_are_the_anchors_newest_first() -> None:
    events = [
        liked("a", 1, axis(0)),
        liked("b", 2, axis(1)),
        liked("c", 3, axis(2), weight=-1.0),
        liked("d", 4, axis(3)),
    ]
    assert [anchor.argmax() for anchor in anchors(replay(events), Mixture(latest=2))] == [3, 1]
    assert anchors(EMPTY) == []


def test_without_a_liked_item_the_direction_is_the_anchor() -> None:
    profile = profiles.placed(EMPTY, axis(1, 5.0), DAY, evidence=20.0)
    assert [anchor.tolist() for anchor in anchors(profile)] == [axis(1).tolist()]
    assert order(profile)[0] == "like 1"


def test_no_candidates_no_scores() -> None:
    nothing = Candidates([], np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert len(blend(EMPTY, nothing, DAY)) == 0
    assert diversify([], nothing.vectors, nothing.counts, 0.5, 10) == []


@given(st.lists(interactions, max_size=12))
def test_scores_are_probabilities(events: list[Interaction]) -> None:
    profile = replay([Interaction(e.item_id, e.weight, e.at, e.vector) for e in events])
    scores = blend(profile, CANDIDATES, profile.at)
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.sum() == pytest.approx(1, abs=1e-4)


def _pool(seed: int, count: int = 30) -> tuple[list[str], Matrix, Scores]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 8)).astype(np.float32)
    scores = rng.random(count).astype(np.float32).round(1)
    return [f"{i:02}" for i in range(count)], comparable(rows, Metric.COSINE), scores


@given(st.integers(0, 1000), st.integers(0, 40))
def test_at_lambda_1_the_order_is_that_of_scores(seed: int, k: int) -> None:
    ids, vectors, scores = _pool(seed)
    expected = sorted((i for i in range(30) if scores[i] > 0), key=lambda i: (-scores[i], ids[i]))[:k]
    assert best(scores, ids, k) == expected
    assert diversify(ids, vectors, scores, 1.0, k) == [ids[i] for i in expected]


@given(st.integers(0, 1000))
def test_at_lambda_0_each_next_is_least_like_those_before(seed: int) -> None:
    ids, vectors, scores = _pool(seed)
    chosen = diversify(ids, vectors, scores, 0.0, 6)
    assert chosen[0] == ids[best(scores, ids, 1)[0]]
    rows = {one: vectors[ids.index(one)] for one in ids if scores[ids.index(one)] > 0}
    for i in range(1, 6):
        alike = {
            one: max(float(rows[one] @ rows[taken]) for taken in chosen[:i]) for one in rows if one not in chosen[:i]
        }
        assert alike[chosen[i]] == pytest.approx(min(alike.values()), abs=1e-5)


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(0, 40))
def test_a_list_has_k_different_ones_as_far_as_there_are(seed: int, lambda_: float, k: int) -> None:
    ids, vectors, scores = _pool(seed)
    chosen = diversify(ids, vectors, scores, lambda_, k)
    assert len(chosen) == len(set(chosen)) == min(k, int((scores > 0).sum()))


def test_between_a_double_gives_way_to_something_else() -> None:
    vectors = np.array([axis(0), axis(0), axis(1)])
    scores = np.array([1.0, 0.9, 0.6], np.float32)
    assert diversify(["a", "double", "b"], vectors, scores, 0.5, 3) == ["a", "b", "double"]
    assert diversify(["a", "double", "b"], vectors, scores, 1.0, 2) == ["a", "double"]
