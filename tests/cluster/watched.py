"""Hosts and an edge at which a client watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.app import Gateway
from gateway.node.relaying import Relayed, Relaying
from tests.cluster.nodes import Nodes, edged, level, until
from tests.conftest import JsonMessage, JsonSocket
from tests.server.watchers import Watcher, at, fill, watcher


class Scene:
    """Hosts of a collection, and an edge with a client that writes and one that watches."""

    def __init__(self, hosts: list[Gateway], edge: Gateway, socket: JsonSocket, client: Watcher) -> None:
        self.hosts = hosts
        self.edge = edge
        self.socket = socket
        self.client = client

    @property
    def relaying(self) -> Relaying:
        (found,) = self.edge.node.relaying()
        return found

    @property
    def relayed(self) -> Relayed:
        """The only watch at the edge."""
        (found,) = self.relaying._watches
        return found

    @property
    def lent(self) -> int:
        """How many watches there are at the hosts."""
        return sum(len(host.node.hosted("m").watching) for host in self.hosts)

    async def exact(self, watch_id: str, after: JsonMessage, **query: Any) -> None:
        """Wait until a client's list is what an exact search answers after a write."""
        least = after["index_version"]
        search = await self.client.ask(action="search", collection="m", exact=True, min_index_version=least, **query)
        assert search["type"] == "results", search
        wanted = [(item["id"], item["metadata"]) for item in search["results"]]
        while [(item["id"], item["metadata"]) for item in self.client.ranked(watch_id)] != wanted:
            await self.client.update()


@asynccontextmanager
async def watched(nodes: Nodes, hosts: int = 1, *, binary: bool = False, **settings: Any) -> AsyncIterator[Scene]:
    async with (
        edged(nodes, hosts, **settings) as (gateways, edge, socket),
        watcher(edge, binary=binary) as client,
    ):
        await until(socket, "ack", action="upsert", collection="m", id="d00", vector=at(0), metadata={"n": 0})
        await fill(socket)
        await level(*gateways)
        yield Scene(gateways, edge, socket, client)


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
