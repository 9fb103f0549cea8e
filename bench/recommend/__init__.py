"""Recommendations on real ratings in order of time: each positive one is predicted from what came before, then learned.

Ratings of 7 and more are positive. The first fifth only teaches; on what follows, up to three fifths, weights were learned
(`python -m bench.recommend.tune`), and the baseline's values chosen; figures are of the last two fifths. Predicted are
ratings of users who rated something before, as of the moment they rate. Candidates are all movies, with the vectors
`hotindex serve` makes by default.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from bench.harness import Percentiles, Report, Target
from bench.recommend import live
from bench.recommend.data import Catalogue, ratings
from bench.recommend.evaluation import METRICS, Outcome, margin, mean, replay
from bench.recommend.recommenders import Hotindex, LastItem, Popular, ProfileAlone, Recommender
from gateway.users.actions import Scale
from gateway.users.popularity import Attention

BASELINES = ("popular", "last item's nearest")
OURS = "hotindex"
INTERACTIONS = 2_000
LIVE_MS = 2.0
_GROUPS: dict[str, Callable[[Outcome], bool]] = {
    "within an hour of the last rating": lambda one: one.since_s < 3_600,
    "an hour to a day after": lambda one: 3_600 <= one.since_s < 86_400,
    "a day after or later": lambda one: 86_400 <= one.since_s < math.inf,
    "with 1 or 2 ratings before": lambda one: 1 <= one.known <= 2,
    "with 3 to 8": lambda one: 3 <= one.known <= 8,
    "with 9 or more": lambda one: one.known >= 9,
    "with none": lambda one: not one.known,
}


def split(count: int) -> tuple[int, int]:
    """Return the positions at which the earlier part, and the later one, begin."""
    return count // 5, count * 3 // 5


def run(seed: int, scale: float) -> Report:
    """Run the benchmark."""
    catalogue = Catalogue.load()
    all_ratings = ratings(catalogue)
    used = all_ratings[: round(len(all_ratings) * min(1.0, scale))]
    _, later = split(len(used))
    recommenders: dict[str, Callable[[], Recommender]] = {
        OURS: lambda: Hotindex(catalogue),
        "popular": lambda: Popular(catalogue, Attention(), Scale()),
        "last item's nearest": lambda: LastItem(catalogue),
        "profile alone": lambda: ProfileAlone(catalogue),
    }
    outcomes = {name: replay(make(), used, later) for name, make in recommenders.items()}
    report = Report(
        "recommend",
        f"{len(used)} ratings, the last {len(used) - later} predicted, among {len(catalogue.ids)} movies; 95 % intervals,"
        " bootstrap over users",
        seed,
        ("", "predictions", "hit rate@10", "NDCG@10", "hotindex' margin: hit rate", "NDCG"),
    )
    _known(report, {name: [one for one in found if one.known] for name, found in outcomes.items()}, seed)
    _by_group(report, outcomes)
    _live(report, live.measure(catalogue, used, round(INTERACTIONS * min(1.0, scale)), seed))
    return report


def _known(report: Report, outcomes: dict[str, list[Outcome]], seed: int) -> None:
    for name, found in outcomes.items():
        means = {metric: mean(found, metric) for metric in METRICS}
        row = [name, str(len(found)), *(f"{value:.4f}" for value in means.values())]
        fact: dict[str, object] = {"section": "predictions", "name": name, "count": len(found), **means}
        if name != OURS:
            margins = {metric: margin(outcomes[OURS], found, metric, np.random.default_rng(seed)) for metric in METRICS}
            row += [str(one) for one in margins.values()]
            fact |= {f"{metric}_margin": asdict(one) for metric, one in margins.items()}
            for metric, one in margins.items() if name in BASELINES else ():
                report.targets.append(
                    Target(f"{metric}@10: margin's lower bound against {name}", one.low, 0.0, at_least=True)
                )
        report.rows.append(row)
        report.results.append(fact)


def _by_group(report: Report, outcomes: dict[str, list[Outcome]]) -> None:
    for group, belongs in _GROUPS.items():
        for name, found in outcomes.items():
            part = [one for one in found if belongs(one)]
            means = {metric: mean(part, metric) for metric in METRICS}
            report.rows.append((f"{name}, {group}", str(len(part)), *(f"{value:.4f}" for value in means.values())))
            report.results.append({"section": "groups", "name": name, "group": group, "count": len(part), **means})


def _live(report: Report, steps: dict[str, Percentiles]) -> None:
    for name, times in steps.items():
        report.rows.append((f"live, one core: {name}", str(times.count), f"{times} ms p50 / p99"))
        report.results.append({"section": "live", "step": name, **asdict(times)})
    report.targets.append(Target("an interaction to its recommendations, p50 ms", steps[live.WHOLE].p50, LIVE_MS))
