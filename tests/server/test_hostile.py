"""Clients that don't speak WebSocket as they should: each gets its error or its close code, and nobody else notices."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import struct
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.app import Gateway, running
from gateway.settings import load
from tests.conftest import JsonSocket, json_socket

CLIENTS = 100

PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b'{"action":"ping"}',
            b'{"action":"subscribe","collection":"m","since":0}',
            b'{"action":"search","collection":"m","vector":[1,2],"k":1000}',
            b'{"action":"upsert","collection":"m","id":"x","vector":[1,2]}',
            b'{"action":',
            b"\x03\xe8",
            b"\x00",
        ]
    ),
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Frames that are right in most things: wrong ones end a connection, and what comes after isn't looked at."""
    payload = draw(PAYLOADS)
    first = draw(st.one_of(st.sampled_from([0x81, 0x82, 0x01, 0x80, 0x89, 0x8A, 0x88]), st.integers(0, 255)))
    masked = draw(st.sampled_from([0x80, 0x80, 0x80, 0]))
    claimed = len(payload) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 70_000, 1 << 40]))
    claimed = max(0, claimed)
    if claimed < 126:
        header = struct.pack("!BB", first, masked | claimed)
    elif claimed < 1 << 16:
        header = struct.pack("!BBH", first, masked | 126, claimed)
    else:
        header = struct.pack("!BBQ", first, masked | 127, claimed)
    return header + (b"\0\0\0\0" if masked else b"") + payload


ENDS = st.sampled_from(["abort", "read", "half"])
CONVERSATIONS = st.lists(st.tuples(st.lists(frames(), max_size=4), ENDS), min_size=CLIENTS, max_size=CLIENTS)


@pytest.mark.timeout(240)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.lists(
        st.tuples(st.lists(frames(), max_size=4), st.sampled_from(["abort", "read", "half"])),
        min_size=CLIENTS,
        max_size=CLIENTS,
    )
)
def test_malformed_frames_hurt_nobody_else(
    tmp_path_factory: pytest.TempPathFactory, conversations: list[tuple[list[bytes], str]]
) -> None:
    asyncio.run(_offend(tmp_path_factory.mktemp("hostile"), conversations))


async def _offend(folder: Path, conversations: list[tuple[list[bytes], str]]) -> None:
    flags = {"ws_port": 0, "http_port": 0, "data_dir": folder}
    async with (
        running(load(flags, None)) as gateway,
        json_socket(gateway.ws) as producer,
        json_socket(gateway.ws) as other,
    ):
        await producer.ask(action="upsert", collection="m", id="a", vector=[1, 0])
        await other.ask(action="subscribe", collection="m")
        tasks = len(asyncio.all_tasks())
        watching = asyncio.create_task(_watch(other, len(conversations)))
        for number, (sent, end) in enumerate(conversations):
            await _converse(gateway, sent, end)
            ack = await producer.ask(action="upsert", collection="m", id="a", vector=[1, number + 1])
            assert ack["type"] == "ack"
        await watching
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > tasks or len(gateway.node.hosted("m").room) > 1:
                await asyncio.sleep(0.01)
        gc.collect()


async def _watch(socket: JsonSocket, count: int) -> None:
    """Take the updates of document "a", which are all there, and in order."""
    versions: list[int] = []
    while len(versions) < count:
        (event,) = await socket.events(1)
        if event["document_id"] == "a":
            versions.append(event["version"])
    assert versions == list(range(2, count + 2))


async def _converse(gateway: Gateway, sent: list[bytes], end: str) -> None:
    address = urlsplit(gateway.ws)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    for data in sent:
        writer.write(data)
    if end == "half":
        writer.write(b"\x81\xfe\x10")  # the beginning of a frame's header
    if end == "read":
        writer.write_eof()
        await reader.read()
    writer.transport.abort()


async def test_a_thousand_who_break_off_leave_nothing_behind(gateway: Gateway) -> None:
    async with json_socket(gateway.ws) as producer:
        await producer.ask(action="upsert", collection="m", id="a", vector=[1, 0])
        subscribe = b'{"action":"subscribe","collection":"m","since":0}'
        masked = struct.pack("!BB", 0x81, 0x80 | len(subscribe)) + b"\0\0\0\0" + subscribe
        await asyncio.gather(*(_converse(gateway, [masked], "half") for _ in range(20)))
        await _gone(gateway)
        tasks, descriptors = len(asyncio.all_tasks()), _descriptors()
        for _ in range(20):
            await asyncio.gather(*(_converse(gateway, [masked], "half") for _ in range(50)))
            await producer.ask(action="patch", collection="m", id="a", changes={"x": 1})
        await _gone(gateway)
        assert len(asyncio.all_tasks()) <= tasks
        assert _descriptors() <= descriptors
        assert (await producer.reply(action="ping"))["type"] == "pong"


async def _gone(gateway: Gateway) -> None:
    async with asyncio.timeout(10):
        while len(gateway.node.hosted("m").room) or len(asyncio.all_tasks()) > 12:
            await asyncio.sleep(0.01)


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])
