"""Writes on their way to a node that hosts their collection.

They go in several calls at a time, so that what waits for a model there doesn't hold up what needs none, nor what is
critical. Calls under way share no document: what shares one goes in the same call, in order.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol, TypeAlias

import msgspec

from gateway.bus.bus import UnderWay
from gateway.engine.types import Done, Write
from gateway.errors import HotindexError
from gateway.faults import internal
from gateway.ingest.queue import CRITICAL, may_embed
from gateway.node import exchange
from gateway.node.exchange import Failure, Success

_DOCUMENTS = 2048
_BYTES = 4 << 20


class Call(Protocol):
    """Asks a host. See `gateway.node.remote.Calls.call`."""

    def __call__(
        self, name: str, body: bytes, decode: Callable[[bytes], list[Success | Failure]]
    ) -> Awaitable[list[Success | Failure]]: ...


class _Way(Enum):
    """What goes together, and in how many calls at a time."""

    CRITICAL = 4
    READY = 2
    TEXTS = 8


@dataclass(frozen=True, slots=True)
class _Forwarded:
    write: Write
    done: asyncio.Future[Done | HotindexError]


_Group: TypeAlias = list[_Forwarded]


class ForwardBus:
    """A Bus whose commits are another node's. Call on the event loop, between `start` and `stop`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._names = (f"{secrets.token_hex(16)}-{n}" for n in itertools.count())
        self._waiting: dict[_Way, deque[_Group]] = {way: deque() for way in _Way}
        self._under_way: dict[_Way, set[asyncio.Task[None]]] = {way: set() for way in _Way}
        self.fault: str | None = None
        self.gather_s = 0.0

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def probe(self) -> None:
        pass

    async def commit(self, writes: Sequence[Write]) -> Sequence[UnderWay]:
        loop = asyncio.get_running_loop()
        forwarded = [_Forwarded(self._named(write), loop.create_future()) for write in writes]
        for group in _apart(forwarded):
            self._waiting[_way(group)].append(group)
        for way in _Way:
            self._send(way)
        return [UnderWay(one.done) for one in forwarded]

    def _named(self, write: Write) -> Write:
        """Give a write an event id: a host that was silent may carry out later what another did when it was asked again."""
        return write if write.event_id else msgspec.structs.replace(write, event_id=next(self._names))

    def _send(self, way: _Way) -> None:
        waiting, under_way = self._waiting[way], self._under_way[way]
        while waiting and len(under_way) < way.value:
            task = asyncio.create_task(self._forward(_taken(waiting)))
            under_way.add(task)
            task.add_done_callback(partial(self._ended, way))

    def _ended(self, way: _Way, task: asyncio.Task[None]) -> None:
        self._under_way[way].discard(task)
        self._send(way)

    async def _forward(self, sent: Sequence[_Forwarded]) -> None:
        try:
            body = exchange.encode_writes([one.write for one in sent])
            outcomes = await self._call("commit", body, exchange.decode_outcomes)
        except HotindexError as error:
            outcomes = [exchange.failure(error)] * len(sent)
        except Exception as error:  # one call's fault must not end the others
            outcomes = [exchange.failure(internal(error))] * len(sent)
        for one, outcome in zip(sent, outcomes, strict=True):
            one.done.set_result(outcome.done if isinstance(outcome, Success) else exchange.error(outcome))


def _apart(forwarded: Sequence[_Forwarded]) -> Iterable[_Group]:
    """Return groups that share no document, each in order."""
    root: dict[str, str] = {}

    def find(document_id: str) -> str:
        while root.setdefault(document_id, document_id) != document_id:
            root[document_id] = document_id = root[root[document_id]]
        return document_id

    for one in forwarded:
        first, *others = one.write.operations
        for other in others:
            root[find(other.id)] = find(first.id)
    groups: dict[str, _Group] = {}
    for one in forwarded:
        groups.setdefault(find(one.write.operations[0].id), []).append(one)
    return groups.values()


def _way(group: _Group) -> _Way:
    if any(one.write.priority == CRITICAL for one in group):
        return _Way.CRITICAL
    return _Way.TEXTS if any(may_embed(one.write) for one in group) else _Way.READY


def _taken(waiting: deque[_Group]) -> list[_Forwarded]:
    """Take as many groups as one call bears, and at least one."""
    taken: list[_Forwarded] = []
    documents = size_bytes = 0
    while waiting:
        documents += sum(len(one.write.operations) for one in waiting[0])
        size_bytes += sum(one.write.size_bytes for one in waiting[0])
        if taken and (documents > _DOCUMENTS or size_bytes > _BYTES):
            break
        taken += waiting.popleft()
    return taken
