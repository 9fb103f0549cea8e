"""What benchmarks share: where they ran, percentiles, tables, JSON."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

_LIBRARIES = ("hotindex", "websockets", "uvloop", "hnswlib", "numpy", "msgspec")
_WORK, _REST_S = 50_000, 0.003


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and with what a benchmark ran."""

    machine: str
    cores: int
    memory_gib: int
    system: str
    versions: dict[str, str]
    at: str

    @classmethod
    def here(cls) -> Environment:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        return cls(
            machine=_cpu(),
            cores=os.cpu_count() or 1,
            memory_gib=round(memory / 2**30),
            system=platform.platform(),
            versions=versions | {name: version(name) for name in _LIBRARIES},
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cpu_s(pid: int) -> float:
    """Return the processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def one_core() -> Iterator[None]:
    """Keep all threads of this process on one core."""
    before = os.sched_getaffinity(0)
    try:
        _pin({min(before)})
        yield
    finally:
        _pin(before)


def _pin(cores: set[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of times, in milliseconds."""

    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Percentiles:
        p50, p99, longest = np.percentile(np.array(times_s) * 1e3, [50, 99, 100])
        return cls(len(times_s), float(p50), float(p99), float(longest))

    def __str__(self) -> str:
        return f"{self.p50:.2f} / {self.p99:.2f}"


def idle(seconds: float) -> Percentiles:
    """Return how long the same piece of work takes, of about a millisecond, again and again while nothing else is done.

    Where the longest are many times the median the machine itself stands still now and then, and whatever runs on it.
    """
    times, until = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        sum(range(_WORK))
        times.append(time.perf_counter() - began)
        time.sleep(_REST_S)
    return Percentiles.of(times)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure beside what it has to be at most, or at least."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        bound = f"at {'least' if self.at_least else 'most'} {self.limit:,g}"
        return f"{self.name}: {self.value:,.{3 if self.value < 10 else 0}f} (target {bound})"


@dataclass(slots=True)
class Report:
    """A benchmark's result: a table for people, all of it as JSON."""

    name: str
    times: str
    seed: int
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    results: list[dict[str, object]] = field(default_factory=list)
    environment: Environment = field(default_factory=Environment.here)

    @property
    def missed(self) -> bool:
        return any(not target.met for target in self.targets)

    def print(self) -> None:
        console = Console(highlight=False, width=max(140, Console().width))
        e = self.environment
        console.print(f"bench {self.name}: {self.times}", soft_wrap=True)
        console.print(f"{e.machine}, {e.cores} cores, {e.memory_gib} GiB, {e.system}, {e.at}", soft_wrap=True)
        console.print(
            ", ".join(f"{name} {v}" for name, v in e.versions.items()) + f", seed {self.seed}", soft_wrap=True
        )
        table = Table(*self.columns)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for target in self.targets:
            verdict = "met" if target.met else "MISSED"
            console.print(f"  {verdict:<7} {target}")

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        body = {
            "benchmark": self.name,
            "times": self.times,
            "seed": self.seed,
            "environment": asdict(self.environment),
            "targets": [{**asdict(target), "met": target.met} for target in self.targets],
            "results": self.results,
        }
        path.write_text(json.dumps(body, indent=2) + "\n")
        return path
