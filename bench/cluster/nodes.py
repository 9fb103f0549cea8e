"""The gateways of the benchmark: one alone, and nodes that share a Redis."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bench.harness import cpu_s
from gateway.commands.process import GatewayProcess

COLLECTION = "bench"
_FLAGS = ["--log-level", "error", "--ping-interval-s", "3600"]
_POLL_S = 0.003
_PATIENCE_S = 120.0
_WINDOW_S = 0.4
_IDLE_SHARE = 0.08


@dataclass(slots=True)
class Site:
    """One node, or several that share `redis_url`; a context manager that starts and stops them.

    Events are written to the first. `sent` numbers them through all rounds.
    """

    folder: Path
    names: tuple[str, ...]
    redis_url: str | None = None
    nodes: dict[str, GatewayProcess] = field(default_factory=dict)
    sent: int = 0

    def __enter__(self) -> Self:
        try:
            for name in self.names:
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.nodes):
            self.stop(name)

    def start(self, name: str) -> float:
        """Start a node on the data it has; return when it said it was ready."""
        shared = [] if self.redis_url is None else ["--redis-url", self.redis_url, "--node", name]
        node = GatewayProcess(self.folder / name, [*_FLAGS, *shared])
        node.__enter__()
        ready_at = time.perf_counter()
        self.nodes[name] = node
        return ready_at

    def stop(self, name: str) -> None:
        self.nodes.pop(name).stop()

    @property
    def writer(self) -> GatewayProcess:
        return self.nodes[self.names[0]]

    @property
    def reader(self) -> GatewayProcess:
        """Another node than the writer, where there is one."""
        return self.nodes[self.names[min(1, len(self.names) - 1)]]

    async def head(self) -> int:
        """Return the index_version the writer is at."""
        return await index_version(self.writer) or 0

    async def level(self) -> float:
        """Wait until all have what the writer has; return when they did."""
        head = await self.head()
        async with asyncio.timeout(_PATIENCE_S):
            for node in self.nodes.values():
                while (await index_version(node) or 0) < head:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        return time.perf_counter()

    async def digests(self) -> dict[str, str]:
        """Return a digest of each node's documents, once all have what the writer has."""
        await self.level()
        answers = {name: await _get(node, "/digest") for name, node in self.nodes.items()}
        return {name: f"{answer['index_version']} {answer['digest']}" for name, answer in answers.items()}

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time each node has used."""
        return {name: cpu_s(node.process.pid) for name, node in self.nodes.items()}


async def quiet(*sites: Site) -> None:
    """Wait until what nodes do in the background, after the writes of a round, is done."""
    due = time.monotonic() + _PATIENCE_S
    busy = True
    while busy and time.monotonic() < due:
        before = [site.cpu_s() for site in sites]
        await asyncio.sleep(_WINDOW_S)
        after = [site.cpu_s() for site in sites]
        used = [now[name] - then[name] for now, then in zip(after, before, strict=True) for name in now]
        busy = max(used) > _IDLE_SHARE * _WINDOW_S


async def index_version(node: GatewayProcess) -> int | None:
    """Return the index_version a node is at; None where it doesn't have the collection yet."""
    try:
        answer = await _get(node, "")
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
        raise
    version: int = answer["index_version"]
    return version


async def _get(node: GatewayProcess, what: str) -> Any:
    return await asyncio.to_thread(_fetch, f"{node.http}/v1/collections/{COLLECTION}{what}")


def _fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)
