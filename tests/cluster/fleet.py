"""Gateways in processes of their own that share a Redis, each behind a proxy, on ports that outlive them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from hotindex import Client
from hotindex.backoff import Backoff

from gateway.commands.process import GatewayProcess
from tests.ports import HOST, free_port
from tests.proxy import Proxy
from tests.redis_servers import RedisCluster, RedisServer

COLLECTION = "m"
SETTLE_S = 0.5
WRITE_WAIT_S = 2.0
QUICK = Backoff(first_s=0.02, limit_s=0.2)
FLAGS = (
    *("--settle-s", str(SETTLE_S), "--write-wait-s", str(WRITE_WAIT_S), "--redis-timeout-s", "0.5"),
    *("--log-format", "json", "--log-level", "info"),
)


class Violation(AssertionError):
    """What must hold doesn't."""


async def eventually(condition: Callable[[], Awaitable[bool]], what: str, within_s: float = 20.0) -> None:
    """Wait for what other processes do."""
    try:
        async with asyncio.timeout(within_s):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise Violation(f"not within {within_s} s: {what}") from None


@dataclass(frozen=True, slots=True)
class Stored:
    """A live document as a node has it."""

    version: int
    index_version: int
    metadata: dict[str, Any]


class Member:
    """A node: its process, which may be killed and started again, and a client for commands."""

    def __init__(self, name: str, path: Path, redis_url: str, proxy: Proxy | None, http: aiohttp.ClientSession) -> None:
        self.name = name
        self.proxy = proxy
        self.alive = False
        self._path = path
        self._redis_url = redis_url
        self._session = http
        self._ports = free_port(), free_port()
        self.ws = f"ws://{HOST}:{self._ports[0]}"
        self.http = f"http://{HOST}:{self._ports[1]}"
        self.client = Client(self.ws, backoff=QUICK, timeout_s=4.0)
        self._process: GatewayProcess | None = None

    @property
    def log(self) -> Path:
        return self._path / f"{self.name}.log"

    async def start(self, flags: Sequence[str] = ()) -> None:
        ports = ("--ws-port", str(self._ports[0]), "--http-port", str(self._ports[1]))
        with self.log.open("ab") as log:
            self._process = GatewayProcess(
                self._path / self.name,
                ("--redis-url", self._redis_url, "--node", self.name, *ports, *FLAGS, *flags),
                log,
            )
        await asyncio.to_thread(self._process.__enter__)
        self.alive = True

    def kill(self) -> None:
        """As a crash does."""
        self.alive = False
        if self._process is not None:
            self._process.kill()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, and nothing comes."""
        assert self._process is not None, "it was started"
        self._process.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None, "it was started"
        self._process.process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Cleanly."""
        self.alive = False
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)
            self._process = None

    async def get(self, path: str) -> Any:
        """Return what HTTP answers; None where it isn't 200."""
        try:
            async with self._session.get(self.http + path) as response:
                return json.loads(await response.text()) if response.status == 200 else None
        except (aiohttp.ClientError, OSError):
            return None

    async def ready(self) -> str:
        """Return why it isn't ready; '' if it is."""
        try:
            async with self._session.get(f"{self.http}/readyz") as response:
                text = await response.text()
                return "" if response.status == 200 else text
        except (aiohttp.ClientError, OSError) as error:
            return repr(error)

    async def digest(self, collection: str = COLLECTION) -> tuple[int, str] | None:
        answer = await self.get(f"/v1/collections/{collection}/digest")
        return None if answer is None else (answer["index_version"], answer["digest"])

    async def documents(self, collection: str = COLLECTION) -> dict[str, Stored]:
        """Return all that it has."""
        found: dict[str, Stored] = {}
        since, more = 0, True
        while more:
            page = await self.get(f"/v1/collections/{collection}/changes?since={since}&limit=10000")
            if page is None:
                raise Violation(f"{self.name} doesn't tell its changes")
            for event in page["changes"]:
                if event["event_type"] != "delete":
                    found[event["document_id"]] = Stored(event["version"], event["index_version"], event["metadata"])
            since, more = page["index_version"], page["more"]
        return found

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return what it has logged under that name, in all its lives."""
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if line.get("event") == event]


class Fleet:
    """The nodes, and their Redis."""

    def __init__(self, redis: RedisServer | RedisCluster, members: Sequence[Member]) -> None:
        self.redis = redis
        self.members = members

    @property
    def server(self) -> RedisServer:
        assert isinstance(self.redis, RedisServer), "it is no cluster"
        return self.redis

    async def make(self, collection: str = COLLECTION) -> None:
        """Make the collection, and wait until all nodes host it."""
        await self.members[0].client.upsert(collection, id="first", vector=[1, 1, 1], metadata={"n": 0})
        await self.level(collection)

    async def level(self, collection: str = COLLECTION, within_s: float = 20.0) -> int:
        """Wait until all nodes are ready and hold the same; return the index_version. Nobody must write."""
        digests: list[tuple[int, str] | None] = []
        faults: list[str] = []

        async def same() -> bool:
            digests[:] = [await member.digest(collection) for member in self.members]
            faults[:] = [await member.ready() for member in self.members]
            return None not in digests and len(set(digests)) == 1 and not any(faults)

        try:
            await eventually(same, "all nodes are ready and hold the same", within_s)
        except Violation as error:
            said = zip((member.name for member in self.members), digests, faults, strict=True)
            raise Violation(f"{error}: {[*said]}") from None
        assert digests[0] is not None, "that was waited for"
        return digests[0][0]


@asynccontextmanager
async def fleet(
    path: Path, redis: RedisServer | RedisCluster, count: int = 3, flags: Sequence[str] = ()
) -> AsyncIterator[Fleet]:
    """Run `count` nodes; those that run in the end are ended cleanly. Redis is the caller's."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)))
        members: list[Member] = []
        for i in range(count):
            proxy, url = None, redis.url
            if isinstance(redis, RedisServer):
                proxy = await stack.enter_async_context(Proxy(redis.port))
                url = f"redis://{HOST}:{proxy.port}"
            members.append(member := Member("abcdef"[i], path, url, proxy, http))
            stack.push_async_callback(member.stop)
        await asyncio.gather(*(member.start(flags) for member in members))
        for member in members:
            await stack.enter_async_context(member.client)
        yield Fleet(redis, members)
