"""The room as Server-Sent Events, read with nothing but an HTTP library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import socketpair
from typing import Any

import aiohttp
import pytest

from gateway.app import Gateway
from gateway.server.streams import EventStream
from tests.conftest import JsonSocket, StartGateway, json_socket
from tests.server.test_websocket import drop


class Stream:
    """Yields (id, message); a comment is (None, None)."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[int | None, Any]:
        position, message = None, None
        while line := (await self.response.content.readline()).decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            if name == "id":
                position = int(value)
            elif name == "data":
                message = json.loads(value)
        if self.response.content.at_eof() and message is None:
            raise EOFError
        return position, message

    async def events(self, count: int) -> list[tuple[int | None, Any]]:
        return [(position, message["event"]) for position, message in [await self.next() for _ in range(count)]]


@asynccontextmanager
async def opened(gateway: Gateway, query: str = "", last: str | None = None, **options: Any) -> AsyncIterator[Stream]:
    headers = {} if last is None else {"Last-Event-ID": last}
    url = f"{gateway.http}/v1/collections/m/stream{query}"
    async with aiohttp.ClientSession(**options) as session, session.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Stream(response)


async def filled(socket: JsonSocket, count: int) -> None:
    for i in range(count):
        await socket.ask(action="upsert", collection="m", id=f"d{i}", vector=[1, i], metadata={"x": i})


async def test_live_and_resumed_there_is_no_gap_and_no_double(gateway: Gateway, socket: JsonSocket) -> None:
    await filled(socket, 2)
    async with opened(gateway) as stream:
        position, subscribed = await stream.next()
        assert (position, subscribed["type"], subscribed["index_version"]) == (2, "subscribed", 2)
        await socket.ask(action="patch", collection="m", id="d0", changes={"x": 5})
        ((position, event),) = await stream.events(1)
        assert (position, event["document_id"], event["metadata"]) == (3, "d0", {"x": 5})
    await socket.ask(action="delete", collection="m", id="d1")
    await socket.ask(action="patch", collection="m", id="d0", changes={"x": 6})
    async with opened(gateway, "?since=0", last="3") as stream:
        position, subscribed = await stream.next()
        assert (position, subscribed["recovered"]) == (3, True), "Last-Event-ID stands above since"
        assert [(at, e["event_type"]) for at, e in await stream.events(2)] == [(4, "delete"), (5, "update")]
        await socket.ask(action="patch", collection="m", id="d0", changes={"x": 7})
        assert [at for at, _ in await stream.events(1)] == [6]


@pytest.mark.parametrize("query", ["?since=99", "?since=2&epoch=another"])
async def test_what_can_not_be_resumed_starts_over_by_itself(gateway: Gateway, socket: JsonSocket, query: str) -> None:
    await filled(socket, 3)
    async with opened(gateway, query) as stream:
        position, subscribed = await stream.next()
        assert (position, subscribed["recovered"]) == (0, False)
        position, reset = await stream.next()
        assert (position, reset["type"]) == (0, "reset"), "who breaks off here begins anew"
        assert [event["document_id"] for _, event in await stream.events(3)] == ["d0", "d1", "d2"]


async def test_filter_include_and_left(gateway: Gateway, socket: JsonSocket) -> None:
    await filled(socket, 3)
    async with opened(gateway, '?since=0&filter={"x":{"$gte":1}}&include=vector') as stream:
        await stream.next()
        await stream.next()
        assert [event["vector"] for _, event in await stream.events(2)] == [[1, 1], [1, 2]]
        await socket.ask(action="patch", collection="m", id="d2", changes={"x": 0})
        ((_, event),) = await stream.events(1)
        assert event["left"] is True


@pytest.mark.parametrize(
    ("query", "last", "code", "field"),
    [
        ("?since=x", None, "invalid_message", "since"),
        ("?since=-1", None, "invalid_argument", "since"),
        ("", "x", "invalid_message", "Last-Event-ID"),
        ("?filter=[1]", None, "invalid_filter", "filter"),
        ('?filter={"a":{"$x":1}}', None, "invalid_filter", "filter.a.$x"),
        ("?include=all", None, "invalid_argument", "include"),
    ],
)
async def test_bad_requests_are_named(
    gateway: Gateway, socket: JsonSocket, query: str, last: str | None, code: str, field: str
) -> None:
    await filled(socket, 1)
    headers = {} if last is None else {"Last-Event-ID": last}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{gateway.http}/v1/collections/m/stream{query}", headers=headers) as response:
            assert response.status == 400
            error = await response.json()
            assert (error["code"], error["field"]) == (code, field)
        async with session.get(f"{gateway.http}/v1/collections/none/stream") as response:
            assert response.status == 404


async def test_it_ends_with_its_collection_and_with_the_gateway(start_gateway: StartGateway) -> None:
    async with start_gateway() as gateway, json_socket(gateway.ws) as socket:
        await filled(socket, 1)
        async with opened(gateway) as stream:
            await stream.next()
            await drop(gateway, "m")
            assert (await stream.next())[1]["type"] == "unsubscribed"
            with pytest.raises(EOFError):
                await stream.next()
        await filled(socket, 1)
        session = opened(gateway)
        stream = await session.__aenter__()
        await stream.next()
    with pytest.raises(EOFError):
        await stream.next()
    await session.__aexit__(None, None, None)


async def test_who_does_not_read_gets_the_net_state_later(gateway: Gateway, socket: JsonSocket) -> None:
    await filled(socket, 20)
    async with opened(gateway, read_bufsize=1024) as stream:
        await stream.next()
        for turn in range(1000):
            documents = [{"id": f"d{i}", "metadata": {"x": turn, "text": "t" * 700}} for i in range(20)]
            await socket.ask(action="upsert", collection="m", documents=documents)
        assert gateway.node.hosted("m").room.behind == 1
        states: dict[str, int] = {}
        last = 0
        while last < 20 + 1000 * 20:
            position, message = await stream.next()
            assert position is not None
            assert position > last
            last = position
            states[message["event"]["document_id"]] = message["event"]["metadata"]["x"]
        assert states == {f"d{i}": 999 for i in range(20)}


async def test_streams_are_limited_and_kept_alive(start_gateway: StartGateway) -> None:
    async with start_gateway(max_connections=1, ping_interval_s=0.05) as gateway:
        async with json_socket(gateway.ws) as socket:
            await filled(socket, 1)
        async with opened(gateway) as stream, aiohttp.ClientSession() as session:
            await stream.next()
            assert await stream.next() == (None, None), "a comment"
            async with session.get(f"{gateway.http}/v1/collections/m/stream") as second:
                assert second.status == 429
                assert (await second.json())["code"] == "rate_limited"
                assert second.headers["Retry-After"]


async def test_streams_that_are_gone_leave_nothing_behind(start_gateway: StartGateway) -> None:
    async with start_gateway(ping_interval_s=0.05) as gateway, json_socket(gateway.ws) as socket:
        await filled(socket, 1)
        for _ in range(20):
            async with opened(gateway) as stream:
                await stream.next()
        async with asyncio.timeout(10):
            while len(gateway.node.hosted("m").room):
                await asyncio.sleep(0.01)


async def test_a_stream_takes_as_much_as_it_has_room_for_and_everything_once_it_has_ended() -> None:
    """Who waited for one that had ended, and took nothing, would have waited for ever."""
    near, far = socketpair()
    with far:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=near)
        stream = EventStream(transport, b"ping", room_bytes=10)
        assert stream.offer(b"")
        assert stream.offer(b"x" * 10)
        assert stream.offer(b"y")
        assert not stream.offer(b"")
        assert not stream.offer(b"z")
        gone: list[bytes] = []
        enough = asyncio.Event()

        async def write(data: bytes) -> None:
            gone.append(data)
            await enough.wait()

        pumping = asyncio.create_task(stream.pump(write))
        while not gone:
            await asyncio.sleep(0)
        assert not stream.offer(b""), "it is still on its way"
        enough.set()
        assert await stream.drained()
        assert stream.offer(b"")
        assert gone == [b"x" * 10 + b"y"], "what waited went out together"
        stream.write(b"w" * 20)
        stream.end()
        assert stream.offer(b"")
        assert stream.offer(b"dropped")
        assert not await stream.drained()
        await pumping
        assert gone[1:] == [b"w" * 20]
        transport.abort()
