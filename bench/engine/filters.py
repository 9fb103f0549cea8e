"""Filtered searches, by how many documents the filter allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.engine import subject
from bench.engine.data import Matrix, movies, noisy
from bench.harness import Percentiles
from gateway.engine import search as planner
from gateway.engine.collection import Collection
from gateway.engine.filter import Filter
from gateway.engine.types import Put, Spec
from gateway.node.hosted import Hosted

SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
ALLOWED = (125, 250, 500, 1000, 2000, 4000, 8000)
QUERIES = 100
FIRST_USES = 15


@dataclass(frozen=True, slots=True)
class Filtered:
    """`warm`: a filter used before. `first`: one never seen, by reading all metadata, or by an index over its field."""

    selectivity: float
    recall: float
    warm: Percentiles
    first: Percentiles
    first_indexed: Percentiles


@dataclass(frozen=True, slots=True)
class SwitchOver:
    """The two ways to search `allowed` documents, and which one the planner takes. In milliseconds, p50."""

    allowed: int
    exact_ms: float
    graph_ms: float
    taken: str


async def run(folder: Path, seed: int) -> tuple[list[Filtered], list[SwitchOver]]:
    rng = np.random.default_rng(seed)
    rows = movies()
    queries = noisy(rows[rng.integers(0, len(rows), QUERIES)], rng, 0.3)
    share = rng.permutation(len(rows)) / len(rows)
    puts = [
        Put(f"d{i}", row, metadata={"share": float(share[i]), "title": f"Movie number {i}", "tags": ["Drama", "War"]})
        for i, row in enumerate(rows)
    ]
    plain_spec, indexed_spec = Spec("plain", rows.shape[1]), Spec("indexed", rows.shape[1], indexes=("share",))
    async with (
        subject.service(folder / "plain", plain_spec) as plain,
        subject.service(folder / "indexed", indexed_spec) as indexed,
    ):
        await _load(plain, puts)
        await _load(indexed, puts)
        filtered = [
            _measure(plain.collection, indexed.collection, queries, selectivity, rng) for selectivity in SELECTIVITIES
        ]
        return filtered, [_switch_over(plain.collection, queries, allowed) for allowed in ALLOWED]


async def _load(hosted: Hosted, puts: list[Put]) -> None:
    await subject.write(hosted, puts)
    await subject.settled(hosted)


def _measure(
    plain: Collection, indexed: Collection, queries: Matrix, selectivity: float, rng: np.random.Generator
) -> Filtered:
    where = [Filter({"share": {"$lt": selectivity}})] * len(queries)
    expected, _ = subject.search_where(plain, queries, where, exact=True)
    found, warm_s = subject.search_where(plain, queries, where)
    never_seen = [
        Filter({"share": {"$gte": start, "$lt": start + selectivity}})
        for start in rng.uniform(0, 1 - selectivity, FIRST_USES).tolist()
    ]
    _, first_s = subject.search_where(plain, queries[:FIRST_USES], never_seen)
    _, indexed_s = subject.search_where(indexed, queries[:FIRST_USES], never_seen)
    hits = sum(len(a & b) for a, b in zip(found, expected, strict=True))
    return Filtered(
        selectivity,
        hits / sum(map(len, expected)),
        Percentiles.of(warm_s),
        Percentiles.of(first_s),
        Percentiles.of(indexed_s),
    )


def _switch_over(collection: Collection, queries: Matrix, allowed: int) -> SwitchOver:
    where = [Filter({"share": {"$lt": allowed / collection.document_count}})] * len(queries)
    subject.search_where(collection, queries[:1], where[:1])
    times = {}
    for way in ("exact", "graph"):
        with _always(way):
            times[way] = Percentiles.of(subject.search_where(collection, queries, where)[1]).p50
    taken_exact = planner.few(allowed, collection.document_count, 10, collection.spec.ef_search)
    return SwitchOver(allowed, times["exact"], times["graph"], "exact" if taken_exact else "graph")


@contextmanager
def _always(way: str) -> Iterator[None]:
    few = planner.few
    planner.few = lambda *_: way == "exact"
    try:
        yield
    finally:
        planner.few = few
