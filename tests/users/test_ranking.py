"""Scores of candidates, from those for strangers to those for the well-known, and lists that don't repeat themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.types import Metric
from gateway.engine.vectors import comparable
from gateway.users import profile as profiles
from gateway.users import ranking
from gateway.users.mixture import Scores
from gateway.users.popularity import Popularity
from gateway.users.profile import EMPTY, Interaction, Profile, replay
from gateway.users.ranking import Candidates, Matrix, anchors, best, diversify
from tests.users.support import DAY, axis, interactions, liked

HOUR = DAY // 24
UNKNOWN = float("nan")


def near(i: int, noise: float = 0.1) -> list[float]:
    row = np.full(4, noise, np.float32)
    row[i] = 1.0
    return comparable(row, Metric.COSINE).tolist()  # type: ignore[no-any-return]


CANDIDATES = Candidates(
    ids=["hit", "known", "like 0", "like 1"],
    vectors=np.array([near(2), near(3), near(0), near(1)], np.float32),
    years=np.full(4, UNKNOWN, np.float32),
)


def popularity(at: int) -> Popularity:
    found = Popularity()
    found.add("hit", 20.0, at)
    found.add("known", 5.0, at)
    return found


def scores(profile: Profile, now: int = DAY, candidates: Candidates = CANDIDATES) -> Scores:
    return ranking.scores(profile, candidates, popularity(now), now)


def order(profile: Profile, now: int = DAY, candidates: Candidates = CANDIDATES) -> list[str]:
    return [candidates.ids[i] for i in best(scores(profile, now, candidates), candidates.ids, 10)]


def share(profile: Profile, now: int = DAY) -> float:
    """Return how likely it is what is near the axis 0, which few take."""
    return float(scores(profile, now)[2])


def others(count: int, at: int = DAY, year: float | None = None) -> Profile:
    return replay([Interaction(f"other {i}", 1.0, at, axis(0), year=year) for i in range(count)])


def test_a_stranger_gets_what_is_popular() -> None:
    assert order(EMPTY)[:2] == ["hit", "known"]
    assert order(replay([Interaction("a", 1.0, DAY)]))[:2] == ["hit", "known"]


def test_a_stranger_gets_what_is_new_where_nothing_is_popular() -> None:
    found = Popularity()
    found.arrive("known", DAY)
    assert best(ranking.scores(EMPTY, CANDIDATES, found, DAY), CANDIDATES.ids, 1) == [1]


def test_popularity_gives_way_as_evidence_comes() -> None:
    shares = [share(others(count)) for count in (0, 1, 3, 10)]
    assert shares == sorted(set(shares))
    assert order(others(10))[0] == "like 0"


def test_popularity_comes_back_as_time_goes_by() -> None:
    shares = [share(others(10), DAY + later) for later in (0, HOUR, DAY, 300 * DAY)]
    assert shares == sorted(set(shares), reverse=True)
    assert order(others(10), 300 * DAY)[0] == "hit"


def test_who_takes_what_all_take_gets_what_is_popular() -> None:
    all_take = replay([Interaction(one, 1.0, DAY, axis(0)) for one in ("hit", "known")])
    assert share(all_take) < share(others(2))


def test_what_is_from_the_same_years_goes_first_and_unknown_years_in_between() -> None:
    candidates = Candidates(
        ["b", "d", "c", "a"], CANDIDATES.vectors[[1, 1, 1, 1]], np.array([1950, 1990, UNKNOWN, 2012])
    )
    profile = others(3, year=2012.0)
    now = 43 * 365 * DAY
    assert order(profile, now, candidates) == ["a", "c", "d", "b"]
    nothing = Candidates(candidates.ids, candidates.vectors, np.full(4, UNKNOWN, np.float32))
    assert len(set(scores(profile, now, nothing).tolist())) == 1
    assert scores(others(3), now, candidates).tolist() == pytest.approx(scores(others(3), now, nothing).tolist())


def test_the_direction_speaks_for_what_is_like_it() -> None:
    found = ranking.features(others(3), CANDIDATES, popularity(DAY), DAY)
    assert found.popular[:, 2] == pytest.approx(CANDIDATES.vectors[:, 0])


def test_the_latest_liked_items_are_the_anchors_newest_first() -> None:
    events = [
        liked("a", 1, axis(0)),
        liked("b", 2, axis(1)),
        liked("c", 3, axis(2), weight=-1.0),
        liked("d", 4, axis(3)),
    ]
    assert [anchor.argmax() for anchor in anchors(replay(events))] == [3, 1, 0]
    assert anchors(EMPTY) == []


def test_without_a_liked_item_the_direction_is_the_anchor() -> None:
    profile = profiles.placed(EMPTY, axis(1, 5.0), DAY, evidence=20.0)
    assert [anchor.tolist() for anchor in anchors(profile)] == [axis(1).tolist()]
    assert order(profile)[0] == "like 1"


def test_no_candidates_no_scores() -> None:
    nothing = Candidates([], np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    for profile in (EMPTY, others(1)):
        assert len(scores(profile, DAY, nothing)) == 0
    assert best(np.zeros(0, np.float32), [], 10) == []
    assert diversify([], nothing.vectors, np.zeros(0, np.float32), 0.5, 10) == []


@given(st.lists(interactions, max_size=12), st.integers(0, 500 * DAY), st.booleans())
def test_scores_are_probabilities(events: list[Interaction], later: int, dated: bool) -> None:
    profile = replay(events)
    years = np.array([1901, UNKNOWN, 1970, 2020], np.float32) if dated else CANDIDATES.years
    found = scores(profile, profile.at + later, replace(CANDIDATES, years=years))
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1, abs=1e-4)


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
