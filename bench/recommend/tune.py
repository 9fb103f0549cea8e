"""`python -m bench.recommend.tune`: what each value does to the earlier part of the ratings, one changed at a time.

The package's defaults are chosen by this alone; the later part, on which the benchmark reports, is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

from bench.recommend import split
from bench.recommend.data import Catalogue, Rating, ratings
from bench.recommend.evaluation import mean, replay
from bench.recommend.recommenders import Hotindex, Popular, Recommender, Values
from gateway.users.actions import Scale
from gateway.users.popularity import Attention
from gateway.users.profile import DAY_S

MIXTURES: dict[str, tuple[Any, ...]] = {
    "half_evidence": (0.5, 1.0, 1.5, 2.0, 4.0),
    "tilt": (0.0, 0.5, 1.0, 1.5, 2.0),
    "concentration": (10.0, 12.0, 15.0, 20.0),
    "smoothing": (0.03, 0.1, 0.3, 1.0),
    "latest": (1, 2, 3, 5),
    "popular_share": (0.001, 0.002, 0.004, 0.01, 1.0),
    "last_seen": (5, 10, 20, 40),
    "recency": (0.5, 0.7, 0.85, 1.0),
}
TAU_DAYS = (1, 7, 30, 90)
NEUTRAL = (5.0, 5.5, 6.0)
LAMBDAS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
POPULAR_TAU_DAYS = (1, 2, 4, 8)


def changes(values: Values) -> Iterator[tuple[str, Values]]:
    """Yield all that are tried, with what they change."""
    for name, tried in MIXTURES.items():
        for value in tried:
            yield f"{name} {value}", replace(values, mixture=replace(values.mixture, **{name: value}))
    for days in TAU_DAYS:
        yield f"tau {days} days", replace(values, memory=replace(values.memory, tau_s=days * DAY_S))
    for neutral in NEUTRAL:
        yield f"neutral {neutral}", replace(values, scale=Scale(neutral=neutral))
    for days in POPULAR_TAU_DAYS:
        yield f"popularity's tau {days} days", replace(values, attention=Attention(tau_s=days * DAY_S))
    for lambda_ in LAMBDAS:
        yield f"lambda {lambda_}", replace(values, lambda_=lambda_)


@cache
def _earlier() -> tuple[Catalogue, list[Rating], int]:
    catalogue = Catalogue.load()
    all_ratings = ratings(catalogue)
    first, last = split(len(all_ratings))
    return catalogue, all_ratings[:last], first


def _popular(named: tuple[str, Attention, Scale]) -> str:
    name, attention, scale = named
    return _line(name, Popular(_earlier()[0], attention, scale))


def _ours(named: tuple[str, Values]) -> str:
    return _line(named[0], Hotindex(_earlier()[0], named[1]))


def _line(name: str, recommender: Recommender) -> str:
    _, earlier, first = _earlier()
    outcomes = [outcome for outcome in replay(recommender, earlier, first) if outcome.known]
    return f"{name:<34} hit rate {mean(outcomes, 'hit'):.4f}  NDCG {mean(outcomes, 'ndcg'):.4f}"


def main() -> None:
    """Print a line for each value tried."""
    with ProcessPoolExecutor() as processes:
        populars = [
            (f"popular: tau {days} days, neutral {neutral}", Attention(tau_s=days * DAY_S), Scale(neutral=neutral))
            for days, neutral in product(POPULAR_TAU_DAYS, NEUTRAL)
        ]
        for line in processes.map(_popular, populars):
            print(line, flush=True)
        for line in processes.map(_ours, changes(Values())):
            print(line, flush=True)


if __name__ == "__main__":
    main()
