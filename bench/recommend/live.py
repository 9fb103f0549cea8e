"""What recommendations cost where they are computed: after an interaction of a user, on one core.

From the interaction with its item's vector to ten ids: count it, learn it, ask the graph what is near, score, choose. The
vectors of what is popular are at hand; those of what is near come from a table, where the gateway takes them from the hits.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bench.harness import Percentiles, one_core
from bench.recommend.data import Catalogue, Rating
from bench.recommend.recommenders import K
from gateway.engine.graph import Graph
from gateway.engine.types import Spec
from gateway.users import profile as profiles
from gateway.users import ranking
from gateway.users.popularity import Popularity
from gateway.users.profile import Interaction, Profile
from gateway.users.ranking import NEAREST, POPULAR

WHOLE = "an interaction"
_EF = 128


def measure(catalogue: Catalogue, ratings: Sequence[Rating], count: int, seed: int) -> dict[str, Percentiles]:
    """Return the times of each step over `count` interactions, the users' histories being as all `ratings` left them."""
    graph = Graph(Spec("movies", catalogue.vectors.shape[1], ef_search=_EF))
    graph.insert(catalogue.vectors, np.arange(len(catalogue.ids)), threads=os.cpu_count() or 1)
    popularity = Popularity()
    users: dict[str, Profile] = defaultdict(lambda: profiles.EMPTY)
    for rating in ratings:
        event = catalogue.event(rating)
        popularity.add(event.item_id, event.weight, event.at)
        users[rating.user] = profiles.learn(users[rating.user], event)
    now = ratings[-1].at
    drawn = np.random.default_rng(seed).integers(0, len(ratings), count)
    steps: dict[str, list[float]] = defaultdict(list)
    with one_core():
        for position in drawn.tolist():
            rating = ratings[position]
            now += 1
            _interaction(catalogue, graph, popularity, users[rating.user], catalogue.event(rating, now), steps)
    return {name: Percentiles.of(times) for name, times in steps.items()}


def _interaction(
    catalogue: Catalogue,
    graph: Graph,
    popularity: Popularity,
    profile: Profile,
    event: Interaction,
    steps: dict[str, list[float]],
) -> None:
    began = time.perf_counter()
    popularity.add(event.item_id, event.weight, event.at)
    profile = profiles.learn(profile, event)
    learned = time.perf_counter()
    popular = popularity.top(POPULAR, event.at)
    listed = time.perf_counter()
    found = [graph.search(anchor, NEAREST, _EF)[0] for anchor in ranking.anchors(profile)]
    searched = time.perf_counter()
    rows = {*(catalogue.rows[one] for one, _ in popular), *(row for labels in found for row in labels.tolist())}
    candidates = catalogue.candidates(rows, profiles.seen(profile, event.at))
    scores = ranking.scores(profile, candidates, popularity, event.at)
    ranking.diversify(candidates.ids, candidates.vectors, scores, ranking.LAMBDA, K)
    done = time.perf_counter()
    steps["count and learn it"].append(learned - began)
    steps["list what is popular"].append(listed - learned)
    steps["find what is near"].append(searched - listed)
    steps["score and choose"].append(done - searched)
    steps[WHOLE].append(done - began)
