"""Events that bring text instead of vectors: how fast they are embedded, acknowledged, searchable and told of.

Each section has gateways of its own, so that no text is one it has embedded before unless the section is about such. The
gateway has its default settings, the disk of temporary files, and shares the machine's cores with producers, subscribers
and the embedding service (bench/provider). Producers make their frames before the clock starts, and have a bounded
number unanswered, save in the burst. The clock stops when every event is acknowledged; then the collection's count of
documents is compared with what was acknowledged, and a sample is searched for by its texts. All texts are real, and no
two are the same. Rounds of what is compared alternate, each after what the one before left to do in the background.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median

import uvloop

from bench.harness import Percentiles, Report, Target
from bench.ingest import local
from bench.ingest.again import Again, seen, unchanged
from bench.ingest.burst import all_at_once
from bench.ingest.faults import with_faults
from bench.ingest.local import Documents, Rates, contents, fields
from bench.ingest.processes import LOCAL, SERVICE, provider
from bench.ingest.steady import at_rate
from bench.ingest.texts import Texts, ready_vectors

ROUNDS = 3
EVENTS = 8000
ALONE, BATCHES, BATCH_DOCUMENTS = 200, 40, 100
AGAIN, REPEAT = 10_000, 2
RATE, STEADY_S, LATENCY_MS = 500.0, 5.0, 40.0
FAULTY_EVENTS, FAULTY_LATENCY_MS, FAULTY_BATCH = 3000, 10.0, 16
FAIL, FAIL_MOSTLY, GIVE_UP_S = 0.2, 0.8, 1.0
BURST, BURST_JOINED = 100_000, 5
MODEL_CALL = 256


def run(seed: int, scale: float) -> Report:
    """Run the benchmark."""
    report = Report(
        "ingest",
        "events with text, from their sending until all are acknowledged and searchable; MessagePack",
        seed,
        ("what", "hotindex", "beside it", ""),
    )
    uvloop.run(_measure(report, seed, scale))
    return report


async def _measure(report: Report, seed: int, scale: float) -> None:
    rounds = max(1, round(ROUNDS * scale))
    await _throughput(report, seed, rounds, scale)
    await _one_at_a_time(report, seed, rounds, scale)
    await _again(report, seed, rounds, scale)
    await _steady(report, seed, rounds, scale)
    await _faults(report, seed, rounds, scale)
    await _burst(report, seed, rounds, scale)


def _scaled(count: int, scale: float) -> int:
    return max(1, round(count * min(1.0, scale)))


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


async def _throughput(report: Report, seed: int, rounds: int, scale: float) -> None:
    vectors = ready_vectors()
    kinds = {
        "content": (partial(contents, seed), _scaled(EVENTS, scale)),
        "fields": (partial(fields, seed), _scaled(EVENTS, scale)),
    }
    for kind, (make, events) in kinds.items():
        rates = await local.throughput(Documents(make, vectors), rounds, events)
        ours, ready = rates[False], rates[True]
        report.rows += [
            (
                f"{kind}, {local.PRODUCERS} producers, events/s",
                *_rates(ours, ready),
                "beside it: the same with vectors",
            ),
            ("processor time an event, µs, until idle", *(f"{median(one.cpu_us):.0f}" for one in (ours, ready)), ""),
        ]
        report.results.append(
            {"section": "throughput", "kind": kind, "events": events, "embedded": asdict(ours), "ready": asdict(ready)}
        )
        if kind == "content":
            name = f"content events, {local.PRODUCERS} producers, /s"
            report.targets.append(Target(name, median(ours.per_s), 5000, at_least=True))
    alone = await local.model_alone(Texts(seed).take(_scaled(EVENTS, scale)), MODEL_CALL)
    report.rows.append(("texts/s", "", f"{alone:,.0f}", f"the model alone, {MODEL_CALL} texts a call"))
    report.results.append({"section": "model alone", "texts_per_s": alone})


def _rates(*rates: Rates) -> Iterable[str]:
    return (_spread(one.per_s) for one in rates)


async def _one_at_a_time(report: Report, seed: int, rounds: int, scale: float) -> None:
    vectors = ready_vectors()
    events, batches = _scaled(ALONE, scale), _scaled(BATCHES, scale)
    one = await local.one_event(Documents(partial(contents, seed), vectors), rounds, events)
    batch = await local.one_batch(Documents(partial(contents, seed), vectors), rounds, batches, BATCH_DOCUMENTS)
    for what, times in (("one event", one), (f"a batch of {BATCH_DOCUMENTS}", batch)):
        ours, ready = Percentiles.of(times[False]), Percentiles.of(times[True])
        report.rows.append(
            (f"{what} at a time, p50 / p99 ms", str(ours), str(ready), "beside it: the same with vectors")
        )
        report.results.append({"section": "alone", "kind": what, "embedded": asdict(ours), "ready": asdict(ready)})
        if times is one:
            report.targets.append(Target("one content event / with a vector, p50", ours.p50 / ready.p50, 1.5))
        else:
            report.targets.append(Target(f"{BATCH_DOCUMENTS} content events in a batch, p50 ms", ours.p50, 15))


async def _again(report: Report, seed: int, rounds: int, scale: float) -> None:
    events = _scaled(AGAIN, scale)
    with provider() as service:
        same = {
            LOCAL: await unchanged(Texts(seed), rounds, events, REPEAT, None),
            SERVICE: await unchanged(Texts(seed), 1, events, REPEAT, service),
        }
        known = {
            LOCAL: await seen(Texts(seed), rounds, events, None),
            SERVICE: await seen(Texts(seed), 1, events, service),
        }
    whats: dict[str, dict[str, Again]] = {
        "unchanged documents": {model: kinds["upsert"] for model, kinds in same.items()},
        "patches that change nothing": {model: kinds["patch"] for model, kinds in same.items()},
        "texts embedded before": known,
    }
    limits = {"unchanged documents": 15_000, "texts embedded before": 5000}
    for what, models in whats.items():
        embedded = [sum(one.embedded) for one in models.values()]
        shown = f"beside it: a service; texts embedded meanwhile: {embedded[0]}, {embedded[1]}"
        report.rows.append((f"{what}, events/s", *(_spread(one.per_s) for one in models.values()), shown))
        report.results += [
            {"section": "again", "kind": what, "model": model, **asdict(one)} for model, one in models.items()
        ]
        if what in limits:
            report.targets += [
                Target(f"{what}, events/s", median(models[LOCAL].per_s), limits[what], at_least=True),
                Target(f"{what}: texts embedded", sum(embedded), 0),
            ]


async def _steady(report: Report, seed: int, rounds: int, scale: float) -> None:
    texts = {SERVICE: Texts(seed), LOCAL: Texts(seed)}
    seconds = max(1.0, STEADY_S * min(1.0, scale))
    found = await at_rate(texts, rounds, RATE, seconds, LATENCY_MS)
    load = f"service of {LATENCY_MS:g} ms, {RATE:g} events/s"
    service = found[SERVICE]
    whole = {model: _together(one.room_s) for model, one in found.items()}
    acked = {model: _together(one.ack_s) for model, one in found.items()}
    report.rows += [
        (f"{load}: in the room, p50 / p99 ms", *map(str, whole.values()), "beside it: the local model"),
        ("by round", *(", ".join(map(str, one.room_ms())) for one in found.values()), ""),
        ("acknowledged", *map(str, acked.values()), ""),
        ("calls", f"{sum(service.calls):,}", "", f"of {service.events:,} events"),
    ]
    report.results += [
        {
            "section": "steady",
            "model": model,
            "rate": RATE,
            "events": one.events,
            "calls": one.calls,
            "room_ms": [asdict(times) for times in one.room_ms()],
            "acknowledged_ms": [asdict(times) for times in one.ack_ms()],
        }
        for model, one in found.items()
    ]
    report.targets += [
        Target(f"{load}: event -> room, p99 ms", whole[SERVICE].p99, 250),
        Target(f"{load}: calls an event", sum(service.calls) / service.events, 0.1),
    ]


def _together(rounds: Iterable[Iterable[float]]) -> Percentiles:
    return Percentiles.of([*itertools.chain.from_iterable(rounds)])


async def _faults(report: Report, seed: int, rounds: int, scale: float) -> None:
    texts, events = Texts(seed), _scaled(FAULTY_EVENTS, scale)
    shares = [FAIL] * rounds + [FAIL_MOSTLY]
    outcomes = []
    for number, fail in enumerate(shares):
        # Few texts a call, so that many calls fail; where most do, some events are to be given up soon.
        settings = {"batch_texts": FAULTY_BATCH} | ({} if fail == FAIL else {"give_up_s": GIVE_UP_S})
        count = events if fail == FAIL else max(1, events // 5)
        outcomes.append(await with_faults(texts, count, FAULTY_LATENCY_MS, fail, seed + number, **settings))
    report.results += [{"section": "faults", **asdict(one)} for one in outcomes]
    for fail in (FAIL, FAIL_MOSTLY):
        of = [one for one in outcomes if one.fail == fail]
        calls, answered = (sum(one.service[name] for one in of) for name in ("calls", "answered"))
        refused = sum(sum(one.refused.values()) for one in of)
        ended = f"{sum(one.acknowledged for one in of):,} of {sum(one.events for one in of):,} applied"
        failed = f"{calls - answered:,} of {calls:,} calls without an answer"
        report.rows.append((f"service that fails {fail:.0%} of calls", f"{ended}, {refused:,} refused", "", failed))
    report.targets += [
        Target(
            f"service that fails {FAIL:.0%}, {FAIL_MOSTLY:.0%}: {what}", sum(getattr(one, name) for one in outcomes), 0
        )
        for name, what in (
            ("unanswered", "events without an end"),
            ("wrong", "other text or vector than told"),
            ("twice", "applied, told or answered twice"),
        )
    ]


async def _burst(report: Report, seed: int, rounds: int, scale: float) -> None:
    events = _scaled(BURST, scale)
    ours = [await all_at_once(Texts(seed, BURST_JOINED), events, None) for _ in range(rounds)]
    ready = await all_at_once(Texts(seed, BURST_JOINED), events, ready_vectors())
    above = [one.above_start_mib for one in ours]
    shown = f"{ours[0].text_bytes:.0f} bytes a text; beside it: the same with vectors"
    started, acked = (median(getattr(one, name) for one in ours) for name in ("start_mib", "peak_mib"))
    reached = f"from {started:.0f}, {acked:.0f} until acknowledged, then until idle"
    report.rows += [
        (f"burst of {events:,}, events/s", _spread([one.per_s for one in ours]), f"{ready.per_s:,.0f}", shown),
        ("peak memory above its start, MiB", _spread(above), f"{ready.above_start_mib:,.0f}", reached),
    ]
    report.results += [
        {"section": "burst", "ready": one is ready, **asdict(one), "above_start_mib": one.above_start_mib}
        for one in (*ours, ready)
    ]
    report.targets += [
        Target(f"burst of {events:,}: peak memory above start, MiB", max(above), 256),
        Target("documents of the burst that are missing", sum(one.missing for one in ours), 0),
    ]
