"""A gateway for state machines: reached through a connection that is cut, and started again on the same data."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from hotindex import Client

from gateway.app import Gateway, running
from gateway.settings import load
from tests.clients.test_client import FAST
from tests.ports import HOST
from tests.proxy import Proxy


class Served:
    """`client` has the connection that is cut, `writer` one that isn't."""

    gateway: Gateway
    client: Client
    writer: Client

    def __init__(self, **settings: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="hotindex-machine-"))
        self._flags = {"ws_port": 0, "http_port": 0, "data_dir": self._folder, **settings}
        self._stack = AsyncExitStack()
        self._running = AsyncExitStack()

    async def start(self, collection: str, **settings: Any) -> None:
        """Start with an empty collection."""
        await self._run()
        async with (
            aiohttp.ClientSession(self.gateway.http) as http,
            http.put(f"/v1/collections/{collection}", json=settings) as reply,
        ):
            assert reply.status == 201
        self._proxy = await self._stack.enter_async_context(Proxy(_port(self.gateway.ws)))
        client = Client(f"ws://{HOST}:{self._proxy.port}", backoff=FAST)
        self.client = await self._stack.enter_async_context(client)

    async def _run(self) -> None:
        self.gateway = await self._running.enter_async_context(running(load(self._flags, None)))
        self.writer = await self._running.enter_async_context(Client(self.gateway.ws))

    async def away(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        """Have the client without a connection for a while."""
        greeting = self.client.greeting
        self._proxy.cut()
        await meanwhile()
        await self._proxy.resume()
        await self._back(greeting)

    async def start_again(self) -> None:
        greeting = self.client.greeting
        await self._running.aclose()
        await self._run()
        self._proxy.target = HOST, _port(self.gateway.ws)
        await self._back(greeting)

    async def _back(self, greeting: dict[str, Any]) -> None:
        while self.client.greeting is greeting:
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        try:
            await self._stack.aclose()
            await self._running.aclose()
        finally:
            shutil.rmtree(self._folder)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
