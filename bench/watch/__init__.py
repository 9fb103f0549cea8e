"""Standing queries: changes a second that the core applies to many watches, beside searching again for every one.

No gateway and no socket: one thread in a process of its own, with real embeddings. Timed are the commits of 64 changes,
the exact searches for watches that ran short, and the differences, until the last; making the changes and checking the
answers are not. Searching again is timed on a sample of watches, exactly, by the same arithmetic, in the same run.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

import numpy as np

from bench.harness import Report, Target
from bench.watch.core import Core, Figures

WATCHES = {10_000: 5000.0, 100_000: 500.0}
BATCHES = 100
AGAIN, EXTRA_BYTES = 500.0, 4096.0


def run(seed: int, scale: float) -> Report:
    """Run the benchmark; a scale under 1 means fewer watches and fewer changes."""
    report = Report(
        "watch",
        "commits of 64 changes applied to standing queries (k=10, 384-d), with refills and differences; one core",
        seed,
        (
            "watches",
            "updates",
            "updates/s: processor, clock",
            "refills",
            "equal",
            "bytes a watch",
            "searching again, /s",
        ),
    )
    batches = max(2, round(BATCHES * scale))
    for (full, least), watches in zip(WATCHES.items(), _scaled(scale), strict=True):
        one = _alone(seed, watches, batches)
        per_s, by_clock, again = one.updates / one.thread_s, one.updates / one.clock_s, 1 / one.again_s
        report.rows.append(
            (
                f"{watches:,}",
                f"{one.updates:,}",
                f"{per_s:,.0f}, {by_clock:,.0f}",
                f"{one.refills:,}",
                f"{one.equal:.3f}",
                f"{one.extra_bytes:,.0f}",
                f"{again:.4f}",
            )
        )
        report.results.append(asdict(one) | {"updates_per_s": per_s, "again_per_s": again})
        report.targets.append(Target(f"{watches:,} watches, updates/s", per_s, least, at_least=True))
        report.targets.append(Target(f"{watches:,} watches, equal answers", one.equal, 1.0, at_least=True))
        if full == min(WATCHES):
            report.targets.append(
                Target(f"{watches:,} watches, / searching again", per_s / again, AGAIN, at_least=True)
            )
        else:
            name = f"{watches:,} watches, bytes each besides the vector"
            report.targets.append(Target(name, one.extra_bytes, EXTRA_BYTES))
    return report


def _scaled(scale: float) -> list[int]:
    return [max(100, round(watches * min(1.0, scale))) for watches in WATCHES]


def _alone(seed: int, watches: int, batches: int) -> Figures:
    """Measure in a new process, as BLAS reads how many threads it may have when it is loaded."""
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_measure, seed, watches, batches).result()
    finally:
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = before


def _measure(seed: int, watches: int, batches: int) -> Figures:
    return Core(watches, np.random.default_rng(seed)).measure(batches)
