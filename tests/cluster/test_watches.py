"""Watches at a node that doesn't host the collection: a host's watches, told by the edge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from gateway.app import Gateway
from gateway.node.relaying import Relaying
from tests.cluster.test_nodes import Fleet, ask, edged, fleet, level, redis, until  # noqa: F401 - fixtures
from tests.conftest import JsonSocket
from tests.server.test_watch import Watcher, at, fill, put, watcher


def relaying(edge: Gateway) -> Relaying:
    (found,) = edge.node.relaying()
    return found


@asynccontextmanager
async def watched(fleet: Fleet, hosts: int = 1, **settings: Any) -> AsyncIterator[Scene]:  # noqa: F811
    """Run hosts of a filled collection, and an edge with a client that writes and one that watches."""
    async with edged(fleet, hosts, **settings) as (gateways, edge, socket), watcher(edge) as client:
        await until(socket, "ack", action="upsert", collection="m", id="d00", vector=at(0), metadata={"n": 0})
        await fill(socket)
        await level(*gateways)
        yield Scene(gateways, edge, socket, client)


class Scene:
    def __init__(self, hosts: list[Gateway], edge: Gateway, socket: JsonSocket, client: Watcher) -> None:
        self.hosts = hosts
        self.edge = edge
        self.socket = socket
        self.client = client

    async def exact(self, watch_id: str, **query: Any) -> None:
        """Wait until a client's list is what an exact search answers."""
        search = await self.client.ask(action="search", collection="m", exact=True, **query)
        wanted = [(item["id"], item["metadata"]) for item in search["results"]]
        while [(item["id"], item["metadata"]) for item in self.client.ranked(watch_id)] != wanted:
            await self.client.update()


async def test_the_first_answer_and_what_changes(fleet: Fleet) -> None:  # noqa: F811
    async with watched(fleet) as scene:
        client, socket = scene.client, scene.socket
        watch_id = await client.watch(vector=[1, 0], k=3)
        assert client.ids(watch_id) == ["d00", "d01", "d02"]
        await put(socket, "new", 0.07, x=1)
        update = await client.update()
        assert update == {
            "type": "watch_update",
            "watch_id": watch_id,
            "index_version": client.index_versions[watch_id],
            "added": [{"id": "new", "score": pytest.approx(np.cos(0.07)), "rank": 3, "metadata": {"x": 1}}],
            "changed": [],
            "removed": ["d02"],
        }
        assert len(relaying(scene.edge)) == 1
        assert len(scene.hosts[0].node.hosted("m").watching) == 1
