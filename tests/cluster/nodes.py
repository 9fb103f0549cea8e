"""Gateways in this process that share a Redis."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.app import Gateway
from tests.conftest import JsonSocket, StartGateway, json_socket
from tests.redis_servers import RedisServer


class Nodes:
    """Gateways over one Redis, each with data of its own."""

    def __init__(self, start: StartGateway, redis: RedisServer, path: Path) -> None:
        self._start = start
        self._redis = redis
        self._path = path

    @asynccontextmanager
    async def node(self, name: str, **settings: Any) -> AsyncIterator[tuple[Gateway, JsonSocket]]:
        flags = {"node": name, "data_dir": self._path / name, "redis_url": self._redis.url, "settle_s": 0.3, **settings}
        async with self._start(**flags) as gateway, json_socket(gateway.ws) as socket:
            yield gateway, socket


@asynccontextmanager
async def edged(
    nodes: Nodes, hosts: int = 2, **settings: Any
) -> AsyncIterator[tuple[list[Gateway], Gateway, JsonSocket]]:
    """Run some hosts, and a node that hosts nothing."""
    async with AsyncExitStack() as stack:
        gateways = [(await stack.enter_async_context(nodes.node(f"host{i}", **settings)))[0] for i in range(hosts)]
        edge, socket = await stack.enter_async_context(nodes.node("edge", collections="nothing", **settings))
        while len((await ask(edge, "/v1/nodes"))["nodes"]) <= hosts:
            await asyncio.sleep(0.01)
        yield gateways, edge, socket


async def ask(gateway: Gateway, path: str, method: str = "GET", body: object = None) -> Any:
    def answer() -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{gateway.http}{path}", data, method=method)
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    return await asyncio.to_thread(answer)


async def until(socket: JsonSocket, expected: str, **command: Any) -> dict[str, Any]:
    """Repeat a command until its answer is of the type expected."""
    while (answer := await socket.reply(**command))["type"] != expected:
        assert answer["type"] == "error", answer
        await asyncio.sleep(0.01)
    return answer


async def level(*gateways: Gateway, collection: str = "m") -> None:
    """Wait until all hold the same."""
    while not all(collection in one.node.holdings() for one in gateways):
        await asyncio.sleep(0.01)
    while len({(await ask(one, f"/v1/collections/{collection}/digest"))["digest"] for one in gateways}) > 1:
        await asyncio.sleep(0.01)
