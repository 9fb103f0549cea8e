"""Three nodes on this machine that share a redis-server, beside one node alone and Redis alone.

Rounds of the nodes and of their rivals alternate, each after what the one before left to do in the background. Nothing is
pinned: on two cores three nodes, Redis and the clients share what the single node has to itself and its clients.

How Redis' commands are counted: `INFO commandstats` counts what clients send, and what scripts call as well. Of the
commands that scripts call (read off the scripts' text) only those are taken to have travelled that nodes send too, less
the scripts' own calls: PUBLISH, called once for each XADD, and HGETALL, called once for each TIME, by heartbeats. All
others travelled: EVALSHA, XRANGE, SISMEMBER, and so on. Heartbeats and audits of all three nodes are part of it; the one
INFO that the benchmark asks for in between is not.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from bench.cluster import clients
from bench.cluster.clients import Vectors, batches, upserts
from bench.cluster.measure import (
    Rates,
    Return,
    Steady,
    Times,
    bare_redis,
    comes_back,
    many_in_flight,
    one_at_a_time,
    steady,
)
from bench.cluster.nodes import COLLECTION, Site, quiet
from bench.cluster.redis import RedisMissing, RedisProcess, RedisSocket, Stored
from bench.harness import Percentiles, Report, Target
from gateway.bus.agreement import Keys

NODES = ("a", "b", "c")
ROUNDS = 6
EVENTS, WARM_UP = 250, 50
SINGLES = 4000
BATCHES, BATCH_DOCUMENTS = 100, 100
PRODUCERS, IN_FLIGHT, BATCHES_IN_FLIGHT = 4, 48, 4
RATE, STEADY_S = 1000.0, 10.0
MISSED, RETURNS = 10_000, 3
KEYS = Keys.of(COLLECTION)


def run(seed: int, scale: float) -> Report:
    """Run the benchmark. Exits where there is no redis-server."""
    vectors = np.random.default_rng(seed).standard_normal((4096, clients.DIMENSION)).astype(np.float32)
    report = Report(
        "cluster",
        "three nodes that share a redis-server, beside one node alone; 384-d upserts, MessagePack",
        seed,
        ("what", "one node", "three nodes", ""),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        try:
            redis = RedisProcess(path)
        except RedisMissing as error:
            sys.exit(f"bench cluster: {error}")
        report.environment.versions["redis-server"] = redis.version
        with redis, Site(path, ("alone",)) as alone, Site(path, NODES, redis.url) as cluster:
            uvloop.run(_measure(report, (alone, cluster), redis, vectors, scale))
    return report


async def _measure(
    report: Report, sites: tuple[Site, Site], redis: RedisProcess, vectors: Vectors, scale: float
) -> None:
    rounds = max(1, round(ROUNDS * scale))
    alone, cluster = sites
    for site in sites:
        # The first makes the collection, the others the documents.
        for count in (1, clients.DOCUMENTS - 1):
            await many_in_flight(site, upserts(site, vectors, count), count, 1, IN_FLIGHT, Rates())
    await _latency(report, sites, redis, vectors, rounds)
    await _writes(report, sites, vectors, rounds)
    await quiet(*sites)
    seconds = max(1.0, STEADY_S * scale)
    single = await steady(alone, vectors, RATE, seconds)
    await quiet(*sites)
    shared = await steady(cluster, vectors, RATE, seconds, redis)
    _steady(report, single, shared)
    await _memory(report, redis)
    await quiet(*sites)
    returns = []
    for _ in range(max(1, round(RETURNS * scale))):
        returns.append(await comes_back(cluster, NODES[-1], vectors, MISSED))
        await quiet(*sites)
    _returns(report, returns)
    await _digests(report, cluster)


async def _latency(
    report: Report, sites: tuple[Site, Site], redis: RedisProcess, vectors: Vectors, rounds: int
) -> None:
    times = {site.names: Times() for site in sites}
    bare_s: list[float] = []
    await quiet(*sites)
    message = await _latest_message(redis)
    for number in range(rounds):
        for site in sites if number % 2 else reversed(sites):
            await one_at_a_time(site, vectors, EVENTS, WARM_UP, times[site.names])
            await quiet(*sites)
        bare_s += await bare_redis(redis, message, EVENTS, WARM_UP)
    alone, cluster = times.values()
    acked = Percentiles.of(alone.ack_s), Percentiles.of(cluster.ack_s)
    arrived = Percentiles.of(alone.arrival_s), Percentiles.of(cluster.arrival_s)
    bare = Percentiles.of(bare_s)
    report.rows += [
        ("one at a time, acknowledged, p50 / p99 ms", *map(str, acked), ""),
        ("the subscriber has it (on b)", *map(str, arrived), f"bare Redis, {len(message):,} bytes: {bare}"),
    ]
    facts = {
        "acknowledged_ms": [asdict(one) for one in acked],
        "arrived_ms": [asdict(one) for one in arrived],
        "bare_redis_ms": asdict(bare),
    }
    report.results.append({"section": "latency", "message_bytes": len(message), **facts})
    limit = arrived[0].p50 + 3 * bare.p50
    report.targets.append(
        Target("a → subscriber on b, p50 ms / one node's + 3 x bare Redis'", arrived[1].p50, round(limit, 3))
    )


async def _latest_message(redis: RedisProcess) -> bytes:
    """Return the message of one event, as nodes publish it."""
    connection = await RedisSocket.connect(redis)
    entries = await connection.ask("XRANGE", KEYS.log, "-", "+", "COUNT", 1)
    connection.transport.abort()
    message: bytes = entries[0][1][1]
    return message


async def _writes(report: Report, sites: tuple[Site, Site], vectors: Vectors, rounds: int) -> None:
    rates = {kind: {site.names: Rates() for site in sites} for kind in ("upserts", "batches")}
    for number in range(rounds):
        for kind, found in rates.items():
            for site in sites if number % 2 else reversed(sites):
                await quiet(*sites)
                if kind == "upserts":
                    messages, documents, in_flight = upserts(site, vectors, SINGLES), SINGLES, IN_FLIGHT
                else:
                    messages = batches(site, vectors, BATCHES, BATCH_DOCUMENTS)
                    documents, in_flight = BATCHES * BATCH_DOCUMENTS, BATCHES_IN_FLIGHT
                await many_in_flight(site, messages, documents, PRODUCERS, in_flight, found[site.names])
    names = {"upserts": "upserts of one document", "batches": f"batches of {BATCH_DOCUMENTS}"}
    for kind, found in rates.items():
        alone, cluster = found.values()
        behind = f"all have it after another {median(cluster.behind_s) * 1e3:.0f} ms"
        cpu_us = (f"{median(one.cpu_us):.0f}" for one in (alone, cluster))
        report.rows += [
            (f"{names[kind]}, documents/s", _spread(alone.per_s), _spread(cluster.per_s), behind),
            ("processor time a document, µs", *cpu_us, "of all nodes together"),
        ]
        report.results.append(
            {"section": "writes", "kind": kind, "one_node": asdict(alone), "three_nodes": asdict(cluster)}
        )
        ratio = median(cluster.per_s) / median(alone.per_s)
        report.targets.append(Target(f"{names[kind]}, documents/s / one node's", ratio, 0.5, at_least=True))


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _steady(report: Report, single: Steady, shared: Steady) -> None:
    events = shared.events
    per_event = shared.sent.total() / events
    published = sum(map(len, shared.messages))
    load = f"{RATE:,.0f} events/s"
    both = [[Percentiles.of(times) for times in (one.times.ack_s, one.times.arrival_s)] for one in (single, shared)]
    commands = ", ".join(f"{name} {count:,}" for name, count in shared.sent.most_common())
    traffic = (
        f"from clients {shared.bytes_in / shared.seconds:,.0f}, to clients {shared.bytes_out / shared.seconds:,.0f}"
    )
    batches_ = f"{len(shared.messages):,} messages, {events / len(shared.messages):.1f} events each"
    report.rows += [
        (f"{load}, acknowledged, p50 / p99 ms", str(both[0][0]), str(both[1][0]), f"{events:,} events"),
        ("the subscriber has it (on b)", str(both[0][1]), str(both[1][1]), ""),
        ("Redis commands an event, sent by nodes", "", f"{per_event:.3f}", commands),
        ("with those inside scripts", "", f"{shared.calls / events:.3f}", ""),
        ("published, bytes an event", "", f"{published / events:,.0f}", batches_),
        ("published, bytes/s", "", f"{published / shared.seconds:,.0f}", traffic),
        ("processor time an event, µs", *(_named(one.cpu_us) for one in (single, shared)), "until delivered"),
        ("with the graph's upkeep", *(_named(one.graph_us) for one in (single, shared)), "until idle"),
    ]
    report.results.append(
        {
            "section": "steady",
            "rate": RATE,
            "events": events,
            "seconds": shared.seconds,
            "acknowledged_ms": [asdict(acked) for acked, _ in both],
            "arrived_ms": [asdict(arrived) for _, arrived in both],
            "commands_sent": dict(shared.sent),
            "commands_with_scripts": shared.calls,
            "published_messages": len(shared.messages),
            "published_bytes": published,
            "redis_bytes_in": shared.bytes_in,
            "redis_bytes_out": shared.bytes_out,
            "cpu_us": single.cpu_us | shared.cpu_us,
            "cpu_us_until_idle": single.graph_us | shared.graph_us,
        }
    )
    report.targets.append(Target(f"{load}: Redis commands an event", per_event, 0.2))


def _named(cpu_us: dict[str, float]) -> str:
    return ", ".join(f"{name} {us:.0f}" for name, us in cpu_us.items())


async def _memory(report: Report, redis: RedisProcess) -> None:
    connection = await RedisSocket.connect(redis)
    stored = await Stored.of(connection, KEYS)
    connection.transport.abort()
    a_change, a_key = stored.log_bytes / stored.log_changes, stored.recent_bytes / stored.recent_keys
    shown = f"{stored.log_changes:,} changes in {stored.log_entries:,} messages"
    report.rows += [
        ("Redis memory, bytes a change in the stream", "", f"{a_change:,.0f}", shown),
        ("Redis memory, bytes a document in recent", "", f"{a_key:,.0f}", f"{stored.recent_keys:,} documents"),
    ]
    report.results.append({"section": "memory", **asdict(stored)})


def _returns(report: Report, returns: Sequence[Return]) -> None:
    caught_up = [one.caught_up_s for one in returns]
    reads = Percentiles.of([taken for one in returns for taken in one.read_s])
    errors = sum(len(one.errors) for one in returns)
    missed = f"{min(one.missed for one in returns):,}"
    first = median(one.first_answer_s for one in returns) * 1e3
    shown = f"{median(caught_up):.2f} ({min(caught_up):.2f} to {max(caught_up):.2f})"
    report.rows += [
        (f"back after {missed} changes, s until caught up", "", shown, f"first answer after {first:.1f} ms"),
        ("reads meanwhile, p50 / p99 ms", "", str(reads), f"{reads.count:,} reads, {errors} errors"),
    ]
    report.results.append({"section": "return", "reads_ms": asdict(reads), "rounds": [asdict(one) for one in returns]})
    report.targets += [
        Target(f"back after {missed} changes: s until caught up", median(caught_up), 2.0),
        Target("reads meanwhile that failed", errors, 0),
    ]


async def _digests(report: Report, cluster: Site) -> None:
    digests = await cluster.digests()
    differ = sum(digest != digests[NODES[0]] for digest in digests.values())
    report.rows.append(("nodes that differ at the end", "", str(differ), digests[NODES[0]]))
    report.results.append({"section": "digests", "digests": digests})
    report.targets.append(Target("nodes that differ at the end", differ, 0))
