"""What can happen to nodes, to their Redis, and on the way between them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import TypeAlias

from tests.cluster.fleet import SETTLE_S, Fleet, Member
from tests.proxy import Proxy
from tests.redis_servers import RedisServer

Fault: TypeAlias = Callable[["Injector"], Awaitable[str]]


class Injector:
    """Does one thing at a time, undoes it after a while, and says what it did."""

    def __init__(self, fleet: Fleet, random: Random) -> None:
        self._fleet = fleet
        self._random = random
        self.agreed = True
        """Whether no node may have had to give up what it alone had applied."""

    async def one(self, kinds: tuple[Fault, ...]) -> str:
        return await self._random.choice(kinds)(self)

    async def _while(self, most_s: float) -> float:
        """Let a fault last; how long is no matter of waiting for something."""
        seconds = self._random.uniform(0.05, most_s)
        await asyncio.sleep(seconds)
        return round(seconds, 2)

    def _member(self) -> Member:
        return self._random.choice(self._fleet.members)

    def _proxied(self) -> tuple[Member, Proxy]:
        member = self._member()
        assert member.proxy is not None, "each node has a proxy"
        return member, member.proxy

    async def kill_node(self) -> str:
        member = self._member()
        member.kill()
        seconds = await self._while(2.5)
        await member.start()
        return f"kill -9 of node {member.name}, back after {seconds} s"

    async def stop_node(self) -> str:
        member = self._member()
        await member.stop()
        seconds = await self._while(1.5)
        await member.start()
        return f"end of node {member.name}, back after {seconds} s"

    async def kill_redis(self) -> str:
        server = self._fleet.server
        await asyncio.to_thread(server.kill)
        seconds = await self._while(1.5)
        await asyncio.to_thread(server.start)
        return f"kill -9 of Redis, back after {seconds} s"

    async def older_redis(self) -> str:
        """It comes back with what it had some writes ago, if it keeps anything."""
        server = self._fleet.server
        await asyncio.to_thread(server.kill)
        bytes_lost = forget_latest(server, self._random.randrange(1, 20_000))
        seconds = await self._while(0.5)
        await asyncio.to_thread(server.start)
        return f"kill -9 of Redis, back after {seconds} s without the last {bytes_lost} bytes it kept"

    async def flushall(self) -> str:
        await asyncio.to_thread(self._fleet.server.flushall)
        return "FLUSHALL"

    async def flushall_often(self) -> str:
        for _ in range(3):
            await asyncio.to_thread(self._fleet.server.flushall)
            seconds = await self._while(2 * SETTLE_S)
        return f"FLUSHALL three times, the last {seconds} s ago"

    async def freeze_redis(self) -> str:
        server = self._fleet.server
        server.freeze()
        try:
            seconds = await self._while(1.5)
        finally:
            server.thaw()
        return f"SIGSTOP of Redis for {seconds} s"

    async def kill_subscriptions(self) -> str:
        count = await asyncio.to_thread(self._fleet.server.client_kill_pubsub)
        return f"CLIENT KILL TYPE PUBSUB: {count}"

    async def mute_subscriptions(self) -> str:
        member, proxy = self._proxied()
        return f"silence on {proxy.mute_subscribers()} subscriptions of node {member.name}"

    async def reset_connections(self) -> str:
        member, proxy = self._proxied()
        proxy.reset()
        return f"reset of node {member.name}'s connections"

    async def cut(self) -> str:
        member, proxy = self._proxied()
        proxy.cut()
        seconds = await self._while(2.5)
        await proxy.resume()
        return f"cut between node {member.name} and Redis for {seconds} s"

    async def silence(self) -> str:
        member, proxy = self._proxied()
        both = self._random.random() < 0.5
        proxy.silence(to_server=both)
        seconds = await self._while(1.5)
        await proxy.resume()
        # What was swallowed is missing in the middle: such a connection isn't one any more.
        proxy.reset()
        return f"silence {'both ways' if both else 'of Redis'} to node {member.name} for {seconds} s"

    async def delay(self) -> str:
        member, proxy = self._proxied()
        to_server_s, to_client_s = (round(self._random.uniform(0, 0.2), 3) for _ in range(2))
        proxy.delay(to_server_s, to_client_s)
        seconds = await self._while(2.0)
        await proxy.resume()
        return f"delay of {to_server_s} s to Redis and {to_client_s} s back to node {member.name} for {seconds} s"

    async def flushall_while_away(self) -> str:
        """Redis forgets, and the others agree, while a node is away that may have had more than they."""
        self.agreed = False
        member = self._member()
        others = [other.proxy for other in self._fleet.members if other is not member and other.proxy is not None]
        for proxy in others:
            proxy.delay(to_client_s=0.5)
        await self._while(0.5)
        member.kill()
        for proxy in others:
            proxy.reset()
        await asyncio.to_thread(self._fleet.server.flushall)
        for proxy in others:
            await proxy.resume()
        times = self._random.choice((1, 2))
        for _ in range(times - 1):
            await asyncio.sleep(3 * SETTLE_S)
            await asyncio.to_thread(self._fleet.server.flushall)
        await asyncio.sleep(3 * SETTLE_S)
        await member.start()
        return f"kill -9 of node {member.name} and FLUSHALL at once; {times}"

    async def kill_all(self) -> str:
        """All nodes end at once, and come back one after the other; Redis may have forgotten them by then."""
        self.agreed = False
        members = self._random.sample(list(self._fleet.members), len(self._fleet.members))
        for member in members:
            member.kill()
        forgets = self._random.random() < 0.7
        if forgets:
            await asyncio.to_thread(self._fleet.server.flushall)
        for member in members:
            await member.start()
            await self._while(2 * SETTLE_S)
        return (
            f"kill -9 of all nodes{' and FLUSHALL' if forgets else ''}, back as {[member.name for member in members]}"
        )

    async def flushall_while_cut(self) -> str:
        """As before, with a node that lives and is cut off."""
        self.agreed = False
        member, proxy = self._proxied()
        proxy.delay(to_client_s=0.1)
        await self._while(0.5)
        proxy.cut()
        await asyncio.to_thread(self._fleet.server.flushall)
        await asyncio.sleep(3 * SETTLE_S)
        await proxy.resume()
        return f"cut between node {member.name} and Redis, and FLUSHALL"


ALL: tuple[Fault, ...] = (
    Injector.kill_node,
    Injector.kill_node,
    Injector.stop_node,
    Injector.kill_redis,
    Injector.older_redis,
    Injector.flushall,
    Injector.flushall_often,
    Injector.freeze_redis,
    Injector.kill_subscriptions,
    Injector.mute_subscriptions,
    Injector.reset_connections,
    Injector.cut,
    Injector.silence,
    Injector.delay,
    Injector.delay,
)
_TOO_FAR: tuple[Fault, ...] = (Injector.flushall_while_away, Injector.flushall_while_cut, Injector.kill_all)
AND_AGREE_WITHOUT: tuple[Fault, ...] = (*ALL, *3 * _TOO_FAR)
"""With those after which what only one node had applied is written again."""


def forget_latest(server: RedisServer, size_bytes: int) -> int:
    """Cut the end off what a server that is down has kept of its latest commands; return how many bytes."""
    files = sorted(Path(server.directory, "appendonlydir").glob("*.incr.aof"))
    if not files:
        return 0
    size = files[-1].stat().st_size
    os.truncate(files[-1], max(0, size - size_bytes))
    return min(size, size_bytes)
