"""Which server to ask: the only one, the master that the sentinels name, or the owner of a slot.

What was found out is kept until a server fails or says otherwise. Then the others are asked again, once at a time,
and only those wait for it who need the server in question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from gateway.bus.address import Address, Kind, Node
from gateway.bus.wire import Dialer, LinkLost, LinkRefused, Value, Wire

SLOTS = 16384
log = structlog.get_logger(__name__)


class Topology(Protocol):
    """Call on the event loop."""

    async def owner(self, slot: int | None, /) -> Node:
        """Return the master of a slot, or any where it is None. Raises LinkLost, LinkRefused."""
        ...

    def suspect(self, node: Node, /) -> None:
        """Tell that a node failed: look again before it is named the next time."""
        ...

    def moved(self, slot: int, node: Node, /) -> None:
        """Tell what a redirection told. Raises LinkRefused outside a cluster."""
        ...

    async def wire(self, node: Node) -> Wire:
        """Return an open wire to a node, which redirects what it doesn't own. Raises LinkLost, LinkRefused."""
        ...

    async def wire_to_master(self, node: Node) -> Wire:
        """As `wire`, for subscriptions: a replica takes them, and redirects none. LinkLost where it isn't a master."""
        ...

    async def close(self) -> None: ...


def topology(address: Address, dialer: Dialer, timeout_s: float) -> Topology:
    match address.kind:
        case Kind.SINGLE:
            return _Single(address.nodes[0], dialer)
        case Kind.SENTINEL:
            return _Sentinel(address, dialer, timeout_s)
        case Kind.CLUSTER:
            return _Cluster(address, dialer, timeout_s)


class _Single:
    def __init__(self, node: Node, dialer: Dialer) -> None:
        self._node = node
        self._dialer = dialer

    async def owner(self, _slot: int | None) -> Node:
        return self._node

    def suspect(self, _node: Node) -> None:
        pass

    def moved(self, _slot: int, _node: Node) -> None:
        raise _no_cluster()

    async def wire(self, node: Node) -> Wire:
        return await _opened(self._dialer.wire(node))

    async def wire_to_master(self, node: Node) -> Wire:
        return await self.wire(node)

    async def close(self) -> None:
        pass


class _Discovery:
    """Asks the nodes it knows, those that failed last at the end, until one answers. Call on the event loop."""

    def __init__(self, nodes: Sequence[Node], timeout_s: float) -> None:
        self._nodes = list(nodes)
        # Two that don't answer still leave the time to ask a third.
        self._patience_s = timeout_s / 3
        self._looking: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> None:
        """Look again, together with all who want to. Being cancelled doesn't end it for the others."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_alone(), name="redis topology")
            self._looking.add_done_callback(self._looked)
        await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("redis_unknown", reason=str(error))

    async def _look_alone(self) -> None:
        reasons = []
        for node in tuple(self._nodes):
            try:
                async with asyncio.timeout(self._patience_s):
                    return await self._learn(node)
            except TimeoutError:
                reasons.append(f"no answer ({node})")
            except LinkLost as error:
                reasons.append(str(error))
            self._put_last(node)
        raise LinkLost("; ".join(reasons))

    def _put_last(self, node: Node) -> None:
        if node in self._nodes:
            self._nodes.remove(node)
            self._nodes.append(node)

    async def _learn(self, node: Node) -> None:
        """Ask a node, and keep what it says. Raises LinkLost, LinkRefused."""
        raise NotImplementedError


class _Sentinel(_Discovery):
    def __init__(self, address: Address, dialer: Dialer, timeout_s: float) -> None:
        super().__init__(address.nodes, timeout_s)
        self._service = address.service
        self._dialer = dialer
        self._master: Node | None = None

    async def owner(self, _slot: int | None) -> Node:
        if self._master is None:
            await self._look()
        if self._master is None:
            raise LinkLost(f"the master of {self._service} failed again")
        return self._master

    def suspect(self, node: Node) -> None:
        if node == self._master:
            self._master = None

    def moved(self, _slot: int, _node: Node) -> None:
        raise _no_cluster()

    async def wire(self, node: Node) -> Wire:
        """As in the protocol; LinkLost where the server is no master, as after a failover that a sentinel didn't see.

        https://redis.io/docs/latest/develop/reference/sentinel-clients/
        """
        return await self.wire_to_master(node)

    async def wire_to_master(self, node: Node) -> Wire:
        return await _opened(self._dialer.wire(node), to_master=True)

    async def _learn(self, node: Node) -> None:
        reply = await _asked(self._dialer.sentinel(node), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        if reply is None:
            raise LinkLost(f"service {self._service} is not known ({node})")
        self._master = Node(reply[0].decode(), int(reply[1]))


class _Cluster(_Discovery):
    def __init__(self, address: Address, dialer: Dialer, timeout_s: float) -> None:
        super().__init__(address.nodes, timeout_s)
        self._seeds = address.nodes
        self._dialer = dialer
        self._owners: list[Node | None] = [None] * SLOTS
        self._masters: tuple[Node, ...] = ()
        self._suspects: set[Node] = set()

    async def owner(self, slot: int | None) -> Node:
        if slot is None:
            return await self._any()
        node = self._owners[slot]
        if node is None or node in self._suspects:
            await self._look()
            node = self._owners[slot]
        if node is None:
            raise LinkLost(f"slot {slot} has no owner")
        return node

    async def _any(self) -> Node:
        for attempt in range(2):
            for node in self._masters:
                if attempt or node not in self._suspects:
                    return node
            await self._look()
        raise LinkLost("no slot has an owner")

    def suspect(self, node: Node) -> None:
        self._suspects.add(node)
        self._put_last(node)

    def moved(self, slot: int, node: Node) -> None:
        previous = self._owners[slot]
        self._owners[slot] = node
        if previous is not None and previous != node:
            # Where one slot moved others did, mostly: look at all of them before asking there again.
            self._suspects.add(previous)

    async def wire(self, node: Node) -> Wire:
        return await _opened(self._dialer.wire(node))

    async def wire_to_master(self, node: Node) -> Wire:
        """A master that was told of its replacement says so; the server that was asked for owners may not know yet."""
        return await _opened(self._dialer.wire(node), to_master=True)

    async def _learn(self, node: Node) -> None:
        owners: list[Node | None] = [None] * SLOTS
        nodes: dict[Node, None] = {}
        for first, last, *servers in await _asked(self._dialer.wire(node), "CLUSTER", "SLOTS"):
            known = [_server(server, node) for server in servers]
            owners[first : last + 1] = [known[0]] * (last + 1 - first)
            nodes |= dict.fromkeys(known)
        if not nodes:
            raise LinkLost(f"no slots are assigned ({node})")
        self._owners = owners
        self._masters = tuple(owner for owner in dict.fromkeys(owners) if owner is not None)
        failed_last = [known for known in self._nodes if known in nodes]
        self._nodes = list(dict.fromkeys([*failed_last, *nodes, *self._seeds]))
        self._suspects.clear()


def _server(entry: list[Any], asked: Node) -> Node:
    """Return the address in an entry of CLUSTER SLOTS; one without a host is where it was asked."""
    host = (entry[0] or b"").decode()
    return Node(asked.host if host in ("", "?") else host, int(entry[1]))


def _no_cluster() -> LinkRefused:
    return LinkRefused(
        "the server is one of a cluster: redis_url has to begin with redis+cluster:// or rediss+cluster://"
    )


async def _opened(wire: Wire, *, to_master: bool = False) -> Wire:
    try:
        await wire.open()
        if to_master and (await wire.ask("ROLE"))[0] != b"master":
            raise LinkLost(f"no master ({wire.node})")
    except BaseException:
        await wire.close()
        raise
    return wire


async def _asked(wire: Wire, *command: Value) -> Any:
    try:
        await wire.open()
        return await wire.ask(*command)
    finally:
        await wire.close()
