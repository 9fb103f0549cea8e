"""Fan-out: one event to many subscribers, and what those who are slow, many or late cost the others.

Servers run on one core; subscribers, in a process of their own, check every byte and count every event, and the clock
stops when the last has everything. Rivals run in the same run, by turns: the raw floor (a prebuilt frame written straight
to the descriptors), a prebuilt frame on each transport, `websockets.broadcast`, picows, and Node's ws where npm is there.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from bench.fanout import gateway
from bench.fanout.audience import Outcome, Task
from bench.fanout.processes import Audience, RivalServer, node_ready, rival
from bench.fanout.servers import GROUPS, KINDS
from bench.harness import Report, Target
from gateway.commands.process import GatewayProcess

SUBSCRIBERS = (1000, 5000)
DELIVERIES = 400_000
ROUNDS = 4
CROWD = 8000
AUDIENCE = 1000
DURABLE_S = 8.0
STALLED_S = 2.0
DURABLE_RATE = 3000
IDLE = 5000
MISSED, DOCUMENTS = 100_000, 10_000
FILTERED = [f'{{"action":"subscribe","collection":"bench","filter":{{"group":{{"$gte":{i}}}}}}}' for i in range(GROUPS)]


def run(seed: int, scale: float) -> Report:
    """Run the benchmark."""
    report = Report(
        "fanout",
        "events to many subscribers; server on one core, subscribers and producer on the others",
        seed,
        ("what", "subscribers", "result"),
    )
    rounds = max(1, round(ROUNDS * scale))
    vectors = np.random.default_rng(seed).standard_normal((4096, gateway.DIMENSION)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        _rates(report, Path(folder), rounds)
        _filters(report, Path(folder), rounds)
        with gateway.on_its_core(Path(folder) / "data") as served:
            _durable(report, served, vectors, rounds)
            _stalled(report, served, vectors, rounds)
        with gateway.on_its_core(Path(folder) / "resume") as served:
            _resume(report, served, vectors, max(1, rounds // 2))
        with gateway.on_its_core(Path(folder) / "crowd") as served:
            _crowd(report, served, vectors)
        with gateway.on_its_core(Path(folder) / "idle") as served, rival("transport", Path(folder)) as bare:
            ours, theirs = gateway.memory(served, vectors, bare.process.pid, bare.url, IDLE)
        report.rows.append(("idle, memory each", str(IDLE), f"{ours:,.0f} bytes, bare websockets {theirs:,.0f}"))
        report.results.append({"section": "idle", "bytes": ours, "bare_bytes": theirs})
        report.targets.append(Target("idle subscriber, memory / bare websockets connection's", ours / theirs, 1.3))
    return report


def _publish(server: RivalServer, subscribers: int, events: int, commands: list[str] | None) -> tuple[float, Outcome]:
    """Return deliveries a second until all have everything, and the outcome."""
    with Audience(Task(server.url, subscribers, '"last":true', commands)) as audience:
        started = time.monotonic()
        server.publish(events)
        outcome = audience.outcome()
        return outcome.deliveries / (outcome.done - started), outcome


def _rates(report: Report, folder: Path, rounds: int) -> None:
    kinds = [*KINDS, "node ws"] if node_ready(folder) else [*KINDS]
    for subscribers in SUBSCRIBERS:
        rates: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds):
            for kind in kinds if number % 2 else reversed(kinds):
                with rival(kind, folder) as server:
                    commands = [gateway.SUBSCRIBE] if kind == "hotindex" else None
                    rate, _ = _publish(server, subscribers, DELIVERIES // subscribers, commands)
                    rates[kind].append(rate)
        middle = {kind: median(found) for kind, found in rates.items()}
        for kind in kinds:
            shown = f"{middle[kind]:,.0f} deliveries/s ({min(rates[kind]):,.0f} to {max(rates[kind]):,.0f})"
            report.rows.append((kind, f"{subscribers:,}", shown))
            facts = {"server": kind, "subscribers": subscribers, "deliveries_per_s": rates[kind]}
            report.results.append({"section": "rates", **facts})
        limits = {"descriptor": 0.9, "transport": 1.0, "broadcast": 1.5, "picows": 1.0, "node ws": 1.0}
        for kind, limit in limits.items():
            if kind in middle:
                name = f"{subscribers:,} subscribers, deliveries/s / {kind}'s"
                report.targets.append(Target(name, middle["hotindex"] / middle[kind], limit, at_least=True))


def _filters(report: Report, folder: Path, rounds: int) -> None:
    """Compare the processor time of a delivery with and without filters; each filter lets a part of the events through."""
    costs: dict[str, list[float]] = {"no filter": [], f"{GROUPS} filters": []}
    events = DELIVERIES // AUDIENCE
    with rival("hotindex", folder) as server:
        for _ in range(rounds):
            for name, commands in zip(costs, ([gateway.SUBSCRIBE], FILTERED), strict=True):
                before = server.cpu_s()
                _, outcome = _publish(server, AUDIENCE, events, commands)
                costs[name].append((server.cpu_s() - before) / outcome.deliveries * 1e6)
    plain, filtered = (median(found) for found in costs.values())
    for name, found in costs.items():
        report.rows.append((name, "1,000", f"{median(found):.2f} µs of processor time a delivery"))
        report.results.append({"section": "filters", "name": name, "cpu_us": found})
    report.targets.append(Target(f"{GROUPS} filters: cost of a delivery / without filters", filtered / plain, 1.5))


def _durable(report: Report, served: GatewayProcess, vectors: gateway.Vectors, rounds: int) -> None:
    kinds = {"one event a frame": gateway.SUBSCRIBE, "batch": gateway.BATCH}
    found: dict[str, list[gateway.Steady]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, command in kinds.items():
            steady = gateway.steady(served, vectors, AUDIENCE, DURABLE_RATE, DURABLE_S, command)
            found[name].append(uvloop.run(steady))
    costs = {name: median(one.cpu_us for one in runs) for name, runs in found.items()}
    for name, runs in found.items():
        shown = ", ".join(f"{one.outcome.p50_ms:.1f} / {one.outcome.p99_ms:.1f}" for one in runs)
        cost = f"{costs[name]:.0f} µs of processor time an event"
        report.rows.append((f"3,000 durable events/s, {name}", "1,000", f"p50 / p99 {shown} ms; {cost}"))
        report.results.append({"section": "durable", "name": name, "rounds": [asdict(one) for one in runs]})
    plain, batch = costs.values()
    p99_ms = median(one.outcome.p99_ms for one in found["one event a frame"])
    report.targets.append(Target("3,000 durable events/s, p99 ms", p99_ms, 30.0))
    report.targets.append(Target("with batch: processor time an event / without", batch / plain, 0.7))


def _stalled(report: Report, served: GatewayProcess, vectors: gateway.Vectors, rounds: int) -> None:
    one = uvloop.run(gateway.stalled(served, vectors, AUDIENCE - 1, 100, STALLED_S, rounds))
    alone, beside = (median(o.p99_ms for o in outcomes) for outcomes in (one.alone, one.beside))
    report.rows.append(("100 events/s, others", "999", f"p99 {alone:.1f} ms"))
    report.rows.append(("beside one that doesn't read", "999", f"p99 {beside:.1f} ms"))
    equal = f"{one.states:,} states, {'equal' if one.equal else 'DIFFERENT'} once it reads again"
    report.rows.append(("one that doesn't read", "1", f"{one.bytes_each / 1024:,.0f} KiB; {equal}"))
    report.results.append({"section": "stalled", **asdict(one)})
    report.targets += [
        Target("beside one that doesn't read: others' p99 / without", beside / alone, 1.2),
        Target("one that doesn't read: KiB", one.bytes_each / 1024, 512),
        Target("once it reads again: states that differ", 0 if one.equal else 1, 0),
    ]


def _resume(report: Report, served: GatewayProcess, vectors: gateway.Vectors, rounds: int) -> None:
    one = uvloop.run(gateway.resume(served, vectors, AUDIENCE // 10, MISSED, DOCUMENTS, rounds))
    quiet, beside = (median(o.p99_ms for o in outcomes) for outcomes in (one.quiet, one.beside))
    shown = f"{one.states:,} states in {median(one.seconds):.2f} s"
    report.rows.append((f"resume after {one.missed:,} changes", "1", shown))
    report.rows.append(("others meanwhile, 200 events/s", "100", f"p99 {beside:.1f} ms, without {quiet:.1f} ms"))
    report.results.append({"section": "resume", **asdict(one)})
    report.targets += [
        Target(f"resume after {one.missed:,} changes, s", median(one.seconds), 1.0),
        Target("others' p99 meanwhile / without", beside / quiet, 2.0),
    ]


def _crowd(report: Report, served: GatewayProcess, vectors: gateway.Vectors) -> None:
    one = uvloop.run(gateway.crowd(served, vectors, CROWD))
    report.rows.append(("coming at once", f"{CROWD:,}", f"all subscribed in {one.served_s:.1f} s"))
    report.results.append({"section": "crowd", **asdict(one)})
    report.targets += [
        Target(f"{CROWD:,} at once: all subscribed, s", one.served_s, 10.0),
        Target("an event after it reached", one.deliveries, CROWD, at_least=True),
    ]
