"""A collection that other nodes host: rooms are here, all else is asked of them.

A room follows that of a host over one connection, whatever the number of its subscribers, and so do watches. Writes gather
here as they do where the collection is hosted, and are forwarded a batch at a time, so that those on one document stay in
order.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import msgspec
import structlog

from gateway.engine import lives
from gateway.engine.types import Answer, Applied, BatchComplete, Change, Document, Done, Page, Span, Write
from gateway.errors import HotindexError, NotFound, Overloaded, StorageUnavailable
from gateway.faults import internal
from gateway.ingest.commit import Committer
from gateway.ingest.queue import Bounds
from gateway.node import audience, exchange, queries, watches
from gateway.node.exchange import ChangesCall, GetCall, Greeting, Info
from gateway.node.forms import Form
from gateway.node.forwarding import ForwardBus
from gateway.node.peers import PeerChannel, PeerClient, PeerFailed, PeerRefused
from gateway.node.positions import Positions
from gateway.node.relaying import Relaying
from gateway.node.watches import Opened
from gateway.protocol import checks, messages
from gateway.push.events import index_version
from gateway.push.room import Room, RoomLimits, Sink

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_TRIES = 3
_RETRY_S = 1.0
_PAUSE_S = 0.2


class Hosts(Protocol):
    """The nodes that host a collection."""

    def candidates(self, collection: str) -> Sequence[str]:
        """Return their HTTP addresses, those to ask first in front."""
        ...

    def failed(self, http: str) -> None:
        """Take note that one didn't answer."""
        ...


class Calls:
    """Asks hosts, one after the other, until one answers."""

    def __init__(self, collection: str, client: PeerClient, hosts: Hosts) -> None:
        self._collection = collection
        self._client = client
        self._hosts = hosts

    async def call(self, name: str, body: bytes, decode: Callable[[bytes], _T]) -> _T:
        """Return a host's answer; what is asked may be asked of several. Raises the error a host answers with, and where
        none can be reached Overloaded, or, for writes that one may have got, StorageUnavailable.
        """
        reason, in_doubt = "none is known", False
        lacking: HotindexError | None = None
        for http in self._hosts.candidates(self._collection)[:_TRIES]:
            try:
                return decode(await self._client.call(http, self._collection, name, body))
            except PeerRefused as refused:
                error = exchange.error(refused.failure)
                if not (isinstance(error, Overloaded) or (isinstance(error, NotFound) and error.field == "collection")):
                    raise error from None
                lacking = error  # another may have it
            except PeerFailed as failed:
                self._hosts.failed(http)
                reason, in_doubt = str(failed), in_doubt or failed.in_doubt
                log.warning("host_failed", collection=self._collection, http=http, reason=reason)
        if in_doubt and name == "commit":
            raise StorageUnavailable(
                f"a node that hosts collection {self._collection!r} was lost while it had this write, which may have been"
                f" applied: {reason}"
            )
        if lacking is not None:
            raise lacking
        raise self._unreachable(reason)

    async def relay(self, since: int, epoch: str) -> AsyncIterator[bytes]:
        """Follow a host's room: yield frames. Raises PeerFailed, or the error a host answers with."""
        refused: HotindexError | None = None
        for http in self._hosts.candidates(self._collection)[:_TRIES]:
            try:
                async for frame in self._client.relay(http, self._collection, since, epoch):
                    yield frame
            except PeerRefused as error:
                refused = exchange.error(error.failure)
            except PeerFailed:
                self._hosts.failed(http)
                raise
        raise refused or PeerFailed(f"no node that hosts collection {self._collection!r} is known")

    @asynccontextmanager
    async def watches(self, greeting: Greeting) -> AsyncIterator[PeerChannel]:
        """Find a host that is as far as `greeting` says and lends watches. Raises Overloaded, or the error hosts answer
        with. It is told PeerFailed where that host is lost.
        """
        channel = await self._lender(greeting)
        try:
            yield channel
        except PeerFailed:
            self._hosts.failed(channel.http)
            raise
        finally:
            await channel.close()

    async def _lender(self, greeting: Greeting) -> PeerChannel:
        reason = "none is known"
        refused: HotindexError | None = None
        for http in self._hosts.candidates(self._collection)[:_TRIES]:
            try:
                return await self._client.watches(http, self._collection, greeting)
            except PeerRefused as error:
                refused = exchange.error(error.failure)
            except PeerFailed as failed:
                self._hosts.failed(http)
                reason = str(failed)
                log.warning("host_failed", collection=self._collection, http=http, reason=reason)
        raise refused or self._unreachable(reason)

    def _unreachable(self, reason: str) -> Overloaded:
        return Overloaded(
            f"no node that hosts collection {self._collection!r} can be reached: {reason}", retry_after_s=_RETRY_S
        )


class Remote:
    """Call on the event loop, between `open` and `close`."""

    def __init__(
        self,
        calls: Calls,
        info: Info,
        bounds: Bounds,
        room: RoomLimits,
        observe_s: Callable[[float], None],
        now: Callable[[], int],
        read_wait_s: float,
    ) -> None:
        self.name = info.spec.name
        self.spec = info.spec
        self.epoch = info.epoch
        self._calls = calls
        self._purged_through = info.purged_through
        self._starts = info.starts
        metric = info.spec.metric
        self.room = Room(self.name, info.epoch, info.index_version, self.read_changes, room, metric)
        self.committer = Committer(self.name, None, ForwardBus(calls.call), bounds, lambda: 0.0, observe_s)
        self.relaying = Relaying(self.name, info.epoch, calls.watches, now)
        self._positions = Positions(self.room)
        self._read_wait_s = read_wait_s
        self._task: asyncio.Task[None] | None = None
        self.ended = False
        """Whether the collection is another one by now, or none: this is to be closed, and opened anew."""

    async def open(self) -> None:
        self.committer.start()
        self._task = asyncio.create_task(self._follow(), name=f"relay {self.name}")

    async def close(self) -> None:
        """Forward what was submitted; send away those who subscribe and watch, who come back."""
        await self.committer.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.room.abandon()
        await self.relaying.stop()

    def dropped(self) -> None:
        """Tell all who subscribe and watch that there is no more to come."""
        self.ended = True
        self.room.close()
        self.relaying.close()

    async def info(self) -> Info:
        return await self._calls.call("info", b"", exchange.decode_info)

    async def submit(self, write: Write, wait: bool = True) -> asyncio.Future[Done | HotindexError]:
        return await self.committer.submit(write, wait)

    async def get(self, document_id: str, *, include_vector: bool) -> tuple[Document, bytes | None] | None:
        body = exchange.encode(GetCall(document_id, include_vector))
        found = await self._calls.call("get", body, exchange.decode_found)
        return None if found.document is None else (found.document, found.vector)

    async def search(self, command: messages.Search) -> Answer:
        if command.user_id is None:
            queries.check(command)
        else:
            audience.asked(command)
        return await self._calls.call("search", _encoded(command), exchange.decode_answer)

    async def learn(self, command: messages.Learn) -> Done:
        if isinstance(command, messages.UserEvent):
            checks.metadata(command.item_features or {}, "item_features")
        if command.event_id is None:
            # It may be asked of another host when one is lost, and is to count once.
            command = msgspec.structs.replace(command, event_id=secrets.token_hex(16))
        name = messages.name_of(command)
        return await self._calls.call(name, _encoded(command), exchange.decode_done)

    async def put_user(self, command: messages.PutUser) -> Done:
        return await self._calls.call("put_user", _encoded(command), exchange.decode_done)

    async def forget_user(self, user_id: str) -> Done:
        return await self._calls.call("forget_user", exchange.encode(user_id), exchange.decode_done)

    async def user(self, user_id: str) -> messages.UserMessage:
        return await self._calls.call("user", exchange.encode(user_id), exchange.decode_user)

    async def watch(self, command: messages.Watch, watch_id: str, form: Form, sink: Sink) -> Opened:
        # What a host would refuse, or can't be passed on, must not come among the watches of others.
        if command.user_id is not None:
            audience.asked(command)
        else:
            queries.check(watches.searched(command))
            if command.vector is not None:
                command = msgspec.structs.replace(command, vector=queries.vector(self.spec, command.vector).tobytes())
        # A host is asked for what there is already, so that none who waits here is waited for there.
        await self._positions.reach(command.min_index_version, self._read_wait_s)
        return await self.relaying.watch(msgspec.structs.replace(command, ref=None), watch_id, form, sink)

    def reaches(self, since: int, epoch: str | None) -> bool:
        if epoch is not None and not lives.holds(epoch, since, lives.life(self.epoch), self._starts):
            return False
        return since == 0 or self._purged_through <= since <= self.room.head

    async def read_changes(self, span: Span, limit: int, limit_bytes: int, with_vectors: bool) -> Page:
        body = exchange.encode(ChangesCall(span, limit, limit_bytes, with_vectors, self.epoch))
        return await self._calls.call("changes", body, exchange.decode_page)

    async def _follow(self) -> None:
        """Keep the room at the head of a host's."""
        while not self.ended:
            try:
                await self._relay()
            except PeerFailed as error:
                log.warning("relay_lost", collection=self.name, reason=str(error))
            except HotindexError as error:
                log.warning("relay_refused", collection=self.name, reason=error.message)
                self.ended = error.code == "not_found"
            except Exception as error:  # without this task the room would stand still
                internal(error, collection=self.name)
            await asyncio.sleep(_PAUSE_S)
        self.room.abandon()
        self.relaying.abandon()

    async def _relay(self) -> None:
        began = False
        async for frame in self._calls.relay(self.room.head, self.epoch):
            if began:
                if not exchange.is_relayed(frame):
                    self.dropped()  # the room there is closed
                    return
                self._publish(exchange.decode_relayed(frame))
                continue
            subscribed = exchange.decode_subscribed(frame)
            if subscribed.epoch != self.epoch or not subscribed.recovered:
                self.ended = True
                return
            began = True

    def _publish(self, events: Sequence[Change | BatchComplete]) -> None:
        """Pass on what was committed together, or the net change of what was missed."""
        applied = Applied(self.room.head + 1, max(self.room.head, index_version(events[-1])), tuple(events))
        self.room.publish(applied)
        self._positions.advanced()


def _encoded(command: messages.Command) -> bytes:
    """Return a command as it is passed on: what a client refers to it by may be a number that can't be."""
    return exchange.encode(msgspec.structs.replace(command, ref=None))
