"""The engine: what updates do to recall and search time, how fast writes are taken, what saving and starting cost.

Real embeddings, grown with seeded noise. The subject is a collection in service as a gateway runs it, without the sockets;
where the gateway starts, it is the process. Rivals run in the same run, on the same vectors and parameters (M 16,
ef_construction 100, ef 64, k 10).
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

import uvloop

from bench.engine import churn, filters, load, plots, restart, steady, subject
from bench.harness import Report, Target

COUNT = 30_000
LARGE = 160_000
IMAGES = Path(__file__).parent.parent.parent / "docs" / "img"


def run(seed: int, scale: float) -> Report:
    """Run the benchmark."""
    count, large = round(COUNT * scale), round(LARGE * scale)
    report = Report(
        "engine",
        f"one collection of {count} and one of {large} x 384, real embeddings with noise",
        seed,
        ("what", "hotindex", "beside it", ""),
    )
    with tempfile.TemporaryDirectory() as folder, subject.interpreter_as_served():
        collections = Path(folder) / "data" / "collections"
        collections.mkdir(parents=True)
        _churn(report, uvloop.run(churn.run(Path(folder), count, seed)), draw=scale == 1)
        _dead_shares(report, uvloop.run(churn.dead_shares(Path(folder), count // 2, seed)))
        _rates(report, uvloop.run(load.bursts(Path(folder), count, seed)))
        _filters(report, *uvloop.run(filters.run(Path(folder), seed)))
        _bulk(report, uvloop.run(load.bulk(collections, large, seed)))
        _steady(report, *uvloop.run(steady.run(collections, large, seed)))
        _restart(report, restart.run(Path(folder) / "data", collections / "raw.hnsw", large, seed))
    return report


def _churn(report: Report, points: list[churn.Point], *, draw: bool) -> None:
    for point in points:
        rate = f"{point.updates_per_s:,.0f} updates/s" if point.updates_per_s else ""
        shown = f"recall@10 {point.recall:.4f}, search p50 / p99 {point.search} ms"
        first, second = (shown, "") if point.name == "hotindex" else ("", shown)
        report.rows.append((f"{point.name}, each changed {point.churn:g} times", first, second, rate))
        report.results.append({"section": "churn", **asdict(point)})
    at = {(point.name, point.churn): point for point in points}
    for rounds in (1, churn.ROUNDS):
        ours, fresh = at["hotindex", rounds], at["fresh graph", rounds]
        report.targets.append(
            Target(f"recall after {rounds} rounds of churn, below a fresh graph's", fresh.recall - ours.recall, 0.005)
        )
        report.targets.append(
            Target(
                f"search after {rounds} rounds of churn / fresh graph's, p50", ours.index.p50 / fresh.search.p50, 1.5
            )
        )
    sustained = median(p.updates_per_s or 0.0 for p in points if p.name == "hotindex" and p.churn)
    in_place = at["hnswlib in place", 1].updates_per_s
    assert in_place, "it was updated"
    report.targets.append(Target("sustained updates / hnswlib in place", sustained / in_place, 2.0, at_least=True))
    if draw:
        plots.draw(points, IMAGES)


def _dead_shares(report: Report, shares: list[churn.DeadShare]) -> None:
    for one in shares:
        cost = f"a rebuild then: {one.insertions:.1f} insertions an update"
        shown = f"search p50 / p99 {one.search} ms, recall {one.recall:.4f}"
        report.rows.append((f"{one.share:.0%} of a graph dead", shown, "", cost if one.share else ""))
        report.results.append({"section": "dead shares", **asdict(one)})


def _rates(report: Report, rates: load.Rates) -> None:
    report.rows.append((f"burst of {load.BURST} updates", f"{median(rates.burst):,.0f} /s acknowledged", "", ""))
    report.rows.append(("changes of metadata", f"{median(rates.metadata):,.0f} /s acknowledged", "", ""))
    report.results.append({"section": "rates", **asdict(rates)})
    report.targets.append(Target("burst of updates, acknowledged /s", median(rates.burst), 20_000, at_least=True))
    report.targets.append(Target("changes of metadata, acknowledged /s", median(rates.metadata), 20_000, at_least=True))
    report.targets.append(Target("vectors that changes of metadata touched", rates.graph_touched, 0))


def _filters(report: Report, found: list[filters.Filtered], ways: list[filters.SwitchOver]) -> None:
    for one in found:
        first = f"first use {one.first} ms, indexed {one.first_indexed} ms"
        shown = f"recall {one.recall:.3f}, p50 / p99 {one.warm} ms"
        report.rows.append((f"filter that allows {one.selectivity:.1%}", shown, "", first))
        report.results.append({"section": "filters", **asdict(one)})
        report.targets.append(Target(f"filter {one.selectivity:.1%}: recall", one.recall, 0.97, at_least=True))
        report.targets.append(Target(f"filter {one.selectivity:.1%}: p50 ms", one.warm.p50, 5.0))
    for way in ways:
        shown = f"exact {way.exact_ms:.2f} ms, graph {way.graph_ms:.2f} ms"
        report.rows.append((f"{way.allowed} allowed", shown, "", f"taken: {way.taken}"))
        report.results.append({"section": "switch-over", **asdict(way)})


def _bulk(report: Report, bulk: load.BulkLoad) -> None:
    for ours, raw in zip(bulk.hotindex_s, bulk.raw_s, strict=True):
        report.rows.append(("bulk load until all is in the graph", f"{ours:.1f} s", f"add_items {raw:.1f} s", ""))
    report.results.append({"section": "bulk", **asdict(bulk)})
    report.targets.append(Target("bulk load / raw add_items", sum(bulk.hotindex_s) / sum(bulk.raw_s), 1.25))


def _steady(report: Report, searches: steady.Searches, stalls: steady.Stalls) -> None:
    raw = f"knn_query {searches.raw} ms, recall {searches.raw_recall:.4f}"
    report.rows.append(("search, quiet: labels and scores", f"p50 / p99 {searches.index} ms", raw, ""))
    report.rows.append(("search, quiet: with documents", f"{searches.whole} ms, recall {searches.recall:.4f}", "", ""))
    beside = ", ".join(str(window) for window in searches.writing)
    report.rows.append((f"search beside {searches.written_per_s:.0f} writes/s, by windows", f"{beside} ms", "", ""))
    report.rows.append(
        (
            "loop stalls while saving, beside writes",
            f"p99.9 {median(stalls.p999):.1f} ms, longest {stalls.longest:.1f} ms",
            f"save_index {stalls.raw_longest:.0f} ms",
            f"saved in {stalls.snapshot_s:.1f} s",
        )
    )
    report.results += [{"section": "search", **asdict(searches)}, {"section": "stalls", **asdict(stalls)}]
    report.targets += [
        Target("search, quiet / raw knn_query, p50", searches.index.p50 / searches.raw.p50, 1.3),
        Target("its recall below raw knn_query's", searches.raw_recall - searches.recall, 0.005),
        Target("search beside writes, p99 ms", median(window.p99 for window in searches.writing), 6.0),
        Target(f"of {searches.probed} writes not in the next search", searches.never_found, 0),
        Target("event loop while saving, p99.9 ms", median(stalls.p999), 30.0),
    ]


def _restart(report: Report, restarted: restart.Restart) -> None:
    report.rows.append(
        ("start to first right answer", f"{restarted.first_answer_s:.2f} s", f"load_index {restarted.raw_s:.2f} s", "")
    )
    report.rows.append(
        (
            "resident memory",
            f"{restarted.bytes_per_vector:.0f} bytes a vector",
            f"hnswlib {restarted.raw_bytes_per_vector:.0f}",
            "",
        )
    )
    report.results.append({"section": "restart", **asdict(restarted)})
    report.targets += [
        Target("start / interpreter and raw load_index", restarted.first_answer_s / restarted.raw_s, 1.5),
        Target("memory / raw hnswlib's", restarted.bytes_per_vector / restarted.raw_bytes_per_vector, 1.3),
    ]
