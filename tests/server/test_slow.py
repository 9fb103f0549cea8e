"""Clients that read late, never, or too many at once; and what the others notice of them: nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from gateway.app import Gateway
from gateway.push.room import Room
from tests.conftest import JsonSocket, StartGateway, json_socket
from tests.server.test_websocket import drop

TEXT = "t" * 2000


class Closing:
    """The sink of a connection that is being closed and has not taken what was sent before."""

    def __init__(self) -> None:
        self.asked = 0
        """How often it was waited for."""

    def offer(self, data: bytes) -> bool:
        return False

    def write(self, data: bytes) -> None:
        raise AssertionError(f"it takes nothing, and is sent {data!r}")

    async def drained(self) -> bool:
        self.asked += 1
        assert self.asked < 100, "it has said that nothing will drain"
        return False

    def abandon(self, *, slow: bool = False) -> None:
        raise AssertionError("it is closed already")

    def end(self) -> None:
        pass


@asynccontextmanager
async def sleeping(gateway: Gateway, **how: Any) -> AsyncIterator[JsonSocket]:
    """Subscribe, then stop reading from the socket."""
    async with websockets.connect(gateway.ws, max_queue=None, close_timeout=0.1) as connection:
        await connection.recv()
        await connection.send(json.dumps({"action": "subscribe", "collection": "m", **how}))
        assert json.loads(await connection.recv())["type"] == "subscribed"
        connection.transport.pause_reading()
        yield JsonSocket(connection, {})
        connection.transport.resume_reading()


async def write(socket: JsonSocket, turns: int, documents: int = 20, text: str = TEXT) -> None:
    for turn in range(turns):
        batch = [
            {"id": f"d{i}", "vector": [1, i], "metadata": {"x": turn, "of": turns, "text": text}}
            for i in range(documents)
        ]
        assert (await socket.reply(action="upsert", collection="m", documents=batch))["type"] == "ack"


def room(gateway: Gateway) -> Room:
    return gateway.node.hosted("m").room


@pytest.mark.parametrize("batch", [False, True])
async def test_who_reads_late_gets_the_exact_net_state_and_the_others_everything(
    start_gateway: StartGateway, batch: bool
) -> None:
    async with (
        start_gateway(room_log_bytes=100_000) as gateway,
        json_socket(gateway.ws) as producer,
        json_socket(gateway.ws) as awake,
    ):
        await write(producer, 1)
        await awake.ask(action="subscribe", collection="m")
        watching = asyncio.create_task(awake.events(400 * 20))
        async with sleeping(gateway, batch=batch) as late:
            await write(producer, 400)
            assert room(gateway).behind == 1
            assert [event["index_version"] for event in await watching] == list(range(21, 21 + 8000))
            late.connection.transport.resume_reading()
            events: list[dict[str, Any]] = []
            while not events or events[-1]["index_version"] < 8020:
                events += await late.events(1)
        positions = [event["index_version"] for event in events]
        assert positions == sorted(set(positions))
        assert positions[0] == 21
        assert len(events) < 8000, "what it slept through came conflated"
        assert {event["document_id"]: event["metadata"]["x"] for event in events} == {f"d{i}": 399 for i in range(20)}


async def test_frames_larger_than_any_buffer_arrive_whole(gateway: Gateway) -> None:
    async with json_socket(gateway.ws) as producer:
        await write(producer, 1, 1)
        async with sleeping(gateway, include=["content"]) as late:
            late.connection.protocol.max_message_size = None
            for turn in range(10):
                command = {
                    "action": "upsert",
                    "collection": "m",
                    "id": "d0",
                    "vector": [1, turn],
                    "content": f"{turn}" * 900_000,
                }
                assert (await producer.reply(**command))["type"] == "ack"
            late.connection.transport.resume_reading()
            last = ""
            while not last.startswith("9"):
                (event,) = await late.events(1)
                last = event["content"]
            assert last == "9" * 900_000


async def test_who_takes_nothing_is_closed_with_4413_and_who_is_slow_is_not(start_gateway: StartGateway) -> None:
    async with start_gateway(ping_interval_s=0.3) as gateway, json_socket(gateway.ws) as producer:
        await write(producer, 1)
        async with sleeping(gateway) as stuck, sleeping(gateway) as slow:
            sipping = asyncio.create_task(_sip(slow.connection))
            await write(producer, 200)
            async with asyncio.timeout(10):
                while len(room(gateway)) > 1:
                    await asyncio.sleep(0.01)
            stuck.connection.transport.resume_reading()
            with pytest.raises(websockets.ConnectionClosed):
                await stuck.events(100_000)
            sipping.cancel()
            assert len(room(gateway)) == 1
            slow.connection.transport.resume_reading()
            events = await slow.events(1)
            while events[-1]["index_version"] < 20 * 201:
                events += await slow.events(1)


async def _sip(connection: ClientConnection) -> None:
    """Read a little, again and again."""
    while True:
        connection.transport.resume_reading()
        await asyncio.sleep(0.02)
        connection.transport.pause_reading()
        await asyncio.sleep(0.1)


async def test_who_can_not_follow_even_the_net_change_is_closed_with_4413(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(max_lag_s=0.001, room_log_bytes=0) as gateway,
        json_socket(gateway.ws) as producer,
        sleeping_later(gateway, producer) as late,
    ):
        await write(producer, 12, 500)
        late.connection.transport.resume_reading()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await late.events(100_000)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4413
        again = await producer.reply(action="ping")
        assert again["type"] == "pong"


@asynccontextmanager
async def sleeping_later(gateway: Gateway, producer: JsonSocket) -> AsyncIterator[JsonSocket]:
    await write(producer, 1)
    async with sleeping(gateway) as late:
        yield late


async def test_connections_are_limited_with_4429(start_gateway: StartGateway) -> None:
    async with start_gateway(max_connections=2) as gateway:
        async with json_socket(gateway.ws), json_socket(gateway.ws):
            async with websockets.connect(gateway.ws) as third:
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await third.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4429, "more than 2 connections")
        async with json_socket(gateway.ws) as again:
            assert (await again.ask(action="ping"))["type"] == "pong"


async def test_commands_are_limited_per_connection(start_gateway: StartGateway) -> None:
    async with start_gateway(max_commands_per_s=5) as gateway, json_socket(gateway.ws) as socket:
        answers = [await socket.ask(action="ping", ref=i) for i in range(20)]
        refused = [answer for answer in answers if answer["type"] == "error"]
        assert 10 <= len(refused) <= 15
        assert {answer["code"] for answer in refused} == {"rate_limited"}
        assert all(answer["retryable"] and 0 < answer["retry_after_s"] <= 0.2 for answer in refused)
        assert [answer["ref"] for answer in answers] == list(range(20))
        async with json_socket(gateway.ws) as other:
            assert (await other.ask(action="ping"))["type"] == "pong", "another connection has its own"


async def test_connections_that_come_and_go_never_get_each_others_bytes(gateway: Gateway) -> None:
    """A descriptor is used again as soon as it is closed: nothing of the old connection's may be written to it."""
    async with json_socket(gateway.ws) as producer:
        await write(producer, 1, 5, "")
        stop = asyncio.Event()

        async def come_and_go(number: int) -> int:
            seen = 0
            while not stop.is_set():
                async with websockets.connect(gateway.ws, close_timeout=0.1) as connection:
                    assert json.loads(await connection.recv())["type"] == "connected"
                    if number % 2:
                        await connection.send(b'{"action":"ping"}')
                        assert json.loads(await connection.recv())["type"] in ("pong", "error")
                    else:
                        await connection.send(json.dumps({"action": "subscribe", "collection": "m", "ref": 1}))
                        assert json.loads(await connection.recv())["ref"] == 1
                        seen += json.loads(await connection.recv())["type"] == "index_update"
                    connection.transport.abort()
            return seen

        visitors = [asyncio.create_task(come_and_go(number)) for number in range(10)]
        await write(producer, 150, 5, "")
        stop.set()
        await write(producer, 3, 5, "again")
        assert sum(await asyncio.gather(*visitors)) > 10
        async with asyncio.timeout(10):
            while len(room(gateway)):
                await asyncio.sleep(0.01)


async def test_rooms_of_dropped_collections_do_not_count(start_gateway: StartGateway) -> None:
    async with start_gateway(max_rooms=2) as gateway, json_socket(gateway.ws) as socket:
        for i in range(5):
            await socket.ask(action="upsert", collection=f"c{i}", id="a", vector=[1, 0])
            assert (await socket.ask(action="subscribe", collection=f"c{i}"))["type"] == "subscribed"
            await drop(gateway, f"c{i}")
            assert (await socket.receive())["type"] == "unsubscribed"


async def test_who_goes_on_talking_after_its_close_frame_is_cut_off(start_gateway: StartGateway) -> None:
    """The library waits without a limit for the connection to end, and what came in kept it alive."""
    async with start_gateway(max_connections=1) as gateway:
        address = urlsplit(gateway.ws)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x88\x82\0\0\0\0\x03\xe8")
        with pytest.raises(ConnectionError):
            await _talk(writer)
        async with json_socket(gateway.ws) as next_one:
            assert (await next_one.ask(action="ping"))["type"] == "pong"


async def _talk(writer: asyncio.StreamWriter) -> None:
    """Send pongs until the connection is gone."""
    while True:
        writer.write(b"\x8a\x80\0\0\0\0")
        await writer.drain()
        await asyncio.sleep(0.05)
