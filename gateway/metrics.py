"""What the gateway counts, for Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass(frozen=True, slots=True)
class CollectionState:
    """One collection's figures at the moment of a scrape."""

    name: str
    documents: int
    index_version: int
    hot_rows: int
    graph_live: int
    graph_dead: int
    rebuilding: int
    queued_documents: int
    queued_bytes: int
    subscribers: int
    subscribers_behind: int
    writable: int
    unchanged_texts: int
    found_texts: int
    watches: int
    watches_behind: int
    watches_passed_over: int
    watch_searches: int
    watch_updates: int


@dataclass(frozen=True, slots=True)
class RelayState:
    """What is watched here in a collection that other nodes host."""

    name: str
    relayed_watches: int
    relayed_watches_behind: int
    relayed_watch_updates: int
    relayed_watch_hosts_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What was asked of a model since the start, and what was spared.

    Spared are texts that were in the store, on their way, or what their document's vector embeds already. Their tokens are
    estimated. Costs are 0 where no price is set.
    """

    name: str
    identity: str
    dimension: int
    price: float
    """Of a million tokens; 0 is unknown."""
    available: bool
    waiting: int
    calls: int
    failed_calls: int
    texts: int
    tokens: int
    cost: float
    saved_texts: int
    saved_tokens: int
    saved_cost: float


class Metrics:
    """One process's counters. `watch` tells where the gauges of the collections come from."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.connections = Gauge("hotindex_connections", "Open WebSocket connections", registry=self.registry)
        self._commands = Counter(
            "hotindex_commands_total", "Commands answered", ["command", "outcome"], registry=self.registry
        )
        self.changes = Counter(
            "hotindex_changes_total", "Committed changes of documents", ["collection"], registry=self.registry
        )
        self.hot_waits = Counter(
            "hotindex_hot_wait_seconds_total",
            "Time that commits waited because the hot buffer was full",
            ["collection"],
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "hotindex_commit_seconds",
            "Time to plan, write and publish one commit",
            buckets=_COMMIT_SECONDS,
            registry=self.registry,
        )

        self._commands_by: dict[tuple[str, str], Counter] = {}

    def count_command(self, command: str, outcome: str) -> None:
        """Count a command that was answered; `outcome` is `ok` or an error code."""
        counter = self._commands_by.get((command, outcome))
        if counter is None:
            counter = self._commands_by[command, outcome] = self._commands.labels(command, outcome)
        counter.inc()

    def watch_redis(self, commands: Callable[[], int]) -> None:
        """Tell where the count of commands sent to Redis comes from."""
        gauge = Gauge("hotindex_redis_commands", "Commands sent to Redis since the start", registry=self.registry)
        gauge.set_function(commands)

    def watch(
        self,
        states: Callable[[], Iterable[CollectionState]],
        relays: Callable[[], Iterable[RelayState]],
        models: Callable[[], Iterable[ModelState]],
    ) -> None:
        """Tell where the figures of collections, hosted here and elsewhere, and of models come from."""
        self.registry.register(_Collections(states, _GAUGES, _COUNTED))
        self.registry.register(_Collections(relays, _RELAYED, _RELAYED_COUNTED))
        self.registry.register(_Models(models))

    def forget(self, collection: str) -> None:
        """Drop the counters of a collection that is no more."""
        for counter in (self.changes, self.hot_waits):
            with contextlib.suppress(KeyError):
                counter.remove(collection)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self.registry)


class _Collections(Collector):
    def __init__(
        self,
        states: Callable[[], Iterable[CollectionState | RelayState]],
        gauges: Mapping[str, str],
        counted: Mapping[str, str],
    ) -> None:
        self._states = states
        self._gauges = gauges
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        states = list(self._states())
        for kind, fields in ((GaugeMetricFamily, self._gauges), (CounterMetricFamily, self._counted)):
            for field, text in fields.items():
                family = kind(f"hotindex_{field}", text, labels=["collection"])
                for state in states:
                    family.add_metric([state.name], getattr(state, field))
                yield family


class _Models(Collector):
    def __init__(self, models: Callable[[], Iterable[ModelState]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        models = list(self._models())
        for kind, fields in ((GaugeMetricFamily, _EMBEDDING), (CounterMetricFamily, _EMBEDDED)):
            for field, text in fields.items():
                family = kind(f"hotindex_embedding_{field}", text, labels=["model"])
                for model in models:
                    family.add_metric([model.name], getattr(model, field))
                yield family


_EMBEDDING = {
    "waiting": "Texts that wait to be embedded",
    "available": "0 while a service isn't asked because it failed too often",
}

_EMBEDDED = {
    "calls": "Calls of the model",
    "failed_calls": "Calls of the model that failed",
    "texts": "Texts embedded",
    "tokens": "Tokens embedded, estimated where the service doesn't tell",
    "cost": "What they cost, by the price set",
    "saved_texts": "Texts that didn't have to be embedded again",
    "saved_tokens": "Tokens they would have had, estimated",
    "saved_cost": "What they would have cost, by the price set",
}

_GAUGES = {
    "documents": "Documents in the collection",
    "index_version": "The collection's index_version",
    "hot_rows": "Vectors in the hot buffer, replaced ones included",
    "graph_live": "Live vectors in the graph",
    "graph_dead": "Dead vectors in the graph",
    "rebuilding": "1 while the graph is made anew",
    "queued_documents": "Documents submitted and not yet committed",
    "queued_bytes": "Bytes submitted and not yet committed",
    "subscribers": "Subscribers of the room",
    "writable": "1 unless writes fail at present",
    "unchanged_texts": "Texts since the start that were what their document's vector embeds already",
    "found_texts": "Texts since the start whose vectors were kept from before",
    "subscribers_behind": "Subscribers that wait for their sockets or catch up",
    "watches": "Live queries",
    "watches_behind": "Live queries that wait for their sockets",
}

_COUNTED = {
    "watches_passed_over": "Times that commits came in faster than they were applied to live queries",
    "watch_searches": "Searches for live queries, first ones and refills",
    "watch_updates": "Differences that live queries were told",
}

_RELAYED = {
    "relayed_watches": "Live queries watched here in a collection that other nodes host",
    "relayed_watches_behind": "Those of them that wait for their sockets",
}

_RELAYED_COUNTED = {
    "relayed_watch_updates": "Differences that they were told",
    "relayed_watch_hosts_lost": "Times that the node which lent them was lost",
}
