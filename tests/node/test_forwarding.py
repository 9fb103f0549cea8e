"""Writes on their way to a host: what goes together, and what doesn't wait for what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.engine.types import Done, Put, Write
from gateway.errors import HotindexError, StorageUnavailable
from gateway.node import exchange
from gateway.node.exchange import Failure, Success
from gateway.node.forwarding import ForwardBus
from tests.engine.support import put


class Host:
    """Holds each call until the test answers it."""

    def __init__(self) -> None:
        self.calls: list[list[list[str]]] = []
        self.held: list[asyncio.Future[HotindexError | None]] = []

    async def __call__(
        self, name: str, body: bytes, decode: Callable[[bytes], list[Success | Failure]]
    ) -> list[Success | Failure]:
        assert name == "commit"
        writes = exchange.writes(body)
        assert all(write.event_id for write in writes)
        self.calls.append([[operation.id for operation in write.operations] for write in writes])
        self.held.append(asyncio.get_running_loop().create_future())
        if (error := await self.held[-1]) is not None:
            raise error
        return decode(exchange.encode([Success(Done(1, ())) for _ in writes]))


def text(*ids: str, priority: int = 0) -> Write:
    return Write(tuple(Put(one, content="text") for one in ids), priority=priority)


def ready(*ids: str) -> Write:
    return Write(tuple(put(one, 1, 2) for one in ids))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_texts_vectors_and_critical_writes_go_apart_but_for_shared_documents() -> None:
    host = Host()
    bus = ForwardBus(host)
    writes = [ready("a"), text("t"), ready("b", "c"), text("c", "d"), ready("d"), text("x", priority=2)]
    under_way = await bus.commit(writes)
    await turns()
    assert sorted(host.calls) == [[["a"]], [["t"], ["b", "c"], ["c", "d"], ["d"]], [["x"]]]
    for held in host.held:
        held.set_result(None)
    assert [type(await one.done) for one in under_way] == [Done] * 6


async def test_calls_at_a_time_are_few_and_the_rest_goes_together() -> None:
    host = Host()
    bus = ForwardBus(host)
    under_way = [*await bus.commit([ready("a")]), *await bus.commit([ready("b")])]
    for i in range(10):
        under_way += await bus.commit([ready(f"c{i}")])
    await turns()
    assert host.calls == [[["a"]], [["b"]]]
    host.held[0].set_result(None)
    await turns()
    assert host.calls[2:] == [[[f"c{i}"] for i in range(10)]]
    for held in host.held[1:]:
        held.set_result(None)
    await asyncio.gather(*(one.done for one in under_way))


async def test_an_error_is_each_writes_own() -> None:
    host = Host()
    under_way = await ForwardBus(host).commit([ready("a"), ready("b")])
    await turns()
    host.held[0].set_result(StorageUnavailable("lost"))
    outcomes = [await one.done for one in under_way]
    assert [(type(one), getattr(one, "message", None)) for one in outcomes] == [(StorageUnavailable, "lost")] * 2
