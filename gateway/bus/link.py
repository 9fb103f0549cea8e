"""Redis, as the rest of the gateway sees it: scripts and commands, sent once, to one server, to a Sentinel's master or
to a cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import filterfalse
from typing import Any

from gateway.bus.address import Kind, Node, parse
from gateway.bus.topology import Topology, topology
from gateway.bus.wire import Dialer, LinkLost, LinkRefused, Redirected, ScriptMissing, Value, Wire, slot_of

__all__ = ["Link", "LinkLost", "LinkRefused", "Script", "Value"]

CONNECTIONS = 8
"""To one server at most; commands beyond wait for one."""

_REDIRECTIONS = 5
_SHARDED_SINCE = 7
# fmt: off
_KEYLESS = frozenset({
    "ACL", "CLIENT", "CLUSTER", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL", "FLUSHDB", "INFO", "KEYS", "LATENCY",
    "PING", "PUBLISH", "PUBSUB", "RANDOMKEY", "ROLE", "SCAN", "SCRIPT", "SLOWLOG", "TIME", "WAIT",
})
# fmt: on
_KEY_AFTER_SUBCOMMAND = frozenset({"BITOP", "MEMORY", "OBJECT", "XGROUP", "XINFO"})
_KEY_AFTER_STREAMS = frozenset({"XREAD", "XREADGROUP"})


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, which gets all its keys as KEYS. In a cluster they share one slot."""

    body: str
    sha1: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.body.encode(), usedforsecurity=False)
        object.__setattr__(self, "sha1", digest.hexdigest())


class Link:
    """Call on the event loop, between `open` and `close`.

    A call takes `timeout_s` at most, waiting for a connection included, and raises LinkLost after that. What was sent is
    never sent again, other than after an answer that says it was not executed (a redirection, a missing script): where
    LinkLost says `in_doubt`, it may have been executed, or may yet be. So is it where a call was cancelled.

    Calls at the same time use different connections, so they may be executed in any order. Replies are as in RESP2:
    bytes, integers, None, and lists of these (HGETALL: names and values in turn).
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Raises StartupError for a URL that is none."""
        address = parse(url)
        self._kind = address.kind
        self._timeout_s = timeout_s
        self._topology = topology(address, Dialer(address, timeout_s), timeout_s)
        self._pools: dict[Node, _Pool] = {}
        self._limits: set[asyncio.Timeout] = set()
        self._closed = False
        self._sharded = False
        self.commands_sent = 0
        """Since the start; without those of a connection's beginning, of discovery and of subscriptions."""

    async def open(self) -> None:
        """Find out whether Redis answers, and what it can do. Raises LinkLost, LinkRefused."""
        if self._kind is not Kind.CLUSTER:
            await self.command("PING")
            return
        info = await self.command("INFO", "server")
        versions = [line.partition(b":")[2] for line in info.splitlines() if line.startswith(b"redis_version:")]
        assert versions, "INFO server tells the version"
        self._sharded = int(versions[0].partition(b".")[0]) >= _SHARDED_SINCE

    async def close(self) -> None:
        """Close all connections. Calls under way end with LinkLost."""
        self._closed = True
        for limit in filterfalse(asyncio.Timeout.expired, self._limits):
            limit.reschedule(asyncio.get_running_loop().time())
        await self._topology.close()
        for pool in self._pools.values():
            await pool.close()

    @property
    def sharded(self) -> bool:
        """Whether pub/sub is sharded: on the server that owns the channel's slot."""
        return self._sharded

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    @property
    def topology(self) -> Topology:
        return self._topology

    def publish_command(self) -> str:
        """Return the command that scripts have to publish with."""
        return "SPUBLISH" if self._sharded else "PUBLISH"

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """Run a script and return its reply. Raises LinkLost, LinkRefused.

        Where the server doesn't have the script, as after a restart, it is loaded: three commands instead of one.
        """
        slot = slot_of(keys[0]) if keys and self._kind is Kind.CLUSTER else None
        return await self._send(slot, "EVALSHA", (script.sha1, len(keys), *keys, *args), script)

    async def command(self, name: str, *args: Value) -> Any:
        """Send a command and return its reply. Raises LinkLost, LinkRefused.

        In a cluster it goes to the owner of its first key; what has no key goes to one of the masters.
        """
        slot = _slot(name.upper(), args) if self._kind is Kind.CLUSTER else None
        return await self._send(slot, name, args, None)

    async def _send(self, slot: int | None, name: str, args: Sequence[Value], script: Script | None) -> Any:
        call = _Call(name, args, script)
        limit = asyncio.timeout(0 if self._closed else self._timeout_s)
        self._limits.add(limit)
        try:
            async with limit:
                return await self._routed(slot, call)
        except TimeoutError:
            why = "closed" if self._closed else f"no answer in {self._timeout_s} s"
            if call.node is not None:
                self._topology.suspect(call.node)
            raise LinkLost(f"{name}: {why} ({call.node or 'no server'})", in_doubt=call.sent) from None
        finally:
            self._limits.discard(limit)

    async def _routed(self, slot: int | None, call: _Call) -> Any:
        call.node = await self._topology.owner(slot)
        for _ in range(_REDIRECTIONS):
            try:
                return await self._on(call.node, call)
            except Redirected as elsewhere:
                call.node, call.asking, call.sent = elsewhere.node, elsewhere.asking, False
                if not elsewhere.asking:
                    self._topology.moved(elsewhere.slot, elsewhere.node)
            except LinkLost:
                self._topology.suspect(call.node)
                raise
        raise LinkLost(f"{call.name}: redirected too often")

    async def _on(self, node: Node, call: _Call) -> Any:
        if (pool := self._pools.get(node)) is None:
            pool = self._pools[node] = _Pool(node, self._topology)
        async with pool.wire() as wire:
            if call.asking:
                await self._ask(wire, "ASKING")
            call.sent = True
            try:
                return await self._ask(wire, call.name, *call.args)
            except ScriptMissing:
                assert call.script is not None, "only scripts are missed"
                call.sent = False
                await self._ask(wire, "SCRIPT", "LOAD", call.script.body)
            if call.asking:
                await self._ask(wire, "ASKING")
            call.sent = True
            return await self._ask(wire, call.name, *call.args)

    async def _ask(self, wire: Wire, *args: Value) -> Any:
        self.commands_sent += 1
        return await wire.ask(*args)


@dataclass(slots=True)
class _Call:
    """A command on its way: where it is, and whether it was sent there."""

    name: str
    args: Sequence[Value]
    script: Script | None
    node: Node | None = None
    asking: bool = False
    sent: bool = False


class _Pool:
    """The connections to one server, CONNECTIONS at most."""

    def __init__(self, node: Node, topology: Topology) -> None:
        self._node = node
        self._topology = topology
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._idle: deque[Wire] = deque()
        self._closed = False

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """Wait for a connection; it comes back to the pool unless it broke."""
        async with self._turns:
            wire = await self._usable()
            try:
                yield wire
            except LinkLost:
                if not wire.connected:
                    # What ended this connection has ended the others, and perhaps nobody asks here again.
                    await self._shed()
                raise
            finally:
                if self._closed:
                    await wire.close()
                elif wire.connected:
                    self._idle.append(wire)

    async def _usable(self) -> Wire:
        """Return a connection that is open, as far as can be seen from here."""
        while self._idle:
            wire = self._idle.pop()
            if await wire.usable():
                return wire
            await wire.close()
        return await self._topology.wire(self._node)

    async def close(self) -> None:
        """Close what is idle now, and the others when they come back."""
        self._closed = True
        await self._shed()

    async def _shed(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def _slot(name: str, args: Sequence[Value]) -> int | None:
    if name in _KEYLESS:
        return None
    at = 0
    if name in _KEY_AFTER_SUBCOMMAND:
        at = 1
    elif name in _KEY_AFTER_STREAMS:
        at = 1 + next(place for place, value in enumerate(args) if str(value).upper() == "STREAMS")
    key = args[at]
    assert not isinstance(key, int), "keys are strings"
    return slot_of(key)
