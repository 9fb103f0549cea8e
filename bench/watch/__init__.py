"""Standing queries: what they cost by themselves, through a gateway, and of users, beside searching again.

The core has no gateway and no socket: one thread on one core, in a process of its own, with real embeddings. Timed are
commits, the exact searches for watches that ran short, and the differences, until the last; making the changes and checking
the answers are not. Figures of one core are of processor time, which is the clock's where nothing else runs there.
Searching again is timed on a sample of changes, in the same run; events and what users do from when they were due.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from bench.harness import Percentiles, Report, Target
from bench.watch import gateway, users
from bench.watch.changes import MIX, SIZE
from bench.watch.core import Core, Followed
from bench.watch.rivals import Again, again
from gateway.app import tune_interpreter

DOCUMENTS, LEAST_DOCUMENTS = 31_245, 4_000
SINGLE_ROUNDS, CHANGES_AGAIN = 2, 3
MOST_CHECKED = 25_000
AGAIN, EXTRA_BYTES = 500.0, 4096.0
TOLD, RECOMMENDED_MS = 1.5, 20.0


@dataclass(frozen=True, slots=True)
class Size:
    """How many watches, how many changes a second they are to take, and how many rounds of SIZE changes are tried."""

    watches: int
    least_per_s: float
    rounds: int
    against_rivals: bool


SIZES = Size(10_000, 5000.0, 150, against_rivals=True), Size(100_000, 500.0, 30, against_rivals=False)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the core. Of `checked` watches' answers `equal` are brute force's."""

    watches: int
    followed: Followed
    checked: int
    equal: int
    bytes_each: float
    singly: Followed | None
    """In commits of one change."""
    again: list[Again]
    """The rivals; none of these, nor commits of one change, where they weren't asked for."""


def run(seed: int, scale: float) -> Report:
    """Run the benchmark; a scale under 1 means fewer watches, documents and users, and fewer changes."""
    documents = max(LEAST_DOCUMENTS, round(DOCUMENTS * min(1.0, scale)))
    report = Report(
        "watch",
        f"standing queries, k=10, 384-d, among {documents:,} documents; {MIX}",
        seed,
        ("what", "hotindex", "rival", ""),
    )
    for size in SIZES:
        watches, rounds = max(100, round(size.watches * min(1.0, scale))), max(8, round(size.rounds * scale))
        one = _alone(seed, documents, watches, rounds, CHANGES_AGAIN if size.against_rivals else 0)
        _core(report, one, size.least_per_s)
        if size.against_rivals:
            _again(report, one)
        else:
            _memory(report, one)
    _gateway(report, gateway.measure(seed, scale))
    _users(report, users.measure(seed, scale))
    return report


def _alone(seed: int, documents: int, watches: int, rounds: int, changes_again: int) -> Figures:
    """Measure in a new process, as BLAS reads how many threads it may have when it is loaded."""
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_measure, seed, documents, watches, rounds, changes_again).result()
    finally:
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = before


def _measure(seed: int, documents: int, watches: int, rounds: int, changes_again: int) -> Figures:
    tune_interpreter()  # as a gateway does
    rng = np.random.default_rng(seed)
    core = Core(documents, watches, rng)
    followed = core.follow(rounds)
    singly = core.follow(min(rounds, SINGLE_ROUNDS), 1) if changes_again else None
    rivals = again(core, changes_again, rng) if changes_again else []
    equal, checked = core.equal(MOST_CHECKED)
    return Figures(watches, followed, checked, equal, core.bytes_each, singly, rivals)


def _core(report: Report, one: Figures, least: float) -> None:
    name = f"{one.watches:,} watches"
    for followed, size in ((one.followed, SIZE), (one.singly, 1)):
        if followed is None:
            continue
        times = Percentiles.of(followed.commits_s)
        report.rows += [
            (
                f"{name}, commits of {size}: updates/s",
                f"{followed.per_s:,.0f}",
                "",
                f"by the clock {followed.per_clock_s:,.0f}; {followed.updates:,} updates, {followed.refills:,} refills,"
                f" {followed.differences:,} differences",
            ),
            (f"{name}, a commit of {size}, p50 / p99 ms", str(times), "", f"{times.count:,} commits, by the clock"),
        ]
        facts = {"updates": followed.updates, "refills": followed.refills, "differences": followed.differences}
        rates = {"updates_per_s": followed.per_s, "updates_per_clock_s": followed.per_clock_s}
        report.results.append(
            {"section": "core", "watches": one.watches, "commit": size, **facts, **rates, "commit_ms": asdict(times)}
        )
    checked = f"of {'all' if one.checked == one.watches else 'a sample of'} {one.checked:,}, compared with brute force"
    report.rows.append((f"{name}, equal answers", f"{one.equal:,}", "", checked))
    report.targets += [
        Target(f"{name}, updates/s", one.followed.per_s, least, at_least=True),
        Target(f"{name}, equal answers", one.equal, one.checked, at_least=True),
    ]


def _again(report: Report, one: Figures) -> None:
    assert one.singly is not None, "it goes with the rivals"
    best = min(one.again, key=lambda rival: rival.mean_s)
    for rival in one.again:
        searches = len(rival.seconds)
        report.rows.append(
            (
                f"searching again for all {one.watches:,}, s",
                "",
                f"{rival.mean_s:.3f}",
                f"{rival.name}; mean of {searches} changes; recall {rival.recall:.4f}",
            )
        )
        report.results.append({"section": "again", "watches": one.watches, **asdict(rival)})
    at_once, singly = one.followed.per_s * best.mean_s, one.singly.per_s * best.mean_s
    report.rows += [
        ("as many changes/s as by searching at each", f"{at_once:,.0f} x", "1", f"commits of {SIZE}; {best.name}"),
        ("the same, a change a commit", f"{singly:,.0f} x", "1", ""),
        (f"as by searching once for each {SIZE}", f"{at_once / SIZE:,.0f} x", "1", f"commits of {SIZE}"),
    ]
    ratios = {"of_changes": at_once, "of_changes_singly": singly, "of_commits": at_once / SIZE}
    report.results.append({"section": "ratios", "watches": one.watches, "rival": best.name, **ratios})
    report.targets.append(Target(f"{one.watches:,} watches, / searching at each change", at_once, AGAIN, at_least=True))


def _memory(report: Report, one: Figures) -> None:
    extra = one.bytes_each - 4 * Core.DIMENSION
    name = f"{one.watches:,} watches, bytes each besides the vector"
    report.rows.append((name, f"{extra:,.0f}", "", "resident, or allocated where that is more"))
    report.results.append({"section": "memory", "watches": one.watches, "extra_bytes": extra})
    report.targets.append(Target(name, extra, EXTRA_BYTES))


def _gateway(report: Report, one: gateway.Figures) -> None:
    checked = one.checked
    name = f"{one.watches:,} watches, {gateway.RATE:g} events/s"
    report.rows += [
        (
            f"{name}: event → watcher told, p50 / p99 ms",
            str(one.told),
            str(one.room),
            f"the room's subscriber; {one.aimed:,} events that change an answer, of {one.events:,}",
        ),
        ("without watches", "", str(one.room_alone), "the room's subscriber"),
        ("events sent after they were due", str(one.late), "", "in all these times"),
        (
            "lists right at the end",
            f"{checked.right:,}",
            "",
            f"recall {checked.recall:.4f}; equal to brute force {checked.equal:,}; exact ones {checked.exact:,};"
            f" {one.updates:,} updates came",
        ),
    ]
    ratio = one.told.p50 / one.room.p50
    report.results.append({"section": "gateway", "told_of_room": ratio, **asdict(one)})
    report.targets += [
        Target(f"{name}: p50 of event → watcher / → room", ratio, TOLD),
        Target(f"{name}: changes not told", one.lost, 0),
        Target(f"{name}: lists right", checked.right, one.watches, at_least=True),
    ]


def _users(report: Report, one: users.Figures) -> None:
    name = f"{one.users:,} users, {users.RATE:g} interactions/s"
    report.rows += [
        (
            f"{name}: → list at the user's socket, p50 / p99 ms",
            str(one.told),
            str(one.asked),
            "asking after the acknowledgement",
        ),
        (
            "the p99 of each second: median, largest ms",
            f"{np.median(one.told_p99_by_second):.2f} / {max(one.told_p99_by_second):.2f}",
            "",
            f"the machine with nothing else to do takes {one.idle} ms (longest {one.idle.longest:.2f}) for the same work",
        ),
        (
            "acknowledged",
            str(one.acknowledged),
            "",
            f"{one.interactions:,} interactions, {one.lost:,} without an update",
        ),
        ("lists that differ from a fresh search", f"{one.differing:,}", "", f"{one.behind:,} before they were touched"),
    ]
    report.results.append({"section": "users", **asdict(one)})
    report.targets += [
        Target(f"{name}: → recommendations, p99 ms", one.told.p99, RECOMMENDED_MS),
        Target(f"{name}: interactions without an update", one.lost, 0),
        Target(f"{name}: lists that differ from a fresh search", one.differing, 0),
    ]
