"""The benchmark of recommendations runs from end to end on few ratings. Its figures decide nothing here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as command
from bench import recommend
from bench.recommend import learning, tune
from bench.recommend.data import Catalogue, Rating
from bench.recommend.evaluation import Outcome, margin, mean, replay
from bench.recommend.learning import Example
from bench.recommend.recommenders import Hotindex, LastItem, Popular
from gateway.engine.types import Metric
from gateway.engine.vectors import comparable
from gateway.users.actions import Scale
from gateway.users.mixture import Weights, mix
from gateway.users.popularity import Attention

MOVIES = 400


def catalogue() -> Catalogue:
    rows = np.random.default_rng(1).standard_normal((MOVIES, 8)).astype(np.float32)
    years = np.random.default_rng(3).integers(1930, 1970, MOVIES).astype(np.float32)
    years[:10] = np.nan
    return Catalogue([f"movie:{i}" for i in range(MOVIES)], comparable(rows, Metric.COSINE), years)


def some_ratings(_: Catalogue) -> list[Rating]:
    rng = np.random.default_rng(2)
    drawn = zip(rng.integers(0, 20, 200), rng.permutation(MOVIES)[:200], rng.integers(1, 11, 200), strict=True)
    return [Rating(f"user:{u}", int(i), int(v), (n + 1) * 60_000_000) for n, (u, i, v) in enumerate(drawn)]


def test_a_small_run_has_every_section_and_the_same_figures_for_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Catalogue, "load", catalogue)
    monkeypatch.setattr(recommend, "ratings", some_ratings)
    monkeypatch.setattr(recommend, "INTERACTIONS", 20)
    reports = []
    for _ in range(2):
        assert command.main(["recommend", "--scale", "0.9", "--seed", "3", "--out", str(tmp_path)]) == 0
        reports.append(json.loads((tmp_path / "recommend.json").read_text()))
    figures = [[one for one in report["results"] if one["section"] != "live"] for report in reports]
    assert figures[0] == figures[1]
    predicted = {one["name"]: one for one in reports[0]["results"] if one["section"] == "predictions"}
    assert set(predicted) == {"hotindex", "popular", "last item's nearest", "profile alone"}
    assert len({one["count"] for one in predicted.values()}) == 1
    assert {one["section"] for one in reports[0]["results"]} == {"predictions", "groups", "live"}
    targets = {target["name"] for target in reports[0]["targets"]}
    assert len(targets) == 5
    text = capsys.readouterr().out
    assert all(name in text for name in targets)


def test_what_is_learned_makes_what_was_taken_likelier() -> None:
    movies = catalogue()
    found = tune.examples(movies, some_ratings(movies))
    assert 0 < len(found) < 200
    before, after = learning.START, learning.learn(found)
    assert after == learning.learn(found)
    assert likelihood(found, after) > likelihood(found, before)


def test_a_gradient_is_that_of_the_likelihood() -> None:
    movies = catalogue()
    example = tune.examples(movies, some_ratings(movies))[-1]
    gradient = learning.gradient(example, learning.START)
    start = learning.flat(learning.START)
    for i in range(len(start)):
        step = np.zeros(len(start))
        step[i] = 1e-5
        up, down = (likelihood([example], learning.weights(start + sign * step)) for sign in (1, -1))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-6)


def likelihood(examples: Sequence[Example], weights: Weights) -> float:
    return float(np.mean([np.log(score(one, weights)) for one in examples]))


def score(example: Example, weights: Weights) -> float:
    mixed = mix(example.features, weights)
    both = (1 - mixed.gate) * mixed.popular[example.taken] + mixed.gate * mixed.near[example.taken]
    return float(both)


def test_an_example_is_of_a_known_user_and_a_candidate_that_was_liked() -> None:
    movies = catalogue()
    recommender = Hotindex(movies)
    first, disliked, second = Rating("u", 20, 9, 1), Rating("u", 21, 2, 2), Rating("u", 22, 9, 3)
    assert recommender.example(first, 0) is None
    for rating in (first, Rating("v", 22, 10, 1)):
        recommender.learn(rating)
    assert recommender.example(disliked, 1) is None
    example = recommender.example(second, 2)
    assert example is not None
    assert example.at == 2
    recommender.learn(second)
    assert recommender.example(second, 3) is None


def test_what_is_predicted_was_never_learned() -> None:
    class Spy:
        def __init__(self) -> None:
            self.log: list[str] = []

        def recommend(self, user: str, now: int) -> list[int]:
            self.log.append(f"predict at {now}")
            return [2, 1]

        def learn(self, rating: Rating) -> None:
            self.log.append(f"learn {rating.item} of {rating.at}")

    spy = Spy()
    outcomes = replay(spy, [Rating("u", 0, 9, 1), Rating("u", 1, 8, 2), Rating("u", 2, 3, 3)], 1)
    assert spy.log == ["learn 0 of 1", "predict at 2", "learn 1 of 2", "learn 2 of 3"]
    assert outcomes == [Outcome("u", 1, 1, 1e-6)]
    assert mean(outcomes, "hit") == 1.0
    assert mean(outcomes, "ndcg") == pytest.approx(1 / np.log2(3))


def test_a_margins_interval_holds_the_mean_and_counts_users_not_predictions() -> None:
    def interval(users: int) -> float:
        better = [user % 5 < 3 for user in range(users)]
        ours = [Outcome(str(i % users), 1, 0 if better[i % users] else None) for i in range(2000)]
        theirs = [Outcome(one.user, 1, None) for one in ours]
        found = margin(ours, theirs, "hit", np.random.default_rng(1))
        assert found.mean == pytest.approx(0.6)
        assert found.low < found.mean < found.high
        assert found == margin(ours, theirs, "hit", np.random.default_rng(1))
        return found.high - found.low

    assert interval(1000) < interval(10) / 5


def test_baselines_leave_out_what_was_seen() -> None:
    movies = catalogue()
    popular, last = Popular(movies, Attention(), Scale()), LastItem(movies)
    for baseline in (popular, last):
        for rating in (Rating("u", 5, 9, 1), Rating("v", 6, 10, 2)):
            baseline.learn(rating)
    assert popular.recommend("u", 3) == [6]
    assert popular.recommend("new", 3) == [6, 5]
    nearest = np.argsort(-(movies.vectors @ movies.vectors[5]))[1:11]
    assert last.recommend("u", 3) == nearest.tolist()
    assert last.recommend("new", 3) == []
