"""This node among others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from gateway.bus import scripts
from gateway.bus.agreement import Diverged, Keys, NoPeer, State, forget, read_state
from gateway.bus.bus import Bus, Listener
from gateway.bus.link import Link, LinkLost, LinkRefused
from gateway.bus.shared import SharedBus, SharedOptions
from gateway.bus.subscriptions import Subscriptions
from gateway.engine.collection import Collection, new_epoch
from gateway.engine.replay import Copy
from gateway.engine.types import Spec
from gateway.errors import NotFound, StartupError, StorageUnavailable
from gateway.faults import internal
from gateway.node import companions
from gateway.node.alone import Local
from gateway.node.exchange import CopyCall
from gateway.node.peers import PeerClient, PeerFailed, PeerRefused
from gateway.node.registry import (
    COLLECTIONS,
    DROPPED,
    NODES,
    Heartbeat,
    Life,
    Neighbours,
    NodeState,
    listing,
    lives,
)
from gateway.node.remote import Calls

log = structlog.get_logger(__name__)

_ANNOUNCE = "hotindex:{collections}:announced"
_FORGET_MS = 60_000
_PATIENCE_S = 10.0
_FIRST_PAUSE_S = 0.02
_UNKNOWN = 1 << 30
"""As many nodes are expected to say what they hold where it isn't known how many there are."""

_PROBES_MISSED = 3
_AVOID_S = 5.0
"""How long others are asked before a node that failed."""

_NEAR = 1000
"""Nodes whose index_versions differ by less are taken for equally up to date: heartbeats are a second old."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """`heartbeat_s` is the time between heartbeats; `collections` those to host (None: all)."""

    name: str
    shared: SharedOptions
    heartbeat_s: float = 1.0
    collections: frozenset[str] | None = None


class SharedCluster:
    """The nodes that share one Redis."""

    def __init__(self, link: Link, peers: PeerClient, options: ClusterOptions, random: Callable[[], float]) -> None:
        self._link = link
        self._client = peers
        self._options = options
        self._origin = options.shared.origin
        self._subscriptions = Subscriptions(link, self._take, self._lost, self._lost, random)
        self._buses: dict[str, SharedBus] = {}
        self._neighbours = Neighbours(_PATIENCE_S)
        self._clock = asyncio.get_running_loop().time
        self._heartbeat = Heartbeat(
            self._origin, options.name, "", "", {}, None if options.collections is None else sorted(options.collections)
        )
        self._local: Local | None = None
        self._random = random
        self._failed: dict[str, float] = {}
        self._known: frozenset[str] | None = None
        """The collections there are, once the register was read."""
        self._heard: list[Heartbeat] = []
        """The others that were there then."""
        self._namesakes: set[str] = set()
        self._due = asyncio.Event()
        self._probe = f"hotindex:{{{self._origin}}}:probe"
        self._joins_waiting = False
        self._probes = 0
        self._heard_probe = 0
        self._subscribing: dict[str, asyncio.Task[None]] = {}
        self._copying: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self.fault: str | None = None

    async def start(self, local: Local, ws: str, http: str) -> None:
        self._local = local
        self._heartbeat = msgspec.structs.replace(self._heartbeat, ws=ws, http=http)
        try:
            await self._link.open()
            await self._tick()
        except LinkRefused as error:
            raise StartupError(f"setting redis_url: {error}") from None
        except LinkLost as error:
            self._note(str(error))
        self._task = asyncio.create_task(self._run(), name="cluster")

    async def leave(self) -> None:
        tasks = [task for task in (self._task, *self._copying.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        try:
            await self._link.run(scripts.HEARTBEAT, [NODES], [self._origin, "", _FORGET_MS])
            await self._announce(self._origin)
        except (LinkLost, LinkRefused) as error:
            log.info("left_without_a_word", reason=str(error))

    async def close(self) -> None:
        await self._subscriptions.close()
        await self._client.close()
        await self._link.close()

    def make_bus(
        self, collection: Collection, listener: Listener, executor: Executor, room: Callable[[], Awaitable[None]]
    ) -> Bus:
        name = collection.spec.name
        bus = SharedBus(
            collection,
            listener,
            executor,
            room,
            self._link,
            self,
            self._options.shared,
            lambda error: self._replace(name, error),
            stopped=lambda: self._forget(bus),
        )
        self._buses[bus.keys.channel] = bus
        self._subscribing[bus.keys.channel] = asyncio.create_task(self._subscribe(bus))
        return bus

    async def _subscribe(self, bus: SharedBus) -> None:
        """Subscribe to a collection's channel, however long that takes."""
        while True:
            try:
                await self._subscriptions.subscribe(bus.keys.channel)
            except (LinkLost, LinkRefused) as error:
                self._note(str(error))
                await asyncio.sleep(self._options.heartbeat_s)
            else:
                bus.look()
                return

    async def _forget(self, bus: SharedBus) -> None:
        """A bus has stopped."""
        channel = bus.keys.channel
        if self._buses.get(channel) is bus:
            del self._buses[channel]
            task = self._subscribing.pop(channel)
            task.cancel()
            await asyncio.wait([task])
            await self._subscriptions.unsubscribe(channel)

    def _take(self, channel: str, message: bytes) -> None:
        if channel == self._probe:
            self._heard_probe = int(message)
        elif channel == _ANNOUNCE:
            self._neighbours.forget(message.decode())
            self._due.set()
        elif channel in self._buses:
            self._buses[channel].take(message)

    def _lost(self) -> None:
        """The subscriptions' connection was lost, or is back: something may have been missed."""
        self._heard_probe = self._probes
        for bus in self._buses.values():
            bus.distrust()

    async def _run(self) -> None:
        subscribed = False
        pause_s = self._options.heartbeat_s
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._due.wait()
                    pause_s = _FIRST_PAUSE_S
            except TimeoutError:
                pass
            self._due.clear()
            try:
                await self._tick()
                if not subscribed:
                    await self._subscriptions.subscribe(_ANNOUNCE)
                    await self._subscriptions.subscribe(self._probe)
                    subscribed = True
                await self._audit()
                self.fault = None
                # A collection that has just been made can be joined in a moment.
                longest_s = self._options.heartbeat_s
                pause_s = min(2 * pause_s, longest_s) if self._joins_waiting else longest_s
            except (LinkLost, LinkRefused, StorageUnavailable) as error:
                self._note(str(error))
            except Exception as error:  # without this task the node would be alone without knowing
                self._note(internal(error).message)

    def _note(self, fault: str) -> None:
        if fault != self.fault:
            log.warning("cluster", reason=fault)
        self.fault = fault

    async def _tick(self) -> None:
        """Tell the others of this node; do what the register of collections asks for."""
        assert self._local is not None, "start comes first"
        said = msgspec.structs.replace(self._heartbeat, holdings=self._local.holdings())
        reply = await self._link.run(scripts.HEARTBEAT, [NODES], [self._origin, msgspec.json.encode(said), _FORGET_MS])
        self._neighbours.update(reply, self._clock())
        self._look_for_namesakes()
        await self._reconcile(lives(await self._link.command("HGETALL", COLLECTIONS)))

    def _look_for_namesakes(self) -> None:
        """Say so once where another node has this one's name: people tell nodes apart by it."""
        alike = {one.http for one in self._others() if one.name == self._options.name}
        for http in alike - self._namesakes:
            log.warning("same_name", node=self._options.name, http=http)
        self._namesakes = alike

    async def _audit(self) -> None:
        """Look whether messages still come: a connection that has gone silent says nothing of it."""
        silent = self._probes - self._heard_probe >= _PROBES_MISSED
        for bus in list(self._buses.values()):
            silent |= await bus.audit()
        if silent:
            log.warning("subscriptions_silent", probes_missed=self._probes - self._heard_probe)
            self._heard_probe = self._probes
            await self._subscriptions.restart()
        self._probes += 1
        await self._link.command(self._link.publish_command(), self._probe, self._probes)

    async def _reconcile(self, register: dict[str, Life]) -> None:
        assert self._local is not None, "start comes first"
        heard = list(self._others())
        self._known, self._heard = frozenset(register) | await self._forgotten(register, heard), heard
        held = self._local.holdings()
        for name, holding in held.items():
            if name in self._copying or (name in register and register[name].epoch == holding.epoch):
                continue
            if await self.dropped(holding.epoch):
                log.info("dropped_elsewhere", collection=name)
                await self._local.leave(name)
            elif name not in register:
                await self._enter(name)
            else:
                self._note(
                    f"collection {name!r} is another one here (epoch {holding.epoch}) than in the cluster"
                    f" ({register[name].epoch}): move its folder away, or drop the other"
                )
        await self._unfollow(register)
        self._joins_waiting = False
        for name, life in register.items():
            if name not in held and name not in self._copying and self.hosts(name):
                state = await read_state(self._link, Keys.of(name))
                if state is not None and state.epoch != life.epoch and await self.dropped(state.epoch):
                    await forget(self._link, Keys.of(name), state.epoch)
                if state is not None and state.epoch == life.epoch:
                    self._copy(name, self._local.join(life, state, self._needed(name, state)))
                else:
                    self._joins_waiting = True

    async def _unfollow(self, register: Mapping[str, Life]) -> None:
        """Have clients told of collections that were dropped, also where no host is there that would tell of it."""
        assert self._local is not None, "start comes first"
        for name, epoch in self._local.followed().items():
            if (name not in register or register[name].epoch != epoch) and await self.dropped(epoch):
                self._local.unfollow(name, epoch)

    async def _forgotten(self, register: Mapping[str, Life], heard: Iterable[Heartbeat]) -> set[str]:
        """Return the collections that others hold and Redis knows nothing of: they are about to enter them again."""
        held = [
            (name, holding.epoch) for one in heard for name, holding in one.holdings.items() if name not in register
        ]
        return {name for name, epoch in held if not await self.dropped(epoch)}

    async def _enter(self, name: str) -> None:
        """Register a collection that was here before the cluster knew of it."""
        bus = self._buses[Keys.of(name).channel]
        await self._link.run(scripts.CREATE, [COLLECTIONS], [name, Life(bus.epoch, bus.spec).encode()])

    def hosts(self, name: str) -> bool:
        """Tell whether this node is to host a collection."""
        return self._options.collections is None or companions.owner(name) in self._options.collections

    def _needed(self, name: str, state: State) -> AsyncIterator[Copy] | None:
        """Return what a node that has nothing needs beside the stream."""
        return self.copies(name, state.epoch, state.term, 0) if state.floor else None

    def _replace(self, name: str, error: Diverged) -> None:
        log.warning("diverged", collection=name, reason=str(error))
        self._copy(name, self._copy_anew(name, error))

    async def _copy_anew(self, name: str, error: Diverged) -> None:
        """Copy a collection from the others, until that has been done."""
        assert self._local is not None, "start comes first"
        while True:
            try:
                state = await read_state(self._link, Keys.of(name))
                if state is None:
                    raise NoPeer("the nodes have not agreed yet")
                await self._local.replace(name, state, error.agreed, self._needed(name, state))
                return
            except NotFound:
                return  # dropped meanwhile
            except (LinkLost, LinkRefused, NoPeer, Diverged, StorageUnavailable) as reason:
                log.warning("not_copied", collection=name, reason=str(reason))
                await asyncio.sleep(self._options.heartbeat_s)

    def _copy(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._copying[name] = asyncio.create_task(self._copied(name, work), name=f"copy {name}")

    async def _copied(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (LinkLost, LinkRefused, NoPeer, Diverged, StorageUnavailable) as error:
            log.warning("not_copied", collection=name, reason=str(error))
        except Exception as error:  # one collection's fault must not keep this node from the others
            internal(error, collection=name)
        finally:
            del self._copying[name]

    async def register(self, spec: Spec, owner: Life | None = None) -> Life:
        belongs = [] if owner is None else [owner.spec.name, owner.epoch]
        made = Life(new_epoch(), spec).encode()
        try:
            found = await self._link.run(scripts.CREATE, [COLLECTIONS], [spec.name, made, *belongs])
            await self._announce()
        except (LinkLost, LinkRefused) as error:
            raise StorageUnavailable(f"collection {spec.name!r} can't be made at present: {error}") from None
        if found is None:
            assert owner is not None, "others are always entered"
            raise NotFound(f"no collection {owner.spec.name!r}", field="collection")
        return Life.decode(found)

    async def drop(self, name: str, epoch: str) -> None:
        try:
            await self._link.run(scripts.DROP, [COLLECTIONS, DROPPED], [name, epoch, companions.users_of(name)])
            await forget(self._link, Keys.of(name), epoch)
            await self._announce()
        except (LinkLost, LinkRefused) as error:
            raise StorageUnavailable(f"collection {name!r} can't be dropped at present: {error}") from None

    async def _announce(self, left: str = "") -> None:
        """Have all nodes look at the register; and forget one that has left."""
        await self._link.command(self._link.publish_command(), _ANNOUNCE, left)

    async def nodes(self) -> list[NodeState]:
        try:
            assert self._local is not None, "start comes first"
            said = msgspec.structs.replace(self._heartbeat, holdings=self._local.holdings())
            reply = await self._link.run(
                scripts.HEARTBEAT, [NODES], [self._origin, msgspec.json.encode(said), _FORGET_MS]
            )
        except (LinkLost, LinkRefused) as error:
            # What was known last, and how long ago.
            log.info("nodes_not_heard", reason=str(error))
        else:
            self._neighbours.update(reply, self._clock())
        return listing(self._neighbours.heard(self._clock()))

    # For collections hosted elsewhere: whom to ask.

    def names(self) -> list[str]:
        return list(self._known or ())

    def exists(self, name: str) -> bool:
        if self._known is not None and name in self._known:
            return True
        # Redis may have forgotten it, and nobody that hosts anything may have been heard of since.
        told = self.hosts(name) or any(one.holdings or one.serves(name) for one in self._heard)
        if self._known is None or not told:
            reason = self.fault or "no node that hosts any was heard of"
            raise StorageUnavailable(f"it isn't known yet whether there is a collection {name!r}: {reason}")
        return False

    def _others(self) -> Iterator[Heartbeat]:
        return (one for one in self._neighbours.alive(self._clock()) if one.origin != self._origin)

    def calls(self, name: str) -> Calls | None:
        return Calls(name, self._client, self) if self.candidates(name) else None

    def candidates(self, collection: str) -> list[str]:
        """Return the addresses of those that host a collection, or would: the least behind first, but for those that
        failed lately; among equals by chance.
        """
        now = self._clock()
        ranked = [
            (
                self._failed.get(heartbeat.http, -_AVOID_S) + _AVOID_S > now,
                -(heartbeat.holdings[collection].index_version // _NEAR)
                if collection in heartbeat.holdings
                else _UNKNOWN,
                self._random(),
                heartbeat.http,
            )
            for heartbeat in self._others()
            if heartbeat.serves(collection)
        ]
        return [http for *_, http in sorted(ranked)]

    def failed(self, http: str) -> None:
        self._failed[http] = self._clock()

    # For the buses: who else has a collection.

    async def dropped(self, epoch: str) -> bool:
        return bool(await self._link.command("SISMEMBER", DROPPED, epoch))

    def expected(self, collection: str) -> int:
        bus = self._buses.get(Keys.of(collection).channel)
        if bus is None or bus.position == 0:
            return 1
        if self._neighbours.updates < 2:
            return _UNKNOWN
        # Who is to host it may do so since its last heartbeat.
        hosts = {one.origin for one in self._neighbours.alive(self._clock()) if one.serves(collection)}
        return len(hosts | {self._origin})

    async def copies(self, collection: str, epoch: str, term: int, after: int) -> AsyncIterator[Copy]:
        """Copy from whoever is furthest; where one fails, go on with another."""
        failed: set[str] = set()
        refused: set[str] = set()
        since = after
        while True:
            hosts = self._neighbours.hosts(collection, epoch, self._clock())
            able = {
                node: (heartbeat, holding)
                for node, (heartbeat, holding) in hosts.items()
                if node not in failed | refused | {self._origin}
            }
            if not able and refused:
                raise Diverged(f"no other node at hand reaches back to {since}", since)
            if not able:
                raise NoPeer(f"no other node at hand has what changed after {after}")
            node, (heartbeat, holding) = max(able.items(), key=lambda one: (one[1][1].term, one[1][1].index_version))
            try:
                copy = await self._client.copy(heartbeat.http, collection, CopyCall(epoch, term, since, after))
            except PeerFailed as error:
                log.warning("peer_failed", node=heartbeat.name, reason=str(error))
                failed.add(node)
                continue
            except PeerRefused as error:
                log.warning("peer_refused", node=heartbeat.name, reason=str(error))
                # Who hasn't come so far itself may be heard of as such, and isn't one that has forgotten.
                reached = holding.term == term and holding.index_version >= after
                (refused if reached else failed).add(node)
                continue
            yield copy
            if not copy.more:
                return
            after = copy.through
